"""Boxes from words, and from nothing but who there is."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cones2.errors import LayoutError
from cones2.layout import WHOLE, Box, Layout, Region, Rest
from cones2.places import auto_layout, place_layout
from cones2.subjects import PROPORTIONS

CLASSES = {"rex": "dog", "cup": "mug", "herbie": "car", "shades": "sunglasses", "bo": "owl"}
ROUNDING = 2e-4


def placed(**words: str) -> dict[str, Box]:
    layout = place_layout({name: text.replace("_", " ") for name, text in words.items()}, class_words=CLASSES)
    return {name: region.bounds for name, region in layout.regions.items()}


def automatic(*names: str, **settings: Any) -> dict[str, Box]:
    return {name: region.bounds for name, region in auto_layout(names, CLASSES, **settings).regions.items()}


def size(box: Box) -> tuple[float, float]:
    return box.xmax - box.xmin, box.ymax - box.ymin


def center(box: Box) -> tuple[float, float]:
    return (box.xmin + box.xmax) / 2, (box.ymin + box.ymax) / 2


def apart(one: Box, other: Box) -> bool:
    return one.xmin > other.xmax or one.xmax < other.xmin or one.ymin > other.ymax or one.ymax < other.ymin


def all_apart(boxes: dict[str, Box]) -> bool:
    found = list(boxes.values())
    return all(apart(one, other) for number, one in enumerate(found) for other in found[:number])


# --- words ---


def test_left_and_right_by_hand() -> None:
    # Halves with gaps of 0.04 leave 0.42: of a car's box that is the width, of an owl's the height. Both stand on 0.9.
    car, owl = placed(herbie="left", bo="right").values()
    assert car == Box(0.04, round(0.9 - 0.42 / 1.62, 4), 0.46, 0.9)
    assert owl == Box(round(0.75 - 0.21 * 0.79, 4), 0.48, round(0.75 + 0.21 * 0.79, 4), 0.9)


@pytest.mark.parametrize(
    ("words", "area"),
    [
        ("left", Box(0.0, 0.0, 0.5, 1.0)),
        ("on the right side", Box(0.5, 0.0, 1.0, 1.0)),
        ("Top Right", Box(0.5, 0.0, 1.0, 0.5)),
        ("bottom-left corner", Box(0.0, 0.5, 0.5, 1.0)),
        ("center", Box(0.25, 0.25, 0.75, 0.75)),
        ("top center", Box(0.25, 0.0, 0.75, 0.5)),
        ("middle left", Box(0.0, 0.25, 0.5, 0.75)),
        ("in front", Box(0.0, 0.5, 1.0, 1.0)),
        ("front left", Box(0.0, 0.0, 0.5, 1.0)),
        ("behind right", Box(0.5, 0.0, 1.0, 1.0)),
        ("top", Box(0.0, 0.0, 1.0, 0.5)),
    ],
)
def test_words_are_areas(words: Any, area: Any) -> None:
    box = place_layout({"it": words}, class_words={}).regions["it"].bounds
    assert area.xmin < box.xmin < box.xmax < area.xmax
    assert area.ymin < box.ymin < box.ymax < area.ymax
    assert center(box)[0] == pytest.approx(center(area)[0])
    assert size(box)[0] == pytest.approx(size(box)[1], abs=ROUNDING)  # of a class that nobody knows, square


@pytest.mark.parametrize(
    ("words", "region"),
    [
        ("all", Region((WHOLE,))),
        ("everywhere", Region((WHOLE,))),
        ("behind", Region((WHOLE,), z=-1)),
        ("in the background", Region((WHOLE,), z=-1)),
        ("rest", Region((Rest(),))),
    ],
)
def test_scenes_fill_the_picture(words: Any, region: Any) -> None:
    assert place_layout({"sea": words}, class_words={}).regions == {"sea": region}


def test_what_is_in_front_is_on_top() -> None:
    layout = place_layout({"a": "front", "b": "behind left", "c": "left"}, class_words={})
    assert [region.z for region in layout.regions.values()] == [1, -1, 0]


@pytest.mark.parametrize(
    ("words", "got"),
    [
        ("nowhere", "'nowhere'"),
        ("", "nothing"),
        ("on the", "nothing"),
        ("left right", "'left' or 'right'"),
        ("top bottom left", "'top' or 'bottom'"),
        ("rest left", "'rest left'"),
    ],
)
def test_words_that_say_no_place(words: Any, got: Any) -> None:
    with pytest.raises(LayoutError, match=got):
        place_layout({"it": words}, class_words={})


def test_the_middle_makes_room_for_itself() -> None:
    row = placed(rex="left", cup="center", herbie="right")
    assert all_apart(row)
    assert len({box.ymax for box in row.values()}) == 1
    corners = placed(rex="top_left", cup="top_right", herbie="bottom_left", bo="bottom_right", shades="center")
    assert all_apart(corners)
    assert center(corners["shades"]) == pytest.approx((0.5, 0.5), abs=0.1)


def test_who_says_no_height_is_out_of_the_way() -> None:
    assert all_apart(placed(rex="left", cup="top_left"))
    assert all_apart(placed(rex="left", cup="bottom"))
    assert all_apart(placed(rex="top", cup="top_left", bo="top_right"))


def test_who_has_the_same_place_shares_it() -> None:
    boxes = placed(rex="left", bo="left", cup="right")
    assert all_apart(boxes)
    assert max(boxes["rex"].xmax, boxes["bo"].xmax) < 0.5


def test_what_is_given_stays() -> None:
    mine = Layout({"rex": Region((Box(0.0, 0.0, 0.55, 1.0),), weight=2.0)})
    layout = place_layout({"cup": "right"}, mine, class_words={})
    assert layout.names == ("rex", "cup")
    assert layout.regions["rex"] == mine.regions["rex"]


where = st.sampled_from(
    ["left", "right", "center", "top", "bottom", "top left", "top right", "bottom left", "bottom right", "middle left"]
)


@settings(max_examples=100)
@given(st.lists(where, min_size=1, max_size=9), st.floats(0.3, 3))
def test_boxes_from_any_words_are_apart_and_shaped_like_their_subjects(words: Any, aspect: Any) -> None:
    class_words = {f"s{i}": list(PROPORTIONS)[i] for i in range(len(words))}
    layout = place_layout({f"s{i}": text for i, text in enumerate(words)}, class_words=class_words, aspect=aspect)
    boxes = {name: region.bounds for name, region in layout.regions.items()}
    assert all_apart(boxes)
    for name, box in boxes.items():
        width, height = size(box)
        assert width * aspect == pytest.approx(height * PROPORTIONS[class_words[name]], abs=1e-3)


# --- nothing ---


def test_two_stand_side_by_side() -> None:
    dog, car = automatic("rex", "herbie").values()
    assert dog.ymax == car.ymax == 0.9
    assert size(dog)[0] == pytest.approx(size(car)[0], abs=ROUNDING)
    assert dog.xmax < car.xmin


@settings(max_examples=60)
@given(st.integers(1, 40), st.floats(0.2, 5))
def test_everybody_is_apart_and_of_one_scale(count: Any, aspect: Any) -> None:
    boxes = automatic(*(f"s{i}" for i in range(count)), aspect=aspect)
    assert len(boxes) == count
    assert all_apart(boxes)
    heights = [size(box)[1] for box in boxes.values()]
    assert max(heights) - min(heights) < ROUNDING


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 3), (9, 3)])
def test_rows_keep_everybody_large(count: Any, rows: Any) -> None:
    boxes = automatic(*(f"s{i}" for i in range(count)))
    assert len({box.ymax for box in boxes.values()}) == rows
    assert min(min(size(box)) for box in boxes.values()) >= 0.26


def test_wide_pictures_have_one_row() -> None:
    assert len({box.ymax for box in automatic("a", "b", "c", "d", aspect=3.0).values()}) == 1


def test_the_others_go_beside_what_is_given() -> None:
    for taken in (Box(0.0, 0.0, 0.4, 1.0), Box(0.1, 0.7, 0.9, 0.9)):
        boxes = automatic("a", "b", "mine", given=Layout.of({"mine": taken}))
        assert boxes["mine"] == taken
        assert all_apart(boxes)
    scene = Layout.of({"sea": "rest"})
    assert automatic("sea", "a", given=scene)["a"] == automatic("a")["a"]
    full = Layout.of({"mine": (0.1, 0.1, 0.9, 0.9)})
    assert automatic("a", given=full)["a"] == automatic("a")["a"]  # there is no room beside


def test_nobody_takes_no_place() -> None:
    assert auto_layout([], {}) == place_layout({}, class_words={}) == Layout({})
