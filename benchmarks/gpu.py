"""Time drawing and learning at real size on a GPU, the most wanted figures first: `python benchmarks/gpu.py`.

Weights are random. Each row is printed and written as soon as it is measured, so that a run that is cut off leaves what
it had; rows that no longer fit into `--seconds` are left out. Each faster way is checked against the plain one.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import json
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cones2.compiled import CompiledDenoiser
from cones2.files import make_folder, write_atomically
from cones2.learning.learner import learn_steps
from cones2.learning.recipe import RECIPES, Recipe
from cones2.photos import load_photos
from cones2.pipeline import Cones2Pipeline
from cones_v2_drawing import Drawing, draw
from cones_v2_learning import ConesV2Learner
from drawing_pairs import GUIDANCE_SCALE, LAYOUT, PROMPT, TEXT, Subjects, random_subject
from random_models import open_model
from report import machine

_AT_ONCE = 8
PHOTOS = Path(__file__).parents[1] / "src/cones2/examples/rex/photos"
HEAD = "| what | seconds | of them, the loop | against | note |\n| --- | --- | --- | --- | --- |"


class Table:
    """Rows as they come, on the terminal and in two files.

    Attributes:
        rows: by name.
        failed: the names of parts that ended in an error.
    """

    def __init__(self, out: Path, seconds: float) -> None:
        self.out, self.ends = out, time.monotonic() + seconds
        self.began = time.monotonic()
        self.rows: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []
        self.about: dict[str, Any] = {}
        make_folder(out)
        print(HEAD, flush=True)

    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - time.monotonic()

    def row(self, name: str, seconds: float, **more: Any) -> None:
        """Add a row."""
        memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None
        self.rows[name] = {"seconds": seconds, "at": round(time.monotonic() - self.began, 1), "GB": memory, **more}
        told = "; ".join(f"{key} {value}" for key, value in more.items() if key not in ("loop", "against"))
        loop = f"{more['loop']:.4f}" if "loop" in more else ""
        against = f"{more['against']:.3f}" if more.get("against") else ""
        print(f"| {name} | {seconds:.4f} | {loop} | {against} | {told} {self.rows[name]['at']} s |", flush=True)
        text = json.dumps({"machine": self.about, "rows": self.rows}, indent=1)
        write_atomically(self.out / "gpu.json", f"{text}\n".encode())

    @contextlib.contextmanager
    def part(self, name: str, needs: float) -> Iterator[bool]:
        """Yield whether there is time for a part; an error in it ends the part alone."""
        if self.left() < needs:
            print(f"no time left for {name}", flush=True)
            yield False
            return
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            yield True
        except Exception:  # the other parts go on
            print(f"{name} failed:\n{traceback.format_exc()}", flush=True)
            self.failed.append(name)
        gc.collect()


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        steps: of a picture.
        repeats: of each call.
    """

    steps: int
    repeats: int


class Clock:
    """A callback that notes when the first and the last step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Note the time of the first step, which the device has ended, and of the last."""
        if step == 0 or step == pipeline.num_timesteps - 1:
            wait()
            self.times.append(time.perf_counter())
        return {}


def wait() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Time a call a few times."""
    taken = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


NEEDS = {"nothing": 20.0, "blocks": 45.0, "all_blocks": 70.0, "whole": 110.0}
"""Seconds that a part may take, most of them to compile, by what the compiler sees."""


class Pictures:
    """Pictures of a model: diffusers' own, and ours with a layout and without, plain and compiled."""

    def __init__(self, table: Table, pipe: Cones2Pipeline, model: str, plan: Plan) -> None:
        self.table, self.pipe, self.model, self.plan = table, pipe, model, plan
        pipe.set_progress_bar_config(disable=True)
        self.subjects = {"rex": random_subject(pipe, "dog"), "tom": random_subject(pipe, "cat")}
        self.options: dict[str, Any] = {"num_inference_steps": plan.steps, "guidance_scale": GUIDANCE_SCALE}
        few: dict[str, Any] = {"output_type": "latent", "num_inference_steps": min(4, plan.steps)}
        self.few = {
            "none": functools.partial(self.ours, None, **few),
            "layout": functools.partial(self.ours, **few),
        }
        self.expected = {key: draw_few().images.float() for key, draw_few in self.few.items()}

    def ours(self, layout: Any = LAYOUT, count: int = 1, **more: Any) -> Any:
        """Draw by our pipeline."""
        options = {**self.options, **more}
        return self.pipe(PROMPT, layout, subjects=self.subjects, seed=0, num_images_per_prompt=count, **options)

    def theirs(self, **more: Any) -> object:
        """Draw by diffusers' pipeline."""
        return self.pipe.pipeline(TEXT, generator=torch.Generator().manual_seed(0), **{**self.options, **more})

    def loop(self, call: Callable[..., object]) -> float:
        """Seconds that all steps of a picture take."""
        clock = Clock()
        call(callback_on_step_end=clock)
        return (clock.times[-1] - clock.times[0]) * self.plan.steps / max(1, self.plan.steps - 1)

    def time_eager(self) -> None:
        """Time pictures as they are drawn without compiling."""
        self.theirs(num_inference_steps=2), self.ours(num_inference_steps=2)
        plain, edited = (median_seconds(call, self.plan.repeats) for call in (self.theirs, self.ours))
        self.table.row(f"{self.model}: diffusers' picture, eager", plain, loop=self.loop(self.theirs))
        self.table.row(f"{self.model}: with a layout, eager", edited, loop=self.loop(self.ours), against=edited / plain)

    def time_compiled(self, scope: str) -> None:
        """Time pictures while the model is compiled, and tell how far they are from the plain ones."""
        began = time.perf_counter()
        drawn = {key: draw_few().images.float() for key, draw_few in self.few.items()}
        first = time.perf_counter() - began
        errors = {key: float((drawn[key] - self.expected[key]).norm() / self.expected[key].norm()) for key in drawn}
        bare = functools.partial(self.ours, None)
        plain, edited = (median_seconds(call, self.plan.repeats) for call in (bare, self.ours))
        note = {"first": round(first, 1), "differs": {key: round(error, 4) for key, error in errors.items()}}
        self.table.row(f"{self.model}: no layout, {scope}", plain, loop=self.loop(bare))
        name = f"{self.model}: with a layout, {scope}"
        self.table.row(name, edited, loop=self.loop(self.ours), against=edited / plain, **note)
        if torch.cuda.is_available():
            self.table.row(f"{self.model}: waits in a loop, {scope}", 0.0, count=waits(self.ours))
            profile(self.table, self.ours, f"{self.model}, {scope}")

    def time_many(self, scope: str) -> None:
        """Time a batch of pictures, and pictures of one subject and of many, while the model is compiled."""
        many = functools.partial(self.ours, count=_AT_ONCE)
        many(num_inference_steps=2)
        seconds = median_seconds(many, 2)
        name = f"{self.model}: {_AT_ONCE} pictures at once, {scope}"
        self.table.row(name, seconds, pictures_a_second=round(_AT_ONCE / seconds, 2))
        first = 0.0
        for count in (1, _AT_ONCE):
            case = Subjects.of(self.pipe, count)
            call = functools.partial(
                self.pipe, case.prompt, case.layout, subjects=case.subjects, seed=0, **self.options
            )
            call(num_inference_steps=2)
            seconds = median_seconds(call, self.plan.repeats)
            first = first or seconds
            self.table.row(f"{self.model}: {count} subjects, {scope}", seconds, against=seconds / first)


def measure_drawing(pictures: Pictures, scopes: Collection[str], *, eager: bool = True, many: str = "") -> None:
    """Time pictures, plain and compiled in each way for which there is time; batches in one of them."""
    table, pipe, model = pictures.table, pictures.pipe, pictures.model
    if eager:
        with table.part(f"{model}, eager", 30) as may:
            if may:
                pictures.time_eager()
    for scope in scopes:
        with table.part(f"{model}, {scope}", NEEDS[scope]) as may:
            if may:
                compiled = CompiledDenoiser(pipe.pipeline, pipe.family, scope)
                pictures.time_compiled(scope)
                if scope == many:
                    pictures.time_many(scope)
                del compiled


def waits(call: Callable[..., object]) -> int:
    """Count how often the host waits for the device between the first step and the last."""
    found = []

    def at_step_end(pipeline: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 0:
            torch.cuda.set_sync_debug_mode("warn")
        if step == pipeline.num_timesteps - 1:
            torch.cuda.set_sync_debug_mode("default")
        return {}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(callback_on_step_end=at_step_end)
        found = [each for each in caught if "synchroniz" in str(each.message)]
    for each in found[:3]:
        print(f"waits: {each.filename}:{each.lineno}", flush=True)
    return len(found)


def profile(table: Table, call: Callable[..., object], name: str, most: int = 14) -> None:
    """Print the kernels that take most of a picture of a few steps."""
    if table.left() < 20:
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        call(num_inference_steps=4)
        wait()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows) or 1
    print(f"kernels of {name}, 4 steps: {total / 1000:.1f} ms", flush=True)
    for row in rows[:most]:
        share = 100 * row.self_device_time_total / total
        print(f"  {share:5.1f} % {row.count:5d} {row.key[:110]}", flush=True)


def measure_learning(table: Table, pipe: Cones2Pipeline, model: str, plan: Plan) -> None:
    """Time steps of learning, eager and captured, and of the authors' loop."""
    photos = load_photos(PHOTOS)
    batches = dataclasses.replace(RECIPES["paper"], batch_size=8, steps=375, learning_rate=1e-5)
    for name, recipe in (("batches of 8", batches), ("paper", RECIPES["paper"])):
        losses: dict[str, list[float]] = {}
        for way in ("captured", "eager") if pipe.device.type == "cuda" else ("eager",):
            with table.part(f"learning, {name}, {way}", 14) as may:
                if may:
                    count = 2 + 4 * plan.repeats
                    seconds, setup, losses[way] = _learning(pipe, photos, recipe, count, captured=way != "eager")
                    first = next(iter(losses.values()))
                    far = max(abs(a - b) for a, b in zip(first, losses[way], strict=True))
                    note = {"subject": f"{setup + seconds * recipe.steps:.1f} s", "begins": f"{setup:.1f} s"}
                    table.row(f"{model}: a step of {name}, {way}", seconds, **note, differs=round(far, 5))
    if len(pipe.family.text_parts) > 1:
        return
    with table.part("the authors' loops", 20) as may:
        if may:
            learner = ConesV2Learner(pipe.pipeline, photos, "dog")
            learner.step()
            table.row(f"{model}: a step of the authors' learning", median_seconds(learner.step, 4 * plan.repeats))
            subjects = {"rex": random_subject(pipe, "dog"), "tom": random_subject(pipe, "cat")}
            drawing = Drawing(steps=5, passes=2, guidance_scale=GUIDANCE_SCALE)
            seconds = median_seconds(
                lambda: draw(pipe, PROMPT, subjects=subjects, layout=LAYOUT, drawing=drawing), plan.repeats
            )
            table.row(f"{model}: the authors' picture, {plan.steps} steps from 5", seconds * plan.steps / 5)


def _learning(
    pipe: Cones2Pipeline, photos: Any, recipe: Recipe, count: int, *, captured: bool
) -> tuple[float, float, list[float]]:
    """Seconds a step, seconds until the first step has ended, and losses."""
    began = time.perf_counter()
    steps = learn_steps(pipe.pipeline, photos, "dog", recipe, compile=captured)
    losses = [next(steps).loss]
    wait()
    setup = time.perf_counter() - began
    seconds = median_seconds(lambda: losses.append(next(steps).loss), count)
    steps.close()
    return seconds, setup, losses


def main() -> None:
    """Measure what there is time for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=520)
    parser.add_argument("--model", default="sd2-base")
    parser.add_argument("--large", default="sdxl", help="a second model; empty for none")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scopes", nargs="+", default=["nothing", "blocks", "all_blocks"], choices=NEEDS)
    parser.add_argument("--last", default="whole", choices=NEEDS, help="one more, when all else is measured")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    table, plan = Table(arguments.out, arguments.seconds), Plan(arguments.steps, arguments.repeats)
    pipe = open_model(arguments.model)
    table.about = machine(pipe)
    print(json.dumps(table.about), flush=True)
    pictures = Pictures(table, pipe, arguments.model, plan)
    measure_drawing(pictures, arguments.scopes, many="blocks" if "blocks" in arguments.scopes else arguments.scopes[0])
    measure_learning(table, pipe, arguments.model, plan)
    if arguments.large and table.left() > 60:
        large = Pictures(table, open_model(arguments.large), arguments.large, Plan(min(30, plan.steps), 2))
        measure_drawing(large, arguments.scopes[:2])
        del large
    measure_drawing(pictures, [arguments.last], eager=False)
    print(f"done after {time.monotonic() - table.began:.0f} s", flush=True)
    if table.failed:
        raise SystemExit(f"failed: {', '.join(table.failed)}")


if __name__ == "__main__":
    main()
