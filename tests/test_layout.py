import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cones2.errors import LayoutError, OutputError
from cones2.layout.box import Box
from cones2.layout.documents import MAX_CHARACTERS
from cones2.layout.drawing import draw_layout
from cones2.layout.masks import Mask
from cones2.layout.region import Region
from cones2.layout.regions import MAX_SHAPES, Layout
from cones2.layout.shapes import Polygon, Rest

sides = st.tuples(st.integers(0, 96), st.integers(0, 96)).filter(lambda pair: pair[0] != pair[1]).map(sorted)
boxes = st.tuples(sides, sides).map(lambda s: Box(s[0][0] / 96, s[1][0] / 96, s[0][1] / 96, s[1][1] / 96))
regions = st.lists(boxes, min_size=1, max_size=5).map(tuple)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
named_regions = st.dictionaries(names, regions, max_size=4)


def mirrored(box: Box) -> Box:
    return Box(1 - box.xmax, box.ymin, 1 - box.xmin, box.ymax)


@settings(max_examples=50)
@given(named_regions)
def test_json_comes_back_as_it_went(named) -> None:
    layout = Layout({name: Region(shapes) for name, shapes in named.items()})
    assert Layout.from_json(layout.to_json()) == layout


def test_json_has_one_form() -> None:
    layout = Layout({"rex": Region((Box(0.05, 0.25, 0.5, 0.95),))})
    assert json.loads(layout.to_json()) == {"version": 1, "regions": {"rex": [[0.05, 0.25, 0.5, 0.95]]}}


def test_a_single_box_needs_no_outer_list() -> None:
    short = '{"version": 1, "regions": {"rex": [0.05, 0.25, 0.5, 1]}}'
    assert Layout.from_json(short) == Layout({"rex": Region((Box(0.05, 0.25, 0.5, 1.0),))})


def test_a_file_comes_back_as_it_went(tmp_path) -> None:
    layout = Layout.from_numbers({"rex": [(0.0, 0.0, 0.5, 1.0)], "cup": [(0.5, 0.1, 1.0, 0.3), (0.5, 0.5, 0.75, 0.75)]})
    layout.save(tmp_path / "two.json")
    assert Layout.load(tmp_path / "two.json") == layout
    assert layout.names == ("rex", "cup")
    with pytest.raises(OutputError):
        layout.save(tmp_path / "absent" / "two.json")


def test_a_file_may_be_named_by_text(tmp_path) -> None:
    layout = Layout.from_numbers({"rex": [(0.0, 0.0, 0.5, 1.0)]})
    layout.save(str(tmp_path / "one.json"))
    assert Layout.load(str(tmp_path / "one.json")) == layout


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_numbers_of_other_libraries_are_written(kind) -> None:
    box = [kind(0.0), kind(0.25), kind(0.5), kind(1.0)]
    corners = tuple((kind(x), kind(y)) for x, y in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    soft = Region((Polygon(corners),), z=np.int64(2), weight=kind(0.5), feather=kind(0.25))
    layout = Layout({"rex": Region((Box(*box),)), "cup": soft})
    assert Layout.from_json(layout.to_json()) == layout
    assert json.loads(layout.to_json())["regions"]["rex"] == [[0.0, 0.25, 0.5, 1.0]]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_layout(copied) -> None:
    layout = Layout({"rex": Region((Box(0.0, 0.0, 0.5, 1.0), Mask(2, 1, b"\x00\xff"))), "sea": Region((Rest(),))})
    assert copied(layout) == layout
    assert copied(layout).to_json() == layout.to_json()


def test_a_layout_does_not_change_under_us() -> None:
    mine = {"rex": Region((Box(0.0, 0.0, 0.5, 1.0),))}
    layout = Layout(mine)
    mine.clear()
    assert layout.names == ("rex",)
    with pytest.raises(TypeError):
        layout.regions["cup"] = mine  # type: ignore[index]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0.5, 0.0, 0.25, 1.0), r"region 'rex': box \(0.5, 0.0, 0.25, 1.0\): xmin is not less than xmax. Swap them"),
        ((0.0, 0.5, 1.0, 0.5), r"region 'rex': box \(0.0, 0.5, 1.0, 0.5\): ymin is not less than ymax"),
        ((0.0, 0.0, 1.0, 1.5), r"box \(0.0, 0.0, 1.0, 1.5\): ymax 1.5 is outside 0..1. Divide pixels"),
        ((-0.1, 0.0, 1.0, 1.0), r"xmin -0.1 is outside 0..1"),
        ((0.0, float("nan"), 1.0, 1.0), r"box \(0.0, nan, 1.0, 1.0\): ymin is nan; expected a number in 0..1"),
        ((0.0, 0.0, float("inf"), 1.0), r"xmax is inf"),
        ((0.0, 0.0, 1.0), r"region 'rex': a box is \[xmin, ymin, xmax, ymax\], 4 numbers; got 3"),
    ],
)
def test_a_box_that_makes_no_sense_is_named(numbers, message) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout.from_numbers({"rex": [numbers]})


@pytest.mark.parametrize("name", ["", "a b", "1st", "rex\n", "é", "{rex}", "a" * 65, "\ud800"])
def test_a_name_that_no_prompt_can_hold_is_refused(name) -> None:
    with pytest.raises(LayoutError, match="can't name a region: expected up to 64 letters"):
        Layout({name: Region((Box(0.0, 0.0, 1.0, 1.0),))})


def test_regions_have_boxes_but_not_too_many() -> None:
    with pytest.raises(LayoutError, match="region 'rex': no shape; expected at least one box, polygon or mask"):
        Layout.from_numbers({"rex": []})
    with pytest.raises(LayoutError, match=f"the layout has {MAX_SHAPES + 1} shapes; expected at most {MAX_SHAPES}"):
        Layout({"rex": Region((Box(0.0, 0.0, 1.0, 1.0),) * (MAX_SHAPES + 1))})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not JSON that can be read: Expecting value"),
        ("[" * 100_000, "is not JSON that can be read: .*recursion"),
        ('{"version": 1, "regions": {"a": [0, 0, 1, ' + "9" * 5000 + "]}}", "is not JSON that can be read: .*digits"),
        ('"\\ud800"', "holds .* Expected an object"),
        ("{}", "wrong at 'version': Field required"),
        ('{"version": 3, "regions": {}}', "wrong at 'version': Input should be 1 or 2, got 3"),
        ('{"version": 1, "regions": {}, "more": 1}', "wrong at 'more': Extra inputs are not permitted"),
        ('{"version": 1, "regions": [1]}', "wrong at 'regions': Input should be a valid dictionary"),
        ('{"version": 1, "regions": {"a": 3}}', "wrong at 'regions.a': Input should be a valid list, got 3"),
        ('{"version": 1, "regions": {"a": [[0, 0, true, 1]]}}', "wrong at 'regions.a.0.2': .* valid number, got True"),
        ('{"version": 1, "regions": {"a": [[0, 0, "1", 1]]}}', "wrong at 'regions.a.0.2': .* valid number, got '1'"),
        ('{"version": 1, "regions": {"a": [[0, 0, 1, NaN]]}}', r"region 'a': box .*: ymax is nan"),
        ('{"version": 1, "regions": {"a": [[0, 0, 1, 1e999]]}}', r"region 'a': box .*: ymax is inf"),
        ('{"version": 1, "regions": {"a": [0, 0, 1, 1], "a": [0, 0, 1, 1]}}', "has 'a' twice"),
        ('{"version": 1, "regions": {"a b": [0, 0, 1, 1]}}', "'a b' can't name a region"),
        (" " * (MAX_CHARACTERS + 1), f"is over {MAX_CHARACTERS} characters long"),
    ],
)
def test_strangers_json_is_refused_in_one_line(text, message) -> None:
    with pytest.raises(LayoutError, match=message) as raised:
        Layout.from_json(text)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_layout_is_named(tmp_path) -> None:
    with pytest.raises(LayoutError, match=r"can't read .*absent.json: No such file.* Check the path"):
        Layout.load(tmp_path / "absent.json")
    (tmp_path / "picture.json").write_bytes(b"\x89PNG\xff")
    with pytest.raises(LayoutError, match=r"picture.json is not text in UTF-8"):
        Layout.load(tmp_path / "picture.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(LayoutError, match=r"bad.json: the layout JSON is wrong at 'version'"):
        Layout.load(tmp_path / "bad.json")


@given(regions, st.sampled_from([1, 2, 3, 4, 6, 8]), st.sampled_from([1, 2, 3, 4, 6, 8]))
def test_coverage_is_the_union_counted_on_a_fine_grid(region, height, width) -> None:
    fine = torch.zeros(96, 96, dtype=torch.float64)  # every side of a box is a multiple of 1/96
    for box in region:
        left, top, right, bottom = (round(96 * side) for side in (box.xmin, box.ymin, box.xmax, box.ymax))
        fine[top:bottom, left:right] = 1
    counted = fine.reshape(height, 96 // height, width, 96 // width).mean((1, 3)).float()
    torch.testing.assert_close(Layout({"a": Region(region)}).coverage("a", height, width), counted, atol=1e-6, rtol=0)


@given(regions, st.integers(1, 13), st.integers(1, 13))
def test_coverage_commutes_with_mirrors_and_keeps_the_area(region, height, width) -> None:
    coverage = Layout({"a": Region(region)}).coverage("a", height, width)
    mirror = Layout({"a": Region(tuple(map(mirrored, region)))}).coverage("a", height, width)
    torch.testing.assert_close(mirror, coverage.flip(1), atol=1e-6, rtol=0)
    area = Layout({"a": Region(region)}).coverage("a", 1, 1).item()
    assert coverage.mean().item() == pytest.approx(area, abs=1e-6)


def test_coverage_worked_by_hand() -> None:
    # Cells are 1/4 x 1/3. The box reaches a half into column 0, all of column 1, and a fifth into row 1.
    coverage = Layout.from_numbers({"a": [(0.125, 0.0, 0.5, 0.4)]}).coverage("a", 3, 4)
    expected = torch.tensor([[0.5, 1, 0, 0], [0.1, 0.2, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(coverage, expected)


def test_coverage_of_half_a_cell_is_half_whatever_the_decimals() -> None:
    for hundredth in range(1, 100, 2):  # on 50 cells, odd hundredths end in the middle of a cell
        coverage = Layout.from_numbers({"a": [(0.0, 0.0, hundredth / 100, 1.0)]}).coverage("a", 1, 50)
        assert coverage[0, hundredth // 2] == 0.5


def test_coverage_of_no_region() -> None:
    with pytest.raises(LayoutError, match="the layout has no region 'cup'; it has rex"):
        Layout.from_numbers({"rex": [(0.0, 0.0, 1.0, 1.0)]}).coverage("cup", 2, 2)
    with pytest.raises(LayoutError, match="it has none"):
        Layout({}).coverage("cup", 2, 2)


def test_the_preview_shows_boxes_where_they_are() -> None:
    layout = Layout.from_numbers({"rex": [(0.0, 0.25, 0.5, 1.0)], "cup": [(0.75, 0.5, 1.0, 1.0)]})
    picture = np.asarray(draw_layout(layout, width=400, height=200)).astype(int)
    assert picture.shape == (200, 400, 3)
    background, rex, cup = picture[20, 380], picture[150, 100], picture[150, 350]
    assert abs(rex - background).max() > 40
    assert abs(cup - background).max() > 40
    assert abs(rex - cup).max() > 40
    assert (picture[20, 100] == background).all()


def test_the_preview_draws_over_a_picture() -> None:
    photo = Image.new("RGBA", (30, 60), (200, 10, 10, 255))
    picture = draw_layout(Layout.from_numbers({"rex": [(0.5, 0.0, 1.0, 1.0)]}), width=64, height=32, background=photo)
    assert picture.getpixel((5, 16)) == (200, 10, 10)
    assert picture.size == (64, 32)


def test_the_preview_writes_every_name_in_sight() -> None:
    crowd = {f"subject_{i}": [(0.9, 0.9, 1.0, 1.0)] for i in range(9)}
    assert draw_layout(Layout.from_numbers(crowd), width=48, height=48).size == (48, 48)


@pytest.mark.parametrize("size", [(0, 10), (10, 10_000)])
def test_the_preview_has_a_sane_size(size) -> None:
    with pytest.raises(LayoutError, match="expected sides of 1 to 8192"):
        draw_layout(Layout({}), width=size[0], height=size[1])
