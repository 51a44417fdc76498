"""What may be concluded from a few combinations: sign-flip test, intervals, and corrections.

The unit is the combination: pictures of one share its subjects, so that many pictures of few combinations say little of
others. Every function takes one number for each combination.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import t as students_t  # type: ignore[import-untyped]

from cones2.errors import SettingsError

Differences = Float[np.ndarray, "combinations"]

EXACT = 16
"""Combinations up to which all flips of signs are tried; beyond, 100,000 drawn ones are."""
_FLIPS = 100_000
_RESAMPLINGS = 10_000
_SEED = 0


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    estimate: float
    low: float
    high: float


def sign_flip_test(differences: Differences) -> float:
    """Return the two-sided p of the paired sign-flip test: how often chance gives a mean as far from 0, 0 to 1.

    Under the hypothesis that both systems are the same, each combination's difference has either sign. With C
    combinations no p is below 2 / 2^C.

    Raises:
        SettingsError: there are no combinations.
    """
    count = _count(differences, 1)
    if count <= EXACT:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ differences) >= _as_far(differences)).mean())
    generator = np.random.default_rng(_SEED)
    signs = 1 - 2 * generator.integers(0, 2, (_FLIPS, count))
    extreme = (np.abs(signs @ differences) >= _as_far(differences)).sum()
    return float((extreme + 1) / (_FLIPS + 1))  # the differences as they are count as one flip (Phipson, Smyth, 2010)


def _as_far(differences: Differences) -> float:
    # Less what rounding can take from sums that are equal.
    return float(abs(differences.sum()) - 1e-9 * np.abs(differences).sum())


def t_interval(values: Differences) -> Interval:
    """Return the mean and its 95 % t interval, of one degree of freedom less than there are combinations.

    Raises:
        SettingsError: there are fewer than two combinations.
    """
    count = _count(values, 2)
    half = float(students_t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


def bootstrap_interval(values: Differences) -> Interval:
    """Return the mean and its 95 % percentile interval over 10,000 resamplings of whole combinations.

    Too narrow where there are few: beside the t interval, never in place of it.

    Raises:
        SettingsError: there are fewer than two combinations.
    """
    count = _count(values, 2)
    means = values[np.random.default_rng(_SEED).integers(0, count, (_RESAMPLINGS, count))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Interval(float(values.mean()), low, high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return the p values of several comparisons, by name, corrected for their number (Holm, 1979).

    Not for a claim that needs all of its comparisons: that one needs no correction (intersection-union).
    """
    ordered = sorted(p_values, key=lambda name: p_values[name])
    corrected, least = {}, 0.0
    for rank, name in enumerate(ordered):
        least = max(least, min(1.0, (len(ordered) - rank) * p_values[name]))
        corrected[name] = least
    return {name: corrected[name] for name in p_values}


def _count(values: Differences, least: int) -> int:
    if len(values) < least:
        raise SettingsError(f"got {len(values)} combinations: expected at least {least}. Draw more of them.")
    return len(values)
