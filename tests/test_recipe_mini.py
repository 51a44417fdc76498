"""The pure functions of `recipes/mini`: the world, its sentences, the judge's matching and rates, the cases."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

RECIPE = Path(__file__).parents[1] / "recipes" / "mini"
sys.path.insert(0, str(RECIPE))


from cones2.evaluation.boxes import fits, holds  # noqa: E402
from cones2.evaluation.second_judge import colour_histograms  # noqa: E402
from cones2.judge import WIDTH, Corners, Judge, Sighting, overlap  # noqa: E402
from cones2.prompts import parse_prompt  # noqa: E402
from disc_world import disc_world  # noqa: E402
from evaluation_cases import any_known, draw_boxes, join, mention, scene_case  # noqa: E402
from judge import WORLD, load_judge, save_judge  # noqa: E402
from judge_data import Block, other_palette, other_pattern, other_sprite, other_warp, visible_box  # noqa: E402
from metrics import (  # noqa: E402
    Rate,
    Ratio,
    Wanted,
    all_present,
    at_place,
    gradients,
    in_right_boxes,
    is_nearest,
    match,
    steepness,
    wilson,
)
from model_card import START, card, gates_table, table  # noqa: E402
from sentences import describe  # noqa: E402
from shipped import measured_hash  # noqa: E402
from train_judge import heat_targets, identity_loss  # noqa: E402
from vocabulary import CLASSES, lexicon  # noqa: E402
from world import World  # noqa: E402

DOG, CAT = 0, 1
LEFT, RIGHT = (0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75)
ONE, TWO = torch.eye(WIDTH)[:2]


def sighting(
    class_index: int = DOG, box: Corners = LEFT, embedding: torch.Tensor = ONE, score: float = 0.9
) -> Sighting:
    return Sighting(class_index, score, box, embedding)


@pytest.fixture(scope="module")
def world() -> World:
    return disc_world()


# The world and its sentences


def test_scenes_hold_objects_of_the_trained_styles_inside_the_picture(world: World) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = world.scene(rng)
        assert 1 <= len(scene.objects) <= 4
        for placed in scene.objects:
            assert placed.instance.sprite % 3 != 2
            assert 0 <= placed.x <= 1


def test_later_objects_cover_earlier_ones_and_masks_never_add_up_to_more_than_1(world: World) -> None:
    rng = np.random.default_rng(1)
    rendered = world.render([world.scene(rng) for _ in range(8)], 32)
    assert rendered.images.shape == (8, 3, 32, 32)
    assert 0 <= rendered.images.min() <= rendered.images.max() <= 1
    assert rendered.masks.sum(1).max() <= 1 + 1e-5


def test_a_scene_is_drawn_the_same_from_the_same_seed(world: World) -> None:
    one, other = (world.render([world.scene(np.random.default_rng(7))], 32).images for _ in range(2))
    assert torch.equal(one, other)


def test_captions_use_only_the_lexicon_and_say_where_each_noun_is(world: World) -> None:
    rng, words = np.random.default_rng(2), set(lexicon())
    for _ in range(200):
        scene = world.scene(rng)
        caption = describe(scene, rng)
        assert set(caption.words) <= words
        assert len(caption.words) <= 46  # the window, less start and end
        for placed, noun in zip(scene.objects, caption.nouns, strict=True):
            assert " ".join(caption.words[k] for k in noun) == CLASSES[placed.instance.class_index].word


# Look-alikes


def test_lookalikes_differ_in_just_what_they_say(world: World) -> None:
    rng = np.random.default_rng(3)
    instance = world.instance(rng, DOG)
    palette, sprite = other_palette(world, rng, instance), other_sprite(world, rng, instance)
    warp, pattern = other_warp(rng, instance), other_pattern(rng, instance)
    assert palette.sprite == instance.sprite
    assert not np.allclose(palette.palette, instance.palette)
    assert sprite.sprite != instance.sprite
    assert np.array_equal(sprite.palette, instance.palette)
    assert np.linalg.norm(warp.warp - instance.warp) > 0.25
    assert replace(pattern, pattern=instance.pattern) == instance


def test_colour_histograms_tell_colours_and_nothing_else() -> None:
    red, blue = torch.zeros(2, 3, 128, 128)
    red[0], blue[2] = 1, 1
    images, boxes = torch.stack([red, blue, red]), torch.tensor([LEFT, LEFT, RIGHT])
    vectors = colour_histograms(images, boxes, torch.arange(3))
    assert torch.allclose(vectors @ vectors.T, torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]]))


# Boxes and matching


def test_visible_box_by_hand() -> None:
    mask = torch.zeros(10, 10)
    mask[2:5, 3:9] = 1
    assert visible_box(mask) == (0.3, 0.2, 0.9, 0.5)
    assert visible_box(torch.zeros(10, 10)) is None


def test_a_box_fits_with_its_centre_inside_and_an_overlap_of_two_fifths() -> None:
    assert fits((0.0, 0.25, 0.4, 0.75), LEFT)
    assert not fits((0.0, 0.25, 0.15, 0.75), LEFT)
    assert not fits((0.35, 0.25, 0.85, 0.75), LEFT)
    assert fits((0.35, 0.25, 0.85, 0.75), None)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([sighting(DOG), sighting(CAT, RIGHT)], True),
        ([sighting(DOG)], False),
        ([sighting(DOG), sighting(CAT), sighting(DOG, RIGHT)], False),
        ([sighting(DOG), sighting(CAT), sighting(5)], True),
    ],
)
def test_present_is_found_once_with_the_right_class(seen: list[Sighting], expected: bool) -> None:
    assert all_present(seen, [Wanted(DOG), Wanted(CAT)]) is expected


def test_two_of_one_class_are_both_wanted() -> None:
    assert all_present([sighting(), sighting(box=RIGHT)], [Wanted(DOG), Wanted(DOG)])
    assert not all_present([sighting()], [Wanted(DOG), Wanted(DOG)])


def test_a_second_copy_outside_spoils_the_right_box() -> None:
    wanted = [Wanted(DOG, LEFT)]
    assert in_right_boxes([sighting()], wanted) == [True]
    assert in_right_boxes([sighting(), sighting(box=RIGHT)], wanted) == [False]
    assert in_right_boxes([sighting(box=RIGHT)], wanted) == [False]
    assert in_right_boxes([], wanted) == [False]


def test_two_of_one_class_are_matched_by_identity_not_by_place() -> None:
    wanted = [Wanted(DOG, LEFT, ONE), Wanted(DOG, RIGHT, TWO)]
    swapped = [sighting(box=LEFT, embedding=TWO), sighting(box=RIGHT, embedding=ONE)]
    assert [one and one.box for one in match(swapped, wanted)] == [RIGHT, LEFT]
    assert in_right_boxes(swapped, wanted) == [False, False]
    assert in_right_boxes([sighting(embedding=ONE), sighting(box=RIGHT, embedding=TWO)], wanted) == [True, True]


def test_identity_is_asked_of_who_stands_at_the_place() -> None:
    stranger = sighting(box=LEFT, embedding=TWO, score=0.4)
    assert at_place([sighting(box=RIGHT), stranger], Wanted(DOG, LEFT, ONE)) is stranger
    assert at_place([sighting(box=RIGHT)], Wanted(DOG, LEFT, ONE)) is None
    assert is_nearest(ONE, ONE, TWO[None])
    assert not is_nearest(TWO, ONE, TWO[None])


@pytest.mark.parametrize(
    ("relation", "one", "other", "expected"),
    [
        ("wearing", (0.2, 0.3, 0.8, 0.9), (0.3, 0.1, 0.7, 0.35), True),
        ("wearing", (0.2, 0.3, 0.6, 0.7), (0.7, 0.7, 0.9, 0.9), False),
        ("on", (0.3, 0.1, 0.7, 0.5), (0.3, 0.5, 0.7, 0.9), True),
        ("on", (0.3, 0.5, 0.7, 0.9), (0.3, 0.1, 0.7, 0.5), False),
        ("next to", (0.1, 0.3, 0.5, 0.7), (0.5, 0.3, 0.9, 0.7), True),
        ("next to", (0.3, 0.1, 0.7, 0.5), (0.3, 0.5, 0.7, 0.9), False),
    ],
)
def test_relations_of_boxes(relation: str, one: Corners, other: Corners, expected: bool) -> None:
    assert holds(relation, one, other) is expected


# Rates


def test_wilson_against_a_worked_example() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 1
    assert wilson(0, 0) == (0, 1)


def test_the_card_shows_share_interval_trials_and_chance() -> None:
    lines = table({"identity": Rate(8, 10, 1 / 16).as_json(), "present": Rate(5, 10).as_json()}).splitlines()
    assert lines[2] == "| identity | 80.0 % | 49.0 - 94.3 | 10 | 6.2 % |"
    assert lines[3].endswith("| 10 |  |")


def test_a_ratio_of_means_and_its_interval() -> None:
    ours, theirs = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    found = Ratio.of(ours, theirs)
    assert found.share == 1
    assert found.interval == pytest.approx((0.5, 1.5))  # both draws the first, or both the second
    assert Ratio.of(ours, 2 * ours).interval == pytest.approx((0.5, 0.5))
    assert found.as_json()["trials"] == 2


def test_a_blurred_edge_has_the_gradient_of_a_sharp_one_and_is_less_steep() -> None:
    sharp, blurred = torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)
    sharp[..., 4:] = 1
    blurred[..., 3:] = torch.tensor([1 / 3, 2 / 3, 1, 1, 1])
    images = torch.stack([sharp, blurred])
    assert gradients(images).tolist() == pytest.approx([1 / 7, 1 / 7])
    assert steepness(images).tolist() == pytest.approx([1, 1 / 3])
    assert steepness(torch.zeros(1, 3, 8, 8)).tolist() == [0]


def test_a_gate_that_fails_says_so() -> None:
    gate = {"name": "swap", "figure": 0.5, "least": 0.8, "detail": "few"}
    passed, failed = gates_table([gate | {"figure": 0.8}, gate]).splitlines()[2:]
    assert passed == "| swap | 0.80 | 0.8 | passed | few |"
    assert failed == "| swap | 0.50 | 0.8 | **failed** | few |"


def test_the_model_card_is_what_was_measured_on_these_weights() -> None:
    page = (RECIPE.parents[1] / "docs" / "mini.md").read_text(encoding="utf-8")
    assert page.partition(START)[2].strip() == card(RECIPE / "results", measured_hash()).strip()


def test_what_was_measured_on_other_weights_is_named_and_not_shown(tmp_path: Path) -> None:
    for stage, weights in (("plain", "new"), ("sweep", "old")):
        result = {"model": weights, "rates": {stage: Rate(8, 10).as_json()}}
        (tmp_path / f"{stage}.json").write_text(json.dumps(result))
    shown = card(tmp_path, "new")
    assert "| plain | 80.0 %" in shown
    assert "| sweep |" not in shown
    assert "`sweep`" in shown
    assert "`plain`" not in shown


# Cases


def test_boxes_are_apart_inside_the_picture_and_of_the_shape_asked_for() -> None:
    rng = np.random.default_rng(4)
    for _ in range(20):
        boxes = draw_boxes(rng, [(1, 1), (1, 0.5), (1, 1), (0.7, 1)])
        assert all(0 <= min(box) <= max(box) <= 1 for box in boxes)
        assert all(overlap(one, other) == 0 for one in boxes for other in boxes if one is not other)
        assert (boxes[1][2] - boxes[1][0]) / (boxes[1][3] - boxes[1][1]) == pytest.approx(2, rel=0.02)


def test_phrases_have_the_class_words_article() -> None:
    assert mention(2, "first") == "an {first}"
    assert mention(2, "first", "red") == "a red {first}"
    assert mention(4, "first") == "{first}"
    assert [join(["a"]), join(["a", "b"]), join(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_a_case_names_each_subject_once_and_gives_it_a_box() -> None:
    rng = np.random.default_rng(5)
    case = scene_case(rng, any_known(rng, 3), (0, 1), in_boxes=True)
    parsed = parse_prompt(case.prompt, {name: subject.class_word for name, subject in case.subjects.items()})
    assert case.layout is not None
    assert [mention_.name for mention_ in parsed.mentions] == list(case.layout.names)
    assert [CLASSES[wanted.class_index].word for wanted in case.wanted] == [
        subject.class_word for subject in case.subjects.values()
    ]
    assert all(wanted.box is not None for wanted in case.wanted)


# The judge


def test_an_identity_is_told_by_its_other_drawing() -> None:
    identities = torch.tensor([0, 1, 0, 1, -5])
    right = torch.eye(WIDTH)[[0, 1, 0, 1, 2]]
    wrong = torch.eye(WIDTH)[[0, 1, 1, 0, 2]]
    assert identity_loss(right, identities) < 0.01 < identity_loss(wrong, identities)


def test_heat_is_1_at_the_centres_cell_and_only_for_the_class() -> None:
    zero, box = torch.tensor([0]), torch.tensor([(0.25, 0.5, 0.55, 0.8)])
    targets = heat_targets(Block(torch.zeros(1, 3, 128, 128), zero, zero, torch.tensor([CAT]), zero, zero, box))
    assert (targets == 1).nonzero().tolist() == [[0, CAT, 10, 6]]
    assert targets[0, DOG].max() == 0


def test_the_judge_comes_back_from_its_file_within_half_precision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    judge = Judge(WORLD, threshold=0.4).eval()
    save_judge(judge, tmp_path)
    loaded, images = load_judge(tmp_path), torch.rand(2, 3, 128, 128)
    assert loaded.threshold == 0.4
    with torch.no_grad():
        assert torch.allclose(loaded.detector(images).heat, judge.detector(images).heat, atol=0.05)


def test_a_judge_of_another_world_is_refused(tmp_path: Path) -> None:
    save_judge(Judge(WORLD.model_copy(update={"classes": ("dog", "gnu")})), tmp_path)
    with pytest.raises(SystemExit, match="trained for another world"):
        load_judge(tmp_path)
