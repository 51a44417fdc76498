"""The user study's questions, answered by a judge of known reliability instead of 25 people.

arXiv:2305.19327, Table 2: for each subject whether the picture shows it (image alignment), and whether it shows what
the prompt says (text alignment). A judge errs, so its rate of yes is also corrected by how often it errs on pictures
whose truth is known (Rogan and Gladen, 1978).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cones2.errors import SettingsError
from cones2.evaluation.matching import Seen, Wanted
from cones2.evaluation.measures import Outcome
from cones2.evaluation.statistics import Interval

_RESAMPLINGS = 10_000
_LEAST_TRUTHS = 1  # of each kind, without which there is no rate at all
_UNEQUAL = 0.03


@dataclass(frozen=True, eq=False)
class Answers:
    """One picture's answers.

    Attributes:
        image: "does the picture contain this one?", by subject that could be taken for another (`Outcome.told`).
        text: "does it contain a cat?", by class word, or "two dogs?" where there are to be two; then the scene, if the
            prompt has one.
    """

    image: Bool[np.ndarray, "told"]
    text: Bool[np.ndarray, "questions"]

    @property
    def all_yes(self) -> bool:
        """Whether every question is answered with yes."""
        return bool(self.image.all() and self.text.all())


def answer(outcome: Outcome, seen: Seen, wanted: Wanted, scene: bool | None = None) -> Answers:
    """Answer the questions about one picture.

    Args:
        outcome: of the picture.
        seen: what is in it.
        wanted: what should be.
        scene: whether it is the prompt's; None where the prompt has none.
    """
    kinds = sorted(set(wanted.classes.tolist()))
    counts = [(int((wanted.classes == kind).sum()), int((seen.classes == kind).sum())) for kind in kinds]
    # "A cat?" is true of two cats as well, as a person would say; "two dogs?" asks for exactly two.
    text = [found >= 1 if asked == 1 else found == asked for asked, found in counts]
    return Answers(outcome.identity[outcome.told], np.array([*text, *([] if scene is None else [scene])], dtype=bool))


@dataclass(frozen=True)
class Reliability:
    """How a judge answers one question about pictures whose truth is known.

    Attributes:
        right_yes: how many of the `true` it says yes to.
        true: pictures of which yes is right.
        right_no: how many of the `false` it says no to.
        false: pictures of which no is right.
    """

    right_yes: int
    true: int
    right_no: int
    false: int

    def __post_init__(self) -> None:
        if not (0 <= self.right_yes <= self.true and 0 <= self.right_no <= self.false):
            raise SettingsError(f"{self} makes no sense: expected as many right answers as pictures at most.")
        if min(self.true, self.false) < _LEAST_TRUTHS:
            raise SettingsError(f"{self} says nothing of one answer: expected pictures of both. Render more.")

    @property
    def sensitivity(self) -> float:
        """The share of yes where yes is right."""
        return self.right_yes / self.true

    @property
    def specificity(self) -> float:
        """The share of no where no is right."""
        return self.right_no / self.false

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(
            self.right_yes + other.right_yes,
            self.true + other.true,
            self.right_no + other.right_no,
            self.false + other.false,
        )


def calibrate(answers: Iterable[tuple[str, bool, bool]]) -> dict[str, Reliability]:
    """Count a judge's answers by class word, from (class word, its answer, the truth).

    Raises:
        SettingsError: a class has no picture of one of the two truths.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for kind, said, truth in answers:
        right, total = (0, 1) if truth else (2, 3)
        counts[kind][right] += said == truth
        counts[kind][total] += 1
    return {kind: Reliability(*count) for kind, count in sorted(counts.items())}


def corrected(raw: float, reliability: Reliability) -> float:
    """Return the rate of yes that a judge without errors would give, 0 to 1.

    Raises:
        SettingsError: the judge is no better than chance, so that its answers say nothing.
    """
    return float(_corrected(np.array(raw), reliability.sensitivity, reliability.specificity))


def _corrected(
    raw: Float[np.ndarray, "*shape"],
    sensitivity: float | Float[np.ndarray, "*shape"],
    specificity: float | Float[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    informed = np.asarray(sensitivity + specificity - 1)
    if np.min(informed) <= 0:
        raise SettingsError(f"sensitivity {sensitivity} and specificity {specificity}: expected a sum above 1.")
    return np.asarray(np.clip((raw + specificity - 1) / informed, 0, 1))


def corrected_interval(rates: Float[np.ndarray, "combinations"], reliability: Reliability) -> Interval:
    """Return the corrected rate and its 95 % interval, which counts both few combinations and few known truths.

    Args:
        rates: of yes, of each combination.
        reliability: of the judge.

    Raises:
        SettingsError: there are no combinations, or the judge is no better than chance.
    """
    if not len(rates):
        raise SettingsError("got no combinations: expected at least 1. Draw some.")
    generator = np.random.default_rng(0)
    means = rates[generator.integers(0, len(rates), (_RESAMPLINGS, len(rates)))].mean(axis=1)
    # By Jeffreys' prior: a judge that has not erred in three pictures may still err in the fourth.
    sensitivities, specificities = (
        generator.beta(right + 0.5, total - right + 0.5, _RESAMPLINGS)
        for right, total in (
            (reliability.right_yes, reliability.true),
            (reliability.right_no, reliability.false),
        )
    )
    # Of few known truths some draws are no better than chance: just above it, they say 0 or 1, and widen the interval.
    specificities = np.maximum(specificities, 1 - sensitivities + 1e-6)
    drawn = _corrected(means, sensitivities, specificities)
    low, high = np.quantile(drawn, [0.025, 0.975]).tolist()
    return Interval(corrected(float(rates.mean()), reliability), low, high)


def judged_unequally(sharp: Reliability, worn: Reliability) -> bool:
    """Return whether a judge errs more, by over 3 points, on pictures with artefacts than on sharp ones.

    If so, systems whose pictures are of unequal quality are judged unequally, and whoever reports has to say it.
    """
    return abs(sharp.sensitivity - worn.sensitivity) > _UNEQUAL or abs(sharp.specificity - worn.specificity) > _UNEQUAL


def disagreements(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of systems that two judges put in opposite orders; ties agree with everything."""
    names: Sequence[str] = [name for name in one if name in other]
    return tuple(
        (first, second)
        for number, first in enumerate(names)
        for second in names[number + 1 :]
        if (one[first] - one[second]) * (other[first] - other[second]) < 0
    )


def kappa(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Return Cohen's kappa of two raters' answers to the same questions: 1 agreement, 0 as by chance, -1 at the least.

    Raises:
        SettingsError: there are no questions, or another number of answers.
    """
    if not one or len(one) != len(other):
        raise SettingsError(f"got {len(one)} and {len(other)} answers: expected as many of both, and at least 1.")
    first, second = np.array(one, dtype=bool), np.array(other, dtype=bool)
    yes = first.mean() * second.mean()
    chance = yes + (1 - first.mean()) * (1 - second.mean())
    return 1.0 if chance == 1 else float(((first == second).mean() - chance) / (1 - chance))
