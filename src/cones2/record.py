"""How a picture was made, as JSON values: the call, and the scheduler, adapters, encoders and machine behind it.

`cones2.png` puts a record into a picture, `cones2.redraw` reads it back and draws the picture again.
"""

import base64
import hashlib
import importlib.metadata
import inspect
import json
import math
import weakref
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cones2.denoisers import unwrapped
from cones2.errors import ModelError
from cones2.families import family_of, native_size
from cones2.fingerprint import fingerprint, weights_state
from cones2.layout import Layout
from cones2.models import ModelFacts
from cones2.prompts import parse_prompt
from cones2.run import LayoutSettings
from cones2.subjects import Subject

LibraryName = Literal["cones2", "diffusers", "torch", "transformers"]
"""Those that move the last bits of a picture."""

MOST_PIXELS = 2**24
"""Pixels of a batch that can be drawn again: 16 pictures of 1024 x 1024."""

_SIDES = ("height", "width")
_LARGEST_OPTION = 2**16  # characters of JSON
_HASHES: "weakref.WeakKeyDictionary[torch.nn.Module, tuple[object, list[str | None]]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawCall:
    """A call of `Cones2Pipeline`, as far as it makes the pictures.

    Attributes:
        seeds: of each picture; None where generators were given that are not fresh ones of seeds.
        options: every other argument of the call.
    """

    prompt: str
    subjects: Mapping[str, Subject]
    layout: Layout | None
    seeds: tuple[int, ...] | None
    num_images: int
    num_inference_steps: int
    guidance_scale: float | None
    negative_prompt: str
    layout_settings: LayoutSettings
    force: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def describe(pipeline: Any, facts: ModelFacts, call: DrawCall) -> tuple[dict[str, Any], ...]:
    """Return for each picture that `pipeline` drew how it was made: all that is needed to draw it again."""
    residuals = {each.residual.sha256: each.residual for each in call.subjects.values() if each.residual is not None}
    reason, acting = _not_repeatable(pipeline, call), asdict(call.layout_settings)
    seeds = None if reason else call.seeds
    record = {
        "prompt": call.prompt,
        "text": parse_prompt(call.prompt, {name: each.class_word for name, each in call.subjects.items()}).text,
        "subjects": {name: _describe_subject(subject) for name, subject in call.subjects.items()},
        "layout": None if call.layout is None else json.loads(call.layout.to_json()),
        "seeds": None if seeds is None else list(seeds),
        "not_repeatable": reason,
        "num_images": call.num_images,
        "num_inference_steps": call.num_inference_steps,
        "guidance_scale": call.guidance_scale,
        "negative_prompt": call.negative_prompt,
        "layout_settings": {name: list(value) if isinstance(value, tuple) else value for name, value in acting.items()},
        "force": call.force,
        **describe_options(call.options),
        "scheduler": describe_scheduler(pipeline.scheduler),
        "pipeline": type(pipeline).__name__,
        "model": {"name": facts.name, "encoders": describe_encoders(pipeline)},
        "adapters": describe_adapters(pipeline),
        **describe_surroundings(pipeline),
        "residuals": {key: base64.b64encode(each.to_bytes()).decode() for key, each in residuals.items()},
    }
    pictures = enumerate(seeds or (None,) * call.num_images)
    return tuple({**record, "seed": seed, "index": index} for index, seed in pictures)


def _describe_subject(subject: Subject) -> dict[str, Any]:
    residual = None if subject.residual is None else subject.residual.sha256
    return {**vars(subject), "residual": residual, "during": list(subject.during)}


def _not_repeatable(pipeline: Any, call: DrawCall) -> str:
    """Return why the pictures can't be drawn again; empty where they can."""
    sides = [call.options.get(name) or side for name, side in zip(_SIDES, native_size(pipeline), strict=True)]
    if math.prod((call.num_images, *sides)) > MOST_PIXELS:
        return f"it is one of more than {MOST_PIXELS:,} pixels that were drawn at once; draw fewer"
    if getattr(pipeline.scheduler, "noise_sampler_seed", 0) is None:
        return f"{type(pipeline.scheduler).__name__} ignores generators; give seeds to it"
    if call.seeds is None or len(call.seeds) != call.num_images:
        return "a record holds generators only where each picture has a fresh one on the CPU; give seeds"
    return ""


def content_hash(value: Any) -> str | None:
    """Return a sha256 of an image, an array, a tensor or a list of them, whatever its file; None for all else."""
    if isinstance(value, list | tuple):
        hashes = [content_hash(item) for item in value]
        if not hashes or None in hashes:
            return None
        return hashlib.sha256(f"list {' '.join(map(str, hashes))}".encode()).hexdigest()
    if isinstance(value, Image.Image):
        image = value.convert("RGBA") if value.mode in ("P", "PA") else value
        kind, content = f"image {image.mode} {image.size}", image.tobytes()
    elif isinstance(value, np.ndarray) and value.dtype != object:
        kind, content = f"array {value.dtype} {value.shape}", value.tobytes()
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        kind, content = f"tensor {value.dtype} {tuple(value.shape)}", flat.numpy().tobytes()
    else:
        return None
    return hashlib.sha256(kind.encode() + b"\0" + content).hexdigest()


def describe_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Sort arguments into `options`, which are JSON values, `inputs`, of which there are hashes, and `unrecorded`."""
    found: dict[str, Any] = {"options": {}, "inputs": {}, "unrecorded": []}
    for name, value in options.items():
        if (hashed := content_hash(value)) is not None:
            found["inputs"][name] = hashed
            continue
        try:
            plain = _to_plain(value)
            is_small = len(json.dumps(plain)) <= _LARGEST_OPTION
        except (TypeError, RecursionError):
            is_small = False
        if is_small:
            found["options"][name] = plain
        else:
            found["unrecorded"].append(name)
    return found


def _to_plain(value: Any) -> Any:
    """Return a JSON value, with `{"tuple": [...]}` for a tuple; TypeError where there is none."""
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        items = [_to_plain(item) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _to_plain(item) for key, item in value.items()}
    raise TypeError(f"a {type(value).__name__} is not JSON value")


def restored(value: Any) -> Any:
    """Return an option as it was before `describe_options`: tuples are tuples again."""
    if isinstance(value, dict):
        if list(value) == ["tuple"] and isinstance(value["tuple"], list):
            return tuple(map(restored, value["tuple"]))
        return {key: restored(item) for key, item in value.items()}
    return [restored(item) for item in value] if isinstance(value, list) else value


def describe_scheduler(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's class and settings; settings that are no JSON values are left out."""
    taken = inspect.signature(type(scheduler)).parameters  # the config also keeps what was made for other classes
    settings = {name: value for name, value in scheduler.config.items() if name in taken}
    return {"class_name": type(scheduler).__name__, "config": describe_options(settings)["options"]}


def describe_adapters(pipeline: Any) -> dict[str, Any]:
    """Return by name the hash of every active LoRA's weights, and its scales in each component."""
    digests: dict[str, Any] = {}
    scales: dict[str, dict[str, set[float]]] = {}
    modules = {role: each for role, each in sorted(pipeline.components.items()) if isinstance(each, torch.nn.Module)}
    for role, module in modules.items():
        weights: dict[tuple[str, str], Tensor] = {}
        for path, layer in unwrapped(module).named_modules():
            if getattr(layer, "_disable_adapters", True) or not hasattr(layer, "scaling"):  # these are peft's names
                continue
            for name in set(layer.active_adapters) & set(layer.scaling):
                scale = layer.scaling[name] * layer.r[name] / layer.lora_alpha[name]
                scales.setdefault(name, {}).setdefault(role, set()).add(float(f"{scale:.6g}"))
                own = {key: value for key, value in layer.state_dict().items() if name in key.split(".")}
                weights |= {(name, f"{path}.{key}"): own[key] for key in sorted(own)}
        for (name, key), hashed in zip(weights, _hashes(module, weights), strict=True):
            digests.setdefault(name, hashlib.sha256()).update(f"{role}.{key} {hashed}\n".encode())
    return {
        name: {"sha256": digest.hexdigest(), "scales": {role: sorted(found) for role, found in scales[name].items()}}
        for name, digest in digests.items()
    }


def _hashes(module: torch.nn.Module, weights: Mapping[tuple[str, str], Tensor]) -> list[str | None]:
    """Return the hashes of adapters' weights in a module; they are remembered until one of the weights changes."""
    state = (tuple(weights), weights_state(weights.values()))
    known, hashes = _HASHES.get(module, (None, []))
    if None in state or known != state:
        hashes = [content_hash(weight) for weight in weights.values()]
        _HASHES[module] = state, hashes
    return hashes


def describe_encoders(pipeline: Any) -> list[dict[str, Any]]:
    """Return role, width and probe of each text encoder that reads subjects; one that gives NaN is left out."""
    described = []
    for part in family_of(pipeline).text_parts:
        role, encoder = part.encoder, getattr(pipeline, part.encoder)
        try:
            probed = fingerprint(encoder, role, "the model", layers=part.layers, hash_weights=False)
        except ModelError:
            continue
        finally:
            pipeline.maybe_free_model_hooks()
        described.append({"role": role, "width": probed.width, "probe": list(probed.probe)})
    return described


def describe_surroundings(pipeline: Any) -> dict[str, Any]:
    """Return what moves the last bits of a picture: device, dtype, PyTorch's threads, and versions."""
    return {
        "device": str(pipeline._execution_device),
        "dtype": str(getattr(pipeline, family_of(pipeline).denoiser).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in get_args(LibraryName)},
    }
