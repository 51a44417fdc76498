"""Boxes for a number of subjects: rows of equal cells, with gaps."""

import math
from collections.abc import Sequence

from cones2.layout.box import WHOLE, Box

_GAP = 0.04  # on each side of a box, in fractions of the picture
_UPRIGHT = 0.55  # width by height of the cells that subjects like best
_LEAST_ROOM = 0.15  # of the picture's area


def spread(count: int, area: Box = WHOLE, *, aspect: float = 1.0, rows: int | None = None) -> list[Box]:
    """Return `count` boxes in an area, row by row from its top left corner.

    Args:
        count: at least 1.
        area: to be filled.
        aspect: the picture's width by its height; it decides on the number of rows.
        rows: how many there are; None is the number whose cells are most like an upright figure.
    """
    rows = rows or min(range(1, count + 1), key=lambda rows: _unlikeness(count, rows, area, aspect))
    lengths = [count // rows + (row < count % rows) for row in range(rows)]
    height = (area.ymax - area.ymin) / rows
    gap = min(_GAP, height / 8, (area.xmax - area.xmin) / max(lengths) / 8)  # smaller in small cells
    boxes = []
    for row, length in enumerate(lengths):
        width, top = (area.xmax - area.xmin) / length, area.ymin + row * height
        cells = (
            Box(area.xmin + i * width, top, _end(area.xmin + (i + 1) * width), _end(top + height))
            for i in range(length)
        )
        boxes += [_inset(cell, gap) for cell in cells]
    return boxes


def part_of(box: Box, sides: tuple[float, float, float, float]) -> Box:
    """Return the part of a box whose sides are fractions of that box."""
    width, height = box.xmax - box.xmin, box.ymax - box.ymin
    xmin, ymin, xmax, ymax = sides
    corners = (box.xmin + xmin * width, box.ymin + ymin * height, box.xmin + xmax * width, box.ymin + ymax * height)
    return Box(*(round(side, 4) for side in corners))


def free_area(taken: Sequence[Box]) -> Box:
    """Return the largest strip of the picture beside all boxes; the whole picture where there is hardly any."""
    left, top = min((box.xmin for box in taken), default=1.0), min((box.ymin for box in taken), default=1.0)
    right, bottom = max((box.xmax for box in taken), default=0.0), max((box.ymax for box in taken), default=0.0)
    strips = ((0.0, 0.0, left, 1.0), (right, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, top), (0.0, bottom, 1.0, 1.0))
    best = max(strips, key=_area)
    return Box(*best) if _area(best) >= _LEAST_ROOM else WHOLE


def _area(sides: tuple[float, float, float, float]) -> float:
    return (sides[2] - sides[0]) * (sides[3] - sides[1])


def _unlikeness(count: int, rows: int, area: Box, aspect: float) -> float:
    columns = math.ceil(count / rows)
    shape = aspect * (area.xmax - area.xmin) / (area.ymax - area.ymin) * rows / columns
    return abs(math.log(shape / _UPRIGHT))


def _inset(cell: Box, gap: float) -> Box:
    sides = (cell.xmin + gap, cell.ymin + gap, cell.xmax - gap, cell.ymax - gap)
    return Box(*(round(side, 4) for side in sides))


def _end(side: float) -> float:
    return min(side, 1.0)  # sums of fractions may pass it by a rounding
