"""Layouts from words, from what prompts say, and from nothing but a prompt's order."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cones2.arranging.automatic import auto_layout, place_subjects
from cones2.arranging.grids import free_area, spread
from cones2.arranging.relations import contradictions, find_relations, warn_of_contradictions
from cones2.arranging.words import Place, read_place
from cones2.errors import Cones2Warning, LayoutError, PromptError
from cones2.layout.box import Box
from cones2.layout.region import Region
from cones2.layout.regions import Layout
from cones2.layout.shapes import Rest
from cones2.prompts import ParsedPrompt, parse_prompt, placeholders

WHOLE = Box(0.0, 0.0, 1.0, 1.0)


def parsed(prompt: str) -> ParsedPrompt:
    return parse_prompt(prompt, dict.fromkeys(placeholders(prompt), "thing"))


def box_of(layout: Layout, name: str) -> Box:
    return layout.regions[name].bounds


def holds(outer: Box, inner: Box) -> bool:
    across = outer.xmin <= inner.xmin and inner.xmax <= outer.xmax
    return across and outer.ymin <= inner.ymin and inner.ymax <= outer.ymax


# --- words ---


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("left", Place(Box(0.0, 0.0, 0.5, 1.0))),
        ("on the right side", Place(Box(0.5, 0.0, 1.0, 1.0))),
        ("Top Right", Place(Box(0.5, 0.0, 1.0, 0.5))),
        ("bottom-left corner", Place(Box(0.0, 0.5, 0.5, 1.0))),
        ("center", Place(Box(0.25, 0.25, 0.75, 0.75))),
        ("top center", Place(Box(0.25, 0.0, 0.75, 0.5))),
        ("middle left", Place(Box(0.0, 0.25, 0.5, 0.75))),
        ("behind", Place(WHOLE, -1, is_scene=True)),
        ("behind right", Place(Box(0.5, 0.0, 1.0, 1.0), -1)),
        ("in front", Place(Box(0.0, 0.5, 1.0, 1.0), 1)),
        ("front left", Place(Box(0.0, 0.0, 0.5, 1.0), 1)),
        ("all", Place(WHOLE, 0, is_scene=True)),
        ("rest", Place(None, is_scene=True)),
    ],
)
def test_words_are_places(words, place) -> None:
    assert read_place(words) == place


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere", "'nowhere' says no place: expected words of left, right, top, upper"),
        ("", "nothing says no place"),
        ("on the", "nothing says no place"),
        ("left right", "'left right' says two places: leave 'left' or 'right' out"),
        ("top bottom left", "leave 'top' or 'bottom' out"),
        ("rest left", "'rest left' says two places: expected 'rest' alone"),
    ],
)
def test_words_that_say_no_place(words, message) -> None:
    with pytest.raises(LayoutError, match=message):
        read_place(words)


def test_who_has_the_same_place_shares_it() -> None:
    layout = place_subjects({"rex": "left", "cup": "top right", "hat": "left", "sea": "rest"})
    rex, hat = box_of(layout, "rex"), box_of(layout, "hat")
    assert rex.xmax <= 0.5
    assert hat.xmax <= 0.5
    assert rex.ymax < hat.ymin or rex.xmax < hat.xmin
    assert layout.regions["sea"] == Region((Rest(),))


# --- grids ---


@settings(max_examples=60)
@given(st.integers(1, 40), st.floats(0.2, 5))
def test_boxes_are_apart_and_of_one_size(count, aspect) -> None:
    boxes = spread(count, aspect=aspect)
    assert len(boxes) == count
    for number, one in enumerate(boxes):
        for other in boxes[:number]:
            assert one.xmin > other.xmax or one.xmax < other.xmin or one.ymin > other.ymax or one.ymax < other.ymin
    heights = [box.ymax - box.ymin for box in boxes]
    assert max(heights) - min(heights) < 1e-3


def test_rows_suit_the_picture() -> None:
    assert spread(1) == [Box(0.04, 0.04, 0.96, 0.96)]
    assert spread(2) == [Box(0.04, 0.04, 0.46, 0.96), Box(0.54, 0.04, 0.96, 0.96)]
    assert len({box.ymin for box in spread(3)}) == 1
    assert len({box.ymin for box in spread(4)}) == 2
    assert len({box.ymin for box in spread(4, aspect=3.0)}) == 1
    assert len({box.ymin for box in spread(2, aspect=0.3)}) == 2


def test_the_free_area_is_the_largest_strip() -> None:
    assert free_area([Box(0.0, 0.0, 0.4, 1.0)]) == Box(0.4, 0.0, 1.0, 1.0)
    assert free_area([Box(0.1, 0.7, 0.9, 0.9)]) == Box(0.0, 0.0, 1.0, 0.7)
    assert free_area([Box(0.1, 0.1, 0.9, 0.9)]) == WHOLE
    assert free_area([]) == WHOLE


# --- what prompts say ---


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ("a {rex} to the left of a {cup}", "left", "to the left of"),
        ("a {rex} sits left of the small red {cup}", "left", "left of"),
        ("a {rex}, to the right of my {cup}", "right", "to the right of"),
        ("a {rex} on top of a {cup}", "above", "on top of"),
        ("a {rex} flying above the {cup}", "above", "above"),
        ("a {rex} under a {cup}", "below", "under"),
        ("a {rex} in front of a {cup}", "front", "in front of"),
        ("a {rex} behind {cup}", "behind", "behind"),
        ("a {rex} wearing {cup}", "wearing", "wearing"),
        ("a {rex} Wearing a funny {cup}", "wearing", "wearing"),
        ("a {rex} holding a {cup}", "holding", "holding"),
        ("a {rex} in a {cup}", "in", "in"),
        ("a {rex} sitting on a {cup}", "on", "on"),
    ],
)
def test_relations_between_neighbours(prompt, kind, words) -> None:
    (relation,) = find_relations(parsed(prompt))
    assert (relation.first, relation.second, relation.kind, relation.words) == ("rex", "cup", kind, words)


@pytest.mark.parametrize(
    "prompt",
    [
        "a {rex} and a {cup}",
        "a {rex} on the beach and a {cup}",
        "a {rex} on the left and a {cup} on the right",
        "a {rex} above the sea with a {cup}",
        "a {rex} to the left of a tree near a {cup}",
        "a {rex} overlooking a {cup}",
        "a {rex} under {rex}",
    ],
)
def test_what_says_nothing_of_two_subjects(prompt) -> None:
    assert find_relations(parsed(prompt)) == []


@pytest.mark.parametrize(
    ("said", "told"),
    [("to the left of", "to the right"), ("right of", "to the left"), ("on top of", "below it"), ("below", "above it")],
)
def test_a_layout_the_other_way_round_is_warned_of(said, told) -> None:
    first, second = Box(0.6, 0.6, 0.9, 0.9), Box(0.1, 0.1, 0.4, 0.4)
    if said in {"right of", "below"}:
        first, second = second, first
    prompt = parsed(f"a {{rex}} {said} a {{cup}}")
    wrong = Layout({"rex": Region((first,)), "cup": Region((second,))})
    right = Layout({"rex": Region((second,)), "cup": Region((first,))})
    with pytest.warns(Cones2Warning, match=f"the prompt has 'rex' {said} 'cup', but its region is {told}: .* Move one"):
        warn_of_contradictions(prompt, wrong)
    assert contradictions(prompt, right) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_contradictions(prompt, right)
        warn_of_contradictions(prompt, None)


def test_only_what_has_a_place_of_its_own_can_contradict() -> None:
    prompt = parsed("a {rex} above a {sea}, left of {cup}")
    low = Region((Box(0.0, 0.8, 1.0, 1.0),))
    assert contradictions(prompt, Layout({"rex": low, "sea": Region((Rest(),))})) == []
    assert contradictions(prompt, Layout({"rex": low})) == []


# --- from nothing ---


def test_the_prompts_order_is_the_order_from_left_to_right() -> None:
    layout = auto_layout("a {cup}, a {rex} and a {hat} on the beach, the {rex} smiling")
    assert layout.names == ("cup", "rex", "hat")
    lefts = [box_of(layout, name).xmin for name in layout.names]
    assert lefts == sorted(lefts)


def test_who_wears_is_below_what_is_worn() -> None:
    layout = auto_layout("a {rex} wearing {shades} and a {fido} wearing {goggles}")
    for wearer, worn in (("rex", "shades"), ("fido", "goggles")):
        assert holds(box_of(layout, wearer), box_of(layout, worn))
        assert layout.regions[worn].z == layout.regions[wearer].z + 1
    assert box_of(layout, "rex").xmax < box_of(layout, "fido").xmin


def test_what_nests_shares_a_place() -> None:
    sofa = auto_layout("a {rex} on a {sofa} and a {cup}")
    assert box_of(sofa, "rex").center[1] < box_of(sofa, "sofa").center[1]
    assert sofa.regions["rex"].z > sofa.regions["sofa"].z
    assert box_of(sofa, "rex").ymax > box_of(sofa, "sofa").ymin  # they touch
    car = auto_layout("a {rex} in a {car}")
    assert holds(box_of(car, "car"), box_of(car, "rex"))
    hidden = auto_layout("a {rex} behind a {car}")
    assert hidden.regions["rex"].z < hidden.regions["car"].z
    chain = auto_layout("a {hat} on a {rex} on a {sofa}")
    assert [region.z for region in chain.regions.values()] == [2, 1, 0]


@pytest.mark.parametrize("between", ["holding", "wearing", "on", "in", "holding a {more} wearing"])
def test_who_stays_with_somebody_behind_is_behind_too(between) -> None:
    layout = auto_layout(f"a {{rex}} {between} a {{cup}} behind a {{car}}")
    levels = {name: region.z for name, region in layout.regions.items()}
    assert levels.pop("car") == 0
    assert max(levels.values()) < 0
    front = auto_layout("a {cup} behind a {rex} in front of a {car}")
    assert [front.regions[name].z for name in ("car", "cup", "rex")] == [0, 1, 2]


def test_words_of_the_prompt_place() -> None:
    layout = auto_layout(
        "a {rex} on the right and a {cup} sleeping in the top left corner, a {fido}, a {sea} in the background"
    )
    assert box_of(layout, "rex").xmin >= 0.5
    assert box_of(layout, "cup").xmax <= 0.5
    assert box_of(layout, "cup").ymax <= 0.5
    assert layout.regions["sea"] == Region((WHOLE,), z=-1)
    street = auto_layout("a {rex} in the middle of the street and a {cup}")
    assert street == auto_layout("a {rex} and a {cup}")


def test_words_of_the_user_come_before_those_of_the_prompt() -> None:
    layout = auto_layout("a {rex} on the right and a {cup}", places={"rex": "left", "cup": "rest"})
    assert box_of(layout, "rex").xmax <= 0.5
    assert layout.regions["cup"].is_rest


def test_what_is_given_stays_and_the_others_go_beside_it() -> None:
    mine = Layout({"rex": Region((Box(0.0, 0.0, 0.55, 1.0),), weight=2.0)})
    layout = auto_layout("a {cup} and a {rex} wearing {shades}", given=mine)
    assert layout.regions["rex"] == mine.regions["rex"]
    assert box_of(layout, "cup").xmin >= 0.55
    assert holds(box_of(mine, "rex"), box_of(layout, "shades"))


phrases = st.sampled_from(
    ["and", "to the left of", "right of", "above", "under", "on top of", "wearing", "holding", "in", "on", "behind"]
)


@settings(max_examples=80)
@given(st.lists(phrases, max_size=5), st.floats(0.3, 3))
def test_any_prompt_has_a_layout_that_does_not_contradict_it(between, aspect) -> None:
    words = [f"a {{s{number}}} {phrase} " for number, phrase in enumerate(between)]
    prompt = "".join(words) + f"a {{s{len(between)}}}"
    layout = auto_layout(prompt, aspect=aspect)
    assert set(layout.names) == set(placeholders(prompt))
    assert contradictions(parsed(prompt), layout) == []
    assert all(region.cover.any() for region in layout.shown(8, 8).values())


def test_a_circle_of_nests_ends() -> None:
    layout = auto_layout("a {rex} in a {cup} in a {rex}")
    assert set(layout.names) == {"rex", "cup"}


def test_places_for_nobody() -> None:
    with pytest.raises(LayoutError, match="a place is for 'fido', whom the prompt does not mention; it has: rex"):
        auto_layout("a {rex}", places={"fido": "left"})
    with pytest.raises(PromptError, match="unmatched"):
        auto_layout("a {rex")
    assert auto_layout("a beach") == Layout({})
