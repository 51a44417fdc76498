"""Boxes: the simplest regions, and the frame of all others."""

import math
from dataclasses import dataclass

from cones2.errors import LayoutError


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in fractions of the picture: x to the right, y down, (0, 0) the top left corner.

    Raises:
        LayoutError: a side is not a number in 0..1, or the box is inverted or empty.
    """

    xmin: float
    ymin: float
    xmax: float
    ymax: float

    def __post_init__(self) -> None:
        sides = f"box ({self.xmin}, {self.ymin}, {self.xmax}, {self.ymax})"
        for side, value in vars(self).items():
            if not math.isfinite(value):
                raise LayoutError(f"{sides}: {side} is {value}; expected a number in 0..1. Write a number there.")
            if not 0 <= value <= 1:
                raise LayoutError(
                    f"{sides}: {side} {value} is outside 0..1. Divide pixels by the picture's width or height."
                )
        for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
            if getattr(self, low) >= getattr(self, high):
                raise LayoutError(f"{sides}: {low} is not less than {high}. Swap them, or make the box larger.")
        for side, value in vars(self).items():
            object.__setattr__(self, side, float(value))  # NumPy's and torch's numbers can't be written as JSON

    @property
    def center(self) -> tuple[float, float]:
        """The point in its middle."""
        return (self.xmin + self.xmax) / 2, (self.ymin + self.ymax) / 2


WHOLE = Box(0.0, 0.0, 1.0, 1.0)
"""The whole picture."""
