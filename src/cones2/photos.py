"""A user's photos: read safely, upright and in sRGB, cropped to square views around the subject, and judged.

The subject is where its mask is, or else where the photo has most detail. Metadata is dropped.
"""

import contextlib
import hashlib
import io
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageCms

from cones2.errors import Cones2Warning, PhotoError
from cones2.files import expanded, is_folder, is_regular, read_bounded
from cones2.images import FORMATS, LARGEST_PROFILE, flattened, greys_of_mask, opened_image, upright, without_noise

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_PHOTOS = 200
LARGEST_FILE = 100_000_000
SMALLEST_SIDE = 16
LONGEST_SHAPE = 8
FEWEST = 3
BLURRED = 100.0

_LONGEST_SIDE = 2048  # no model draws larger, and a folder of 50-megapixel photos stays in memory
_MASK_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif")
# What a folder's owner would call a picture: if it can't be used, that is an error. Others are pictures by their start.
_PICTURE_SUFFIXES = {*_MASK_SUFFIXES, ".bmp", ".gif", ".mpo", ".psd", ".tif", ".tiff"}
_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n")
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # which pixels a colour profile is for, by its space

_MOST_STRETCH = 0.02  # difference of shapes; rounding leaves a little
_CLOSEST_VIEW = 0.8
_NEARLY_THE_SAME = 4  # bits of 64
_TILES = 4


@dataclass(frozen=True, repr=False)
class Photo:
    """A photo of a subject.

    Attributes:
        path: where it was read.
        sha256: hash of the file's bytes.
        image: RGB, upright, at most 2048 pixels long, without metadata.
        mask: 8-bit grey of the image's size, white on the subject; None counts all of the photo.
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

    In a folder, every picture must be usable; what is none, sub-folders too, is left out with a warning, and hidden
    files without one. EXIF orientation and colour profiles are applied, and transparency becomes white.

    Args:
        source: a folder, a file, or a list of them.
        masks: a folder with a mask for each photo: a grey picture, white on the subject, of the same shape, and of the
            same name but for its suffix. Where a part of it is transparent, what is opaque is the subject. A mask that
            has colours or is dim gives a warning.

    Raises:
        PhotoError: there are none or too many; one is not a JPEG, PNG, WebP, AVIF or, with pillow-heif, HEIC picture,
            damaged, too large or too small; or a mask is missing, empty or of another shape.
    """
    sources = [source] if isinstance(source, Path | str) else source
    paths = list(itertools.chain.from_iterable(pictures_in(expanded(one), masks) for one in sources))
    if not 0 < len(paths) <= MOST_PHOTOS:
        raise PhotoError(f"there are {len(paths)} photos; expected 1 to {MOST_PHOTOS}, and 3 to 5 do best.")
    pictures = ((path, *_read_picture(path)) for path in paths)
    return tuple(
        Photo(path, sha256, image, None if masks is None else _read_mask(expanded(masks), path, image.size))
        for path, image, sha256 in pictures
    )


def pictures_in(source: Path, masks: Path | str | None) -> list[Path]:
    """Return the files that `load_photos` would read of a folder, sorted by name; a file is its own only one."""
    if not is_folder(source):
        return [source]
    listed = _listed(source)
    paths = [path for path in listed if not path.is_dir() and _is_picture(path)]
    others = [path.name for path in listed if path not in paths and (masks is None or path != expanded(masks))]
    left = f"left out of {source}, as no pictures: {', '.join(others[:5])}{' and more' * (len(others) > 5)}."
    if not paths:
        told = f" {left[0].upper()}{left[1:]}" if others else ""
        raise PhotoError(f"{source} holds no photos; expected JPEG, PNG, WebP or AVIF pictures, 3 to 5 do best.{told}")
    if others:
        warnings.warn(left, Cones2Warning, stacklevel=3)
    return paths


def _is_picture(path: Path) -> bool:
    if path.suffix.lower() in _PICTURE_SUFFIXES or not is_regular(path):  # no pipe is waited for
        return path.suffix.lower() in _PICTURE_SUFFIXES
    with contextlib.suppress(OSError), path.open("rb") as file:
        start = file.read(12)
        return start.startswith(_STARTS) or (start[:4], start[8:]) == (b"RIFF", b"WEBP")
    return False


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted by name, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise PhotoError(f"can't read the folder {folder}: {error.strerror}. Check the path.") from error


def _read_picture(path: Path) -> tuple[Image.Image, str]:
    """Read a picture's file: RGB, upright, in sRGB, at most 2048 pixels long; and the hash of its bytes."""
    content = read_bounded(path, limit=LARGEST_FILE, error=PhotoError)
    advice = "Save it as a PNG, or take it out."
    with opened_image(content, name=str(path), formats=FORMATS, error=PhotoError, advice=advice) as image:
        shape = f"{path} is {image.width}x{image.height}"
        if max(image.size) > LONGEST_SHAPE * min(image.size):
            raise PhotoError(f"{shape}; expected a longer side of at most {LONGEST_SHAPE} times the shorter. Crop it.")
        if min(image.size) < SMALLEST_SIDE:
            raise PhotoError(f"{shape}; expected at least {SMALLEST_SIDE} pixels a side.")
        image.draft(None, (_LONGEST_SIDE, _LONGEST_SIDE))  # lets JPEG decode at a fraction of its size
        picture = _in_srgb(upright(image), image.info.get("icc_profile"))
        picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    picture.info = {}
    return picture, hashlib.sha256(content).hexdigest()


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return `image` as RGB in sRGB, from which models learned; a colour profile that can't be used is ignored."""
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
        raise PhotoError(f"{folder} has no mask for {photo.name}; expected {photo.stem}.png, white on the subject.")
    path = min(found, key=lambda path: _MASK_SUFFIXES.index(path.suffix.lower()))
    content = read_bounded(path, limit=LARGEST_FILE, error=PhotoError)
    name, advice = f"the mask {path}", "Save it as a PNG."
    with opened_image(content, name=name, formats=FORMATS, error=PhotoError, advice=advice) as image:
        grey, doubt = greys_of_mask(upright(image))
    if abs(grey.width * size[1] / (grey.height * size[0]) - 1) > _MOST_STRETCH:
        raise PhotoError(f"{name} is {grey.width}x{grey.height}; expected its photo's shape, upright.")
    mask = without_noise(grey.resize(size, Image.Resampling.BILINEAR))
    if not mask.getbbox():
        raise PhotoError(f"{name}{doubt.replace('dim', 'empty')}")
    if doubt:
        warnings.warn(name + doubt, Cones2Warning, stacklevel=3)
    return mask


class View(NamedTuple):
    """A square of a photo, in its pixels."""

    left: float
    top: float
    side: float

    def of(self, photo: Photo, size: int) -> Image.Image:
        """Return this part of a photo, `size` x `size` pixels, RGB."""
        return self.cut(photo.image, size, Image.Resampling.LANCZOS)

    def share(self, photo: Photo, cells: int) -> "Float[Tensor, '1 {cells} {cells}']":
        """Return the subject's share, 0 to 1, of each of `cells` x `cells` cells: 1 where the photo has no mask."""
        import torch  # photos are read and judged without

        if photo.mask is None:
            return torch.ones(1, cells, cells, dtype=torch.float32, device="cpu")
        cut = self.cut(photo.mask, cells, Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255)[None]

    def cut(self, image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
        """Return this part of a picture, resized to `size` x `size` pixels."""
        right, bottom = min(self.left + self.side, image.width), min(self.top + self.side, image.height)
        return image.resize((size, size), resample, box=(self.left, self.top, right, bottom))


def views(photo: Photo, *, count: int, generator: "torch.Generator") -> list[View]:
    """Choose `count` square views of a photo: first the whole one, then random ones up to 20 % closer.

    None is mirrored, and with a mask, none cuts off what it can keep of the subject.
    """
    import torch

    whole = _whole_view(photo.image, photo.mask)
    closer = torch.rand(count - 1, 3, generator=generator, dtype=torch.float32, device="cpu").tolist()
    zooms = [(1 - (1 - _CLOSEST_VIEW) * zoom, (x, y)) for zoom, x, y in closer]
    return [whole, *(_closer(whole, scale, center, photo.mask) for scale, center in zooms)]


def crop_square(
    image: Image.Image, size: int, *, scale: float = 1.0, center: tuple[float, float] = (0.5, 0.5)
) -> Image.Image:
    """Return a square view of `image`, `size` x `size` pixels, RGB, that keeps the subject.

    It is cut where the photo has most detail; bars and wrong proportions would be learned as part of the subject.

    Args:
        image: an upright RGB photo of any shape.
        size: the side of the result.
        scale: side of the crop relative to the largest square, above 0 and at most 1.
        center: where a smaller crop lies in that square, from (0, 0), its upper left corner, to (1, 1).
    """
    return _closer(_whole_view(image, None), scale, center, None).cut(image, size, Image.Resampling.LANCZOS)


def stack_pixels(squares: Sequence[Image.Image]) -> "Float[Tensor, 'batch 3 height width']":
    """Return the values, 0 to 255, of RGB pictures of one size."""
    import torch

    pixels = np.stack([np.asarray(square, dtype=np.float32) for square in squares])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _whole_view(image: Image.Image, mask: Image.Image | None) -> View:
    side = min(image.size)
    if mask is None:
        middle = _middle_of_detail(image)
    else:
        (first, last), (upper, lower) = _sides(mask)
        middle = (first + last) / 2 / mask.width, (upper + lower) / 2 / mask.height
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


def _sides(mask: Image.Image) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the box around the subject as (left, right), (top, bottom), in pixels."""
    values = np.asarray(mask)
    subject = values >= values.max() / 2
    columns, rows = np.flatnonzero(subject.any(axis=0)), np.flatnonzero(subject.any(axis=1))
    return (float(columns[0]), float(columns[-1] + 1)), (float(rows[0]), float(rows[-1] + 1))


@dataclass(frozen=True)
class PhotoFacts:
    """What was measured of one photo: its size in pixels, and `sharpness` at the size that is learned."""

    path: Path
    width: int
    height: int
    sharpness: float


@dataclass(frozen=True)
class Finding:
    """What is wrong with photos (their names; none means all): `count`, `size`, `blur` or `duplicate`, and advice."""

    kind: str
    photos: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class PhotoReport:
    """Facts about photos, in their order, and what they mean for pictures of `size` pixels a side."""

    size: int
    photos: tuple[PhotoFacts, ...]
    findings: tuple[Finding, ...]


def photo_report(photos: Sequence[Photo], *, size: int = 512) -> PhotoReport:
    """Judge photos of one subject before they are learned from: their number, sizes, blur and copies.

    All findings are advice for pictures of `size` pixels a side. `docs/learning.md` has the thresholds' origin.
    """
    facts = tuple(PhotoFacts(each.path, *each.image.size, sharpness(each.image, size)) for each in photos)
    return PhotoReport(size, facts, (*_findings_on_all(photos), *_findings_on_each(facts, size)))


def _findings_on_all(photos: Sequence[Photo]) -> Iterator[Finding]:
    if len(photos) < FEWEST:
        yield Finding("count", (), f"only {len(photos)} of the 3 to 5 photos that do best: add more views.")
    left = [(photo.path.name, difference_hash(photo.image)) for photo in photos]
    while left:
        (first, bits), *others = left
        alike = [name for name, other in others if np.count_nonzero(bits != other) <= _NEARLY_THE_SAME]
        left = [(name, other) for name, other in others if np.count_nonzero(bits != other) > _NEARLY_THE_SAME]
        if alike:
            listed = f"{', '.join((first, *alike[:-1]))} and {alike[-1]}"
            yield Finding("duplicate", (first, *alike), f"{listed} are nearly the same picture: take others.")


def _findings_on_each(photos: Sequence[PhotoFacts], size: int) -> Iterator[Finding]:
    for facts in photos:
        name = facts.path.name
        if min(facts.width, facts.height) < size:
            problem = f"{name} is {facts.width}x{facts.height} where {size} pixels are drawn"
            yield Finding("size", (name,), f"{problem}: detail is missing. Take a larger one.")
        if facts.sharpness < BLURRED:
            yield Finding("blur", (name,), f"{name} is blurred: its blur will be learned. Take a sharper one.")


def sharpness(image: Image.Image, size: int) -> float:
    """Return the variance of the Laplacian in the sharpest of 4 x 4 tiles, the shorter side scaled down to `size`.

    A background out of focus is no fault, and blur that is finer than what is learned does no harm.
    """
    scale = min(1.0, size / min(image.size))
    scaled = image.convert("L").resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    grey = np.asarray(scaled, dtype=np.float64)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    tiles = [tile for row in np.array_split(laplacian, _TILES) for tile in np.array_split(row, _TILES, axis=1)]
    return max(float(tile.var()) for tile in tiles)


def difference_hash(image: Image.Image) -> Bool[np.ndarray, " bits"]:
    """Return the 64 bits of dHash: whether each cell of an 8 x 9 thumbnail is darker than its right neighbour."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits: Bool[np.ndarray, " bits"] = (grey[:, 1:] > grey[:, :-1]).ravel()
    return bits
