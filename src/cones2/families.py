"""What differs between model families, a row of facts each: how text reaches the image, and where subjects stand in it.

A new family is a new row of `FAMILIES`; ARCHITECTURE.md says what else one needs for its folders to open.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.errors import ModelError
from cones2.guidance import level_grids

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
ReadText = Callable[[Sequence[Any], Sequence[Int[Tensor, "batch tokens"]]], Float[Tensor, "batch tokens dim"]]
AddedConditions = Callable[
    [Sequence[Any], Sequence[Int[Tensor, "batch tokens"]], int], dict[str, Float[Tensor, "batch numbers"]]
]


class TextPart(NamedTuple):
    """A text encoder whose output a residual is added to.

    Parts that begin in the same row stand side by side, each in columns of its own.

    Attributes:
        first_row: where its tokens begin in the text that the denoiser reads.
    """

    encoder: str
    tokenizer: str
    first_row: int = 0


class DenoiserCall(NamedTuple):
    """What one call of a denoiser says.

    Attributes:
        text: what the image reads.
        time: of each row: 1 is pure noise, 0 the finished picture.
        grids: (height, width) of the image in each level of the denoiser, the finest first.
    """

    text: Float[Tensor, "rows tokens dim"]
    time: Float[Tensor, "rows"]
    grids: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Family:
    """The facts of a family.

    Attributes:
        name: for messages and records.
        denoiser: the component that is called in each step.
        denoiser_class: the name of its class.
        text_parts: the encoders that residuals belong to; also what tells one family from another.
        attention: `cross`, where image queries read text keys, or `joint`, where text and image are one sequence with
            the text first.
        encoded: the call's arguments that `encode_prompt` returns, in its order; None is not an argument.
        guidance_scale: classifier-free guidance's usual scale; None leaves it to the pipeline.
        read_call: reads the arguments of the denoiser's call; the number of timesteps is `train_steps`.
        joint_layers: counts the layers in which text and image are one sequence.
        read_text: for learning: what the encoders make of tokens, as `encode_prompt` does and with gradients; None
            where nothing can be learned.
        added_conditions: for learning: what the denoiser reads beside it, for square pictures of a side in pixels.
    """

    name: str
    denoiser: str
    denoiser_class: str
    text_parts: tuple[TextPart, ...]
    attention: Literal["cross", "joint"]
    encoded: tuple[str | None, ...]
    guidance_scale: float | None
    read_call: Callable[[Any, int, tuple[Any, ...], Mapping[str, Any]], DenoiserCall]
    joint_layers: Callable[[Any], int] = lambda _: 0
    read_text: ReadText | None = None
    added_conditions: AddedConditions = lambda *_: {}

    def with_text(self, text: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Return the arguments of a denoiser's call with another text."""
        if len(args) > 2:
            return (*args[:2], text, *args[3:]), dict(kwargs)
        return args, {**kwargs, "encoder_hidden_states": text}


def unwrapped(module: Any) -> Any:
    """Return the module that `torch.compile` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def family_of(pipeline: Any) -> Family:
    """Return the family of a diffusers pipeline.

    Raises:
        ModelError: it is of none that is known.
    """
    for family in FAMILIES:
        denoiser = unwrapped(getattr(pipeline, family.denoiser, None))
        if type(denoiser).__name__ != family.denoiser_class:
            continue
        if _encoders_of(pipeline) == {part.encoder for part in family.text_parts} | _POOLED_ONLY.get(
            family.name, set()
        ):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ModelError(
        f"{type(pipeline).__name__} has components that no known family has: expected a diffusers pipeline of one of"
        f" {known}, with its text encoders."
    )


def native_size(pipeline: Any) -> tuple[int, int]:
    """Return height and width, in pixels, of the pictures that a pipeline draws unless it is told otherwise."""
    denoiser = unwrapped(getattr(pipeline, family_of(pipeline).denoiser))
    cells = denoiser.config.get("sample_size") or pipeline.default_sample_size
    height, width = cells if isinstance(cells, list | tuple) else (cells, cells)
    return int(height * pipeline.vae_scale_factor), int(width * pipeline.vae_scale_factor)


def _encoders_of(pipeline: Any) -> set[str]:
    names = ("text_encoder", "text_encoder_2", "text_encoder_3")
    return {name for name in names if getattr(pipeline, name, None) is not None}


_POOLED_ONLY = {"FLUX.1": {"text_encoder"}}
"""Encoders whose text enters as a whole: no token of it is a subject's."""


def _read_unet_call(unet: Any, train_steps: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> DenoiserCall:
    sample = args[0] if args else kwargs["sample"]
    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
    text = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
    levels = len(unwrapped(unet).config["block_out_channels"])
    grids = level_grids(sample.shape[2], sample.shape[3], levels)
    return DenoiserCall(text, _rows_of(timestep, sample) / train_steps, tuple(grids))


def _read_flux_call(_: Any, __: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> DenoiserCall:
    if args:
        raise ModelError("FLUX's transformer was called with positional arguments: call it with names, as diffusers.")
    hidden, ids = kwargs["hidden_states"], kwargs["img_ids"].reshape(-1, 3)
    height, width = (int(ids[:, axis].max()) + 1 for axis in (1, 2))
    if height * width != hidden.shape[1]:
        raise ModelError(
            f"the image has {hidden.shape[1]} tokens for a grid of {height}x{width}: expected one picture, without"
            " reference images."
        )
    text = kwargs["encoder_hidden_states"]
    if len(text) < len(hidden):  # diffusers gives one text for several pictures
        text = text.expand(len(hidden), -1, -1)
    return DenoiserCall(text, _rows_of(kwargs["timestep"], hidden), ((height, width),))


def _read_last_states(
    encoders: Sequence[Any], input_ids: Sequence[Int[Tensor, "batch tokens"]]
) -> Float[Tensor, "batch tokens dim"]:
    states: Tensor = encoders[0](input_ids[0]).last_hidden_state
    return states


def _read_penultimate_states(
    encoders: Sequence[Any], input_ids: Sequence[Int[Tensor, "batch tokens"]]
) -> Float[Tensor, "batch tokens dim"]:
    pairs = zip(encoders, input_ids, strict=True)
    return torch.cat([encoder(ids, output_hidden_states=True).hidden_states[-2] for encoder, ids in pairs], dim=-1)


def _pooled_text_and_sizes(
    encoders: Sequence[Any], input_ids: Sequence[Int[Tensor, "batch tokens"]], side: int
) -> dict[str, Float[Tensor, "batch numbers"]]:
    pooled = encoders[1](input_ids[1]).text_embeds
    sizes = pooled.new_tensor([side, side, 0, 0, side, side])  # original size, upper left corner, target size
    return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}


def _rows_of(timestep: Any, sample: Tensor) -> Float[Tensor, "rows"]:
    times = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1)  # on the host, where it is there: no waiting
    return times.expand(len(sample))


def _flux_layers(transformer: Any) -> int:
    config = unwrapped(transformer).config
    return int(config["num_layers"] + config["num_single_layers"])


_SD = Family(
    name="Stable Diffusion 1.x and 2.x",
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    text_parts=(TextPart("text_encoder", "tokenizer"),),
    attention="cross",
    encoded=("prompt_embeds", "negative_prompt_embeds"),
    guidance_scale=7.5,
    read_call=_read_unet_call,
    read_text=_read_last_states,
)

_SDXL = Family(
    name="Stable Diffusion XL",
    denoiser="unet",
    denoiser_class="UNet2DConditionModel",
    text_parts=(TextPart("text_encoder", "tokenizer"), TextPart("text_encoder_2", "tokenizer_2")),
    attention="cross",
    encoded=("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    guidance_scale=7.5,
    read_call=_read_unet_call,
    read_text=_read_penultimate_states,
    added_conditions=_pooled_text_and_sizes,
)

_FLUX = Family(
    name="FLUX.1",
    denoiser="transformer",
    denoiser_class="FluxTransformer2DModel",
    text_parts=(TextPart("text_encoder_2", "tokenizer_2"),),
    attention="joint",
    encoded=("prompt_embeds", "pooled_prompt_embeds", None),
    guidance_scale=None,
    read_call=_read_flux_call,
    joint_layers=_flux_layers,
)

FAMILIES: tuple[Family, ...] = (_SD, _SDXL, _FLUX)
"""The known families."""
