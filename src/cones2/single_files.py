"""Reading a single `.safetensors` checkpoint, in the layout of the first Stable Diffusion releases.

Such a file holds weights alone. Their configurations are in this package, or in a diffusers folder that the user names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import safetensors
import torch
from transformers import CLIPTokenizer

from cones2.errors import ModelError, SettingsError, first_line
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


def find_config(file: Path, config: str | Path | None) -> Path:
    """Return the folder of a checkpoint's configurations: of the name or folder `config`, or what the weights tell.

    A folder needs no weights, and no tokenizer if that is CLIP's.

    Raises:
        ModelError: the file is a pickle, damaged, or no such checkpoint.
        SettingsError: the configuration is unknown, or needed.
    """
    if file.suffix.lower() in _PICKLES:
        raise ModelError(f"{file} is a pickle, which can run code on being opened: get the model as .safetensors.")
    kind = _kind_of(file)
    if config is None and kind == "sd2":
        raise SettingsError(f"{file.name} needs a config: 'sd2' (768 pixels, v-prediction) or 'sd2-base' (512).")
    config = kind if config is None else str(config)
    if config in CONFIG_NAMES:
        return CONFIGS / config
    folder = expanded(config)
    if not folder.is_dir():
        raise SettingsError(f"no config {config!r}: expected one of {', '.join(CONFIG_NAMES)}, or a diffusers folder.")
    return folder


def _kind_of(file: Path) -> str:
    try:
        with safetensors.safe_open(file, "pt") as weights:
            names = set(weights.keys())
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"can't read {file} as safetensors: {first_line(error)} Get it again.") from error
    kinds = [kind for name, kind in _KINDS.items() if name in names]
    if len(kinds) != 1 or not any(name.startswith("model.diffusion_model.") for name in names):
        expected = "UNet and text encoders under their first releases' names"
        raise ModelError(f"{file} is not a checkpoint of Stable Diffusion 1.x, 2.x or XL: expected {expected}.")
    return kinds[0]


def load_single_file(file: Path, folder: Path, kind: Any, parts: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """Load the `parts` of a checkpoint for diffusers' pipeline class `kind`, by the configurations in `folder`.

    Raises:
        ModelError: weights are missing.
        Exception: of nearly any kind, from the libraries: the weights do not fit the configurations.
    """
    options = {"config": str(folder), "local_files_only": True, "dtype": dtype}
    components = {
        "unet": diffusers.UNet2DConditionModel.from_single_file(str(file), subfolder="unet", **options),
        "vae": diffusers.AutoencoderKL.from_single_file(str(file), subfolder="vae", **options),
        "tokenizer": _tokenizer(folder, "tokenizer"),
    }
    if "tokenizer_2" in parts:
        components["tokenizer_2"] = _tokenizer(folder, "tokenizer_2", pad_token="!")
    pipeline = kind.from_single_file(str(file), **options, **components)
    loaded = {part: getattr(pipeline, part) for part in parts}
    for model in loaded.values():
        weights = model.named_parameters() if isinstance(model, torch.nn.Module) else ()
        if missing := [name for name, weight in weights if weight.is_meta]:  # diffusers goes on without them
            raise ModelError(f"{file} lacks weights that {folder.name} has ({len(missing)}, {missing[0]} first).")
    return loaded


def _tokenizer(folder: Path, part: str, **options: str) -> CLIPTokenizer:
    if not (folder / part).is_dir():
        return clip_tokenizer(**options)
    return CLIPTokenizer.from_pretrained(folder, subfolder=part, local_files_only=True)  # type: ignore[no-any-return]


def clip_tokenizer(*, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Return CLIP's tokenizer; Stable Diffusion XL's second text encoder pads with `!`.

    OpenAI's vocabulary (MIT licence): 256 bytes, the same at a word's end, merges in order of rank, two special tokens.
    """
    merges: Any = [tuple(line.split(" ")) for line in (CONFIGS / "merges.txt").read_text("utf-8").splitlines()[1:]]
    # The letter that stands for each byte, in CLIP's order: those that print, then the others from 256 on.
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in (*printing, *range(256, 256 + 256 - len(printing)))]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=77)
