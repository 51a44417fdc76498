"""Are these photos ready to be learned from? Their number, sizes, blur and copies, before any time is spent.

All findings are advice. How the thresholds were found is in `docs/learning.md`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from cones2.photos import Photo

FEWEST = 3
BLURRED = 100.0
NEARLY_THE_SAME = 4  # bits of 64
_TILES = 4


@dataclass(frozen=True)
class PhotoFacts:
    """What was measured of one photo.

    Attributes:
        path: where it was read.
        width: in pixels.
        height: in pixels.
        sharpness: variance of the Laplacian in the sharpest sixteenth, at the size that is learned.
    """

    path: Path
    width: int
    height: int
    sharpness: float


@dataclass(frozen=True)
class Finding:
    """Something that the user should know of the photos.

    Attributes:
        kind: `count`, `size`, `blur` or `duplicate`.
        photos: the names of those that it is about; none means all.
        text: what is wrong, and what to do about it.
    """

    kind: str
    photos: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class PhotoReport:
    """Facts about photos, and what they mean.

    Attributes:
        size: the side, in pixels, that they are judged for.
        photos: facts, in the photos' order.
        findings: what the user should know; none if all is well.
    """

    size: int
    photos: tuple[PhotoFacts, ...]
    findings: tuple[Finding, ...]


def photo_report(photos: Sequence[Photo], *, size: int = 512) -> PhotoReport:
    """Judge photos of one subject before they are learned from.

    Args:
        photos: of one subject.
        size: the side, in pixels, of the pictures that the model draws.
    """
    facts = tuple(
        PhotoFacts(photo.path, photo.image.width, photo.image.height, sharpness(photo.image, size)) for photo in photos
    )
    return PhotoReport(size, facts, (*_findings_on_all(photos), *_findings_on_each(facts, size)))


def _findings_on_all(photos: Sequence[Photo]) -> Iterator[Finding]:
    if len(photos) < FEWEST:
        yield Finding("count", (), f"only {len(photos)} of the 3 to 5 photos that do best: add more views.")
    left = [(photo.path.name, difference_hash(photo.image)) for photo in photos]
    while left:
        (first, bits), *others = left
        alike = [name for name, other in others if np.count_nonzero(bits != other) <= NEARLY_THE_SAME]
        left = [(name, other) for name, other in others if np.count_nonzero(bits != other) > NEARLY_THE_SAME]
        if alike:
            names = (first, *alike)
            advice = "they teach little more than one of them. Take others"
            listed = f"{', '.join(names[:-1])} and {names[-1]}"
            yield Finding("duplicate", names, f"{listed} are nearly the same picture: {advice}.")


def _findings_on_each(photos: Sequence[PhotoFacts], size: int) -> Iterator[Finding]:
    for facts in photos:
        name = facts.path.name
        if min(facts.width, facts.height) < size:
            problem = f"{name} is {facts.width}x{facts.height} where {size} pixels are drawn"
            yield Finding("size", (name,), f"{problem}: it is enlarged, and detail is missing. Take a larger one.")
        if facts.sharpness < BLURRED:
            yield Finding("blur", (name,), f"{name} is blurred: its blur will be learned. Take a sharper one.")


def sharpness(image: Image.Image, size: int) -> float:
    """Return the variance of the Laplacian in the sharpest of 4 x 4 tiles, the shorter side scaled down to `size`.

    The sharpest tile, since a background out of focus is no fault; at the size that is learned, since blur that is
    finer than its pixels does no harm.
    """
    scale = min(1.0, size / min(image.size))
    scaled = image.convert("L").resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    grey = np.asarray(scaled, dtype=np.float64)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    tiles = [tile for row in np.array_split(laplacian, _TILES) for tile in np.array_split(row, _TILES, axis=1)]
    return max(float(tile.var()) for tile in tiles)


def difference_hash(image: Image.Image) -> Bool[np.ndarray, " bits"]:
    """Return the 64 bits of dHash: whether each cell of an 8 x 9 thumbnail is darker than its right neighbour.

    Copies of a picture at another size, quality or brightness differ in a few bits, different pictures in about 30.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits: Bool[np.ndarray, " bits"] = (grey[:, 1:] > grey[:, :-1]).ravel()
    return bits
