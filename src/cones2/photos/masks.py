"""Masks of photos: where the subject is, as a greyscale picture of the photo's own name."""

from pathlib import Path

import numpy as np
from PIL import Image

from cones2.errors import PhotoError
from cones2.photos.decoding import read_picture

MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SUBJECT = 128
"""The least value, of 255, that counts as subject where a yes or no is needed."""

_MOST_TINT = 16  # difference of channels; JPEG leaves a little
_MOST_STRETCH = 0.02  # difference of shapes; rounding leaves a little


def read_mask(folder: Path, photo: Path, size: tuple[int, int]) -> Image.Image:
    """Read the mask of a photo of this name and size: 8-bit grey, of the photo's size.

    Raises:
        PhotoError: there is none, or it can't be read, is coloured, of another shape than the photo, or empty.
    """
    path = _find(folder, photo)
    image = read_picture(path).image
    if np.ptp(np.asarray(image, dtype=np.int16), axis=2).max() > _MOST_TINT:
        raise PhotoError(f"the mask {path} has colours; expected grey: white on the subject, black elsewhere.")
    ratio = image.width * size[1] / (image.height * size[0])
    if abs(ratio - 1) > _MOST_STRETCH:
        shapes = f"{image.width}x{image.height}, its photo {size[0]}x{size[1]}"
        raise PhotoError(f"the mask {path} is {shapes}; expected the same shape, upright.")
    mask = image.convert("L").resize(size, Image.Resampling.BILINEAR)
    if int(np.asarray(mask).max()) < SUBJECT:
        raise PhotoError(f"the mask {path} is empty: expected white where the subject is. Paint it, or leave it out.")
    return mask


def _find(folder: Path, photo: Path) -> Path:
    for suffix in MASK_SUFFIXES:
        path = folder / f"{photo.stem}{suffix}"
        if path.exists():
            return path
    expected = f"expected {photo.stem}.png, white where the subject is"
    raise PhotoError(f"{folder} has no mask for {photo.name}: {expected}; all white counts all of the photo.")
