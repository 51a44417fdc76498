"""How sharp mini's pictures are: their gradients, and how steep their edges, over those of renders of the scenes."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from drawing import TAUGHT_SETTINGS
from drawing_bench import DrawingBench
from evaluation_cases import SEED, Case
from examples import example_subjects, example_world
from judge_data import autoencode
from metrics import Ratio, gradients, steepness
from taught import Taught, drawn_sides, taught_subjects
from world import Placed, Scene

COUNTS = (1, 3)


def evaluate_sharpness(bench: DrawingBench) -> dict[str, Ratio]:
    """Taught subjects in their boxes, and what the autoencoder alone makes of their renders."""
    ratios: dict[str, Ratio] = {}
    taught = taught_subjects(bench, example_subjects(example_world()))
    for count in COUNTS:
        who, cases = taught.draw_cases(bench, count)
        drawn = torch.stack([one.image for one in bench.draw(cases, TAUGHT_SETTINGS)])
        truth = renders(bench, taught, who, cases)
        coded = torch.cat([autoencode(bench.pipe.vae, part) for part in truth.split(16)])
        for what, measure in (("mean gradient", gradients), ("steepness of edges", steepness)):
            ratios[f"{count}, {what}"] = Ratio.of(measure(drawn), measure(truth))
            ratios[f"{count}, {what}, renders through the autoencoder"] = Ratio.of(measure(coded), measure(truth))
    return ratios


def renders(bench: DrawingBench, taught: Taught, who: Sequence[Sequence[int]], cases: Sequence[Case]) -> Tensor:
    """The cases' subjects, each filling its box, in the scene asked for: `[pictures, 3, 128, 128]`."""
    rng, world = np.random.default_rng([SEED, 7]), bench.world
    scenes, each_picture = [], [case for case in cases for _ in case.seeds]
    for row, case in zip(who, each_picture, strict=True):
        objects = []
        for index, wanted in zip(row, case.wanted, strict=True):
            if wanted.box is None:
                raise ValueError("only cases with a layout can be rendered.")
            left, top, right, bottom = wanted.box
            instance = taught.examples[index].instance
            size = max(right - left, bottom - top) / max(drawn_sides(world, instance))
            objects.append(Placed(instance, (left + right) / 2, (top + bottom) / 2, size))
        scenes.append(Scene(case.scene, int(rng.integers(world.backgrounds.shape[1])), tuple(objects)))
    return torch.cat([world.render(scenes[start : start + 16], 128).images for start in range(0, len(scenes), 16)])
