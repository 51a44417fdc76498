"""What differs between model families, a row of facts each: how text reaches the image, and where subjects stand in it.

A new family is a new row of `FAMILIES`, and a reader of its denoiser's calls where none of `denoisers.py` will do;
docs/add-a-family.md is the list of what to look up.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.components import FLUX, KLEIN, KLEIN_LAYERS, SD, SD3, SD3_WITHOUT_T5, SDXL, Z_IMAGE, Components
from cones2.denoisers import (
    DenoiserCall,
    FlowCall,
    NegativeText,
    Text,
    flux_velocity,
    flux_with_texts,
    read_flux_call,
    read_sd3_call,
    read_unet_call,
    read_z_image_call,
    sd3_velocity,
    sd3_with_texts,
    unwrapped,
    z_image_block_text,
    z_image_velocity,
    z_image_with_texts,
)
from cones2.errors import ModelError
from cones2.prompts import TokenizedPrompt

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
ReadText = Callable[[Sequence[Any], Sequence[Int[Tensor, "batch tokens"]]], Float[Tensor, "batch tokens dim"]]
AddedConditions = Callable[
    [Sequence[Any], Sequence[Int[Tensor, "batch tokens"]], int], dict[str, Float[Tensor, "batch numbers"]]
]


class TextPart(NamedTuple):
    """A text encoder whose output a residual is added to.

    Attributes:
        is_beside: whether its tokens stand in the rows of the part before it, in columns of their own; else they begin
            below that part's last row.
        window: who says how many tokens it reads: the `tokenizer`, or the `call`, by `max_sequence_length`.
        layers: which of its hidden states are read, side by side; empty is the one that the family reads in its own
            way, as wide as the encoder.
        thinking: what the chat template is told of `enable_thinking`; None is a plain text without a template.
        is_unpadded: whether padding is cut off before the denoiser reads it.
    """

    encoder: str
    tokenizer: str
    is_beside: bool = False
    window: Literal["tokenizer", "call"] = "tokenizer"
    layers: tuple[int, ...] = ()
    thinking: bool | None = None
    is_unpadded: bool = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """The facts of a family.

    Attributes:
        name: for messages and records.
        components: what its folders hold.
        denoiser: the component that is called in each step.
        text_parts: the encoders that residuals belong to.
        attention: `cross`, where image queries read text keys, or `joint`, where text and image are one sequence.
        conditional: which rows of a call read the prompt under guidance: the `last` half, the `first`, or all, since
            the negative text has a call `apart`.
        encoded: the call's arguments that `encode_prompt` returns, in its order; None is not an argument.
        repeats_text: whether its pipelines repeat embedded texts for each of several pictures.
        text_argument: the denoiser's argument, its third, that is the text.
        guidance_scale: classifier-free guidance's usual scale; None is the pipeline's own.
        guided_above: the scale above which there is guidance.
        true_guidance: the call's argument that is this scale, where `guidance_scale` is a number that the model reads.
        native_side: the side of its pictures in pixels, where neither a config nor the pipeline tells it.
        image_sets_size: whether a picture that is changed decides their shape, where a call says none.
        read_call: reads the arguments of the denoiser's call; the number of timesteps is `train_steps`.
        with_texts: of a joint transformer: puts more texts into its arguments, behind its own.
        block_text: of one whose arguments take none: what its joint blocks are given of a text, and its phases;
            `with_texts` makes room for them.
        read_text: for learning on a UNet: what the encoders make of tokens, as `encode_prompt` does and with gradients.
        added_conditions: for learning on a UNet: what it reads beside the text, for square pictures of a side in
            pixels.
        velocity: for learning by flow matching: what a joint transformer predicts; None where the noise is not a flow.
        timesteps: for learning by flow matching: which density they are drawn from.
        base: for learning: the checkpoint that is no distilled one, by its Hub id.
    """

    name: str
    components: Components
    denoiser: str
    text_parts: tuple[TextPart, ...]
    attention: Literal["cross", "joint"]
    conditional: Literal["last", "first", "apart"]
    encoded: tuple[str | None, ...]
    repeats_text: bool = True
    text_argument: str = "encoder_hidden_states"
    guidance_scale: float | None
    guided_above: float = 1.0
    true_guidance: str | None = None
    native_side: int | None = None
    image_sets_size: bool = True
    read_call: Callable[[Any, int, tuple[Any, ...], Mapping[str, Any]], DenoiserCall]
    with_texts: Callable[[Sequence[NegativeText], Mapping[str, Any]], dict[str, Any]] | None = None
    block_text: Callable[[Any, NegativeText], tuple[Tensor, Tensor]] | None = None
    read_text: ReadText | None = None
    added_conditions: AddedConditions = lambda *_: {}
    velocity: Callable[[Any, FlowCall], Float[Tensor, "rows channels height width"]] | None = None
    timesteps: Literal["uniform", "logit-normal"] = "uniform"
    base: str = ""

    def with_text(self, text: Text, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Return the arguments of a denoiser's call with another text."""
        if len(args) > 2:
            return (*args[:2], text, *args[3:]), dict(kwargs)
        return args, {**kwargs, self.text_argument: text}

    @property
    def recipe(self) -> str:
        """The name of the recipe to learn with, where a model says nothing of it."""
        return "paper" if self.velocity is None else "direct"

    def usual_guidance(self, pipeline: Any) -> float | None:
        """Return classifier-free guidance's usual scale; 1 where a model was distilled to do without."""
        if pipeline.config.get("is_distilled"):
            return 1.0
        if self.guidance_scale is not None:
            return self.guidance_scale
        usual = inspect.signature(type(pipeline).__call__).parameters.get("guidance_scale")
        return None if usual is None else float(usual.default)

    def has_guidance(self, pipeline: Any, scale: float | None) -> bool:
        """Return whether a pipeline guides at a scale, and so reads a negative text."""
        distilled = getattr(pipeline, self.denoiser).config.get("time_cond_proj_dim") is not None
        distilled |= bool(pipeline.config.get("is_distilled"))
        return scale is not None and scale > self.guided_above and not distilled


def is_for_few_steps(pipeline: Any) -> bool:
    """Return whether a model was distilled to a few steps without guidance, by its name."""
    return re.search("turbo|schnell|lightning", Path(pipeline.name_or_path or "").name, re.IGNORECASE) is not None


def family_of(pipeline: Any) -> Family:
    """Return the family of a diffusers pipeline; ModelError where it is of none that is known."""
    for family in FAMILIES:
        classes = family.components.classes
        telling = {name: unwrapped(getattr(pipeline, name, None)) for name in (family.denoiser, *ENCODERS)}
        if all(type(part).__name__ in classes.get(name, ("NoneType",)) for name, part in telling.items()):
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise ModelError(
        f"{type(pipeline).__name__} has components that no known family has: expected a diffusers pipeline of one of"
        f" {known}, with its text encoders."
    )


def native_size(pipeline: Any) -> tuple[int, int]:
    """Return height and width, in pixels, of the pictures that a pipeline draws unless it is told otherwise."""
    family = family_of(pipeline)
    if family.native_side is not None:
        return family.native_side, family.native_side
    cells = unwrapped(getattr(pipeline, family.denoiser)).config.get("sample_size") or pipeline.default_sample_size
    height, width = cells if isinstance(cells, list | tuple) else (cells, cells)
    return int(height * pipeline.vae_scale_factor), int(width * pipeline.vae_scale_factor)


def laid_out(
    embeddings: Float[Tensor, "1 tokens dim"],
    family: Family,
    tokens: Sequence[TokenizedPrompt],
    name: str,
    vectors: Sequence[Float[Tensor, "_ _"]],
) -> Float[Tensor, "1 tokens dim"]:
    """Return each text part's vectors at every mention of a subject, in zeros of the shape of E(prompt)."""
    added = torch.zeros_like(embeddings)
    found = places(family, tokens, name, [vector.shape[1] for vector in vectors])
    for vector, mentions in zip(vectors, found, strict=True):
        for rows, columns in mentions:
            added[0, rows, columns] += vector
    return added


def places(
    family: Family, tokens: Sequence[TokenizedPrompt], name: str, widths: Sequence[int]
) -> list[list[tuple[slice, slice]]]:
    """Return where a subject stands in the text that the denoiser reads, for each text part of a width.

    Rows and columns of every mention.
    """
    found, column = [], 0
    for part, prompt, row, width in zip(family.text_parts, tokens, first_rows(family, tokens), widths, strict=True):
        column = column if part.is_beside else 0
        columns = slice(column, column + width)
        found.append([(slice(row + start, row + stop), columns) for start, stop in prompt.spans[name]])
        column += width
    return found


def first_rows(family: Family, tokens: Sequence[TokenizedPrompt]) -> list[int]:
    """Return where each part's tokens begin in the text that the denoiser reads."""
    rows: list[int] = []
    end = 0
    for part, prompt in zip(family.text_parts, tokens, strict=True):
        rows.append(rows[-1] if part.is_beside else end)
        end = rows[-1] + prompt.input_ids.shape[1]
    return rows


ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
"""What pipelines call their text encoders."""


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


_SD = Family(
    name="Stable Diffusion 1.x and 2.x",
    components=SD,
    denoiser="unet",
    text_parts=(TextPart("text_encoder", "tokenizer"),),
    attention="cross",
    conditional="last",
    encoded=("prompt_embeds", "negative_prompt_embeds"),
    guidance_scale=7.5,
    read_call=read_unet_call,
    read_text=_read_last_states,
)

_SDXL = Family(
    name="Stable Diffusion XL",
    components=SDXL,
    denoiser="unet",
    text_parts=(TextPart("text_encoder", "tokenizer"), TextPart("text_encoder_2", "tokenizer_2", is_beside=True)),
    attention="cross",
    conditional="last",
    encoded=("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    guidance_scale=7.5,
    read_call=read_unet_call,
    read_text=_read_penultimate_states,
    added_conditions=_pooled_text_and_sizes,
)

_FLUX = Family(
    name="FLUX.1",
    components=FLUX,
    denoiser="transformer",
    text_parts=(TextPart("text_encoder_2", "tokenizer_2", window="call"),),
    attention="joint",
    conditional="apart",
    encoded=("prompt_embeds", "pooled_prompt_embeds", None),
    guidance_scale=None,
    true_guidance="true_cfg_scale",
    image_sets_size=False,
    read_call=read_flux_call,
    with_texts=flux_with_texts,
    velocity=flux_velocity,
    base="black-forest-labs/FLUX.1-dev",
)

_SD3 = Family(
    name="Stable Diffusion 3",
    components=SD3,
    denoiser="transformer",
    text_parts=(
        TextPart("text_encoder", "tokenizer"),
        TextPart("text_encoder_2", "tokenizer_2", is_beside=True),
        TextPart("text_encoder_3", "tokenizer_3", window="call"),
    ),
    attention="joint",
    conditional="last",
    encoded=("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    repeats_text=False,
    guidance_scale=None,
    image_sets_size=False,
    read_call=read_sd3_call,
    with_texts=sd3_with_texts,
    velocity=sd3_velocity,
    timesteps="logit-normal",
    base="stabilityai/stable-diffusion-3.5-medium",
)

_SD3_WITHOUT_T5 = replace(
    _SD3, name="Stable Diffusion 3 without T5", components=SD3_WITHOUT_T5, text_parts=_SD3.text_parts[:2]
)

_Z_IMAGE = Family(
    name="Z-Image",
    components=Z_IMAGE,
    denoiser="transformer",
    text_parts=(TextPart("text_encoder", "tokenizer", window="call", layers=(-2,), thinking=True, is_unpadded=True),),
    attention="joint",
    conditional="first",
    encoded=("prompt_embeds", "negative_prompt_embeds"),
    text_argument="cap_feats",
    guidance_scale=None,
    guided_above=0.0,
    native_side=1024,
    read_call=read_z_image_call,
    with_texts=z_image_with_texts,
    block_text=z_image_block_text,
    velocity=z_image_velocity,
    base="Tongyi-MAI/Z-Image",
)

_KLEIN = Family(
    name="FLUX.2 klein",
    components=KLEIN,
    denoiser="transformer",
    text_parts=(TextPart("text_encoder", "tokenizer", window="call", layers=KLEIN_LAYERS, thinking=False),),
    attention="joint",
    conditional="apart",
    encoded=("prompt_embeds", None),
    guidance_scale=None,
    read_call=read_flux_call,
    with_texts=flux_with_texts,
    velocity=flux_velocity,
    base="black-forest-labs/FLUX.2-klein-base-4B",
)

FAMILIES: tuple[Family, ...] = (_SD, _SDXL, _FLUX, _SD3, _SD3_WITHOUT_T5, _Z_IMAGE, _KLEIN)
"""The known families."""
