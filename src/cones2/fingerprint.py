"""What identifies a text encoder, whatever its dtype, the names of its keys or its file."""

import copy
import hashlib
import json
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, Qwen3ForCausalLM, Qwen3Model, T5EncoderModel

from cones2.errors import ModelError
from cones2.families import Family, TextPart
from cones2.prompts import ParsedPrompt, in_chat
from cones2.residual import EncoderId

# Independent of the vocabulary's size, which grows when a textual inversion is loaded.
_PROBE_IDS = (3, 40, 77, 114, 151, 188, 225, 262)
_PROBE_NUMBERS = 16
_SAMPLED = 8  # numbers of each weight that tell whether it changed

TextEncoder = CLIPTextModel | CLIPTextModelWithProjection | T5EncoderModel | Qwen3Model | Qwen3ForCausalLM

_PROBES: "weakref.WeakKeyDictionary[torch.nn.Module, tuple[object, Tensor]]" = weakref.WeakKeyDictionary()


def fingerprints(pipeline: Any, family: Family, name: str, *, hash_weights: bool = True) -> list[EncoderId]:
    """Return the fingerprints of all text encoders of a pipeline that residuals belong to, as `fingerprint` does."""
    return [
        fingerprint(
            getattr(pipeline, part.encoder),
            part.encoder,
            name,
            layers=part.layers,
            reading=_reading(part, getattr(pipeline, part.tokenizer)),
            hash_weights=hash_weights,
        )
        for part in family.text_parts
    ]


def fingerprint(
    text_encoder: TextEncoder,
    role: str,
    name: str,
    *,
    layers: tuple[int, ...] = (),
    reading: str = "",
    hash_weights: bool = True,
) -> EncoderId:
    """Return the fingerprint of a text encoder, less any LoRA that is not fused.

    It is probed once, until its weights change.

    Args:
        text_encoder: in any dtype, on any device.
        role: its name among a pipeline's components.
        name: what the user calls the model.
        layers: which of its hidden states are read, side by side; the last where this is empty.
        reading: what else tells how it is read.
        hash_weights: False saves the time that hashing all weights takes; the probe still identifies it.

    Raises:
        ModelError: it gives NaN or infinity.
    """
    weights = weights_state(text_encoder.parameters())
    state = None if weights is None else (layers, weights)
    known, probe = _PROBES.get(text_encoder, (None, torch.empty(0, dtype=torch.float32, device="cpu")))
    if state is None or known != state:
        probe = _probe(_without_lora(text_encoder), layers)
        _PROBES[text_encoder] = state, probe
    if not torch.isfinite(probe).all():
        raise ModelError(f"the {role} of {name} gives NaN or infinity. Open the model in another dtype.")
    return EncoderId(
        role=role,
        name=name,
        width=text_encoder.config.hidden_size * max(1, len(layers)),
        weights=_hash_weights(text_encoder) if hash_weights else "not read",
        probe=tuple(float(f"{number:.4g}") for number in probe.tolist()),
        reading=reading,
    )


def _reading(part: TextPart, tokenizer: Any) -> str:
    """Return a hash of how a part's encoder is asked: by which template, for which layers, and how it is padded.

    Empty for a plain text that is padded at its right, as every pipeline pads it; its pads are read, as T5's are. Where
    padding is cut off, its side and its token change nothing.
    """
    side, pad = getattr(tokenizer, "padding_side", "right"), tokenizer.pad_token
    if part.thinking is None:
        rules = None if side == "right" else [side]
    else:
        template = in_chat(ParsedPrompt("", ()), tokenizer, thinking=part.thinking).text
        rules = [template, part.layers, part.is_unpadded or [side, pad]]
    return "" if rules is None else hashlib.sha256(json.dumps(rules).encode()).hexdigest()


def weights_state(weights: Iterable[Tensor]) -> tuple[object, ...] | None:
    """Return what differs once a weight has changed, without reading all of it; None where weights are elsewhere.

    PyTorch counts changes, but not those of a weight's `data`, as peft makes them when it merges or swaps adapters;
    so some numbers of each are in it as well. A move to another device, as offloading makes it, is no change.
    """
    found = [weight.detach() for weight in weights]
    if any(weight.is_meta for weight in found):
        return None
    versions = tuple(0 if weight.is_inference() else weight._version for weight in found)
    plain = [weight for weight in found if type(weight) is Tensor and weight.numel()]  # not what quantization makes
    samples = [weight.reshape(-1)[:: max(1, weight.numel() // _SAMPLED)].float().cpu() for weight in plain]
    numbers = tuple(sample.numpy().tobytes() for sample in samples)
    return versions, tuple(weight.dtype for weight in found), numbers


def _hash_weights(text_encoder: TextEncoder) -> str:
    """Return the sha256 of all weights as float32, by canonical name."""
    digest = hashlib.sha256()
    weights = {_canonical(key): weight for key, weight in text_encoder.state_dict().items()}
    if "shared.weight" in weights:
        weights.pop("encoder.embed_tokens.weight", None)  # T5's own second name of it
    weights.pop("lm_head.weight", None)  # what follows the states that are read
    for key in sorted(weights):
        if key.endswith("position_ids") or ".lora_" in key:  # the former is a counter that some releases save
            continue
        weight = weights[key].to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {tuple(weight.shape)}\n".encode())
        digest.update(weight.numpy().data)
    return digest.hexdigest()


def _canonical(key: str) -> str:
    return (
        key.removeprefix("text_model.").removeprefix("model.").replace(".base_layer.", ".")
    )  # where peft keeps what it wraps


@torch.no_grad()
def _probe(text_encoder: TextEncoder, layers: tuple[int, ...]) -> Float[Tensor, "numbers"]:
    """Return a few numbers of the states over fixed token ids: enough to identify the encoder in another dtype."""
    device = "cpu" if text_encoder.device.type == "meta" else text_encoder.device  # offloaded: hooks move the ids
    input_ids = torch.tensor([_PROBE_IDS], dtype=torch.long, device=device) % text_encoder.config.vocab_size
    found = text_encoder(input_ids, output_hidden_states=bool(layers))
    states = [found.hidden_states[layer] for layer in layers] or [found.last_hidden_state]
    state = torch.cat([each[0, -1] for each in states]).float().cpu()
    channels = torch.linspace(0, len(state) - 1, _PROBE_NUMBERS, dtype=torch.float32, device="cpu").long()
    return state[channels]


def _without_lora(text_encoder: TextEncoder) -> TextEncoder:
    """Return the encoder without what peft's layers add; merged layers stay, since that is part of the weights.

    Its weights are the same tensors, and the encoder itself stays as it is: another thread may be using it.
    """
    if not any(_adds_lora(module) for module in text_encoder.modules()):
        return text_encoder
    weights = {id(weight): weight for weight in (*text_encoder.parameters(), *text_encoder.buffers())}
    bare = copy.deepcopy(text_encoder, weights)
    layers: list[Any] = [module for module in bare.modules() if _adds_lora(module)]
    for layer in layers:
        layer._disable_adapters = True
    return bare


def _adds_lora(module: Any) -> bool:
    return getattr(module, "_disable_adapters", None) is False and not module.merged
