"""Classifier-free guidance: one prediction of two, the negative prompt's and the prompt's."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from jaxtyping import Float
from torch import Tensor

from cones2.backbones import Backbone
from cones2.composing.settings import ComposeSettings
from cones2.layout.regions import Layout
from cones2.subjects import Subject

Prediction = Float[Tensor, "batch channels height width"]


def settle(
    settings: ComposeSettings, backbone: Backbone, *, subjects: Mapping[str, Subject], layout: Layout | None
) -> ComposeSettings:
    """Decide `guidance_parallel` where the user left it to the model: its own where anything is added to a prompt."""
    places = layout is not None and bool(layout.names) and settings.layout_scale > 0
    teaches = any(
        subject.residual is not None and subject.strength != 0 and bool(subject.residual.vector.any())
        for subject in subjects.values()
    )
    chosen = settings.guidance_parallel is not None or backbone.guidance_parallel == 1
    if chosen or not (places or teaches):
        return settings
    return replace(settings, guidance_parallel=backbone.guidance_parallel)


def guide(
    unconditional: Prediction,
    conditional: Prediction,
    *,
    latents: Prediction,
    alpha_bar: Tensor,
    is_velocity: bool,
    settings: ComposeSettings,
) -> Prediction:
    """Go `guidance_scale` times as far from the negative prompt's prediction as the prompt's own is.

    With `guidance_parallel` below 1 only that share of what lies along the prompt's own picture is added: that part
    brings no content, but over-saturated colours (arXiv:2410.02416, without its momentum and threshold).
    Then `guidance_rescale` (arXiv:2305.08891, Eq. 15 and 16).

    Args:
        unconditional: for the negative prompt.
        conditional: for the prompt.
        latents: what the UNet saw, of variance 1.
        alpha_bar: ᾱ of the timestep; read only where a part is left out, since that waits for a GPU.
        is_velocity: whether these are v, else noise.
        settings: the scale, the share and the rescaling.
    """
    scale, parallel = settings.guidance_scale, settings.guidance_parallel
    if parallel is None or parallel == 1:
        guided = unconditional + scale * (conditional - unconditional)
    else:
        signal, noise = float(alpha_bar) ** 0.5, (1 - float(alpha_bar)) ** 0.5
        slope = -noise if is_velocity else -noise / signal  # of the picture with the prediction
        own, other = (_picture(latents, each, signal, noise, is_velocity) for each in (conditional, unconditional))
        picture: Tensor = normalized_guidance(own, other, scale - 1, eta=parallel, use_original_formulation=True)
        guided = conditional + (picture - own).to(conditional.dtype) / slope
    if settings.guidance_rescale > 0:
        rescaled: Tensor = rescale_noise_cfg(guided, conditional, settings.guidance_rescale)  # type: ignore[no-untyped-call]
        return rescaled
    return guided


def _picture(latents: Tensor, prediction: Tensor, signal: float, noise: float, is_velocity: bool) -> Tensor:
    """Give the latents of the picture that a prediction stands for."""
    latents, prediction = latents.to(torch.float32), prediction.to(torch.float32)
    return signal * latents - noise * prediction if is_velocity else (latents - noise * prediction) / signal
