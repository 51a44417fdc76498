"""What mini is asked to draw when it is evaluated: prompts, layouts and subjects, from fixed seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from cones2.judge import Corners
from cones2.layout import Layout
from cones2.subjects import Subject
from metrics import Wanted
from sprites import SpriteAtlas
from vocabulary import CLASSES, COLOURS, SCENES
from world import ANIMALS, FREE, SIDES, WORN

SEED = 9000  # of every case
NAMES = ("first", "second", "third", "fourth", "fifth")


@dataclass(frozen=True)
class Case:
    """One prompt, the seeds to draw it with, and what should be seen.

    Attributes:
        prompt: with placeholders.
        subjects: by name.
        wanted: what each name should look like, in the order of `subjects`.
        seeds: one picture each.
        layout: where, if that is given.
        scene: the scene asked for, "" for none.
        detail: the colour or the relation asked for, if any.
    """

    prompt: str
    subjects: dict[str, Subject]
    wanted: tuple[Wanted, ...]
    seeds: tuple[int, ...]
    layout: Layout | None = None
    scene: str = ""
    detail: str = field(default="")


@dataclass(frozen=True)
class Known:
    """Somebody that a case can be about: a class, perhaps a residual and a reference of its looks.

    Attributes:
        subject: what is asked for.
        wanted: what should be seen.
        shape: width and height, the longer 1, of the box that someone would draw for it.
    """

    subject: Subject
    wanted: Wanted
    shape: tuple[float, float] = (1.0, 1.0)


def class_shapes(atlas: SpriteAtlas) -> list[tuple[float, float]]:
    """Width and height of each class as drawn, the longer 1 and the shorter at least a half."""
    alpha = atlas.planes[:, 0, :4].sum(1) > 0.4
    width, height = alpha.any(1).float().mean(1), alpha.any(2).float().mean(1)
    shapes = []
    for kind in range(len(CLASSES)):
        own = atlas.class_index == kind
        across, down = float(width[own].mean()), float(height[own].mean())
        shapes.append((max(across / max(across, down), 0.5), max(down / max(across, down), 0.5)))
    return shapes


def draw_boxes(rng: np.random.Generator, shapes: Sequence[tuple[float, float]]) -> list[Corners]:
    """Boxes of these shapes that do not overlap, their longer sides as those of the world's own objects."""
    while True:
        for _ in range(300):
            sides = rng.uniform(*SIDES[len(shapes)], (len(shapes), 1)) * np.array(shapes)
            corners = rng.uniform(0.02, 0.98 - sides)
            boxes = np.concatenate([corners, corners + sides], axis=1).round(3)
            if _apart(boxes):
                return [tuple(box) for box in boxes.tolist()]


def _apart(boxes: np.ndarray) -> bool:
    return not any(
        (np.minimum(one[2:], other[2:]) > np.maximum(one[:2], other[:2])).all()
        for number, one in enumerate(boxes)
        for other in boxes[:number]
    )


def any_known(
    rng: np.random.Generator, count: int, shapes: Sequence[tuple[float, float]] = ((1.0, 1.0),) * len(CLASSES)
) -> list[Known]:
    """Untaught classes, all different, of these shapes by class."""
    kinds = rng.choice(len(CLASSES), count, replace=False).tolist()
    return [Known(Subject(CLASSES[kind].word), Wanted(kind), shapes[kind]) for kind in kinds]


def scene_case(
    rng: np.random.Generator,
    known: Sequence[Known],
    seeds: tuple[int, ...],
    *,
    in_boxes: bool = False,
) -> Case:
    """Everybody in one scene, by words alone or `in_boxes`."""
    scene = str(rng.choice([*SCENES, ""]))
    names = NAMES[: len(known)]
    phrases = [mention(one.wanted.class_index, name) for one, name in zip(known, names, strict=True)]
    prompt = f"{join(phrases)} {SCENES.get(scene, '')}".strip()
    wanted, layout = tuple(one.wanted for one in known), None
    if in_boxes:
        boxes = draw_boxes(rng, [one.shape for one in known])
        layout = Layout.of(dict(zip(names, boxes, strict=True)))
        wanted = tuple(Wanted(one.class_index, box, one.identity) for one, box in zip(wanted, boxes, strict=True))
    subjects = {name: one.subject for name, one in zip(names, known, strict=True)}
    return Case(prompt, subjects, wanted, seeds, layout, scene)


def without_residuals(case: Case) -> Case:
    """The same case with plain words for its subjects."""
    return replace(case, subjects={name: Subject(subject.class_word) for name, subject in case.subjects.items()})


def colour_case(rng: np.random.Generator, known: Known, seeds: tuple[int, ...]) -> Case:
    """One subject in a colour."""
    colour = str(rng.choice(list(COLOURS)))
    prompt = mention(known.wanted.class_index, NAMES[0], colour)
    return Case(prompt, {NAMES[0]: known.subject}, (known.wanted,), seeds, detail=colour)


def relation_case(rng: np.random.Generator, known: Known, seeds: tuple[int, ...]) -> Case:
    """A subject and an untaught word in a relation: half of the animals wear it, the others are on or next to it."""
    kind = known.wanted.class_index
    if kind in ANIMALS and rng.random() < 0.5:
        relation, other = "wearing", int(rng.choice(WORN))
    else:
        relation = str(rng.choice(["on", "next to"]))
        other = int(rng.choice([free for free in FREE if free != kind]))
    prompt = f"{mention(kind, NAMES[0])} {relation} {mention(other, NAMES[1])}"
    subjects = {NAMES[0]: known.subject, NAMES[1]: Subject(CLASSES[other].word)}
    return Case(prompt, subjects, (known.wanted, Wanted(other)), seeds, detail=relation)


def mention(kind: int, name: str, adjective: str = "") -> str:
    """A class with its article, its word replaced by a placeholder: "an {first}"."""
    return CLASSES[kind].phrase(adjective).replace(CLASSES[kind].word, f"{{{name}}}")


def join(phrases: Sequence[str]) -> str:
    """A list as one says it: "a, b and c"."""
    return " and ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)
