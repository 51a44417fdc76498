"""The example subjects: individuals that mini never saw, their photos, and their residuals.

`python recipes/mini/examples.py render` draws the photos, `python recipes/mini/examples.py learn` learns the residuals
from them. Each subject is the first individual that a fixed seed draws and that `is_distinct`; none is picked by hand.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cones2.fingerprint import fingerprint
from cones2.learning.learner import LearnStep
from cones2.learning.recipe import RECIPES, Recipe
from cones2.pipeline import Cones2Pipeline
from cones2.residual import Residual
from scenes import draw_pool
from sprites import SpriteAtlas
from vocabulary import CLASSES
from world import Instance, Placed, Scene, World

SEED = 5000
PHOTOS = 5
FOLDER = Path(__file__).parents[2] / "src/cones2/examples"
WORK = Path(__file__).parent / "work"
PLAN = (  # name, class word, whether its drawing is of a style that mini never saw
    ("rex", "dog", False),
    ("fido", "dog", False),
    ("mimi", "cat", False),
    ("luna", "cat", True),
    ("hugo", "owl", False),
    ("bobo", "teddy bear", False),
    ("coco", "teddy bear", False),
    ("kiki", "sunglasses", False),
    ("zaza", "sunglasses", False),
    ("toto", "hat", False),
    ("momo", "mug", False),
    ("nana", "mug", True),
    ("pako", "backpack", False),
    ("dodo", "backpack", True),
    ("lulu", "ball", False),
    ("turbo", "car", False),
)
LICENCES = {
    "noto": "Noto Emoji, Google, Apache-2.0",
    "noto-v1": "Noto Emoji, Google, Apache-2.0",
    "fluent-emoji-flat": "Fluent Emoji, Microsoft, MIT",
    "fxemoji": "FxEmojis, Mozilla, Apache-2.0",
    "twemoji": "Twemoji, Twitter, CC-BY-4.0",
    "emojione": "EmojiOne 2, Ranks.com, CC-BY-4.0",
}
OWN_DRAWING = "drawn for cones2, Apache-2.0"


@dataclass(frozen=True)
class ExampleSubject:
    """One example: its name, its class, whether its style is unseen (tier T2), and the individual itself."""

    name: str
    class_word: str
    unseen: bool
    instance: Instance

    @property
    def class_index(self) -> int:
        """Index into `CLASSES`."""
        return self.instance.class_index


def example_world(work: Path = WORK) -> World:
    """The world with backgrounds of the photos' own."""
    backgrounds = draw_pool(np.random.default_rng(SEED), 128, 12)
    return World(SpriteAtlas.load(work / "sprites.safetensors"), backgrounds)


def example_subjects(world: World) -> tuple[ExampleSubject, ...]:
    """Draw the individuals of `PLAN`, the same ones each time."""
    words = [word.word for word in CLASSES]
    found: list[ExampleSubject] = []
    for number, (name, class_word, unseen) in enumerate(PLAN):
        rng = np.random.default_rng([SEED, number])
        kin = [subject.instance for subject in found if subject.class_word == class_word]
        while True:
            instance = world.instance(rng, words.index(class_word), unseen=unseen)
            if is_distinct(instance, kin):
                break
        found.append(ExampleSubject(name, class_word, unseen, instance))
    return tuple(found)


def is_distinct(instance: Instance, kin: list[Instance]) -> bool:
    """Two clearly different colours, vivid enough to see, and another main colour than its kin of the same class."""
    contrast = np.square(instance.palette[0] - instance.palette[1]).sum() > 0.1
    spread = float(np.ptp(instance.palette[0]))
    apart = all(np.square(instance.palette[0] - other.palette[0]).sum() > 0.2 for other in kin)
    return bool(contrast and spread > 0.3 and apart)


def photo_scenes(world: World, subject: ExampleSubject, rng: np.random.Generator) -> list[Scene]:
    """The subject alone and large, on plain walls and in scenes, a little turned."""
    names = [*rng.permutation(world.scene_names[:-1])[: PHOTOS - 2], "", ""]
    backgrounds = world.backgrounds.shape[1]
    return [Scene(str(name), int(rng.integers(backgrounds)), (pose(subject.instance, rng),)) for name in names]


def pose(instance: Instance, rng: np.random.Generator) -> Placed:
    """Place an individual by itself: large, a little turned."""
    size = rng.uniform(0.6, 0.8)
    x, y = rng.uniform(size / 2 + 0.02, 0.98 - size / 2, 2)
    return Placed(instance, x, y, size, rng.normal(0, 0.06), rng.uniform(0.92, 1.06))


def draw_photos(world: World, folder: Path) -> None:
    """Write every subject's photos and `subjects.json`."""
    names = SpriteAtlas.load(WORK / "sprites.safetensors").names
    index = {}
    for number, subject in enumerate(example_subjects(world)):
        scenes = photo_scenes(world, subject, np.random.default_rng([SEED, 100 + number]))
        pictures = world.render(scenes, 128).images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        photos = folder / subject.name / "photos"
        photos.mkdir(parents=True, exist_ok=True)
        for position, picture in enumerate(pictures):
            Image.fromarray(picture).save(photos / f"{position}.png", optimize=True)
        source = names[subject.instance.sprite].split("/")[1]
        licence = LICENCES.get(source, OWN_DRAWING)
        tier = "T2" if subject.unseen else "T1"
        index[subject.name] = {"class_word": subject.class_word, "tier": tier, "licence": licence}
    (folder / "subjects.json").write_text(json.dumps(index, indent=2) + "\n")


def learn_residuals(
    pipe: Cones2Pipeline, recipe: Recipe, folder: Path, *, names: Collection[str] = (), again: bool = False
) -> None:
    """Learn subjects (all, or `names`) from their shipped photos into `folder`; skip what was so learned there.

    `again` skips nothing.
    """
    for name, about in json.loads((FOLDER / "subjects.json").read_text()).items():
        path = folder / name / f"{name}.safetensors"
        if (names and name not in names) or (not again and _is_taught(path, pipe, recipe)):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        last = last_step(pipe.learn_steps(FOLDER / name / "photos", about["class_word"], recipe))
        last.residual.save(path)
        seconds, length = time.monotonic() - start, float(last.residual.parts[0].vector.norm())
        print(f"{path}: {seconds:.0f} s, length {length:.1f}, L_sub {last.subject_loss:.3f}", flush=True)


def last_step(steps: Iterable[LearnStep]) -> LearnStep:
    """Take all steps of learning."""
    *_, last = steps
    return last


def _is_taught(path: Path, pipe: Cones2Pipeline, recipe: Recipe) -> bool:
    if not path.exists():
        return False
    residual = Residual.load(path)
    encoder = fingerprint(pipe.text_encoder, "text_encoder", pipe.facts.name)
    same_encoder = residual.parts[0].encoder.weights == encoder.weights
    return same_encoder and residual.recipe.items() >= dataclasses.asdict(recipe).items()


def main() -> None:
    """Draw photos, or learn residuals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["render", "learn"])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--model", default="mini", help="mini, or a diffusers folder")
    parser.add_argument("--again", action="store_true", help="learn also what has a residual of these weights")
    arguments = parser.parse_args()
    if arguments.task == "render":
        draw_photos(example_world(), arguments.folder)
    else:
        pipe = Cones2Pipeline.from_pretrained(arguments.model)
        learn_residuals(pipe, RECIPES[pipe.facts.recipe or "mini"], arguments.folder, again=arguments.again)


if __name__ == "__main__":
    main()
