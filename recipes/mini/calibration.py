"""How often the judge errs on pictures whose truth is known: `python recipes/mini/calibration.py`, after `prepare.py`.

Each example subject stands beside something of another class, in renders that mini's autoencoder coded and decoded, as
its pictures are. Where "yes" would be wrong, one of the subject's look-alikes stands there, or something of another
class. `evidence/calibration.json` is what `cones2 evaluate report --calibration` takes; whether the judge errs more on
autoencoded pictures than on sharp ones is printed.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import astuple
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cones2.evaluation.judging import judge_pictures
from cones2.evaluation.matching import Wanted
from cones2.evaluation.measures import look_at
from cones2.evaluation.protocol import Combination, read_protocol
from cones2.evaluation.questions import Answers, Reliability, answer, calibrate, judged_unequally
from cones2.evaluation.results import scorer_of
from cones2.evaluation.scores import Scorer
from cones2.judge import Judge
from cones2.models import open_pipeline
from evidence import FOLDER
from examples import SEED, WORK, ExampleSubject, example_subjects, example_world
from judge import load_judge
from judge_data import any_instance
from lookalikes import draw_lookalikes, draw_pool
from vocabulary import CLASSES
from world import Instance, Placed, Scene, World

VIEWS = 30


class Told(NamedTuple):
    """The judge's answer to a question, and the truth."""

    question: str
    kind: str
    said: bool
    truth: bool


def pair(first: Instance, second: Instance, scene: str, background: int, rng: np.random.Generator) -> Scene:
    """Return a scene of two things side by side, about as large as in a picture of two subjects."""
    sides = rng.permutation([0.27, 0.73])
    placed = [
        Placed(each, float(x), rng.uniform(0.4, 0.65), rng.uniform(0.38, 0.46), rng.normal(0, 0.06))
        for each, x in zip((first, second), sides, strict=True)
    ]
    return Scene(scene, background, tuple(placed))


def other_kind(world: World, rng: np.random.Generator, class_index: int) -> Instance:
    """Return an individual of any class but one."""
    kind = int(rng.choice([each for each in range(len(CLASSES)) if each != class_index]))
    return any_instance(world, rng, kind)


@torch.no_grad()
def autoencoded(vae: Any, images: Tensor) -> Tensor:
    """Code and decode pictures, `[count, 3, height, width]` in 0..1."""
    latents = vae.encode(images * 2 - 1).latent_dist.mean
    decoded: Tensor = vae.decode(latents, return_dict=False)[0].add(1).div(2).clamp(0, 1)
    return decoded


def answers_about(judge: Judge, wanted: Wanted, images: Tensor, asked: list[str]) -> Iterator[tuple[Answers, bool]]:
    """Yield the judge's answers about each picture, and whether it sees the scene that is asked for."""
    pixels = images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    for judged, scene in zip(judge_pictures(judge, [Image.fromarray(each) for each in pixels]), asked, strict=True):
        yield answer(look_at(judged.seen(), wanted), judged.seen(), wanted), judged.scene == scene


def questions(
    world: World, scorer: Scorer, subject: ExampleSubject, rng: np.random.Generator, *, worn: bool
) -> Iterator[Told]:
    """Ask about pictures of a subject, of its look-alikes, and of neither."""
    word, judge, vae = subject.class_word, scorer.judge, open_pipeline("mini").vae
    others = draw_lookalikes(world, judge, subject.instance, rng, draw_pool(world, rng, subject.class_index))
    wanted = scorer.wanted(Combination(subjects=[subject.name]), layout=False)
    for shown in ("itself", "another", "neither"):
        instances = {
            "itself": [subject.instance] * VIEWS,
            "another": [others[number % len(others)] for number in range(VIEWS)],
            "neither": [other_kind(world, rng, subject.class_index) for _ in range(VIEWS)],
        }[shown]
        scenes = [
            pair(each, other_kind(world, rng, subject.class_index), str(rng.choice(world.scene_names)), 0, rng)
            for each in instances
        ]
        images = world.render(scenes, 128).images
        asked = [str(rng.choice(world.scene_names)) if number % 2 else each.scene for number, each in enumerate(scenes)]
        answered = answers_about(judge, wanted, autoencoded(vae, images) if worn else images, asked)
        for scene, asked_for, (said, is_seen) in zip(scenes, asked, answered, strict=True):
            if shown != "neither":
                yield Told("image", word, bool(said.image[0]), shown == "itself")
            yield Told("text", word, bool(said.text[0]), shown != "neither")
            yield Told("text", "scene", is_seen, asked_for == scene.scene)


def reliabilities(world: World, scorer: Scorer, *, worn: bool) -> dict[str, dict[str, Reliability]]:
    """Return by question and class word how often the judge is right."""
    told: list[Told] = []
    for number, subject in enumerate(example_subjects(world)):
        told += questions(world, scorer, subject, np.random.default_rng([SEED, 6, number]), worn=worn)
    return {
        question: calibrate((each.kind, each.said, each.truth) for each in told if each.question == question)
        for question in ("image", "text")
    }


def main() -> None:
    """Write the calibration, and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    world, judge = example_world(arguments.work), load_judge()
    scorer = scorer_of(read_protocol(FOLDER / "protocol.toml"), judge)
    sharp, worn = (reliabilities(world, scorer, worn=each) for each in (False, True))
    counts = {question: {kind: astuple(each) for kind, each in kinds.items()} for question, kinds in worn.items()}
    (arguments.folder / "calibration.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    for question in worn:
        clear, drawn = (reduce(add, each[question].values()) for each in (sharp, worn))
        verdict = "errs more on autoencoded ones" if judged_unequally(clear, drawn) else "errs as on sharp ones"
        print(f"{question}: sensitivity {drawn.sensitivity:.3f}, specificity {drawn.specificity:.3f}; {verdict}")


if __name__ == "__main__":
    main()
