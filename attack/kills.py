"""Kills a learner at every point of its writing, and at random times: `python attack/kills.py --kills 100`.

Learning writes a checkpoint after each step. It is killed (SIGKILL) before, and where something is written also amid,
one of its operations on files; the rest of the moments are drawn from the time that it takes. It then resumes, half of
the time is killed once more, and resumes to its end: the residual must be the one that undisturbed learning gives, byte
for byte. SIGKILL loses nothing that the system holds in memory; a loss of power is not what is tried here.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from children import KILL_AMID, KILL_BEFORE, Fault, begin_with_shim, run, start
from cones2.pipeline import Cones2Pipeline
from loaders import silence, small_model
from stage import learning, make_stage


class Moment(NamedTuple):
    """When to kill: at an operation, or after so many seconds; and what the report calls it."""

    name: str
    at: int = 0
    mode: int = KILL_BEFORE
    seconds: float = 0.0


def moments(operations: tuple[tuple[str, str], ...]) -> list[Moment]:
    """Return every moment at an operation that writes, and before every lock, listing and reading of the folder."""
    found = []
    for number, (kind, name) in enumerate(operations, start=1):
        if kind.isupper() or kind in ("lock", "list"):
            named = name if not name.endswith(".part") else "a temporary file"
            named = named if not named.startswith("step-") else f"step-N{Path(named).suffix}"
            found.append(Moment(f"before {kind.lower()} {named}".strip(), number))
        if kind == "WRITE":
            found.append(Moment("amid write", number, KILL_AMID))
    return found


class Learner:
    """A learning that is killed and resumed, in a folder of its own."""

    def __init__(self, stage: Path, work: Path, pipe: Cones2Pipeline) -> None:
        self.stage, self.work, self.pipe = stage, work, pipe
        self._fresh()
        began = time.monotonic()
        ended = run(learning(work, pipe), Fault(work))
        self.seconds = time.monotonic() - began
        if ended.code:
            sys.exit(f"learning fails by itself: {ended.err}")
        self.right = (work / "learned.safetensors").read_bytes()
        self.moments = moments(ended.operations)

    def _fresh(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.stage, self.work)

    def killed(self, moment: Moment, draw: random.Random) -> tuple[int, str]:
        """Kill it at a moment, perhaps once more, and resume it to its end; return how often, and what is wrong."""
        self._fresh()
        kills = int(self._kill(moment, resume=False))
        if draw.random() < 0.5:
            kills += int(self._kill(draw.choice(self.moments), resume=True))
        ended = run(learning(self.work, self.pipe, resume=True))
        learned = self.work / "learned.safetensors"
        if ended.code:
            return kills, f"resuming ended with {ended.code}: {ended.err[-600:]}"
        if learned.read_bytes() != self.right:
            return kills, "another residual"
        left = [str(path) for path in (self.work / "state").glob(".*.part")]
        return kills, f"left behind: {left}" if left else ""

    def _kill(self, moment: Moment, *, resume: bool) -> bool:
        work = learning(self.work, self.pipe, resume=resume)
        if not moment.seconds:
            return run(work, Fault(self.work, moment.mode, moment.at)).code == -signal.SIGKILL
        with tempfile.TemporaryDirectory() as folder:
            child = start(work, Path(folder))
            time.sleep(moment.seconds)
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main() -> None:
    """Kill, print how often at which point, and end with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="at least so many")
    parser.add_argument("--least", type=int, default=0, help="fail if a point was hit less often")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    begin_with_shim()
    silence()
    draw, counts, wrong = random.Random(asked.seed), Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(Path(folder) / "model")
        pipe = Cones2Pipeline.from_pretrained(model, device="cpu")
        learner = Learner(make_stage(Path(folder) / "stage", pipe), Path(folder) / "work", pipe)
        counts.update(dict.fromkeys((moment.name for moment in learner.moments), 0))
        turn: list[Moment] = []
        kills = 0
        while kills < asked.kills:
            if not turn:  # each moment once, in another order each time, and one in five by the clock
                times = [draw.uniform(0, learner.seconds) for _ in range(len(learner.moments) // 4)]
                turn = [*learner.moments, *(Moment("at a random time", seconds=seconds) for seconds in times)]
                draw.shuffle(turn)
            moment = turn.pop()
            killed, what = learner.killed(moment, draw)
            kills += killed
            counts[moment.name] += bool(killed)
            wrong += bool(what)
            if what:
                print(f"{moment}: {what}", file=sys.stderr, flush=True)
    print(f"{kills} kills, {len(learner.moments)} moments of writing; learned something else or failed: {wrong}\n")
    print("| point | learnings killed there |\n| --- | ---: |")
    for name, count in sorted(counts.items()):
        print(f"| {name} | {count} |")
    rare = sorted(name for name, count in counts.items() if count < asked.least)
    if rare:
        print(f"hit less than {asked.least} times: {', '.join(rare)}", file=sys.stderr)
    sys.exit(bool(wrong or rare))


if __name__ == "__main__":
    main()
