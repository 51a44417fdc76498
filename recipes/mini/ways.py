"""Which way of learning suits mini: by how well, and where, its residuals draw the subject, alone and with others."""

import dataclasses
from collections.abc import Mapping, Sequence

from cones2.learning.recipe import RECIPES, Recipe
from drawing import TAUGHT_SETTINGS, Settings
from drawing_bench import DrawingBench
from examples import WORK, example_subjects, example_world, learn_residuals
from lookalikes import CHANCE
from metrics import Rate, in_right_boxes, rate
from taught import Taught, flat, taught_subjects

NAMES = ("rex", "mimi", "bobo", "kiki", "momo", "pako", "lulu", "turbo")
COUNTS = (1, 2, 3)
DIRECT = RECIPES["direct"]
WAYS: Mapping[str, Recipe] = {
    "mini": RECIPES["mini"],
    "direct": DIRECT,
    "direct, 100 steps": dataclasses.replace(DIRECT, steps=100),
    "direct, 150 steps of 8": dataclasses.replace(DIRECT, steps=150, batch_size=8),
}
STRENGTHS = (0.5, 0.75)


def evaluate_ways(bench: DrawingBench) -> dict[str, Rate]:
    """Half of the example subjects learned in each way; then the default way at lower strengths."""
    examples = example_subjects(example_world())
    rates: dict[str, Rate] = {}
    for label, recipe in WAYS.items():
        folder = WORK / "ways" / label.replace(", ", "-").replace(" ", "-")
        learn_residuals(bench.pipe, recipe, folder, names=NAMES)
        taught = taught_subjects(bench, examples, folder=folder, names=NAMES)
        rates |= measure(bench, taught, label)
        if label == bench.pipe.facts.recipe:
            for strength in STRENGTHS:
                rates |= measure(bench, taught, f"{label} at strength {strength:g}", strength)
    return rates


def measure(
    bench: DrawingBench,
    taught: Taught,
    label: str,
    strength: float = 1.0,
    *,
    settings: Settings = TAUGHT_SETTINGS,
    counts: Sequence[int] = COUNTS,
) -> dict[str, Rate]:
    """Identity among look-alikes and the share in the right box, by how many subjects there are."""
    rates: dict[str, Rate] = {}
    for count in counts:
        who, cases = taught.draw_cases(bench, count)
        weaker = [
            dataclasses.replace(
                case,
                subjects={
                    name: dataclasses.replace(subject, strength=strength) for name, subject in case.subjects.items()
                },
            )
            for case in cases
        ]
        seen = list(bench.draw(weaker, settings))
        hits = taught.identify(seen, who, taught.line_ups, bench.judge.embed)
        boxes = [in_right_boxes(one.sightings, one.case.wanted) for one in seen]
        rates[f"{label}: identity of {count}"] = rate(flat(hits), CHANCE)
        rates[f"{label}: {count} in the right box"] = rate(flat(boxes))
    return rates
