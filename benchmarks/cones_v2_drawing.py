"""An equivalent of how the authors' code draws a picture (ali-vilab/Cones-V2 at 447c194), on today's libraries.

Written from a description of it, for its cost: `tests/test_benchmarks.py` holds its latents to those of
`cones2.cones_v2`, which are held to the authors' own runs. One picture at a time; the conditional and the unconditional
half are two UNet calls; every attention layer, self-attention too, builds all its scores; every guided step is run
twice, with noise put back between ("self-recurrence"), unless `passes` is 1.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from cones2.conditioning import Inputs, conditioned
from cones2.guidance import level_grids, token_weights
from cones2.layout import Layout
from cones2.pipeline import Cones2Pipeline
from cones2.presets import PRESETS
from cones2.schedulers import make_scheduler

_WEIGHT = 0.08
_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True)
class Drawing:
    """How to draw; `guided` is how many steps, from the first, the layout takes part in, all when None."""

    steps: int = 50
    guided: int | None = None
    passes: int = 2
    guidance_scale: float = 7.5
    seed: int = 0


def draw(pipe: Cones2Pipeline, prompt: str, *, subjects: Mapping[str, Any], layout: Layout, drawing: Drawing) -> Image:
    """Draw one picture."""
    latents = draw_latents(pipe, prompt, subjects=subjects, layout=layout, drawing=drawing)
    vae = pipe.vae
    with torch.no_grad():
        decoded = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    image: Image = pipe.image_processor.postprocess(decoded, output_type="pil")[0]
    return image


@torch.no_grad()
def draw_latents(
    pipe: Cones2Pipeline, prompt: str, *, subjects: Mapping[str, Any], layout: Layout, drawing: Drawing
) -> Tensor:
    """Draw one picture's latents `[1, channels, height, width]` with Euler's method over the sigmas of LMS."""
    with conditioned(
        copy.copy(pipe.pipeline), prompt, subjects=subjects, guidance_scale=drawing.guidance_scale
    ) as inputs:
        conditional, unconditional = inputs["prompt_embeds"], inputs["negative_prompt_embeds"]
        weights = _layout_weights(pipe, layout, inputs)
    scheduler = make_scheduler("lms", pipe.scheduler)
    scheduler.set_timesteps(drawing.steps)
    sigmas = scheduler.sigmas.tolist()
    guided = drawing.steps if drawing.guided is None else drawing.guided
    strengths = _strengths(pipe, guided)
    randomness = torch.Generator().manual_seed(drawing.seed)
    latents = _noise(pipe, randomness) * float(scheduler.init_noise_sigma)
    with _materialised(pipe.unet, weights) as edit:
        for step, timestep in enumerate(scheduler.timesteps):
            sigma, next_sigma = sigmas[step], sigmas[step + 1]
            for turn in range(drawing.passes if step < guided else 1):
                if turn:
                    latents = latents + _noise(pipe, randomness) * math.sqrt(sigma**2 - next_sigma**2)
                scaled = latents / math.sqrt(sigma**2 + 1)
                edit.strength = strengths[step] if step < guided else None
                positive = _predict(pipe, scaled, timestep, conditional)
                edit.strength = None
                negative = _predict(pipe, scaled, timestep, unconditional)
                prediction = negative + drawing.guidance_scale * (positive - negative)
                latents = _euler(pipe, latents, prediction, sigma, next_sigma)
    return latents


class _Edit:
    """What all layers read: each grid's weights, by its pixels, and η / std, None while the layout has no part."""

    def __init__(self, weights: Mapping[int, Tensor]) -> None:
        self.weights = weights
        self.strength: float | None = None


class _MaterialisedAttention:
    """`softmax((QKᵀ + η·M) / √d)·V` with all scores in memory, in float32."""

    def __init__(self, edit: _Edit) -> None:
        self._edit = edit

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(states) for states in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))
        )
        scores = query.float() @ key.float().mT
        scores = (scores + self._bias(scores, is_cross=encoder_hidden_states is not None)) * attn.scale
        attended = attn.batch_to_head_dim(scores.softmax(dim=-1).to(value.dtype) @ value)
        projected: Tensor = attn.to_out[1](attn.to_out[0](attended))
        return projected

    def _bias(self, scores: Tensor, *, is_cross: bool) -> Tensor | float:
        if not is_cross or self._edit.strength is None:
            return 0.0
        weights = self._edit.weights[scores.shape[1]]
        # They take the standard deviation twice, and multiply the second by 0.
        return weights * self._edit.strength * scores.std() + scores.std() * 0


@contextmanager
def _materialised(unet: Any, weights: Mapping[int, Tensor]) -> Iterator[_Edit]:
    saved, edit = dict(unet.attn_processors), _Edit(weights)
    try:
        unet.set_attn_processor(_MaterialisedAttention(edit))
        yield edit
    finally:
        unet.set_attn_processor(saved)


def _latent_size(pipe: Cones2Pipeline) -> tuple[int, int]:
    size = pipe.unet.config["sample_size"]
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _noise(pipe: Cones2Pipeline, randomness: torch.Generator) -> Tensor:
    shape = (1, pipe.unet.config["in_channels"], *_latent_size(pipe))
    return torch.randn(shape, generator=randomness).to(pipe.device)


def _predict(pipe: Cones2Pipeline, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
    prediction: Tensor = pipe.unet(latents.to(text.dtype), timestep, text, return_dict=False)[0]
    return prediction.float()


def _layout_weights(pipe: Cones2Pipeline, layout: Layout, inputs: Inputs) -> dict[int, Tensor]:
    """Return M of every grid, `[pixels, tokens]`, by its number of pixels."""
    weights = {}
    for height, width in level_grids(*_latent_size(pipe), len(pipe.unet.config["block_out_channels"])):
        regions = PRESETS["cones_v2"].weigh(layout, height, width)
        gain = token_weights(regions, inputs.run.spans, inputs["prompt_embeds"].shape[1]).gain
        weights[height * width] = gain.to(pipe.device)
    return weights


def _strengths(pipe: Cones2Pipeline, guided: int) -> list[float]:
    """Return `0.08·log(1 + σ²)`, σ of step i being entry i of a table of their own."""
    table = make_scheduler("lms", pipe.scheduler).from_config(_BETAS)
    table.set_timesteps(guided)
    return [_WEIGHT * math.log(1 + sigma**2) for sigma in table.sigmas.tolist()[:guided]]


def _euler(pipe: Cones2Pipeline, latents: Tensor, prediction: Tensor, sigma: float, next_sigma: float) -> Tensor:
    noise = prediction
    if pipe.scheduler.config["prediction_type"] == "v_prediction":
        noise = (latents * sigma / math.sqrt(sigma**2 + 1) + prediction) / math.sqrt(sigma**2 + 1)
    return latents + (next_sigma - sigma) * noise
