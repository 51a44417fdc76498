"""Boxes, polygons and "the rest".

x runs to the right and y down; (0, 0) is the picture's top left corner and (1, 1) its bottom right one, whatever the
picture's shape.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, SupportsFloat

from cones2.errors import LayoutError

MAX_POINTS = 256
_THINNEST = 1e-6  # of a polygon, in areas of the picture


def number(value: object, what: str) -> float:
    """Return a number of Python, NumPy or torch as a float.

    Raises:
        LayoutError: it is none, or text.
    """
    if isinstance(value, SupportsFloat) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):  # arrays of several numbers; 10**400
            pass
    raise LayoutError(f"{what} is {reprlib.repr(value)}; expected a number. Write a number there.")


def fraction(value: object, what: str) -> float:
    """Return a number in 0..1.

    Raises:
        LayoutError: it is none.
    """
    found = number(value, what)
    if not 0 <= found <= 1:  # NaN is in no range
        raise LayoutError(f"{what} {found} is outside 0..1. Divide pixels by the picture's width or height.")
    return found


def point_of(value: Any) -> tuple[float, float]:
    """Return a point's x and y.

    Raises:
        LayoutError: they are not two numbers in 0..1.
    """
    try:
        x, y = value
    except (TypeError, ValueError) as error:
        raise LayoutError(f"a polygon's point is {reprlib.repr(value)}; expected x and y, two numbers.") from error
    return fraction(x, "a polygon's x"), fraction(y, "a polygon's y")


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
            object.__setattr__(self, side, fraction(value, f"a box's {side}"))
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
    """A closed line through points; where it crosses itself, what it winds around an odd number of times is inside.

    Attributes:
        points: 3 to 256 pairs of x and y in 0..1.

    Raises:
        LayoutError: there are too few or too many points, one is not in 0..1, or nothing is inside.
    """

    points: Sequence[tuple[float, float]]

    def __post_init__(self) -> None:
        if not 3 <= len(self.points) <= MAX_POINTS:
            raise LayoutError(
                f"a polygon has {len(self.points)} points; expected 3 to {MAX_POINTS}. Draw a simpler one, or a mask."
            )
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
    """What the other subjects' regions leave of the picture: the place of a scene.

    Regions that are themselves the rest do not count as others: two of them share it.
    """

    @property
    def bounds(self) -> Box:
        """The whole picture."""
        return WHOLE
