"""A user's photos: read safely, cropped around the subject, judged before anything is learned from them."""

from cones2.photos.loading import Photo, load_photos
from cones2.photos.report import Finding, PhotoFacts, PhotoReport, photo_report
from cones2.photos.views import View, crop_square, stack_pixels, views

__all__ = [
    "Finding",
    "Photo",
    "PhotoFacts",
    "PhotoReport",
    "View",
    "crop_square",
    "load_photos",
    "photo_report",
    "stack_pixels",
    "views",
]
