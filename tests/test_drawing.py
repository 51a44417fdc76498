"""Pictures about pictures: regions where they are, sheets that hold what they are given, light where attention went."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cones2.drawing import Row, contact_sheet, draw_attention, draw_layout
from cones2.errors import LayoutError, PictureError
from cones2.layout import WHOLE, Box, Layout, Mask, Polygon, Region
from cones2.monitor import AttentionReading

LEFT = Box(0.0, 0.0, 0.5, 1.0)
TRIANGLE = Polygon(((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
RED, BLUE = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (64, 32), "blue")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def ink(image: Image.Image) -> int:
    return int((np.asarray(image.convert("L")) < 128).sum())


# --- layouts ---


def test_boxes_are_where_they_are() -> None:
    layout = Layout.of({"rex": (0.0, 0.25, 0.5, 1.0), "cup": (0.75, 0.5, 1.0, 1.0)})
    picture = pixels(draw_layout(layout, width=400, height=200))
    assert picture.shape == (200, 400, 3)
    background, rex, cup = picture[20, 380], picture[150, 100], picture[150, 350]
    for one, other in ((rex, background), (cup, background), (rex, cup)):
        assert abs(one - other).max() > 40
    assert (picture[20, 100] == background).all()


def test_a_picture_may_be_below() -> None:
    photo = Image.new("RGBA", (30, 60), (200, 10, 10, 255))
    picture = draw_layout(Layout.of({"rex": (0.5, 0.0, 1.0, 1.0)}), width=64, height=32, background=photo)
    assert picture.getpixel((5, 16)) == (200, 10, 10)
    assert picture.size == (64, 32)


def test_every_name_is_in_sight() -> None:
    crowd = {f"subject_{i}": (0.9, 0.9, 1.0, 1.0) for i in range(9)}
    assert draw_layout(Layout.of(crowd), width=48, height=48).size == (48, 48)


@pytest.mark.parametrize("size", [(0, 10), (10, 10_000)])
def test_drawings_have_a_sane_size(size: Any) -> None:
    with pytest.raises(LayoutError, match=f"{size[0]}x{size[1]}"):
        draw_layout(Layout({}), width=size[0], height=size[1])


def test_shapes_are_seen_and_who_is_on_top() -> None:
    glasses = Region((Box(0.25, 0.25, 0.5, 0.75),), z=1)
    layout = Layout({"dog": Region((LEFT,)), "glasses": glasses, "leaf": Region((TRIANGLE,), z=-1)})
    picture = pixels(draw_layout(layout, width=400, height=200))
    dog, worn, leaf, background = picture[150, 40], picture[100, 150], picture[40, 250], picture[190, 390]
    uncovered = pixels(draw_layout(Layout({"a": Region((LEFT,), z=-5), "b": Region((WHOLE,))}), width=400, height=200))
    assert (worn == uncovered[100, 300]).all()  # nothing shines through from below
    for one, other in ((dog, worn), (dog, leaf), (leaf, background), (dog, background)):
        assert abs(one - other).max() > 15


def test_soft_edges_are_fainter() -> None:
    mask = Mask(3, 1, bytes([255, 128, 0]))
    picture = pixels(draw_layout(Layout.of({"a": mask}), width=300, height=100))
    full, half, none = (picture[90, column].sum() for column in (50, 180, 280))
    assert full < half - 20 < half < none - 20


def test_large_drawings_are_scaled_up() -> None:
    picture = draw_layout(Layout.of({"a": TRIANGLE}), width=2048, height=16)
    assert picture.size == (2048, 16)
    assert picture.getpixel((30, 3)) != picture.getpixel((2040, 14))


def test_a_notebook_shows_a_layout() -> None:
    assert Layout.of({"rex": LEFT})._repr_png_().startswith(b"\x89PNG")


# --- contact sheets ---


def test_a_contact_sheet_by_hand() -> None:
    sheet = contact_sheet([Row("", (RED, BLUE)), Row("", (BLUE,))], cell=64)
    assert sheet.size == (8 + 64 + 4 + 64 + 8, 8 + 64 + 8 + 32 + 8)
    assert sheet.getpixel((8 + 32, 8 + 32)) == (255, 0, 0)
    assert sheet.getpixel((8 + 64 + 4 + 32, 8 + 32)) == (0, 0, 255)
    assert sheet.getpixel((8 + 64 + 4 + 32, 8 + 10)) == (255, 255, 255)  # the wide one hangs in the middle of its row
    assert sheet.getpixel((8 + 32, 8 + 64 + 8 + 16)) == (0, 0, 255)
    assert sheet.getpixel((2, 2)) == sheet.getpixel((100, 8 + 64 + 8 + 16)) == (255, 255, 255)


def test_headings_and_captions_are_drawn_and_wrapped() -> None:
    white = Image.new("RGB", (32, 32), "white")
    bare = contact_sheet([Row("", (white,))], cell=128)
    headed = contact_sheet([Row("dog", (white,))], cell=128)
    captioned = contact_sheet([Row("dog", (white, white), ("seed 0", "seed 1"))], cell=128)
    long = contact_sheet([Row("a dog and a cat " * 3, (white,))], cell=128)
    longest = contact_sheet([Row("a dog and a cat " * 300, (white,))], cell=128)
    unbroken = contact_sheet([Row("x" * 300, (white,))], cell=128)
    assert ink(bare) == 0 < ink(headed) < ink(captioned)
    assert bare.height < headed.height < captioned.height
    assert headed.height < long.height == longest.height
    assert unbroken.size == headed.size
    for sheet in (headed, captioned, longest, unbroken):
        assert ink(sheet.crop((0, 0, 16, sheet.height))) == ink(sheet.crop((sheet.width - 15, 0, *sheet.size))) == 0


def test_rows_that_can_not_be_drawn() -> None:
    with pytest.raises(PictureError, match="no rows"):
        contact_sheet([])
    with pytest.raises(PictureError, match="'dogs' has no pictures"):
        Row("dogs", ())
    with pytest.raises(PictureError, match="1 caption for 2 pictures"):
        Row("dogs", (RED, RED), ("one",))


# --- attention ---


def test_a_picture_is_lit_where_attention_went() -> None:
    reading = AttentionReading("rex", own=1.0, others={}, outside=0.0, heat=torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    white = Image.new("RGB", (64, 48), "white")
    sheet = draw_attention(white, [reading, reading], Layout.of({"cup": (0.0, 0.0, 0.1, 0.1)}))
    light = np.asarray(sheet.convert("L")).astype(int)
    assert sheet.width > 2 * 256
    for left in (32, 32 + 256 + 16):  # two pictures of 256 x 192 at the sheet's bottom
        picture = light[:, left : left + 256]
        rows = np.flatnonzero(picture[:, 128] < 200)
        low = rows.max()
        assert picture[low - 100, 60] < 0.3 * 255
        assert picture[low - 10, 240] > 0.8 * 255
    with pytest.raises(PictureError):
        draw_attention(white, [], Layout({}))
