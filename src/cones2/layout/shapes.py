"""What regions are made of: boxes, polygons, masks, and "the rest", in a picture whose sides are 1 long.

x runs to the right and y down, (0, 0) is the picture's top left corner. A picture need not be square: all lengths are
fractions of its own width and height.
"""

from dataclasses import dataclass
from itertools import pairwise

from cones2.errors import LayoutError
from cones2.layout.box import WHOLE, Box
from cones2.layout.masks import Mask

MAX_POINTS = 256
_THINNEST = 1e-6  # of a polygon: fractions of the picture's area


@dataclass(frozen=True)
class Polygon:
    """A closed line through points; where it crosses itself, what it winds around an odd number of times is inside.

    Raises:
        LayoutError: there are under 3 or over 256 points, one is not in 0..1, or nothing is inside.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not 3 <= len(self.points) <= MAX_POINTS:
            raise LayoutError(
                f"a polygon has {len(self.points)} points; expected 3 to {MAX_POINTS}. Draw a simpler one, or a mask."
            )
        for x, y in self.points:
            if not (0 <= x <= 1 and 0 <= y <= 1):  # NaN is in no range
                raise LayoutError(
                    f"a polygon's point ({x}, {y}) is outside 0..1. Divide pixels by the picture's width or height."
                )
        if max(abs(area) for area in self._triangles()) < _THINNEST:
            raise LayoutError("a polygon's points lie on one line: nothing is inside. Move one of them.")
        object.__setattr__(self, "points", tuple((float(x), float(y)) for x, y in self.points))

    @property
    def bounds(self) -> Box:
        """The smallest box around it."""
        xs, ys = zip(*self.points, strict=True)
        return Box(min(xs), min(ys), max(xs), max(ys))

    def _triangles(self) -> list[float]:
        """Give the area of each triangle of the first point and two neighbours, signed."""
        (x, y), *others = self.points
        return [((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / 2 for (x1, y1), (x2, y2) in pairwise(others)]


@dataclass(frozen=True)
class Rest:
    """What the other subjects' regions leave of the picture: the place of a scene.

    Regions that are themselves the rest do not count as others: two of them share it.
    """


Shape = Box | Polygon | Mask | Rest


def bounds_of(shape: Shape) -> Box:
    """Return the smallest box around a shape; of the rest, the whole picture."""
    if isinstance(shape, Box):
        return shape
    return WHOLE if isinstance(shape, Rest) else shape.bounds
