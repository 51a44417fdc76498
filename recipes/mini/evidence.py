"""What the protocols in `evidence/` need of the world: `python recipes/mini/evidence.py`.

For each example subject, fifteen others that look like it, one picture of each, as the evaluation of mini draws them
(`lookalikes.py`). And the likeness below which a subject has collapsed: 5 % of true pairs stay below it, of the judge's
identity in new renders that mini's autoencoder coded and decoded, with that in the photos. For tuning, photos of
other individuals than the examples.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from cones2.evaluation.measures import collapse_threshold
from cones2.judge import Judge
from cones2.models import open_pipeline
from cones2.photos import crop_square, load_photos, stack_pixels
from examples import SEED, WORK, ExampleSubject, example_subjects, example_world, is_distinct, photo_scenes, pose
from judge import load_judge
from lookalikes import draw_lookalikes, draw_pool
from vocabulary import CLASSES
from world import Instance, Scene, World

FOLDER = Path(__file__).parents[2] / "evidence"
PHOTOS = Path(__file__).parents[2] / "src/cones2/examples"
VIEWS = 60
TUNED_ON = {"otis": "dog", "nelly": "cat", "milo": "mug", "tessa": "backpack"}
"""The subjects that methods are tuned on: name and class word. No picture of them counts in a comparison."""


def drawn(world: World, instances: list[Instance], rng: np.random.Generator) -> Tensor:
    """Draw each individual by itself, in a scene of its own: `[instances, 3, 128, 128]` in 0..1."""
    count = world.backgrounds.shape[1]
    scenes = [
        Scene(str(rng.choice(world.scene_names)), int(rng.integers(count)), (pose(instance, rng),))
        for instance in instances
    ]
    return world.render(scenes, 128).images


def save_lookalikes(world: World, judge: Judge, subjects: tuple[ExampleSubject, ...], folder: Path) -> None:
    """Write a picture of each look-alike of each subject."""
    for number, subject in enumerate(subjects):
        rng = np.random.default_rng([SEED, 3, number])
        others = draw_lookalikes(world, judge, subject.instance, rng, draw_pool(world, rng, subject.class_index))
        save_pictures(drawn(world, others, rng), folder / subject.name)


def save_photos(world: World, examples: tuple[ExampleSubject, ...], folder: Path) -> None:
    """Write photos of subjects to tune on, which look like no example."""
    words = [word.word for word in CLASSES]
    for number, (name, class_word) in enumerate(TUNED_ON.items()):
        rng = np.random.default_rng([SEED, 5, number])
        kin = [example.instance for example in examples if example.class_word == class_word]
        individuals = (world.instance(rng, words.index(class_word), unseen=False) for _ in range(10_000))
        instance = next(each for each in individuals if is_distinct(each, kin))
        scenes = photo_scenes(world, ExampleSubject(name, class_word, False, instance), rng)
        save_pictures(world.render(scenes, 128).images, folder / name)


def save_pictures(images: Tensor, folder: Path) -> None:
    """Write pictures, `[count, 3, height, width]` in 0..1, numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    for position, picture in enumerate(images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()):
        Image.fromarray(picture).save(folder / f"{position:02d}.webp", quality=92, method=6)


@torch.no_grad()
def true_likenesses(world: World, judge: Judge, subjects: tuple[ExampleSubject, ...]) -> np.ndarray:
    """Compare each subject in autoencoded renders with its photos, by the judge's identity."""
    vae = open_pipeline("mini").vae
    found: list[float] = []
    for number, subject in enumerate(subjects):
        photos = [crop_square(photo.image, 128) for photo in load_photos(PHOTOS / subject.name / "photos")]
        reference = normalize(torch.stack(_identities(judge, stack_pixels(photos) / 255, subject)).mean(0), dim=0)
        rendered = drawn(world, [subject.instance] * VIEWS, np.random.default_rng([SEED, 4, number]))
        latents = vae.encode(rendered * 2 - 1).latent_dist.mean
        again = vae.decode(latents, return_dict=False)[0].add(1).div(2).clamp(0, 1)
        found += [float(each @ reference) for each in _identities(judge, again, subject)]
    return np.array(found)


def _identities(judge: Judge, images: Tensor, subject: ExampleSubject) -> list[Tensor]:
    kind = judge.world.classes.index(subject.class_word)
    sightings = [[each for each in seen if each.class_index == kind] for seen in judge.look(images)]
    return [seen[0].embedding for seen in sightings if seen]


def main() -> None:
    """Write the pictures, and print the likeness."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    world, judge = example_world(arguments.work), load_judge()
    subjects = example_subjects(world)
    save_photos(world, subjects, arguments.folder / "tuning")
    save_lookalikes(world, judge, subjects, arguments.folder / "lookalikes")
    print(f"collapse = {collapse_threshold(true_likenesses(world, judge, subjects)):.3f}")


if __name__ == "__main__":
    main()
