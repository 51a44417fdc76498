"""What a picture looks like while it forms."""

import copy
from typing import Any

import pytest
import torch

from cones2.studio.looks import look_of


@pytest.mark.parametrize("name", ["sd1", "sdxl", "sd3"])
def test_latents_are_shown_as_the_autoencoder_decodes_them(opened: dict[str, Any], name: str) -> None:
    pipeline = opened[name]
    vae = pipeline.vae
    latents = torch.randn(1, vae.config.latent_channels, 4, 6, generator=torch.Generator().manual_seed(0))
    shift = vae.config.get("shift_factor") or 0.0
    with torch.no_grad():
        decoded = vae.decode(latents / vae.config.scaling_factor + shift, return_dict=False)[0]
        shown = look_of(pipeline, latents)
    assert shown.tobytes() == pipeline.image_processor.postprocess(decoded, output_type="pil")[0].tobytes()


def test_what_can_not_be_shown_cheaply_is_not(opened: dict[str, Any]) -> None:
    packed = torch.zeros(1, 24, 64)
    assert look_of(opened["flux1"], packed) is None
    half = copy.copy(opened["sdxl"])
    vars(half)["vae"] = copy.deepcopy(half.vae).half()
    half.vae.register_to_config(force_upcast=True)
    assert look_of(half, torch.zeros(1, 4, 4, 6)) is None
