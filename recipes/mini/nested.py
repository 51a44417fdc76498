"""An animal and what it wears, in nested boxes: are both there, and is the animal itself?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cones2.judge import Corners
from cones2.layout import Box, Layout, Region
from cones2.subjects import Subject
from drawing import TAUGHT_SETTINGS
from drawing_bench import DrawingBench, Seen, failed
from evaluation_cases import NAMES, SEED, Case, class_shapes, mention, without_residuals
from examples import example_subjects, example_world
from lookalikes import CHANCE
from metrics import Rate, Wanted, all_present, rate
from taught import Taught, flat, taught_subjects
from vocabulary import CLASSES, SCENES
from world import ANIMALS, WORN, Placed, Scene

ANIMAL_SIDES = (0.45, 0.6)


@dataclass(frozen=True)
class WornCase:
    """A taught animal that wears an untaught thing.

    Attributes:
        case: with a layout whose boxes share what they overlap in.
        animal: its number among the taught.
        places: x, y and size of the animal and of what it wears, as the world puts them.
    """

    case: Case
    animal: int
    places: tuple[tuple[float, float, float], tuple[float, float, float]]


def evaluate_nested(bench: DrawingBench) -> dict[str, Rate]:
    """Taught animals; without residuals; with what they wear in front, not sharing their place; and rendered."""
    taught = taught_subjects(bench, example_subjects(example_world()))
    worn = worn_cases(bench, taught)
    cases = [each.case for each in worn]
    sources = {
        "learned": list(bench.draw(cases, TAUGHT_SETTINGS)),
        "without residual": list(bench.draw([without_residuals(case) for case in cases], TAUGHT_SETTINGS)),
        "learned, worn in front (z = 1)": list(bench.draw([in_front(case) for case in cases], TAUGHT_SETTINGS)),
        "renders of the same scenes": rendered(bench, taught, worn),
    }
    who = [[each.animal] for each in worn for _ in each.case.seeds]
    rates: dict[str, Rate] = {}
    for label, seen in sources.items():
        found = [all_present(one.sightings, one.case.wanted) for one in seen]
        known = flat(taught.identify([_animal_alone(one) for one in seen], who, taught.line_ups, bench.judge.embed))
        both = [here and itself for here, itself in zip(found, known, strict=True)]
        rates[f"{label}: both found, the animal known"] = rate(both)
        rates[f"{label}: both found"] = rate(found)
        rates[f"{label}: the animal known"] = rate(known, CHANCE)
        if label == "learned":
            bench.save_failures("nested", failed(seen, both, most=16))
    return rates


def worn_cases(bench: DrawingBench, taught: Taught) -> list[WornCase]:
    """For each pair of seeds one of the taught animals, with sunglasses or a hat where the world puts them."""
    rng, shapes = np.random.default_rng([SEED, 5]), class_shapes(bench.atlas)
    animals = [number for number, known in enumerate(taught.known) if known.wanted.class_index in ANIMALS]
    found = []
    for seeds in bench.seeds():
        animal, kind, scene = int(rng.choice(animals)), int(rng.choice(WORN)), str(rng.choice([*SCENES, ""]))
        on_eyes, size = CLASSES[kind].worn == "eyes", float(rng.uniform(*ANIMAL_SIDES))
        x = float(rng.uniform(size / 2 + 0.02, 0.98 - size / 2))
        y = float(rng.uniform(size / 2 + 0.18, 0.99 - size / 2))
        places = ((x, y, size), (x, y - size * (0.1 if on_eyes else 0.53), size * (0.8 if on_eyes else 0.62)))
        known = taught.known[animal]
        boxes = [_box(place, shape) for place, shape in zip(places, (known.shape, shapes[kind]), strict=True)]
        mentions = (mention(known.wanted.class_index, NAMES[0]), mention(kind, NAMES[1]))
        prompt = f"{' wearing '.join(mentions)} {SCENES.get(scene, '')}".strip()
        wanted = (replace(known.wanted, box=boxes[0]), Wanted(kind, boxes[1]))
        subjects = {NAMES[0]: known.subject, NAMES[1]: Subject(CLASSES[kind].word)}
        layout = Layout.of(dict(zip(NAMES, boxes, strict=False)))
        found.append(WornCase(Case(prompt, subjects, wanted, seeds, layout, scene), animal, places))
    return found


def in_front(case: Case) -> Case:
    """The same case with what is worn in front of the animal, as docs/layouts.md does it."""
    first, second = (wanted.box for wanted in case.wanted)
    if first is None or second is None:
        raise ValueError("a worn case has two boxes.")
    layout = Layout({NAMES[0]: Region((Box(*first),)), NAMES[1]: Region((Box(*second),), z=1)})
    return replace(case, layout=layout)


def rendered(bench: DrawingBench, taught: Taught, worn: Sequence[WornCase]) -> list[Seen]:
    """The same scenes as the world draws them, one for each seed: what no drawing of them can surpass."""
    rng, seen = np.random.default_rng([SEED, 6]), []
    for each in worn:
        for _ in each.case.seeds:
            animal = taught.examples[each.animal].instance
            thing = bench.world.instance(rng, each.case.wanted[1].class_index)
            objects = tuple(Placed(one, *place) for one, place in zip((animal, thing), each.places, strict=True))
            background = int(rng.integers(bench.world.backgrounds.shape[1]))
            images = bench.world.render([Scene(each.case.scene, background, objects)], 128).images
            seen.append(Seen(each.case, images[0], bench.judge.look(images)[0]))
    return seen


def _box(place: tuple[float, float, float], shape: tuple[float, float]) -> Corners:
    x, y, size = place
    across, down = size * shape[0] / 2, size * shape[1] / 2
    left, top, right, bottom = np.clip([x - across, y - down, x + across, y + down], 0, 1).round(3).tolist()
    return left, top, right, bottom


def _animal_alone(one: Seen) -> Seen:
    return replace(one, case=replace(one.case, wanted=one.case.wanted[:1]))
