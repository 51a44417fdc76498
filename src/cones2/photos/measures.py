"""What can be measured of a photo without knowing what it shows: plain, well-known measures of a picture's grey.

Each is a pure function of a picture. The thresholds that `report.py` puts on them are calibrated in `docs/learning.md`.
"""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from cones2.photos.masks import SUBJECT
from cones2.photos.views import detail_of

_TILES = 4


def sharpness(image: Image.Image, size: int) -> float:
    """Variance of the Laplacian in the sharpest of 4 x 4 tiles, the shorter side being scaled down to `size` pixels.

    The sharpest tile, since a background out of focus is no fault; at the size that is learned, since blur that is
    finer than its pixels does no harm.
    """
    scale = min(1.0, size / min(image.size))
    scaled = image.convert("L").resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    grey = np.asarray(scaled, dtype=np.float64)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    tiles = [tile for row in np.array_split(laplacian, _TILES) for tile in np.array_split(row, _TILES, axis=1)]
    return max(float(tile.var()) for tile in tiles)


def tones(image: Image.Image) -> tuple[float, float]:
    """5th and 95th percentile of the grey values, 0 to 255: all but stray pixels lie between."""
    dark, bright = np.percentile(np.asarray(image.convert("L")), [5, 95])
    return float(dark), float(bright)


def clipped(image: Image.Image) -> tuple[float, float]:
    """Share of pixels that are as good as black (at most 2) and white (at least 253): there, detail is lost."""
    grey = np.asarray(image.convert("L"))
    return float((grey <= 2).mean()), float((grey >= 253).mean())


def contrast(image: Image.Image) -> float:
    """Standard deviation of the grey values, 0 to 127.5."""
    return float(np.asarray(image.convert("L"), dtype=np.float64).std())


def difference_hash(image: Image.Image) -> Bool[np.ndarray, " bits"]:
    """The 64 bits of dHash: whether each cell of an 8 x 9 thumbnail is darker than its right neighbour.

    Copies of a picture at another size, quality or brightness differ in a few bits, different pictures in about 30.
    """
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits: Bool[np.ndarray, " bits"] = (grey[:, 1:] > grey[:, :-1]).ravel()
    return bits


def filled(image: Image.Image, mask: Image.Image | None) -> float:
    """Share of the picture that the box around the subject takes.

    Of its mask; without one, an estimate: the box that leaves a twentieth of the picture's detail on each side. It
    tells only where the background is plain or out of focus.
    """
    weights = detail_of(image) if mask is None else (np.asarray(mask) >= SUBJECT).astype(np.float64)
    margin = 0.05 if mask is None else 0.0
    return _length(weights.sum(axis=0), margin) * _length(weights.sum(axis=1), margin)


def _length(weights: Float[np.ndarray, " places"], margin: float) -> float:
    """Share of the places between the margins of the weights' sum."""
    total = weights.sum()
    if total == 0:
        return 1.0
    before = np.cumsum(weights) / total
    first = np.searchsorted(before, margin, side="right")
    last = np.searchsorted(before, 1 - margin - 1e-9)
    return float((last - first + 1) / len(weights))
