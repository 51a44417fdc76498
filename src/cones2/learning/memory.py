"""Learning in less memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from cones2.backbones import Backbone


@contextmanager
def recomputed_activations(unet: UNet2DConditionModel) -> Iterator[None]:
    """Let the UNet compute its activations again in the backward pass, rather than keep them, within a `with` block.

    The same numbers, for the time of another forward pass.
    """
    if unet.is_gradient_checkpointing:
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


@contextmanager
def idle_parts_offloaded(backbone: Backbone) -> Iterator[None]:
    """Keep what no step needs in the CPU's memory within a `with` block: autoencoder and untouched text encoders.

    What is asked of them meanwhile, as for a preview, they do there.
    """
    idle: tuple[torch.nn.Module, ...] = (backbone.vae, *backbone.text_encoders)
    places = [next(part.parameters()).device for part in idle]
    try:
        for part in idle:
            part.to("cpu")
        yield
    finally:
        for part, place in zip(idle, places, strict=True):
            part.to(place)
