"""What the files of a model's folder may be and say: a stranger's are checked before a library reads any of them."""

import itertools
import re
import reprlib
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cones2.components import NO_RANGES, Ranges
from cones2.errors import ModelError
from cones2.files import read_bounded, read_json_object

_LARGEST_CONFIG = 2**20
_LARGEST_INDEX = 2**23  # of shards; it names every weight
_LARGEST_OTHER = 2**25  # vocabularies
_LONGEST_LIST = 16  # blocks of a model

_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
_READ = (".jinja", ".json", ".model", ".txt")  # beside the weights, what libraries read
_CONFIGS = ("config.json", "scheduler_config.json", "tokenizer_config.json", "special_tokens_map.json")
_LIBRARIES = (None, "diffusers", "transformers")

# What makes libraries fetch or run more than the folder's own weights, but for these harmless values.
_HARMLESS: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"), ("sdpa", "eager")
    ),
    **dict.fromkeys(("experts_implementation", "_experts_implementation", "_experts_implementation_internal"), ()),
    **dict.fromkeys(("quantization_config", "transformers_weights", "gguf_file", "trust_remote_code"), ()),
    **dict.fromkeys(("use_kernels", "kernel_config", "adapter_kwargs", "_adapter_model_path"), ()),
}
_FILE_NAMES = ("vocab_file", "merges_file", "tokenizer_file", "fast_tokenizer_files")

# Settings that weights do not prove: least and most, of whole numbers where these are whole.
_RANGES: Ranges = {
    "unet.sample_size": (1, 512),
    "sample_size": (1, 8192),
    "num_train_timesteps": (1, 10_000),
    "original_inference_steps": (1, 10_000),
    "steps_offset": (0, 1000),
    **dict.fromkeys(("layers_per_block", "num_attention_blocks"), (1, 8)),
    **dict.fromkeys(("transformer_layers_per_block", "reverse_transformer_layers_per_block"), (0, 32)),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers"), (1, 128)),
    **dict.fromkeys(("num_single_layers",), (0, 128)),
    **dict.fromkeys(("num_attention_heads", "attention_head_dim", "num_heads", "norm_num_groups"), (1, 1024)),
    **dict.fromkeys(("block_out_channels", "axes_dims_rope", "addition_time_embed_dim"), (1, 16_384)),
    **dict.fromkeys(("hidden_size", "intermediate_size", "d_model", "d_ff", "d_kv", "projection_dim"), (1, 100_000)),
    **dict.fromkeys(("max_position_embeddings", "relative_attention_max_distance"), (1, 8192)),
    "relative_attention_num_buckets": (1, 1024),
    "vocab_size": (1, 1_000_000),
    "extra_ids": (0, 1000),
    "model_max_length": (8.0, 1e31),  # old tokenizers say 1e30, for no limit
    **dict.fromkeys(("scaling_factor", "latents_std"), (1e-4, 1e4)),
    **dict.fromkeys(("resnet_out_scale_factor", "mid_block_scale_factor"), (1e-3, 1e3)),
    **dict.fromkeys(("norm_eps", "layer_norm_eps", "layer_norm_epsilon"), (1e-12, 0.1)),
    **dict.fromkeys(("beta_start", "beta_end"), (1e-8, 0.999)),
    "shift": (1e-3, 1e3),
}
_LARGEST_NUMBER = 1e7
_ENCODER_RANGES: Ranges = {**_RANGES, "image_size": (1, 4096), "patch_size": (1, 256)}


def check_folder(
    folder: Path, index: Mapping[str, Any], parts: Iterable[str], *, weights: bool, ranges: Ranges = NO_RANGES
) -> None:
    """Check all files of a folder that opening it could read.

    `weights` says whether those are there, too; else a single file has them. `ranges` are the least and most that
    settings may be, beside those of this file or instead of them.

    Raises:
        ModelError: a file is not a regular file, too large, or says what opening or drawing with the model can't bear.
    """
    for part in parts:
        if not weights and index[part][0] not in _LIBRARIES:
            got = reprlib.repr(index[part][0])
            raise ModelError(f"{folder} takes its {part} from {got}: expected diffusers or transformers. Correct it.")
        if (folder / part).is_dir():
            _check_files(folder, part, {**_RANGES, **ranges})


def check_encoder(folder: Path) -> None:
    """Check the files of a folder that holds one encoder of pictures, as those of a model are.

    Raises:
        ModelError: as `check_folder`; or the folder is missing.
    """
    if not folder.is_dir():
        raise ModelError(f"no folder at {folder}: expected one that holds an encoder. Check the path.")
    _check_files(folder, "", _ENCODER_RANGES)


def _check_files(folder: Path, part: str, ranges: Ranges) -> None:
    templates = (folder / part).glob("additional_chat_templates/*")
    for path in sorted(path for path in (*(folder / part).iterdir(), *templates) if not path.is_dir()):
        if path.name == "adapter_config.json":
            raise ModelError(f"{path} would add an adapter: remove it, and load the adapter on the opened pipeline.")
        if path.suffix == ".safetensors":
            if not stat.S_ISREG(path.stat().st_mode):
                raise ModelError(f"can't read {path}: it is a pipe or device, expected a regular file.")
        elif path.name in _CONFIGS:
            _check_settings(path, part, ranges)
        elif ".index." in path.name and ".safetensors" in path.name:
            _check_shards(path)
        elif path.suffix in _READ:
            read_bounded(path, limit=_LARGEST_OTHER, error=ModelError)


def _check_shards(path: Path) -> None:
    shards = read_json_object(path, limit=_LARGEST_INDEX, error=ModelError).get("weight_map")
    for name in shards.values() if isinstance(shards, dict) else [shards]:
        if not (isinstance(name, str) and _SHARD.fullmatch(name)):
            got = reprlib.repr(name)
            raise ModelError(f"{path} names the weights {got}: expected .safetensors files beside it. Get them so.")


def _check_settings(path: Path, part: str, ranges: Ranges) -> None:
    for name, value in _settings(read_json_object(path, limit=_LARGEST_CONFIG, error=ModelError)):
        got = f"{path}: {name} is {reprlib.repr(value)}"
        if name in _HARMLESS and value and value not in _HARMLESS[name]:
            raise ModelError(f"{got}, which could fetch or run code: remove it, or get another model.")
        if name in _FILE_NAMES and any(isinstance(each, str) and Path(each).name != each for each in _flat(value)):
            raise ModelError(f"{got}, outside of its folder: expected a file's name. Correct it.")
        if name.endswith("_block_types") and isinstance(value, list) and len(value) > _LONGEST_LIST:
            raise ModelError(f"{got}: expected at most {_LONGEST_LIST} blocks. Get the model again.")
        if (wrong := _out_of_range(name, value, ranges.get(f"{part}.{name}") or ranges.get(name))) is not None:
            raise ModelError(f"{got}, expected {wrong}: get the model again, or correct it.")


def _out_of_range(name: str, value: object, bounds: tuple[int | float, int | float] | None) -> str | None:
    """Return what was expected where a setting's numbers can't be right."""
    values = list(_flat(value))
    if bounds is None:
        numbers = [each for each in values if isinstance(each, int | float)]
        fits = name == "lambda_min_clipped" or all(abs(each) <= _LARGEST_NUMBER for each in numbers)  # NaN never is
        return None if fits else f"at most {_LARGEST_NUMBER:,.0f}"
    least, most = bounds
    kinds = (int,) if isinstance(least, int) else (int, float)  # bool is none of these
    fits = all(type(each) in kinds and least <= each <= most for each in values)  # type: ignore[operator]
    if (fits and 0 < len(values) <= _LONGEST_LIST) or (value is None and (kinds == (int,) or name == "latents_std")):
        return None
    return f"{'whole numbers' if kinds == (int,) else 'numbers'} from {least} to {most}"


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Yield names and values of a configuration and of those within it."""
    left: list[Mapping[str, Any]] = [config]
    while left:
        for name, value in left.pop().items():
            left += [each for each in _flat(value) if isinstance(each, dict)]
            yield name, value


def _flat(value: object) -> Iterator[object]:
    """Yield a value, or those of a list and of the lists in it."""
    return itertools.chain.from_iterable(map(_flat, value)) if isinstance(value, list) else iter([value])
