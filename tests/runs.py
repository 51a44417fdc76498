"""Edits of the tiny UNet's attention, and calls of it, without a prompt and without a picture."""

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import torch

from cones2.attention import edited_attention
from cones2.denoisers import NegativeText, TextEdit
from cones2.families import family_of
from cones2.guidance import Spans
from cones2.layout import Layout
from cones2.run import LayoutSettings, Run

TOKENS = 9
HALVES = Layout.of({"rex": (0.0, 0.0, 0.5, 1.0), "cup": (0.5, 0.0, 1.0, 1.0)})
SPANS: Spans = {"rex": ((2, 3),), "cup": ((5, 7),)}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def texts(rows: int, *, conditional: int = 1) -> torch.Tensor:
    """Random texts, of which the last `conditional` are the prompt."""
    text = random(rows, TOKENS, 32, seed=1)
    text[rows - conditional :] = random(TOKENS, 32, seed=2)
    return text


PROMPT = texts(1)


def in_dtype(pipeline: Any, dtype: torch.dtype) -> Any:
    """A pipeline with a scheduler of its own, and a UNet of its own in another dtype."""
    own = copy.copy(pipeline)
    vars(own)["scheduler"] = copy.deepcopy(pipeline.scheduler)
    own.scheduler.set_timesteps(10)
    if dtype != pipeline.unet.dtype:
        vars(own)["unet"] = copy.deepcopy(pipeline.unet).to(dtype)
    return own


def run_of(
    pipeline: Any,
    *,
    layout: Layout = HALVES,
    spans: Spans = SPANS,
    prompt: torch.Tensor = PROMPT,
    edit: TextEdit | None = None,
    preset: Any = "paper",
    **settings: Any,
) -> Run:
    """What `conditioned` makes of a layout; `prompt` is what conditional rows read."""
    named = preset if isinstance(preset, str) else "paper"
    chosen = LayoutSettings(preset=named, **settings)
    run = Run(pipeline, family_of(pipeline), {"prompt_embeds": prompt}, layout, spans, chosen, edit, False)
    if named != preset:
        run.preset = preset
    return run


def shown(tokens: torch.Tensor) -> NegativeText:
    """A negative text that is read from its first token to its last."""
    return NegativeText(tokens, ((0, len(tokens)),))


@torch.no_grad()
def call(
    pipeline: Any,
    run: Run | None = None,
    *,
    latents: torch.Tensor | None = None,
    text: torch.Tensor | None = None,
    timestep: Any = 500,
) -> torch.Tensor:
    """The UNet's prediction, edited where there is a run: by default an unconditional and a conditional row."""
    unet: Any = pipeline.unet
    text = texts(2) if text is None else text
    latents = random(len(text), 4, 8, 8) if latents is None else latents
    arguments = latents.to(unet.dtype), timestep, text.to(unet.dtype)
    with contextlib.nullcontext() if run is None else edited_attention(unet, run.family, run):
        prediction: torch.Tensor = unet(*arguments).sample
    return prediction


def layer_outputs(pipeline: Any, run: Run | None, **arguments: Any) -> Mapping[str, torch.Tensor]:
    """What each cross-attention layer returns in a call, by its name."""
    seen: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in pipeline.unet.named_modules() if name.endswith(".attn2")}
    hooks = [
        layer.register_forward_hook(lambda *call, name=name: seen.update({name: call[-1]}))
        for name, layer in layers.items()
    ]
    try:
        call(pipeline, run, **arguments)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
