"""The example subjects as mini was taught them, and whether they are themselves in pictures."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from cones2.evaluation.second_judge import colour_histograms
from cones2.residual import Residual
from cones2.subjects import Subject
from drawing_bench import DrawingBench, Seen
from evaluation_cases import Case, Known, scene_case
from examples import FOLDER, ExampleSubject
from judge_data import visible_box
from lookalikes import Describe, LineUp, describe_alone, draw_lookalikes, draw_pool, line_up
from metrics import Wanted, at_place, is_nearest
from world import Instance, Placed, Scene, World

SEED = 9100
Value = TypeVar("Value")


@dataclass(frozen=True)
class Taught:
    """The example subjects with their residuals, and their line-ups by embedding and by colour histogram."""

    examples: Sequence[ExampleSubject]
    known: Sequence[Known]
    line_ups: Sequence[LineUp]
    baselines: Sequence[LineUp]

    def draw_cases(self, bench: DrawingBench, count: int) -> tuple[list[list[int]], list[Case]]:
        """For each picture who is in it, and the cases, each with a layout of boxes with the subjects' proportions."""
        rng, who, cases = np.random.default_rng([SEED, 1, count]), [], []
        for seeds in bench.seeds():
            chosen = rng.choice(len(self.known), count, replace=False).tolist()
            cases.append(scene_case(rng, [self.known[index] for index in chosen], seeds, in_boxes=True))
            who += [chosen] * len(seeds)
        return who, cases

    @staticmethod
    def identify(
        seen: Sequence[Seen], who: Sequence[Sequence[int]], line_ups: Sequence[LineUp], describe: Describe
    ) -> list[list[bool]]:
        """For each subject of each picture: whoever stands in its place looks more like it than like any look-alike."""
        return [
            [
                _identified(one, wanted, line_ups[index], describe)
                for index, wanted in zip(row, one.case.wanted, strict=True)
            ]
            for one, row in zip(seen, who, strict=True)
        ]

    def known_in_renders(self, bench: DrawingBench, views: int = 12) -> list[bool]:
        """Whether renders of each subject itself are known among its look-alikes: what no drawing of it can surpass."""
        rng, hits = np.random.default_rng([SEED, 3]), []
        for example, line in zip(self.examples, self.line_ups, strict=True):
            vectors = describe_alone(bench.world, example.instance, rng, bench.judge.embed, views)
            hits += [is_nearest(vector, line.own, line.others) for vector in vectors]
        return hits

    def of_tier(self, hits: Sequence[Sequence[bool]], who: Sequence[Sequence[int]], *, unseen: bool) -> list[bool]:
        """The hits of subjects in a style that mini saw, or never saw."""
        pairs = zip(flat(hits), flat(who), strict=True)
        return [hit for hit, index in pairs if self.examples[index].unseen == unseen]


def taught_subjects(
    bench: DrawingBench,
    examples: Sequence[ExampleSubject],
    *,
    folder: Path = FOLDER,
    names: Collection[str] | None = None,
) -> Taught:
    """Load the residuals from `folder` and draw the look-alikes; of all examples, or of those in `names`."""
    chosen, known, embedded, baselines = [], [], [], []
    for number, example in enumerate(examples):
        if names is not None and example.name not in names:
            continue
        chosen.append(example)
        rng = np.random.default_rng([SEED, 2, number])
        residual = Residual.load(folder / example.name / f"{example.name}.safetensors")
        pool = draw_pool(bench.world, rng, example.class_index)
        others = draw_lookalikes(bench.world, bench.judge, example.instance, rng, pool)
        embedded.append(line_up(bench.world, example.instance, others, rng, bench.judge.embed))
        baselines.append(line_up(bench.world, example.instance, others, rng, colour_histograms))
        wanted = Wanted(example.class_index, None, embedded[-1].own)
        known.append(Known(Subject(example.class_word, residual), wanted, drawn_shape(bench.world, example.instance)))
    return Taught(chosen, known, embedded, baselines)


def drawn_shape(world: World, instance: Instance) -> tuple[float, float]:
    """Width and height of an individual as drawn upright, the longer 1."""
    width, height = drawn_sides(world, instance)
    return width / max(width, height), height / max(width, height)


def drawn_sides(world: World, instance: Instance) -> tuple[float, float]:
    """Width and height of what can be seen of an individual drawn upright, in its sizes."""
    box = visible_box(world.render([Scene("", 0, (Placed(instance, 0.5, 0.5, 0.9),))], 128).masks[0, 0])
    if box is None:
        raise ValueError("an individual that can't be seen has no sides.")
    left, top, right, bottom = box
    return (right - left) / 0.9, (bottom - top) / 0.9


def _identified(one: Seen, wanted: Wanted, line: LineUp, describe: Describe) -> bool:
    sighting = at_place(one.sightings, wanted)
    if sighting is None:
        return False
    vector = describe(one.image[None], torch.tensor([sighting.box]), torch.zeros(1, dtype=torch.long))[0]
    return is_nearest(vector, line.own, line.others)


def flat(rows: Sequence[Sequence[Value]]) -> list[Value]:
    """One list of all rows' values."""
    return [value for row in rows for value in row]
