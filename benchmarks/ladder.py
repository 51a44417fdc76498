"""What each way of learning faster gains, on top of the ones before it: `python benchmarks/ladder.py`.

Each rung is timed in turns with the rung below it, eight photos at a time; the UNet is float32 up to the rung that says
otherwise. Two rungs change the residual: a larger batch in half the steps, and no text encoder tuned. How well a
subject is then met is measured on `mini` by its judge (`python recipes/mini/evaluate.py ways`). The other rungs give
the same residual but for rounding.
"""

import argparse
import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from cones2.learning.learner import learn_steps
from cones2.learning.recipe import RECIPES, Recipe
from cones2.photos import Photo, load_photos
from pairs import Pair, Timing, measure
from random_models import MODELS, open_model

PHOTOS = Path(__file__).parents[1] / "src/cones2/examples/rex/photos"
CLASS_WORD = "dog"
HEAD = "| rung | times faster than the one below | interval | seconds for {} photos |\n| --- | --- | --- | --- |"


@dataclasses.dataclass(frozen=True)
class Rung:
    """A way to take a step, with all that the rungs below it gained."""

    name: str
    pipeline: Any
    recipe: Recipe
    steps: int = 1

    def learner(self, photos: Sequence[Photo]) -> Callable[[], None]:
        """Return a call that learns from as many photos as there are in the largest batch."""
        steps = learn_steps(self.pipeline, photos, CLASS_WORD, dataclasses.replace(self.recipe, steps=10**6))

        def learn() -> None:
            for _ in range(self.steps):
                next(steps)

        return learn


def rungs(pipeline: Any, recipe: Recipe) -> Iterator[Rung]:
    """Yield the ways from the plainest upwards: two steps of half the recipe's batch, then one of the whole."""
    half = dataclasses.replace(recipe, batch_size=recipe.batch_size // 2)
    yield Rung("a batch of half the size in twice the steps", pipeline, half, steps=2)
    yield Rung(f"a batch of {recipe.batch_size} in half the steps", pipeline, recipe)
    pipeline = _with_unet(pipeline, copy.deepcopy(pipeline.unet).to(memory_format=torch.channels_last))
    yield Rung("UNet in channels_last", pipeline, recipe)
    # diffusers' own `to` would warn, of nothing
    pipeline = _with_unet(pipeline, torch.nn.Module.to(copy.deepcopy(pipeline.unet), torch.bfloat16))
    yield Rung("UNet in bfloat16", pipeline, recipe)
    yield Rung("no text encoder tuned", pipeline, dataclasses.replace(recipe, tune="residual"))


def _with_unet(pipeline: Any, unet: Any) -> Any:
    changed = copy.copy(pipeline)
    vars(changed)["unet"] = unet
    return changed


def climb(steps: Sequence[tuple[Rung, Rung]], photos: Sequence[Photo], count: int) -> Iterator[Timing]:
    """Time each rung in turns with the one below."""
    for below, above in steps:
        learners = above.learner(photos), below.learner(photos)
        yield measure(Pair(above.name, below.name, *learners, aim=None, speed=True), count)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mini", help=MODELS)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--photos", type=int, default=8, help="in the largest batch; an even number")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rungs of this name")
    parser.add_argument("--device")
    arguments = parser.parse_args()
    pipe = open_model(arguments.model, device=arguments.device, dtype="float32")
    recipe = dataclasses.replace(RECIPES["mini"], batch_size=arguments.photos)
    steps = list(itertools.pairwise(rungs(pipe.pipeline, recipe)))
    steps = [(below, above) for below, above in steps if arguments.only in above.name]
    if not steps:
        parser.error(f"no rung has {arguments.only!r} in its name")
    print(HEAD.format(arguments.photos), flush=True)
    for timing in climb(steps, load_photos(PHOTOS), arguments.pairs):
        ratio, seconds = timing.ratio, sorted(timing.ours)[len(timing.ours) // 2]
        cells = (timing.pair.what, f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}", f"{seconds:.3f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
