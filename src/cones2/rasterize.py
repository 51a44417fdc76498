"""Layouts as numbers: how much of each cell of a grid a region covers, and what can be seen of it behind others.

The picture is cut into pieces along the sides of all boxes, so that boxes are exact, and where there are other shapes
or soft edges also along evenly spaced lines, at least eight to a cell and fewer where there are many regions: those are
true to the middle of each piece.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import reduce
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from cones2.layout import Box, Layout, Mask, Polygon, Region, Rest
from cones2.shapes import Shape

_LINES = 1024
_MOST_PIECES = 2**22  # of all regions, unless the grid has more cells: a layout may be a stranger's
_MOST_SIDES = 64
_NOTHING = 1e-6  # what rounding leaves of nothing
_MAP_SIDE = 768  # pixels of the authors' layout pictures

Pieces = Float[np.ndarray, "rows columns"]
Cuts = Float[np.ndarray, "_"]


class Cover(NamedTuple):
    """What can be seen of a region, for each cell of a grid.

    Attributes:
        cover: the sum of what is inside, grey counted by its part, as a fraction of the cell.
        reach: the fraction of the cell where anything is inside, however faint; `cover` where all edges are hard.
    """

    cover: Float32[np.ndarray, "height width"]
    reach: Float32[np.ndarray, "height width"]


def cover(layout: Layout, height: int, width: int) -> dict[str, Cover]:
    """Return for each cell of a grid what can be seen of each region: all that none of greater `z` covers.

    Exact for boxes with hard edges; otherwise a cell is as true as its 64 parts.

    Example:
        >>> layout = Layout.of({"rex": (0, 0, 0.75, 1), "hat": Region(Box(0, 0, 0.25, 1), z=1)})
        >>> [(name, seen.cover.tolist()) for name, seen in cover(layout, 1, 2).items()]
        [('rex', [[0.5, 0.5]]), ('hat', [[0.5, 0.0]])]
    """
    xs, ys = _cuts(layout, height, width)
    found: dict[str, Cover] = {}
    for name, seen in _seen(layout, lambda region: _draw(region, xs, ys)):
        reach = (seen > _NOTHING).astype(float)
        found[name] = Cover(*(_reduce(each, xs, ys, height, width) for each in (seen * reach, reach)))
    return {name: found[name] for name in layout.names}


def owned(
    share: Float[np.ndarray, "height width"], cover: Float[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """Return the cells where `share` is a half or more, and always the first of the greatest `cover`."""
    cells = share >= 0.5
    cells.flat[cover.argmax()] = True
    return cells


def own_cells(layout: Layout, height: int, width: int) -> dict[str, Bool[np.ndarray, "{height} {width}"]]:
    """Return by name the cells that what is seen of a region covers by half or more, and always the best-covered one.

    Example:
        >>> tiny = Layout.of({"cup": (0.3, 0.55, 0.45, 0.7)})
        >>> own_cells(tiny, 4, 4)["cup"].tolist()[2]
        [False, True, False, False]
    """
    return {name: owned(seen.cover, seen.cover) for name, seen in cover(layout, height, width).items()}


def pixel_maps(layout: Layout) -> dict[str, Bool[np.ndarray, "768 768"]]:
    """Draw regions as the authors' layout pictures do: hard, and where they overlap, what is on top.

    A box has the pixels `round(768·x)`, left and top in, right and bottom out; of other shapes, a pixel is inside where
    its middle is, and of grey from a half on.
    """
    found = {name: seen >= 0.5 for name, seen in _seen(layout, _pixels)}
    return {name: found[name] for name in layout.names}


def _seen(layout: Layout, draw: Callable[[Region], Pieces]) -> Iterator[tuple[str, Pieces]]:
    """Yield what can be seen of each region, from the top: all but what regions of greater `z` cover."""
    regions, rest, above = layout.regions.items(), np.ones(1), np.zeros(1)
    # The rest is what all others leave. Regions are drawn again rather than kept: many would take too much memory.
    if any(region.is_rest for _, region in regions):
        rest = 1 - reduce(np.maximum, (draw(region) for _, region in regions), np.zeros(1))
    for _, level in groupby(sorted(regions, key=lambda item: -item[1].z), key=lambda item: item[1].z):
        behind = 1 - above
        for name, region in level:
            alpha = rest if region.is_rest else draw(region)
            yield name, alpha * behind
            above = np.maximum(above, alpha)


def _pixels(region: Region) -> Pieces:
    lines = np.arange(_MAP_SIDE + 1) / _MAP_SIDE
    inside = np.zeros((_MAP_SIDE, _MAP_SIDE))
    for shape in region.shapes:
        if isinstance(shape, Box):
            left, top, right, bottom = (round(_MAP_SIDE * side) for side in astuple(shape))
            inside[top:bottom, left:right] = 1
        else:
            inside[_draw_shape(shape, lines, lines) >= 0.5] = 1
    return inside


def _cuts(layout: Layout, height: int, width: int) -> tuple[Cuts, Cuts]:
    """Return where the picture is cut, across and down."""
    shapes = [shape for region in layout.regions.values() for shape in region.shapes]
    boxes = [shape for shape in shapes if isinstance(shape, Box)]
    is_soft = any(region.feather for region in layout.regions.values())
    is_exact = not is_soft and all(isinstance(shape, Box | Rest) for shape in shapes)
    most = math.isqrt(_MOST_PIECES // max(1, len(layout.regions)))

    def cut(cells: int, *sides: float) -> Cuts:
        lines = max(cells, min(max(8 * cells, _LINES), most))
        kept = sides if is_exact or len(sides) <= _MOST_SIDES else ()
        return np.unique([*kept, *np.linspace(0, 1, 2 if is_exact else lines + 1)])

    xs = cut(width, *(side for box in boxes for side in (box.xmin, box.xmax)))
    return xs, cut(height, *(side for box in boxes for side in (box.ymin, box.ymax)))


def _draw(region: Region, xs: Cuts, ys: Cuts) -> Pieces:
    """Draw a region: 1 inside, 0 outside, and between where its edges are soft. The rest is nothing here."""
    alpha = np.zeros((len(ys) - 1, len(xs) - 1))
    for shape in region.shapes:
        alpha = np.maximum(alpha, _draw_shape(shape, xs, ys))
    return _blur(_blur(alpha, xs, region.feather).T, ys, region.feather).T if region.feather else alpha


def _draw_shape(shape: Shape, xs: Cuts, ys: Cuts) -> Pieces:
    """Draw one shape, with hard edges where it is not a mask."""
    across, down = (xs[:-1] + xs[1:]) / 2, (ys[:-1] + ys[1:]) / 2  # the middles of the pieces
    if isinstance(shape, Box):
        columns, rows = (shape.xmin < across) & (across < shape.xmax), (shape.ymin < down) & (down < shape.ymax)
        return np.outer(rows, columns).astype(float)
    if isinstance(shape, Polygon):
        return _fill(shape, across, down)
    if isinstance(shape, Mask):
        columns, rows = (across * shape.width).astype(int), (down * shape.height).astype(int)
        return shape.grey[np.ix_(rows, columns)] / 255
    return np.zeros((len(down), len(across)))


def _fill(polygon: Polygon, across: Float[np.ndarray, "columns"], down: Float[np.ndarray, "rows"]) -> Pieces:
    """Return for each point whether the line is crossed an odd number of times on its left."""
    crossings = np.zeros((len(down), len(across) + 1), np.int32)
    for (x1, y1), (x2, y2) in pairwise((*polygon.points, polygon.points[0])):
        rows = np.flatnonzero((down >= min(y1, y2)) & (down < max(y1, y2)))
        if len(rows):
            at = x1 + (down[rows] - y1) * ((x2 - x1) / (y2 - y1))
            crossings[rows, np.searchsorted(across, at)] += 1
    return (crossings.cumsum(1)[:, :-1] % 2).astype(float)


def _blur(alpha: Pieces, cuts: Cuts, width: float) -> Pieces:
    """Return the mean over a window as wide as `width` around each piece of a row, cut off at the picture's border."""
    lengths, middles = np.diff(cuts), (cuts[:-1] + cuts[1:]) / 2
    integral = np.zeros((len(alpha), len(cuts)))
    np.cumsum(alpha * lengths, axis=1, out=integral[:, 1:])
    low, high = np.clip(middles - width / 2, 0, 1), np.clip(middles + width / 2, 0, 1)

    def up_to(ends: Cuts) -> Pieces:
        piece = np.clip(np.searchsorted(cuts, ends, side="right") - 1, 0, len(lengths) - 1)
        return np.asarray(integral[:, piece] + alpha[:, piece] * (ends - cuts[piece]))

    return np.asarray((up_to(high) - up_to(low)) / (high - low))


def _reduce(alpha: Pieces, xs: Cuts, ys: Cuts, height: int, width: int) -> Float32[np.ndarray, "{height} {width}"]:
    """Return the mean over each cell of a grid.

    The single precision of the result absorbs the rounding of decimals like 0.29: half a cell is 0.5, not less.
    """
    for cuts, cells in ((ys, height), (xs, width)):
        is_cut_there = len(cuts) == cells + 1 and np.array_equal(cuts, np.linspace(0, 1, cells + 1))
        alpha = alpha.T if is_cut_there else alpha.T @ _overlap(cuts, cells)
    return np.asarray(alpha, np.float32)


def _overlap(cuts: Cuts, cells: int) -> Float[np.ndarray, "pieces {cells}"]:
    """Return the length that each piece of a side has in each cell, in cells."""
    return np.diff(np.clip(cuts[:, None] * cells - np.arange(cells), 0, 1), axis=0)
