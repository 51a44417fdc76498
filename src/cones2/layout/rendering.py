"""Regions as numbers: how much of a cell each covers, and what of it can be seen behind those above.

The picture is cut along the sides of all boxes, so boxes are exact; a layout with other shapes or soft edges is also
cut along 1,024 lines each way, and those are true to the middle of each piece. Numbers are then summed over cells.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.layout.box import Box
from cones2.layout.masks import Mask
from cones2.layout.region import Region
from cones2.layout.shapes import Polygon, Rest, Shape

_LINES = 1024
_NOTHING = 1e-6  # what rounding leaves of nothing

Cuts = Float[Tensor, "cuts"]
Alpha = Float[Tensor, "rows columns"]


class Shown(NamedTuple):
    """What can be seen of a region, for each cell of a grid.

    Attributes:
        cover: the sum of what is inside, grey counted by its part, as a fraction of the cell.
        reach: the fraction of the cell where anything is inside, however faint; `cover` where all edges are hard.
    """

    cover: Float[Tensor, "height width"]
    reach: Float[Tensor, "height width"]


class Canvas:
    """The picture cut into pieces, each of them inside or outside of any box as a whole."""

    def __init__(self, xs: Float[Tensor, "vertical"], ys: Float[Tensor, "horizontal"]) -> None:
        self._xs, self._ys = xs, ys

    @classmethod
    def of(cls, regions: Mapping[str, Region]) -> "Canvas":
        """Cut for all regions of a layout."""
        shapes = [shape for region in regions.values() for shape in region.shapes]
        boxes = [shape for shape in shapes if isinstance(shape, Box)]
        is_exact = len(boxes) + sum(isinstance(shape, Rest) for shape in shapes) == len(shapes)
        fine = is_exact and not any(region.feather for region in regions.values())
        lines = [0.0, 1.0] if fine else [line / _LINES for line in range(_LINES + 1)]
        xs = sorted({*lines, *(side for box in boxes for side in (box.xmin, box.xmax))})
        ys = sorted({*lines, *(side for box in boxes for side in (box.ymin, box.ymax))})
        return cls(torch.tensor(xs, dtype=torch.float64), torch.tensor(ys, dtype=torch.float64))

    @classmethod
    def even(cls, side: int) -> "Canvas":
        """Cut into `side` x `side` equal pieces."""
        lines = torch.arange(side + 1, dtype=torch.float64) / side
        return cls(lines, lines)

    def empty(self) -> Alpha:
        """Return a picture of nothing."""
        return torch.zeros(len(self._ys) - 1, len(self._xs) - 1, dtype=torch.float64)

    def draw(self, region: Region) -> Alpha:
        """Draw a region that is not the rest: 1 inside, 0 outside, and between where its edges are soft."""
        alpha = self.empty()
        for shape in region.shapes:
            alpha = torch.maximum(alpha, self.draw_shape(shape))
        return self._blur(alpha, region.feather) if region.feather else alpha

    def draw_shape(self, shape: Shape) -> Alpha:
        """Draw one shape, with hard edges where it is no mask."""
        if isinstance(shape, Box):
            across = (self._xs[:-1] >= shape.xmin) & (self._xs[1:] <= shape.xmax)
            down = (self._ys[:-1] >= shape.ymin) & (self._ys[1:] <= shape.ymax)
            return (down[:, None] & across).double()
        if isinstance(shape, Polygon):
            return self._fill(shape)
        return self._sample(shape) if isinstance(shape, Mask) else self.empty()

    def reduce(self, alpha: Alpha, height: int, width: int) -> Float[Tensor, "{height} {width}"]:
        """Return the mean over each cell of a grid.

        The single precision of the result absorbs the rounding of decimals like 0.29: half a cell is 0.5, not less.
        """
        return (_overlap(self._ys, height).mT @ alpha @ _overlap(self._xs, width)).float()

    def _fill(self, polygon: Polygon) -> Alpha:
        """Say for the middle of each piece whether the line is crossed an odd number of times on its left."""
        xs, ys = _middles(self._xs), _middles(self._ys)
        crossings = torch.zeros(len(ys), len(xs) + 1, dtype=torch.int32)
        closed = (*polygon.points, polygon.points[0])
        for (x1, y1), (x2, y2) in pairwise(closed):
            rows = ((ys >= min(y1, y2)) & (ys < max(y1, y2))).nonzero()[:, 0]
            if len(rows):
                at = x1 + (ys[rows] - y1) * ((x2 - x1) / (y2 - y1))
                crossings[rows, torch.searchsorted(xs, at)] += 1
        return (crossings.cumsum(1)[:, :-1] % 2).double()

    def _sample(self, mask: Mask) -> Alpha:
        grey = torch.frombuffer(bytearray(mask.pixels), dtype=torch.uint8).view(mask.height, mask.width).double() / 255
        rows, columns = _pixels(_middles(self._ys), mask.height), _pixels(_middles(self._xs), mask.width)
        return grey[rows[:, None], columns]

    def _blur(self, alpha: Alpha, feather: float) -> Alpha:
        """Make edges ramps as wide as `feather`, centred where the edges were; the picture's own border stays."""
        return _window(self._ys, feather) @ alpha @ _window(self._xs, feather).mT


def show(regions: Mapping[str, Region], height: int, width: int) -> dict[str, Shown]:
    """Return what can be seen of each region: all of it but what regions of greater `z` cover."""
    canvas = Canvas.of(regions)
    return {name: _shown(canvas, alpha, height, width) for name, alpha in visible(canvas, regions).items()}


def visible(canvas: Canvas, regions: Mapping[str, Region]) -> dict[str, Alpha]:
    """Draw each region and take away what those of greater `z` cover; regions of equal `z` share."""
    drawn = draw_all(canvas, regions)
    above = canvas.empty()
    seen: dict[str, Alpha] = {}
    for z in sorted({region.z for region in regions.values()}, reverse=True):
        level = {name: alpha for name, alpha in drawn.items() if regions[name].z == z}
        seen |= {name: alpha * (1 - above) for name, alpha in level.items()}
        for alpha in level.values():
            above = torch.maximum(above, alpha)
    return {name: seen[name] for name in regions}


def draw_all(canvas: Canvas, regions: Mapping[str, Region]) -> dict[str, Alpha]:
    """Draw each region as if it were alone, except that the rest is what the others leave."""
    drawn = {name: canvas.draw(region) for name, region in regions.items() if not region.is_rest}
    taken = canvas.empty()
    for alpha in drawn.values():
        taken = torch.maximum(taken, alpha)
    return {name: drawn.get(name, 1 - taken) for name in regions}


def _shown(canvas: Canvas, alpha: Alpha, height: int, width: int) -> Shown:
    alpha = alpha * (alpha > _NOTHING)
    return Shown(canvas.reduce(alpha, height, width), canvas.reduce((alpha > 0).double(), height, width))


def _middles(cuts: Cuts) -> Float[Tensor, "pieces"]:
    return (cuts[:-1] + cuts[1:]) / 2


def _pixels(places: Float[Tensor, "pieces"], count: int) -> Int[Tensor, "pieces"]:
    return (places * count).long().clamp(0, count - 1)


def _overlap(cuts: Cuts, cells: int) -> Float[Tensor, "cuts-1 {cells}"]:
    """Length that each piece of a side has in each cell, in cells."""
    edges = cuts[:, None] * cells - torch.arange(cells)  # of the pieces, from each cell's start
    return edges.clamp(0, 1).diff(dim=0)


def _window(cuts: Cuts, width: float) -> Float[Tensor, "cuts-1 cuts-1"]:
    """Weights of the mean over a window around each piece's middle, cut off at the picture's border."""
    middles = _middles(cuts)
    low, high = (middles - width / 2).clamp(min=0)[:, None], (middles + width / 2).clamp(max=1)[:, None]
    lengths = cuts.clamp(low, high).diff(dim=1)
    return lengths / lengths.sum(1, keepdim=True)
