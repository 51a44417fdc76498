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

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.backbones import Backbone
from cones2.captions.corpus import captions_for
from cones2.learning.data import encode_views
from cones2.learning.lesson import Lesson, denoising_loss, random_numbers
from cones2.learning.objective import preservation_loss
from cones2.learning.recipe import RECIPES, Recipe
from cones2.learning.ways import TunedEncoder, Way, choose_way
from cones2.photos import Photo, load_photos
from pairs import Pair, Timing, measure
from random_models import MODELS, open_model

PHOTOS = Path(__file__).parents[1] / "src/cones2/examples/rex/photos"
CLASS_WORD = "dog"
HEAD = "| rung | times faster than the one below | interval | seconds for {} photos |\n| --- | --- | --- | --- |"


class SeparateTexts(TunedEncoder):
    """A text pass for each photo and for each caption."""

    def losses(self, draw: torch.Generator) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """L_sub and L_reg."""
        captions, recipe = self.lesson.captions, self.lesson.recipe
        rows = torch.randint(len(self.originals), (recipe.captions_per_step,), generator=draw)
        prompts = torch.stack([self.tuned.read(self.lesson.prompt.input_ids) for _ in range(recipe.batch_size)])
        embeddings = torch.cat([self.tuned.read(row[None]) for row in captions.input_ids[rows]])
        preservation = preservation_loss(embeddings, self.originals[rows], captions.own[rows])
        prompt = prompts.mean(dim=0)  # they are the same; their mean sends the gradient back to each
        return denoising_loss(self.lesson, prompt, draw), preservation


class EncodedEachStep(SeparateTexts):
    """The same, and the autoencoder encodes the photos of each step."""

    def losses(self, draw: torch.Generator) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """L_sub and L_reg."""
        photos, size = self.lesson.photos, self.lesson.recipe.batch_size
        chosen = [photos[index] for index in torch.randint(len(photos), (size,), generator=draw)]
        views = encode_views(self.lesson.backbone, chosen, 1, draw)
        self.lesson = dataclasses.replace(self.lesson, views=views)
        return super().losses(draw)


@dataclasses.dataclass(frozen=True)
class Rung:
    """A way to take a step, with all that the rungs below it gained."""

    name: str
    lesson: Lesson
    way: Callable[[Lesson], Way]
    steps: int = 1

    def learner(self) -> Callable[[], None]:
        """A call learns from as many photos as there are in the largest batch."""
        recipe, way = self.lesson.recipe, self.way(self.lesson)
        optimizer = torch.optim.AdamW(way.parameters, lr=recipe.learning_rate, weight_decay=0.0, fused=True)
        numbers = iter(range(10**9))

        def learn() -> None:
            for _ in range(self.steps):
                subject, preservation = way.losses(random_numbers(self.lesson.seed, next(numbers)))
                optimizer.zero_grad()
                (subject + recipe.preservation_weight * preservation).backward()
                optimizer.step()

        return learn


def rungs(backbone: Backbone, photos: Sequence[Photo], recipe: Recipe, *, compiled: bool) -> Iterator[Rung]:
    """From the plainest steps upwards: two of half the recipe's batch, then one of the whole."""
    captions = captions_for(CLASS_WORD, count=64, lexicon=backbone.lexicon)

    def lesson(backbone: Backbone, **changes: object) -> Lesson:
        changed = dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]
        return Lesson.prepare(backbone, photos, CLASS_WORD, captions=captions, recipe=changed, seed=0)

    plain = lesson(backbone, batch_size=recipe.batch_size // 2)
    yield Rung("photos encoded and texts read one by one in each step", plain, EncodedEachStep, steps=2)
    yield Rung("latents encoded once", plain, SeparateTexts, steps=2)
    yield Rung("one text pass a step", plain, TunedEncoder, steps=2)
    yield Rung(f"a batch of {recipe.batch_size} in half the steps", lesson(backbone), TunedEncoder)
    backbone = dataclasses.replace(backbone, unet=copy.deepcopy(backbone.unet).to(memory_format=torch.channels_last))
    yield Rung("UNet in channels_last", lesson(backbone), TunedEncoder)
    # diffusers' own `to` would warn, of nothing
    half = torch.nn.Module.to(copy.deepcopy(backbone.unet), torch.bfloat16)
    backbone = dataclasses.replace(backbone, unet=half)
    yield Rung("UNet in bfloat16", lesson(backbone), TunedEncoder)
    if compiled:
        backbone = dataclasses.replace(backbone, unet=torch.compile(backbone.unet))
        yield Rung("UNet compiled", lesson(backbone), TunedEncoder)
    yield Rung("no text encoder tuned", lesson(backbone, tune="residual"), choose_way)


def climb(steps: Sequence[tuple[Rung, Rung]], count: int) -> Iterator[Timing]:
    """Time each rung in turns with the one below."""
    for below, above in steps:
        yield measure(Pair(above.name, below.name, above.learner(), below.learner(), aim=None, speed=True), count)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mini", help=MODELS)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--photos", type=int, default=8, help="in the largest batch; an even number")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rungs of this name")
    parser.add_argument("--device")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    backbone = open_model(arguments.model, device=arguments.device, dtype="float32")
    recipe = dataclasses.replace(RECIPES["mini"], batch_size=arguments.photos)
    steps = itertools.pairwise(rungs(backbone, load_photos(PHOTOS), recipe, compiled=arguments.compile))
    steps = [(below, above) for below, above in steps if arguments.only in above.name]
    if not steps:
        parser.error(f"no rung has {arguments.only!r} in its name")
    print(HEAD.format(arguments.photos), flush=True)
    for timing in climb(steps, arguments.pairs):
        ratio, seconds = timing.ratio, sorted(timing.ours)[len(timing.ours) // 2]
        cells = (timing.pair.what, f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}", f"{seconds:.3f}")
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
