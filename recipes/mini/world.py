"""mini's world: random instances of ten classes, one to four in a picture, composited as batched torch.

An `Instance` is what a subject is: a sprite, its colours, a pattern and a warp. A `Scene` places instances on a
background; `render` draws a list of scenes at once, on whatever device the atlas is on, and returns who is visible
where.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from sprites import PARTS, SpriteAtlas
from vocabulary import CLASSES, COLOURS, PATTERNS, SCENES

MAX_OBJECTS = 4
SIDES = {1: (0.45, 0.85), 2: (0.4, 0.58), 3: (0.36, 0.48), 4: (0.33, 0.42)}  # of objects, by how many there are
THUMBNAIL = 24
ANIMALS = [number for number, word in enumerate(CLASSES) if word.animal]
WORN = [number for number, word in enumerate(CLASSES) if word.worn]
FREE = [number for number in range(len(CLASSES)) if number not in WORN]


@dataclass(frozen=True)
class Instance:
    """One individual: what stays the same from picture to picture."""

    class_index: int
    sprite: int
    palette: np.ndarray  # [4, 3]
    pattern: int  # index into PATTERNS
    pattern_colour: np.ndarray  # [3]
    warp: np.ndarray  # [3]: log aspect, keystone, bulge

    @property
    def colour_word(self) -> str | None:
        """The named colour nearest to the largest part, or None when it is between two."""
        distance = {word: float(np.square(self.palette[0] - rgb).sum()) for word, rgb in COLOURS.items()}
        first, second = sorted(distance.values())[:2]
        word = min(distance, key=distance.__getitem__)
        return word if first < 0.06 and first < 0.6 * second else None


@dataclass(frozen=True)
class Placed:
    """An instance in a scene: centre and size in 0..1, turn in radians."""

    instance: Instance
    x: float
    y: float
    size: float
    turn: float = 0.0
    light: float = 1.0
    told: Instance | None = None  # the individual that a code tells of, where its colour is told in words
    coded: bool = False  # whether captions always tell it by its code


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn; later objects cover earlier ones."""

    scene: str
    background: int
    objects: tuple[Placed, ...]
    relation: tuple[str, int, int] | None = None  # ("wearing", animal, worn)
    tags: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Strokes:
    """Placed objects as numbers, which cross to another process or device in one piece.

    Attributes:
        sprite: `[objects]`.
        numbers: `[objects, 8]`, x, y, size, turn, light and the warp's three.
        palette: `[objects, 4, 3]`.
        pattern: `[objects]`, index into `PATTERNS`.
        pattern_colour: `[objects, 3]`.
    """

    sprite: Tensor
    numbers: Tensor
    palette: Tensor
    pattern: Tensor
    pattern_colour: Tensor

    @staticmethod
    def of(objects: Sequence[Placed]) -> "Strokes":
        """Tell objects in numbers."""
        instances = [o.instance for o in objects]
        numbers = [[o.x, o.y, o.size, o.turn, o.light, *o.instance.warp] for o in objects]
        return Strokes(
            torch.tensor([i.sprite for i in instances]),
            torch.tensor(np.array(numbers), dtype=torch.float32).reshape(-1, 8),
            torch.tensor(np.array([i.palette for i in instances]), dtype=torch.float32).reshape(-1, PARTS, 3),
            torch.tensor([i.pattern for i in instances]),
            torch.tensor(np.array([i.pattern_colour for i in instances]), dtype=torch.float32).reshape(-1, 3),
        )

    def to(self, device: str) -> "Strokes":
        """The same on a device."""
        return Strokes(*(value.to(device, non_blocking=True) for value in vars(self).values()))


@dataclass(frozen=True)
class Composition:
    """Scenes as numbers: their backgrounds, and for each object slot whose it is and its strokes."""

    names: Tensor
    backgrounds: Tensor
    slots: tuple[tuple[Tensor, Strokes], ...]

    @staticmethod
    def of(scenes: Sequence[Scene], scene_names: Sequence[str]) -> "Composition":
        """Tell scenes in numbers."""
        slots = []
        for slot in range(max(len(scene.objects) for scene in scenes)):
            rows = [row for row, scene in enumerate(scenes) if len(scene.objects) > slot]
            slots.append((torch.tensor(rows), Strokes.of([scenes[row].objects[slot] for row in rows])))
        names = torch.tensor([scene_names.index(scene.scene) for scene in scenes])
        return Composition(names, torch.tensor([scene.background for scene in scenes]), tuple(slots))

    def to(self, device: str) -> "Composition":
        """The same on a device."""
        slots = tuple((rows.to(device), strokes.to(device)) for rows, strokes in self.slots)
        return Composition(self.names.to(device), self.backgrounds.to(device), slots)


@dataclass(frozen=True)
class Rendered:
    """Drawn scenes: pictures in 0..1 and, for each object slot, its visible alpha."""

    images: Tensor  # [batch, 3, size, size]
    masks: Tensor  # [batch, MAX_OBJECTS, size, size]


class World:
    """Draws random instances and scenes from one numpy generator, and renders them with torch.

    Attributes:
        counts: the shares of scenes of one to four objects.
        related: the share of scenes of two and more in which two are related.
        relations: the shares of wearing, on, behind and next to.
    """

    counts = (0.38, 0.3, 0.18, 0.14)
    related = 0.22
    relations = (0.5, 0.2, 0.15, 0.15)

    def __init__(self, atlas: SpriteAtlas, backgrounds: np.ndarray, device: str = "cpu") -> None:
        self.device = device
        self.planes = atlas.planes.to(device)
        self.palette = atlas.palette.numpy()
        self.backgrounds = torch.from_numpy(backgrounds).to(device)
        held_out = atlas.held_out.numpy()
        self.sprites = [np.flatnonzero((atlas.class_index.numpy() == c) & ~held_out) for c in range(len(CLASSES))]
        self.unseen_sprites = [np.flatnonzero((atlas.class_index.numpy() == c) & held_out) for c in range(len(CLASSES))]
        self.scene_names = (*SCENES, "")

    # Sampling

    def instance(self, rng: np.random.Generator, class_index: int | None = None, *, unseen: bool = False) -> Instance:
        """Draw an individual; `unseen` takes a sprite of the held-out style."""
        if class_index is None:
            class_index = int(rng.integers(len(CLASSES)))
        sprite = self.choose_drawing(rng, class_index, unseen=unseen)
        palette = self.palette[sprite].copy()
        if rng.random() < 0.8:
            palette[0] = random_colour(rng)
        if rng.random() < 0.6:
            palette[1] = contrasting_colour(rng, palette[0])
        if rng.random() < 0.15:
            palette[2] = contrasting_colour(rng, palette[0])
        palette = np.clip(palette + rng.normal(0, 0.015, palette.shape), 0, 1)
        pattern = int(rng.choice(len(PATTERNS), p=[0.58, 0.16, 0.14, 0.12]))
        return Instance(
            class_index,
            sprite,
            palette,
            pattern,
            contrasting_colour(rng, palette[0]),
            np.array([rng.normal(0, 0.10), rng.normal(0, 0.06), rng.normal(0, 0.06)]).clip(-0.25, 0.25),
        )

    def choose_drawing(self, rng: np.random.Generator, class_index: int, *, unseen: bool) -> int:
        """Choose a sprite of a class, `unseen` one of the held-out styles."""
        choices = self.unseen_sprites if unseen else self.sprites
        return int(rng.choice(choices[class_index]))

    def scene(self, rng: np.random.Generator, *, count: int | None = None, close: bool = False) -> Scene:
        """Draw a scene of one to four objects; at least one in ten of two or more holds two of one class.

        `close` draws few and large ones, as for small pictures.
        """
        count = count or int(rng.choice([1, 2, 3, 4], p=[0.5, 0.4, 0.1, 0] if close else self.counts))
        name = str(rng.choice(self.scene_names, p=[0.14] * 6 + [0.16]))
        background = int(rng.integers(self.backgrounds.shape[1]))
        if count >= 2 and not close and rng.random() < self.related:
            return self._scene_with_relation(rng, name, background, count)
        classes = rng.choice(len(CLASSES), count, replace=False)
        if count >= 2 and rng.random() < 0.2:
            classes[1] = classes[0]
        boxes = place(rng, count, close=close)
        objects = [self.placed(rng, self.instance(rng, int(c)), *box) for c, box in zip(classes, boxes, strict=True)]
        return Scene(name, background, tuple(objects))

    def placed(self, rng: np.random.Generator, instance: Instance, x: float, y: float, size: float) -> Placed:
        """Place an instance with a little turn and light; mirrored ones would be as many shapes again to learn."""
        turn, light = float(rng.normal(0, 0.06)), float(rng.uniform(0.92, 1.06))
        return Placed(instance, float(x), float(y), float(size), turn, light=light)

    def _scene_with_relation(self, rng: np.random.Generator, name: str, background: int, count: int) -> Scene:
        (x, y, size), *others = place(rng, count - 1)
        kind = str(rng.choice(["wearing", "on", "behind", "next to"], p=self.relations))
        if kind == "wearing":
            size = max(size, 0.36)
            y = float(np.clip(y, size / 2 + 0.18, 0.99 - size / 2))
            first = self.placed(rng, self.instance(rng, int(rng.choice(ANIMALS))), x, y, size)
            worn = self.instance(rng, int(rng.choice(WORN)))
            on_eyes = CLASSES[worn.class_index].worn == "eyes"
            second = replace(
                self.placed(rng, worn, x, y - size * (0.1 if on_eyes else 0.53), size * (0.8 if on_eyes else 0.62)),
                turn=first.turn,
            )
        else:
            a, b = (int(c) for c in rng.choice(FREE, 2, replace=False))
            size = min(size, 0.45)
            dx, dy = {"on": (0, -0.86), "behind": (0.5, -0.22), "next to": (1.0, 0)}[kind]
            if rng.random() < 0.5:
                dx = -dx
            half = size / 2
            x = float(np.clip(x, half - min(dx, 0) * size, 1 - half - max(dx, 0) * size))
            y = float(np.clip(y, half - min(dy, 0) * size, 1 - half))
            first = self.placed(rng, self.instance(rng, b), x, y, size)
            second = self.placed(rng, self.instance(rng, a), x + dx * size, y + dy * size, size)
        taken = {first.instance.class_index, second.instance.class_index}
        free = [c for c in range(len(CLASSES)) if c not in taken]
        pair = [(first, 0), (second, 1)] if kind != "behind" else [(second, 1), (first, 0)]
        objects = [
            self.placed(rng, self.instance(rng, int(rng.choice(free))), *box)
            for box in others
            if _clear(box, (first, second))
        ]
        start = len(objects)
        index = {role: start + order for order, (_, role) in enumerate(pair)}
        objects += [item for item, _ in pair]
        relation = (kind, index[0], index[1]) if kind == "wearing" else (kind, index[1], index[0])
        return Scene(name, background, tuple(objects), relation)

    # Rendering

    def render(self, scenes: list[Scene], size: int) -> Rendered:
        """Draw scenes: objects in order, alpha over, with the visible alpha of each."""
        return self.compose(Composition.of(scenes, self.scene_names), size)

    @torch.no_grad()
    def compose(self, composition: Composition, size: int) -> Rendered:
        """The same of scenes told in numbers."""
        composition = composition.to(self.device)
        canvas = self.backgrounds[composition.names, composition.backgrounds].float() / 255
        if canvas.shape[-1] != size:
            canvas = interpolate(canvas, (size, size), mode="bilinear", antialias=True)
        masks = torch.zeros(len(canvas), MAX_OBJECTS, size, size, device=self.device)
        for slot, (rows, strokes) in enumerate(composition.slots):
            colour, alpha = self.paint(strokes, size)
            canvas[rows] = canvas[rows] * (1 - alpha) + colour
            masks[rows] = masks[rows] * (1 - alpha)
            masks[rows, slot] = alpha[:, 0]
        return Rendered(canvas.clamp(0, 1), masks)

    def thumbnails(self, instances: list[Instance]) -> Tensor:
        """Draw each individual by itself, tiny and upright: `[batch, 4, 24, 24]`, colour over grey and alpha."""
        return self.thumbnails_of(portraits(instances))

    @torch.no_grad()
    def thumbnails_of(self, strokes: Strokes) -> Tensor:
        """The same of individuals told in numbers."""
        colour, alpha = self.paint(strokes.to(self.device), THUMBNAIL * 2)
        picture = torch.cat([colour + 0.5 * (1 - alpha), alpha], dim=1)
        return interpolate(picture, (THUMBNAIL, THUMBNAIL), mode="area")

    @torch.no_grad()
    def paint(self, strokes: Strokes, size: int) -> tuple[Tensor, Tensor]:
        """Premultiplied colour `[batch, 3, size, size]` and alpha `[batch, 1, size, size]` of one object a picture."""
        x, y, side, turn, light, aspect, keystone, bulge = strokes.numbers.unbind(1)
        width, height = side * torch.exp(aspect.clamp(max=0)), side * torch.exp(-aspect.clamp(min=0))
        cos, sin = torch.cos(turn), torch.sin(turn)
        cx, cy = 2 * x - 1, 2 * y - 1
        theta = torch.stack(
            [
                torch.stack([cos / width, sin / width, -(cos * cx + sin * cy) / width], 1),
                torch.stack([-sin / height, cos / height, (sin * cx - cos * cy) / height], 1),
            ],
            1,
        )
        grid = affine_grid(theta, [len(x), 1, size, size], align_corners=False)
        u, v = grid.unbind(-1)
        u = u * (1 + keystone[:, None, None] * v) * (1 + bulge[:, None, None] * (v * v - 0.5))
        blurred = (side * size <= 0.4 * self.planes.shape[-1]).long()
        planes = self.planes[strokes.sprite, blurred]
        planes = grid_sample(
            planes, torch.stack([u, v], -1), mode="bilinear", padding_mode="zeros", align_corners=False
        )
        masks, shading = planes[:, :PARTS], planes[:, PARTS:]
        colour = torch.einsum("bkhw,bkc->bchw", masks, strokes.palette) + shading
        ink = _ink(strokes.pattern, u, v) * masks[:, 0]
        colour = colour + ink[:, None] * (strokes.pattern_colour - strokes.palette[:, 0])[:, :, None, None]
        alpha = masks.sum(1, keepdim=True).clamp(0, 1)
        return (colour * light[:, None, None, None]).clamp(min=0).minimum(alpha), alpha


def portraits(instances: Sequence[Instance]) -> Strokes:
    """Each individual by itself, upright in the middle."""
    return Strokes.of([Placed(instance, 0.5, 0.5, 0.95) for instance in instances])


def _ink(patterns: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """How much of the pattern's colour lies on each pixel: stripes, spots or one patch, in sprite coordinates.

    Of each kind there is one, as broad as a cell of the latents: finer ones, at any angle, were never learned.
    """
    kinds = patterns[:, None, None]
    stripes = torch.sigmoid(8 * (torch.sin(2 * np.pi * v) - 0.1))
    spots = torch.sigmoid(16 * (torch.sin(2 * np.pi * u) * torch.sin(2 * np.pi * v) - 0.35))
    patch = torch.sigmoid(14 * (0.55 - ((u - 0.4) ** 2 + (v + 0.3) ** 2).sqrt()))
    return (kinds == 1) * stripes + (kinds == 2) * spots + (kinds == 3) * patch


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """A named colour with jitter (three in four) or any vivid colour."""
    if rng.random() < 0.75:
        base = np.array(list(COLOURS.values())[rng.integers(len(COLOURS))])
        return np.clip(base + rng.normal(0, 0.04, 3), 0, 1)
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.3, 0.95), rng.uniform(0.35, 0.95)))


def contrasting_colour(rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """A colour that stands out from `other`."""
    candidates = [random_colour(rng) for _ in range(3)]
    return max(candidates, key=lambda colour: float(np.square(colour - other).sum()))


def place(rng: np.random.Generator, count: int, *, close: bool = False) -> list[tuple[float, float, float]]:
    """Centres and sizes of `count` objects that overlap little; sizes shrink as the picture fills."""
    near = {1: (0.5, 0.95), 2: (0.42, 0.6), 3: (0.38, 0.48)}
    low, high = near[count] if close else SIDES[count]
    for attempt in range(60):
        shrink = 1 - 0.3 * attempt / 60
        sizes = rng.uniform(low, high, count) * shrink
        centres = rng.uniform(sizes[:, None] / 2, 1 - sizes[:, None] / 2, (count, 2))
        gaps = np.abs(centres[:, None] - centres[None]).max(-1) - 0.44 * (sizes[:, None] + sizes[None])
        if (gaps[np.triu_indices(count, 1)] > 0).all():
            break
    return [(float(x), float(y), float(size)) for (x, y), size in zip(centres, sizes, strict=True)]


def _clear(box: tuple[float, float, float], pair: tuple[Placed, Placed]) -> bool:
    x, y, size = box
    return all(max(abs(x - o.x), abs(y - o.y)) > 0.45 * (size + o.size) for o in pair)
