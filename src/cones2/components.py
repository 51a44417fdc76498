"""What the folders of each model family hold: the classes of their components, and what these settings may be."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from cones2.schedulers import FLOW_SCHEDULERS, SCHEDULERS

Settings = dict[str, dict[str, Sequence[Any]]]
Ranges = Mapping[str, tuple[int | float, int | float]]

LCM = "LatentConsistencyModelPipeline"
"""diffusers' class of what is distilled to it, which draws the same pictures with the plain class."""

KLEIN_LAYERS = (9, 18, 27)
"""The hidden states that FLUX.2 klein reads; diffusers' own default."""

NO_RANGES: Ranges = MappingProxyType({})


class Components(NamedTuple):
    """What a family's folders hold.

    Attributes:
        pipelines: diffusers' classes of pipelines that open.
        classes: those that each of their components may be of; text encoders and denoiser tell families apart.
        fits: what settings of a pipeline's components have to be, so that they fit each other.
        ranges: least and most of settings in the files, where those of `model_folders` will not do.
    """

    pipelines: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]
    fits: Callable[[Any], Settings]
    ranges: Ranges = NO_RANGES


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


def _with_controlnet(pipeline: Any, needs: Settings, names: Sequence[str], **own: Sequence[Any]) -> Settings:
    """Return what fits, with a ControlNet that has the transformer's settings of some names, and its own."""
    if not hasattr(pipeline, "controlnet"):
        return needs
    return {**needs, "controlnet": {name: [pipeline.transformer.config[name]] for name in names} | own}


def _flux_fits(pipeline: Any) -> Settings:
    needs: dict[str, Sequence[Any]] = {
        "joint_attention_dim": [pipeline.text_encoder_2.config.d_model],
        "pooled_projection_dim": [pipeline.text_encoder.config.hidden_size],
        "in_channels": [4 * pipeline.vae.config["latent_channels"]],
    }
    return _with_controlnet(pipeline, {"transformer": needs}, (*needs, *_HEADS))


def _sd3_fits(pipeline: Any) -> Settings:
    width, clips = pipeline.text_encoder_3.config.d_model, (pipeline.text_encoder, pipeline.text_encoder_2)
    needs: dict[str, Sequence[Any]] = {
        "joint_attention_dim": [width],
        "pooled_projection_dim": [sum(clip.config.projection_dim for clip in clips)],
        "in_channels": [pipeline.vae.config["latent_channels"]],
    }
    room = width - pipeline.text_encoder.config.hidden_size  # CLIP's columns are filled up to T5's
    fits: Settings = {"transformer": needs, "text_encoder_2": {"hidden_size": range(1, room + 1)}}
    own: dict[str, Sequence[Any]] = {
        "joint_attention_dim": [width, None],  # those of 3.5 large read no text
        "extra_conditioning_channels": [int("Inpainting" in type(pipeline).__name__)],  # the mask
    }
    return _with_controlnet(pipeline, fits, ("pooled_projection_dim", "in_channels", *_HEADS), **own)


def _z_image_fits(pipeline: Any) -> Settings:
    needs: dict[str, Sequence[Any]] = {
        "cap_feat_dim": [pipeline.text_encoder.config.hidden_size],
        "in_channels": [pipeline.vae.config["latent_channels"]],
        "siglip_feat_dim": [None],
    }
    reads = range(pipeline.vae.config["latent_channels"], 1025)  # what more it reads is filled up
    return _with_controlnet(
        pipeline, {"transformer": needs}, ("dim", "n_heads", "n_refiner_layers"), control_in_dim=reads
    )


def _klein_fits(pipeline: Any) -> Settings:
    needs: dict[str, Sequence[Any]] = {
        "joint_attention_dim": [len(KLEIN_LAYERS) * pipeline.text_encoder.config.hidden_size],
        "in_channels": [4 * pipeline.vae.config["latent_channels"]],
        "guidance_embeds": [False],
    }
    return {"transformer": needs, "text_encoder": {"num_hidden_layers": range(max(KLEIN_LAYERS), 129)}}


_HEADS = ("num_attention_heads", "attention_head_dim")
_TASKS = ("", "Img2Img", "Inpaint")
_CLIP = {"tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"), "text_encoder": ("CLIPTextModel",)}
_T5_TOKENIZERS = ("T5TokenizerFast", "T5Tokenizer")
_QWEN_TOKENIZERS = ("Qwen2Tokenizer", "Qwen2TokenizerFast")
_UNET = _CLIP | {
    "unet": ("UNet2DConditionModel",),
    "controlnet": ("ControlNetModel",),
    "vae": ("AutoencoderKL",),
    "scheduler": tuple(SCHEDULERS.values()),
}
_QWEN_RANGES: Ranges = MappingProxyType(
    {
        "text_encoder.max_position_embeddings": (1, 2**20),
        **dict.fromkeys(("num_key_value_heads", "n_heads", "n_kv_heads", "head_dim"), (1, 1024)),
        **dict.fromkeys(("n_layers", "dim", "cap_feat_dim", "joint_attention_dim"), (1, 100_000)),
        **dict.fromkeys(("axes_dims", "axes_lens", "timestep_guidance_channels"), (1, 16_384)),
        **dict.fromkeys(("all_patch_size", "all_f_patch_size", "patch_size"), (1, 16)),
        "n_refiner_layers": (0, 16),
        **dict.fromkeys(("control_layers_places", "control_refiner_layers_places"), (0, 127)),
        "control_in_dim": (1, 1024),
        "mlp_ratio": (0.1, 100.0),
        **dict.fromkeys(("rope_theta", "t_scale"), (1e-3, 1e8)),
    }
)

SD = Components(
    pipelines=(*(f"StableDiffusion{task}Pipeline" for task in (*_TASKS, "ControlNet")), LCM),
    classes=_UNET,
    fits=_unet_fits,
)
SDXL = Components(
    pipelines=tuple(f"StableDiffusionXL{task}Pipeline" for task in (*_TASKS, "ControlNet")),
    classes=_UNET | {"tokenizer_2": _CLIP["tokenizer"], "text_encoder_2": ("CLIPTextModelWithProjection",)},
    fits=_unet_fits,
)
FLUX = Components(
    pipelines=tuple(
        f"Flux{task}Pipeline"
        for task in (*_TASKS, *(f"ControlNet{task}" for task in _TASKS), "Kontext", "KontextInpaint")
    ),
    classes=_CLIP
    | {
        "tokenizer_2": _T5_TOKENIZERS,
        "text_encoder_2": ("T5EncoderModel",),
        "transformer": ("FluxTransformer2DModel",),
        "controlnet": ("FluxControlNetModel",),
        "vae": ("AutoencoderKL",),
        "scheduler": FLOW_SCHEDULERS,
    },
    fits=_flux_fits,
)
SD3 = Components(
    pipelines=tuple(f"StableDiffusion3{task}Pipeline" for task in (*_TASKS, "ControlNet", "ControlNetInpainting")),
    classes={
        **dict.fromkeys(("tokenizer", "tokenizer_2"), _CLIP["tokenizer"]),
        **dict.fromkeys(("text_encoder", "text_encoder_2"), ("CLIPTextModelWithProjection",)),
        "tokenizer_3": _T5_TOKENIZERS,
        "text_encoder_3": ("T5EncoderModel",),
        "transformer": ("SD3Transformer2DModel",),
        "controlnet": ("SD3ControlNetModel",),
        "vae": ("AutoencoderKL",),
        "scheduler": FLOW_SCHEDULERS,
    },
    fits=_sd3_fits,
    ranges=MappingProxyType(
        {
            "patch_size": (1, 16),
            **dict.fromkeys(("transformer.sample_size", "controlnet.sample_size"), (1, 1024)),
            "pos_embed_max_size": (1, 1024),
            **dict.fromkeys(("joint_attention_dim", "caption_projection_dim", "pooled_projection_dim"), (1, 100_000)),
        }
    ),
)
Z_IMAGE = Components(
    pipelines=tuple(f"ZImage{task}Pipeline" for task in (*_TASKS, "ControlNet", "ControlNetInpaint")),
    classes={
        "tokenizer": _QWEN_TOKENIZERS,
        "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
        "transformer": ("ZImageTransformer2DModel",),
        "controlnet": ("ZImageControlNetModel",),
        "vae": ("AutoencoderKL",),
        "scheduler": FLOW_SCHEDULERS,
    },
    fits=_z_image_fits,
    ranges=_QWEN_RANGES,
)
KLEIN = Components(
    pipelines=("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
    classes={
        "tokenizer": _QWEN_TOKENIZERS,
        "text_encoder": ("Qwen3ForCausalLM",),
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        "scheduler": FLOW_SCHEDULERS,
    },
    fits=_klein_fits,
    ranges=_QWEN_RANGES,
)

SD3_WITHOUT_T5 = SD3._replace(  # by its maker, to save memory: a folder always has it
    pipelines=(), classes={name: kinds for name, kinds in SD3.classes.items() if not name.endswith("_3")}
)
