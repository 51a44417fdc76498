"""Alignment, matching and what became of each subject, by hand and by laws."""

from itertools import permutations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from cones2.errors import SettingsError
from cones2.evaluation.alignment import (
    between,
    clip_score,
    image_alignment,
    kept,
    macro,
    micro,
    several_alignment,
    text_alignment,
    unit,
)
from cones2.evaluation.boxes import average_precision, box_overlaps, fits, holds, in_right_boxes
from cones2.evaluation.matching import NOBODY, Seen, Wanted, match, match_by_look, match_by_place, overlaps
from cones2.evaluation.measures import (
    cloned,
    collapse_curve,
    collapse_rate,
    collapse_threshold,
    look_at,
    swapped,
)

DOG, CAT = 0, 1
REX, TOM, MAX = np.eye(3)  # how two dogs (REX, MAX) and a cat (TOM) look
STRANGER = np.array([[0.0, 0.0, -1.0]])  # whom nobody looks like, of whichever class
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)


def seen(*objects: tuple[int, np.ndarray, tuple[float, float, float, float]]) -> Seen:
    return Seen(
        np.array([kind for kind, _, _ in objects], dtype=int),
        np.linspace(0.9, 0.5, len(objects)),
        np.array([box for _, _, box in objects], dtype=float).reshape(-1, 4),
        unit(np.array([look for _, look, _ in objects], dtype=float).reshape(-1, 3)),
    )


def wanted(*subjects: tuple[int, np.ndarray], boxes: tuple[tuple[float, ...], ...] | None = None) -> Wanted:
    return Wanted(
        np.array([kind for kind, _ in subjects]),
        np.stack([look for _, look in subjects]),
        (STRANGER,) * len(subjects),
        boxes=None if boxes is None else np.array(boxes),
    )


REX_AND_TOM = wanted((DOG, REX), (CAT, TOM), boxes=(LEFT, RIGHT))
REX_AND_MAX = wanted((DOG, REX), (DOG, MAX), boxes=(LEFT, RIGHT))


def test_cosines_by_hand() -> None:
    pictures = np.array([[3.0, 4.0], [0.0, 2.0]])
    np.testing.assert_allclose(text_alignment(pictures, np.array([5.0, 0.0])), [0.6, 0.0])
    np.testing.assert_allclose(image_alignment(pictures, np.array([[1.0, 0.0], [0.0, 1.0]])), [0.7, 0.5])
    np.testing.assert_allclose(kept(pictures, pictures[::-1]), [0.8, 0.8])
    np.testing.assert_allclose(clip_score(np.array([0.3, -0.2])), [0.75, 0.0])


def test_each_subject_counts_as_much_however_many_photos_it_has() -> None:
    picture, two, three = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]] * 2), np.array([[0.0, 1.0]] * 3)
    np.testing.assert_allclose(several_alignment(picture, [two, three]), [0.5])


def test_a_vector_of_zeros_is_like_nothing() -> None:
    assert text_alignment(np.zeros((1, 2)), np.array([1.0, 0.0])).tolist() == [0.0]


def test_averages_of_combinations_and_of_pictures() -> None:
    values = {"a": np.array([0.2, 0.4, 0.6]), "b": np.array([0.8])}
    assert (macro(values), micro(values)) == pytest.approx((0.6, 0.5))
    assert between(0.6, floor=0.2, ceiling=1.0) == pytest.approx(0.5)
    assert between(0.6, floor=0.2, ceiling=0.2) is None


@pytest.mark.parametrize("values", [{}, {"a": np.array([])}])
def test_there_is_no_average_of_nothing(values: dict[str, np.ndarray]) -> None:
    for mean in (macro, micro):
        with pytest.raises(SettingsError, match="without pictures"):
            mean(values)


@given(arrays(float, (4, 3), elements=st.floats(-1, 1)), arrays(float, (5, 3), elements=st.floats(-1, 1)))
def test_the_mean_is_that_of_all_pairs(pictures: np.ndarray, references: np.ndarray) -> None:
    pairs = [float(unit(one) @ unit(other)) for one in pictures for other in references]
    assert image_alignment(pictures, references).mean() == pytest.approx(np.mean(pairs), abs=1e-9)


def test_overlaps_by_hand() -> None:
    boxes = np.array([LEFT, RIGHT, (0.25, 0.0, 0.75, 1.0), (0.2, 0.2, 0.2, 0.2)])
    np.testing.assert_allclose(overlaps(boxes[:1], boxes), [[1, 0, 1 / 3, 0]])


@given(
    arrays(bool, st.tuples(st.integers(0, 4), st.integers(1, 4))).flatmap(
        lambda agree: st.tuples(st.just(agree), arrays(float, agree.shape, elements=st.floats(-1, 1)))
    )
)
def test_matching_is_the_best_of_all_ways(case: tuple[np.ndarray, np.ndarray]) -> None:
    agree, likeness = case
    detections, subjects = agree.shape

    def worth(order: tuple[int, ...]) -> tuple[int, float]:
        pairs = [(index, slot) for slot, index in enumerate(order) if index >= 0]
        return sum(bool(agree[pair]) for pair in pairs), sum(float(likeness[pair]) for pair in pairs)

    matches = match(agree, likeness)
    taken = [index for index in matches.tolist() if index != NOBODY]
    assert len(set(taken)) == len(taken) == min(detections, subjects)
    padded = [*range(detections), *[NOBODY] * max(0, subjects - detections)]
    best = max(worth(order) for order in permutations(padded, subjects))
    np.testing.assert_allclose(worth(tuple(matches.tolist())), best, atol=1e-9)


def test_class_goes_before_look() -> None:
    picture = seen((CAT, REX, LEFT), (DOG, TOM, RIGHT))  # each looks like the other
    assert match_by_look(picture, REX_AND_TOM).tolist() == [1, 0]


def test_by_place_whoever_stands_there() -> None:
    picture = seen((DOG, MAX, LEFT), (DOG, REX, RIGHT))
    assert match_by_look(picture, REX_AND_MAX).tolist() == [1, 0]
    assert match_by_place(picture, REX_AND_MAX).tolist() == [0, 1]


def test_all_right() -> None:
    outcome = look_at(seen((DOG, REX, LEFT), (CAT, TOM, RIGHT)), REX_AND_TOM)
    assert outcome.present.all()
    assert outcome.identity.all()
    assert (outcome.all_right, outcome.swapped, outcome.cloned) == (True, False, False)
    np.testing.assert_allclose(outcome.likeness, 1)


def test_a_second_dog_is_one_too_many() -> None:
    outcome = look_at(seen((DOG, REX, LEFT), (CAT, TOM, RIGHT), (DOG, REX, RIGHT)), REX_AND_TOM)
    assert outcome.identity.all()
    assert not outcome.all_right
    assert outcome.cloned


def test_something_that_nobody_asked_for_changes_nothing() -> None:
    hat = 7
    outcome = look_at(seen((DOG, REX, LEFT), (CAT, TOM, RIGHT), (hat, REX, LEFT)), REX_AND_TOM)
    assert outcome.all_right
    assert not outcome.cloned


def test_missing_and_of_another_class() -> None:
    nothing = look_at(seen(), REX_AND_TOM)
    assert nothing.missing.all()
    assert not nothing.present.any()
    assert nothing.likeness.tolist() == [-1, -1]
    assert (nothing.all_right, nothing.swapped, nothing.cloned) == (False, None, False)
    two_dogs = look_at(seen((DOG, REX, LEFT), (DOG, TOM, RIGHT)), REX_AND_TOM)
    assert (two_dogs.missing.tolist(), two_dogs.present.tolist()) == ([False, False], [True, False])


def test_a_lookalike_that_is_nearer_takes_the_identity() -> None:
    twin = unit(np.array([[1.0, 0.1, 0.0]]))
    one = Wanted(np.array([DOG]), REX[None], (twin,))
    assert look_at(seen((DOG, np.array([1.0, 0.04, 0.0]), LEFT)), one).identity.tolist() == [True]
    assert look_at(seen((DOG, np.array([1.0, 0.06, 0.0]), LEFT)), one).identity.tolist() == [False]


def test_without_anybody_to_be_taken_for_identity_says_nothing() -> None:
    picture = seen((DOG, MAX, LEFT), (CAT, TOM, RIGHT))
    kinds, looks = np.array([DOG, CAT]), np.stack([REX, TOM])
    alone = look_at(picture, Wanted(kinds, looks, (np.zeros((0, 3)), STRANGER)))
    assert (alone.told.tolist(), alone.all_right) == ([False, True], None)
    assert look_at(picture, Wanted(kinds, looks)).told.tolist() == [False, False]
    two_dogs = look_at(seen((DOG, MAX, LEFT)), Wanted(np.array([DOG, DOG]), np.stack([REX, MAX])))
    assert (two_dogs.told.tolist(), two_dogs.all_right) == ([True, True], False)


def test_swapped_across_classes_and_within_one() -> None:
    assert swapped(seen((DOG, TOM, LEFT), (CAT, REX, RIGHT)), REX_AND_TOM) is True
    assert swapped(seen((DOG, MAX, LEFT), (DOG, REX, RIGHT)), REX_AND_MAX) is True
    assert swapped(seen((DOG, REX, LEFT), (DOG, MAX, RIGHT)), REX_AND_MAX) is False
    assert swapped(seen((DOG, REX, LEFT)), REX_AND_MAX) is None  # one alone can't change places
    no_layout = wanted((DOG, REX), (DOG, MAX))
    assert swapped(seen((DOG, MAX, LEFT), (DOG, REX, RIGHT)), no_layout) is None  # nothing tells which is which


def test_cloned_is_not_swapped() -> None:
    picture = seen((DOG, REX, LEFT), (DOG, np.array([1.0, 0.0, 0.2]), RIGHT))
    assert cloned(picture, REX_AND_MAX)
    assert swapped(picture, REX_AND_MAX) is False


def test_collapse_by_hand() -> None:
    likenesses = [np.array([0.9, 0.3]), np.array([-1.0, 0.5])]
    assert collapse_rate(likenesses, 0.4) == 0.5
    assert collapse_curve(likenesses, np.array([-1.0, 0.31, 0.6, 1.0])).tolist() == [0, 0.5, 0.75, 1]
    assert collapse_threshold(np.linspace(0, 1, 101)) == pytest.approx(0.05)


def any_picture(seed: int) -> tuple[Seen, Wanted]:
    generator = np.random.default_rng(seed)
    count, subjects = int(generator.integers(0, 6)), int(generator.integers(1, 5))
    low = generator.random((count + subjects, 2)) / 2
    boxes = np.concatenate([low, low + generator.random((count + subjects, 2)) / 2], axis=1)
    looks = unit(generator.normal(size=(count + subjects, 6)))
    classes = generator.integers(0, 3, count + subjects)
    objects = Seen(classes[:count], generator.random(count), boxes[:count], looks[:count])
    return objects, Wanted(classes[count:], looks[count:], boxes=boxes[count:])


@given(st.integers(0, 2**32))
def test_the_order_of_detections_and_of_subjects_changes_nothing(seed: int) -> None:
    objects, asked = any_picture(seed)
    generator = np.random.default_rng(seed)
    rows, slots = generator.permutation(len(objects.classes)), generator.permutation(len(asked.classes))
    assert asked.boxes is not None
    moved = Seen(objects.classes[rows], objects.scores[rows], objects.boxes[rows], objects.identities[rows])
    other = Wanted(asked.classes[slots], asked.references[slots], boxes=asked.boxes[slots])
    one, two = look_at(objects, asked), look_at(moved, other)
    for name in ("present", "identity", "likeness"):
        np.testing.assert_allclose(getattr(one, name)[slots], getattr(two, name), atol=1e-12)
    assert (one.all_right, one.swapped, one.cloned) == (two.all_right, two.swapped, two.cloned)
    np.testing.assert_allclose(box_overlaps(objects, asked).sum(), box_overlaps(moved, other).sum())


@given(st.integers(0, 2**32))
def test_what_follows_from_what(seed: int) -> None:
    case = any_picture(seed)
    outcome = look_at(*case)
    assert not (outcome.identity & ~outcome.present).any()
    assert not (outcome.present & outcome.missing).any()
    if outcome.all_right:
        assert outcome.identity.all()
    right = in_right_boxes(*case)
    assert (box_overlaps(*case)[right] >= 0.4).all()


def test_fits_by_hand() -> None:
    assert fits(LEFT, LEFT)
    assert not fits(LEFT, RIGHT)
    assert not fits((0.0, 0.0, 0.15, 1.0), LEFT)  # its centre is inside, but it covers 0.3
    assert not fits((0.02, 0.0, 1.0, 1.0), LEFT)  # it covers 0.48, but its centre is outside
    assert fits(RIGHT, None)


def test_relations_by_hand() -> None:
    table, mug = (0.3, 0.5, 0.7, 0.9), (0.4, 0.3, 0.6, 0.5)
    assert holds("on", mug, table)
    assert not holds("on", table, mug)
    assert holds("next to", (0.1, 0.5, 0.4, 0.9), (0.5, 0.5, 0.8, 0.9))
    assert not holds("next to", table, mug)
    assert holds("wearing", (0.3, 0.3, 0.7, 0.9), (0.4, 0.2, 0.6, 0.35))


def test_right_boxes_by_hand() -> None:
    right = seen((DOG, REX, LEFT), (CAT, TOM, RIGHT))
    assert in_right_boxes(right, REX_AND_TOM).tolist() == [True, True]
    assert box_overlaps(right, REX_AND_TOM).tolist() == [1, 1]
    a_second_dog = seen((DOG, REX, LEFT), (CAT, TOM, RIGHT), (DOG, MAX, RIGHT))
    assert in_right_boxes(a_second_dog, REX_AND_TOM).tolist() == [False, True]
    half = seen((DOG, REX, (0.0, 0.0, 0.5, 0.5)))
    assert in_right_boxes(half, REX_AND_TOM).tolist() == [True, False]
    assert box_overlaps(half, REX_AND_TOM).tolist() == [0.5, 0]


def test_average_precision_by_hand() -> None:
    # Dogs: a hit (0.9), then a miss (0.5), of two boxes: precision 1 up to a recall of a half. Cats: found.
    one = seen((DOG, REX, LEFT), (CAT, TOM, RIGHT)), REX_AND_TOM
    other = seen((DOG, REX, RIGHT)), wanted((DOG, REX), boxes=(LEFT,))
    assert average_precision([one]) == 1
    assert average_precision([one, other]) == pytest.approx((0.5 + 1) / 2)
    # The surest is a copy that found its box taken: a precision of 1/1, then 1/2, of one box.
    copies = seen((DOG, REX, LEFT), (DOG, REX, LEFT)), wanted((DOG, REX), boxes=(LEFT,))
    assert average_precision([copies]) == 1
    late = seen((DOG, REX, RIGHT), (DOG, REX, LEFT)), wanted((DOG, REX), boxes=(LEFT,))
    assert average_precision([late]) == 0.5
    assert average_precision([]) == 0
