"""Drawing with a layout, against plain diffusers and against an equivalent of the authors' loop."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from cones2.fingerprint import fingerprint
from cones2.layout import Layout
from cones2.pipeline import Cones2Pipeline
from cones2.residual import Residual, ResidualPart
from cones2.schedulers import make_scheduler
from cones2.subjects import Subject
from cones_v2_drawing import Drawing, draw
from pairs import Pair

PROMPT = "a {rex} and a {tom} on the beach"
TEXT = "a dog and a cat on the beach"
LAYOUT = Layout.of({"rex": (0.05, 0.25, 0.5, 0.95), "tom": (0.55, 0.4, 0.95, 0.95)})
GUIDANCE_SCALE = 7.5


@dataclass(frozen=True)
class Subjects:
    """A prompt with a layout of several subjects."""

    prompt: str
    layout: Layout
    subjects: Mapping[str, Any]

    @classmethod
    def of(cls, pipe: Cones2Pipeline, count: int) -> "Subjects":
        """Make as many, in a row of boxes."""
        names = [f"s{number}" for number in range(count)]
        boxes = {name: (k / count + 0.01, 0.3, (k + 1) / count - 0.01, 0.9) for k, name in enumerate(names)}
        words = ("dog", "cat", "car", "hat")
        subjects = {name: random_subject(pipe, words[k % 4]) for k, name in enumerate(names)}
        return cls(" and ".join(f"a {{{name}}}" for name in names), Layout.of(boxes), subjects)


def drawing_pairs(pipe: Cones2Pipeline, *, steps: int) -> list[Pair]:
    """Pair drawing with what it is compared with: from prompt to picture, one at a time, at the model's own size."""
    pipe.set_progress_bar_config(disable=True)
    subjects = {"rex": random_subject(pipe, "dog"), "tom": random_subject(pipe, "cat")}
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": GUIDANCE_SCALE}
    euler = Cones2Pipeline(copy.copy(pipe.pipeline))
    vars(euler.pipeline)["scheduler"] = make_scheduler("euler", pipe.scheduler)

    def ours(**more: Any) -> object:
        return pipe(PROMPT, LAYOUT, subjects=subjects, seed=0, **options, **more)

    def plain() -> object:
        return pipe.pipeline(TEXT, generator=torch.Generator().manual_seed(0), **options)

    def like_cones_v2() -> object:
        return euler(PROMPT, LAYOUT, subjects=subjects, seed=0, preset="cones_v2", **options)

    def theirs(passes: int) -> object:
        drawing = Drawing(steps=steps, passes=passes, guidance_scale=GUIDANCE_SCALE)
        return draw(pipe, PROMPT, subjects=subjects, layout=LAYOUT, drawing=drawing)

    what, loop = "a picture with a layout", "the authors' loop, equivalent"
    measured = f"{what}, its attention measured"
    found = [
        Pair(what, "diffusers' pipeline, no layout", ours, plain, aim=1.05),
        Pair(measured, "not measured", lambda: ours(measure_attention=True), ours, aim=1.1),
    ]
    if len(pipe.family.text_parts) == 1:  # the authors' code knows no Stable Diffusion XL
        found += [
            Pair(what, f"{loop}, no recurrence", like_cones_v2, lambda: theirs(1), aim=1.5, speed=True),
            Pair(what, f"{loop}, with recurrence", like_cones_v2, lambda: theirs(2), aim=None, speed=True),
        ]
    return found


def random_subject(pipe: Cones2Pipeline, class_word: str) -> Subject:
    """Make a subject with a residual of random numbers: what is in it costs nothing."""
    generator, parts = torch.Generator().manual_seed(0), []
    for part in pipe.family.text_parts:
        encoder = fingerprint(getattr(pipe, part.encoder), part.encoder, "benchmark")
        tokens = tuple(getattr(pipe, part.tokenizer).tokenize(class_word))
        parts.append(ResidualPart(encoder, tokens, torch.randn(len(tokens), encoder.width, generator=generator)))
    return Subject(class_word, Residual(class_word, tuple(parts), {}, (), "benchmark"))
