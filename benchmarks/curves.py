"""What a picture with a layout costs as the work grows: `python benchmarks/curves.py`.

Subjects, regions, words of the prompt, the picture's side and pictures at once, one after the other. Points of the
first three are against the first of their curve, those of the others against diffusers' own pictures of that size and
number; the two calls of a pair take turns. On a CPU the seconds are those that the process computed, so that other work
on the machine counts little. A table is printed, and written with a drawing of it.
"""

import argparse
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cones2.families import native_size
from cones2.files import make_folder, write_atomically
from cones2.layout import Layout
from cones2.pipeline import Cones2Pipeline
from drawing_pairs import GUIDANCE_SCALE, LAYOUT, PROMPT, TEXT, Subjects, random_subject
from pairs import Pair, measure
from panels import panels
from random_models import MODELS, open_model
from report import machine

SUBJECTS, REGIONS, WORDS, AT_ONCE = (1, 2, 4, 8, 12), (1, 4, 16, 64), (8, 12, 20, 40), (1, 2, 4, 8)
SIDES = (0.5, 1.0, 1.5, 2.0)
"""Of the model's own."""
Call = Callable[[], object]


class Point(NamedTuple):
    """A point of a curve: how much of what, and what is timed against what."""

    amount: int
    ours: Call
    other: Call


class Curve(NamedTuple):
    """A curve of points; each is a share of what `against` says."""

    name: str
    against: str
    points: list[Point]


class Work:
    """Pictures to draw, of one pipeline in a number of steps."""

    def __init__(self, pipe: Cones2Pipeline, steps: int) -> None:
        pipe.set_progress_bar_config(disable=True)
        self.pipe = pipe
        self.options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": GUIDANCE_SCALE}
        self.subjects = {"rex": random_subject(pipe, "dog"), "tom": random_subject(pipe, "cat")}

    def ours(self, prompt: str = PROMPT, layout: Any = LAYOUT, **more: Any) -> Call:
        """Return a call that draws subjects in a layout."""
        given = {"subjects": self.subjects, "seed": 0, **self.options, **more}
        return functools.partial(self.pipe, prompt, layout, **given)

    def beside(self, amount: int, **more: Any) -> Point:
        """Return our picture beside diffusers' own, both with what `more` asks for."""

        def theirs() -> object:
            generator = torch.Generator().manual_seed(0)
            return self.pipe.pipeline(TEXT, generator=generator, **self.options, **more)

        return Point(amount, self.ours(**more), theirs)

    def many_subjects(self, count: int) -> Call:
        """Return a call that draws as many subjects, each in its own box."""
        case = Subjects.of(self.pipe, count)
        return self.ours(case.prompt, case.layout, subjects=case.subjects)


def curves(work: Work) -> Iterator[Curve]:
    """Yield each curve."""
    longer = {count: " ".join([PROMPT, *["night"] * (count - len(PROMPT.split()))]) for count in WORDS}
    for name, calls in (
        ("subjects", {count: work.many_subjects(count) for count in SUBJECTS}),
        ("regions", {count: work.ours(layout=_boxes(count)) for count in REGIONS}),
        ("words", {count: work.ours(prompt) for count, prompt in longer.items()}),
    ):
        first = min(calls)
        yield Curve(name, f"with {first}", [Point(amount, call, calls[first]) for amount, call in calls.items()])
    own = min(native_size(work.pipe.pipeline))
    sides = [int(share * own) // 8 * 8 for share in SIDES]
    yield Curve("pixels a side", "diffusers' own", [work.beside(side, height=side, width=side) for side in sides])
    yield Curve("at once", "diffusers' own", [work.beside(count, num_images_per_prompt=count) for count in AT_ONCE])


def _boxes(count: int) -> Layout:
    """Lay one subject in as many boxes, in rows, and the other in one box over all of the picture."""
    rows = math.isqrt(count)
    cells = [(x / rows, y / rows, (x + 0.8) / rows, (y + 0.8) / rows) for y in range(rows) for x in range(rows)]
    return Layout.of({"rex": cells, "tom": (0.0, 0.5, 1.0, 1.0)})


def main() -> None:
    """Measure all curves, and print and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mini", help=MODELS)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=15, help="how often each point is timed; an interval needs 6")
    parser.add_argument("--compile", action="store_true", help="as `pipe.compile()` draws; for a GPU")
    parser.add_argument("--only", default="", metavar="NAME", help="only this curve")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of places and sizes that suit no subject
    pipe = open_model(options.model)
    about = machine(pipe)
    if options.compile:
        pipe.compile()
    measured = {}
    clock = time.process_time if pipe.device.type == "cpu" else time.perf_counter
    print("| curve | amount | cost | interval | against |\n| --- | --- | --- | --- | --- |", flush=True)
    for curve in curves(Work(pipe, options.steps)):
        ratios = {}
        for amount, ours, other in curve.points if options.only in ("", curve.name) else ():
            pair = Pair(curve.name, curve.against, ours, other, aim=None)
            ratios[amount] = ratio = measure(pair, options.pairs, clock).ratio
            interval = f"{ratio.low:.3f}-{ratio.high:.3f}"
            print(f"| {curve.name} | {amount} | {ratio.median:.3f} | {interval} | {curve.against} |", flush=True)
        if ratios:
            measured[f"{curve.name}, of {curve.against}"] = ratios
    make_folder(options.out)
    name = f"curves-{pipe.facts.name}-{pipe.device.type}"
    write_atomically(options.out / f"{name}.json", f"{json.dumps({**about, 'curves': measured}, indent=1)}\n".encode())
    write_atomically(options.out / f"{name}.svg", panels(measured).encode())


if __name__ == "__main__":
    main()
