"""Residuals, subjects and a layout for the tiny models."""

import copy
from typing import Any

import torch

from cones2.families import family_of
from cones2.fingerprint import fingerprints
from cones2.layout import Layout
from cones2.residual import Residual, ResidualPart
from cones2.subjects import Subject

LAYOUT = Layout.of({"rex": (0.0, 0.25, 0.5, 1.0), "cup": (0.5, 0.5, 1.0, 1.0)})
PROMPT, TEXT = "a {rex} and a {cup} on the beach", "a cat and a teapot on the beach"


def residual_for(pipeline: Any, word: str = "cat", *, size: float = 3.0) -> Residual:
    """A residual of random numbers for each text encoder of a pipeline."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    family = family_of(pipeline)
    for part, encoder in zip(family.text_parts, fingerprints(pipeline, family, "tiny"), strict=True):
        tokenizer = copy.deepcopy(getattr(pipeline, part.tokenizer))  # another thread may be padding with it
        written = word if part.thinking is None else f" {word}"  # as within a text, for tokens that hold the space
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        vector = size * torch.randn(len(ids), encoder.width, generator=generator)
        parts.append(ResidualPart(encoder, tuple(f"{word}{i}" for i in range(len(ids))), vector))
    return Residual(word, tuple(parts), {}, (), "0")


def subjects_for(pipeline: Any, **changes: Any) -> dict[str, Subject]:
    """A taught and an untaught subject."""
    return {"rex": Subject("cat", residual_for(pipeline), **changes), "cup": Subject("teapot")}


def with_own_scheduler(pipeline: Any) -> Any:
    """A pipeline with the same models and a scheduler of its own: drawing changes it."""
    own = copy.copy(pipeline)
    vars(own)["scheduler"] = copy.deepcopy(pipeline.scheduler)
    own.set_progress_bar_config(disable=True)
    return own
