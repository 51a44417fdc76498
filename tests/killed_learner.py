"""Learns one residual undisturbed, and one that is killed at five random moments and resumed; `test_learning` runs it.

Usage: python killed_learner.py MODEL_FOLDER OUT_FOLDER. One thread and no gradient before a fork, so forking is safe.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from cones2.learning.learner import learn_steps
from cones2.learning.recipe import Recipe
from cones2.models import open_pipeline
from cones2.photos import Photo

RECIPE = Recipe(steps=20, batch_size=2, learning_rate=1e-3, captions_per_step=2, caption_count=4)


def main(model: str, out: Path) -> None:
    torch.set_num_threads(1)
    pipeline = open_pipeline(model, device="cpu")
    photos = [Photo(Path("a.png"), "a" * 64, Image.radial_gradient("L").convert("RGB"))]

    def learn(name: str, *, resume: bool) -> None:
        folder = out / f"{name}-state"
        steps = learn_steps(pipeline, photos, "dog", RECIPE, checkpoint=folder, checkpoint_every=1, resume=resume)
        *_, last = steps
        last.residual.save(out / f"{name}.safetensors")

    wait(in_child(lambda: learn("undisturbed", resume=False)))
    draw = random.Random(1)
    for _ in range(5):
        kill_after(in_child(lambda: learn("killed", resume=True)), out / "killed-state", draw)
    wait(in_child(lambda: learn("killed", resume=True)))


def kill_after(child: int, state: Path, draw: random.Random) -> None:
    """Kill the child within a tenth of a second of its start, or of its first, second or third checkpoint."""
    goal = newest(state) + draw.randint(0, 3)
    while newest(state) < goal:
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    if os.WTERMSIG(os.waitpid(child, 0)[1]) != signal.SIGKILL:
        sys.exit("the learner ended before it was killed")


def newest(state: Path) -> int:
    return max((int(path.stem.removeprefix("step-")) for path in state.glob("step-*.json")), default=0)


def in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def wait(child: int) -> None:
    status = os.waitpid(child, 0)[1]
    if status:
        sys.exit(f"the learner ended with status {status}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
