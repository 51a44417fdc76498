"""Measure what each rival keeps on mini: `python tools/rivals.py` prints the bytes of one subject, and of two.

One step of learning is enough for that: no file grows with the steps, but for Cones', which can have fewer indices.
"""

import dataclasses
from pathlib import Path
from typing import Any

import cones2
from cones2.baselines.base import Learned, Lesson, Rival
from cones2.baselines.cones import Cones
from cones2.baselines.cones_v2 import ConesV2
from cones2.baselines.custom_diffusion import CustomDiffusion, CustomDiffusionMerge
from cones2.baselines.dreambooth import DreamBooth
from cones2.baselines.encoder import Encoder
from cones2.baselines.latexblend import LaTexBlend
from cones2.baselines.lora import LoRA
from cones2.baselines.ours import Ours
from cones2.baselines.textual_inversion import TextualInversion
from cones2.baselines.token_embedding import TokenEmbedding
from cones2.learning.recipe import RECIPES

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "src/cones2/examples"
HEADS = ROOT / "recipes/mini/training_heads.safetensors"
SUBJECTS = {"rex": "dog", "mimi": "cat"}
RIVALS: tuple[Rival, ...] = (
    DreamBooth(),
    CustomDiffusion(),
    CustomDiffusionMerge(),
    Cones(),
    Cones(mode="union"),
    Cones(mode="tuned"),
    TextualInversion(),
    TokenEmbedding(),
    TokenEmbedding(added=True),
    LoRA(),
    LoRA(joint=True),
    LaTexBlend(),
    ConesV2(),
    Encoder(weights=HEADS),
    Ours(recipe=dataclasses.replace(RECIPES["direct"], steps=1)),
)


def shortened(rival: Any) -> Rival:
    """Return a rival that takes one step for each subject."""
    training = getattr(rival, "training", None)
    if training is None:
        return rival  # type: ignore[no-any-return]
    short: Rival = dataclasses.replace(rival, training=dataclasses.replace(training, steps=1, prior_weight=0.0))
    return short


def learned(pipe: Any, rival: Rival, names: tuple[str, ...]) -> list[Learned]:
    """Learn subjects together or apart, as the rival does."""
    lessons = {name: Lesson(EXAMPLES / name / "photos", SUBJECTS[name]) for name in names}
    sets = [lessons] if rival.scope == "set" else [{name: lesson} for name, lesson in lessons.items()]
    return [list(rival.learn(pipe, one))[-1].learned for one in sets]


def main() -> None:
    """Print a table."""
    pipe = cones2.Cones2Pipeline.from_pretrained("mini", device="cpu", dtype="float32")
    print("| rival | learned per | bytes of one | bytes of two |\n| --- | --- | ---: | ---: |")
    for rival in map(shortened, RIVALS):
        one, two = (
            sum(len(each.to_bytes()) for each in learned(pipe, rival, names)) for names in (("rex",), ("rex", "mimi"))
        )
        print(f"| {rival.name} | {rival.scope} | {one:,} | {two:,} |", flush=True)


if __name__ == "__main__":
    main()
