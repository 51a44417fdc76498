"""A world for the batch engine: engines, workers and a storage that fails, each of which stops at every point.

Engine, driver, worker and what it does at a lease are the real ones. Each engine and each worker runs in a greenlet that
hands control back at each operation on the storage, around and amid each picture and step, and at each event; whoever
holds the world then decides who goes on, who dies, who sleeps, what fails, and what time it is.
"""

import collections
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import greenlet
import pytest

import cones2.batch.engine
import cones2.batch.lease
import cones2.batch.resume
from cones2.batch.engine import Batch, Outcome, Task
from cones2.batch.job import Job, Photographed, Pictures
from cones2.batch.lease import Bench, Commit, Event
from cones2.batch.plan import Case, Lesson, Plan
from cones2.batch.results import read
from cones2.batch.resume import cases_elsewhere, stems, still_failed
from cones2.batch.worker import Worker
from cones2.errors import OutputError
from cones2.examples import EXAMPLES
from cones2.files import write_atomically
from cones2.residual import Residual
from faulty_store import Death, MemoryStore, Stale, Torn, content_of, numbered_residual

STEPS = 5
SECONDS, SECONDS_OF_STEP = 5.0, 20.0
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


class Actor(greenlet.greenlet):
    """An engine or a worker: it runs until its next point whenever it is told to."""

    def __init__(self, world: "World", name: str) -> None:
        super().__init__(parent=world.hub)
        self.world, self.name = world, name
        self.at, self.asleep, self.condemned = "start", False, False

    def go(self) -> None:
        """Run to the next point, which may be the end."""
        if self.condemned and not self.gr_frame:
            return
        self.throw(Death) if self.condemned else self.switch()

    @property
    def is_over(self) -> bool:
        """Whether it has come to its end."""
        return self.dead or (self.condemned and not self.gr_frame)


class Workman(Actor):
    """A worker: the real one but for how it begins."""

    def __init__(self, engine: "Engine", name: str) -> None:
        super().__init__(engine.world, name)
        self.engine = engine
        self.tasks: collections.deque[Task] = collections.deque()
        self.tells = True  # nobody hears what has an engine no more

    def run(self) -> None:
        """Do one task after the other."""
        worker = Worker({})
        bench = Bench(self.world.store, self.world.spool, lambda: self.engine.drained)
        worker._bench, worker._hands = bench, WorldHands(self.world)
        try:
            self.tell({"event": "ready"})
            while True:
                while not self.tasks:
                    self.world.pause("idle")
                for event in worker.do(self.tasks.popleft()):
                    self.tell(event)
                    if event["event"] == "gave up":
                        self.world.happened["a worker gave up"] += 1
                        return
                    self.world.pause(f"event {event['event']}")
        except Death:
            self.tell({"event": "died", "why": "killed"})

    def tell(self, event: Event) -> None:
        """Tell the engine something."""
        if self.tells:
            self.engine.mail.append((self.name, event))


class Engine(Actor):
    """An engine, and the crew that it has: see `cones2.batch.engine.Crew`."""

    def __init__(self, world: "World", shard: tuple[int, int], workers: int) -> None:
        super().__init__(world, f"engine {len(world.engines)}")
        self.shard = shard
        self.workers = tuple(f"worker {number}" for number in range(workers))
        self.mail: collections.deque[tuple[str, Event]] = collections.deque()
        self.crew: dict[str, Workman] = {}
        self.batch: Batch | None = None
        self.told: dict[tuple[str, str], str] = {}
        self.drained, self.end = False, ""

    def run(self) -> None:
        """Do the plan."""
        world = self.world
        try:
            self.batch = Batch(world.plan, world.store, shard=self.shard, clock=lambda: world.now)
            for outcome in self.batch.outcomes(self):
                if outcome is not None:
                    self._note(outcome)
            self.end = "done"
        except OutputError as error:
            self.end = str(error)
            world.happened["an engine ended with an error"] += 1
        except Death:
            self.end = "killed"

    def _note(self, outcome: Outcome) -> None:
        """Check what it tells: nothing twice, and nothing that is not so."""
        key = (outcome.kind, outcome.id)
        assert self.told.get(key) in (None, "failed" if outcome.state == "done" else None), f"{key} is told twice"
        self.told[key] = outcome.state
        if outcome.state == "done":
            there = outcome.id in (self.world.committed() if outcome.kind == "picture" else self.world.learned())
            assert there, f"{key} is told, but not there"
        elif outcome.error == "killed":
            self.world.happened[f"a {outcome.kind} set aside that ended its workers"] += 1
        else:
            self.world.happened[f"a {outcome.kind} set aside that failed"] += 1

    def start(self, worker: str) -> None:
        """See `Crew`."""
        self.crew[worker] = Workman(self, worker)
        self.world._crew.append(self.crew[worker])

    def give(self, worker: str, task: Task) -> None:
        """See `Crew`."""
        assert self.batch is not None
        lease = self.batch._tasks[worker][0]
        if [each.id for each, _ in self.batch._tasks.values()].count(lease.id) > 1:
            kind = "pictures" if lease.numbers else "a subject"
            self.world.happened[f"{kind} of a straggler given to another worker"] += 1
        self.crew[worker].tasks.append(task)

    def hear(self, timeout: float) -> tuple[str, Event] | None:
        """See `Crew`."""
        self.world.pause("hear")
        if self.mail:
            return self.mail.popleft()
        self.world.now += timeout
        return None

    def drain(self) -> None:
        """Ctrl-C."""
        self.drained = True
        if self.batch is not None:
            self.batch.drain()

    def close(self) -> None:
        """See `Crew`; who sleeps does not end with the engine, and may wake up afterwards."""
        for each in self.crew.values():
            each.tells, each.condemned = False, each.condemned or not each.asleep


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
        self.hub = greenlet.getcurrent()
        self.now = 1000.0
        self.store = MemoryStore(self._meet)
        self.engines: list[Engine] = []
        self._crew: list[Workman] = []
        self.happened: collections.Counter[str] = collections.Counter()
        self._armed: dict[tuple[str, ...], None] = {}
        self._sound: dict[str, bytes] = {}
        self._checked: set[str] = set()
        self._looked = -1
        self._commits: dict[str, Commit] = {}
        memory = Path("/dev/shm")  # noqa: S108 - files there need not reach a disk
        self._folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        self.spool = Path(self._folder.name)
        self._patch = pytest.MonkeyPatch()
        clock = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        for module in (cones2.batch.engine, cones2.batch.lease, cones2.batch.resume):
            self._patch.setattr(module, "time", clock)

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
        """Hand control back, and come back when whoever runs here is to go on; in other threads, nothing."""
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
                raise Torn("it broke off.")
            if armed("stale"):
                raise Stale("that was a while ago.")
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
        return self.ailments.get(key, ("", 0))[1] > EVER // 2

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


class WorldHands:
    """Draws bytes that depend on what makes a picture alone, and learns numbers by steps, each of the one before."""

    def __init__(self, world: World) -> None:
        self.world = world

    def draw(self, made: dict[str, Any], path: Path) -> None:
        """See `cones2.batch.lease.Hands`."""
        self.world.pause("before drawing")
        content = content_of(made)
        for each in made["subjects"].values():
            residual = self.world.store.read(f"subjects/{each['residual']}.safetensors")
            content += hashlib.sha256(residual or b"").digest()
        self.world.now += SECONDS
        self.world.pause("amid drawing")
        self.world.ail(made["seed"])
        write_atomically(path, content)
        self.world.pause("after drawing")

    def learn(self, lesson: Lesson, folder: Path) -> Iterator["WorldStep"]:
        """See `cones2.batch.lease.Hands`."""
        first, state = 1, hashlib.sha256(lesson.id.encode()).hexdigest()
        if manifests := sorted(folder.glob("step-*.json")):
            known = json.loads(manifests[-1].read_bytes())
            first, state = known["step"] + 1, manifests[-1].with_suffix(".safetensors").read_text()
            assert state == known["state"], "a checkpoint is torn"
            self.world.happened["a subject gone on with from a checkpoint"] += 1
        for step in range(first, STEPS + 1):
            self.world.pause("before a step")
            self.world.now += SECONDS_OF_STEP
            if step >= 2:
                self.world.ail(lesson.name)
            state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
            yield WorldStep(step, lesson, folder, state)

    def report(self, lesson: Lesson, last: Any) -> dict[str, Any]:
        """See `cones2.batch.lease.Hands`."""
        return {"name": lesson.name, "loss": last.loss}


@dataclass(frozen=True)
class WorldStep:
    """A step of learning a number."""

    step: int
    lesson: Lesson
    folder: Path
    state: str
    steps: int = STEPS
    loss: float = 0.5

    def save_checkpoint(self) -> None:
        """Write what the learning goes on from."""
        place = self.folder / f"step-{self.step:08d}.safetensors"
        place.write_text(self.state)
        place.with_suffix(".json").write_text(json.dumps({"step": self.step, "state": self.state}))

    @property
    def residual(self) -> Residual:
        """What is learned so far."""
        return numbered_residual(self.lesson, int(self.state[:6], 16) / 2**24)


