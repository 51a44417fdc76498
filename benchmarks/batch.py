"""The batch engine: `python benchmarks/batch.py work`, or `control`, each of which says what it measures.

`work` learns six subjects and draws 200 pictures on `mini`: by one worker of one thread, by two, and by two that are
killed now and then; all bytes must be equal. `control` commits cases that take no time, and goes on from them, in a new
process: that is `resume`.
"""

import argparse
import contextlib
import hashlib
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cones2.batch import read, verify
from cones2.batch.engine import Batch
from cones2.batch.job import Job, Photographed, Pictures
from cones2.batch.lease import Commit
from cones2.batch.plan import Plan
from cones2.batch.processes import Processes
from cones2.batch.results import read_subjects
from cones2.batch.resume import stems
from cones2.batch.store import LocalStore
from cones2.batch.worker import MODEL
from cones2.examples import EXAMPLES
from cones2.learning.recipe import RECIPES, Recipe
from faulty_store import StillHands

HERE = Path(__file__).parent
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


def no_hands(_spec: object, _store: object) -> NoHands:
    """Make them; the name that a worker's spec gives."""
    return NoHands()


class Counted(LocalStore):
    """A folder that counts its calls: for `names`, those of a storage that lists 1,000 at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lists = self.reads = 0

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        found = super().names(folder)
        self.lists += max(1, math.ceil(len(found) / 1000))
        return found

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """See `Store`."""
        self.reads += 1
        return super().read(name, start, end)


def memory() -> float:
    """Return the megabytes that this process has in memory now."""
    return float(psutil.Process().memory_info().rss) / 2**20


def no_plan(count: int) -> Plan:
    """Plan so many cases, and say how long that took."""
    before, began = memory(), time.monotonic()
    plan = Plan.of(Job(pictures=(Pictures(prompt="a dog", seed=f"0-{count - 1}"),)))
    took, more = time.monotonic() - began, memory() - before
    print(
        f"{count:,} cases, {len(plan.leases):,} leases: planned in {took:.1f} s, {more:.0f} MB more in memory",
        flush=True,
    )
    return plan


def control(count: int, workers: int, out: Path) -> None:
    """Commit cases that take no time, by processes into a folder; then see how long it takes to go on from there."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent / "tests"), *filter(None, sys.path)])
    plan = no_plan(count)
    spec: dict[str, Any] = {
        "out": str(out),
        "hands": "batch:no_hands",
        "model": {},
        "device": None,
        "save_memory": False,
    }
    batch, crew = Batch(plan, LocalStore(out)), Processes(workers, spec)
    began, tenth, used = 0.0, 1, time.process_time()
    for outcome in batch.outcomes(crew):
        began = began or (time.monotonic() if batch.running else 0.0)
        if outcome is not None and batch.pictures.done >= count * tenth / 10:
            seconds, tenth = time.monotonic() - began, int(batch.pictures.done * 10 / count) + 1
            rate = batch.pictures.done / seconds
            print(
                f"{batch.pictures.done:,} done in {seconds:.0f} s, {rate:,.0f} a second; {memory():.0f} MB", flush=True
            )
    seconds, used = time.monotonic() - began, time.process_time() - used
    print(f"{len(plan.leases) / seconds:.0f} leases and {count / seconds:,.0f} cases a second by {workers} workers")
    print(f"the engine computed {used / seconds:.0%} of that time, {used / count * 1e6:.0f} us a case")
    command = [sys.executable, __file__, "resume", "--count", str(count), "--out", str(out)]
    subprocess.run(command, check=True)


def resume(count: int, out: Path) -> None:
    """See how long it takes to go on where everything is done, where a tenth is not, and where the job is another."""
    plan = no_plan(count)
    fill(plan, out)
    go_on(plan, out, "all of it done")
    for lease in plan.leases[-len(plan.leases) // 10 :]:
        LocalStore(out).delete(f"commit/{lease.id}.json")
    go_on(plan, out, "a tenth of it not done")
    changed = Plan.of(Job(pictures=(Pictures(prompt="a dog", seed=f"1-{count - 1}"),)))
    go_on(changed, out, "all leases of another job")


def fill(plan: Plan, out: Path) -> None:
    """Write the commits that are missing, as if their pictures had been drawn: there was no time for these."""
    (out / "commit").mkdir(parents=True, exist_ok=True)
    there, missing = stems(LocalStore(out), "commit"), 0
    for lease in plan.leases:
        if lease.id not in there:
            cases = {case.id: ("0" * 64, 512, 1024) for case in plan.cases(lease)}
            commit = Commit(data=f"data/{lease.id[:16]}-{'0' * 16}.tar", cases=cases)
            (out / "commit" / f"{lease.id}.json").write_text(commit.model_dump_json())
            missing += 1
    print(f"{len(there):,} commits were there, {missing:,} written without pictures", flush=True)


def go_on(plan: Plan, out: Path, what: str) -> None:
    """Say what it takes to find out how far a plan is."""
    store, began = Counted(out), time.monotonic()
    left = Batch(plan, store).pictures.left
    told = f"{time.monotonic() - began:.2f} s, {left:,} left, {store.lists} lists, {store.reads:,} reads"
    print(f"going on, {what}: {told}; {memory():.0f} MB", flush=True)


def main() -> None:
    """Read what to measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("work", "control", "resume"))
    parser.add_argument("--count", type=int, default=1_000_000, help="cases of control")
    parser.add_argument("--workers", type=int, default=2, help="of control")
    parser.add_argument("--out", type=Path, help="where control leaves its results, and resume finds them")
    parser.add_argument("--steps", type=int, default=10, help="of a picture")
    parser.add_argument("--learning", type=int, default=60, help="steps of a subject")
    parser.add_argument("--kills", type=int, default=10)
    options = parser.parse_args()
    if options.what == "work":
        work(options.steps, options.learning, options.kills)
    elif options.what == "resume":
        resume(options.count, options.out)
    else:
        with tempfile.TemporaryDirectory() as folder:
            control(options.count, options.workers, options.out or Path(folder) / "out")


if __name__ == "__main__":
    main()
