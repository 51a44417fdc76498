"""What may be concluded: by hand, against SciPy, and by simulation."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from cones2.errors import SettingsError
from cones2.evaluation.power import Design, Level, paper_levels, power
from cones2.evaluation.statistics import bootstrap_interval, holm, sign_flip_test, t_interval


def test_sign_flips_by_hand() -> None:
    assert (
        sign_flip_test(np.array([0.1, 0.2, 0.3, 0.4])) == 2 / 16
    )  # only all of one sign are as far: the least of four
    # Of the sums of +-1, +-2, +-3, those as far from 0 as 1 - 2 + 3 = 2: 6, 4, 2 and their like.
    assert sign_flip_test(np.array([1.0, -2.0, 3.0])) == 6 / 8
    assert sign_flip_test(np.zeros(5)) == 1


@settings(max_examples=20)
@given(arrays(float, st.integers(2, 8), elements=st.integers(-8, 8).map(float)))
def test_sign_flips_are_scipys(differences: np.ndarray) -> None:
    options = {"permutation_type": "samples", "n_resamples": np.inf, "alternative": "two-sided"}
    found = scipy.stats.permutation_test((differences,), np.mean, **options).pvalue
    assert sign_flip_test(differences) == pytest.approx(found)


def test_many_combinations_are_flipped_at_random() -> None:
    differences = np.random.default_rng(0).normal(0.4, 1, 24)
    t_value = differences.mean() / differences.std(ddof=1) * 24**0.5
    assert sign_flip_test(differences) == pytest.approx(2 * scipy.stats.t.sf(t_value, 23), abs=0.02)
    assert sign_flip_test(differences) == sign_flip_test(differences)
    assert sign_flip_test(np.ones(24)) == 1 / 100_001


def test_a_t_interval_by_hand() -> None:
    found = t_interval(np.array([1.0, 2.0, 3.0]))  # sd 1, t of 2 degrees of freedom 4.3027
    assert (found.estimate, found.low, found.high) == pytest.approx(
        (2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4
    )


def test_a_bootstrap_of_few_is_narrower() -> None:
    values = np.array([0.2, 0.5, 0.4, 0.9])
    drawn, students = bootstrap_interval(values), t_interval(values)
    assert drawn == bootstrap_interval(values)
    assert students.low < drawn.low < drawn.estimate < drawn.high < students.high


def test_holm_by_hand() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("function", [t_interval, bootstrap_interval])
def test_one_combination_has_no_interval(function: object) -> None:
    with pytest.raises(SettingsError, match="got 1 combinations: expected at least 2"):
        function(np.ones(1))  # type: ignore[operator]


def test_the_papers_own_size_can_not_carry_its_claim() -> None:
    assert power(Design(paper_levels(4, 4, 4))) < 0.01


@pytest.mark.parametrize(
    ("combinations", "expected"),
    [
        ((12, 12, 12), (0.34, 0.58)),
        ((12, 8, 6), (0.19, 0.39)),
        ((24, 16, 12), (0.77, 0.92)),
        ((36, 24, 18), (0.95, 1.0)),
    ],
)
def test_power_of_the_sizes_that_were_considered(combinations: tuple[int, ...], expected: tuple[float, float]) -> None:
    found = [power(Design(paper_levels(*combinations), own=own)) for own in (0.4, 0.2)]
    assert found == pytest.approx(expected, abs=0.04)


def test_no_difference_is_hardly_ever_claimed() -> None:
    level = Level(12, (0.6, 0.6), (0.6, 0.6))
    assert power(Design((level,))) < 0.01


@pytest.mark.parametrize("counts", [(), (1, 4), (4, 4, 4, 4)])
def test_sizes_that_make_no_sense(counts: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="expected"):
        power(Design(paper_levels(*counts)))
