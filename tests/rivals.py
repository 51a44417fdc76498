"""What the tests of rivals share: two subjects with two photos each, pictures of their classes, and ways to run one."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from PIL import Image

from cones2.baselines.base import Learned, Lesson, Rival, Step
from cones2.baselines.trainer import Training
from cones2.photos import stack_pixels
from learning import PHOTOS

PRIORS = tuple(Image.new("RGB", (64, 64), colour) for colour in ("gray", "white"))
DOG, MUG = Lesson(PHOTOS, "dog", PRIORS), Lesson(PHOTOS[::-1], "mug", PRIORS)
PAIR = {"rex": DOG, "cup": MUG}
QUICK = Training(steps=2, batch_size=2, learning_rate=1e-3, views_per_photo=2)
LAYOUT = {"rex": (0.0, 0.25, 0.5, 1.0), "cup": (0.5, 0.5, 1.0, 1.0)}
PROMPT = "a {rex} and a {cup} on the beach"


def finished(steps: Iterator[Step]) -> Learned:
    *_, last = steps
    return last.learned


def drawn(draw: Any, prompt: str = PROMPT, layout: Any = None, **options: Any) -> torch.Tensor:
    """Draw two steps' picture as numbers, 0 to 255."""
    output = draw(prompt, layout, seed=3, num_inference_steps=2, **options)
    return stack_pixels(output.images)


def weights_of(pipeline: Any) -> dict[str, torch.Tensor]:
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder, "vae": pipeline.vae}
    return {f"{part}.{k}": v.clone() for part, module in parts.items() for k, v in module.state_dict().items()}


def learn_each(rival: Rival, pipeline: Any, lessons: Mapping[str, Lesson]) -> Learned:
    """Learn subjects by themselves or together, as the rival does, each read back from its bytes."""
    if rival.scope == "set":
        return rival.load(finished(rival.learn(pipeline, lessons)).to_bytes())
    apart = [finished(rival.learn(pipeline, {name: lesson})).to_bytes() for name, lesson in lessons.items()]
    return rival.combine(pipeline, [rival.load(content) for content in apart])
