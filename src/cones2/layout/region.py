"""A region: the place of one subject, any number of shapes, with its height in the pile, weight and softness."""

import reprlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cones2.checking import is_name
from cones2.errors import LayoutError
from cones2.layout.box import Box
from cones2.layout.shapes import Rest, Shape, bounds_of

HIGHEST, HEAVIEST, SOFTEST = 100, 100.0, 0.5


@dataclass(frozen=True)
class Region:
    """The union of shapes.

    Where regions of different subjects overlap, the one of the greatest `z` has the place, and those below it are
    covered there. Regions of equal `z` share it.

    Attributes:
        shapes: boxes, polygons and masks, mixed freely; or the rest, alone.
        z: a whole number; greater is nearer to the viewer.
        weight: multiplies how strongly the subject is drawn to its region (γ+ of arXiv:2305.19327, Alg. 1).
        feather: width of the ramp that its edges become, as a fraction of the picture's sides; 0 is a hard edge.

    Raises:
        LayoutError: there is no shape, the rest is not alone, or a number is outside its range.
    """

    shapes: tuple[Shape, ...]
    z: int = 0
    weight: float = 1.0
    feather: float = 0.0

    def __post_init__(self) -> None:
        if not self.shapes:
            raise LayoutError("no shape; expected at least one box, polygon or mask. Give it one, or leave it out.")
        if self.is_rest and len(self.shapes) > 1:
            raise LayoutError("the rest is mixed with other shapes; expected it alone. Leave one of both out.")
        _check_range("z", self.z, -HIGHEST, HIGHEST)
        _check_range("weight", self.weight, 0, HEAVIEST)
        _check_range("feather", self.feather, 0, SOFTEST)
        if self.z != int(self.z):
            raise LayoutError(f"z {self.z} can't be used: expected a whole number.")
        for name, kind in (("z", int), ("weight", float), ("feather", float)):
            object.__setattr__(self, name, kind(getattr(self, name)))

    @property
    def bounds(self) -> Box:
        """The smallest box around all shapes; of the rest, the whole picture."""
        boxes = [bounds_of(shape) for shape in self.shapes]
        low = min(box.xmin for box in boxes), min(box.ymin for box in boxes)
        return Box(*low, max(box.xmax for box in boxes), max(box.ymax for box in boxes))

    @property
    def is_rest(self) -> bool:
        """Whether this is what the others leave."""
        return any(isinstance(shape, Rest) for shape in self.shapes)

    @property
    def is_plain(self) -> bool:
        """Whether boxes alone say all of it."""
        return self == Region(self.shapes) and all(isinstance(shape, Box) for shape in self.shapes)


def box_of(numbers: Sequence[float]) -> Box:
    """Make a box of `[xmin, ymin, xmax, ymax]`.

    Raises:
        LayoutError: they are not four, or make no box.
    """
    if len(numbers) != 4:
        got = reprlib.repr(list(numbers))
        raise LayoutError(f"a box is [xmin, ymin, xmax, ymax], 4 numbers; got {len(numbers)}: {got}.")
    return Box(*numbers)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Check a region's name, and say it in the errors of what is done within.

    Raises:
        LayoutError: the name is none that a prompt can hold.
    """
    check_name(name)
    try:
        yield
    except LayoutError as error:
        raise LayoutError(f"region {name!r}: {error}") from error


def check_name(name: str) -> None:
    """Check that a prompt can hold a name.

    Raises:
        LayoutError: it can't.
    """
    if not is_name(name):
        got = reprlib.repr(name)
        raise LayoutError(
            f"{got} can't name a region: expected up to 64 letters, digits and _, no digit first. Rename it."
        )


def _check_range(what: str, value: float | int, lowest: float | int, highest: float | int) -> None:
    if not lowest <= value <= highest:  # NaN is in no range
        raise LayoutError(f"{what} {reprlib.repr(value)} can't be used: expected {lowest:g} to {highest:g}.")
