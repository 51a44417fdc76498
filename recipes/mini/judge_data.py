"""The judge's own data: casts of look-alikes, each individual in two scenes, clean, blurred and autoencoded."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from parts import Autoencoder
from scenes import draw_pool
from sprites import SpriteAtlas
from vocabulary import CLASSES, COLOURS, PATTERNS
from world import Instance, Placed, Scene, World, place

BACKGROUND_SEED = 7001


@dataclass(frozen=True)
class Block:
    """Scenes of one cast, and every object in them.

    Attributes:
        images: `[scenes, 3, 128, 128]`, uint8.
        scenes: `[scenes]`, index into `World.scene_names`.
        rows, kinds, colours, identities: `[objects]`: its picture, class, main colour's word (the last: none) and
            number in the cast.
        boxes: `[objects, 4]` in 0..1, around what is visible.
    """

    images: Tensor
    scenes: Tensor
    rows: Tensor
    kinds: Tensor
    colours: Tensor
    identities: Tensor
    boxes: Tensor


def judge_world(atlas: SpriteAtlas, backgrounds_per_scene: int = 80) -> World:
    """The world with backgrounds of the judge's own."""
    return World(atlas, draw_pool(np.random.default_rng(BACKGROUND_SEED), 128, backgrounds_per_scene))


def any_instance(world: World, rng: np.random.Generator, class_index: int | None = None) -> Instance:
    """Draw an individual, one in four of a style that mini never sees."""
    class_index = int(rng.integers(len(CLASSES))) if class_index is None else class_index
    unseen = len(world.unseen_sprites[class_index]) > 0 and rng.random() < 1 / 4
    return world.instance(rng, class_index, unseen=unseen)


def other_palette(world: World, rng: np.random.Generator, instance: Instance) -> Instance:
    """The same drawing in clearly other colours."""
    while True:
        donor = any_instance(world, rng, instance.class_index)
        if np.square(donor.palette[:2] - instance.palette[:2]).sum() > 0.15:
            return replace(instance, palette=donor.palette, pattern_colour=donor.pattern_colour)


def other_sprite(world: World, rng: np.random.Generator, instance: Instance) -> Instance:
    """The same colours on another drawing of the class."""
    kind = instance.class_index
    sprites = [s for s in (*world.sprites[kind], *world.unseen_sprites[kind]) if s != instance.sprite]
    return replace(instance, sprite=int(rng.choice(sprites)))


def other_warp(rng: np.random.Generator, instance: Instance) -> Instance:
    """The same drawing and colours, clearly otherwise warped."""
    while True:
        warp = rng.normal(0, [0.14, 0.1, 0.08]).clip(-0.3, 0.3)
        if np.linalg.norm(warp - instance.warp) > 0.25:
            return replace(instance, warp=warp)


def other_pattern(rng: np.random.Generator, instance: Instance) -> Instance:
    """The same drawing and colours with another pattern."""
    return replace(instance, pattern=int((instance.pattern + rng.integers(1, len(PATTERNS))) % len(PATTERNS)))


def draw_cast(world: World, rng: np.random.Generator) -> list[Instance]:
    """For every class an individual and two that are easily taken for it."""
    cast: list[Instance] = []
    for class_index in range(len(CLASSES)):
        base = any_instance(world, rng, class_index)
        kind = rng.random()
        if kind < 0.5:
            other = other_sprite(world, rng, base)
        else:
            other = other_warp(rng, base) if kind < 0.75 else other_pattern(rng, base)
        cast += [base, other_palette(world, rng, base), other]
    return cast


def arrange(world: World, rng: np.random.Generator, cast: list[Instance]) -> list[Scene]:
    """Deal a cast out over scenes of one to four; worn things are often put on an animal."""
    order, scenes = rng.permutation(len(cast)).tolist(), []
    while order:
        count = int(rng.choice([1, 2, 3, 4], p=[0.3, 0.3, 0.2, 0.2]))
        chosen, order = [cast[number] for number in order[:count]], order[count:]
        objects = [world.placed(rng, i, *box) for i, box in zip(chosen, place(rng, len(chosen)), strict=True)]
        if rng.random() < 0.5:
            objects = _dress(objects)
        scenes.append(
            Scene(str(rng.choice(world.scene_names)), int(rng.integers(world.backgrounds.shape[1])), tuple(objects))
        )
    return scenes


def _dress(objects: list[Placed]) -> list[Placed]:
    animal = next((o for o in objects if CLASSES[o.instance.class_index].animal and o.size > 0.33), None)
    worn = next((o for o in objects if CLASSES[o.instance.class_index].worn), None)
    if animal is None or worn is None:
        return objects
    on_eyes = CLASSES[worn.instance.class_index].worn == "eyes"
    y = animal.y - animal.size * (0.1 if on_eyes else 0.53)
    on = replace(worn, x=animal.x, y=y, size=animal.size * (0.8 if on_eyes else 0.62), turn=animal.turn)
    return [*(o for o in objects if o is not worn), on] if y - on.size / 4 > 0 else objects


def draw_block(world: World, rng: np.random.Generator, vae: Autoencoder | None, *, natural: int = 4) -> Block:
    """Two scenes for each individual of a new cast, and some scenes as mini's own, degraded at random."""
    cast = draw_cast(world, rng)
    numbers = {id(instance): number for number, instance in enumerate(cast)}
    scenes = arrange(world, rng, cast) + arrange(world, rng, cast) + [world.scene(rng) for _ in range(natural)]
    return render_block(world, scenes, rng, vae, numbers)


def render_block(
    world: World,
    scenes: list[Scene],
    rng: np.random.Generator,
    vae: Autoencoder | None,
    numbers: dict[int, int] | None = None,
) -> Block:
    """Render scenes with the boxes of all that is visible; who is in no cast gets a number of his own."""
    rendered = world.render(scenes, 128)
    columns: list[list[Any]] = [[], [], [], [], []]
    for row, scene in enumerate(scenes):
        for slot, placed in enumerate(scene.objects):
            box = visible_box(rendered.masks[row, slot])
            if box is None:
                continue
            number = (numbers or {}).get(id(placed.instance), -1 - len(columns[0]))
            instance = placed.instance
            values = (row, instance.class_index, colour_index(instance), number, box)
            for column, value in zip(columns, values, strict=True):
                column.append(value)
    images = (degrade(rendered.images, rng, vae) * 255).round().byte()
    names = torch.tensor([world.scene_names.index(scene.scene) for scene in scenes])
    return Block(images, names, *(torch.tensor(column) for column in columns))


def augment(block: Block, rng: np.random.Generator) -> Block:
    """The same block seen anew: each picture zoomed and shifted, and often all with their colour channels permuted.

    Individuals stay the same individuals to each other; colour words are lost when channels move.
    """
    count = len(block.images)
    zoom = torch.from_numpy(rng.uniform(0.8, 1.3, count)).float()
    centre = 0.5 + torch.from_numpy(rng.uniform(-0.5, 0.5, (count, 2))).float() * (1 - 1 / zoom)[:, None].abs()
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = 1 / zoom, 1 / zoom, 2 * centre - 1
    channels = rng.permutation(3).tolist() if rng.random() < 0.5 else [0, 1, 2]
    grid = affine_grid(theta, [count, 3, 128, 128], align_corners=False)
    images = grid_sample(block.images[:, channels].float(), grid, padding_mode="border", align_corners=False)
    boxes = (block.boxes - centre[block.rows].repeat(1, 2)) * zoom[block.rows, None] + 0.5
    inside = boxes.clamp(0, 1)
    kept = (inside[:, 2:] - inside[:, :2]).prod(1) > 0.7 * (boxes[:, 2:] - boxes[:, :2]).prod(1)
    colours = block.colours if channels == [0, 1, 2] else torch.full_like(block.colours, -100)
    parts = (block.rows, block.kinds, colours, block.identities, inside)
    return Block(images.round().byte(), block.scenes, *(part[kept] for part in parts))


def colour_index(instance: Instance) -> int:
    """Index of the main colour's word; one past the last when it is between two."""
    word = instance.colour_word
    return len(COLOURS) if word is None else list(COLOURS).index(word)


def visible_box(mask: Tensor) -> tuple[float, float, float, float] | None:
    """The box around a visible mask `[size, size]` in 0..1, or None when hardly anything is visible."""
    seen = mask > 0.4
    if seen.sum() < 0.004 * mask.numel():
        return None
    rows, columns = seen.any(1).nonzero().flatten().tolist(), seen.any(0).nonzero().flatten().tolist()
    size = mask.shape[-1]
    return columns[0] / size, rows[0] / size, (columns[-1] + 1) / size, (rows[-1] + 1) / size


@torch.no_grad()
def autoencode(vae: Autoencoder, images: Tensor, noise: Tensor | float = 0.0) -> Tensor:
    """Send pictures in 0..1 through the autoencoder, with some noise (in spreads of the latents) on the way."""
    latents = vae.encode((images * 2 - 1).contiguous(memory_format=torch.channels_last)).latent_dist.mean
    latents = latents + noise * torch.randn_like(latents) / vae.config.scaling_factor
    pictures: Tensor = vae.decode(latents).sample
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def degrade(images: Tensor, rng: np.random.Generator, vae: Autoencoder | None) -> Tensor:
    """Leave a third as they are; blur, autoencode or sprinkle the others."""
    images = images.clone()
    kinds = rng.choice(3, len(images), p=[0.35, 0.2, 0.45] if vae is not None else [0.5, 0.5, 0])
    for row in np.flatnonzero(kinds == 1):
        side = int(rng.integers(56, 112))
        small = interpolate(images[row : row + 1], (side, side), mode="bilinear", antialias=True)
        images[row] = interpolate(small, 128, mode="bilinear")[0]
        images[row] += float(rng.uniform(0, 0.03)) * torch.randn_like(images[row])
    coded = np.flatnonzero(kinds == 2)
    if vae is not None and len(coded):
        noise = torch.tensor(rng.uniform(-0.1, 0.3, len(coded)).clip(0), dtype=torch.float32)
        with torch.autocast(images.device.type, torch.bfloat16):
            images[coded] = autoencode(vae, images[coded], noise[:, None, None, None])
    return images.clamp(0, 1)
