"""The judge as a measure of identity while learning.

`python recipes/mini/identity.py PHOTOS --class dog --out rex.safetensors` prints its curve. Learning stops where it
rises no more, and the residual of the best look is written.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from cones2.backbones import open_backbone
from cones2.composing.settings import ComposeSettings
from cones2.learning.loop import learn
from cones2.learning.recipe import find_recipe
from cones2.photos import Photo, crop_square, load_photos
from cones2.watching.watch import Identity, Watch, watch
from judge import PICTURE, Judge


def judge_identity(judge: Judge, photos: Sequence[Photo]) -> Identity:
    """Give a measure of pictures: how like the photos' subject what the judge sees in them is; 0 where it sees nothing.

    Individuals are compared by the dot product of their embeddings, each picture's best against the photos' mean.
    """
    seen = [sightings[0].embedding for sightings in judge.look(_stack([photo.image for photo in photos])) if sightings]
    wanted = torch.nn.functional.normalize(torch.stack(seen).mean(dim=0), dim=0)

    def measure(pictures: Sequence[Image]) -> float:
        likes = [
            max((float(sighting.embedding @ wanted) for sighting in sightings), default=0.0)
            for sightings in judge.look(_stack(pictures))
        ]
        return sum(likes) / len(likes)

    return measure


def _stack(pictures: Sequence[Image]) -> torch.Tensor:
    pixels = np.stack([np.asarray(crop_square(picture, PICTURE), dtype=np.float32) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


def main() -> None:
    """Learn a subject from its photos, watched by the judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, metavar="PHOTOS")
    parser.add_argument("--class", dest="class_word", required=True)
    parser.add_argument("--recipe", help="a recipe's name or a TOML file; default: the model's own")
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--patience", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=4, help="of each look")
    parser.add_argument("--steps", type=int, default=20, help="of drawing them")
    parser.add_argument("--out", type=Path, default=Path("watched.safetensors"))
    arguments = parser.parse_args()
    photos, backbone = load_photos(arguments.photos), open_backbone("mini", device="cpu")
    plan = Watch(
        every=arguments.every,
        settings=ComposeSettings(seeds=tuple(range(arguments.pictures)), steps=arguments.steps, scheduler="dpm++"),
        identity=judge_identity(Judge.load(), photos),
        patience=arguments.patience,
    )
    recipe = find_recipe(arguments.recipe or backbone.learn_preset)
    for step in watch(learn(backbone, photos, arguments.class_word, recipe=recipe), backbone, plan=plan):
        if step.identity is not None:
            print(f"step {step.step}: loss {step.learned.loss:.3f}, identity {step.identity:.3f}", flush=True)
    step.residual.save(arguments.out)


if __name__ == "__main__":
    main()
