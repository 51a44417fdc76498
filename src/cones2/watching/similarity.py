"""An identity measure: how like a subject's photos pictures are, by a CLIP model's image embeddings."""

from collections.abc import Sequence

from PIL.Image import Image

from cones2.backbones.image_encoder import ImageEncoder
from cones2.photos import Photo, crop_square
from cones2.watching.watch import Identity


def similarity_to(photos: Sequence[Photo], encoder: ImageEncoder) -> Identity:
    """Give a measure of pictures: their mean cosine similarity with the photos, -1 to 1.

    The "image alignment" of arXiv:2305.19327, Sec. 4, for pictures of one subject. Backgrounds count, too.
    """
    wanted = encoder.embed([crop_square(photo.image, encoder.size) for photo in photos])

    def measure(pictures: Sequence[Image]) -> float:
        return float((encoder.embed(pictures) @ wanted.T).mean())

    return measure
