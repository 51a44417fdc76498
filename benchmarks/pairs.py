"""Two calls timed in turn, A B A B: what drifts on a machine touches both, and cancels in their ratio."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

LEVEL = 0.95


@dataclass(frozen=True)
class Pair:
    """What to compare.

    Attributes:
        what: what is timed.
        against: what it is compared with.
        ours: one call of this package.
        other: one call of what it is compared with.
        aim: of the ratio; None where it is only reported.
        speed: whether the ratio is other / ours (how many times faster; the aim is the least), and not ours / other
            (what ours costs; the aim is the most).
    """

    what: str
    against: str
    ours: Callable[[], object]
    other: Callable[[], object]
    aim: float | None
    speed: bool = False


class Interval(NamedTuple):
    """A median and an interval that covers it with the probability `level`."""

    median: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class Timing:
    """Seconds of each call, pair by pair."""

    pair: Pair
    ours: tuple[float, ...]
    other: tuple[float, ...]

    @property
    def ratio(self) -> Interval:
        """The median over pairs of the ratio within a pair."""
        top, bottom = (self.other, self.ours) if self.pair.speed else (self.ours, self.other)
        return median_interval([above / below for above, below in zip(top, bottom, strict=True)])

    @property
    def meets_aim(self) -> bool | None:
        """Whether the median does; None without an aim."""
        if self.pair.aim is None:
            return None
        return self.ratio.median >= self.pair.aim if self.pair.speed else self.ratio.median <= self.pair.aim


Clock = Callable[[], float]


def measure(pair: Pair, count: int, clock: Clock = time.perf_counter) -> Timing:
    """Time `count` pairs, after one call of each that is not counted; Python collects its garbage afterwards.

    With `time.process_time` as the clock, what else the machine does is left out; it counts every thread.
    """
    gc.disable()
    try:
        turns = [(_seconds(pair.ours, clock), _seconds(pair.other, clock)) for _ in range(count + 1)][1:]
    finally:
        gc.enable()
    return Timing(pair, tuple(ours for ours, _ in turns), tuple(other for _, other in turns))


def median_interval(values: Sequence[float]) -> Interval:
    """Give the median, and the narrowest pair of order statistics around it that covers it at 95 %.

    It assumes no distribution: `[x_(k), x_(n-k+1)]` misses the median with probability `2·P(Binomial(n, ½) < k)`. Below
    6 values nothing covers 95 %; then it is the smallest and largest, and says what they do cover.

    Example:
        >>> median_interval([1.0, 2.0, 3.0])
        Interval(median=2.0, low=1.0, high=3.0, level=0.75)
    """
    ordered, count = sorted(values), len(values)
    rank = max((k for k in range(1, count // 2 + 1) if _level(count, k) >= LEVEL), default=1)
    return Interval(statistics.median(ordered), ordered[rank - 1], ordered[count - rank], _level(count, rank))


def _level(count: int, rank: int) -> float:
    return 1 - 2 * sum(math.comb(count, below) for below in range(rank)) / float(2**count)


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    _wait_for_device()
    began = clock()
    call()
    _wait_for_device()
    return clock() - began


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
