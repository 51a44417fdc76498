"""What differs between model families, a row of facts each: how text reaches the image, and where subjects stand in it.

A new family is a new row of `FAMILIES`, and a reader of its denoiser's calls where none of `denoisers.py` will do;
docs/add-a-family.md is the list of what to look up.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.denoisers import (
    DenoiserCall,
    Text,
    read_flux_call,
    read_sd3_call,
    read_unet_call,
    read_z_image_call,
    unwrapped,
)
from cones2.errors import ModelError
from cones2.schedulers import SCHEDULERS

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
ReadText = Callable[[Sequence[Any], Sequence[Int[Tensor, "batch tokens"]]], Float[Tensor, "batch tokens dim"]]
AddedConditions = Callable[
    [Sequence[Any], Sequence[Int[Tensor, "batch tokens"]], int], dict[str, Float[Tensor, "batch numbers"]]
]
Settings = dict[str, dict[str, Sequence[Any]]]


class TextPart(NamedTuple):
    """A text encoder whose output a residual is added to.

    Attributes:
        encoder: its name among the pipeline's components.
        tokenizer: its tokenizer's name there.
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
        pipelines: diffusers' classes of pipelines that open from a folder.
        components: the classes that each of their components may be of; the text encoders, and the denoiser, tell one
            family from another.
        ranges: least and most of settings in its folders' files, where those of `model_folders` will not do.
        fits: what settings of its components have to be, so that they fit each other.
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
        native_side: the side of its pictures in pixels, where neither a config nor the pipeline tells it.
        read_call: reads the arguments of the denoiser's call; the number of timesteps is `train_steps`.
        read_text: for learning: what the encoders make of tokens, as `encode_prompt` does and with gradients; None
            where nothing can be learned.
        added_conditions: for learning: what the denoiser reads beside it, for square pictures of a side in pixels.
    """

    name: str
    pipelines: tuple[str, ...]
    components: Mapping[str, tuple[str, ...]]
    ranges: Mapping[str, tuple[int | float, int | float]]
    fits: Callable[[Any], Settings]
    denoiser: str
    text_parts: tuple[TextPart, ...]
    attention: Literal["cross", "joint"]
    conditional: Literal["last", "first", "apart"]
    encoded: tuple[str | None, ...]
    repeats_text: bool = True
    text_argument: str = "encoder_hidden_states"
    guidance_scale: float | None
    guided_above: float = 1.0
    native_side: int | None = None
    read_call: Callable[[Any, int, tuple[Any, ...], Mapping[str, Any]], DenoiserCall]
    read_text: ReadText | None = None
    added_conditions: AddedConditions = lambda *_: {}

    def with_text(self, text: Text, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
        """Return the arguments of a denoiser's call with another text."""
        if len(args) > 2:
            return (*args[:2], text, *args[3:]), dict(kwargs)
        return args, {**kwargs, self.text_argument: text}

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


LCM = "LatentConsistencyModelPipeline"
"""diffusers' class of what is distilled to it, which draws the same pictures with the plain class."""


def family_of(pipeline: Any) -> Family:
    """Return the family of a diffusers pipeline.

    Raises:
        ModelError: it is of none that is known.
    """
    for family in FAMILIES:
        telling = {name: unwrapped(getattr(pipeline, name, None)) for name in (family.denoiser, *_ENCODERS)}
        if all(
            part is None if name not in family.components else type(part).__name__ in family.components[name]
            for name, part in telling.items()
        ):
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


_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


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


def _unet_fits(pipeline: Any) -> Settings:
    channels, second = pipeline.vae.config["latent_channels"], getattr(pipeline, "text_encoder_2", None)
    width = pipeline.text_encoder.config.hidden_size + (second.config.hidden_size if second is not None else 0)
    unet: dict[str, Sequence[Any]] = {
        "cross_attention_dim": [width],
        "addition_embed_type": [None if second is None else "text_time"],
        "class_embed_type": [None],
        "num_class_embeds": [None],
        "in_channels": [channels, 2 * channels + 1] if "Inpaint" in type(pipeline).__name__ else [channels],
    }
    needs: Settings = {"unet": unet, "scheduler": {"prediction_type": ["epsilon", "v_prediction", "sample"]}}
    return needs | ({"controlnet": {"cross_attention_dim": [width]}} if hasattr(pipeline, "controlnet") else {})


def _flux_fits(pipeline: Any) -> Settings:
    needs: dict[str, Sequence[Any]] = {
        "joint_attention_dim": [pipeline.text_encoder_2.config.d_model],
        "pooled_projection_dim": [pipeline.text_encoder.config.hidden_size],
        "in_channels": [4 * pipeline.vae.config["latent_channels"]],
    }
    return {"transformer": needs}


def _sd3_fits(pipeline: Any) -> Settings:
    width, clips = pipeline.text_encoder_3.config.d_model, (pipeline.text_encoder, pipeline.text_encoder_2)
    needs: dict[str, Sequence[Any]] = {
        "joint_attention_dim": [width],
        "pooled_projection_dim": [sum(clip.config.projection_dim for clip in clips)],
        "in_channels": [pipeline.vae.config["latent_channels"]],
    }
    room = width - pipeline.text_encoder.config.hidden_size  # CLIP's columns are filled up to T5's
    return {"transformer": needs, "text_encoder_2": {"hidden_size": range(1, room + 1)}}


def _z_image_fits(pipeline: Any) -> Settings:
    needs: dict[str, Sequence[Any]] = {
        "cap_feat_dim": [pipeline.text_encoder.config.hidden_size],
        "in_channels": [pipeline.vae.config["latent_channels"]],
        "siglip_feat_dim": [None],
    }
    return {"transformer": needs}


def _klein_fits(pipeline: Any) -> Settings:
    layers = _KLEIN.text_parts[0].layers
    needs: dict[str, Sequence[Any]] = {
        "joint_attention_dim": [len(layers) * pipeline.text_encoder.config.hidden_size],
        "in_channels": [4 * pipeline.vae.config["latent_channels"]],
        "guidance_embeds": [False],
    }
    return {"transformer": needs, "text_encoder": {"num_hidden_layers": range(max(layers), 129)}}


_TASKS = ("", "Img2Img", "Inpaint")
_CLIP = {"tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"), "text_encoder": ("CLIPTextModel",)}
_T5_TOKENIZERS = ("T5TokenizerFast", "T5Tokenizer")
_QWEN_TOKENIZERS = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_UNET = _CLIP | {
    "unet": ("UNet2DConditionModel",),
    "controlnet": ("ControlNetModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": tuple(SCHEDULERS.values()),
}
_USUAL: Mapping[str, tuple[int | float, int | float]] = MappingProxyType({})
_QWEN_RANGES: Mapping[str, tuple[int | float, int | float]] = MappingProxyType(
    {
        "text_encoder.max_position_embeddings": (1, 2**20),
        **dict.fromkeys(("num_key_value_heads", "n_heads", "n_kv_heads", "head_dim"), (1, 1024)),
        **dict.fromkeys(("n_layers", "dim", "cap_feat_dim", "joint_attention_dim"), (1, 100_000)),
        **dict.fromkeys(("axes_dims", "axes_lens", "timestep_guidance_channels"), (1, 16_384)),
        **dict.fromkeys(("all_patch_size", "all_f_patch_size", "patch_size"), (1, 16)),
        "n_refiner_layers": (0, 16),
        "mlp_ratio": (0.1, 100.0),
        **dict.fromkeys(("rope_theta", "t_scale"), (1e-3, 1e8)),
    }
)

_SD = Family(
    name="Stable Diffusion 1.x and 2.x",
    pipelines=(*(f"StableDiffusion{task}Pipeline" for task in (*_TASKS, "ControlNet")), LCM),
    components=_UNET,
    ranges=_USUAL,
    fits=_unet_fits,
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
    pipelines=tuple(f"StableDiffusionXL{task}Pipeline" for task in (*_TASKS, "ControlNet")),
    components=_UNET | {"tokenizer_2": _CLIP["tokenizer"], "text_encoder_2": ("CLIPTextModelWithProjection",)},
    ranges=_USUAL,
    fits=_unet_fits,
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
    pipelines=tuple(f"Flux{task}Pipeline" for task in _TASKS),
    components=_CLIP
    | {
        "tokenizer_2": _T5_TOKENIZERS,
        "text_encoder_2": ("T5EncoderModel",),
        "transformer": ("FluxTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        "scheduler": _FLOW,
    },
    ranges=_USUAL,
    fits=_flux_fits,
    denoiser="transformer",
    text_parts=(TextPart("text_encoder_2", "tokenizer_2", window="call"),),
    attention="joint",
    conditional="apart",
    encoded=("prompt_embeds", "pooled_prompt_embeds", None),
    guidance_scale=None,
    read_call=read_flux_call,
)

_SD3 = Family(
    name="Stable Diffusion 3",
    pipelines=tuple(f"StableDiffusion3{task}Pipeline" for task in _TASKS),
    components={
        **dict.fromkeys(("tokenizer", "tokenizer_2"), _CLIP["tokenizer"]),
        **dict.fromkeys(("text_encoder", "text_encoder_2"), ("CLIPTextModelWithProjection",)),
        "tokenizer_3": _T5_TOKENIZERS,
        "text_encoder_3": ("T5EncoderModel",),
        "transformer": ("SD3Transformer2DModel",),
        "vae": ("AutoencoderKL",),
        "scheduler": _FLOW,
    },
    ranges=MappingProxyType(
        {
            "transformer.patch_size": (1, 16),
            "transformer.sample_size": (1, 1024),
            "pos_embed_max_size": (1, 1024),
            **dict.fromkeys(("joint_attention_dim", "caption_projection_dim", "pooled_projection_dim"), (1, 100_000)),
        }
    ),
    fits=_sd3_fits,
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
    read_call=read_sd3_call,
)

_SD3_WITHOUT_T5 = replace(  # a pipeline that its maker gave none, to save memory; a folder always has it
    _SD3,
    name="Stable Diffusion 3 without T5",
    pipelines=(),
    components={name: kinds for name, kinds in _SD3.components.items() if not name.endswith("_3")},
    text_parts=_SD3.text_parts[:2],
)

_Z_IMAGE = Family(
    name="Z-Image",
    pipelines=tuple(f"ZImage{task}Pipeline" for task in _TASKS),
    components={
        "tokenizer": _QWEN_TOKENIZERS,
        "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
        "transformer": ("ZImageTransformer2DModel",),
        "vae": ("AutoencoderKL",),
        "scheduler": _FLOW,
    },
    ranges=_QWEN_RANGES,
    fits=_z_image_fits,
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
)

_KLEIN = Family(
    name="FLUX.2 klein",
    pipelines=("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
    components={
        "tokenizer": _QWEN_TOKENIZERS,
        "text_encoder": ("Qwen3ForCausalLM",),
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        "scheduler": _FLOW,
    },
    ranges=_QWEN_RANGES,
    fits=_klein_fits,
    denoiser="transformer",
    text_parts=(TextPart("text_encoder", "tokenizer", window="call", layers=(9, 18, 27), thinking=False),),
    attention="joint",
    conditional="apart",
    encoded=("prompt_embeds", None),
    guidance_scale=None,
    read_call=read_flux_call,
)

FAMILIES: tuple[Family, ...] = (_SD, _SDXL, _FLUX, _SD3, _SD3_WITHOUT_T5, _Z_IMAGE, _KLEIN)
"""The known families."""
