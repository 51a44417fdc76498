"""A user's photos: read safely, upright and in sRGB, and cropped to square views around the subject.

The subject is where its mask is, or else where the photo has most detail. Metadata is dropped.
"""

import contextlib
import hashlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageCms
from torch import Tensor

from cones2.errors import PhotoError
from cones2.files import expanded, read_bounded
from cones2.images import LARGEST_PROFILE, flattened, opened_image, upright

MOST_PHOTOS = 200
LARGEST_FILE = 100_000_000
SMALLEST_SIDE = 16
LONGEST_SHAPE = 8

_FORMATS = ("JPEG", "PNG", "WEBP")
_LONGEST_SIDE = 2048  # no model draws larger, and a folder of 50-megapixel photos stays in memory
_MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
# What a folder's owner would call a picture: if it can't be used, that is an error. Other files are left alone.
_PICTURE_SUFFIXES = {*_MASK_SUFFIXES, ".avif", ".bmp", ".gif", ".heic", ".heif", ".psd", ".tif", ".tiff"}
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # which pixels a colour profile is for, by its space

_SUBJECT = 128  # the least value of a mask, of 255, that counts as subject where a yes or no is needed
_MOST_TINT = 16  # difference of a grey picture's channels; JPEG leaves a little
_MOST_STRETCH = 0.02  # difference of shapes; rounding leaves a little
_CLOSEST_VIEW = 0.8


@dataclass(frozen=True, repr=False)
class Photo:
    """A photo of a subject.

    Attributes:
        path: where it was read.
        sha256: hash of the file's bytes.
        image: RGB, upright, at most 2048 pixels long, without metadata.
        mask: where the subject is, of the image's size: 8-bit grey, white on the subject; None counts all of the photo.
    """

    path: Path
    sha256: str
    image: Image.Image
    mask: Image.Image | None = None

    def __repr__(self) -> str:
        masked = ", with a mask" if self.mask else ""
        return f"Photo({self.path.name!r}, {self.image.width}x{self.image.height}{masked})"


def load_photos(source: Path | str | Sequence[Path | str], *, masks: Path | str | None = None) -> tuple[Photo, ...]:
    """Read photos: those in a folder, sorted by name, or files and folders in the given order.

    In a folder, hidden files, sub-folders and files that are not pictures by their suffix are skipped; every picture
    must be usable, so that nobody learns from fewer photos than they think. EXIF orientation and colour profiles are
    applied, transparency becomes white, and of an animation the first frame counts.

    Args:
        source: a folder, a file, or a list of them.
        masks: a folder with a mask for each photo: a greyscale picture of the same name but for its suffix, and of the
            same shape, white where the subject is.

    Raises:
        PhotoError: there is none or there are too many, or one is not a JPEG, PNG or WebP picture, is damaged, or is
            too large, too small or too long; or a mask is missing, empty, coloured or of another shape.
    """
    sources = [source] if isinstance(source, Path | str) else source
    paths = list(itertools.chain.from_iterable(_pictures_in(expanded(one)) for one in sources))
    if not paths:
        raise PhotoError("no photos were given; expected JPEG, PNG or WebP pictures of the subject, 3 to 5 do best.")
    if len(paths) > MOST_PHOTOS:
        raise PhotoError(f"{len(paths)} photos are too many; expected at most {MOST_PHOTOS}, 3 to 5 do best.")
    return tuple(_load_photo(path, None if masks is None else expanded(masks)) for path in paths)


def _load_photo(path: Path, masks: Path | None) -> Photo:
    image, sha256 = _read_picture(path)
    return Photo(path, sha256, image, _read_mask(masks, path, image.size) if masks else None)


def _pictures_in(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    paths = [path for path in _listed(source) if path.suffix.lower() in _PICTURE_SUFFIXES and not path.is_dir()]
    if not paths:
        raise PhotoError(f"{source} holds no photos; expected JPEG, PNG or WebP pictures, 3 to 5 do best.")
    return paths


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted by name, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise PhotoError(
            f"can't read the folder {folder}: {error.strerror}. Check the path and its permissions."
        ) from error


def _read_picture(path: Path) -> tuple[Image.Image, str]:
    """Read a JPEG, PNG or WebP file: RGB, upright, in sRGB, at most 2048 pixels long; and the hash of its bytes."""
    content = read_bounded(path, limit=LARGEST_FILE, error=PhotoError)
    advice = "Save it as a PNG, or take it out."
    with opened_image(content, name=str(path), formats=_FORMATS, error=PhotoError, advice=advice) as image:
        _check_shape(path, *image.size)
        image.draft(None, (_LONGEST_SIDE, _LONGEST_SIDE))  # lets JPEG decode at a fraction of its size
        picture = _in_srgb(upright(image), image.info.get("icc_profile"))
        picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    picture.info = {}
    return picture, hashlib.sha256(content).hexdigest()


def _check_shape(path: Path, width: int, height: int) -> None:
    if max(width, height) > LONGEST_SHAPE * min(width, height):
        raise PhotoError(
            f"{path} is {width}x{height}; expected a longer side of at most {LONGEST_SHAPE} times the shorter. Crop it."
        )
    if min(width, height) < SMALLEST_SIDE:
        raise PhotoError(f"{path} is {width}x{height}; expected at least {SMALLEST_SIDE} pixels a side.")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return `image` as RGB, converted to sRGB by its colour profile; one that can't be used is ignored, as viewers do.

    Models learned from sRGB: the numbers of a phone's Display P3 would make all colours paler.
    """
    flat = flattened(image, "RGB", background="white")
    if profile and len(profile) <= LARGEST_PROFILE:
        with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = _PROFILE_MODES.get(embedded.profile.xcolor_space.strip())
            source = flat if mode == "RGB" else image
            if mode == source.mode:
                srgb = ImageCms.createProfile("sRGB")
                return ImageCms.profileToProfile(source, embedded, srgb, outputMode="RGB") or flat
    return flat


def _read_mask(folder: Path, photo: Path, size: tuple[int, int]) -> Image.Image:
    """Read the mask of a photo of this name and size: 8-bit grey, of the photo's size."""
    found = [path for path in _listed(folder) if path.stem == photo.stem and path.suffix.lower() in _MASK_SUFFIXES]
    if not found:
        expected = f"expected {photo.stem}.png, white where the subject is"
        raise PhotoError(f"{folder} has no mask for {photo.name}: {expected}; all white counts all of the photo.")
    path = min(found, key=lambda path: _MASK_SUFFIXES.index(path.suffix.lower()))
    image, _ = _read_picture(path)
    if np.ptp(np.asarray(image, dtype=np.int16), axis=2).max() > _MOST_TINT:
        raise PhotoError(f"the mask {path} has colours; expected grey: white on the subject, black elsewhere.")
    ratio = image.width * size[1] / (image.height * size[0])
    if abs(ratio - 1) > _MOST_STRETCH:
        shapes = f"{image.width}x{image.height}, its photo {size[0]}x{size[1]}"
        raise PhotoError(f"the mask {path} is {shapes}; expected the same shape, upright.")
    mask = image.convert("L").resize(size, Image.Resampling.BILINEAR)
    if int(np.asarray(mask).max()) < _SUBJECT:
        raise PhotoError(f"the mask {path} is empty: expected white where the subject is. Paint it, or leave it out.")
    return mask


class View(NamedTuple):
    """A square of a photo, in its pixels."""

    left: float
    top: float
    side: float

    def of(self, photo: Photo, size: int) -> Image.Image:
        """Return this part of a photo, `size` x `size` pixels, RGB."""
        return self.cut(photo.image, size, Image.Resampling.LANCZOS)

    def share(self, photo: Photo, cells: int) -> Float[Tensor, "1 {cells} {cells}"]:
        """Return the subject's share, 0 to 1, of each of `cells` x `cells` cells: 1 where the photo has no mask."""
        if photo.mask is None:
            return torch.ones(1, cells, cells)
        cut = self.cut(photo.mask, cells, Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255)[None]

    def cut(self, image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
        """Return this part of a picture, resized to `size` x `size` pixels."""
        right, bottom = min(self.left + self.side, image.width), min(self.top + self.side, image.height)
        return image.resize((size, size), resample, box=(self.left, self.top, right, bottom))


def views(photo: Photo, *, count: int, generator: torch.Generator) -> list[View]:
    """Choose `count` square views of a photo: first the whole one, then random ones up to 20 % closer.

    None is mirrored: a subject's left and right may differ. With a mask, no closer view cuts off what it can keep of
    the subject.
    """
    whole = _whole_view(photo.image, photo.mask)
    closer = torch.rand(count - 1, 3, generator=generator).tolist()
    return [
        whole,
        *(_closer(whole, 1 - (1 - _CLOSEST_VIEW) * zoom, (x, y), photo.mask) for zoom, x, y in closer),
    ]


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
    return _closer(_whole_view(image, None), scale, center, None).cut(image, size, Image.Resampling.LANCZOS)


def stack_pixels(squares: Sequence[Image.Image]) -> Float[Tensor, "batch 3 height width"]:
    """Return the values, 0 to 255, of RGB pictures of one size."""
    pixels = np.stack([np.asarray(square, dtype=np.float32) for square in squares])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _whole_view(image: Image.Image, mask: Image.Image | None) -> View:
    side = min(image.size)
    middle = _middle_of_detail(image) if mask is None else _middle_of_mask(mask)
    left, top = (
        min(max(share * length - side / 2, 0), length - side) for share, length in zip(middle, image.size, strict=True)
    )
    return View(left, top, side)


def _closer(whole: View, scale: float, center: tuple[float, float], mask: Image.Image | None) -> View:
    """Return a smaller view inside the whole one; a subject that fits in it is not cut off."""
    side = whole.side * scale
    lowest, highest = (whole.left, whole.top), (whole.left + whole.side - side, whole.top + whole.side - side)
    corner = [low + (high - low) * shift for low, high, shift in zip(lowest, highest, center, strict=True)]
    if mask is not None:
        for axis, (first, last) in enumerate(_sides(mask)):
            if last - first <= side:
                corner[axis] = min(max(corner[axis], last - side), first)
            corner[axis] = min(max(corner[axis], lowest[axis]), highest[axis])
    return View(corner[0], corner[1], side)


def _middle_of_detail(image: Image.Image) -> tuple[float, float]:
    """Return the point, in 0..1, around which edges balance: plain or blurred backgrounds hardly weigh."""
    small = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX), dtype=np.float64)
    detail: Float[np.ndarray, "64 64"] = np.hypot(*np.gradient(small)) ** 2
    if not detail.any():
        return 0.5, 0.5
    places = (np.arange(64) + 0.5) / 64
    return float(detail.sum(0) @ places / detail.sum()), float(detail.sum(1) @ places / detail.sum())


def _middle_of_mask(mask: Image.Image) -> tuple[float, float]:
    """Return the middle, in 0..1, of the box around the subject."""
    (left, right), (top, bottom) = _sides(mask)
    return (left + right) / 2 / mask.width, (top + bottom) / 2 / mask.height


def _sides(mask: Image.Image) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the box around the subject as (left, right), (top, bottom), in pixels."""
    subject = np.asarray(mask) >= _SUBJECT
    columns, rows = np.flatnonzero(subject.any(axis=0)), np.flatnonzero(subject.any(axis=1))
    return (float(columns[0]), float(columns[-1] + 1)), (float(rows[0]), float(rows[-1] + 1))
