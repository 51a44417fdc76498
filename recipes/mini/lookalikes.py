"""Fifteen look-alikes for an individual, and two ways to tell it from them: the judge's, and a colour histogram."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cones2.judge import Judge
from examples import pose
from judge_data import any_instance, other_palette, other_sprite, other_warp, visible_box
from world import Instance, Scene, World

OTHER_PALETTES = OTHER_SHAPES = NEAREST = 5
LOOKALIKES = OTHER_PALETTES + OTHER_SHAPES + NEAREST
CHANCE = 1 / (1 + LOOKALIKES)
VIEWS = 5

Describe = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From pictures, boxes and the boxes' pictures to unit vectors `[boxes, dim]`."""


@dataclass(frozen=True)
class LineUp:
    """An individual's reference and those of its look-alikes, as unit vectors."""

    own: Tensor
    others: Tensor


def draw_lookalikes(
    world: World, judge: Judge, instance: Instance, rng: np.random.Generator, pool: Sequence[Instance]
) -> list[Instance]:
    """Five in other colours, five on another drawing or otherwise warped, and the judge's nearest five of `pool`."""
    palettes = [other_palette(world, rng, instance) for _ in range(OTHER_PALETTES)]
    shapes = [
        other_sprite(world, rng, instance) if number % 2 == 0 else other_warp(rng, instance)
        for number in range(OTHER_SHAPES)
    ]
    own, *vectors = references(world, [instance, *pool], rng, judge.embed, views=1)
    order = (torch.stack(vectors) @ own).argsort(descending=True)[:NEAREST].tolist()
    return [*palettes, *shapes, *(pool[index] for index in order)]


def draw_pool(world: World, rng: np.random.Generator, class_index: int, count: int = 120) -> list[Instance]:
    """Individuals of a class from which the nearest look-alikes are taken."""
    return [any_instance(world, rng, class_index) for _ in range(count)]


def line_up(
    world: World, instance: Instance, lookalikes: Sequence[Instance], rng: np.random.Generator, describe: Describe
) -> LineUp:
    """References of an individual and its look-alikes, each from views of its own."""
    own, *others = references(world, [instance, *lookalikes], rng, describe)
    return LineUp(own, torch.stack(others))


def references(
    world: World, instances: Sequence[Instance], rng: np.random.Generator, describe: Describe, views: int = VIEWS
) -> list[Tensor]:
    """The mean description of a few renders of each individual, of length 1."""
    return [normalize(describe_alone(world, instance, rng, describe, views).mean(0), dim=0) for instance in instances]


def describe_alone(
    world: World, instance: Instance, rng: np.random.Generator, describe: Describe, views: int
) -> Tensor:
    """Descriptions of an individual in a few scenes of its own, cut out by its true box."""
    scenes = [
        Scene(
            str(rng.choice(world.scene_names)),
            int(rng.integers(world.backgrounds.shape[1])),
            (pose(instance, rng),),
        )
        for _ in range(views)
    ]
    rendered = world.render(scenes, 128)
    boxes = torch.tensor([visible_box(mask) for mask in rendered.masks[:, 0]])
    return describe(rendered.images, boxes, torch.arange(len(scenes)))
