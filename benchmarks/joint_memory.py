"""Counts what a card must hold to draw and to learn on joint transformers of real size: no weights, no GPU.

The transformers are made without numbers by the released models' settings, and called once at real shape with every
tensor's size added up while it lives, attention as a fused kernel has it: keys, values and what comes out, no scores.
What no run has shown: all of it is computed, and nothing was measured.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from cones2.denoisers import FlowCall, flux_velocity, sd3_velocity, z_image_velocity
from memory import LiveBytes

GB = 10**9
CARDS = (12, 16, 24)
BESIDE = 1.0
"""GB that the system, PyTorch and gaps between tensors take."""
BITS = {"bfloat16": 16.0, "8 bits": 8.0, "NF4": 4.127}
"""Of a number in a linear layer's weights, of NF4 with its scales, which have 8 bits; all others are bfloat16."""


@dataclass(frozen=True)
class Model:
    """A released model's settings.

    Attributes:
        rows: of one call under its usual guidance.
        text: (tokens, width) of what the transformer reads, and of its summary.
        channels: of latents as `FlowCall` has them.
    """

    transformer: Callable[[], Any]
    encoders: tuple[Callable[[], Any], ...]
    autoencoder: Callable[[], Any]
    velocity: Callable[[Any, FlowCall], Tensor]
    rows: int
    text: tuple[int, int]
    pooled: int | None = None
    channels: int = 16


def _clip(width: int, layers: int, kind: Any = CLIPTextModel) -> Any:
    shape: Any = {"intermediate_size": 4 * width, "num_attention_heads": width // 64, "projection_dim": width}
    return kind(CLIPTextConfig(hidden_size=width, num_hidden_layers=layers, **shape))


def _t5() -> Any:
    shape: Any = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    return T5EncoderModel(T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **shape))


def _qwen() -> Any:
    heads: Any = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    shape: Any = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
    return Qwen3Model(Qwen3Config(vocab_size=151936, **heads, **shape))


def _autoencoder() -> Any:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, **kinds)


def _sd3(layers: int, heads: int, positions: int, dual: int) -> Any:
    return SD3Transformer2DModel(
        num_layers=layers,
        num_attention_heads=heads,
        caption_projection_dim=64 * heads,
        pos_embed_max_size=positions,
        dual_attention_layers=tuple(range(dual)),
        qk_norm="rms_norm",
    )


def _klein() -> Any:
    return Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )


_SD3_TEXT = (
    lambda: _clip(768, 12, CLIPTextModelWithProjection),
    lambda: _clip(1280, 32, CLIPTextModelWithProjection),
    _t5,
)
MODELS = {
    "Stable Diffusion 3.5 medium": Model(
        lambda: _sd3(24, 24, 384, 13), _SD3_TEXT, _autoencoder, sd3_velocity, 2, (77 + 256, 4096), 2048
    ),
    "Stable Diffusion 3.5 large": Model(
        lambda: _sd3(38, 38, 192, 0), _SD3_TEXT, _autoencoder, sd3_velocity, 2, (77 + 256, 4096), 2048
    ),
    "FLUX.1 dev": Model(
        lambda: FluxTransformer2DModel(guidance_embeds=True),
        (lambda: _clip(768, 12), _t5),
        _autoencoder,
        flux_velocity,
        1,
        (512, 4096),
        768,
    ),
    "Z-Image": Model(ZImageTransformer2DModel, (_qwen,), _autoencoder, z_image_velocity, 2, (64, 2560)),
    "FLUX.2 klein base 4B": Model(_klein, (_qwen,), AutoencoderKLFlux2, flux_velocity, 1, (512, 7680), channels=32),
}


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        attended = torch.empty_like(query)
        context.save_for_backward(query, key, value, attended)
        return attended

    @staticmethod
    def backward(context: Any, *_: Tensor) -> Any:
        query, key, value, _attended = context.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let attention keep no scores, as a fused kernel does, where there are no numbers to compute it with."""
    before = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
        return _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]

    F.scaled_dot_product_attention = fused  # a function mode would not be asked when activations are made again
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


@contextmanager
def _without_numbers() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(before)


def made(make: Callable[[], Any]) -> Any:
    """Return a part in bfloat16, without numbers."""
    with _without_numbers():
        part = make()
    return torch.nn.Module.to(part, torch.bfloat16).eval().requires_grad_(False)


def weights(part: Any, bits: float) -> float:
    """Return the GB of a part's weights and tables, linear layers' at so many bits a number.

    Where these are not bfloat16, the largest is made so while it is at work.
    """
    linear = {id(each.weight): each.weight.numel() for each in part.modules() if type(each) is torch.nn.Linear}
    kept = [*part.parameters(), *part.buffers()]
    total = sum(each.numel() * (bits if id(each) in linear else 16) / 8 for each in kept)
    return float(total + (2 * max(linear.values()) if bits < 16 else 0)) / GB


def call_of(model: Model, rows: int, side: int, text: Tensor) -> FlowCall:
    """Return a call at real shape."""
    options: Any = {"device": "meta", "dtype": torch.bfloat16}
    channels, cells = (model.channels, side // 8)
    latents = torch.zeros(rows, channels, cells, cells, **options)
    pooled = None if model.pooled is None else torch.zeros(1, model.pooled, **options)
    return FlowCall(latents, torch.zeros(rows, device="meta"), text, pooled, 3.5)


def drawing(model: Model, transformer: Any, side: int) -> tuple[float, float]:
    """Return the GB of activations of a call, and of the layout's mask, which is made once."""
    text = torch.zeros(1, *model.text, device="meta", dtype=torch.bfloat16)
    call = call_of(model, model.rows, side, text)
    known = [*transformer.parameters(), *transformer.buffers(), text, call.latents]
    with torch.no_grad(), LiveBytes(known) as live, fused_attention():
        model.velocity(transformer, call)
    length = (side // 16) ** 2 + model.text[0]
    return float(live.most / GB), 2 * model.rows * length**2 / GB


def decoding(model: Model, side: int) -> float:
    """Return the GB of the autoencoder and of what it makes while it decodes one picture."""
    part = made(model.autoencoder)
    latents = torch.zeros(1, model.channels, side // 8, side // 8, device="meta", dtype=torch.bfloat16)
    with torch.no_grad(), LiveBytes([*part.parameters(), latents]) as live, fused_attention():
        part.decode(latents)
    return float(live.most / GB) + weights(part, 16)


def learning(model: Model, transformer: Any, side: int) -> float:
    """Return the GB of a step with `save_memory` at batch 1 beside the weights: what is learned is a few KB."""
    text = torch.zeros(1, *model.text, device="meta", dtype=torch.bfloat16, requires_grad=True)
    call = call_of(model, 1, side, text)
    transformer.enable_gradient_checkpointing()
    known = [*transformer.parameters(), *transformer.buffers(), text, call.latents]
    with LiveBytes(known) as live, fused_attention():
        model.velocity(transformer.train(), call).float().square().mean().backward()
    transformer.disable_gradient_checkpointing()
    return float(live.most / GB)


def main() -> None:
    """Print two tables: the sums, and what fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="of the picture, in pixels")
    side = parser.parse_args().side
    columns = "parameters", "largest text encoder", "call", "mask", "decoding", "step at 512", f"step at {side}"
    print(f"| {side} px, GB | {' | '.join(columns)} |\n|{' --- |' * 8}")
    fitting = []
    for name, model in MODELS.items():
        transformer = made(model.transformer)
        texts = max(weights(made(each), 16) for each in model.encoders)
        call, mask = drawing(model, transformer, side)
        decoded = decoding(model, side)
        small, large = (learning(model, transformer, each) for each in (512, side))
        count = sum(each.numel() for each in transformer.parameters()) / GB
        numbers = (texts, call, mask, decoded, small, large)
        print(f"| {name} | {count:.2f} billion | {' | '.join(f'{each:.2f}' for each in numbers)} |")
        for kind, bits in BITS.items():
            own = weights(transformer, bits)
            needs = own, own + call + 2 * mask, own + small, own + large
            fitting.append(f"| {name} | {kind} | {' | '.join(f'{need:.1f}{cards(need)}' for need in needs)} |")
    fits = "weights", "alone", "drawing", "step at 512", f"step at {side}"
    print(f"\n| GB, and the cards of {CARDS} GB that hold it | {' | '.join(fits)} |\n|{' --- |' * 6}")
    print("\n".join(fitting))


def cards(need: float) -> str:
    """Say which cards hold so many GB."""
    held = [str(card) for card in CARDS if need + BESIDE <= card * 2**30 / GB]
    return f" ({', '.join(held) or 'none'})"


if __name__ == "__main__":
    main()
