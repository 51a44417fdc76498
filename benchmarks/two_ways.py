"""Compare both ways to learn a residual: through the text encoder, and directly at its output (the paper's Table A1).

`python benchmarks/two_ways.py` learns the same subject from the same photos with the recipes `mini` and `direct`, and
prints Eq. 2 with each residual on noise that neither learned from: under the caption of the photos, and under others.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from cones2.captions import photo_caption
from cones2.examples import EXAMPLES
from cones2.learning.data import TextReader, Views, encode_views, random_numbers
from cones2.learning.losses import add_noise, subject_loss
from cones2.learning.recipe import RECIPES, Recipe
from cones2.photos import Photo
from cones2.pipeline import Cones2Pipeline
from cones2.residual import Residual

FRAMES = ("a {}", "the {}", "a picture of a {}", "a drawing of the {}")
HEAD = """\
| residual | seconds | Eq. 2, the photos' caption | Eq. 2, other captions | its length | other words moved |
| --- | --- | --- | --- | --- | --- |"""
_DRAWS, _BATCH = 16, 16
_NOISE_SEED = 1


@torch.no_grad()
def mean_loss(
    pipe: Cones2Pipeline, views: Views, captions: Sequence[str], class_word: str, residual: Residual | None
) -> float:
    """Return the mean of Eq. 2 under each caption with the residual at its class word, over the same noise."""
    reader, losses = TextReader.copy_of(pipe.pipeline, pipe.family), []
    for caption in captions:
        tokens = reader.tokenize([caption], class_word)
        embeddings = reader.embed(tokens)
        if residual is not None:
            embeddings[tokens.own] += torch.cat([part.vector for part in residual.parts], dim=1).to(embeddings)
        losses += [_denoising_loss(pipe, views, embeddings, draw) for draw in range(_DRAWS)]
    return sum(losses) / len(losses)


def _denoising_loss(pipe: Cones2Pipeline, views: Views, embeddings: torch.Tensor, draw: int) -> float:
    """Return Eq. 2 on photos, noise and timesteps of a number."""
    numbers, unet, scheduler = random_numbers(_NOISE_SEED, draw), pipe.unet, pipe.scheduler
    rows = torch.randint(len(views.mean), (_BATCH,), generator=numbers)
    latents = views.mean[rows] + views.std[rows] * torch.randn(views.mean[rows].shape, generator=numbers)
    noise = torch.randn(latents.shape, generator=numbers)
    timesteps = torch.randint(len(scheduler.alphas_cumprod), (_BATCH,), generator=numbers)
    noised = add_noise(latents, noise, scheduler.alphas_cumprod[timesteps], scheduler.config["prediction_type"])
    text = embeddings.expand(_BATCH, -1, -1).to(unet.dtype)
    prediction = unet(noised.latents.to(unet.device, unet.dtype), timesteps.to(unet.device), text, return_dict=False)[0]
    return float(subject_loss(prediction.cpu(), noised.target))


def compare(
    pipe: Cones2Pipeline, photos: Sequence[Photo], class_word: str, recipes: dict[str, Recipe]
) -> Iterator[str]:
    """Learn with each recipe; yield the rows of a table."""
    frames = [frame.format(class_word) for frame in FRAMES]
    views = encode_views(pipe.pipeline, photos, 1, random_numbers(_NOISE_SEED, 0))

    def losses(residual: Residual | None) -> str:
        asked = ([photo_caption(class_word)], frames)
        return " | ".join(f"{mean_loss(pipe, views, some, class_word, residual):.4f}" for some in asked)

    yield f"| none | - | {losses(None)} | 0 | 0 |"
    for name, recipe in recipes.items():
        began = time.monotonic()
        for step in pipe.learn_steps(photos, class_word, recipe):
            if step.step == step.steps:
                residual, moved = step.residual, step.displacement()
        seconds = time.monotonic() - began
        norm = float(torch.cat([part.vector for part in residual.parts], dim=1).norm())
        relative = "-" if moved is None else f"{moved.relative:.4f}"
        yield f"| {name} | {seconds:.0f} | {losses(residual)} | {norm:.1f} | {relative} |"


def main() -> None:
    """Learn, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", default="rex", choices=sorted(EXAMPLES))
    parser.add_argument("--steps", type=int, help="of both; default: each recipe's own")
    parser.add_argument("--rate", type=float, default=RECIPES["direct"].learning_rate, help="of the direct way")
    arguments = parser.parse_args()
    example, pipe = EXAMPLES[arguments.subject], Cones2Pipeline.from_pretrained("mini", device="cpu")
    steps = arguments.steps
    recipes = {name: replace(RECIPES[name], steps=steps or RECIPES[name].steps) for name in ("mini", "direct")}
    recipes["direct"] = replace(recipes["direct"], learning_rate=arguments.rate)
    print(HEAD, flush=True)
    for row in compare(pipe, example.photos, example.class_word, recipes):
        print(row, flush=True)


if __name__ == "__main__":
    main()
