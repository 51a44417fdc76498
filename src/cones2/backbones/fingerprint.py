"""What tells one text encoder from another, whatever its dtype, key names or file."""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from cones2.residual.residual import EncoderId

_PROBE_TOKENS = 8
_PROBE_NUMBERS = 16


TextEncoder = CLIPTextModel | CLIPTextModelWithProjection


def fingerprint(text_encoders: Sequence[TextEncoder], name: str, *, hash_weights: bool = True) -> EncoderId:
    """Identify one text encoder, or two, which the user knows as part of the model `name`.

    Weights are hashed unless told not to. A LoRA that is loaded, and not fused, is no part of them.
    """
    first, *others = text_encoders
    return EncoderId(
        name=name,
        width=first.config.hidden_size,
        weights=_hash_weights(first) if hash_weights else "not read",
        probe=tuple(float(f"{number:.4g}") for number in _probe(first).tolist()),
        second=fingerprint(others, name, hash_weights=hash_weights) if others else None,
    )


def _hash_weights(text_encoder: TextEncoder) -> str:
    """Give the sha256 of all weights as float32, by canonical name."""
    digest = hashlib.sha256()
    weights = {_canonical(key): weight for key, weight in text_encoder.state_dict().items()}
    for key in sorted(weights):
        if key.endswith("position_ids") or ".lora_" in key:  # the former is a counter that some releases save
            continue
        weight = weights[key].to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {tuple(weight.shape)}\n".encode())
        digest.update(weight.numpy().data)
    return digest.hexdigest()


def _canonical(key: str) -> str:
    return key.removeprefix("text_model.").replace(".base_layer.", ".")  # where peft keeps what it wraps


@torch.no_grad()
def _probe(text_encoder: TextEncoder) -> Float[Tensor, "numbers"]:
    """Give a few numbers of the last state over fixed token ids: enough to know the encoder again in another dtype."""
    last_id = text_encoder.config.vocab_size - 1
    input_ids = torch.linspace(0, last_id, _PROBE_TOKENS).long()[None].to(text_encoder.device)
    state: Tensor = text_encoder(input_ids).last_hidden_state[0, -1].float().cpu()
    channels = torch.linspace(0, len(state) - 1, _PROBE_NUMBERS).long()
    return state[channels]
