"""Calls of the tiny joint transformers."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from cones2.attention import edited_attention
from cones2.conditioning import LayoutSettings, conditioned
from cones2.families import Family, family_of
from cones2.run import Run
from subjects_for_tests import PROMPT, subjects_for, with_own_scheduler

SIZE = {"height": 64, "width": 96}  # 4 x 6 cells: none of these models has a square picture here
PLAIN = {"rex": "cat", "cup": "teapot"}
WEAKEN = LayoutSettings(layout_effect="weaken")  # the hard mask alone: a strengthening changes with all scores' spread
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


def shallow(pipeline: Any, *, kept: tuple[int, int, int] = (1, 0, 1)) -> Any:
    """The same with one layer that reads image and text as one sequence, and none that mixes the text before.

    `kept` says how many of `BLOCKS` of each kind stay.
    """
    own = with_own_scheduler(pipeline)
    transformer = copy.deepcopy(pipeline.transformer)
    for name, count in zip(BLOCKS, kept, strict=True):
        if hasattr(transformer, name):
            setattr(transformer, name, getattr(transformer, name)[:count])
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


def latents(
    pipeline: Any, layout: Any, *, subjects: Mapping[str, Any], family: Family | None = None, **call: Any
) -> torch.Tensor:
    """What one step makes, as (channels, rows, columns) of the latents, under the given row's reading of the model."""
    family = family or family_of(pipeline)
    with conditioned(pipeline, PROMPT, subjects=subjects, layout=layout, guidance_scale=0.0) as inputs:
        given, spans = dict(inputs), inputs.run.spans
    given.pop("guidance_scale")
    run = Run(pipeline, family, given, layout, spans, WEAKEN, None, False)
    scale = {} if family.name == "FLUX.1" else {"guidance_scale": 0.0}
    hook = edited_attention(pipeline.transformer, family, run) if layout else contextlib.nullcontext()
    arguments = {**SIZE, "num_inference_steps": 1, "output_type": "latent", **scale, **given, **call}
    with torch.no_grad(), hook:
        found = torch.as_tensor(pipeline(**arguments, generator=torch.Generator().manual_seed(0)).images)
    return _as_grid(found, family.name)[0]


def _as_grid(found: torch.Tensor, name: str) -> torch.Tensor:
    """Return latents as a picture; FLUX.1 leaves them packed, 2 x 2 to a token."""
    if name != "FLUX.1":
        return found
    packed = found.view(len(found), 4, 6, -1, 2, 2)
    return packed.permute(0, 3, 1, 4, 2, 5).reshape(len(found), -1, 8, 12)


def changed_cells(
    pipeline: Any, layout: Any, *, plain: Mapping[str, Any] = PLAIN, family: Family | None = None, **call: Any
) -> torch.Tensor:
    """Where a residual for `rex` changes one step, by cells of 2 x 2 latents: the RMS of the change."""
    taught = {**plain, "rex": subjects_for(pipeline)["rex"]}
    one, other = (latents(pipeline, layout, subjects=each, family=family, **call) for each in (taught, plain))
    squares = (one - other).square().mean(0)
    return squares.view(4, 2, 6, 2).mean((1, 3)).sqrt()


def corner() -> torch.Tensor:
    cells = torch.zeros(4, 6, dtype=torch.bool)
    cells[:2, :2] = True
    return cells


def as_cells(predicted: torch.Tensor) -> torch.Tensor:
    """One row's prediction, or latents, as cells of numbers."""
    if predicted.ndim == 2:  # FLUX's tokens, behind which reference images have theirs
        return predicted[:24].reshape(4, 6, -1)
    squeezed = predicted.reshape(predicted.shape[0], 4, 2, 6, 2)
    return squeezed.permute(1, 3, 0, 2, 4).reshape(4, 6, -1)
