"""Models of real size with random weights, made of this package's configurations: to time and count, no download."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from cones2.pipeline import Cones2Pipeline
from cones2.single_files import CONFIG_NAMES, CONFIGS, clip_tokenizer

MODELS = f"mini, a diffusers folder, a Hub id, or one of {', '.join(CONFIG_NAMES)}: real size, random weights"
"""What `open_model` takes, for `--help`."""


def open_model(model: str, *, device: str | None = None, dtype: str | None = None) -> Cones2Pipeline:
    """Open a model, or make one where `model` is a name of `CONFIG_NAMES`."""
    if model not in CONFIG_NAMES:
        return Cones2Pipeline.from_pretrained(model, device=device, dtype=dtype)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    number = getattr(torch, dtype) if dtype else torch.bfloat16 if device == "cuda" else torch.float32
    return Cones2Pipeline(make_model(CONFIGS / model, device=device, dtype=number))


def make_model(folder: Path, *, device: str, dtype: torch.dtype) -> Any:
    """Make a pipeline from the configurations in `folder`; on the device `meta` it has no numbers."""
    with torch.device(device):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(_config(folder, "unet")),
            "vae": AutoencoderKL.from_config(_config(folder, "vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**_config(folder, "text_encoder"))),
        }
        if is_xl := (folder / "text_encoder_2").is_dir():
            parts["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**_config(folder, "text_encoder_2")))
    for part in parts.values():
        torch.nn.Module.to(part, dtype)  # diffusers' own `to` would warn of modules that are to stay float32: none
        part.eval().requires_grad_(False)
    scheduler = DDIMScheduler.from_config(_config(folder, "scheduler", "scheduler_config"))
    parts |= {"tokenizer": clip_tokenizer(), "scheduler": scheduler}
    if is_xl:
        pipeline: Any = StableDiffusionXLPipeline(
            **parts, tokenizer_2=clip_tokenizer(pad_token="!"), add_watermarker=False
        )
    else:
        pipeline = StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipeline.register_to_config(_name_or_path=folder.name)
    return pipeline


def _config(folder: Path, part: str, name: str = "config") -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / part / f"{name}.json").read_text())
    return values
