"""Learning in less memory."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel


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
