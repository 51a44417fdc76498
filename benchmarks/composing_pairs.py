"""Composing with a layout, against plain diffusers and against an equivalent of the authors' loop."""

from dataclasses import replace

import torch

from authors_composing import Drawing, draw
from cones2 import Backbone, ComposeSettings, Layout, Residual, Subject, compose, finish, make_scheduler
from pairs import Pair

PROMPT = "a {rex} and a {tom} on the beach"
TEXT = "a dog and a cat on the beach"
LAYOUT = Layout.from_numbers({"rex": [(0.05, 0.25, 0.5, 0.95)], "tom": [(0.55, 0.4, 0.95, 0.95)]})


def composing_pairs(backbone: Backbone, *, steps: int) -> list[Pair]:
    """From prompt to picture, one at a time, at the model's own size."""
    subjects = {"rex": _subject(backbone, "dog"), "tom": _subject(backbone, "cat")}
    settings = ComposeSettings(steps=steps, guidance_parallel=1.0)  # as all that it is compared with
    like_authors = replace(settings, scheduler="euler", preset="official-layout")

    def ours(settings: ComposeSettings, *, measure_attention: bool = False) -> object:
        options = {"subjects": subjects, "layout": LAYOUT, "measure_attention": measure_attention}
        return finish(compose(backbone, PROMPT, **options, settings=settings)).pictures

    def theirs(passes: int) -> object:
        return draw(backbone, PROMPT, subjects=subjects, layout=LAYOUT, drawing=Drawing(steps=steps, passes=passes))

    pipeline = backbone.pipeline()
    pipeline.scheduler = make_scheduler(settings.sampler, backbone.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    plain = {"num_inference_steps": steps, "guidance_scale": settings.guidance_scale}
    measured = "a picture with a layout, its attention measured"
    what, loop = "a picture with a layout", "the authors' loop, equivalent"
    return [
        Pair(what, "diffusers' pipeline, no layout", lambda: ours(settings), lambda: pipeline(TEXT, **plain), aim=1.1),
        Pair(measured, "not measured", lambda: ours(settings, measure_attention=True), lambda: ours(settings), aim=1.1),
        Pair(what, f"{loop}, no recurrence", lambda: ours(like_authors), lambda: theirs(1), aim=1.5, speed=True),
        Pair(what, f"{loop}, with recurrence", lambda: ours(like_authors), lambda: theirs(2), aim=None, speed=True),
    ]


def _subject(backbone: Backbone, class_word: str) -> Subject:
    """A subject with a residual of random numbers: what is in it costs nothing."""
    tokens = tuple(backbone.tokenizer.tokenize(class_word))
    vector = torch.randn(len(tokens), backbone.width, generator=torch.Generator().manual_seed(0))
    return Subject(class_word, Residual(class_word, vector, tokens, backbone.encoder_id, {}, (), "benchmark"))
