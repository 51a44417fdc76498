"""Counts what a card must hold to draw and to learn on joint transformers of real size: no weights, no GPU.

The transformers are made without numbers by the released models' settings, and called once at real shape with every
tensor's size added up while it lives, attention as a fused kernel has it: keys, values and what comes out, no scores.
What no run has shown: all of it is computed, and nothing was measured.
"""

import argparse
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import handle_torch_function, has_torch_function
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from cones2.attention import edited_attention
from cones2.denoisers import FlowCall, flux_velocity, sd3_velocity, z_image_velocity
from cones2.families import FAMILIES
from cones2.guidance import Spans
from cones2.run import LayoutSettings, Run
from drawing_pairs import LAYOUT
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
        family: its name.
        rows: of one call under its usual guidance.
        text: (tokens, width) of what the transformer reads, and of its summary.
        channels: of latents as `FlowCall` has them.
    """

    family: str
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


def _sd3(layers: int, heads: int, positions: int, dual: int, norm: str | None = "rms_norm") -> Any:
    return SD3Transformer2DModel(
        num_layers=layers,
        num_attention_heads=heads,
        caption_projection_dim=64 * heads,
        pos_embed_max_size=positions,
        dual_attention_layers=tuple(range(dual)),
        qk_norm=norm,
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
_FLUX_TEXT = lambda: _clip(768, 12), _t5


def _sd3_model(*shape: Any) -> Model:
    text: Any = _SD3_TEXT, _autoencoder, sd3_velocity, 2, (77 + 256, 4096), 2048
    return Model("Stable Diffusion 3", lambda: _sd3(*shape), *text)


def _flux_model(*, guidance_embeds: bool) -> Model:
    make = functools.partial(FluxTransformer2DModel, guidance_embeds=guidance_embeds)
    tokens = 512 if guidance_embeds else 256
    return Model("FLUX.1", make, _FLUX_TEXT, _autoencoder, flux_velocity, 1, (tokens, 4096), 768)


MODELS = {
    "Stable Diffusion 3 medium": _sd3_model(24, 24, 192, 0, None),
    "Stable Diffusion 3.5 medium": _sd3_model(24, 24, 384, 13),
    "Stable Diffusion 3.5 large, and Turbo": _sd3_model(38, 38, 192, 0),
    "FLUX.1 dev": _flux_model(guidance_embeds=True),
    "FLUX.1 schnell": _flux_model(guidance_embeds=False),
    "Z-Image, and Turbo": Model(
        "Z-Image", ZImageTransformer2DModel, (_qwen,), _autoencoder, z_image_velocity, 2, (64, 2560)
    ),
    "FLUX.2 klein 4B, and base": Model(
        "FLUX.2 klein", _klein, (_qwen,), AutoencoderKLFlux2, flux_velocity, 1, (512, 7680), channels=32
    ),
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


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Let attention keep no scores, as a fused kernel does, where there are no numbers to compute it with."""
    before = F.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> Any:
        if has_torch_function((query, key, value)):  # a function mode, such as a layout's, is asked first
            return handle_torch_function(fused, (query, key, value), query, key, value, **options)
        return _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]

    F.scaled_dot_product_attention = fused  # a function mode would not be asked when activations are made again
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


@contextlib.contextmanager
def _by_default(device: str, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def made(make: Callable[[], Any], device: str = "meta", dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a part with random weights; on the device `meta` without numbers."""
    with _by_default(device, dtype):
        part = make()
    return torch.nn.Module.to(part, dtype).eval().requires_grad_(False)


def weights(part: Any, bits: float) -> float:
    """Return the GB of a part's weights and tables, linear layers' at so many bits a number.

    Where these are not bfloat16, the largest is made so while it is at work.
    """
    linear = {id(each.weight): each.weight.numel() for each in part.modules() if type(each) is torch.nn.Linear}
    kept = [*part.parameters(), *part.buffers()]
    total = sum(each.numel() * (bits if id(each) in linear else 16) / 8 for each in kept)
    return float(total + (2 * max(linear.values()) if bits < 16 else 0)) / GB


def call_of(model: Model, rows: int, side: int, text: Tensor) -> FlowCall:
    """Return a call at real shape, on the text's device."""
    options: Any = {"device": text.device, "dtype": text.dtype}
    latents = torch.randn(rows, model.channels, side // 8, side // 8, **options)
    pooled = None if model.pooled is None else torch.randn(1, model.pooled, **options)
    return FlowCall(latents, torch.full((rows,), 0.5, device=text.device), text, pooled, 3.5)


class PlacedRun(Run):
    """A run that knows which rows are the prompt's: rows without numbers can't be compared."""

    def _conditional_rows(self, text: Any) -> slice:
        return slice(0, max(1, len(text) // 2))


def _with_real_places(read: Any) -> Any:
    """Let a reader of FLUX's calls see the image's numbers, which have none on the device `meta`."""

    def reading(transformer: Any, steps: int, args: Any, kwargs: dict[str, Any]) -> Any:
        if "img_ids" in kwargs and kwargs["img_ids"].is_meta:
            side = math.isqrt(len(kwargs["img_ids"]))
            places = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(side), torch.arange(side))
            kwargs = {**kwargs, "img_ids": places}
        return read(transformer, steps, args, kwargs)

    return reading


def placed(model: Model, transformer: Any, text: Tensor) -> contextlib.AbstractContextManager[None]:
    """Return a block in which calls of a transformer have a layout of two subjects."""
    family = next(each for each in FAMILIES if each.name == model.family)
    family = dataclasses.replace(family, read_call=_with_real_places(family.read_call))
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(1000)
    owner = SimpleNamespace(transformer=transformer, scheduler=scheduler)
    spans: Spans = {"rex": ((2, 3),), "tom": ((5, 6),)}
    given: dict[str, Any] = {"prompt_embeds": text}
    return edited_attention(
        transformer, family, PlacedRun(owner, family, given, LAYOUT, spans, LayoutSettings(), None, False)
    )


class _LiveOnDevice(LiveBytes):
    """Leaves out what the host holds."""

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage.device.type == "meta":
            super()._count(storage)


def drawing(model: Model, transformer: Any, side: int) -> tuple[float, float]:
    """Return the GB of activations of a call, as it is, and with a layout: its mask, and what scores it asks for."""
    text = torch.zeros(1, *model.text, device="meta", dtype=torch.bfloat16)
    call = call_of(model, model.rows, side, text)
    known = [*transformer.parameters(), *transformer.buffers(), text, call.latents]
    most = []
    for block in (contextlib.nullcontext(), placed(model, transformer, text)):
        with torch.no_grad(), block, _LiveOnDevice(known) as live, fused_attention():
            model.velocity(transformer, call)
        most.append(float(live.most / GB))
    return most[0], most[1]


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


def sizes(model: Model, transformer: Any) -> tuple[float, ...]:
    """Return billions of numbers of the transformer, all text encoders and the autoencoder, and GB of all in 16 bits.

    Beside parameters, files hold tables, such as Stable Diffusion 3's of positions.
    """
    parts = [[transformer], [made(each) for each in model.encoders], [made(model.autoencoder)]]
    numbers = [sum(each.numel() for part in parts_of for each in _saved(part)) / GB for parts_of in parts]
    return (*numbers, 2 * sum(numbers))


def _saved(part: Any) -> list[Tensor]:
    return list({id(each): each for each in part.state_dict(keep_vars=True).values()}.values())  # tied ones once


def main() -> None:
    """Print three tables: what a model's folder holds, the sums, and what fits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="of the picture, in pixels")
    side = parser.parse_args().side
    columns = "largest text encoder", "call", "with a layout", "decoding", "step at 512", f"step at {side}"
    holds = "transformer", "text encoders", "autoencoder", "GB in 16 bits"
    folders = [f"| billions of numbers | {' | '.join(holds)} |\n|{' --- |' * 5}"]
    sums = [f"| {side} px, GB | {' | '.join(columns)} |\n|{' --- |' * 7}"]
    fitting = []
    for name, model in MODELS.items():
        transformer = made(model.transformer)
        texts = max(weights(made(each), 16) for each in model.encoders)
        folders.append(f"| {name} | {' | '.join(f'{each:.2f}' for each in sizes(model, transformer))} |")
        call, laid_out = drawing(model, transformer, side)
        decoded = decoding(model, side)
        small, large = (learning(model, transformer, each) for each in (512, side))
        numbers = (texts, call, laid_out, decoded, small, large)
        sums.append(f"| {name} | {' | '.join(f'{each:.2f}' for each in numbers)} |")
        for kind, bits in BITS.items():
            own = weights(transformer, bits)
            needs = own, own + laid_out, own + small, own + large
            fitting.append(f"| {name} | {kind} | {' | '.join(f'{need:.1f}{cards(need)}' for need in needs)} |")
    fits = "weights", "alone", "drawing", "step at 512", f"step at {side}"
    heads = f"| GB, and the cards of {CARDS} GB that hold it | {' | '.join(fits)} |\n|{' --- |' * 6}"
    print("\n".join([*folders, "", *sums, "", heads, *fitting]))


def cards(need: float) -> str:
    """Say which cards hold so many GB."""
    held = [str(card) for card in CARDS if need + BESIDE <= card * 2**30 / GB]
    return f" ({', '.join(held) or 'none'})"


if __name__ == "__main__":
    main()
