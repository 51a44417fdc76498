"""Which models a residual can be learned on."""

import warnings
from typing import Any

from cones2.denoisers import unwrapped
from cones2.errors import Cones2Warning, ModelError
from cones2.families import Family, family_of, is_for_few_steps

_PREDICTIONS = ("epsilon", "sample", "v_prediction")


def learnable_family(pipeline: Any) -> Family:
    """Return the family of a pipeline on which residuals can be learned; ModelError where they can't."""
    family = family_of(pipeline)
    _check_weights(pipeline, family)
    if family.velocity is None:
        _check_unet(pipeline, family)
    else:
        _check_flow(pipeline, family)
    return family


def _check_weights(pipeline: Any, family: Family) -> None:
    denoiser, name = getattr(pipeline, family.denoiser), "UNet" if family.denoiser == "unet" else family.denoiser
    if unwrapped(denoiser) is not denoiser or any(vars(each).get("_compiled_call_impl") for each in denoiser.modules()):
        raise ModelError(
            f"this {name} is compiled: learn on the same model opened anew; the residual fits the compiled one as well."
        )
    if any(weight.is_inference() for weight in denoiser.parameters()):
        raise ModelError(
            f"this {name} was opened in torch.inference_mode(), which takes its gradients away for good: open the model"
            " outside of it, or by cones2.Cones2Pipeline.from_pretrained."
        )
    if any(weight.is_meta for part in family.text_parts for weight in getattr(pipeline, part.encoder).parameters()):
        raise ModelError(
            "the text encoder's weights are not there to be copied: instead of enable_sequential_cpu_offload use"
            " enable_model_cpu_offload."
        )


def _check_unet(pipeline: Any, family: Family) -> None:
    unet, vae, scheduler = pipeline.unet, pipeline.vae.config, pipeline.scheduler
    for part in family.text_parts:
        if (side := getattr(pipeline, part.tokenizer).padding_side) != "right":
            raise ModelError(f"its {part.tokenizer} pads at the {side}: set padding_side to right, as it was trained.")
    if unet.config["time_cond_proj_dim"] is not None:
        raise ModelError(
            "this is a distilled model (its UNet reads the guidance scale): learn on the base model that it was"
            " distilled from; the residual fits both if they have one text encoder."
        )
    if unet.config["in_channels"] != vae["latent_channels"]:
        raise ModelError(
            f"this UNet takes {unet.config['in_channels']} channels, and latents have {vae['latent_channels']}, as in"
            " inpainting: learn on the text-to-image model that it was made of; the residual fits both if they have one"
            " text encoder."
        )
    if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("prediction_type") not in _PREDICTIONS:
        raise ModelError(
            f"{type(scheduler).__name__} does not say how noisy a timestep is and what is predicted there: set a"
            f" scheduler with alphas_cumprod and one of {', '.join(_PREDICTIONS)}, such as DDIMScheduler."
        )


def _check_flow(pipeline: Any, family: Family) -> None:
    if pipeline.config.get("is_distilled"):
        raise ModelError(
            f"this is a distilled model: learn on {family.base}, whose kind it was distilled from; the residual fits"
            " both if they have one text encoder."
        )
    channels, scheduler = pipeline.transformer.config["in_channels"], pipeline.scheduler
    latents = pipeline.vae.config["latent_channels"]
    if channels not in (latents, 4 * latents):  # 4 where 2 x 2 of them are one token
        raise ModelError(
            f"this transformer takes {channels} channels, more than noise alone has, as in inpainting: learn on the"
            f" text-to-image model that it was made of, such as {family.base}; the residual fits both if they have one"
            " text encoder."
        )
    if type(scheduler).__name__ not in family.components.classes["scheduler"]:
        raise ModelError(
            f"{type(scheduler).__name__} does not say how noisy a timestep of flow matching is: set one of"
            f" {', '.join(family.components.classes['scheduler'])}."
        )
    if is_for_few_steps(pipeline):
        warnings.warn(
            f"by its name, {pipeline.name_or_path} was distilled to a few steps, and teaches little at other noise"
            f" levels: better learn on {family.base}; the residual fits both if they have one text encoder.",
            Cones2Warning,
            stacklevel=4,
        )
