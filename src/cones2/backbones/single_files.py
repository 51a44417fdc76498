"""Reading a backbone from a single `.safetensors` checkpoint, in the layout of the first Stable Diffusion releases.

Such a file holds weights alone. What they are the weights of comes from the configurations in this package, or from a
diffusers folder that the user names: never from the network. diffusers converts the weights.
"""

from pathlib import Path
from typing import Any

import safetensors
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTokenizer

from cones2.backbones.backbone import Backbone
from cones2.backbones.clip_tokenizer import clip_tokenizer
from cones2.backbones.folders import check_index, fit_window, has_part, load_tokenizer, read_index
from cones2.backbones.libraries import first_line, quiet_libraries
from cones2.errors import BackboneError, SettingsError
from cones2.files import expanded

CONFIGS = Path(__file__).with_name("configs")
"""Where the configurations lie, a folder for each name of `CONFIG_NAMES`."""

CONFIG_NAMES = ("sd1", "sd2", "sd2-base", "sdxl")
"""Stable Diffusion 1.x, 2.x at 768 pixels (v-prediction), 2.x at 512 pixels, and XL."""

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_KINDS = {  # a weight that only this kind of checkpoint has
    "conditioner.embedders.1.model.positional_embedding": "sdxl",
    "cond_stage_model.model.token_embedding.weight": "sd2",
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": "sd1",
}


def read_single_file(file: Path, config: str | None, dtype: torch.dtype) -> Backbone:
    """Load a checkpoint with the UNet in `dtype`.

    Args:
        file: `.safetensors`, with UNet, autoencoder and text encoders under their first releases' names.
        config: a name of `CONFIG_NAMES`, or a diffusers folder with the model's configurations; needs no weights, and
            no tokenizer where that is CLIP's. When not given, what the weights' names tell.
        dtype: the UNet's.

    Raises:
        BackboneError: it is a pickle, damaged, not such a checkpoint, or does not fit the configuration.
        SettingsError: the configuration is unknown, or needed.
    """
    if file.suffix.lower() in _PICKLES:
        raise BackboneError(
            f"{file} is a pickle, which can run code on being opened, so it is never read: get the model as"
            " .safetensors, or convert it on a machine that you can spare."
        )
    folder = _find_config(file, config)
    index = read_index(folder, str(folder))
    check_index(index, str(folder))
    try:
        with quiet_libraries():
            backbone = _load(file, folder, index, dtype)
    except Exception as error:  # the libraries raise nearly anything over weights that do not fit
        raise BackboneError(
            f"can't open {file} as {folder.name}: {first_line(error)} Name its kind, or get it again."
        ) from error
    _check_complete(backbone, file, folder)
    return fit_window(backbone)


def _find_config(file: Path, config: str | None) -> Path:
    kind = _kind_of(file)
    if config is None and kind == "sd2":
        raise SettingsError(
            f"{file.name} is a Stable Diffusion 2 checkpoint, and does not say which: name its model config,"
            " sd2 for 768 pixels (v-prediction) or sd2-base for 512."
        )
    config = config or kind
    if config in CONFIG_NAMES:
        return CONFIGS / config
    folder = expanded(config)
    if not folder.is_dir():
        raise SettingsError(
            f"no model config {config!r}: expected one of {', '.join(CONFIG_NAMES)}, or a diffusers folder."
        )
    return folder


def _kind_of(file: Path) -> str:
    try:
        with safetensors.safe_open(file, "pt") as weights:
            names = set(weights.keys())
    except (OSError, safetensors.SafetensorError) as error:
        raise BackboneError(f"can't read {file} as safetensors: {first_line(error)} Get it again.") from error
    kinds = [kind for name, kind in _KINDS.items() if name in names]
    if len(kinds) != 1 or not any(name.startswith("model.diffusion_model.") for name in names):
        raise BackboneError(
            f"{file} is no checkpoint of Stable Diffusion 1.x, 2.x or XL: expected UNet and text encoders under their"
            " first releases' names. A LoRA, a refiner or a part alone can't be opened."
        )
    return kinds[0]


def _load(file: Path, folder: Path, index: dict[str, Any], dtype: torch.dtype) -> Backbone:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline  # slow to import, and only needed here

    is_xl = has_part(index, "text_encoder_2")
    options = {"config": str(folder), "local_files_only": True}
    components = {
        "unet": UNet2DConditionModel.from_single_file(str(file), subfolder="unet", dtype=dtype, **options),
        "vae": AutoencoderKL.from_single_file(str(file), subfolder="vae", dtype=torch.float32, **options),
        "tokenizer": _tokenizer(folder, "tokenizer"),
    }
    if is_xl:
        components["tokenizer_2"] = _tokenizer(folder, "tokenizer_2", pad_token="!")
    kind = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    pipeline = kind.from_single_file(str(file), dtype=torch.float32, **options, **components)
    return Backbone(
        name=file.stem,
        text_encoder=pipeline.text_encoder,
        scheduler=pipeline.scheduler,
        text_encoder_2=pipeline.text_encoder_2 if is_xl else None,
        zeros_for_empty_prompt=is_xl and bool(index.get("force_zeros_for_empty_prompt", True)),
        **components,
    )


def _tokenizer(folder: Path, part: str, **options: str) -> CLIPTokenizer:
    return load_tokenizer(folder, part) if (folder / part).is_dir() else clip_tokenizer(**options)


def _check_complete(backbone: Backbone, file: Path, folder: Path) -> None:
    for part in (*backbone.text_encoders, backbone.unet, backbone.vae):
        missing = [name for name, weight in part.named_parameters() if weight.is_meta]
        if missing:  # diffusers goes on without them
            raise BackboneError(
                f"{file} lacks {len(missing)} weights that {folder.name} has, {missing[0]} first: name its kind, or"
                " get it again."
            )
