"""An equivalent of how the authors' code draws a picture (ali-vilab/Cones-V2 at 447c194), on today's libraries.

Written from a description of it, for its cost and its numbers: `tests/test_benchmarks.py` holds it to reference latents
of the authors' own run. One picture at a time; the conditional and the unconditional half are two UNet calls; every
attention layer, self-attention too, builds all its scores; every guided step is run twice, with noise put back between
("self-recurrence"), unless `passes` is 1.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from cones2 import PRESETS, Backbone, Layout, LayoutGuidance, Subject, embed_prompt, make_scheduler, parse_prompt
from cones2.prompts import TokenizedPrompt, tokenize_prompt

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


def draw(
    backbone: Backbone, prompt: str, *, subjects: Mapping[str, Subject], layout: Layout, drawing: Drawing
) -> Image:
    """Draw one picture."""
    return backbone.decode(draw_latents(backbone, prompt, subjects=subjects, layout=layout, drawing=drawing))[0]


@torch.no_grad()
def draw_latents(
    backbone: Backbone, prompt: str, *, subjects: Mapping[str, Subject], layout: Layout, drawing: Drawing
) -> Tensor:
    """Draw one picture's latents `[1, channels, height, width]` with Euler's method over the sigmas of LMS."""
    tokenized, empty = _tokenize(backbone, prompt, subjects), _tokenize(backbone, "", {})
    conditional, unconditional = embed_prompt(backbone, tokenized, subjects), embed_prompt(backbone, empty, {})
    scheduler = make_scheduler("lms", backbone.scheduler)
    scheduler.set_timesteps(drawing.steps)
    sigmas = scheduler.sigmas.tolist()
    guided = drawing.steps if drawing.guided is None else drawing.guided
    strengths = _strengths(backbone, guided)
    randomness = torch.Generator().manual_seed(drawing.seed)
    latents = _noise(backbone, randomness) * float(scheduler.init_noise_sigma)
    with _materialised(backbone, _layout_weights(backbone, layout, tokenized)) as edit:
        for step, timestep in enumerate(scheduler.timesteps):
            sigma, next_sigma = sigmas[step], sigmas[step + 1]
            for turn in range(drawing.passes if step < guided else 1):
                if turn:
                    latents = latents + _noise(backbone, randomness) * math.sqrt(sigma**2 - next_sigma**2)
                scaled = latents / math.sqrt(sigma**2 + 1)
                edit.strength = strengths[step] if step < guided else None
                positive = backbone.predict(scaled, timestep, conditional)
                edit.strength = None
                negative = backbone.predict(scaled, timestep, unconditional)
                prediction = negative + drawing.guidance_scale * (positive - negative)
                latents = _euler(backbone, latents, prediction, sigma, next_sigma)
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
def _materialised(backbone: Backbone, weights: Mapping[int, Tensor]) -> Iterator[_Edit]:
    saved, edit = dict(backbone.unet.attn_processors), _Edit(weights)
    try:
        backbone.unet.set_attn_processor(_MaterialisedAttention(edit))
        yield edit
    finally:
        backbone.unet.set_attn_processor(saved)


def _tokenize(backbone: Backbone, prompt: str, subjects: Mapping[str, Subject]) -> TokenizedPrompt:
    parsed = parse_prompt(prompt, {name: subject.class_word for name, subject in subjects.items()})
    return tokenize_prompt(parsed, backbone.tokenizer)


def _noise(backbone: Backbone, randomness: torch.Generator) -> Tensor:
    shape = (1, backbone.unet.config["in_channels"], *backbone.latent_size)
    return torch.randn(shape, generator=randomness).to(backbone.device)


def _layout_weights(backbone: Backbone, layout: Layout, prompt: TokenizedPrompt) -> dict[int, Tensor]:
    """M of every grid, `[pixels, tokens]`, by its number of pixels."""
    guidance = LayoutGuidance(layout, prompt.spans, backbone.scheduler.alphas_cumprod, preset=PRESETS["official"])
    height, width = backbone.latent_size
    weights = {}
    for _ in backbone.unet.config["block_out_channels"]:
        weights[height * width] = guidance.weights(height, width, backbone.window).gain.to(backbone.device)
        height, width = (height + 1) // 2, (width + 1) // 2
    return weights


def _strengths(backbone: Backbone, guided: int) -> list[float]:
    """`0.08·log(1 + σ²)`, σ of step i being entry i of a table of their own."""
    table = make_scheduler("lms", backbone.scheduler).from_config(_BETAS)
    table.set_timesteps(guided)
    return [_WEIGHT * math.log(1 + sigma**2) for sigma in table.sigmas.tolist()[:guided]]


def _euler(backbone: Backbone, latents: Tensor, prediction: Tensor, sigma: float, next_sigma: float) -> Tensor:
    noise = prediction
    if backbone.prediction_type == "v_prediction":
        noise = (latents * sigma / math.sqrt(sigma**2 + 1) + prediction) / math.sqrt(sigma**2 + 1)
    return latents + (next_sigma - sigma) * noise
