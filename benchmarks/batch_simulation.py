"""The batch engine with thousands of workers, under a virtual clock: `python benchmarks/batch_simulation.py scale`.

The engine and its driver are the real ones, and their seconds count as they are measured; only what workers and the
storage take is made up. `check` shows what that is worth: it runs sleeping cases by 2, 4 and 8 real processes, and
predicts from one process, and from when those were ready, how long that took.
"""

import argparse
import heapq
import itertools
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cones2.batch.engine import Batch, Task
from cones2.batch.job import Job, Pictures
from cones2.batch.lease import _BETWEEN_LOOKS, Event
from cones2.batch.plan import Plan
from cones2.batch.processes import Processes
from cones2.batch.store import LocalStore
from faulty_store import MemoryStore, StillHands, content_of

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Conditions:
    """What is made up.

    Attributes:
        picture: seconds of a picture, on the average.
        uneven: how much these differ, as the sigma of a lognormal distribution.
        load: seconds until a worker is ready, the least and the most.
        commit: seconds that the storage takes for a lease, the median.
        slow: the share of workers that take `times` as long.
        beside: seconds of a picture that are the same for each.
        deaths: of a worker, an hour; it comes back as another machine would, without the pictures of its open lease.
        hearing: seconds that the engine takes to receive an event, beside what its own code takes.
    """

    picture: float = 0.3
    uneven: float = 0.1
    load: tuple[float, float] = (20.0, 90.0)
    commit: float = 0.5
    slow: float = 0.01
    times: float = 5.0
    beside: float = 0.0
    deaths: float = 0.0
    hearing: float = 0.00005

    def scaled(self, factor: float) -> "Conditions":
        """Return the same with all seconds times a factor."""
        load = (self.load[0] * factor, self.load[1] * factor)
        return replace(self, picture=self.picture * factor, load=load, commit=self.commit * factor)


def seconds_of(seed: int, conditions: Conditions) -> float:
    """Return the seconds of a picture, the same for one seed in a simulation and in a real run."""
    sigma = conditions.uneven
    return conditions.picture * random.Random(seed).lognormvariate(-sigma * sigma / 2, sigma)


class Simulated:
    """Workers that do nothing, under a clock of their own; see `cones2.batch.engine.Crew`.

    Attributes:
        drawn: pictures, also in vain.
        driving: seconds of the engine's own code.
        first_idle: when a worker found nothing to do for the first time.
    """

    def __init__(self, count: int, conditions: Conditions) -> None:
        self.workers = tuple(f"worker {number}" for number in range(1, count + 1))
        self._conditions, self._luck = conditions, random.Random(count)
        slow = max(1, round(1 / conditions.slow)) if conditions.slow else math.inf
        self._pace = {name: conditions.times if at % slow == slow - 1 else 1.0 for at, name in enumerate(self.workers)}
        self._next: list[tuple[float, int, str, Iterator[tuple[float, Event]], Event]] = []
        self._order, self._dies = itertools.count(), dict.fromkeys(self.workers, math.inf)
        self._committed: set[str] = set()
        self._now, self._mark = 0.0, time.thread_time()
        self.drawn, self.driving = 0, 0.0

    def clock(self) -> float:
        """Return the seconds that have passed there."""
        return self._now + time.thread_time() - self._mark

    def start(self, worker: str) -> None:
        """See `Crew`."""
        if self._conditions.deaths:
            self._dies[worker] = self.clock() + self._luck.expovariate(self._conditions.deaths / 3600)
        self._go_on(worker, iter([(self._luck.uniform(*self._conditions.load), {"event": "ready"})]))

    def give(self, worker: str, task: Task) -> None:
        """See `Crew`."""
        self._go_on(worker, self._work(worker, task))

    def hear(self, timeout: float) -> tuple[str, Event] | None:
        """See `Crew`."""
        self.driving += time.thread_time() - self._mark
        self._now = self.clock()
        heard = None
        if self._next and self._next[0][0] <= self._now + timeout:
            when, _, worker, work, event = heapq.heappop(self._next)
            self._now, heard = max(self._now, when) + self._conditions.hearing, (worker, event)
            self._mark = time.thread_time()
            if event["event"] != "died":
                self._go_on(worker, work, when)
        else:
            self._now += timeout
        self._mark = time.thread_time()  # what the simulation itself takes does not count
        return heard

    def drain(self) -> None:
        """See `Crew`."""

    def close(self) -> None:
        """See `Crew`."""

    def _go_on(self, worker: str, work: Iterator[tuple[float, Event]], since: float | None = None) -> None:
        """Let a worker come to its next event; a worker waits for nobody who hears it."""
        if (told := next(work, None)) is None:
            return
        when = (self.clock() if since is None else since) + told[0]
        event = told[1]
        if when > self._dies[worker]:
            when, event = self._dies[worker], {"event": "died", "why": "its machine was taken away."}
        heapq.heappush(self._next, (when, next(self._order), worker, work, event))

    def _work(self, worker: str, task: Task) -> Iterator[tuple[float, Event]]:
        """Yield what `draw_lease` does: seconds until an event, and the event."""
        lease, looked = task["lease"], 0.0
        for case, made, _ in task["cases"]:
            if looked > _BETWEEN_LOOKS:
                looked = 0.0
                if lease in self._committed:
                    break
            yield 0.0, {"event": "began", "case": case}
            seconds = self._pace[worker] * (seconds_of(made["seed"], self._conditions) + self._conditions.beside)
            looked += seconds
            self.drawn += 1
            yield seconds, {"event": "drawn", "case": case}
        seconds = self._conditions.commit * self._luck.lognormvariate(0.0, 0.5 if self._conditions.slow else 0.0)
        cases = [case for case, *_ in task["cases"]]
        yield seconds, {"event": "ended", "lease": lease, "committed": True, "cases": cases}
        self._committed.add(lease)


@dataclass(frozen=True)
class Simulation:
    """What came out: seconds there, of which the engine's code took some; and pictures that were drawn."""

    seconds: float
    driving: float
    drawn: int


def simulate(plan: Plan, workers: int, conditions: Conditions) -> Simulation:
    """Do a plan by so many workers that do nothing."""
    crew = Simulated(workers, conditions)
    batch = Batch(plan, MemoryStore(), clock=crew.clock)
    for _ in batch.outcomes(crew):
        pass
    if batch.pictures.left:
        raise RuntimeError(f"{batch.pictures.left} pictures are left")
    return Simulation(crew.clock(), crew.driving, crew.drawn)


def plan_of(count: int, lease: int | None = None) -> Plan:
    """Return so many pictures."""
    return Plan.of(Job(pictures=(Pictures(prompt="a dog", seed=f"0-{count - 1}"),), lease=lease))


# Real runs of sleeping cases


class UnevenHands(StillHands):
    """Sleeps for each picture."""

    def __init__(self, conditions: Conditions) -> None:
        super().__init__()
        self._conditions = conditions

    def draw(self, made: dict[str, Any], path: Path) -> None:
        """Sleep, then write a few bytes."""
        time.sleep(seconds_of(made["seed"], self._conditions))
        path.write_bytes(content_of(made))


def uneven(spec: dict[str, Any], _store: object) -> UnevenHands:
    """Make hands; the name that a worker's spec gives."""
    return UnevenHands(Conditions(**spec["model"]))


class Watched(Processes):
    """Processes whose events are noted, with the time at which they were heard."""

    def __init__(self, count: int, out: Path, conditions: Conditions) -> None:
        spec = {"out": str(out), "hands": "batch_simulation:uneven", "model": vars(conditions), "device": None}
        super().__init__(count, {**spec, "save_memory": False})
        self.began, self.events = time.monotonic(), list[tuple[float, str]]()

    def hear(self, timeout: float) -> tuple[str, Event] | None:
        """See `Crew`."""
        heard = super().hear(timeout)
        if heard is not None:
            self.events.append((time.monotonic() - self.began, heard[1]["event"]))
        return heard

    def mean(self, first: str, then: str) -> float:
        """Return the average seconds from events of one kind to those of another that come next; of one worker."""
        found = [after[0] - before[0] for before, after in itertools.pairwise(self.events) if before[1] == first]
        kinds = [after[1] for before, after in itertools.pairwise(self.events) if before[1] == first]
        chosen = [seconds for seconds, kind in zip(found, kinds, strict=True) if kind == then]
        return sum(chosen) / len(chosen)


def run_really(plan: Plan, workers: int, conditions: Conditions) -> tuple[float, Watched]:
    """Do a plan by processes that sleep; return the seconds, and what they told."""
    with tempfile.TemporaryDirectory() as folder:
        crew = Watched(workers, Path(folder), conditions)
        batch = Batch(plan, LocalStore(Path(folder)))
        for _ in batch.outcomes(crew):
            pass
        return crew.events[-1][0], crew


def check(seconds: float, picture: float) -> None:
    """Measure one worker; run several, and predict how long that took from when they were ready."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent / "tests"), *filter(None, sys.path)])
    plain = Conditions(picture=picture, uneven=0.5, slow=0.0)
    lease = max(1, round(seconds / picture / 8))
    alone = plan_of(4 * lease, lease)
    _, one = run_really(alone, 1, plain)
    slept = sum(seconds_of(number, plain) for number in range(alone.total)) / alone.total
    commit, beside = one.mean("drawn", "ended"), one.mean("began", "drawn") - slept
    print(f"one worker: {commit * 1000:.0f} ms a commit, {beside * 1000:.1f} ms a picture beside its sleep")
    print("| workers | pictures | ready after | really | predicted | difference |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for workers in (2, 4, 8):
        plan = plan_of(round(workers * seconds / picture), lease)
        real, run = run_really(plan, workers, plain)
        ready = [when for when, event in run.events if event == "ready"]  # how busy the machine is, is not the engine's
        given = replace(plain, load=(min(ready), max(ready)), commit=commit, beside=beside)
        predicted = simulate(plan, workers, given).seconds
        row = f"{real:.1f} s | {predicted:.1f} s | {predicted / real - 1:+.1%}"
        print(f"| {workers} | {plan.total} | {min(ready):.1f}-{max(ready):.1f} s | {row} |", flush=True)


# Many workers


def scale(count: int, counts: list[int], variants: dict[str, tuple[int | None, Conditions]]) -> None:
    """Print what many workers make of so many pictures, under several conditions."""
    plans: dict[int | None, Plan] = {}
    print("| conditions | workers | time | efficiency | drawn in vain | the engine is busy |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, (lease, conditions) in variants.items():
        plan = plans.setdefault(lease, plan_of(count, lease))
        for workers in counts:
            found = simulate(plan, workers, conditions)
            ideal = count * conditions.picture / workers
            waste, busy = found.drawn / count - 1, found.driving / found.seconds
            row = f"{found.seconds:,.0f} s | {ideal / found.seconds:.1%} | {waste:.2%} | {busy:.1%}"
            print(f"| {name} | {workers:,} | {row} |", flush=True)


def variants(conditions: Conditions) -> dict[str, tuple[int | None, Conditions]]:
    """Return what the simulation is repeated with, apart from its usual conditions."""
    return {
        "usual": (None, conditions),
        **{f"{lease} pictures a lease": (lease, conditions) for lease in (1, 4, 16)},
        "all seconds a third": (None, conditions.scaled(1 / 3)),
        "all seconds thrice": (None, conditions.scaled(3)),
        "each worker dies once an hour": (None, replace(conditions, deaths=1.0)),
        "each worker dies twice an hour": (None, replace(conditions, deaths=2.0)),
        "an event takes the engine 1 ms": (None, replace(conditions, hearing=0.001)),
    }


def main() -> None:
    """Read what to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("check", "scale", "vary"))
    parser.add_argument("--count", type=int, default=1_000_000, help="pictures of scale and vary")
    parser.add_argument("--workers", type=int, nargs="*", help="how many; default: 1 to 4,096, and 1,024 of vary")
    parser.add_argument("--seconds", type=float, default=60.0, help="that each worker of check sleeps")
    parser.add_argument("--picture", type=float, help="seconds of a picture; default: 0.2 of check, else 0.3")
    options = parser.parse_args()
    if options.what == "check":
        check(options.seconds, options.picture or 0.2)
        return
    conditions = Conditions(picture=options.picture or 0.3)
    chosen = variants(conditions)
    if options.what == "scale":
        scale(options.count, options.workers or [4**power for power in range(7)], {"usual": chosen["usual"]})
    else:
        scale(options.count, options.workers or [1024], chosen)


if __name__ == "__main__":
    main()
