"""What a job takes: by a sample of it that is drawn before it runs, and by the pace of its workers while it does."""

import itertools
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cones2.batch.job import Pictures
from cones2.batch.plan import Plan
from cones2.batch.store import LocalStore

if TYPE_CHECKING:
    from cones2.batch.work import ModelHands

_STEPS = 4
"""Of learning; the first is not counted, since it also loads photos and captions."""
_MOST_KINDS = 12
"""Kinds of pictures, of which one of each is drawn; of more, so many that are chosen at random."""
_COSTS: dict[str, Callable[[Any], object]] = {
    **dict.fromkeys(("num_inference_steps", "height", "width", "scheduler", "preset", "guided_steps"), str),
    **dict.fromkeys(("guidance_scale", "true_cfg_scale"), lambda scale: scale > 1),
    "layout": lambda layout: layout != "none",
}
"""What makes a picture take another time than the others, and what matters of it."""


@dataclass
class Labour:
    """What one worker has done since its batch began, and is at.

    Attributes:
        pictures, subjects: how many it has drawn, and learned.
        at: what it is at, in words; empty where it waits.
    """

    pictures: int = 0
    subjects: int = 0
    at: str = ""
    _subject: str = ""
    _open: float = 0.0  # pictures of its lease, or the part of its subject
    _begun: bool = False
    _since: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return what it has done, and is at, by name."""
        return {"pictures": self.pictures, "subjects": self.subjects, "at": self.at}


class Pace:
    """How fast the workers of a batch are, by what they tell; what was done before it began counts for nothing.

    Attributes:
        workers: what each has done, and is at.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.workers: dict[str, Labour] = {}
        self._clock = clock
        self._spent, self._made = {False: 0.0, True: 0.0}, {False: 0.0, True: 0.0}  # by whether it is of subjects

    def given(self, worker: str, subject: str) -> None:
        """Note that a worker begins to learn a subject, or, where none is named, to draw a lease."""
        labour = self.workers.setdefault(worker, Labour())
        labour.at = f"learning {subject}" if subject else "drawing"
        labour._subject, labour._open, labour._since = subject, 0.0, self._clock()

    def heard(self, worker: str, event: dict[str, Any]) -> None:
        """Note what a worker tells of its lease; a picture that was there before it was begun is none of this batch."""
        labour, now = self.workers[worker], self._clock()
        self._spent[bool(labour._subject)] += now - labour._since
        labour._since = now
        match event["event"]:
            case "began" | "failed":
                labour._begun = event["event"] == "began"
            case "drawn":
                labour._open += 1
                labour.pictures += labour._begun
                self._made[False] += labour._begun
                labour._begun = False
            case "step":
                labour._open = event["step"] / event["steps"]
                labour.at = f"learning {labour._subject}, step {event['step']} of {event['steps']}"
                self._made[True] += 1 / event["steps"]
            case "ended":
                labour.subjects += bool(labour._subject and event["committed"])
                self.over(worker)

    def over(self, worker: str) -> None:
        """Note that a worker is at nothing any more."""
        labour = self.workers.get(worker, Labour())
        labour.at, labour._open, labour._begun = "", 0.0, False

    def open(self, *, subjects: bool) -> float:
        """Return how many pictures, or subjects in parts, of leases that are not committed there are."""
        return sum((each._open for each in self.workers.values() if bool(each._subject) is subjects), 0.0)

    def left(self, pictures: int, subjects: int, workers: int) -> float | None:
        """Return the seconds that so many workers take for the rest; None where there is nothing to tell it by."""
        seconds = 0.0
        for taught, count in ((False, pictures), (True, subjects)):
            rest = max(0.0, count - self.open(subjects=taught))
            if rest and not (self._made[taught] and workers):
                return None
            seconds += rest and rest * self._spent[taught] / self._made[taught] / workers
        return seconds


class Sample(NamedTuple):
    """Seconds that a picture and a subject take on this machine, and bytes of a picture; 0 where there are none."""

    picture: float
    subject: float
    size: int


def measure(plan: Plan, *, device: str | None = None) -> Sample:
    """Measure a picture of each kind, without what is still to be learned, and a job's first subject."""
    from cones2.batch.work import ModelHands  # takes a second, and workers need only the above

    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        for name, residual in plan.residuals.items():
            store.create(f"subjects/{name}.safetensors", residual.to_bytes())
        hands = ModelHands(plan.model, store, device=device, save_memory=plan.job.save_memory)
        picture, size = _measure_pictures(plan, hands, Path(folder)) if plan.total else (0.0, 0)
        return Sample(picture, _measure_subject(plan, hands, Path(folder)) if plan.lessons else 0.0, size)


def _measure_pictures(plan: Plan, hands: "ModelHands", folder: Path) -> tuple[float, int]:
    """Return the mean seconds and bytes of a picture, each kind weighing as many as are of it."""
    kinds = kinds_of(plan.job.pictures)
    if len(kinds) > _MOST_KINDS:
        kinds = random.Random(0).sample(kinds, _MOST_KINDS)
    made = list(_drawable(plan, kinds))
    hands.draw({**made[0], "arguments": {**made[0]["arguments"], "num_inference_steps": 1}}, folder / "first.png")
    seconds = size = 0.0
    for each, (_, count) in zip(made, kinds, strict=True):
        began = time.monotonic()
        hands.draw(each, folder / "sample.png")
        seconds += count * (time.monotonic() - began)
        size += count * (folder / "sample.png").stat().st_size
    total = sum(count for _, count in kinds)
    return seconds / total, round(size / total)


def kinds_of(pictures: Iterable[Pictures]) -> list[tuple[int, int]]:
    """Return, of each kind of pictures that may take a time of its own, the number of a case and how many there are."""
    found: dict[tuple[object, ...], tuple[int, int]] = {}
    start = 0
    for axes in (each.axes() for each in pictures):
        places = []
        for name, values in axes.items():
            costs: dict[object, tuple[int, int]] = {}
            for place, value in enumerate(values if name in _COSTS else ()):
                cost = name, _COSTS[name](value)
                first, many = costs.get(cost, (place, 0))
                costs[cost] = first, many + 1
            places.append([(cost, *each) for cost, each in costs.items()] or [(None, 0, len(values))])
        for picked in itertools.product(*places):
            number = 0
            for (_, place, _), values in zip(picked, axes.values(), strict=True):
                number = number * len(values) + place  # as a case's number is read
            kind = tuple(cost for cost, _, _ in picked if cost is not None)
            first, many = found.get(kind, (start + number, 0))
            found[kind] = first, many + math.prod(many for _, _, many in picked)
        start += math.prod(map(len, axes.values()))
    return list(found.values())


def _drawable(plan: Plan, kinds: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for number, _ in kinds:
        made = dict(plan.entries.case(number).made)
        made["subjects"] = {
            name: each if each["residual"] in plan.residuals else {**each, "residual": None, "strength": 1.0}
            for name, each in made["subjects"].items()
        }
        yield made


def _measure_subject(plan: Plan, hands: "ModelHands", folder: Path) -> float:
    steps = hands.learn(next(iter(plan.lessons.values())), folder / "learning")
    times = [time.monotonic()]
    with closing(steps):
        for step in itertools.islice(steps, _STEPS):
            count = int(step.steps)
            times.append(time.monotonic())
    each = (times[-1] - times[1]) / max(1, len(times) - 2)
    return times[1] - times[0] + each * (count - 1)
