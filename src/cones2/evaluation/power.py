"""How many combinations a claim needs: a simulation of the experiment, before it is run.

Each system gets a yes for a picture at its own rate, whose logit is shifted by what a combination does to all systems
and by what it does to one. A level is claimed where ours is above the best rival in both alignments.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]
from scipy.stats import norm  # type: ignore[import-untyped]
from scipy.stats import t as students_t

from cones2.errors import SettingsError


@dataclass(frozen=True)
class Level:
    """One number of subjects in a picture: how many combinations, and the rates that are expected, 0 to 1.

    Attributes:
        combinations: how many are drawn.
        ours: our rates of text and of image alignment.
        rival: the best rival's.
    """

    combinations: int
    ours: tuple[float, float]
    rival: tuple[float, float]


@dataclass(frozen=True)
class Design:
    """An experiment.

    Attributes:
        levels: every one of them is claimed.
        pictures: of each combination.
        shared: standard deviation, in logits, of what a combination does to all systems.
        own: that of what it does to one system.
    """

    levels: tuple[Level, ...]
    pictures: int = 20
    shared: float = 0.8
    own: float = 0.4


PAPER_RATES = (
    ((0.7787, 0.6975), (0.6255, 0.5750)),
    ((0.7920, 0.6442), (0.6487, 0.3794)),
    ((0.7735, 0.5908), (0.4210, 0.2875)),
)
"""Ours and the best rival's, Cones', of two, three and four subjects (arXiv:2305.19327, Table 2)."""


def paper_levels(*combinations: int) -> tuple[Level, ...]:
    """Return levels of two, three, ... subjects with the paper's rates, of so many combinations each.

    Raises:
        SettingsError: there are more levels than the paper has.
    """
    if not 0 < len(combinations) <= len(PAPER_RATES):
        raise SettingsError(
            f"got {len(combinations)} levels: expected 1 to {len(PAPER_RATES)}, of two subjects and on."
        )
    rates = PAPER_RATES[: len(combinations)]
    return tuple(Level(count, *both) for count, both in zip(combinations, rates, strict=True))


def power(design: Design, trials: int = 2000, seed: int = 0) -> float:
    """Return the share of simulated experiments in which every claim holds, 0 to 1.

    Raises:
        SettingsError: a level has fewer than two combinations, or there are no trials.
    """
    if trials < 1 or any(level.combinations < 2 for level in design.levels):
        raise SettingsError("expected at least one trial, and two combinations of each level. Raise their numbers.")
    generator = np.random.default_rng(seed)
    claimed = np.ones(trials, dtype=bool)
    for level in design.levels:
        for ours, rival in zip(level.ours, level.rival, strict=True):
            claimed &= _shown(generator, design, level.combinations, ours, rival, trials)
    return float(claimed.mean())


def _shown(
    generator: np.random.Generator, design: Design, combinations: int, ours: float, rival: float, trials: int
) -> Bool[np.ndarray, "trials"]:
    """Simulate one comparison many times; return where its t interval is above 0."""
    size = (trials, combinations)
    shared = generator.normal(0, design.shared, size)
    means = [_rates(generator, design, rate, shared) for rate in (ours, rival)]
    differences = means[0] - means[1]
    half = students_t.ppf(0.975, combinations - 1) * differences.std(axis=1, ddof=1) / np.sqrt(combinations)
    return np.asarray(differences.mean(axis=1) > half)


def _rates(
    generator: np.random.Generator, design: Design, rate: float, shared: Float[np.ndarray, "trials combinations"]
) -> Float[np.ndarray, "trials combinations"]:
    """Draw the share of yes of each combination."""
    middle = _middle(rate, float(np.hypot(design.shared, design.own)))
    chances = expit(middle + shared + generator.normal(0, design.own, shared.shape))
    return np.asarray(generator.binomial(design.pictures, chances) / design.pictures)


def _middle(rate: float, deviation: float) -> float:
    """Return the logit around which combinations must lie for their rates to average `rate`."""
    shifts = deviation * norm.ppf((np.arange(1000) + 0.5) / 1000)
    return float(brentq(lambda middle: expit(middle + shifts).mean() - rate, -30, 30))
