"""Layouts as numbers, on grids worked by hand; and what is true of all of them."""

import json
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cones2.errors import Cones2Warning
from cones2.layout import WHOLE, Box, Layout, Mask, Polygon, Region, Rest
from cones2.rasterize import cover, own_cells, pixel_maps

LEFT = Box(0.0, 0.0, 0.5, 1.0)
TRIANGLE = Polygon(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))

sides = st.tuples(st.integers(0, 96), st.integers(0, 96)).filter(lambda pair: pair[0] != pair[1]).map(sorted)
boxes = st.tuples(sides, sides).map(lambda s: Box(s[0][0] / 96, s[1][0] / 96, s[0][1] / 96, s[1][1] / 96))
unions = st.lists(boxes, min_size=1, max_size=5).map(tuple)
points = st.tuples(st.floats(0, 1), st.floats(0, 1))


def mask_of(rows: list[list[int]]) -> Mask:
    return Mask.from_image(Image.fromarray(np.array(rows, dtype=np.uint8)))


def alone(height: int, width: int, *shapes: Any, **numbers: Any) -> torch.Tensor:
    """How much of each cell one region covers."""
    return torch.from_numpy(cover(Layout({"a": Region(shapes, **numbers)}), height, width)["a"].cover)


def covers(layout: Layout, height: int, width: int) -> dict[str, list[list[float]]]:
    return {name: seen.cover.tolist() for name, seen in cover(layout, height, width).items()}


def mirrored(box: Box) -> Box:
    return Box(1 - box.xmax, box.ymin, 1 - box.xmin, box.ymax)


# --- boxes ---


@given(unions, st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([1, 2, 3, 4, 6, 8]))
def test_cover_is_the_union_counted_on_a_fine_grid(union: Any, height: Any, width: Any) -> None:
    fine = torch.zeros(96, 96, dtype=torch.float64)  # every side of a box is a multiple of 1/96
    for box in union:
        left, top, right, bottom = (round(96 * side) for side in (box.xmin, box.ymin, box.xmax, box.ymax))
        fine[top:bottom, left:right] = 1
    counted = fine.reshape(height, 96 // height, width, 96 // width).mean((1, 3)).float()
    torch.testing.assert_close(alone(height, width, *union), counted, atol=1e-6, rtol=0)


@given(unions, st.integers(1, 13), st.integers(1, 13))
def test_cover_commutes_with_mirrors_and_keeps_the_area(union: Any, height: Any, width: Any) -> None:
    found = alone(height, width, *union)
    torch.testing.assert_close(alone(height, width, *map(mirrored, union)), found.flip(1), atol=1e-6, rtol=0)
    assert found.mean().item() == pytest.approx(alone(1, 1, *union).item(), abs=1e-6)


def test_a_box_by_hand() -> None:
    # Cells are 1/4 x 1/3. The box reaches a half into column 0, all of column 1, and a fifth into row 1.
    expected = torch.tensor([[0.5, 1, 0, 0], [0.1, 0.2, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(alone(3, 4, Box(0.125, 0.0, 0.5, 0.4)), expected)


def test_half_a_cell_is_half_whatever_the_decimals() -> None:
    for hundredth in range(1, 100, 2):  # on 50 cells, odd hundredths end in the middle of a cell
        assert alone(1, 50, Box(0.0, 0.0, hundredth / 100, 1.0))[0, hundredth // 2] == 0.5


def test_a_layout_of_nothing_covers_nothing() -> None:
    assert cover(Layout({}), 2, 2) == pixel_maps(Layout({})) == {}


# --- polygons ---


@settings(max_examples=40)
@given(*[st.integers(0, 31)] * 2, *[st.integers(1, 32)] * 2, st.integers(1, 7), st.integers(1, 7))
def test_a_polygon_of_the_corners_of_a_box_is_the_box(
    left: Any, top: Any, width: Any, height: Any, rows: Any, columns: Any
) -> None:
    box = Box(left / 64, top / 64, (left + width) / 64, (top + height) / 64)
    corners = ((box.xmin, box.ymin), (box.xmax, box.ymin), (box.xmax, box.ymax), (box.xmin, box.ymax))
    for polygon in (Polygon(corners), Polygon(corners[::-1])):
        found = alone(rows, columns, polygon)
        torch.testing.assert_close(found, alone(rows, columns, box), atol=1 / 64, rtol=0)


@settings(max_examples=40)
@given(points, points, points, st.sampled_from([(1, 1), (16, 12), (64, 64)]))
def test_the_area_of_a_triangle_is_true(a: Any, b: Any, c: Any, grid: Any) -> None:
    area = abs((b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])) / 2
    if area > 1e-5:
        assert alone(*grid, Polygon((a, b, c))).mean().item() == pytest.approx(area, abs=2e-3)


def test_a_triangle_by_hand() -> None:
    # On 2 x 2 cells: all of the first, half of the two beside the diagonal, nothing of the last.
    expected = torch.tensor([[1.0, 0.5], [0.5, 0.0]])
    torch.testing.assert_close(alone(2, 2, TRIANGLE), expected, atol=1 / 128, rtol=0)


def test_where_a_line_crosses_itself_twice_wound_is_outside() -> None:
    bow_tie = Polygon(((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)))
    torch.testing.assert_close(alone(1, 2, bow_tie), torch.tensor([[0.5, 0.5]]), atol=1 / 128, rtol=0)
    twice = Polygon(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)) * 2)
    assert alone(1, 1, twice).item() == 0


# --- masks ---


def test_a_masks_greys_are_parts_of_cells() -> None:
    mask = mask_of([[255, 0, 51, 51], [255, 0, 51, 51]])
    torch.testing.assert_close(alone(1, 2, mask), torch.tensor([[0.5, 0.2]]))
    torch.testing.assert_close(alone(1, 4, mask), torch.tensor([[1.0, 0.0, 0.2, 0.2]]))


def test_a_faint_mask_reaches_as_far_as_a_strong_one() -> None:
    with pytest.warns(Cones2Warning, match="is dim"):
        mask = mask_of([[51, 0]])
    seen = cover(Layout({"a": Region((mask,))}), 1, 2)["a"]
    np.testing.assert_allclose(seen.cover, [[0.2, 0.0]])
    assert seen.reach.tolist() == [[1.0, 0.0]]


def test_shapes_of_all_kinds_unite() -> None:
    mask = mask_of([[0, 255], [0, 0]])  # the right upper quarter
    low = Polygon(((0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0, 1.0)))
    assert alone(2, 2, Box(0.0, 0.0, 0.5, 0.5), mask, low).tolist() == [[1.0, 1.0], [1.0, 0.0]]


# --- soft edges ---


def test_a_feathered_edge_is_a_ramp() -> None:
    # A step at 1/2 becomes a ramp from 3/8 to 5/8: a quarter, then three quarters, of the two middle cells' halves.
    expected = torch.tensor([[1, 1, 1, 0.75, 0.25, 0, 0, 0]])
    torch.testing.assert_close(alone(1, 8, LEFT, feather=0.25), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(alone(8, 1, Box(0.0, 0.0, 1.0, 0.5), feather=0.25), expected.T, atol=1e-5, rtol=0)


def test_feathering_keeps_the_pictures_border() -> None:
    torch.testing.assert_close(alone(3, 3, WHOLE, feather=0.5), torch.ones(3, 3))


def test_a_hard_edge_reaches_no_further_than_it_covers() -> None:
    for shape in (LEFT, TRIANGLE, mask_of([[255, 0], [0, 255]])):
        seen = cover(Layout({"a": Region((shape,))}), 5, 7)["a"]
        assert np.array_equal(seen.cover, seen.reach)


# --- who is on top ---

DOG, GLASSES = Region((WHOLE,)), Region((Box(0.25, 0.25, 0.75, 0.5),), z=1)


def test_what_is_on_top_hides_what_is_below() -> None:
    worn = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    bare = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert covers(Layout({"dog": DOG, "glasses": GLASSES}), 4, 4) == {"dog": bare, "glasses": worn}


def test_of_equal_height_they_share() -> None:
    level = covers(Layout({"dog": DOG, "glasses": Region(GLASSES.shapes)}), 4, 4)
    assert level["dog"] == [[1.0] * 4] * 4
    assert sum(map(sum, level["glasses"])) == 2


def test_three_high() -> None:
    hat, dog, sofa = (
        Region((Box(0.0, 0.0, 0.25, 1.0),), 2),
        Region((Box(0.0, 0.0, 0.75, 1.0),), 1),
        Region((WHOLE,), -3),
    )
    shown = covers(Layout({"hat": hat, "dog": dog, "sofa": sofa}), 1, 4)
    assert shown == {"hat": [[1, 0, 0, 0]], "dog": [[0, 1, 1, 0]], "sofa": [[0, 0, 0, 1]]}


def test_the_rest_is_what_the_others_leave() -> None:
    layout = Layout({"sea": Region((Rest(),)), "rex": Region((LEFT,)), "cup": Region((Box(0.5, 0.0, 1.0, 0.5),))})
    assert covers(layout, 2, 2)["sea"] == [[0, 0], [0, 1]]
    assert pixel_maps(layout)["sea"].sum() == 384 * 384
    below = Layout({**layout.regions, "sea": Region((WHOLE,), z=-1)})
    assert covers(below, 3, 4) == covers(layout, 3, 4)


def test_two_may_share_the_rest() -> None:
    layout = Layout.of({"sea": "rest", "sky": "rest", "rex": LEFT})
    assert covers(layout, 1, 2) == {"sea": [[0, 1]], "sky": [[0, 1]], "rex": [[1, 0]]}


# --- own cells ---


@given(unions, st.integers(1, 9), st.integers(1, 9))
def test_everybody_has_a_cell_on_any_grid(union: Any, height: Any, width: Any) -> None:
    cells = torch.from_numpy(own_cells(Layout({"a": Region(union)}), height, width)["a"])
    assert cells.any()
    assert torch.equal(cells | (alone(height, width, *union) >= 0.5), cells)


def test_a_covered_subject_keeps_its_best_cell_on_a_coarse_grid() -> None:
    layout = Layout({"dog": Region((LEFT,)), "glasses": Region((Box(0.0, 0.0, 0.5, 0.8),), z=1)})
    assert own_cells(layout, 2, 2)["dog"].astype(int).tolist() == [[0, 0], [1, 0]]
    assert own_cells(layout, 2, 2)["glasses"].astype(int).tolist() == [[1, 0], [1, 0]]


# --- the authors' maps ---


def test_each_pixel_belongs_to_what_is_on_top() -> None:
    maps = pixel_maps(Layout({"dog": DOG, "glasses": GLASSES}))
    assert maps["glasses"][192:384, 192:576].all()
    assert maps["glasses"].sum() == 384 * 192
    assert np.array_equal(maps["dog"], ~maps["glasses"])
    assert pixel_maps(Layout({"dog": DOG, "glasses": Region(GLASSES.shapes)}))["dog"].all()


def test_pixels_are_hard() -> None:
    mask = mask_of([[255, 128, 127, 0]])
    (inside,) = pixel_maps(Layout({"rex": Region((mask,), feather=0.1)})).values()
    assert np.flatnonzero(inside[0]).tolist() == list(range(384))


# --- strangers' layouts ---


@pytest.mark.parametrize("feather", [0.0, 0.1])
def test_many_polygons_are_no_trouble(feather: Any) -> None:
    region = {"shapes": [{"polygon": [[0, 0], [1, 0.3], [0.5, 1]]}], "feather": feather}
    regions = {f"r{number}": {**region, "z": number} for number in range(64)}
    layout = Layout.from_json(json.dumps({"version": 1, "regions": regions}))
    started = time.monotonic()
    assert len(cover(layout, 64, 64)) == 64
    assert time.monotonic() - started < 30  # half a second on a quiet machine
