"""What regions are made of: boxes, polygons, greyscale masks, and "the rest".

x runs to the right and y down; (0, 0) is the picture's top left corner and (1, 1) its bottom right one, whatever the
picture's shape.
"""

import base64
import functools
import io
import reprlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
from PIL import Image

from cones2.errors import Cones2Warning, LayoutError, counted
from cones2.files import expanded, read_bounded
from cones2.images import FORMATS, MOST_PIXELS, greys_of_mask, opened_image, upright, without_noise

MAX_POINTS = 256
MAX_MASK_FILES = 32
LARGEST_FILE = 25_000_000
LONGEST_SIDE = 768
_THINNEST = 1e-6  # of a polygon, in areas of the picture
_MOST_EMBEDDED = 1_000_000  # pixels


def number(value: object, what: str) -> float:
    """Return a number of Python, NumPy or torch as a float; anything else is a `LayoutError` about `what`."""
    if isinstance(value, SupportsFloat) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):  # arrays of several numbers; 10**400
            pass
    raise LayoutError(f"{what} is {reprlib.repr(value)}; expected a number.")


def _fraction(value: object, what: str) -> float:
    found = number(value, what)
    if not 0 <= found <= 1:  # NaN is in no range
        raise LayoutError(f"{what} {found} is outside 0..1. Divide pixels by the picture's width or height.")
    return found


def point_of(value: Any) -> tuple[float, float]:
    """Return x and y of a point; what is not a pair of numbers in 0..1 is a `LayoutError`."""
    try:
        x, y = value
    except (TypeError, ValueError) as error:
        raise LayoutError(f"a polygon's point is {reprlib.repr(value)}; expected x and y.") from error
    return _fraction(x, "a polygon's x"), _fraction(y, "a polygon's y")


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in fractions of the picture.

    Raises:
        LayoutError: a side is not a number in 0..1, or the box is inverted or empty.

    Example:
        >>> Box(0, 0.25, 0.5, 1)
        Box(0.0, 0.25, 0.5, 1.0)
    """

    xmin: float
    ymin: float
    xmax: float
    ymax: float

    def __post_init__(self) -> None:
        for side, value in vars(self).items():
            object.__setattr__(self, side, _fraction(value, f"a box's {side}"))
        for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
            if getattr(self, low) >= getattr(self, high):
                raise LayoutError(f"{self}: {low} is not less than {high}. Swap them, or make the box larger.")

    def __repr__(self) -> str:
        return f"Box({self.xmin}, {self.ymin}, {self.xmax}, {self.ymax})"

    @property
    def bounds(self) -> "Box":
        """The box itself."""
        return self


WHOLE = Box(0.0, 0.0, 1.0, 1.0)
"""The whole picture."""


@dataclass(frozen=True)
class Polygon:
    """A closed line through 3 to 256 points; what it winds around an odd number of times is inside.

    Raises:
        LayoutError: there are too few or too many points, one is not in 0..1, or nothing is inside.
    """

    points: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        if not 3 <= len(self.points) <= MAX_POINTS:
            raise LayoutError(f"a polygon has {counted(len(self.points), 'point')}; expected 3 to {MAX_POINTS}.")
        object.__setattr__(self, "points", tuple(map(point_of, self.points)))
        (x, y), *others = self.points
        triangles = (((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / 2 for (x1, y1), (x2, y2) in pairwise(others))
        if max(map(abs, triangles)) < _THINNEST:
            raise LayoutError("a polygon's points lie on one line: nothing is inside. Move one of them.")

    def __repr__(self) -> str:
        return f"Polygon({len(self.points)} points)"

    @property
    def bounds(self) -> Box:
        """The smallest box around it."""
        xs, ys = zip(*self.points, strict=True)
        return Box(min(xs), min(ys), max(xs), max(ys))


@dataclass(frozen=True)
class Rest:
    """What other subjects' regions leave of the picture: the place of a scene. Several regions may share it."""

    @property
    def bounds(self) -> Box:
        """The whole picture."""
        return WHOLE


@dataclass(frozen=True)
class Mask:
    """A greyscale mask, stretched over the picture; small enough to be embedded in layouts and records.

    Attributes:
        width: in pixels, at most 768.
        height: likewise.
        pixels: a byte each, row by row from the top; 255 is inside, 0 outside, grey a soft edge.

    Raises:
        LayoutError: a side is outside 1..768, the number of bytes is not that of the pixels, or all are 0.
    """

    width: int
    height: int
    pixels: bytes = field(repr=False)

    def __post_init__(self) -> None:
        size = f"a mask of {self.width}x{self.height} pixels"
        if not (1 <= self.width <= LONGEST_SIDE and 1 <= self.height <= LONGEST_SIDE):
            raise LayoutError(f"{size} can't be used: expected sides of 1 to {LONGEST_SIDE}. Scale it down.")
        if len(self.pixels) != self.width * self.height:
            raise LayoutError(f"{size} has {len(self.pixels)} bytes; expected one for each pixel. Make it 8-bit grey.")
        if not any(self.pixels):
            raise LayoutError(f"{size} is black everywhere: nothing is inside. Paint the region white.")

    @classmethod
    def from_image(cls, image: Image.Image) -> "Mask":
        """Return how opaque a picture is, or how bright where all is opaque, scaled down to 768 pixels.

        Faint greys become black; where it has colours or is dim, a warning says so.
        """
        return cls._of(*greys_of_mask(image), name="a mask")

    @classmethod
    def _of(cls, grey: Image.Image, doubt: str, *, name: str) -> "Mask":
        if max(grey.size) > LONGEST_SIDE:
            factor = LONGEST_SIDE / max(grey.size)
            width, height = (max(1, round(side * factor)) for side in grey.size)
            grey = grey.resize((width, height), Image.Resampling.BOX)
        made = cls(grey.width, grey.height, without_noise(grey).tobytes())
        if doubt:
            warnings.warn(name + doubt, Cones2Warning, stacklevel=2)
        return made

    @classmethod
    def load(cls, path: Path | str) -> "Mask":
        """Read a PNG, JPEG or WebP file, upright; its sizes are checked before it is decoded."""
        return MaskFiles().load(Path(path))

    @classmethod
    def from_base64(cls, text: str) -> "Mask":
        """Read what `as_base64` is of a mask."""
        try:
            content = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise LayoutError(f"an embedded mask is not base64: {error}. Embed it again from its file.") from error
        return _decode(content, "an embedded mask", _MOST_EMBEDDED)[0]

    @functools.cached_property
    def as_base64(self) -> str:
        """The mask as a PNG in base64."""
        content = io.BytesIO()
        Image.frombytes("L", (self.width, self.height), self.pixels).save(content, format="PNG", optimize=True)
        return base64.b64encode(content.getvalue()).decode()

    @property
    def grey(self) -> np.ndarray:
        """The pixels as an array of bytes, `[height, width]`."""
        return np.frombuffer(self.pixels, dtype=np.uint8).reshape(self.height, self.width)

    @property
    def bounds(self) -> Box:
        """The smallest box around all that is not black."""
        columns, rows = np.flatnonzero(self.grey.any(0)), np.flatnonzero(self.grey.any(1))
        left, right = columns[0] / self.width, (columns[-1] + 1) / self.width
        return Box(float(left), float(rows[0] / self.height), float(right), float((rows[-1] + 1) / self.height))


class MaskFiles:
    """The mask files of one layout: each is decoded once, and together they stay within bounds."""

    def __init__(self) -> None:
        self._masks: dict[Path, Mask] = {}
        self._pixels_left = MOST_PIXELS

    def load(self, path: Path) -> Mask:
        """Read a file as `Mask.load` does; LayoutError where the layout has too many files, or pixels in them."""
        path = expanded(path)
        if path not in self._masks:
            if len(self._masks) == MAX_MASK_FILES:
                raise LayoutError(f"the layout names over {MAX_MASK_FILES} mask files. Use fewer.")
            name = f"the mask {path}" + ", with the layout's others," * bool(self._masks)
            content = read_bounded(path, limit=LARGEST_FILE, error=LayoutError)
            self._masks[path], pixels = _decode(content, name, self._pixels_left)
            self._pixels_left -= pixels
        return self._masks[path]


def _decode(content: bytes, name: str, most_pixels: int) -> tuple[Mask, int]:
    """Return a mask, and how many pixels its file has."""
    options: dict[str, Any] = {"advice": "Save it again as a PNG.", "most_pixels": most_pixels}
    with opened_image(content, name=name, formats=FORMATS, error=LayoutError, **options) as image:
        greys, pixels = greys_of_mask(upright(image)), image.width * image.height
    try:
        return Mask._of(*greys, name=name), pixels
    except LayoutError as error:
        raise LayoutError(f"{name}: {error}") from error


Shape = Box | Polygon | Mask | Rest
