"""Compare both ways to learn a residual: through the text encoder, and directly at its output (the paper's Table A1).

`python benchmarks/two_ways.py` learns the same subject from the same photos with the recipes `mini` and `direct`, and
prints Eq. 2 with each residual on noise that neither learned from: under the caption of the photos, and under others.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from cones2.backbones import Backbone, open_backbone
from cones2.captions.corpus import captions_for, photo_caption
from cones2.examples import EXAMPLES
from cones2.learning.data import encode_captions
from cones2.learning.displacement import displacement, held_out_captions
from cones2.learning.lesson import Lesson, denoising_loss, random_numbers
from cones2.learning.loop import learn
from cones2.learning.recipe import RECIPES, Recipe
from cones2.photos import Photo
from cones2.residual.residual import Residual
from cones2.steps import finish

FRAMES = ("a {}", "the {}", "a picture of a {}", "a drawing of the {}")
HEAD = """\
| residual | seconds | Eq. 2, the photos' caption | Eq. 2, other captions | its length | other words moved |
| --- | --- | --- | --- | --- | --- |"""
_DRAWS = 16


@torch.no_grad()
def mean_loss(lesson: Lesson, captions: Sequence[str], residual: Residual | None) -> float:
    """Eq. 2 under each caption with the residual at its class word, over the same noise; the mean."""
    losses = []
    for caption in captions:
        encoded = encode_captions(lesson.backbone, [caption], lesson.class_word)
        embeddings = lesson.backbone.embed(encoded.input_ids)
        if residual is not None:
            embeddings[encoded.own] += residual.vector
        draws = (random_numbers(lesson.seed, -1 - draw) for draw in range(_DRAWS))  # no step has these numbers
        losses += [float(denoising_loss(lesson, embeddings, draw)) for draw in draws]
    return sum(losses) / len(losses)


def compare(backbone: Backbone, photos: Sequence[Photo], class_word: str, recipes: dict[str, Recipe]) -> Iterator[str]:
    """Learn with each recipe; yield the rows of a table."""
    captions = captions_for(class_word, count=1000, lexicon=backbone.lexicon)
    unseen = held_out_captions(class_word, captions, lexicon=backbone.lexicon)
    frames = [frame.format(class_word) for frame in FRAMES]
    judged = replace(next(iter(recipes.values())), batch_size=16)
    lesson = Lesson.prepare(backbone, photos, class_word, captions=captions[:1], recipe=judged, seed=0)

    def losses(residual: Residual | None) -> str:
        return " | ".join(f"{mean_loss(lesson, some, residual):.4f}" for some in ([photo_caption(class_word)], frames))

    yield f"| none | - | {losses(None)} | 0 | 0 |"
    for name, recipe in recipes.items():
        began = time.monotonic()
        last = finish(learn(backbone, photos, class_word, recipe=recipe))
        seconds = time.monotonic() - began
        moved = displacement(backbone, last.tuned, unseen, class_word=class_word)
        norm = float(last.residual.vector.norm())
        yield f"| {name} | {seconds:.0f} | {losses(last.residual)} | {norm:.1f} | {moved.relative:.4f} |"


def main() -> None:
    """Learn, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subject", default="rex", choices=sorted(EXAMPLES))
    parser.add_argument("--steps", type=int, help="of both; default: each recipe's own")
    parser.add_argument("--rate", type=float, default=RECIPES["direct"].learning_rate, help="of the direct way")
    arguments = parser.parse_args()
    example, backbone = EXAMPLES[arguments.subject], open_backbone("mini", device="cpu")
    steps = arguments.steps
    recipes = {name: replace(RECIPES[name], steps=steps or RECIPES[name].steps) for name in ("mini", "direct")}
    recipes["direct"] = replace(recipes["direct"], learning_rate=arguments.rate)
    print(HEAD, flush=True)
    for row in compare(backbone, example.photos, example.class_word, recipes):
        print(row, flush=True)


if __name__ == "__main__":
    main()
