"""Regions on a layer's grid, which is coarse: the cells that belong to each."""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cones2.layout.box import Box
from cones2.layout.region import Region
from cones2.layout.regions import Layout
from cones2.layout.rendering import Canvas, Shown

_MAP_SIDE = 768  # pixels of the authors' layout pictures


def own_cells(layout: Layout, name: str, height: int, width: int) -> Bool[Tensor, "{height} {width}"]:
    """Return the cells that what can be seen of a region covers by half or more, and always the best-covered one.

    Of equals the first counts. So a small region never vanishes on a coarse grid.

    Example:
        >>> tiny = Layout.from_numbers({"cup": [(0.3, 0.55, 0.45, 0.7)]})
        >>> own_cells(tiny, "cup", 4, 4).nonzero().tolist()
        [[2, 1]]
    """
    return covered_cells(layout.shown(height, width)[name])


def covered_cells(region: Shown) -> Bool[Tensor, "height width"]:
    """Return a region's own cells, as `own_cells` does."""
    return _cells(region.cover, region.cover)


def reached_cells(region: Shown) -> Bool[Tensor, "height width"]:
    """Return the cells that a region reaches in a half or more, however faintly, and always the best-covered one."""
    return _cells(region.reach, region.cover)


def pixel_maps(layout: Layout) -> dict[str, Bool[Tensor, "rows columns"]]:
    """Draw regions as the authors' layout pictures do: hard, and where they overlap, what is on top.

    A box has the pixels `round(768·x)`, left and top in, right and bottom out; of other shapes, a pixel is inside where
    its middle is, and of grey from a half on.
    """
    canvas = Canvas.even(_MAP_SIDE)
    inside = {name: _pixels(canvas, region) for name, region in layout.regions.items() if not region.is_rest}
    rest = ~_union(inside.values())
    drawn = {name: inside.get(name, rest) for name in layout.names}
    return {
        name: cells & ~_union(drawn[other] for other in drawn if layout.regions[other].z > layout.regions[name].z)
        for name, cells in drawn.items()
    }


def _pixels(canvas: Canvas, region: Region) -> Bool[Tensor, "rows columns"]:
    inside = canvas.empty() > 0
    for shape in region.shapes:
        if isinstance(shape, Box):
            left, top, right, bottom = (round(_MAP_SIDE * x) for x in (shape.xmin, shape.ymin, shape.xmax, shape.ymax))
            inside[top:bottom, left:right] = True
        else:
            inside |= canvas.draw_shape(shape) >= 0.5
    return inside


def _union(maps: Iterable[Bool[Tensor, "rows columns"]]) -> Bool[Tensor, "rows columns"]:
    union = torch.zeros(_MAP_SIDE, _MAP_SIDE, dtype=torch.bool)
    for inside in maps:
        union |= inside
    return union


def _cells(share: Float[Tensor, "height width"], cover: Float[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """Return where `share` is a half or more, and the cell of the greatest cover."""
    cells = share >= 0.5
    cells.view(-1)[cover.argmax()] = True
    return cells


def softness(region: Shown) -> Float[Tensor, "height width"]:
    """Return how much of a cell's inside is there, 1 where edges are hard."""
    return torch.where(region.reach > 0, region.cover / region.reach, 0)
