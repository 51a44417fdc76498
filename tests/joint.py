"""Calls of the tiny joint transformers."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cones2.conditioning import conditioned
from subjects_for_tests import PROMPT, with_own_scheduler

SIZE = {"height": 64, "width": 96}  # 4 x 6 cells: none of these models has a square picture here
BLOCKS = ("transformer_blocks", "single_transformer_blocks", "layers")


def pictures(pipeline: Any, **arguments: Any) -> np.ndarray:
    call = {**SIZE, "num_inference_steps": 3, "output_type": "np", "generator": torch.Generator().manual_seed(0)}
    with torch.random.fork_rng():
        torch.manual_seed(0)  # SD3's ControlNet pipeline draws from the global generator
        images: np.ndarray = pipeline(**{**call, **arguments}).images
    return images


def drawn(pipeline: Any, prompt: str = PROMPT, *, call: dict[str, Any] | None = None, **options: Any) -> np.ndarray:
    with conditioned(pipeline, prompt, **options) as inputs:
        return pictures(pipeline, **inputs, **(call or {}))


def shallow(pipeline: Any) -> Any:
    """The same with one layer that reads image and text as one sequence, and none that mixes the text before."""
    own = with_own_scheduler(pipeline)
    transformer = copy.deepcopy(pipeline.transformer)
    for name, kept in zip(BLOCKS, (1, 0, 1), strict=True):
        if hasattr(transformer, name):
            setattr(transformer, name, getattr(transformer, name)[:kept])
    if hasattr(transformer, "context_refiner"):
        transformer.context_refiner = torch.nn.ModuleList()
    vars(own)["transformer"] = transformer
    return own


@contextlib.contextmanager
def predictions(pipeline: Any) -> Iterator[list[list[torch.Tensor]]]:
    """Collect what the transformer predicts, row by row, call by call."""
    seen: list[list[torch.Tensor]] = []
    hook = pipeline.transformer.register_forward_hook(lambda *call: seen.append([each.clone() for each in call[-1][0]]))
    try:
        yield seen
    finally:
        hook.remove()
