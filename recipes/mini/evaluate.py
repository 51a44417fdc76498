"""Measure mini: `python recipes/mini/evaluate.py STAGE`; judge, plain, layout, identity, follow and sweep are stages.

Each stage writes `results/STAGE.json`; `card` prints them as the model card's tables. Seeds are fixed; pictures are 20
steps of DPM++.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cones2.backbones import Backbone, open_backbone
from cones2.composing import Subject
from cones2.residual import Residual
from drawing import draw_case, make_sheet, to_picture
from evaluate_judge import evaluate_judge
from evaluation_cases import Case, Known, any_known, class_shapes, colour_case, holds, relation_case, scene_case
from examples import FOLDER, ExampleSubject, example_subjects, example_world
from judge import Judge, Sighting
from judge_data import judge_world
from lookalikes import CHANCE, LineUp, draw_lookalikes, draw_pool, histograms, line_up
from metrics import Rate, Wanted, all_present, at_place, in_right_boxes, is_nearest, rate
from model_card import print_card
from sprites import SpriteAtlas
from vocabulary import COLOURS, SCENES
from world import World

SEED = 9000
RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parent / "work"
SEEDS_A_CASE = 2
SHOWN_FAILURES = 16
SWEEP = (0.5, 1.0, 2.0, 4.0)
COUNTS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Seen:
    """A picture, what it should show and what the judge saw in it."""

    case: Case
    image: Tensor
    sightings: Sequence[Sighting]


@dataclass(frozen=True)
class Studio:
    """What every stage needs."""

    backbone: Backbone
    judge: Judge
    world: World
    atlas: SpriteAtlas
    pictures: int

    def draw(self, cases: Sequence[Case], layout_scale: float = 1.0) -> Iterator[Seen]:
        """Draw cases and look at them."""
        for case in cases:
            images = draw_case(self.backbone, case, layout_scale=layout_scale)
            for image, sightings in zip(images, self.judge.look(images), strict=True):
                yield Seen(case, image, sightings)

    def seeds(self) -> list[tuple[int, ...]]:
        """Seeds for as many cases as make `pictures` pictures."""
        starts = range(0, self.pictures, SEEDS_A_CASE)
        return [tuple(range(start, min(start + SEEDS_A_CASE, self.pictures))) for start in starts]


def evaluate_plain(studio: Studio) -> dict[str, Rate]:
    """Plain prompts of one to four objects: are all there, once each?"""
    rates, failures = {}, []
    for count in COUNTS:
        rng = np.random.default_rng([SEED, 1, count])
        seen = list(studio.draw([scene_case(rng, any_known(rng, count), seeds) for seeds in studio.seeds()]))
        outcomes = [all_present(one.sightings, one.case.wanted) for one in seen]
        rates[f"{count}"] = rate(outcomes)
        failures += _failures(seen, outcomes)
    _save_failures("plain", failures)
    return rates


def evaluate_layout(studio: Studio, layout_scale: float = 1.0, counts: Sequence[int] = COUNTS) -> dict[str, Rate]:
    """Untaught words with random boxes: is each in its own?"""
    rates, failures, shapes = {}, [], class_shapes(studio.atlas)
    for count in counts:
        rng = np.random.default_rng([SEED, 2, count])
        cases = [scene_case(rng, any_known(rng, count), seeds, shapes) for seeds in studio.seeds()]
        seen = list(studio.draw(cases, layout_scale))
        boxes = [in_right_boxes(one.sightings, one.case.wanted) for one in seen]
        present = [all_present(one.sightings, one.case.wanted) for one in seen]
        rates[f"{count}"] = rate([hit for hits in boxes for hit in hits], _chance_of_box(cases))
        rates[f"{count}, all of a picture"] = rate([all(hits) for hits in boxes])
        rates[f"{count}, all present"] = rate(present)
        failures += _failures(seen, [all(hits) for hits in boxes])
    _save_failures("layout", failures)
    return rates


def evaluate_identity(studio: Studio) -> dict[str, Rate]:
    """The example subjects with their shipped residuals, alone and together, with a layout: is each itself?"""
    rates, failures, shapes = {}, [], class_shapes(studio.atlas)
    examples = example_subjects(example_world())
    known, line_ups, baselines = taught_subjects(studio, examples)
    for count in COUNTS:
        rng = np.random.default_rng([SEED, 3, count])
        chosen = [rng.choice(len(known), count, replace=False).tolist() for _ in studio.seeds()]
        cases = [
            scene_case(rng, [known[index] for index in indices], seeds, shapes)
            for indices, seeds in zip(chosen, studio.seeds(), strict=True)
        ]
        untaught = [replace(case, subjects=_without_residuals(case)) for case in cases]
        for label, these in (("", cases), (", without residuals", untaught)):
            seen = list(studio.draw(these))
            who = [indices for indices, case in zip(chosen, cases, strict=True) for _ in case.seeds]
            hits = [
                _identified(one, indices, line_ups, studio.judge.embed) for one, indices in zip(seen, who, strict=True)
            ]
            rates[f"{count}{label}"] = rate([hit for row in hits for hit in row], CHANCE)
            if label:
                continue
            for tier, unseen in (("T1", False), ("T2", True)):
                part = [
                    hit
                    for row, indices in zip(hits, who, strict=True)
                    for hit, index in zip(row, indices, strict=True)
                    if examples[index].unseen == unseen
                ]
                rates[f"{count}, {tier}"] = rate(part, CHANCE)
            simple = [_identified(one, indices, baselines, histograms) for one, indices in zip(seen, who, strict=True)]
            rates[f"{count}, by colour histogram"] = rate([hit for row in simple for hit in row], CHANCE)
            boxes = [in_right_boxes(one.sightings, one.case.wanted) for one in seen]
            rates[f"{count}, in its right box"] = rate([hit for row in boxes for hit in row])
            failures += _failures(seen, [all(row) for row in hits])
    _save_failures("identity", failures)
    return rates


def evaluate_follow(studio: Studio) -> dict[str, Rate]:
    """Scene, colour and relation of the prompt, with residual and without."""
    known, _, _ = taught_subjects(studio, example_subjects(example_world()), line_ups=False)
    rng = np.random.default_rng([SEED, 4])
    scenes = [scene_case(rng, [_any(rng, known)], seeds) for seeds in studio.seeds()]
    colours = [colour_case(rng, _any(rng, known), seeds) for seeds in studio.seeds()]
    relations = [relation_case(rng, _any(rng, known), seeds) for seeds in studio.seeds()]
    rates = {}
    for what, cases, follows, chance in (
        ("scene", [case for case in scenes if case.scene], _in_scene, 1 / (len(SCENES) + 1)),
        ("attribute", colours, _in_colour, 1 / len(COLOURS)),
        ("relation", relations, _in_relation, None),
    ):
        for label in ("with", "without"):
            these = cases if label == "with" else [replace(case, subjects=_without_residuals(case)) for case in cases]
            outcomes = [follows(studio.judge, one) for one in studio.draw(these)]
            rates[f"{what}, {label} residual"] = rate(outcomes, chance)
    return rates


def evaluate_sweep(studio: Studio) -> dict[str, Rate]:
    """The layout's strength (preset `paper`) against the share in its right box."""
    return {
        f"layout scale {scale:g}, {name}": value
        for scale in SWEEP
        for name, value in evaluate_layout(studio, scale, counts=(2, 3)).items()
    }


def taught_subjects(
    studio: Studio, examples: Sequence[ExampleSubject], *, line_ups: bool = True
) -> tuple[list[Known], list[LineUp], list[LineUp]]:
    """The example subjects with their residuals, and their line-ups by embedding and by histogram."""
    known, embedded, baselines = [], [], []
    for number, example in enumerate(examples):
        rng = np.random.default_rng([SEED, 5, number])
        residual = Residual.load(FOLDER / example.name / f"{example.name}.safetensors")
        identity = None
        if line_ups:
            pool = draw_pool(studio.world, rng, example.class_index)
            others = draw_lookalikes(studio.world, studio.judge, example.instance, rng, pool)
            embedded.append(line_up(studio.world, example.instance, others, rng, studio.judge.embed))
            baselines.append(line_up(studio.world, example.instance, others, rng, histograms))
            identity = embedded[-1].own
        known.append(Known(Subject(example.class_word, residual), Wanted(example.class_index, None, identity)))
    return known, embedded, baselines


def _identified(one: Seen, indices: Sequence[int], line_ups: Sequence[LineUp], describe) -> list[bool]:
    """For each subject of a picture: whoever stands at its place looks more like it than like any look-alike."""
    hits = []
    for index, wanted in zip(indices, one.case.wanted, strict=True):
        sighting, line = at_place(one.sightings, wanted), line_ups[index]
        if sighting is None:
            hits.append(False)
            continue
        vector = describe(one.image[None], torch.tensor([sighting.box]), torch.zeros(1, dtype=torch.long))[0]
        hits.append(is_nearest(vector, line.own, line.others))
    return hits


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


def _without_residuals(case: Case) -> dict[str, Subject]:
    return {name: Subject(subject.class_word) for name, subject in case.subjects.items()}


def _chance_of_box(cases: Sequence[Case]) -> float:
    """How often an object fits its box when the boxes of another case are taken for its own."""
    from metrics import fits

    boxes = [wanted.box for case in cases for wanted in case.wanted if wanted.box]
    pairs = [(one, other) for one in boxes[:100] for other in boxes[:100] if one is not other]
    return round(float(np.mean([fits(one, other) for one, other in pairs])), 4) if pairs else 0.0


def _failures(seen: Sequence[Seen], outcomes: Sequence[bool]) -> list[Seen]:
    return [one for one, good in zip(seen, outcomes, strict=True) if not good][: SHOWN_FAILURES // len(COUNTS)]


def _save_failures(stage: str, failures: Sequence[Seen]) -> None:
    """The first failures of each count, with boxes asked for in white and what the judge saw in red."""
    if failures:
        RESULTS.mkdir(exist_ok=True)
        pictures = [to_picture(one.image, [w.box for w in one.case.wanted if w.box], one.sightings) for one in failures]
        make_sheet(pictures).save(RESULTS / f"failures-{stage}.png", optimize=True)


def save_rates(stage: str, rates: dict[str, Rate], about: dict[str, object]) -> None:
    """Write a stage's rates and print them."""
    RESULTS.mkdir(exist_ok=True)
    result = {"stage": stage, **about, "rates": {name: value.as_json() for name, value in rates.items()}}
    (RESULTS / f"{stage}.json").write_text(json.dumps(result, indent=2) + "\n")
    for name, value in rates.items():
        print(f"{stage}: {name}: {value} of {value.trials}", flush=True)


STAGES = {
    "judge": lambda studio: evaluate_judge(studio.judge, studio.world, studio.backbone.vae, studio.pictures),
    "plain": evaluate_plain,
    "layout": evaluate_layout,
    "identity": evaluate_identity,
    "follow": evaluate_follow,
    "sweep": evaluate_sweep,
}


def main() -> None:
    """Run one stage, or print the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "all", "card"])
    parser.add_argument("--pictures", type=int, default=200, help="for each figure")
    parser.add_argument("--model", default="mini", help="mini, or a diffusers folder")
    parser.add_argument("--work", type=Path, default=WORK)
    arguments = parser.parse_args()
    if arguments.stage == "card":
        print_card(RESULTS)
        return
    judge = Judge.load()
    atlas = SpriteAtlas.load(arguments.work / "sprites.safetensors")
    world, backbone = judge_world(atlas), open_backbone(arguments.model)
    studio = Studio(backbone, judge, world, atlas, arguments.pictures)
    for stage in STAGES if arguments.stage == "all" else [arguments.stage]:
        start = time.monotonic()
        rates = STAGES[stage](studio)
        about = {"model": backbone.encoder_id.weights[:16], "pictures": arguments.pictures}
        save_rates(stage, rates, {**about, "seconds": round(time.monotonic() - start)})


if __name__ == "__main__":
    main()
