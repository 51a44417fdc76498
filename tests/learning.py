"""What the tests of learning share: a quick recipe, two photos, and ways to run it."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from cones2.learning.learner import LearnStep, learn_steps
from cones2.learning.recipe import Recipe
from cones2.photos import Photo
from cones2.residual import Residual

RECIPE = Recipe(steps=4, batch_size=2, learning_rate=1e-3, captions_per_step=3, caption_count=12, views_per_photo=2)
PHOTOS = tuple(
    Photo(Path(f"{name}.png"), name * 64, gradient.convert("RGB"))
    for name, gradient in (("a", Image.radial_gradient("L")), ("b", Image.linear_gradient("L")))
)


def learn(pipeline: Any, recipe: Recipe = RECIPE, **options: Any) -> Generator[LearnStep, None, None]:
    """Learn a dog from the two photos."""
    return learn_steps(pipeline, PHOTOS, "dog", recipe, **options)


def finish(steps: Iterator[LearnStep]) -> LearnStep:
    *_, last = steps
    return last


def residual_of(steps: Iterator[LearnStep]) -> Residual:
    return finish(steps).residual


def stop_after(steps: Iterator[LearnStep], number: int = 1) -> LearnStep:
    """Take steps up to this number, write a checkpoint there, and end."""
    for step in steps:
        if step.step == number:
            step.save_checkpoint()
            return step
    raise AssertionError(f"there is no step {number}")


def with_parts(pipeline: Any, **parts: Any) -> Any:
    """A pipeline with other parts in place of some of another one's."""
    changed = type(pipeline)(**{**pipeline.components, **parts}, **_OPTIONS.get(type(pipeline).__name__, {}))
    changed.register_to_config(_name_or_path=pipeline.name_or_path)
    return changed


_OPTIONS = {
    "StableDiffusionPipeline": {"requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
