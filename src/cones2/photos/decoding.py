"""Pixels out of files that come from anyone: JPEG, PNG and WebP within bounds, upright, in sRGB.

Metadata is dropped, and anything else is refused cheaply.
"""

import contextlib
import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageCms, ImageOps

from cones2.errors import PhotoError
from cones2.files import read_bounded
from cones2.images import opened_image, scaled_grey

FORMATS = ("JPEG", "PNG", "WEBP")
LARGEST_FILE = 100_000_000
LARGEST_PROFILE = 4_000_000
SMALLEST_SIDE = 16
LONGEST_SHAPE = 8

# Longer sides are scaled down to this: no backbone draws larger, and a folder of 50-megapixel photos stays in memory.
_LONGEST_SIDE = 2048

# Which pixels a colour profile is for, by the space that it is of.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class Decoded(NamedTuple):
    """A picture and the hash of its file's bytes."""

    image: Image.Image
    sha256: str


def read_picture(path: Path) -> Decoded:
    """Read a JPEG, PNG or WebP file: RGB, upright by EXIF, in sRGB, at most 2048 pixels long, without metadata.

    Transparency becomes white, and of an animation the first frame counts.

    Raises:
        PhotoError: it is none of these, is damaged, or is too large, too small or too long.
    """
    content = read_bounded(path, limit=LARGEST_FILE, error=PhotoError)
    advice = "Save it as a PNG, or take it out."
    with opened_image(content, name=str(path), formats=FORMATS, error=PhotoError, advice=advice) as image:
        _check_shape(path, *image.size)
        image.draft(None, (_LONGEST_SIDE, _LONGEST_SIDE))  # lets JPEG decode at a fraction of its size
        profile = image.info.get("icc_profile")
        upright = _without_metadata(_in_srgb(ImageOps.exif_transpose(image), profile))
    return Decoded(upright, hashlib.sha256(content).hexdigest())


def _check_shape(path: Path, width: int, height: int) -> None:
    if max(width, height) > LONGEST_SHAPE * min(width, height):
        raise PhotoError(
            f"{path} is {width}x{height}; expected a longer side of at most {LONGEST_SHAPE} times the shorter. Crop it."
        )
    if min(width, height) < SMALLEST_SIDE:
        raise PhotoError(f"{path} is {width}x{height}; expected at least {SMALLEST_SIDE} pixels a side.")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return `image` as RGB, converted to sRGB by its colour profile; one that can't be used is ignored, as viewers do.

    Backbones learned from sRGB: the numbers of a phone's Display P3 would make all colours paler.
    """
    flat = _flat(image)
    if profile and len(profile) <= LARGEST_PROFILE:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = _MODES.get(embedded.profile.xcolor_space.strip())
            source = flat if mode == "RGB" else image
            if mode == source.mode:
                converted = ImageCms.profileToProfile(
                    source, embedded, ImageCms.createProfile("sRGB"), outputMode="RGB"
                )
                return converted or flat
    return flat


def _flat(image: Image.Image) -> Image.Image:
    """Return `image` as RGB, transparency on white, 16-bit grey scaled instead of clipped."""
    image = scaled_grey(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _without_metadata(image: Image.Image) -> Image.Image:
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    image.info = {}
    return image
