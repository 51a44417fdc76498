"""Layouts: whatever describes one, what is refused, and JSON that comes back as it went."""

import base64
import copy
import io
import json
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cones2.errors import LayoutError, OutputError
from cones2.layout import (
    LARGEST_JSON,
    MAX_CHARACTERS,
    MAX_POLYGON_POINTS,
    MAX_REGIONS,
    MAX_SHAPES,
    WHOLE,
    Box,
    Layout,
    Mask,
    Polygon,
    Region,
    Rest,
)
from cones2.shapes import MAX_MASK_FILES

LEFT = Box(0.0, 0.0, 0.5, 1.0)
TRIANGLE = Polygon(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))

sides = st.tuples(st.integers(0, 96), st.integers(0, 96)).filter(lambda pair: pair[0] != pair[1]).map(sorted)
boxes = st.tuples(sides, sides).map(lambda s: Box(s[0][0] / 96, s[1][0] / 96, s[0][1] / 96, s[1][1] / 96))
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
shapes = st.lists(boxes | st.just(TRIANGLE), min_size=1, max_size=5).map(tuple)
regions = st.tuples(shapes, st.integers(-100, 100), st.floats(0, 100), st.floats(0, 0.5))


def mask_of(rows: list[list[int]]) -> Mask:
    return Mask.from_image(Image.fromarray(np.array(rows, dtype=np.uint8)))


def one_line(error: pytest.ExceptionInfo[LayoutError]) -> bool:
    return len(str(error.value)) < 400 and "\n" not in str(error.value)


# --- what a layout is made of ---


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "value",
    [
        LEFT,
        (0, 0, 0.5, 1),
        [0, 0, 0.5, 1],
        [[0, 0, 0.5, 1]],
        [LEFT],
        (LEFT,),
        np.array([0, 0, 0.5, 1], dtype=np.float32),
        np.array([[0, 0, 0.5, 1]]),
        torch.tensor([0, 0, 0.5, 1]),
        [np.float32(0), np.int64(0), torch.tensor(0.5), 1],
        [np.array([0, 0, 0.5, 1])],
        Region((LEFT,)),
        {"shapes": [[0, 0, 0.5, 1]]},
    ],
)
def test_a_box_may_be_written_in_many_ways(value: Any) -> None:
    layout = Layout.of({"rex": value})
    assert layout == Layout({"rex": Region((LEFT,))})
    assert json.loads(layout.to_json())["regions"]["rex"] == [[0.0, 0.0, 0.5, 1.0]]


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("shapes", [LEFT, [LEFT], (0, 0, 0.5, 1), [(0, 0, 0.5, 1)]])
def test_a_region_takes_the_same(shapes: Any) -> None:
    assert Region(shapes) == Region((LEFT,))


def test_other_shapes_have_short_forms_too() -> None:
    white = Image.new("L", (2, 1), 255)
    layout = Layout.of({"sea": "rest", "a": TRIANGLE, "b": [LEFT, (0.5, 0.0, 1.0, 1.0), white], "c": white})
    assert layout.regions["sea"] == Region((Rest(),))
    assert layout.regions["a"].shapes == (TRIANGLE,)
    assert layout.regions["b"].shapes == (LEFT, Box(0.5, 0.0, 1.0, 1.0), Mask(2, 1, b"\xff\xff"))
    assert layout.regions["c"].shapes == (Mask(2, 1, b"\xff\xff"),)


def test_a_layout_may_be_a_layout_or_its_path(tmp_path: Path) -> None:
    layout = Layout.of({"rex": LEFT})
    assert Layout.of(layout) is layout
    layout.save(tmp_path / "one.json")
    assert Layout.of(tmp_path / "one.json") == Layout.of(str(tmp_path / "one.json")) == layout


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (LEFT, "Box"),
        ([0, 0, 1, 1], r"\[0, 0, 1, 1\]"),
        (None, "None"),
        ({"rex": None}, "None"),
        ({"rex": 3}, "3"),
        ({"rex": "left"}, "'left'"),
        ({"rex": (0, 0, 1)}, r"\(0, 0, 1\)"),
        ({"rex": (0, 0, 1, "1")}, "'1'"),
        ({"rex": [(0, 0, 1, True)]}, "True"),
        ({"rex": (0, 0, 1, 10**400)}, "1000"),
        ({"rex": []}, "no shape"),
        ({"rex": {"box": (0, 0, 1, 1)}}, "'box'"),
        ({3: LEFT}, "3"),
    ],
)
def test_what_is_no_layout_is_named(value: Any, got: Any) -> None:
    with pytest.raises(LayoutError, match=got) as raised:
        Layout.of(value)
    assert one_line(raised)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_numbers_of_other_libraries_are_written(kind: Any) -> None:
    corners = tuple((kind(x), kind(y)) for x, y in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    soft = Region((Polygon(corners),), z=np.int64(2), weight=kind(0.5), feather=kind(0.25))  # type: ignore[arg-type]
    layout = Layout({"rex": Region((Box(*map(kind, (0.0, 0.25, 0.5, 1.0))),)), "cup": soft})
    assert Layout.from_json(layout.to_json()) == layout


@pytest.mark.parametrize(
    ("numbers", "got"),
    [
        ((0.5, 0.0, 0.25, 1.0), "xmin is not less than xmax"),
        ((0.0, 0.5, 1.0, 0.5), "ymin is not less than ymax"),
        ((0.0, 0.0, 1.0, 1.5), "ymax 1.5"),
        ((-0.1, 0.0, 1.0, 1.0), "xmin -0.1"),
        ((0.0, float("nan"), 1.0, 1.0), "ymin nan"),
        ((0.0, 0.0, float("inf"), 1.0), "xmax inf"),
    ],
)
def test_a_box_that_makes_no_sense_is_named(numbers: Any, got: Any) -> None:
    with pytest.raises(LayoutError, match=f"'rex'.*{got}"):
        Layout.of({"rex": numbers})


@pytest.mark.parametrize(
    ("points", "got"),
    [
        ([(0.0, 0.0), (1.0, 1.0)], "2 points"),
        ([(i / 300, i / 300) for i in range(257)], "257 points"),
        ([(0.0, 0.0), (1.0, 1.5), (1.0, 0.0)], "y 1.5"),
        ([(0.0, 0.0), (1.0, float("nan")), (1.0, 0.0)], "y nan"),
        ([(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)], "nothing is inside"),
    ],
)
def test_polygons_that_make_no_sense(points: Any, got: Any) -> None:
    with pytest.raises(LayoutError, match=got):
        Polygon(tuple(points))


@pytest.mark.parametrize(
    ("numbers", "got"),
    [
        ({"z": 101}, "z 101"),
        ({"z": 10**400}, "1000"),
        ({"weight": -0.5}, "weight -0.5"),
        ({"weight": float("nan")}, "weight nan"),
        ({"feather": 0.6}, "feather 0.6"),
    ],
)
def test_numbers_of_a_region_have_ranges(numbers: Any, got: Any) -> None:
    with pytest.raises(LayoutError, match=got):
        Region((LEFT,), **numbers)


@pytest.mark.usefixtures("unchecked_types")
def test_half_a_level_is_no_height() -> None:
    with pytest.raises(LayoutError, match=r"z 1\.5"):
        Region((LEFT,), z=1.5)  # type: ignore[arg-type]


def test_the_rest_stands_alone() -> None:
    with pytest.raises(LayoutError, match="rest"):
        Region((Rest(), LEFT))


@pytest.mark.parametrize("name", ["", "a b", "1st", "rex\n", "é", "{rex}", "a" * 65, "\ud800"])
def test_a_name_that_no_prompt_can_hold_is_refused(name: Any) -> None:
    with pytest.raises(LayoutError, match="can't name a region"):
        Layout.of({name: LEFT})


def test_shapes_are_not_too_many() -> None:
    with pytest.raises(LayoutError, match=str(MAX_SHAPES + 1)):
        Layout({"rex": Region((LEFT,) * (MAX_SHAPES + 1))})


def test_regions_and_points_are_not_too_many() -> None:
    crowd = {f"r{number}": LEFT for number in range(MAX_REGIONS + 1)}
    with pytest.raises(LayoutError, match=f"{MAX_REGIONS + 1} regions; expected at most {MAX_REGIONS}"):
        Layout.of(crowd)
    del crowd["r0"]
    assert len(Layout.of(crowd).names) == MAX_REGIONS
    many = Polygon(tuple((i / 256, (i % 2) / 2) for i in range(256)))
    with pytest.raises(LayoutError, match=f"points of polygons; expected at most {MAX_POLYGON_POINTS}"):
        Layout({"rex": Region((many,) * (MAX_POLYGON_POINTS // 256 + 1))})


def test_a_layout_fits_a_pictures_record() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    found = {f"m{number}": Region((Mask.from_image(Image.fromarray(noise + number)),)) for number in range(3)}
    with pytest.raises(LayoutError, match=f"{LARGEST_JSON:,}"):
        Layout(found)
    assert len(Layout({"m0": found["m0"]}).to_json()) < LARGEST_JSON


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_layout(copied: Any) -> None:
    layout = Layout({"rex": Region((LEFT, Mask(2, 1, b"\x00\xff"))), "sea": Region((Rest(),))})
    assert copied(layout) == layout
    assert copied(layout).to_json() == layout.to_json()


def test_a_layout_does_not_change_under_us() -> None:
    mine = {"rex": Region((LEFT,))}
    layout = Layout(mine)
    mine.clear()
    assert layout.names == ("rex",)
    with pytest.raises(TypeError):
        layout.regions["cup"] = mine  # type: ignore[index]


def test_what_is_printed_is_short() -> None:
    many = Polygon(tuple((i / 256, (i % 2) / 2) for i in range(256)))
    layout = Layout({"rex": Region((LEFT,)), "cup": Region((many,), z=1), "a": Region((LEFT, mask_of([[255]])))})
    expected = "Layout(rex=Region(Box(0.0, 0.0, 0.5, 1.0)), cup=Region(Polygon(256 points), z=1), a=Region(2 shapes))"
    assert repr(layout) == expected


def test_bounds_hold_all_shapes() -> None:
    assert Region((LEFT, mask_of([[0, 0, 0, 0], [0, 0, 255, 0]]))).bounds == Box(0.0, 0.0, 0.75, 1.0)
    assert TRIANGLE.bounds == Region((Rest(),)).bounds == WHOLE


# --- JSON ---

GLASSES = mask_of([[0, 255, 255, 0], [0, 200, 90, 0]])
EVERYTHING = Layout(
    {
        "dog": Region((LEFT, TRIANGLE), z=-2),
        "glasses": Region((GLASSES,), z=1, weight=1.5, feather=0.05),
        "sea": Region((Rest(),)),
        "cup": Region((Box(0.5, 0.5, 1.0, 1.0),)),
    }
)


@settings(max_examples=50)
@given(st.dictionaries(names, regions, max_size=4))
def test_json_comes_back_as_it_went(named: Any) -> None:
    layout = Layout({name: Region(*values) for name, values in named.items()})
    assert Layout.from_json(layout.to_json()) == layout


def test_json_has_one_form() -> None:
    data = json.loads(EVERYTHING.to_json())
    embedded = data["regions"]["glasses"]["shapes"].pop()["mask"]["png"]
    assert data == {
        "version": 1,
        "regions": {
            "dog": {"shapes": [[0, 0, 0.5, 1], {"polygon": [[0, 0], [1, 0], [0, 1]]}], "z": -2},
            "glasses": {"shapes": [], "z": 1, "weight": 1.5, "feather": 0.05},
            "sea": ["rest"],
            "cup": [[0.5, 0.5, 1, 1]],
        },
    }
    assert Image.open(io.BytesIO(base64.b64decode(embedded))).size == (4, 2)
    assert Layout.from_json(EVERYTHING.to_json()) == EVERYTHING


def test_json_has_short_forms() -> None:
    text = """{"version": 1, "regions": {
        "a": [0, 0, 0.5, 1], "b": {"polygon": [[0, 0], [1, 0], [0, 1]]}, "c": "rest",
        "d": [[0, 0, 0.5, 1], {"polygon": [[0, 0], [1, 0], [0, 1]]}], "e": {"shapes": [[0, 0, 0.5, 1]], "z": 3}}}"""
    assert Layout.from_json(text).regions == {
        "a": Region((LEFT,)),
        "b": Region((TRIANGLE,)),
        "c": Region((Rest(),)),
        "d": Region((LEFT, TRIANGLE)),
        "e": Region((LEFT,), z=3),
    }


def test_a_file_comes_back_as_it_went(tmp_path: Path) -> None:
    EVERYTHING.save(tmp_path / "all.json")
    assert Layout.load(str(tmp_path / "all.json")) == EVERYTHING
    with pytest.raises(OutputError):
        EVERYTHING.save(tmp_path / "absent" / "all.json")


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("[", "Expecting value"),
        ("[" * 100_000, "recursion"),
        ('{"version": 1, "regions": {"a": [0, 0, 1, ' + "9" * 5000 + "]}}", "digits"),
        ('"\\ud800"', "ud800"),
        ("{}", "'version': Field required"),
        ('{"version": 2, "regions": {}}', "'version'.*got 2"),
        ('{"version": 1, "regions": {}, "more": 1}', "'more'"),
        ('{"version": 1, "regions": [1]}', "'regions'"),
        ('{"version": 1, "regions": {"a": [0, 0, 1, 1], "a": [0, 0, 1, 1]}}', "'a' is there twice"),
        ('{"version": 1, "regions": {"a b": [0, 0, 1, 1]}}', "'a b'"),
        (" " * (MAX_CHARACTERS + 1), str(MAX_CHARACTERS)),
    ],
)
def test_strangers_json_is_refused_in_one_line(text: Any, got: Any) -> None:
    with pytest.raises(LayoutError, match=got) as raised:
        Layout.from_json(text)
    assert one_line(raised)


@pytest.mark.parametrize(
    ("region", "got"),
    [
        ("3", "3"),
        ("null", "None"),
        ('"all"', "'all'"),
        ("[3]", r"\[3\]"),
        ("[" * 500 + "]" * 500, r"\[\["),
        ("[[0, 0, true, 1]]", "True"),
        ('[[0, 0, "1", 1]]', "'1'"),
        ("[[0, 0, 1, NaN]]", "ymax nan"),
        ("[[0, 0, 1, 1e999]]", "ymax inf"),
        ('{"mask": {"png": "*"}}', "base64"),
        ('{"mask": {"png": "\\u00e9"}}', "base64"),
        ('{"mask": {"png": "aGVsbG8="}}', "an embedded mask is not a JPEG"),
        ('{"mask": {"jpg": ""}}', "jpg"),
        ('{"mask": {}}', "mask"),
        ('{"mask": 3}', "3"),
        ('{"mask": "a.png", "polygon": [[0, 0], [1, 0], [0, 1]]}', "not both"),
        ('{"mask": "a.png", "z": 1}', "'z'"),
        ('{"polygon": [[0, 0], [1, 0]]}', "2 points"),
        ('{"polygon": [[0, 0], [1, 0], [1]]}', r"\[1\]"),
        ('{"polygon": [[0, 0], [1, 0], 3]}', "3"),
        ('{"polygon": [[0, 0], [1, 0], {"0": 1, "1": 1}]}', "'0'"),
        ('{"polygon": [[0, 0], [1, 0], [1, "1"]]}', "'1'"),
        ('{"shapes": []}', "no shape"),
        ('{"shapes": "rest", "z": 1}', "'rest'"),
        ('{"shapes": ["rest"], "z": 1.5}', "1.5"),
        ('{"shapes": ["rest"], "z": true}', "True"),
        ('{"shapes": ["rest"], "weight": 1e999}', "weight inf"),
        ('{"shapes": ["rest"], "order": 1}', "'order'"),
    ],
)
def test_strangers_regions_are_refused_in_one_line(region: Any, got: Any) -> None:
    with pytest.raises(LayoutError, match=f"'a'.*{got}") as raised:
        Layout.from_json(f'{{"version": 1, "regions": {{"a": {region}}}}}')
    assert one_line(raised)


def test_a_file_that_is_no_layout_is_named(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"absent\.json"):
        Layout.load(tmp_path / "absent.json")
    for content in (b"\x89PNG\xff", b"{}"):
        (tmp_path / "bad.json").write_bytes(content)
        with pytest.raises(LayoutError, match=r"bad\.json"):
            Layout.load(tmp_path / "bad.json")


# --- masks ---


def test_mask_files_lie_beside_the_layout_and_are_embedded_when_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(tmp_path / "masks" / "cup.png")
    (tmp_path / "two.json").write_text('{"version": 1, "regions": {"cup": {"mask": "masks/cup.png"}}}')
    layout = Layout.load(tmp_path / "two.json")
    assert layout == Layout({"cup": Region((mask_of([[0, 255]]),))})
    layout.save(tmp_path / "alone.json")
    (tmp_path / "masks" / "cup.png").unlink()
    assert Layout.load(tmp_path / "alone.json") == layout


@pytest.mark.parametrize("path", ["/etc/passwd", "../cup.png", "a/../../cup.png", "..\\\\cup.png", "C:cup.png"])
def test_a_layout_reaches_no_other_files(tmp_path: Path, path: str) -> None:
    (tmp_path / "two.json").write_text(f'{{"version": 1, "regions": {{"cup": {{"mask": "{path}"}}}}}}')
    with pytest.raises(LayoutError, match=r"'cup': the mask .*layout's folder"):
        Layout.load(tmp_path / "two.json")
    with pytest.raises(LayoutError, match=r"'cup': the mask .*layout's folder"):
        Layout.of({"cup": {"mask": "cup.png"}})


def many_masks(tmp_path: Path, names: list[str]) -> Path:
    shapes = [{"mask": name} for name in names]
    (tmp_path / "many.json").write_text(json.dumps({"version": 1, "regions": {"cup": shapes}}))
    return tmp_path / "many.json"


def test_a_large_mask_that_is_named_often_is_decoded_once(tmp_path: Path) -> None:
    Image.new("L", (6000, 6000), 200).save(tmp_path / "big.png", transparency=0)
    started = time.monotonic()
    once = Layout.load(many_masks(tmp_path, ["big.png"]))
    took = time.monotonic() - started
    assert len(Layout.load(many_masks(tmp_path, ["big.png"] * 200)).regions["cup"].shapes) == 200
    assert time.monotonic() - started < 20 * took
    assert once.regions["cup"].bounds == WHOLE


def test_mask_files_are_not_too_many(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(MAX_MASK_FILES + 1)]
    for name in names:
        Image.new("L", (1, 1), 255).save(tmp_path / name)
    assert len(Layout.load(many_masks(tmp_path, names[:-1])).regions["cup"].shapes) == MAX_MASK_FILES
    with pytest.raises(LayoutError, match=str(MAX_MASK_FILES)):
        Layout.load(many_masks(tmp_path, names))


def test_the_pixels_of_all_mask_files_together_are_bounded(tmp_path: Path) -> None:
    Image.new("L", (5000, 5000), 200).save(tmp_path / "a.png")
    for name in ("b.png", "c.png"):
        Image.new("L", (4000, 4000), 200).save(tmp_path / name)
    assert len(Layout.load(many_masks(tmp_path, ["a.png", "b.png"] * 9)).regions["cup"].shapes) == 18
    with pytest.raises(LayoutError, match=r"c\.png, with the layout's others, has too many pixels; expected at most 9"):
        Layout.load(many_masks(tmp_path, ["a.png", "b.png", "c.png"]))


def test_masks_come_from_many_kinds_of_pictures() -> None:
    half = [[255] * 4 + [0] * 4] * 8
    grey = Image.fromarray(np.array(half, dtype=np.uint8))
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 4, 8))
    wide = Image.fromarray(np.array(half, dtype=np.uint16) * 256)
    for picture in (grey, grey.convert("RGB"), grey.convert("1"), grey.convert("P"), clear, wide):
        assert Mask.from_image(picture).grey[0].tolist() == pytest.approx(half[0], abs=2)


def test_faint_greys_are_black_and_large_masks_are_reduced() -> None:
    assert mask_of([[15, 16, 255]]).pixels == bytes([0, 16, 255])
    large = Image.new("L", (2048, 100))
    large.paste(255, (0, 0, 1024, 100))
    mask = Mask.from_image(large)
    assert (mask.width, mask.height) == (768, 38)
    assert mask.bounds == Box(0.0, 0.0, 0.5, 1.0)


def test_a_mask_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 3  # upside down
    Image.fromarray(np.array([[0], [255]], dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert Mask.load(tmp_path / "a.png") == mask_of([[255], [0]])


def png_of(side: int) -> bytes:
    """A PNG that promises `side` x `side` pixels and holds almost none."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\0")))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "JPEG, PNG, WebP or AVIF"),
        (b"GIF89a", "JPEG, PNG, WebP or AVIF"),
        (png_of(8000), "50 million"),
        (png_of(60_000), "50 million"),
        (png_of(100), "damaged"),
    ],
)
def test_hostile_masks_are_refused_before_they_are_decoded(tmp_path: Path, content: bytes, got: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(LayoutError, match=rf"a\.png.*{got}"):
        Mask.load(tmp_path / "a.png")


def test_an_embedded_mask_is_small() -> None:
    with pytest.raises(LayoutError, match="1 million"):
        Mask.from_base64(base64.b64encode(png_of(1001)).decode())


def test_masks_that_make_no_sense(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "black.png")
    with pytest.raises(LayoutError, match=r"black\.png.*4x4"):
        Mask.load(tmp_path / "black.png")
    with pytest.raises(LayoutError, match=r"absent\.png"):
        Mask.load(tmp_path / "absent.png")
    with pytest.raises(LayoutError, match="769x1"):
        Mask(769, 1, b"\xff" * 769)
    with pytest.raises(LayoutError, match="3 bytes"):
        Mask(2, 2, b"\xff" * 3)
