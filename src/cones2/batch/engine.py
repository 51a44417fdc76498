"""Running a plan: gives leases to workers of any kind, hears what they tell, and writes down what is set aside."""

import contextlib
import json
import math
import platform
import secrets
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import platformdirs

from cones2.batch.driver import Driver
from cones2.batch.estimate import Pace
from cones2.batch.lease import Bench, Event, Hands, draw_lease, learn_lease
from cones2.batch.plan import Case, Lease, Lesson, Plan, hash_of
from cones2.batch.resume import Failure, Standing, find_standing, read_engines, stems, write_plan
from cones2.batch.store import LocalStore, Store
from cones2.errors import Cones2Warning, ModelError, OutputError, counted

_BEAT = 5.0
"""Seconds between two notes for `status`."""
_PATIENCE = 1.0
"""Seconds after which whoever takes the outcomes may look again, although there is none."""
_ABANDONED = 120.0
"""Seconds after which a subject is learned here whose engine has ended, has set it aside or does not get on with it."""
_MOST_TROUBLES = 8
"""Workers in a row that end between cases, or can't go on, before the batch ends; two for each that there is do."""

Task = dict[str, Any]
"""What a worker is given: a lease with its cases, or a lesson, as JSON values."""


@dataclass(frozen=True)
class Outcome:
    """What became of one picture or subject.

    Attributes:
        id: the hash of what makes it.
        kind: `picture` or `subject`.
        state: `done`: it stands in the storage; or `failed`: it was set aside.
        worker: who did it.
        name: of a subject.
        error: why it failed.
    """

    id: str
    kind: str
    state: str
    worker: str
    name: str = ""
    error: str = ""


@runtime_checkable
class Crew(Protocol):
    """Workers, wherever they are: each tells that it is ready, then does one task after the other."""

    @property
    def workers(self) -> Sequence[str]:
        """Their names."""

    def start(self, worker: str) -> None:
        """Begin a worker, or begin it again after it ended."""

    def give(self, worker: str, task: Task) -> None:
        """Give a worker that is ready a task."""

    def hear(self, timeout: float) -> tuple[str, Event] | None:
        """Return who tells what, after at most so many seconds; None where nobody does.

        Beside a lease's events these are `ready`; `gave up`, for no case's fault, and `died`, both with a `why`.
        """

    def drain(self) -> None:
        """Ask the workers to stop learning at the end of the running step, with a checkpoint."""

    def close(self) -> None:
        """End all workers at once."""


def do_task(bench: Bench, hands: Hands, task: Task) -> Iterator[Event]:
    """Do what a worker was given; yield what it tells."""
    if "lesson" in task:
        yield from learn_lease(bench, hands, Lesson(**task["lesson"]))
    else:
        yield from draw_lease(bench, hands, task["lease"], [Case(*each) for each in task["cases"]])


class Inline:
    """One worker in this process; what it can't go on with is raised here."""

    workers = ("worker 1",)

    def __init__(self, bench: Bench, make: Callable[[], Hands]) -> None:
        self._bench, self._make = bench, make
        self._hands: Hands | None = None
        self._told: Iterator[Event] = iter(())

    def start(self, worker: str) -> None:  # noqa: ARG002 - there is only one
        """See `Crew`."""
        self._told = iter([{"event": "ready"}])

    def give(self, worker: str, task: Task) -> None:  # noqa: ARG002
        """See `Crew`."""
        self._hands = self._hands or self._make()
        self._told = do_task(self._bench, self._hands, task)

    def hear(self, timeout: float) -> tuple[str, Event] | None:
        """See `Crew`."""
        event = next(self._told, None)
        if event is None:
            time.sleep(timeout)
        return None if event is None else (self.workers[0], event)

    def drain(self) -> None:
        """See `Crew`; the bench tells it."""

    def close(self) -> None:
        """See `Crew`."""


class Batch:
    """A plan that is being done.

    Attributes:
        name: of its note in `engines/`.
        pictures, subjects: how many are done, failed and left.
        pace: what each worker has done, and how long the rest takes.
        began: when, by the clock.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        *,
        shard: tuple[int, int] = (0, 1),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan, self.store, self._clock = plan, store, clock
        self._shard: dict[str, Any] = {
            "plan": hash_of([lease.id for lease in plan.leases]),
            "part": shard[0],
            "parts": shard[1],
        }
        self.standing: Standing = find_standing(plan, store, shard=shard)
        leases, learned = self.standing.leases, self.standing.learned
        own = {lease.id for lease in leases}
        foreign = plan.lessons.keys() - learned - own
        if any(read_engines(store)):
            leases = leases[::-1]  # so that two engines meet in the middle, rather than do the same all the way
        self.driver = Driver(leases, learned | plan.residuals.keys(), foreign)
        self.pictures, self.subjects = self.standing.pictures, self.standing.subjects
        self.pace, self._at_work = Pace(clock), 0
        self.began, self._done_before = self._clock(), self.pictures.done
        self.name = secrets.token_hex(8)
        self._tasks: dict[str, tuple[Lease, list[Case]]] = {}
        self._beaten = self._looked = -math.inf
        self._seen: dict[str, tuple[list[str], float]] = {}
        self._ready, self._workers = False, 1

    def outcomes(self, crew: Crew) -> Iterator[Outcome | None]:
        """Do the plan; yield what became of each picture and subject, and None now and then in between.

        Raises:
            OutputError: the storage fails; what was drawn is kept, and a new batch goes on.
            Cones2Error: no worker can begin.
        """
        try:
            write_plan(self.plan, self.store)
            self.store.write(f"engines/{self.name}.json", self._note_of_itself())  # which workers look for
            self._workers = len(crew.workers)
            due = dict.fromkeys(crew.workers, -math.inf)
            idle: dict[str, None] = {}  # in the order in which they became so
            looked = self._clock()
            while not self.driver.is_over:
                for worker in [worker for worker, when in due.items() if when <= self._clock()]:
                    del due[worker]
                    crew.start(worker)
                self._give(crew, idle)
                if (heard := crew.hear(0.2)) is not None:
                    worker, event = heard
                    self._ready |= event["event"] == "ready"
                    if event["event"] in ("ready", "ended"):
                        idle[worker] = None
                    if event["event"] in ("died", "gave up"):
                        idle.pop(worker, None)
                        yield from self._note_end(worker, event, due)
                    else:
                        yield from self._note(worker, event)
                if heard is None or self._clock() - looked > _PATIENCE:
                    looked = self._clock()
                    yield None
                self._look_around()
        except OutputError:
            self._beaten = math.inf  # a storage that fails would be waited for: the note is old in half a minute
            raise
        finally:
            crew.close()
            if self._beaten < math.inf:
                with contextlib.suppress(OutputError):
                    self.store.delete(f"engines/{self.name}.json")
        self.pictures.blocked = self.driver.blocked

    def drain(self) -> None:
        """Begin no more leases; `outcomes` ends when those that are running have."""
        self.driver.draining = True

    @property
    def running(self) -> Sequence[str]:
        """The workers that are at work."""
        return sorted(self._tasks)

    @property
    def rate(self) -> float:
        """Pictures a second, since this began."""
        drawn = self.pictures.done - self._done_before + self.pace.open(subjects=False)
        return drawn / max(1e-9, self._clock() - self.began)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at this pace; None where it is not known yet, or nobody is at work."""
        return self.pace.left(self.pictures.left, self.subjects.left, self._at_work)

    def _give(self, crew: Crew, idle: dict[str, None]) -> None:
        """Give idle workers what there is; where there is nothing for one, there is nothing for the others."""
        while idle:
            worker = next(iter(idle))
            lease = self.driver.take(worker, self._clock())
            if lease is None:
                break
            del idle[worker]
            lesson = self.plan.lessons.get(lease.id)
            self.pace.given(worker, "" if lesson is None else lesson.name)
            if lesson is not None:
                self._tasks[worker] = (lease, [])
                crew.give(worker, {"lesson": asdict(lesson)})
                continue
            left = [case for case in self.plan.cases(lease) if case.id not in self.standing.elsewhere]
            self._tasks[worker] = (lease, left)
            cases = [tuple(case) for case in left if case.id not in self.driver.aside]
            crew.give(worker, {"lease": lease.id, "cases": cases})
        self._at_work = len(self._tasks)

    def _note(self, worker: str, event: Event) -> Iterator[Outcome]:
        """Note what a worker tells of a case or its lease."""
        if worker in self._tasks:
            self.pace.heard(worker, event)
        match event["event"]:
            case "began":
                self.driver.began(worker, event["case"], self._clock())
            case "drawn":
                self.driver.progressed(worker, event["case"], self._clock())
            case "step":
                self.driver.progressed(worker, event["case"], self._clock(), event["step"])
            case "failed":
                if self.driver.failed(worker, event["case"], event["error"]):
                    yield self._set_aside(worker, event["case"], event["error"])
            case "ended":
                yield from self._ended(worker, event)
            case "warning":
                warnings.warn(event["text"], Cones2Warning, stacklevel=2)

    def _note_end(self, worker: str, event: Event, due: dict[str, float]) -> Iterator[Outcome]:
        """Note the end of a worker, and when to begin it again."""
        why, most = event["why"], _MOST_TROUBLES
        if event["event"] == "died":
            blamed, pause = self.driver.died(worker, why)
            if blamed is not None:
                yield self._set_aside(worker, blamed, why)
        else:
            if not self._ready:
                raise ModelError(why)  # no other worker would fare better
            if not self.driver.troubles:  # the others' will be the same
                warnings.warn(f"{worker} can't go on: {why}", Cones2Warning, stacklevel=2)
            pause, most = self.driver.gave_up(worker), min(_MOST_TROUBLES, 2 * self._workers)
        due[worker] = self._clock() + pause
        self._tasks.pop(worker, None)
        self.pace.over(worker)
        if self.driver.troubles >= most:
            raise OutputError(
                f"{counted(self.driver.troubles, 'worker')} in a row could not go on, the last one: {why}"
            )

    def _ended(self, worker: str, event: Event) -> Iterator[Outcome]:
        lease, cases = self._tasks.pop(worker)
        was_aside = lease.id in self.driver.aside
        if not self.driver.ended(worker, lease, committed=event["committed"], now=self._clock()):
            return
        if not lease.numbers:
            self.subjects.done += 1
            self.subjects.failed -= was_aside
            yield Outcome(lease.id, "subject", "done", worker, self.plan.lessons[lease.id].name)
            return
        committed = set(event["cases"])
        for case in cases:
            if case.id in committed:
                self.pictures.done += 1
                self.pictures.failed -= case.id in self.driver.aside  # here, but not for who committed it
                yield Outcome(case.id, "picture", "done", worker)
            elif case.id not in self.driver.aside:
                self.pictures.failed += 1
                yield Outcome(case.id, "picture", "failed", worker, error="another engine has set it aside.")

    def _set_aside(self, worker: str, case: str, error: str) -> Outcome:
        """Write down that a case failed for good, before its lease can be committed without it."""
        lesson = self.plan.lessons.get(case)
        name = "" if lesson is None else lesson.name
        lease, cases = self._tasks[worker]
        labels = next((each.labels for each in cases if each.id == case), {})
        text = name or ", ".join(f"{key} {value}" for key, value in labels.items())[:1000]
        failure = Failure(case=case, lease=lease.origin or lease.id, error=error[:1000], name=text)
        self.store.write(f"failed/{case}.json", failure.model_dump_json().encode())
        kind = "picture" if lesson is None else "subject"
        (self.pictures if lesson is None else self.subjects).failed += 1
        return Outcome(case, kind, "failed", worker, name, error)

    def _look_around(self) -> None:
        """Tell `status` how it goes, and look whether subjects of other engines are there."""
        now = self._clock()
        if now - self._beaten > _BEAT:
            self._beaten = now
            self.pictures.blocked = self.driver.blocked if self.driver.aside else 0
            self.store.note(f"engines/{self.name}.json", self._note_of_itself())
        if now - self._looked > _BEAT:
            self._looked = now
            self._look_for_subjects(now)

    def _look_for_subjects(self, now: float) -> None:
        waits_for = self.driver.waits_for
        if not waits_for:
            return
        there = stems(self.store, "subjects", ".safetensors")
        queued = self._queued_elsewhere() - stems(self.store, "failed")  # who has set it aside does not try it again
        for subject in waits_for:
            if subject in there:
                self.driver.learned(subject)
                continue
            checkpoints = self.store.names(f"checkpoints/{subject}")
            seen, since = self._seen.setdefault(subject, (checkpoints, now))
            if seen != checkpoints or subject in queued:
                self._seen[subject] = (checkpoints, now)
            elif now - since > _ABANDONED:
                self.subjects.total += 1
                self.driver.add(next(lease for lease in self.plan.leases if lease.id == subject))

    def _queued_elsewhere(self) -> set[str]:
        """Return the subjects that other engines at work are to learn, and are not learning now."""
        found: set[str] = set()
        for told in read_engines(self.store):
            part = told.shard.part
            if part < self._shard["parts"] and told.shard.model_dump() == {**self._shard, "part": part}:
                running = list(told.workers.values())
                lessons = self.plan.leases[part : len(self.plan.lessons) : self._shard["parts"]]
                found |= {lease.id for lease in lessons if lease.id[:12] not in running}
        return found

    def _note_of_itself(self) -> bytes:
        return json.dumps(self.describe()).encode()

    def describe(self) -> dict[str, Any]:
        """Return how it goes, as JSON values."""
        return {
            "time": time.time(),
            "host": platform.node(),
            "pictures": self.pictures.as_json(),
            "subjects": self.subjects.as_json(),
            "rate": round(self.rate, 4),
            "seconds_left": None if self.seconds_left is None else round(self.seconds_left, 1),
            "shard": self._shard,
            "workers": {worker: lease.id[:12] for worker, (lease, _) in sorted(self._tasks.items())},
            "by_worker": {worker: labour.as_json() for worker, labour in sorted(self.pace.workers.items())},
        }


def spool_of(store: Store, out: str) -> Path:
    """Return the folder of this machine where pictures of open leases are kept; in a local storage, a hidden one."""
    if isinstance(store, LocalStore):
        return store.folder / ".spool"
    return platformdirs.user_cache_path("cones2") / "batch" / hash_of(out)[:16]
