"""A user's photos: read safely, turned upright, cropped square around the subject.

Only the pixels of JPEG, PNG and WebP files reach the model; metadata is dropped, and anything else is refused cheaply.
"""

import hashlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from cones2.errors import Cones2Warning, PhotoError
from cones2.files import read_bounded

FORMATS = ("JPEG", "PNG", "WEBP")
LARGEST_FILE = 25_000_000
MOST_PIXELS = 50_000_000
SMALLEST_SIDE = 16
LONGEST_SHAPE = 8
MOST_PHOTOS = 200

# Longer sides are scaled down to this: no backbone draws larger, and a folder of 50-megapixel photos stays in memory.
_LONGEST_SIDE = 2048
_CLOSEST_VIEW = 0.8

# What a folder's owner would call a picture: if it can't be used, that is an error. Other files are left alone.
_PICTURE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".png",
        ".psd",
        ".tif",
        ".tiff",
        ".webp",
    }
)


@dataclass(frozen=True)
class Photo:
    """A photo of a subject.

    Attributes:
        path: where it was read.
        sha256: hash of the file's bytes.
        image: RGB, upright, at most 2048 pixels long, without metadata.
    """

    path: Path
    sha256: str
    image: Image.Image


def load_photos(source: Path | Sequence[Path]) -> tuple[Photo, ...]:
    """Read the photos in the folder `source`, sorted by name, or those listed, in the given order.

    In a folder, hidden files, sub-folders and files that are not pictures by their suffix are skipped; every picture
    must be usable, so that nobody learns from fewer photos than they think. EXIF orientation is applied, transparency
    becomes white, and of an animation the first frame counts. With fewer than 3 photos a `Cones2Warning` advises more.

    Raises:
        PhotoError: there is none or there are too many, or one is not a JPEG, PNG or WebP picture, is damaged, or is
            too large, too small or too long.
    """
    paths = _pictures_in(source) if isinstance(source, Path) else tuple(source)
    if not paths:
        place = f"{source} holds no photos" if isinstance(source, Path) else "no photos were given"
        raise PhotoError(f"{place}; expected JPEG, PNG or WebP pictures of the subject, 3 to 5 do best.")
    if len(paths) > MOST_PHOTOS:
        raise PhotoError(f"{len(paths)} photos are too many; expected at most {MOST_PHOTOS}, 3 to 5 do best.")
    if len(paths) < 3:
        warnings.warn(
            f"only {len(paths)} of the 3 to 5 photos that do best: add more views.", Cones2Warning, stacklevel=2
        )
    return tuple(_load_photo(path) for path in paths)


def crop_square(
    image: Image.Image, size: int, *, scale: float = 1.0, center: tuple[float, float] = (0.5, 0.5)
) -> Image.Image:
    """Return a square view of `image`, `size` x `size` pixels, RGB, that keeps the subject.

    At scale 1 it is the whole view: the largest square, slid along the longer side to where the photo has most detail.
    It is cut, not padded or squeezed, since bars and wrong proportions would be learned as part of the subject.

    Args:
        image: an upright RGB photo of any shape.
        size: the side of the result.
        scale: side of the crop relative to the whole view, above 0 and at most 1.
        center: where a smaller crop lies in the whole view, from (0, 0), touching its upper left corner, to (1, 1),
            touching its lower right one. Nothing outside the whole view is ever shown.
    """
    side = min(image.size)
    room = side * (1 - scale)
    left, top = (
        min(max(middle * length - side / 2, 0), length - side) + room * shift
        for middle, length, shift in zip(_middle_of_detail(image), image.size, center, strict=True)
    )
    box = (left, top, min(left + side * scale, image.width), min(top + side * scale, image.height))
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def views(photo: Photo, size: int, *, count: int, generator: torch.Generator) -> list[Image.Image]:
    """Return `count` square views of a photo: first the whole one, then random ones up to 20 % closer.

    None is mirrored: a subject's left and right may differ.
    """
    closer = torch.rand(count - 1, 3, generator=generator).tolist()
    return [
        crop_square(photo.image, size),
        *(crop_square(photo.image, size, scale=1 - (1 - _CLOSEST_VIEW) * zoom, center=(x, y)) for zoom, x, y in closer),
    ]


def _middle_of_detail(image: Image.Image) -> tuple[float, float]:
    """Return the point, in 0..1, around which edges balance: plain or blurred backgrounds hardly weigh."""
    small = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX), dtype=np.float64)
    detail = np.hypot(*np.gradient(small)) ** 2
    if not detail.any():
        return 0.5, 0.5
    places = (np.arange(64) + 0.5) / 64
    return float(detail.sum(0) @ places / detail.sum()), float(detail.sum(1) @ places / detail.sum())


def _pictures_in(source: Path) -> tuple[Path, ...]:
    if not source.is_dir():
        return (source,)
    try:
        entries = sorted(source.iterdir())
    except OSError as error:
        raise PhotoError(f"can't read the folder {source}: {error.strerror}. Check its permissions.") from error
    return tuple(path for path in entries if _looks_like_picture(path) and not path.is_dir())


def _looks_like_picture(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in _PICTURE_SUFFIXES


def _load_photo(path: Path) -> Photo:
    content = read_bounded(path, limit=LARGEST_FILE, error=PhotoError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders' remarks on odd files: what matters is raised
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = _decode(path, content)
    return Photo(path, hashlib.sha256(content).hexdigest(), image)


def _decode(path: Path, content: bytes) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_shape(path, *image.size)
            image.draft(None, (_LONGEST_SIDE, _LONGEST_SIDE))  # lets JPEG decode at a fraction of its size
            return _without_metadata(_flat(ImageOps.exif_transpose(image)))
    except PhotoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(_too_many_pixels(path)) from error
    except UnidentifiedImageError as error:
        raise PhotoError(
            f"{path} is not a JPEG, PNG or WebP picture, or only a part of one. Save it as one, or take it out."
        ) from error
    except Exception as error:  # on hostile bytes a decoder may raise anything
        raise PhotoError(f"{path} is damaged: {error}. Save it again, or take it out.") from error


def _check_shape(path: Path, width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise PhotoError(_too_many_pixels(path))
    if max(width, height) > LONGEST_SHAPE * min(width, height):
        raise PhotoError(
            f"{path} is {width}x{height}; expected a longer side of at most {LONGEST_SHAPE} times the shorter. Crop it."
        )
    if min(width, height) < SMALLEST_SIDE:
        raise PhotoError(f"{path} is {width}x{height}; expected at least {SMALLEST_SIDE} pixels a side.")


def _too_many_pixels(path: Path) -> str:
    return f"{path} has too many pixels; expected at most {MOST_PIXELS // 10**6} million. Scale it down."


def _flat(image: Image.Image) -> Image.Image:
    """Return `image` as RGB, transparency on white, 16-bit grey scaled instead of clipped."""
    if image.mode.startswith("I"):
        image = image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


def _without_metadata(image: Image.Image) -> Image.Image:
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    image.info = {}
    return image
