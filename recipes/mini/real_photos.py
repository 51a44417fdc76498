"""Does the judge tell photos of real things from drawings that mini could draw? Measured on subjects of both kinds.

`python recipes/mini/real_photos.py FOLDER`, where FOLDER holds a folder of photos for each real subject, such as those
of https://github.com/google/dreambooth. The threshold is chosen on every other subject, and tried on the rest.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cones2.judge import LEAST_SURE, open_judge, sureness
from cones2.photos import load_photos
from examples import WORK, pose
from scenes import draw_pool
from sprites import SpriteAtlas
from vocabulary import CLASSES
from world import Scene, World

SEED = 9100


def drawn_subject(world: World, number: int) -> list[Image.Image]:
    """Draw 3 to 6 photos of an individual; half of them are of a style that mini never saw, where there is one."""
    rng = np.random.default_rng([SEED, number])
    kind = number % len(CLASSES)
    unseen = len(world.unseen_sprites[kind]) > 0 and number // len(CLASSES) % 2 == 0
    subject, count = world.instance(rng, kind, unseen=unseen), int(rng.integers(3, 7))
    backgrounds = world.backgrounds.shape[1]
    names = [str(rng.choice(world.scene_names)) for _ in range(count)]
    scenes = [Scene(name, int(rng.integers(backgrounds)), (pose(subject, rng),)) for name in names]
    pixels = world.render(scenes, 128).images.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in pixels]


def best_threshold(real: Sequence[float], drawn: Sequence[float]) -> float:
    """Return where fewest subjects of both kinds are on the wrong side: the middle of the widest such gap."""
    values = sorted([*real, *drawn])
    gaps = [((low + high) / 2, high - low) for low, high in itertools.pairwise(values)]
    return min(gaps, key=lambda gap: (wrong(real, drawn, gap[0]), -gap[1]))[0]


def wrong(real: Sequence[float], drawn: Sequence[float], threshold: float) -> int:
    """Count real subjects that aren't warned of, and drawn ones that are."""
    return sum(value >= threshold for value in real) + sum(value < threshold for value in drawn)


def main() -> None:
    """Print how many subjects are warned of, of both kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of photos for each real subject")
    parser.add_argument("--work", type=Path, default=WORK, help="where sprites.safetensors lies")
    parser.add_argument("--drawn", type=int, default=80, help="how many subjects are drawn")
    arguments = parser.parse_args()
    judge = open_judge()
    world = World(
        SpriteAtlas.load(arguments.work / "sprites.safetensors"), draw_pool(np.random.default_rng(SEED), 128, 12)
    )
    folders = sorted(path for path in arguments.folder.iterdir() if path.is_dir())
    real = [sureness(judge, [photo.image for photo in load_photos(folder)]) for folder in folders]
    drawn = [sureness(judge, drawn_subject(world, number)) for number in range(arguments.drawn)]
    chosen = best_threshold(real[::2], drawn[::2])
    print(f"chosen on half of the subjects: {chosen:.2f}; in use: {LEAST_SURE}")
    for what, some in {"other half": slice(1, None, 2), "all": slice(None)}.items():
        for threshold in (chosen, LEAST_SURE):
            told = [f"{sum(v < threshold for v in group[some])} of {len(group[some])}" for group in (real, drawn)]
            print(f"{what}, below {threshold:.2f}: {told[0]} real subjects, {told[1]} drawn ones")


if __name__ == "__main__":
    main()
