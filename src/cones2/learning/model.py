"""The model that is learned on: which ones will do, and what learning does to one for as long as it lasts."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.compiled import capture
from cones2.denoisers import unwrapped
from cones2.errors import LearningError, ModelError, SettingsError
from cones2.families import Family, family_of
from cones2.learning.data import Views
from cones2.learning.losses import add_noise, subject_loss
from cones2.learning.recipe import Recipe
from cones2.record import describe_adapters
from cones2.residual import EncoderId
from cones2.shared import Undo, shared_change

# What the loss is multiplied by where gradients pass a UNet in float16: they are means over a latent's 10,000 numbers
# or so, and most would be 0 there. A power of two, so that dividing by it is exact.
_HALF_SCALE = 2.0**12
_SAMPLED = 16  # numbers of each weight
_PREDICTIONS = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A UNet with its noise schedule, and all that it reads beside latents and text.

    Attributes:
        alphas_cumprod: α² of each timestep, on the CPU.
        added: conditions of one row, such as Stable Diffusion XL's pooled text and sizes.
    """

    unet: Any
    dtype: torch.dtype
    device: torch.device
    alphas_cumprod: Float[Tensor, "timesteps"]
    prediction_type: str
    added: Mapping[str, Float[Tensor, "1 numbers"]]

    @classmethod
    def of(cls, pipeline: Any, added: Mapping[str, Float[Tensor, "1 numbers"]]) -> "Denoiser":
        """Return a pipeline's UNet with the schedule of its scheduler."""
        alphas_cumprod = pipeline.scheduler.alphas_cumprod.detach().float().cpu().clone()
        prediction_type = str(pipeline.scheduler.config["prediction_type"])
        device = pipeline._execution_device
        return cls(pipeline.unet, pipeline.unet.dtype, device, alphas_cumprod, prediction_type, added)

    def draw(self, views: Views, batch_size: int, draw: torch.Generator) -> "Batch":
        """Draw a batch of photos on the CPU, each with a view, a latent, noise and a timestep of its own."""
        rows = torch.randint(len(views.mean), (batch_size,), generator=draw, device="cpu")
        mean, std = views.mean[rows], views.std[rows]
        latents = mean + std * torch.randn(mean.shape, generator=draw, dtype=torch.float32, device="cpu")
        noise = torch.randn(mean.shape, generator=draw, dtype=torch.float32, device="cpu")
        timesteps = torch.randint(len(self.alphas_cumprod), rows.shape, generator=draw, device="cpu")
        noised = add_noise(latents, noise, self.alphas_cumprod[timesteps], self.prediction_type)
        return Batch(noised.latents, noised.target, timesteps, None if views.weights is None else views.weights[rows])

    def predict(
        self, prompt: Float[Tensor, "prompts tokens dim"], batch: "Batch"
    ) -> Float[Tensor, "batch channels height width"]:
        """Return what the UNet makes of noised photos, under one prompt for all or one for each."""
        prediction: Tensor = self.unet(
            batch.latents.to(self.device, self.dtype),
            batch.timesteps.to(self.device),
            encoder_hidden_states=prompt.expand(len(batch.latents), -1, -1).to(self.dtype),
            added_cond_kwargs={name: each.expand(len(batch.latents), -1) for name, each in self.added.items()} or None,
            return_dict=False,
        )[0]
        return prediction

    def loss(self, prompt: Float[Tensor, "1 tokens dim"], batch: "Batch") -> Float[Tensor, ""]:
        """Return Eq. 2 on a batch of photos."""
        weights = None if batch.weights is None else batch.weights.to(self.device)
        return subject_loss(self.predict(prompt, batch), batch.target.to(self.device), weights)


class Batch(NamedTuple):
    """Noised photos of one step.

    Attributes:
        latents: with noise.
        target: what the UNet should predict from them.
        timesteps: of each.
        weights: the subject's share of each latent cell; None where no photo has a mask.
    """

    latents: Float[Tensor, "batch channels height width"]
    target: Float[Tensor, "batch channels height width"]
    timesteps: Int[Tensor, "batch"]
    weights: Float[Tensor, "batch 1 height width"] | None


class CapturedStep:
    """A step of learning that does not wait for Python: losses and gradients as one CUDA graph, captured at the first.

    Args:
        compute: from inputs on the GPU to losses; it reads no number on the host, and leaves gradients at `parameters`.
        parameters: what is learned.
    """

    def __init__(
        self, compute: Callable[[Sequence[Tensor]], Float[Tensor, "losses"]], parameters: Sequence[Tensor]
    ) -> None:
        self._compute, self._parameters = compute, parameters
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, inputs: Sequence[Tensor], device: torch.device) -> Float[Tensor, "losses"]:
        """Return the losses of a step, and leave its gradients."""
        if self._replay is None:
            self._inputs = [each.to(device, copy=True) for each in inputs]
            self._replay = capture(lambda: self._compute(self._inputs), before=self._forget_gradients)
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        return self._replay()

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:  # so that those of the graph are new ones, written over by each replay
            parameter.grad = None


def check_captured(pipeline: Any, *, save_memory: bool) -> None:
    """Check that a pipeline's steps of learning can be captured.

    Raises:
        SettingsError: they can't.
    """
    if pipeline._execution_device.type != "cuda" or save_memory or getattr(pipeline, "_all_hooks", None):
        raise SettingsError(
            "compile is for a whole model on a CUDA GPU: leave it out on another device, with save_memory, and with"
            " offloading."
        )


def backward(loss: Float[Tensor, ""], parameters: Sequence[Tensor], dtype: torch.dtype) -> Float[Tensor, ""]:
    """Leave the gradients of a loss at parameters, by way of a UNet of a dtype, and return their norm."""
    scale = _HALF_SCALE if dtype == torch.float16 else 1.0
    torch.autograd.backward(scale * loss)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if scale != 1:
        for gradient in gradients:
            gradient.div_(scale)
    return torch.nn.utils.get_total_norm(gradients)


def diverged(what: str, recipe: Recipe) -> LearningError:
    """Return the error of numbers that are not finite."""
    return LearningError(
        f"learning diverged: {what}, expected finite numbers; no residual was made. Begin again with a learning_rate"
        f" below {recipe.learning_rate:g} or another dtype."
    )


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
    if any(weight.is_inference() for weight in unet.parameters()):
        raise ModelError(
            "this UNet was opened in torch.inference_mode(), which takes its gradients away for good: open the model"
            " outside of it, or by cones2.Cones2Pipeline.from_pretrained."
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
def frozen(unet: Any) -> Iterator[None]:
    """Keep a UNet's weights from having gradients, since only the residual is learned, within a `with` block."""

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
