"""The batch engine: `python benchmarks/batch.py work`, or `control`, each of which says what it measures.

`work` learns six subjects and draws 200 pictures on `mini`: by one worker of one thread, by two, and by two that are
killed now and then; all bytes must be equal. `control` commits cases that take no time, and goes on from them.
"""

import argparse
import contextlib
import hashlib
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cones2.batch import read, verify
from cones2.batch.engine import Batch, Inline
from cones2.batch.job import Job, Photographed, Pictures
from cones2.batch.lease import Bench
from cones2.batch.plan import Plan
from cones2.batch.processes import Processes
from cones2.batch.results import read_subjects
from cones2.batch.store import LocalStore
from cones2.batch.worker import MODEL
from cones2.examples import EXAMPLES
from cones2.learning.recipe import RECIPES, Recipe
from faulty_store import MemoryStore, StillHands

NAMES = ("rex", "fido", "luna", "momo", "turbo", "coco")


def work_plan(steps: int, learning: int) -> Plan:
    """Return six subjects to learn, and 200 pictures."""
    recipe = Recipe(**{**vars(RECIPES["direct"]), "steps": learning})
    subjects: dict[str, Any] = {
        name: Photographed(tuple(photo.path for photo in EXAMPLES[name].photos), EXAMPLES[name].class_word, recipe)
        for name in NAMES
    }
    one = Pictures(prompt="a {pet} on the beach", subject={"pet": list(NAMES)}, seed="0-24", num_inference_steps=steps)
    layout = {"rex": "left", "momo": "right"}
    two = Pictures(prompt="a {rex} and a {momo}", layout=layout, seed="0-49", num_inference_steps=steps)
    return Plan.of(Job(subjects, (one, two)))


def do(plan: Plan, out: Path, workers: int, kills: int) -> tuple[float, int]:
    """Do a plan by processes of one thread, of which some are killed; return seconds and kills."""
    spec = {"out": str(out), "hands": MODEL, "model": plan.model, "device": "cpu", "save_memory": False}
    batch, crew = Batch(plan, LocalStore(out)), Processes(workers, spec)
    crew._spec["threads"] = 1
    over, killed = threading.Event(), [0]

    def kill() -> None:
        luck = random.Random(0)
        while killed[0] < kills and not over.wait(luck.uniform(8, 16)):
            with contextlib.suppress(OSError, IndexError, RuntimeError):
                os.kill(luck.choice(list(crew.pids.values())), signal.SIGKILL)
                killed[0] += 1

    killer = threading.Thread(target=kill)
    began, first = time.monotonic(), True
    killer.start()
    for outcome in batch.outcomes(crew):
        if first and batch.running:
            began, first = time.monotonic(), False
        if outcome is not None and outcome.state == "failed":
            print(f"  {outcome.kind} {outcome.name} was set aside: {outcome.error}")
    over.set()
    killer.join()
    return time.monotonic() - began, killed[0]


def digest(out: Path) -> str:
    """Hash all residuals and pictures of a batch."""
    found = hashlib.sha256()
    for name, residual, _ in sorted(read_subjects(out), key=lambda each: each[0]):
        found.update(f"{name} {residual and residual.sha256}\n".encode())
    for result in sorted(read(out), key=lambda each: each.id):
        found.update(result.content)
    return found.hexdigest()


def work(steps: int, learning: int, kills: int) -> None:
    """Measure real work."""
    plan = work_plan(steps, learning)
    print(f"{len(plan.lessons)} subjects of {learning} steps, {plan.total} pictures of {steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        times, digests = {}, {}
        for name, workers, deaths in (("one", 1, 0), ("two", 2, 0), ("killed", 2, kills)):
            out = Path(folder) / name
            times[name], killed = do(plan, out, workers, deaths)
            digests[name], found = digest(out), verify(out)
            print(f"{name}: {times[name]:.0f} s, {killed} killed, {found.sound} sound, {len(found.doubled)} doubled")
        equal = len(set(digests.values())) == 1
        print(f"speed-up of two workers: {times['one'] / times['two']:.2f}; bytes equal: {equal}")


class NoHands(StillHands):
    """Draws nothing, at once."""

    def draw(self, made: dict[str, Any], path: Path) -> None:
        """Write a few bytes."""
        path.write_bytes(b"%d" % made["seed"])


def control(count: int) -> None:
    """Measure planning, committing and going on, of cases that take no time, on a storage in memory."""
    began = time.monotonic()
    plan = Plan.of(Job(pictures=(Pictures(prompt="a dog", seed=f"0-{count - 1}"),)))
    planned = time.monotonic() - began
    store = MemoryStore()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as spool:
        batch = Batch(plan, store)
        began = time.monotonic()
        for _ in batch.outcomes(Inline(Bench(store, Path(spool)), NoHands)):
            pass
    seconds = time.monotonic() - began
    store.calls.clear()
    began = time.monotonic()
    left = Batch(plan, store).pictures.left
    again, memory = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count:,} cases in {len(plan.leases):,} leases: planned in {planned:.1f} s, done in {seconds:.1f} s")
    rates = f"{len(plan.leases) / seconds:.0f} leases a second, {count / seconds:.0f} cases"
    print(f"{rates}; {memory:.0f} MB with the storage")
    print(f"going on: {again:.2f} s, {left} left, calls {dict(store.calls)} (a real storage lists 1,000 names a call)")


def main() -> None:
    """Read what to measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("work", "control"))
    parser.add_argument("--count", type=int, default=1_000_000, help="cases of control")
    parser.add_argument("--steps", type=int, default=10, help="of a picture")
    parser.add_argument("--learning", type=int, default=60, help="steps of a subject")
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    if options.what == "work":
        work(options.steps, options.learning, options.kills)
    else:
        control(options.count)


if __name__ == "__main__":
    main()
