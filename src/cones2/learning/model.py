"""The model that is learned on: which ones will do, and what learning does to one for as long as it lasts."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from cones2.errors import ModelError
from cones2.families import Family, family_of, unwrapped
from cones2.record import describe_adapters
from cones2.residual import EncoderId
from cones2.shared import Undo, lock_of, shared_change

_SAMPLED = 16  # numbers of each weight
_PREDICTIONS = ("epsilon", "sample", "v_prediction")


def learnable_family(pipeline: Any) -> Family:
    """Return the family of a pipeline on which residuals can be learned.

    Raises:
        ModelError: they can't be learned on it.
    """
    family = family_of(pipeline)
    if family.read_text is None:
        raise ModelError(
            f"learning is for UNet models, and {family.name} is none: learn on Stable Diffusion 1.x, 2.x or XL."
        )
    unet, vae, scheduler = pipeline.unet, pipeline.vae.config, pipeline.scheduler
    if unwrapped(unet) is not unet or any(vars(each).get("_compiled_call_impl") for each in unet.modules()):
        raise ModelError(
            "this UNet is compiled: learn on the same model opened anew; the residual fits the compiled one as well."
        )
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
    if any(weight.is_meta for part in family.text_parts for weight in getattr(pipeline, part.encoder).parameters()):
        raise ModelError(
            "the text encoder's weights are not there to be copied: instead of enable_sequential_cpu_offload use"
            " enable_model_cpu_offload."
        )
    if not hasattr(scheduler, "alphas_cumprod") or scheduler.config.get("prediction_type") not in _PREDICTIONS:
        raise ModelError(
            f"{type(scheduler).__name__} does not say how noisy a timestep is and what is predicted there: set a"
            f" scheduler with alphas_cumprod and one of {', '.join(_PREDICTIONS)}, such as DDIMScheduler."
        )
    return family


@contextmanager
def alone_if_offloaded(pipeline: Any) -> Iterator[None]:
    """Keep other threads off models that are moved to the device for one user at a time."""
    with lock_of(pipeline.unet) if getattr(pipeline, "_all_hooks", None) else nullcontext():
        yield


@contextmanager
def frozen(unet: Any) -> Iterator[None]:
    """Keep a UNet's weights from having gradients, which nobody asks for, within a `with` block."""

    def change() -> Undo:
        trained = [parameter.requires_grad_(False) for parameter in unet.parameters() if parameter.requires_grad]

        def undo() -> None:
            for parameter in trained:
                parameter.requires_grad_()

        return undo

    with shared_change(unet, "frozen", change):
        yield


@contextmanager
def memory_saved(pipeline: Any) -> Iterator[None]:
    """Let the UNet make its activations again in the backward pass, and move to a GPU only what is at work."""
    unet, device = pipeline.unet, pipeline._execution_device

    def change() -> Undo:
        if unet.is_gradient_checkpointing:
            return lambda: None
        unet.enable_gradient_checkpointing()
        return lambda: unet.disable_gradient_checkpointing()

    with shared_change(unet, "recomputed activations", change):
        if device.type == "cpu" or getattr(pipeline, "_all_hooks", None):
            yield
            return
        pipeline.enable_model_cpu_offload(device=device)
        try:
            yield
        finally:
            pipeline.remove_all_hooks()
            pipeline.to(device)


def float32_copy(module: Any, device: torch.device) -> Any:
    """Copy a model in float32 to a device, without the hook by which offloading moves its original.

    The hook knows the other models, which must not be copied along.
    """
    hook = getattr(module, "_hf_hook", None)
    twin = copy.deepcopy(module, {id(hook): hook})
    if hook is not None:
        from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]  # comes with such hooks

        remove_hook_from_module(twin)
    return twin.to(device, torch.float32).requires_grad_(False)


def model_settings(pipeline: Any, encoders: Sequence[EncoderId]) -> dict[str, Any]:
    """Return what learning's states depend on in a model, as short JSON values.

    Many fine-tunes share a text encoder, so UNet and autoencoder count, too.
    """
    return {
        "text encoder": "+".join(encoder.weights for encoder in encoders),
        "UNet's dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "UNet": _sampled_hash(pipeline.unet),
        "autoencoder": _sampled_hash(pipeline.vae),
        "prediction type": str(pipeline.scheduler.config["prediction_type"]),
        "adapters": describe_adapters(pipeline),
    }


def _sampled_hash(part: torch.nn.Module) -> str:
    """Hash a few numbers of each weight, evenly spread, and its name and shape: reading them all would take seconds."""
    digest = hashlib.sha256()
    for name, weight in part.state_dict().items():
        some = weight.flatten()[:: max(1, weight.numel() // _SAMPLED)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()
