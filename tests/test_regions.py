"""Polygons, masks, soft edges, the rest, and what is on top, on grids worked by hand."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cones2.errors import LayoutError
from cones2.guidance.cells import pixel_maps
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.presets import OfficialPreset, PaperPreset
from cones2.layout.box import Box
from cones2.layout.drawing import draw_layout
from cones2.layout.masks import Mask
from cones2.layout.region import Region
from cones2.layout.regions import LARGEST_JSON, Layout
from cones2.layout.shapes import Polygon, Rest

ALL = Box(0.0, 0.0, 1.0, 1.0)
LEFT = Box(0.0, 0.0, 0.5, 1.0)
TRIANGLE = Polygon(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 1000)


def mask_of(rows: list[list[int]]) -> Mask:
    return Mask.from_image(Image.fromarray(np.array(rows, dtype=np.uint8)))


def alone(*shapes, **settings) -> Layout:
    return Layout({"a": Region(shapes, **settings)})


# --- polygons ---


@settings(max_examples=40)
@given(*[st.integers(0, 31)] * 2, *[st.integers(1, 32)] * 2, st.integers(1, 7), st.integers(1, 7))
def test_a_polygon_of_the_corners_of_a_box_is_the_box(left, top, width, height, rows, columns) -> None:
    box = Box(left / 64, top / 64, (left + width) / 64, (top + height) / 64)
    corners = ((box.xmin, box.ymin), (box.xmax, box.ymin), (box.xmax, box.ymax), (box.xmin, box.ymax))
    for polygon in (Polygon(corners), Polygon(corners[::-1])):
        expected = alone(box).coverage("a", rows, columns)
        torch.testing.assert_close(alone(polygon).coverage("a", rows, columns), expected, atol=1e-6, rtol=0)


def test_a_triangle_by_hand() -> None:
    # On 2 x 2 cells: all of the first, half of the two beside the diagonal, nothing of the last.
    coverage = alone(TRIANGLE).coverage("a", 2, 2)
    torch.testing.assert_close(coverage, torch.tensor([[1.0, 0.5], [0.5, 0.0]]), atol=2e-3, rtol=0)


def test_where_a_line_crosses_itself_twice_wound_is_outside() -> None:
    bow_tie = Polygon(((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)))
    coverage = alone(bow_tie).coverage("a", 1, 2)
    torch.testing.assert_close(coverage, torch.tensor([[0.5, 0.5]]), atol=2e-3, rtol=0)
    twice = Polygon(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)) * 2)
    assert alone(twice).coverage("a", 1, 1).item() == 0


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(0.0, 0.0), (1.0, 1.0)], "a polygon has 2 points; expected 3 to 256"),
        ([(i / 300, i / 300) for i in range(257)], "a polygon has 257 points"),
        ([(0.0, 0.0), (1.0, 1.5), (1.0, 0.0)], r"a polygon's point \(1.0, 1.5\) is outside 0..1"),
        ([(0.0, 0.0), (1.0, float("nan")), (1.0, 0.0)], r"point \(1.0, nan\) is outside"),
        ([(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)], "lie on one line: nothing is inside"),
    ],
)
def test_polygons_that_make_no_sense(points, message) -> None:
    with pytest.raises(LayoutError, match=message):
        Polygon(tuple(points))


# --- masks ---


def test_a_masks_greys_are_parts_of_cells() -> None:
    mask = mask_of([[255, 0, 51, 51], [255, 0, 51, 51]])
    torch.testing.assert_close(alone(mask).coverage("a", 1, 2), torch.tensor([[0.5, 0.2]]))
    torch.testing.assert_close(alone(mask).coverage("a", 1, 4), torch.tensor([[1.0, 0.0, 0.2, 0.2]]))
    assert mask.bounds == Box(0.0, 0.0, 1.0, 1.0)
    assert mask_of([[0, 0, 0, 0], [0, 0, 255, 0]]).bounds == Box(0.5, 0.5, 0.75, 1.0)


def test_masks_come_from_many_kinds_of_pictures() -> None:
    half = [[255] * 4 + [0] * 4] * 8
    grey = Image.fromarray(np.array(half, dtype=np.uint8))
    clear = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    clear.paste((255, 255, 255, 255), (0, 0, 4, 8))
    wide = Image.fromarray(np.array(half, dtype=np.uint16) * 256)
    for picture in (grey, grey.convert("RGB"), grey.convert("1"), grey.convert("P"), clear, wide):
        coverage = alone(Mask.from_image(picture)).coverage("a", 1, 2)
        torch.testing.assert_close(coverage, torch.tensor([[1.0, 0.0]]), atol=1e-2, rtol=0)


def test_faint_greys_are_black_and_large_masks_are_reduced() -> None:
    assert mask_of([[15, 16]]).pixels == bytes([0, 16])
    large = Image.new("L", (2048, 100))
    large.paste(255, (0, 0, 1024, 100))
    mask = Mask.from_image(large)
    assert (mask.width, mask.height) == (768, 38)
    assert alone(mask).coverage("a", 1, 2).tolist() == [[1.0, 0.0]]


def test_shapes_of_all_kinds_unite() -> None:
    mask = mask_of([[0, 255], [0, 0]])  # the right upper quarter
    region = alone(Box(0.0, 0.0, 0.5, 0.5), mask, Polygon(((0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (0.0, 1.0))))
    assert region.coverage("a", 2, 2).tolist() == [[1.0, 1.0], [1.0, 0.0]]


def png_of(side: int) -> bytes:
    """A PNG that promises `side` x `side` pixels and holds almost none."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0\0")))
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the mask .*a.png is not a PNG, JPEG or WebP picture, or only a part of one. Save it again as a PNG"),
        (b"GIF89a", "is not a PNG, JPEG or WebP picture"),
        (png_of(8000), "the mask .*a.png has too many pixels; expected at most 50 million. Scale it down"),
        (png_of(60_000), "the mask .*a.png has too many pixels"),
        (png_of(100), "the mask .*a.png is damaged: .*truncated.*Save it again as a PNG"),
    ],
)
def test_hostile_masks_are_refused_before_they_are_decoded(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(LayoutError, match=message):
        Mask.load(tmp_path / "a.png")


def test_masks_that_make_no_sense(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "black.png")
    with pytest.raises(LayoutError, match=r"black.png: a mask of 4x4 pixels is black everywhere: nothing is inside"):
        Mask.load(tmp_path / "black.png")
    with pytest.raises(LayoutError, match=r"can't read .*absent.png: No such file"):
        Mask.load(tmp_path / "absent.png")
    with pytest.raises(LayoutError, match="a mask of 769x1 pixels can't be used: expected sides of 1 to 768"):
        Mask(769, 1, b"\xff" * 769)
    with pytest.raises(LayoutError, match="a mask of 2x2 pixels has 3 bytes; expected one for each pixel"):
        Mask(2, 2, b"\xff" * 3)


# --- soft edges ---


def test_a_feathered_edge_is_a_ramp() -> None:
    # A step at 1/2 becomes a ramp from 3/8 to 5/8: a quarter, then three quarters, of the two middle cells' halves.
    coverage = alone(LEFT, feather=0.25).coverage("a", 1, 8)
    torch.testing.assert_close(coverage, torch.tensor([[1, 1, 1, 0.75, 0.25, 0, 0, 0]]), atol=2e-3, rtol=0)


def test_feathering_keeps_the_pictures_border() -> None:
    assert alone(ALL, feather=0.5).coverage("a", 3, 3).tolist() == [[1.0] * 3] * 3


def test_a_soft_edge_draws_in_by_its_part_and_keeps_others_out_from_a_half_on() -> None:
    mask = mask_of([[255, 204, 102, 51]])
    layout = Layout({"rex": Region((mask,)), "cup": Region((Box(0.0, 0.5, 0.25, 1.0),))})
    rex, cup = PaperPreset().weigh(layout, 2, 4).values()
    torch.testing.assert_close(rex.gain, torch.tensor([[2.5, 2.0, 1.0, 0.5]] * 2))
    assert rex.blocked.sum() == 0  # however faintly, it is there
    assert cup.gain.tolist() == [[0, 0, 0, 0], [2.5, 0, 0, 0]]
    assert cup.blocked.int().tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]


def test_official_knows_no_soft_edges() -> None:
    mask = mask_of([[255, 128, 127, 0]])
    (inside,) = pixel_maps(Layout({"rex": Region((mask,), feather=0.1)})).values()
    assert inside[0, 192:].nonzero()[:, 0].tolist() == list(range(192))


# --- who is on top ---

GLASSES = Region((Box(0.25, 0.25, 0.75, 0.5),), z=1)
DOG = Region((ALL,))


def test_sunglasses_on_a_dog_by_hand() -> None:
    layout = Layout({"dog": DOG, "glasses": GLASSES})
    dog, glasses = PaperPreset().weigh(layout, 4, 4).values()
    worn = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    bare = [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert (glasses.gain / 2.5).tolist() == worn
    assert glasses.blocked.int().tolist() == bare
    assert (dog.gain / 2.5).tolist() == bare
    assert dog.blocked.int().tolist() == worn


def test_of_equal_height_they_share() -> None:
    level = Layout({"dog": DOG, "glasses": Region(GLASSES.shapes)})
    dog, glasses = PaperPreset().weigh(level, 4, 4).values()
    assert (dog.gain == 2.5).all()
    assert not dog.blocked.any()
    assert (glasses.gain > 0).sum() == 2


def test_a_covered_subject_keeps_its_best_cell_on_a_coarse_grid() -> None:
    layout = Layout({"dog": Region((Box(0.0, 0.0, 0.5, 1.0),)), "glasses": Region((Box(0.0, 0.0, 0.5, 0.8),), z=1)})
    dog, glasses = PaperPreset().weigh(layout, 2, 2).values()
    assert dog.gain.tolist() == [[0, 0], [2.5, 0]]
    assert not dog.blocked[1, 0]
    assert glasses.gain.tolist() == [[2.5, 0], [2.5, 0]]


def test_three_high() -> None:
    layout = Layout(
        {
            "hat": Region((Box(0.0, 0.0, 0.25, 1.0),), z=2),
            "dog": Region((Box(0.0, 0.0, 0.75, 1.0),), z=1),
            "sofa": Region((ALL,), z=-3),
        }
    )
    shown = {name: region.cover[0].tolist() for name, region in layout.shown(1, 4).items()}
    assert shown == {"hat": [1, 0, 0, 0], "dog": [0, 1, 1, 0], "sofa": [0, 0, 0, 1]}


def test_official_gives_each_pixel_to_what_is_on_top() -> None:
    maps = pixel_maps(Layout({"dog": DOG, "glasses": GLASSES}))
    assert maps["glasses"].sum() == 384 * 192
    assert torch.equal(maps["dog"], ~maps["glasses"])
    dog, glasses = OfficialPreset().weigh(Layout({"dog": DOG, "glasses": GLASSES}), 8, 8).values()
    assert (glasses.gain[2:4, 3:5] == 2.5).all()
    torch.testing.assert_close(dog.gain[2:4, 3:5], torch.full((2, 2), -1e8))
    level = pixel_maps(Layout({"dog": DOG, "glasses": Region(GLASSES.shapes)}))
    assert level["dog"].all()


def test_exchanging_the_glasses_exchanges_the_weights() -> None:
    left, right = Box(0.0, 0.0, 0.5, 1.0), Box(0.5, 0.0, 1.0, 1.0)
    on_left, on_right = Box(0.125, 0.25, 0.375, 0.5), Box(0.625, 0.25, 0.875, 0.5)

    def gains(first: Box, second: Box) -> list[torch.Tensor]:
        regions = {"rex": left, "fido": right, "red": first, "blue": second}
        layout = Layout({name: Region((box,), z=int(name in {"red", "blue"})) for name, box in regions.items()})
        return [region.gain for region in PaperPreset().weigh(layout, 8, 8).values()]

    before, after = gains(on_left, on_right), gains(on_right, on_left)
    assert torch.equal(before[2], after[3])
    assert torch.equal(before[3], after[2])
    assert torch.equal(before[0], after[0])


def test_a_region_that_nobody_can_see_is_refused() -> None:
    spans = {"dog": ((1, 2),), "wall": ((3, 4),)}
    hidden = Layout({"dog": Region((Box(0.2, 0.2, 0.4, 0.4),)), "wall": Region((ALL,), z=1)})
    with pytest.raises(LayoutError, match=r"nothing can be seen of region 'dog': .* wholly behind others. Raise its z"):
        LayoutGuidance(hidden, spans, ALPHAS_CUMPROD)


# --- scenes ---


def test_the_rest_is_what_the_others_leave() -> None:
    layout = Layout({"sea": Region((Rest(),)), "rex": Region((LEFT,)), "cup": Region((Box(0.5, 0.0, 1.0, 0.5),))})
    assert layout.coverage("sea", 2, 2).tolist() == [[0.0, 0.0], [0.0, 1.0]]
    sea, rex, _ = PaperPreset().weigh(layout, 2, 2).values()
    assert sea.gain.tolist() == [[0, 0], [0, 2.5]]
    assert sea.blocked.int().tolist() == [[1, 1], [1, 0]]
    assert rex.blocked.int().tolist() == [[0, 1], [0, 1]]
    assert pixel_maps(layout)["sea"].sum() == 384 * 384


def test_a_scene_below_everything_is_the_rest() -> None:
    below = Layout({"sea": Region((ALL,), z=-1), "rex": Region((LEFT,))})
    rest = Layout({"sea": Region((Rest(),)), "rex": Region((LEFT,))})
    for one, other in zip(
        PaperPreset().weigh(below, 3, 4).values(), PaperPreset().weigh(rest, 3, 4).values(), strict=True
    ):
        assert torch.equal(one.gain, other.gain)
        assert torch.equal(one.blocked, other.blocked)


def test_the_rest_of_nothing_is_refused() -> None:
    layout = Layout({"sea": Region((Rest(),)), "rex": Region((ALL,))})
    with pytest.raises(LayoutError, match="nothing can be seen of region 'sea'"):
        LayoutGuidance(layout, {"sea": ((1, 2),), "rex": ((3, 4),)}, ALPHAS_CUMPROD)
    with pytest.raises(LayoutError, match="the rest is mixed with other shapes; expected it alone"):
        Region((Rest(), LEFT))


# --- weights ---


def test_a_weight_multiplies_its_subjects_gain_alone() -> None:
    layout = Layout({"rex": Region((LEFT,), weight=1.5), "cup": Region((Box(0.5, 0.0, 1.0, 1.0),), weight=0.0)})
    spans = {"rex": ((1, 2),), "cup": ((3, 4),)}
    gain, blocked = LayoutGuidance(layout, spans, ALPHAS_CUMPROD).weights(1, 2, 5)
    assert gain.tolist() == [[0, 3.75, 0, 0, 0], [0, 0, 0, 0, 0]]
    assert blocked.int().tolist() == [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
    official = LayoutGuidance(layout, spans, ALPHAS_CUMPROD, preset=OfficialPreset()).weights(1, 2, 5).gain
    assert official[:, 1].tolist() == [3.75, -1e8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"z": 101}, "z 101 can't be used: expected -100 to 100"),
        ({"z": 10**400}, r"z 1000\d*\.\.\.\d*000 can't be used: expected -100 to 100"),
        ({"weight": -0.5}, "weight -0.5 can't be used: expected 0 to 100"),
        ({"weight": float("nan")}, "weight nan can't be used"),
        ({"feather": 0.6}, "feather 0.6 can't be used: expected 0 to 0.5"),
    ],
)
def test_numbers_of_a_region_have_ranges(settings, message) -> None:
    with pytest.raises(LayoutError, match=message):
        Region((LEFT,), **settings)


@pytest.mark.usefixtures("unchecked_types")
def test_half_a_level_is_no_height() -> None:
    with pytest.raises(LayoutError, match=r"z 1\.5 can't be used: expected a whole number"):
        Region((LEFT,), z=1.5)  # type: ignore[arg-type]


# --- JSON ---

GLASSES_MASK = mask_of([[0, 255, 255, 0], [0, 200, 90, 0]])
EVERYTHING = Layout(
    {
        "dog": Region((LEFT, TRIANGLE), z=-2),
        "glasses": Region((GLASSES_MASK,), z=1, weight=1.5, feather=0.05),
        "sea": Region((Rest(),)),
        "cup": Region((Box(0.5, 0.5, 1.0, 1.0),)),
    }
)


def test_what_version_1_cannot_say_is_version_2_and_comes_back() -> None:
    text = EVERYTHING.to_json()
    assert Layout.from_json(text) == EVERYTHING
    data = json.loads(text)
    assert data["version"] == 2
    assert data["regions"]["cup"] == [[0.5, 0.5, 1.0, 1.0]]
    assert data["regions"]["sea"] == {"shapes": ["rest"]}
    assert data["regions"]["dog"] == {"shapes": [[0, 0, 0.5, 1], {"polygon": [[0, 0], [1, 0], [0, 1]]}], "z": -2}
    embedded = base64.b64decode(data["regions"]["glasses"]["shapes"][0]["mask"]["png"])
    assert Image.open(io.BytesIO(embedded)).size == (4, 2)


def test_short_forms_of_version_2() -> None:
    text = """{"version": 2, "regions": {
        "a": [0, 0, 0.5, 1], "b": {"polygon": [[0, 0], [1, 0], [0, 1]]}, "c": "rest",
        "d": [[0, 0, 0.5, 1], {"polygon": [[0, 0], [1, 0], [0, 1]]}], "e": {"shapes": [[0, 0, 0.5, 1]], "z": 3}}}"""
    assert Layout.from_json(text).regions == {
        "a": Region((LEFT,)),
        "b": Region((TRIANGLE,)),
        "c": Region((Rest(),)),
        "d": Region((LEFT, TRIANGLE)),
        "e": Region((LEFT,), z=3),
    }


def test_mask_files_lie_beside_the_layout_and_are_embedded_when_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).save(tmp_path / "masks" / "cup.png")
    (tmp_path / "two.json").write_text('{"version": 2, "regions": {"cup": {"mask": "masks/cup.png"}}}')
    layout = Layout.load(tmp_path / "two.json")
    assert layout == Layout({"cup": Region((mask_of([[0, 255]]),))})
    layout.save(tmp_path / "alone.json")
    (tmp_path / "masks" / "cup.png").unlink()
    assert Layout.load(tmp_path / "alone.json") == layout


@pytest.mark.parametrize("path", ["/etc/passwd", "../cup.png", "a/../../cup.png", "..\\\\cup.png"])
def test_a_layout_reaches_no_other_files(tmp_path: Path, path: str) -> None:
    (tmp_path / "two.json").write_text(f'{{"version": 2, "regions": {{"cup": {{"mask": "{path}"}}}}}}')
    with pytest.raises(LayoutError, match=r"region 'cup': the mask .* expected a file in the layout's folder or below"):
        Layout.load(tmp_path / "two.json")
    with pytest.raises(LayoutError, match="load the layout from its file"):
        Layout.from_json('{"version": 2, "regions": {"cup": {"mask": "cup.png"}}}')


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ('{"mask": {"png": "*"}}', "region 'a': an embedded mask is no base64"),
        ('{"mask": {"png": "\\u00e9"}}', "region 'a': an embedded mask is no base64"),
        ('{"mask": {"png": "aGVsbG8="}}', "region 'a': an embedded mask is not a PNG, JPEG or WebP picture"),
        ('{"mask": {"jpg": ""}}', "wrong at 'regions.a.*valid string, got {'jpg': ''}"),
        ('{"mask": 3}', "wrong at 'regions.a.*valid string"),
        ('{"polygon": [[0, 0], [1, 0]]}', "region 'a': a polygon has 2 points"),
        ('{"polygon": [[0, 0], [1, 0], [1]]}', r"region 'a': a point is \[x, y\], 2 numbers; got 1"),
        ('{"polygon": [[0, 0], [1, 0], [1, "1"]]}', "wrong at 'regions.a.*valid number, got '1'"),
        ('{"shapes": []}', "region 'a': no shape"),
        ('{"shapes": "rest", "z": 1}', "wrong at 'regions.a.shapes': Input should be a valid list"),
        ('{"shapes": ["rest"], "z": 1.5}', "wrong at 'regions.a.z': Input should be a valid integer"),
        ('{"shapes": ["rest"], "z": true}', "wrong at 'regions.a.z': Input should be a valid integer"),
        ('{"shapes": ["rest"], "weight": 1e999}', "region 'a': weight inf can't be used"),
        ('{"shapes": ["rest"], "order": 1}', "wrong at 'regions.a.order': Extra inputs"),
        ('"all"', "wrong at 'regions.a.*Input should be 'rest', got 'all'"),
        ("[3]", r"region 'a': a box is \[xmin, ymin, xmax, ymax\], 4 numbers; got 1"),
        ("null", "wrong at 'regions.a.*Input should be a valid list"),
    ],
)
def test_strangers_regions_are_refused_in_one_line(region, message) -> None:
    with pytest.raises(LayoutError, match=message) as raised:
        Layout.from_json(f'{{"version": 2, "regions": {{"a": {region}}}}}')
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_a_layout_fits_a_pictures_record() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
    regions = {f"m{number}": Region((Mask.from_image(Image.fromarray(noise + number)),)) for number in range(3)}
    with pytest.raises(LayoutError, match=r"the layout takes [\d,]+ characters; expected at most 900,000. Use fewer"):
        Layout(regions)
    assert len(Layout({"m0": regions["m0"]}).to_json()) < LARGEST_JSON


# --- the preview ---


def test_the_preview_shows_shapes_and_who_is_on_top() -> None:
    layout = Layout(
        {
            "dog": Region((LEFT,)),
            "glasses": Region((Box(0.25, 0.25, 0.5, 0.75),), z=1),
            "leaf": Region((TRIANGLE,), z=-1),
        }
    )
    picture = np.asarray(draw_layout(layout, width=400, height=200)).astype(int)
    dog, glasses, leaf, background = picture[150, 40], picture[100, 150], picture[40, 250], picture[190, 390]
    uncovered = np.asarray(draw_layout(Layout({"other": Region((LEFT,), z=-5), "glasses": DOG}), width=400, height=200))
    assert (glasses == uncovered[100, 300]).all()  # nothing shines through from below
    for one, other in ((dog, glasses), (dog, leaf), (leaf, background), (dog, background)):
        assert abs(one - other).max() > 15


def test_the_preview_shows_soft_edges_fainter() -> None:
    picture = np.asarray(draw_layout(alone(mask_of([[255, 128, 0]])), width=300, height=100)).astype(int)
    full, half, none = (picture[90, column].sum() for column in (50, 180, 280))
    assert full < half - 20 < half < none - 20


def test_large_previews_are_scaled_up() -> None:
    picture = draw_layout(alone(TRIANGLE), width=2048, height=16)
    assert picture.size == (2048, 16)
    assert picture.getpixel((30, 3)) != picture.getpixel((2040, 14))
