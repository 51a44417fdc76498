"""Models of real size with random weights, made of this package's configurations: to time and count, no download."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from cones2.backbones import Backbone, open_backbone
from cones2.backbones.clip_tokenizer import clip_tokenizer
from cones2.backbones.single_files import CONFIG_NAMES, CONFIGS

MODELS = f"mini, a diffusers folder, a Hub id, or one of {', '.join(CONFIG_NAMES)}: real size, random weights"
"""What `open_model` takes, for `--help`."""


def open_model(model: str, *, device: str | None = None, dtype: str | None = None) -> Backbone:
    """Open a model, or make one where `model` is a name of `CONFIG_NAMES`."""
    if model not in CONFIG_NAMES:
        return open_backbone(model, device=device, dtype=dtype)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    number = getattr(torch, dtype) if dtype else torch.bfloat16 if device == "cuda" else torch.float32
    return make_model(CONFIGS / model, device=device, dtype=number)


def make_model(folder: Path, *, device: str, dtype: torch.dtype) -> Backbone:
    """Make a model from the configurations in `folder`, its UNet in `dtype`; on the device `meta` it has no numbers."""
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(_config(folder, "unet"))
        vae = AutoencoderKL.from_config(_config(folder, "vae"))
        text_encoder = CLIPTextModel(CLIPTextConfig(**_config(folder, "text_encoder")))
        is_xl = (folder / "text_encoder_2").is_dir()
        second = CLIPTextModelWithProjection(CLIPTextConfig(**_config(folder, "text_encoder_2"))) if is_xl else None
    torch.nn.Module.to(unet, dtype)  # diffusers' own `to` would warn of modules that are to stay float32: none
    for part in (unet, vae, text_encoder, *([second] if second else [])):
        part.eval().requires_grad_(False)
    tokenizer, scheduler = clip_tokenizer(), DDIMScheduler.from_config(_config(folder, "scheduler", "scheduler_config"))
    return Backbone(
        folder.name, tokenizer, text_encoder, unet, vae, scheduler, text_encoder_2=second, tokenizer_2=tokenizer
    )


def _config(folder: Path, part: str, name: str = "config") -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / part / f"{name}.json").read_text())
    return values
