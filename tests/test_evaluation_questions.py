"""The user study by a judge whose errors are known, and a second judge that has learned nothing."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from cones2.errors import SettingsError
from cones2.evaluation.matching import Seen, Wanted
from cones2.evaluation.measures import look_at
from cones2.evaluation.questions import (
    Reliability,
    answer,
    calibrate,
    corrected,
    corrected_interval,
    disagreements,
    judged_unequally,
    kappa,
)
from cones2.evaluation.second_judge import describe, shape_moments

DOG, CAT = 0, 1


def seen(*classes: int) -> Seen:
    count = len(classes)
    return Seen(np.array(classes, dtype=int), np.ones(count), np.zeros((count, 4)), np.eye(4)[:count])


def wanted(*classes: int) -> Wanted:
    return Wanted(np.array(classes), np.eye(4)[: len(classes)], (np.eye(4)[3:],) * len(classes))


def answers(picture: Seen, asked: Wanted, scene: bool | None = None) -> tuple[list[bool], list[bool], bool]:
    found = answer(look_at(picture, asked), picture, asked, scene)
    return found.image.tolist(), found.text.tolist(), found.all_yes


def test_a_question_for_each_subject_and_each_class() -> None:
    assert answers(seen(DOG, CAT), wanted(DOG, CAT)) == ([True, True], [True, True], True)
    assert answers(seen(DOG), wanted(DOG, CAT)) == ([True, False], [True, False], False)
    assert answers(seen(DOG, CAT), wanted(DOG, CAT), scene=False)[1:] == ([True, True, False], False)


def test_nobody_is_asked_about_a_subject_that_could_not_be_another() -> None:
    alone = Wanted(np.array([DOG, CAT]), np.eye(4)[:2], (np.eye(4)[3:], np.zeros((0, 4))))
    assert answers(seen(DOG, CAT), alone)[:2] == ([True], [True, True])


def test_two_of_a_class_are_one_question_for_their_count() -> None:
    assert answers(seen(DOG, DOG), wanted(DOG, DOG))[1] == [True]
    assert answers(seen(DOG), wanted(DOG, DOG))[1] == [False]
    assert answers(seen(DOG, DOG, DOG), wanted(DOG, DOG))[1] == [False]
    assert answers(seen(DOG, DOG), wanted(DOG))[1] == [True]  # "a dog?" is true of two


def test_a_judge_is_calibrated_by_class() -> None:
    said = [("dog", True, True)] * 9 + [("dog", False, True)] + [("dog", False, False)] * 4 + [("dog", True, False)]
    found = calibrate([*said, ("cat", True, True), ("cat", False, False)])
    assert found == {"cat": Reliability(1, 1, 1, 1), "dog": Reliability(9, 10, 4, 5)}
    assert (found["dog"].sensitivity, found["dog"].specificity) == (0.9, 0.8)
    assert found["dog"] + found["cat"] == Reliability(10, 11, 5, 6)


def test_correcting_by_hand() -> None:
    reliability = Reliability(9, 10, 4, 5)
    assert corrected(0.55, reliability) == pytest.approx(0.5)  # half of 0.9 and half of 0.2
    assert corrected(0.1, reliability) == 0  # fewer than a judge says yes to of nothing
    assert corrected(0.95, reliability) == 1


@given(st.floats(0, 1), st.integers(51, 100), st.integers(51, 100))
def test_what_a_judge_does_to_a_rate_is_undone(truth: float, right_yes: int, right_no: int) -> None:
    reliability = Reliability(right_yes, 100, right_no, 100)
    raw = truth * reliability.sensitivity + (1 - truth) * (1 - reliability.specificity)
    assert corrected(raw, reliability) == pytest.approx(truth, abs=1e-9)


def test_few_known_truths_make_a_wide_interval_and_no_error() -> None:
    found = corrected_interval(np.array([0.4, 0.5, 0.6]), Reliability(2, 3, 2, 3))
    assert (found.low, found.high) == (0, 1)


def test_the_interval_counts_what_is_not_known_of_the_judge() -> None:
    rates = np.array([0.4, 0.5, 0.6, 0.5])
    sure = corrected_interval(rates, Reliability(9000, 10000, 9000, 10000))
    unsure = corrected_interval(rates, Reliability(18, 20, 18, 20))
    assert sure.estimate == unsure.estimate == pytest.approx(0.5)
    assert unsure.low < sure.low < 0.5 < sure.high < unsure.high


def test_a_judge_that_has_not_erred_yet_may_err() -> None:
    rates = np.array([0.5, 0.5, 0.5])
    few, many = (corrected_interval(rates, Reliability(count, count, count, count)) for count in (3, 3000))
    assert few.estimate == many.estimate == 0.5
    assert few.high - few.low > 0.2
    assert 0 < many.high - many.low < 0.01


@pytest.mark.parametrize("counts", [(3, 2, 1, 1), (1, 1, -1, 1), (0, 0, 1, 1), (1, 1, 0, 0)])
def test_counts_that_say_nothing(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(SettingsError, match="expected"):
        Reliability(*counts)


def test_a_judge_that_guesses_corrects_nothing() -> None:
    with pytest.raises(SettingsError, match="expected a sum above 1"):
        corrected(0.5, Reliability(1, 2, 1, 2))


def test_a_judge_that_errs_more_on_artefacts() -> None:
    sharp = Reliability(95, 100, 95, 100)
    assert not judged_unequally(sharp, Reliability(93, 100, 96, 100))
    assert judged_unequally(sharp, Reliability(95, 100, 90, 100))


def test_two_judges_orders() -> None:
    first = {"a": 0.9, "b": 0.5, "c": 0.5}
    assert disagreements(first, {"a": 0.8, "b": 0.2, "c": 0.4}) == ()
    assert disagreements(first, {"a": 0.3, "b": 0.2, "c": 0.4}) == (("a", "c"),)


def test_kappa_by_hand() -> None:
    # 3 of 4 alike; both say yes by chance to 0.5 * 0.75, no to 0.5 * 0.25.
    assert kappa([True, True, False, False], [True, True, True, False]) == pytest.approx((0.75 - 0.5) / 0.5)
    assert kappa([True, False], [False, True]) == -1
    assert kappa([True], [True]) == 1
    with pytest.raises(SettingsError, match="at least 1"):
        kappa([], [])


def picture(colour: tuple[float, float, float], top: int, left: int, height: int, width: int) -> torch.Tensor:
    image = torch.full((3, 128, 128), 0.5)
    image[:, top : top + height, left : left + width] = torch.tensor(colour)[:, None, None]
    return image


def test_the_second_judge_tells_colours_and_outlines() -> None:
    red, blue = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)
    images = torch.stack([picture(red, 20, 20, 60, 60), picture(red, 40, 50, 60, 60), picture(blue, 20, 20, 60, 60)])
    boxes = torch.tensor([(20, 20, 80, 80), (50, 40, 110, 100), (20, 20, 80, 80)]) / 128
    found = describe(images, boxes, torch.arange(3))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    own, moved, other = (float(found[0] @ each) for each in found)
    assert own == pytest.approx(moved, abs=1e-3)
    assert other < 0.5 < own


def test_moments_change_with_the_outline_and_not_with_size_or_place() -> None:
    def cut(top: int, left: int, height: int, width: int) -> torch.Tensor:
        image = torch.zeros(3, 56, 56)
        image[:, top : top + height, left : left + width] = 1
        return image

    edge = cut(8, 8, 16, 16)
    edge[:, :3, :30] = 1  # a neighbour at the rim
    assert torch.equal(*shape_moments(torch.stack([cut(8, 8, 16, 16), edge])))
    crops = [cut(8, 8, 16, 16), cut(20, 12, 32, 32), cut(10, 10, 8, 32), torch.zeros(3, 56, 56)]
    found = shape_moments(torch.stack(crops))
    torch.testing.assert_close(found[0], found[1], atol=1e-3, rtol=0)
    # A square's second moments are (side^2 - 1) / 12 / area.
    assert found[0, 0] == pytest.approx((16**2 - 1) / 12 / 16**2, abs=1e-4)
    assert found[2, 0] > 10 * found[2, 2]  # wide, not high
    assert found[3].tolist() == [0] * 7
