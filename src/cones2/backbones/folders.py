"""Reading a backbone from a diffusers folder.

Each component is loaded by its explicit class, from safetensors only: nothing in a model folder is ever executed.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from cones2.backbones.backbone import Backbone
from cones2.backbones.libraries import first_line, quiet_libraries
from cones2.backbones.schedulers import SCHEDULERS
from cones2.errors import BackboneError
from cones2.files import read_bounded

_CLASSES: dict[str, tuple[str, ...]] = {
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder": ("CLIPTextModel",),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": tuple(SCHEDULERS.values()),
}
_SECOND_CLASSES: dict[str, tuple[str, ...]] = {
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
}
PARTS = (*_CLASSES, *_SECOND_CLASSES)
"""The folders that a model may have."""

_IGNORED = ("safety_checker", "feature_extractor", "image_encoder")
_LARGEST_LEXICON = 2**20


def read_folder(folder: Path, model: str, dtype: torch.dtype, *, name: str) -> Backbone:
    """Load a diffusers folder with the UNet in `dtype`; `model` is what the user called it, `name` what it gets.

    Raises:
        BackboneError: it is no diffusers folder, is damaged, or is of a kind that is not supported.
    """
    index = read_index(folder, model)
    check_index(index, model)
    for part in PARTS:
        if has_part(index, part) and not (folder / part).is_dir():
            raise BackboneError(f"{model} is incomplete: it has no folder {part}. Copy or download the model again.")
    try:
        with quiet_libraries():
            return fit_window(_load(folder, index, dtype, name))
    except BackboneError:
        raise
    except Exception as error:  # the libraries raise nearly anything over a damaged folder
        raise BackboneError(f"can't open {model}: {first_line(error)} Copy or download the model again.") from error


def read_index(folder: Path, model: str) -> dict[str, Any]:
    """Read what parts a diffusers folder has, and their classes.

    Raises:
        BackboneError: it is no diffusers folder.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(
            f"{model} is no diffusers model folder: expected a readable model_index.json in it."
        ) from error
    if not isinstance(index, dict):
        raise BackboneError(f"{model} is no diffusers model folder: its model_index.json is not a JSON object.")
    return index


def check_index(index: dict[str, Any], model: str) -> None:
    """Check that these are exactly the parts of Stable Diffusion 1.x, 2.x or XL.

    Raises:
        BackboneError: they are not.
    """
    found = {part: index[part][1] for part in index if has_part(index, part)}
    classes = _CLASSES | (_SECOND_CLASSES if _SECOND_CLASSES.keys() & found.keys() else {})
    for part in (*classes, *sorted(found)):
        if part in _IGNORED:
            continue
        if found.get(part) not in classes.get(part, ()):
            kinds = " or ".join(classes.get(part, ["no kind"]))
            raise BackboneError(
                f"{model} is a {index.get('_class_name')} whose {part} is {found.get(part, 'missing')}: only Stable"
                f" Diffusion 1.x, 2.x and XL are supported, with {part} of {kinds}."
            )


def has_part(index: dict[str, Any], part: str) -> bool:
    """Tell whether an entry names a class; those that are left out are there as nulls."""
    value = index.get(part)
    return not part.startswith("_") and isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)


def fit_window(backbone: Backbone) -> Backbone:
    """Let the tokenizer fill the text encoder's window and no more, whatever its own file says."""
    window = int(backbone.text_encoder.config.max_position_embeddings)
    backbone.tokenizer.model_max_length = min(window, backbone.tokenizer.model_max_length)
    return backbone


def _load(folder: Path, index: dict[str, Any], dtype: torch.dtype, name: str) -> Backbone:
    return Backbone(
        name=name,
        tokenizer=load_tokenizer(folder, "tokenizer"),
        text_encoder=_load_weights(CLIPTextModel, folder, "text_encoder", torch.float32),
        unet=_load_weights(UNet2DConditionModel, folder, "unet", dtype),
        vae=_load_weights(AutoencoderKL, folder, "vae", torch.float32),
        scheduler=getattr(diffusers, index["scheduler"][1]).from_pretrained(
            folder, subfolder="scheduler", local_files_only=True
        ),
        lexicon=None if (words := _read_text(folder / "lexicon.txt")) is None else frozenset(words.split()),
        class_words=tuple((_read_text(folder / "class_words.txt") or "").splitlines()),
        **(_load_second(folder, index) if has_part(index, "text_encoder_2") else {}),
    )


def _load_second(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Load what Stable Diffusion XL has more."""
    return {
        "text_encoder_2": _load_weights(CLIPTextModelWithProjection, folder, "text_encoder_2", torch.float32),
        "tokenizer_2": load_tokenizer(folder, "tokenizer_2"),
        "zeros_for_empty_prompt": bool(index.get("force_zeros_for_empty_prompt", True)),  # as in diffusers
    }


def load_tokenizer(folder: Path, part: str) -> CLIPTokenizer:
    """Load the tokenizer in a folder's `part`."""
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, subfolder=part, local_files_only=True)
    return tokenizer


def _load_weights(kind: Any, folder: Path, part: str, dtype: torch.dtype) -> Any:
    component, report = kind.from_pretrained(
        folder, subfolder=part, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    missing = sorted(report["missing_keys"])
    if missing:  # the libraries would go on with random numbers in their place
        raise BackboneError(
            f"{folder / part} lacks {len(missing)} weights, {missing[0]} first. Download the model again."
        )
    return component


def _read_text(path: Path) -> str | None:
    """Read a small file of words, in lower case; None where there is none."""
    if not path.is_file():
        return None
    return read_bounded(path, limit=_LARGEST_LEXICON, error=BackboneError).decode(errors="replace").lower()
