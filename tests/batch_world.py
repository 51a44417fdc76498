"""A world for the batch engine: engines, workers and a storage that fails, each of which stops at every point.

Engine, driver, worker and what it does at a lease are the real ones. Each engine and each worker runs in a greenlet,
which hands control back at each operation on the storage, around and amid each picture and step, and at each event;
whoever holds the world then decides who goes on, who dies, who sleeps, what fails, and what time it is.
"""

import collections
import hashlib
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import greenlet
import pytest

import cones2.batch.engine
import cones2.batch.lease
import cones2.batch.resume
from batch_actors import Actor, Engine, Workman
from cones2.batch.job import Job, Photographed, Pictures
from cones2.batch.lease import Commit
from cones2.batch.plan import Case, Plan
from cones2.batch.results import read
from cones2.batch.resume import cases_elsewhere, stems, still_failed
from cones2.errors import OutputError
from cones2.examples import EXAMPLES
from faulty_store import Death, MemoryStore, StaleError, TornError

SHARDS = ((0, 1), (0, 2), (1, 2))
EVER = 10**6
"""How often what is broken for good fails."""

FAULTS = tuple(
    (kind, *each.split())
    for kind, operations in {
        "before": "create commit,create subjects,write subjects,write failed,write plan.json,put data,put checkpoints,"
        "get checkpoints,delete data,delete checkpoints,read commit,read failed,read subjects,note engines,"
        "names commit,names subjects,names failed,names engines,names checkpoints",
        "after": "create commit,create subjects,write subjects,write failed,write plan.json,put data,put checkpoints,"
        "delete data,delete checkpoints",
        "torn": "put data,put checkpoints,get checkpoints,note engines",
        "stale": "names commit,names subjects,names failed,names engines,names checkpoints",
        "slow": "create commit,create subjects,put data,put checkpoints,read commit,names commit,names subjects",
    }.items()
    for each in operations.split(",")
)
"""What may happen to a storage: how, at which operation, in which folder."""

POINTS = (
    *("event began", "before drawing", "amid drawing", "after drawing", "event drawn", "before a step", "event step"),
    *("before put", "after put", "before create", "after create", "before delete", "event ended", "idle"),
)
"""Where a worker may be stopped or killed."""


def photographed(name: str) -> Photographed:
    """Return an example's subject, which is to be learned."""
    return Photographed(tuple(photo.path for photo in EXAMPLES[name].photos), "dog")


def small_plan() -> Plan:
    """Eleven pictures in leases of three; three of them of one subject that is to be learned, and two of another."""
    subjects = {name: photographed(name) for name in ("rex", "luna")}
    prompts = (("a dog", "0-5"), ("a {rex}", "6-8"), ("a {luna}", "9-10"))
    pictures = tuple(Pictures(prompt=prompt, seed=seed) for prompt, seed in prompts)
    return Plan.of(Job(subjects, pictures, lease=3))


class OneByOne:
    """A pool without threads, so that a schedule has one order, and each read is a point to stop at."""

    def __init__(self, _count: int) -> None:
        pass

    def __enter__(self) -> "OneByOne":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    map = staticmethod(map)


class Setting:
    """A plan, what there is in it, and the bytes that one worker makes of it, one thing after the other."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.cases = {case.id: case for lease in self.plan.leases for case in self.plan.cases(lease)}
        again = [each for lease in self.plan.leases for each in self.plan.retries(lease, self.cases.keys())]
        self.leases = {lease.id: lease for lease in (*self.plan.leases, *again)}
        self._of = {name: self.plan.cases(lease) for name, lease in self.leases.items()}
        world = World(self, expected=False)
        world.begin(workers=1)
        world.end()
        self.expected = {result.id: result.content for result in read(world.store)}
        for subject in self.plan.lessons:
            self.expected[subject] = world.store.things[f"subjects/{subject}.safetensors"]
        world.close()

    def of(self, lease: str) -> list[Case]:
        """Return the cases of a lease."""
        return self._of[lease]


class World:
    """What there is, and all that can happen to it.

    Attributes:
        ailments: of a case's seed, or a subject's name: whether it `fails` or `kills`, and how often before it heals.
        happened: how often what did.
    """

    def __init__(
        self, setting: "Setting", ailments: dict[Any, tuple[str, int]] | None = None, expected: bool = True
    ) -> None:
        self.setting, self.plan, self.ailments = setting, setting.plan, dict(ailments or {})
        self.expected = setting.expected if expected else None
        self.hub: Any = greenlet.getcurrent()
        self.now = 1000.0
        self.store: MemoryStore = MemoryStore(self._meet)
        self.engines: list[Engine] = []
        self._crew: list[Workman] = []
        self.happened: collections.Counter[str] = collections.Counter()
        self._armed: dict[tuple[str, ...], None] = {}
        self._sound: dict[str, bytes] = {}
        self._checked: set[str] = set()
        self._looked = -1
        self._commits: dict[str, Commit] = {}
        memory = Path("/dev/shm")  # files there need not reach a disk
        self._folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.spool = Path(self._folder.name)
        self._patch = pytest.MonkeyPatch()
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        for module in (cones2.batch.engine, cones2.batch.lease, cones2.batch.resume):
            self._patch.setattr(module, "time", clock)
        self._patch.setattr(cones2.batch.resume, "ThreadPoolExecutor", OneByOne)

    def close(self) -> None:
        """End all."""
        for actor in [*self.engines, *self.workers()]:
            actor.condemned = True
            actor.go()
        self._patch.undo()
        self._folder.cleanup()

    # Who there is

    def workers(self) -> list[Workman]:
        """Return all living workers, also those whose engine has ended."""
        self._crew = [each for each in self._crew if not each.is_over]
        return self._crew

    def running(self) -> list[Engine]:
        """Return the engines that have not ended."""
        return [engine for engine in self.engines if not engine.is_over]

    def committed(self) -> set[str]:
        """Return the pictures that are committed."""
        self.check()
        return {case for commit in self._commits.values() for case in commit.cases}

    def learned(self) -> set[str]:
        """Return the subjects that are there."""
        return {name[9:-12] for name in self.store.things if name.startswith("subjects/") and name.endswith("tensors")}

    # What can happen

    def begin(self, shard: int = 0, workers: int = 2) -> None:
        """Let an engine begin, if not two are at work."""
        if len(self.running()) < 2:
            for what in ["two engines at once"] * len(self.running()) + ["a shard begun"] * (shard > 0):
                self.happened[what] += 1
            self.engines.append(Engine(self, SHARDS[shard], workers))

    def run(self, rounds: int = 1) -> None:
        """Let all who are awake go on, engines until they listen."""
        for _ in range(rounds):
            for engine in self.running():
                engine.go()
                for _ in range(100):
                    if engine.is_over or (engine.at == "hear" and not engine.mail):
                        break
                    engine.go()
            for worker in self.workers():
                if not worker.asleep:
                    worker.go()
            self._reap()

    def drive(self, number: int, points: int) -> None:
        """Let one engine go on alone, in which it may also stop amid an operation on the storage."""
        for engine in self.running()[number : number + 1]:
            for _ in range(points):
                engine.go()
            self._reap()

    def work(self, number: int, until: str, points: int = 40, then: str = "") -> None:
        """Let one worker that has something to do go on alone; then it may `die` or fall `asleep`."""
        awake = [each for each in self.workers() if not each.asleep and (each.tasks or each.at != "idle")]
        if not awake:
            return self.run()
        worker = awake[number % len(awake)]
        for _ in range(points):
            worker.go()
            if worker.is_over or worker.at == until or (worker.at == "idle" and not worker.tasks):
                break
        if then == "die" and not worker.is_over:
            self.happened[f"a worker died at: {worker.at}"] += 1
            worker.condemned = True
            worker.go()
        if then == "asleep" and not worker.is_over:
            self.happened[f"a worker fell asleep at: {worker.at}"] += 1
            worker.asleep = True
        return self._reap()

    def wake(self, number: int) -> None:
        """Let a worker wake up."""
        asleep = [worker for worker in self.workers() if worker.asleep]
        for worker in asleep[number : number + 1]:
            self.happened["a worker woke up" + (" after its engine" if not worker.tells else "")] += 1
            worker.asleep = False

    def drop(self, number: int) -> None:
        """Kill an engine."""
        for engine in self.running()[number : number + 1]:
            self.happened[f"an engine killed at: {engine.at}"] += 1
            engine.condemned = True
            engine.go()
            self._reap()

    def drain(self, number: int) -> None:
        """Ask an engine to end what has begun."""
        for engine in self.running()[number : number + 1]:
            self.happened["an engine drained"] += 1
            engine.drain()

    def arm(self, fault: int) -> None:
        """Let the next operation of a kind go wrong."""
        self._armed[FAULTS[fault]] = None

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def _reap(self) -> None:
        """End those who end with their engine, and what nobody will ever give a task."""
        for worker in self.workers():
            worker.condemned |= not worker.tells and worker.at == "idle"
            if worker.condemned:
                worker.go()

    def pause(self, at: str) -> None:
        """Hand control back, and come back when whoever runs here is to go on."""
        here = greenlet.getcurrent()
        if isinstance(here, Actor):
            if here.condemned:
                raise Death
            here.at = at
            self.hub.switch()

    def _meet(self, when: str, operation: str, name: str) -> None:
        self.pause(f"{when} {operation}")
        folder = name.partition("/")[0]

        def armed(kind: str) -> bool:
            if self._armed.pop((kind, operation, folder), True):
                return False
            self.happened[f"the storage {kind}: {operation} {folder}"] += 1
            return True

        if when == "before":
            if operation == "create" and name in self.store.things:
                self.happened[f"too late with: {folder}"] += 1
            if armed("slow"):
                self.now += 100.0
                self.pause("slow")
            if armed("torn"):
                raise TornError("it broke off.")
            if armed("stale"):
                raise StaleError("that was a while ago.")
        if armed(when):
            raise OutputError("the storage is not there.")

    def ail(self, key: Any) -> None:
        """Fail, or die, if what is drawn or learned is to do so."""
        kind, times = self.ailments.get(key, ("", 0))
        if times:
            self.ailments[key] = kind, times - 1
            self.happened[f"{'a picture' if isinstance(key, int) else 'a subject'} {kind}"] += 1
            raise Death if kind == "kills" else ValueError(f"{key} fails")

    # What must be so

    def check(self) -> None:
        """Check what is there: all commits and subjects are those of a serial run, none changes, none goes."""
        things = self.store.things
        if self.store.changed == self._looked:
            return
        self._looked = self.store.changed
        for name, content in [*things.items()]:
            if not (name.startswith("commit/") or (name.startswith("subjects/") and name.endswith("tensors"))):
                continue
            known = self._sound.setdefault(name, content)
            if known is content and name in self._checked:
                continue
            assert known == content, f"{name} has changed"
            self._checked.add(name)
            if name.startswith("commit/"):
                self._check_commit(name[7:-5], Commit.model_validate_json(content))
            elif self.expected is not None:
                assert content == self.expected[name[9:-12]], f"{name} is not that of a serial run"
        assert self._sound.keys() <= things.keys(), "what was committed has gone"
        assert all(commit.data is None or commit.data in things for commit in self._commits.values())

    def _check_commit(self, name: str, commit: Commit) -> None:
        """Check a new commit: its pictures are whole, in no other, and what is not among them was set aside."""
        counted = {case for each in self._commits.values() for case in each.cases}
        for case, (sha256, start, size) in commit.cases.items():
            assert case not in counted, f"{case} is committed twice"
            picture = self.store.things[str(commit.data)][start : start + size]
            assert hashlib.sha256(picture).hexdigest() == sha256
            assert self.expected is None or picture == self.expected[case], f"{case} is not that of a serial run"
        left = {case.id for case in self.setting.of(name)} - commit.cases.keys() - counted
        assert all(f"failed/{case}.json" in self.store.things for case in left), "a picture is left out of its lease"
        assert self.setting.leases[name].needs <= self.learned()
        if self.setting.leases[name].case:
            self.happened["a picture that was set aside committed by a lease of its own"] += bool(commit.cases)
        self._commits[name] = commit

    def calm(self) -> None:
        """Let all go on without faults; then nothing is left, and what is set aside is what is broken for good."""
        self._armed.clear()
        self.end()
        for worker in self.workers():
            worker.asleep = False
        self.end()
        for _ in range(5):
            self.begin()
            last = self.engines[-1]
            self.end()
            assert last.end == "done", last.end
            self.check()
            assert all(each.batch is None or each.batch.subjects.left >= 0 for each in self.engines)
            failed = {key for key, state in last.told.items() if state == "failed"}
            if failed == self.broken:
                break
        pictures, broken = {id_ for kind, id_ in self.broken if kind == "picture"}, {id_ for _, id_ in self.broken}
        blocked = {case.id for each in self.plan.leases if each.needs & broken for case in self.setting.of(each.id)}
        assert failed == self.broken, f"set aside: {failed}"
        assert self.learned() == self.plan.lessons.keys() - broken
        assert self.committed() == self.setting.cases.keys() - pictures - blocked
        commits = stems(self.store, "commit")
        elsewhere = cases_elsewhere(self.store, commits, {lease.id for lease in self.plan.leases})
        still = {each.case for each in still_failed(self.store, commits, elsewhere)}
        assert still == pictures, f"written as set aside: {still}"
        assert last.batch is not None
        counts = last.batch.subjects
        untaught = self.plan.lessons.keys() & broken
        assert (counts.done, counts.failed, counts.left) == (len(self.learned()), len(untaught), 0)
        counts = last.batch.pictures
        assert (counts.done, counts.failed, counts.blocked, counts.left) == (
            *(len(each) for each in (self.committed(), pictures, blocked)),
            0,
        )

    @property
    def broken(self) -> set[tuple[str, str]]:
        """The kind and id of what is broken for good, but for what nobody gets to try."""
        broken = {("subject", each.id) for each in self.plan.lessons.values() if self._is_broken(each.name)}
        untaught = {id_ for _, id_ in broken}
        return broken | {
            ("picture", case.id)
            for lease in self.plan.leases
            for case in self.setting.of(lease.id)
            if self._is_broken(case.made["seed"]) and not lease.needs & untaught
        }

    def _is_broken(self, key: Any) -> bool:
        return bool(self.ailments.get(key, ("", 0))[1] > EVER // 2)

    def end(self) -> None:
        """Let engines and what is left of their workers come to their ends; who sleeps is awoken for want of others."""
        quiet = 1.0
        for _ in range(3000):
            for engine in self.running():
                crew = [worker for worker in engine.crew.values() if not worker.is_over]
                if engine.drained or (len(crew) == len(engine.workers) and all(worker.asleep for worker in crew)):
                    for worker in crew[: None if engine.drained else 1]:
                        worker.asleep = False
            awake = [worker for worker in self.workers() if not worker.asleep]
            if not self.running() and not awake:
                return
            quiet = 2 * quiet if all(worker.at == "idle" and not worker.tasks for worker in awake) else 1.0
            self.now += min(quiet - 1.0, 200.0)
            self.run()
            self.check()
        raise AssertionError(f"no end: {[(engine.name, engine.at) for engine in self.running()]}")
