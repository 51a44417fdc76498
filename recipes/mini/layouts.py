"""Untaught words in random boxes, under other settings of the layout: its strength, and the paper's ablations."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from drawing import SETTINGS, Settings
from drawing_bench import DrawingBench, Seen
from evaluation_cases import SEED, any_known, class_shapes, scene_case
from metrics import Rate, all_present, in_right_boxes, rate
from taught import flat

COUNTS = (2, 3)
STRENGTHS: Mapping[str, Settings] = {
    f"layout scale {scale:g}": {**SETTINGS, "layout_scale": scale} for scale in (0.5, 1.0, 2.0, 4.0)
}
ABLATIONS: Mapping[str, Settings] = {
    "no layout": {**SETTINGS, "layout_scale": 0.0},
    "strengthening alone": {**SETTINGS, "layout_effect": "strengthen"},
    "weakening alone": {**SETTINGS, "layout_effect": "weaken"},
    "both": SETTINGS,
    "the first 5 of 20 steps": {**SETTINGS, "guided_steps": 5},
    "the first 10 of 20 steps": {**SETTINGS, "guided_steps": 10},
    "on the finest grid alone": {**SETTINGS, "layout_levels": (0,)},
    "on all grids but the finest": {**SETTINGS, "layout_levels": (1, 2)},
    "preset cones_v2": {**SETTINGS, "preset": "cones_v2"},
}


def draw_with_layout(bench: DrawingBench, count: int, settings: Settings = SETTINGS) -> list[Seen]:
    """Scenes of untaught words, each with a random box."""
    rng, shapes = np.random.default_rng([SEED, 2, count]), class_shapes(bench.atlas)
    cases = [scene_case(rng, any_known(rng, count, shapes), seeds, in_boxes=True) for seeds in bench.seeds()]
    return list(bench.draw(cases, settings))


def evaluate_sweep(bench: DrawingBench) -> dict[str, Rate]:
    """The layout's strength (preset `paper`), on a quarter of the pictures."""
    return _compare(bench, STRENGTHS)


def evaluate_ablations(bench: DrawingBench) -> dict[str, Rate]:
    """Parts of what a layout does, each by itself (arXiv:2305.19327, Fig. 6), on a quarter of the pictures."""
    return _compare(bench, ABLATIONS)


def _compare(bench: DrawingBench, variants: Mapping[str, Settings]) -> dict[str, Rate]:
    """The share in its right box, and of pictures that show all, for each variant."""
    bench, rates = replace(bench, pictures=max(bench.pictures // 4, 1)), {}
    for name, settings in variants.items():
        for count in COUNTS:
            seen = draw_with_layout(bench, count, settings)
            boxes = [in_right_boxes(one.sightings, one.case.wanted) for one in seen]
            present = [all_present(one.sightings, one.case.wanted) for one in seen]
            rates[f"{name}, {count} objects"] = rate(flat(boxes))
            rates[f"{name}, {count} objects, all present"] = rate(present)
    return rates
