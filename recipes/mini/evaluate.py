"""Measure mini: `python recipes/mini/evaluate.py STAGE`.

The stages are judge, plain, layout, places, identity, follow, nested, sharpness, guidance, sweep, ablations, ways and
preservation. Each writes `results/STAGE.json`; `card` writes those of the model's present weights into the model card,
as its tables. Seeds are fixed; pictures are 20 steps of DPM++.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from cones2.evaluation.boxes import fits, holds
from cones2.evaluation.second_judge import colour_histograms
from cones2.judge import Judge
from drawing import TAUGHT_SETTINGS, open_for_drawing
from drawing_bench import DrawingBench, Seen, failed
from evaluate_judge import evaluate_judge
from evaluation_cases import (
    SEED,
    Case,
    Known,
    any_known,
    colour_case,
    relation_case,
    scene_case,
    without_residuals,
)
from examples import example_subjects, example_world
from guidance import evaluate_guidance
from judge import load_judge
from judge_data import judge_world
from layouts import draw_with_layout, evaluate_ablations, evaluate_sweep
from lookalikes import CHANCE
from metrics import Rate, Ratio, all_present, at_place, in_right_boxes, rate
from model_card import write_card
from nested import evaluate_nested
from placed import evaluate_places
from preservation import evaluate_preservation
from sharpness import evaluate_sharpness
from shipped import measured_hash
from sprites import SpriteAtlas
from taught import flat, taught_subjects
from vocabulary import COLOURS, SCENES
from ways import evaluate_ways

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parent / "work"
PAGE = Path(__file__).parents[2] / "docs/mini.md"
COUNTS = (1, 2, 3, 4)


def evaluate_plain(bench: DrawingBench) -> dict[str, Rate]:
    """Plain prompts of one to four objects: are all there, once each?"""
    rates: dict[str, Rate] = {}
    failures: list[Seen] = []
    for count in COUNTS:
        rng = np.random.default_rng([SEED, 1, count])
        seen = list(bench.draw([scene_case(rng, any_known(rng, count), seeds) for seeds in bench.seeds()]))
        outcomes = [all_present(one.sightings, one.case.wanted) for one in seen]
        rates[f"{count}"] = rate(outcomes)
        failures += failed(seen, outcomes)
    bench.save_failures("plain", failures)
    return rates


def evaluate_layout(bench: DrawingBench) -> dict[str, Rate]:
    """Untaught words with random boxes: is each in its own?"""
    rates: dict[str, Rate] = {}
    failures: list[Seen] = []
    for count in COUNTS:
        seen = draw_with_layout(bench, count)
        boxes = [in_right_boxes(one.sightings, one.case.wanted) for one in seen]
        present = [all_present(one.sightings, one.case.wanted) for one in seen]
        rates[f"{count}"] = rate(flat(boxes), _chance_of_box([one.case for one in seen]))
        rates[f"{count}, all of a picture"] = rate([all(hits) for hits in boxes])
        rates[f"{count}, all present"] = rate(present)
        failures += failed(seen, [all(hits) for hits in boxes])
    bench.save_failures("layout", failures)
    return rates


def evaluate_identity(bench: DrawingBench) -> dict[str, Rate]:
    """The example subjects with their shipped residuals, alone and together, with a layout: is each itself?"""
    rates: dict[str, Rate] = {}
    failures: list[Seen] = []
    taught = taught_subjects(bench, example_subjects(example_world()))
    for count in COUNTS:
        who, cases = taught.draw_cases(bench, count)
        seen = list(bench.draw(cases, TAUGHT_SETTINGS))
        hits = taught.identify(seen, who, taught.line_ups, bench.judge.embed)
        simple = taught.identify(seen, who, taught.baselines, colour_histograms)
        boxes = [in_right_boxes(one.sightings, one.case.wanted) for one in seen]
        rates[f"{count}"] = rate(flat(hits), CHANCE)
        for tier, unseen in (("T1", False), ("T2", True)):
            rates[f"{count}, {tier}"] = rate(taught.of_tier(hits, who, unseen=unseen), CHANCE)
        rates[f"{count}, by colour histogram"] = rate(flat(simple), CHANCE)
        rates[f"{count}, in its right box"] = rate(flat(boxes))
        failures += failed(seen, [all(row) for row in hits])
        if count == 1:
            bare = list(bench.draw([without_residuals(case) for case in cases], TAUGHT_SETTINGS))
            hits = taught.identify(bare, who, taught.line_ups, bench.judge.embed)
            rates["1, without residual"] = rate(flat(hits), CHANCE)
            rates["1, renders of the subjects themselves"] = rate(taught.known_in_renders(bench), CHANCE)
    bench.save_failures("identity", failures)
    return rates


def evaluate_follow(bench: DrawingBench) -> dict[str, Rate]:
    """Scene, colour and relation of the prompt, with residual and without."""
    known = taught_subjects(bench, example_subjects(example_world())).known
    rng = np.random.default_rng([SEED, 4])
    scenes = [scene_case(rng, [_any(rng, known)], seeds) for seeds in bench.seeds()]
    colours = [colour_case(rng, _any(rng, known), seeds) for seeds in bench.seeds()]
    relations = [relation_case(rng, _any(rng, known), seeds) for seeds in bench.seeds()]
    rates: dict[str, Rate] = {}
    for what, cases, follows, chance in (
        ("scene", [case for case in scenes if case.scene], _in_scene, 1 / (len(SCENES) + 1)),
        ("attribute", colours, _in_colour, 1 / len(COLOURS)),
        ("relation", relations, _in_relation, None),
    ):
        for label in ("with", "without"):
            these = cases if label == "with" else [without_residuals(case) for case in cases]
            outcomes = [follows(bench.judge, one) for one in bench.draw(these, TAUGHT_SETTINGS)]
            rates[f"{what}, {label} residual"] = rate(outcomes, chance)
    return rates


def _in_scene(judge: Judge, one: Seen) -> bool:
    return judge.scenes(one.image[None])[0] == one.case.scene


def _in_colour(judge: Judge, one: Seen) -> bool:
    sighting = at_place(one.sightings, one.case.wanted[0])
    if sighting is None:
        return False
    boxes, rows = torch.tensor([sighting.box]), torch.zeros(1, dtype=torch.long)
    return judge.colours(one.image[None], boxes, rows)[0] == one.case.detail


def _in_relation(_: Judge, one: Seen) -> bool:
    first, second = (at_place(one.sightings, wanted) for wanted in one.case.wanted)
    return first is not None and second is not None and holds(one.case.detail, first.box, second.box)


def _any(rng: np.random.Generator, known: Sequence[Known]) -> Known:
    return known[int(rng.integers(len(known)))]


def _chance_of_box(cases: Sequence[Case]) -> float:
    """How often an object fits its box when the boxes of another case are taken for its own."""
    boxes = [wanted.box for case in cases for wanted in case.wanted if wanted.box]
    pairs = [(one, other) for one in boxes[:100] for other in boxes[:100] if one is not other]
    return round(float(np.mean([fits(one, other) for one, other in pairs])), 4) if pairs else 0.0


def save_rates(stage: str, rates: Mapping[str, Rate | Ratio], about: Mapping[str, object], folder: Path) -> None:
    """Write a stage's rates and print them."""
    folder.mkdir(parents=True, exist_ok=True)
    result = {"stage": stage, **about, "rates": {name: value.as_json() for name, value in rates.items()}}
    (folder / f"{stage}.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, value in rates.items():
        print(f"{stage}: {name}: {value} of {value.trials}", flush=True)


STAGES: Mapping[str, Callable[[DrawingBench], Mapping[str, Rate | Ratio]]] = {
    "judge": lambda bench: evaluate_judge(bench.judge, bench.world, bench.pipe.vae, bench.pictures),
    "plain": evaluate_plain,
    "layout": evaluate_layout,
    "places": evaluate_places,
    "identity": evaluate_identity,
    "follow": evaluate_follow,
    "nested": evaluate_nested,
    "sharpness": evaluate_sharpness,
    "guidance": evaluate_guidance,
    "sweep": evaluate_sweep,
    "ablations": evaluate_ablations,
    "ways": evaluate_ways,
    "preservation": evaluate_preservation,
}


def main() -> None:
    """Run one stage, or all and write the card, or write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all", "card"])
    parser.add_argument("--pictures", type=int, default=200, help="for each figure")
    parser.add_argument("--model", default="mini", help="mini, or a diffusers folder")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder of the figures")
    arguments = parser.parse_args()
    if arguments.stage == "card":
        write_card(arguments.results, PAGE, measured_hash(arguments.model))
        return
    judge = load_judge()
    atlas = SpriteAtlas.load(arguments.work / "sprites.safetensors")
    pipe, world = open_for_drawing(arguments.model), judge_world(atlas)
    bench = DrawingBench(pipe, judge, world, atlas, arguments.pictures, arguments.results)
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        start = time.monotonic()
        rates = STAGES[stage](bench)
        about = {"model": measured_hash(arguments.model), "pictures": arguments.pictures}
        save_rates(stage, rates, {**about, "seconds": round(time.monotonic() - start)}, arguments.results)
    if arguments.stage == "all":
        write_card(arguments.results, PAGE, measured_hash(arguments.model))


if __name__ == "__main__":
    main()
