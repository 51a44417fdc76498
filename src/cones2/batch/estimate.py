"""What a job will take: one of its pictures is drawn, and a few steps of its learning are taken."""

import itertools
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from cones2.batch.plan import Plan
from cones2.batch.store import LocalStore
from cones2.batch.work import ModelHands

_STEPS = 4
"""Of learning; the first is not counted, since it also loads photos and captions."""


class Sample(NamedTuple):
    """Seconds that a picture and a subject take on this machine, and bytes of a picture; 0 where there are none."""

    picture: float
    subject: float
    size: int


def measure(plan: Plan, *, device: str | None = None) -> Sample:
    """Measure a job's first picture, without what is still to be learned, and its first subject."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(Path(folder))
        for name, residual in plan.residuals.items():
            store.create(f"subjects/{name}.safetensors", residual.to_bytes())
        hands = ModelHands(plan.model, store, device=device, save_memory=plan.job.save_memory)
        picture, size = _measure_picture(plan, hands, Path(folder)) if plan.total else (0.0, 0)
        return Sample(picture, _measure_subject(plan, hands, Path(folder)) if plan.lessons else 0.0, size)


def _measure_picture(plan: Plan, hands: ModelHands, folder: Path) -> tuple[float, int]:
    made = dict(plan.entries.case(0).made)
    made["subjects"] = {
        name: each if each["residual"] in plan.residuals else {**each, "residual": None, "strength": 1.0}
        for name, each in made["subjects"].items()
    }
    hands.draw({**made, "arguments": {**made["arguments"], "num_inference_steps": 1}}, folder / "first.png")
    began = time.monotonic()
    hands.draw(made, folder / "sample.png")
    return time.monotonic() - began, (folder / "sample.png").stat().st_size


def _measure_subject(plan: Plan, hands: ModelHands, folder: Path) -> float:
    steps = hands.learn(next(iter(plan.lessons.values())), folder / "learning")
    times = [time.monotonic()]
    with closing(steps):
        for step in itertools.islice(steps, _STEPS):
            count = int(step.steps)
            times.append(time.monotonic())
    each = (times[-1] - times[1]) / max(1, len(times) - 2)
    return times[1] - times[0] + each * (count - 1)
