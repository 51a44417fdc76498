"""How far the judge can be trusted: its accuracy on renders that it never saw, clean and autoencoded."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from cones2.evaluation.second_judge import colour_histograms
from cones2.judge import Judge, Sighting, overlap
from examples import pose
from judge_data import any_instance, arrange, autoencode, colour_index, visible_box
from lookalikes import CHANCE, LineUp, draw_lookalikes, draw_pool, line_up
from metrics import Rate, Wanted, all_present, in_right_boxes, is_nearest, rate
from parts import Autoencoder
from vocabulary import CLASSES, COLOURS, SCENES
from world import Instance, Scene, World

SEED = 8000
VIEWS_A_SUBJECT = 2
BATCH = 16


def evaluate_judge(judge: Judge, world: World, vae: Autoencoder | None, pictures: int) -> dict[str, Rate]:
    """All figures, on renders and on autoencoded renders."""
    rates: dict[str, Rate] = {}
    sources = [("renders", None)] + ([("autoencoded renders", vae)] if vae is not None else [])
    for label, coder in sources:
        torch.manual_seed(SEED)
        found = {**judge_scenes(judge, world, coder, pictures), **judge_identities(judge, world, coder, pictures)}
        rates.update({f"{name}, {label}": value for name, value in found.items()})
    return rates


def draw_scenes(world: World, rng: np.random.Generator, pictures: int) -> list[Scene]:
    """Half of the scenes as mini's own, half with styles that mini never saw and no relations."""
    scenes = [world.scene(rng) for _ in range(pictures // 2)]
    while len(scenes) < pictures:
        scenes += arrange(world, rng, [any_instance(world, rng) for _ in range(12)])
    return scenes[:pictures]


def judge_scenes(judge: Judge, world: World, vae: Autoencoder | None, pictures: int) -> dict[str, Rate]:
    """Category, presence, place, colour and scene of what was rendered."""
    outcomes: dict[str, list[bool]] = {name: [] for name in _CHANCES}
    scenes = draw_scenes(world, np.random.default_rng([SEED, 1]), pictures)
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        images, shown = _render(world, part, vae)
        names = judge.scenes(images)
        for row, (scene, sightings, objects) in enumerate(zip(part, judge.look(images), shown, strict=True)):
            wanted = [Wanted(instance.class_index, box) for instance, box in objects]
            outcomes["scene"].append(names[row] == scene.scene)
            outcomes["all objects present"].append(all_present(sightings, wanted))
            outcomes["in its right box"] += in_right_boxes(sightings, wanted)
            for instance, box in objects:
                outcomes["category"].append(_best(sightings, box) == instance.class_index)
                if instance.colour_word:
                    colour = judge.colours(images, torch.tensor([box]), torch.tensor([row]))[0]
                    outcomes["colour"].append(list(COLOURS).index(colour) == colour_index(instance))
    return {name: rate(hits, _CHANCES[name]) for name, hits in outcomes.items()}


def judge_identities(judge: Judge, world: World, vae: Autoencoder | None, pictures: int) -> dict[str, Rate]:
    """Identity among fifteen look-alikes, of individuals alone or among others, by embedding and by colours."""
    by_embedding, by_histogram = [], []
    for number in range(pictures // VIEWS_A_SUBJECT):
        rng = np.random.default_rng([SEED, 2, number])
        instance = any_instance(world, rng, number % len(CLASSES))
        lookalikes = draw_lookalikes(world, judge, instance, rng, draw_pool(world, rng, instance.class_index))
        line = line_up(world, instance, lookalikes, rng, judge.embed)
        simple = line_up(world, instance, lookalikes, rng, colour_histograms)
        scenes = [_scene_around(world, rng, instance) for _ in range(VIEWS_A_SUBJECT)]
        images, shown = _render(world, scenes, vae)
        for row, (sightings, objects) in enumerate(zip(judge.look(images), shown, strict=True)):
            box = next(box for who, box in objects if who is instance)
            seen = max(sightings, key=lambda sighting: overlap(sighting.box, box), default=None)
            by_embedding.append(seen is not None and is_nearest(seen.embedding, line.own, line.others))
            by_histogram.append(seen is not None and _is_nearest_by_histogram(images[row], seen, simple))
    return {"identity": rate(by_embedding, CHANCE), "identity, by colour histogram": rate(by_histogram, CHANCE)}


_CHANCES = {
    "category": 1 / len(CLASSES),
    "all objects present": None,
    "in its right box": None,
    "colour": 1 / len(COLOURS),
    "scene": 1 / (len(SCENES) + 1),
}


def _render(
    world: World, scenes: Sequence[Scene], vae: Autoencoder | None
) -> tuple[Tensor, list[list[tuple[Instance, tuple[float, float, float, float]]]]]:
    """Pictures, and who is visible where in each."""
    rendered = world.render(list(scenes), 128)
    images = rendered.images if vae is None else autoencode(vae, rendered.images)
    shown = []
    for scene, masks in zip(scenes, rendered.masks, strict=True):
        boxes = [visible_box(mask) for mask in masks[: len(scene.objects)]]
        shown.append([(o.instance, box) for o, box in zip(scene.objects, boxes, strict=True) if box is not None])
    return images, shown


def _best(sightings: Sequence[Sighting], box: tuple[float, float, float, float]) -> int | None:
    best = max(sightings, key=lambda sighting: overlap(sighting.box, box), default=None)
    return best.class_index if best is not None and overlap(best.box, box) >= 0.4 else None


def _scene_around(world: World, rng: np.random.Generator, instance: Instance) -> Scene:
    """The individual by itself or among others of other classes."""
    if rng.random() < 0.5:
        return Scene(
            str(rng.choice(world.scene_names)), int(rng.integers(world.backgrounds.shape[1])), (pose(instance, rng),)
        )
    others = rng.choice(
        [k for k in range(len(CLASSES)) if k != instance.class_index], rng.integers(1, 4), replace=False
    )
    cast = [instance, *(any_instance(world, rng, int(kind)) for kind in others)]
    return next(scene for scene in _arrangements(world, rng, cast) if len(scene.objects) > 1)


def _arrangements(world: World, rng: np.random.Generator, cast: list[Instance]) -> Iterator[Scene]:
    while True:
        yield from (s for s in arrange(world, rng, cast) if any(o.instance is cast[0] for o in s.objects))


def _is_nearest_by_histogram(image: Tensor, seen: Sighting, line: LineUp) -> bool:
    vector = colour_histograms(image[None], torch.tensor([seen.box]), torch.zeros(1, dtype=torch.long))[0]
    return is_nearest(vector, line.own, line.others)
