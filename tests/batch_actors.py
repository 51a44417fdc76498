"""Those who act in the world of `batch_world`: engines and workers, each of which stops at every point, and hands."""

import collections
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import greenlet

from cones2.batch.engine import Batch, Outcome, Task
from cones2.batch.lease import Bench, Event
from cones2.batch.plan import Lesson
from cones2.batch.worker import Worker
from cones2.errors import OutputError
from cones2.files import write_atomically
from cones2.residual import Residual
from faulty_store import Death, content_of, numbered_residual

if TYPE_CHECKING:
    from batch_world import World

STEPS = 5
SECONDS, SECONDS_OF_STEP = 5.0, 20.0


class Actor(greenlet.greenlet):  # type: ignore[misc] # it has no types
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


class WorldHands:
    """Draws bytes that depend on what makes a picture alone, and learns numbers by steps, each of the one before."""

    def __init__(self, world: "World") -> None:
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
        for manifest in sorted(folder.glob("step-*.json"), reverse=True):  # the newest that is sound
            known = json.loads(manifest.read_bytes())
            if manifest.with_suffix(".safetensors").read_text() == known["state"]:
                first, state = known["step"] + 1, known["state"]
                self.world.happened["a subject gone on with from a checkpoint"] += 1
                break
            self.world.happened["a torn checkpoint passed over"] += 1
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
