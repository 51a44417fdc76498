"""The model that is learned on: its denoiser as Eq. 2 calls it, and what learning does to it while it lasts."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.compiled import capture
from cones2.denoisers import FlowCall
from cones2.errors import LearningError, SettingsError
from cones2.families import ENCODERS, Family
from cones2.learning.data import Views
from cones2.learning.losses import add_flow_noise, add_noise, subject_loss
from cones2.learning.recipe import Recipe
from cones2.record import describe_adapters
from cones2.residual import EncoderId
from cones2.shared import Undo, shared_change

# What the loss is multiplied by where gradients pass a UNet in float16: they are means over a latent's 10,000 numbers
# or so, and most would be 0 there. A power of two, so that dividing by it is exact.
_HALF_SCALE = 2.0**12
_SAMPLED = 16  # numbers of each weight


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
        drawn = _draw_views(views, batch_size, draw)
        timesteps = torch.randint(
            len(self.alphas_cumprod), (batch_size,), generator=draw, dtype=torch.long, device="cpu"
        )
        noised = add_noise(drawn.latents, drawn.noise, self.alphas_cumprod[timesteps], self.prediction_type)
        return Batch(noised.latents, noised.target, timesteps, drawn.weights)

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


@dataclass(frozen=True, eq=False)
class FlowDenoiser:
    """A joint transformer that was trained by flow matching, with its noise levels and what it reads beside the text.

    Timesteps are drawn logit-normally for Stable Diffusion 3, as it was trained (arXiv:2403.03206, Sec. 3.1), and
    uniformly for the others, over the levels that the scheduler's `shift` makes of them. Each level weighs the same in
    the loss of the velocity; diffusers' script for Stable Diffusion 3 compares pictures (`precondition_outputs=1`), in
    which the levels of much noise weigh more.

    Attributes:
        sigmas: the share of noise at each timestep, from 1 downward, on the CPU.
        pooled: the prompt's summary, where the family has one.
        guidance: what a guidance-distilled model reads: the scale at which it is drawn by default.
    """

    transformer: Any
    family: Family
    dtype: torch.dtype
    device: torch.device
    sigmas: Float[Tensor, "timesteps"]
    pooled: Float[Tensor, "1 numbers"] | None
    guidance: float

    @classmethod
    def of(cls, pipeline: Any, family: Family, pooled: Float[Tensor, "1 numbers"] | None) -> "FlowDenoiser":
        """Return a pipeline's transformer with the noise levels of its scheduler, as that was before any picture."""
        scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
        guidance = family.usual_guidance(pipeline) or 1.0
        transformer, device = pipeline.transformer, pipeline._execution_device
        return cls(transformer, family, transformer.dtype, device, scheduler.sigmas.cpu().float(), pooled, guidance)

    def draw(self, views: Views, batch_size: int, draw: torch.Generator) -> "Batch":
        """Draw a batch of photos on the CPU, each with a view, a latent, noise and a noise level of its own."""
        drawn = _draw_views(views, batch_size, draw)
        options: dict[str, Any] = {"generator": draw, "dtype": torch.float32, "device": "cpu"}
        if self.family.timesteps == "logit-normal":
            shares = torch.randn(batch_size, **options).sigmoid()
        else:
            shares = torch.rand(batch_size, **options)
        count = len(self.sigmas)
        sigmas = self.sigmas[(shares * count).long().clamp(max=count - 1)]  # float32's sigmoid may round up to 1
        noised = add_flow_noise(drawn.latents, drawn.noise, sigmas)
        return Batch(noised.latents, noised.target, sigmas, drawn.weights)

    def loss(self, prompt: Float[Tensor, "1 tokens dim"], batch: "Batch") -> Float[Tensor, ""]:
        """Return Eq. 2 on a batch of photos, with the velocity in place of ε."""
        assert self.family.velocity is not None  # `learnable_family` saw to it
        pooled = None if self.pooled is None else self.pooled.to(self.device, self.dtype)
        latents, time = batch.latents.to(self.device, self.dtype), batch.timesteps.to(self.device)
        call = FlowCall(latents, time, prompt.to(self.dtype), pooled, self.guidance)
        weights = None if batch.weights is None else batch.weights.to(self.device)
        return subject_loss(self.family.velocity(self.transformer, call), batch.target.to(self.device), weights)


class _Drawn(NamedTuple):
    latents: Float[Tensor, "batch channels height width"]
    noise: Float[Tensor, "batch channels height width"]
    weights: Float[Tensor, "batch 1 height width"] | None


def _draw_views(views: Views, batch_size: int, draw: torch.Generator) -> _Drawn:
    rows = torch.randint(len(views.mean), (batch_size,), generator=draw, dtype=torch.long, device="cpu")
    mean, std = views.mean[rows], views.std[rows]
    latents = mean + std * torch.randn(mean.shape, generator=draw, dtype=torch.float32, device="cpu")
    noise = torch.randn(mean.shape, generator=draw, dtype=torch.float32, device="cpu")
    return _Drawn(latents, noise, None if views.weights is None else views.weights[rows])


class Batch(NamedTuple):
    """Noised photos of one step.

    Attributes:
        latents: with noise.
        target: what the denoiser should predict from them.
        timesteps: of each; in flow matching the share of noise, 0 to 1.
        weights: the subject's share of each latent cell; None where no photo has a mask.
    """

    latents: Float[Tensor, "batch channels height width"]
    target: Float[Tensor, "batch channels height width"]
    timesteps: Int[Tensor, "batch"] | Float[Tensor, "batch"]
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


def check_captured(pipeline: Any, family: Family, *, save_memory: bool) -> None:
    """Check that a pipeline's steps of learning can be captured; SettingsError where they can't."""
    if family.velocity is not None:
        raise SettingsError(f"learning on {family.name} can't be compiled: leave compile out.")
    if pipeline._execution_device.type != "cuda" or save_memory or getattr(pipeline, "_all_hooks", None):
        raise SettingsError(
            "compile is for a whole model on a CUDA GPU: leave it out on another device, with save_memory, and with"
            " offloading."
        )


def backward(loss: Float[Tensor, ""], parameters: Sequence[Tensor], dtype: torch.dtype) -> Float[Tensor, ""]:
    """Leave the gradients of a loss at parameters, by way of a denoiser of a dtype, and return their norm."""
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


@contextmanager
def frozen(denoiser: Any) -> Iterator[None]:
    """Keep a denoiser's weights from having gradients, since only the residual is learned, within a `with` block."""

    def change() -> Undo:
        trained = [parameter.requires_grad_(False) for parameter in denoiser.parameters() if parameter.requires_grad]

        def undo() -> None:
            for parameter in trained:
                parameter.requires_grad_()

        return undo

    with shared_change(denoiser, "frozen", change):
        yield


@contextmanager
def memory_saved(pipeline: Any, denoiser: Any) -> Iterator[None]:
    """Let a denoiser make its activations again in the backward pass, and move to a GPU only what is at work."""
    device = pipeline._execution_device

    def change() -> Undo:
        if denoiser.is_gradient_checkpointing:
            return lambda: None
        denoiser.enable_gradient_checkpointing()
        return lambda: denoiser.disable_gradient_checkpointing()

    with shared_change(denoiser, "recomputed activations", change):
        if device.type == "cpu" or getattr(pipeline, "_all_hooks", None):
            yield
            return
        pipeline.enable_model_cpu_offload(device=device)
        try:
            yield
        finally:
            pipeline.remove_all_hooks()
            pipeline.to(device)


def model_settings(pipeline: Any, family: Family, encoders: Sequence[EncoderId]) -> dict[str, Any]:
    """Return what learning's states depend on in a model, as short JSON values.

    Many fine-tunes share a text encoder, so denoiser and autoencoder count, too.
    """
    denoiser, scheduler = getattr(pipeline, family.denoiser), pipeline.scheduler.config
    name = "UNet" if family.denoiser == "unet" else family.denoiser
    if family.velocity is None:
        kind, levels = {"prediction type": str(scheduler["prediction_type"])}, pipeline.scheduler.alphas_cumprod
    else:
        kind, levels = {}, type(pipeline.scheduler).from_config(scheduler).sigmas
    read = {part.encoder for part in family.text_parts}
    others = [each for name in ENCODERS if name not in read if (each := getattr(pipeline, name, None)) is not None]
    return {
        "text encoder": "+".join(encoder.weights for encoder in encoders),
        f"{name}'s dtype": str(denoiser.dtype).removeprefix("torch."),
        name: _sampled_hash(denoiser),
        "autoencoder": _sampled_hash(pipeline.vae),
        **kind,
        "noise levels": hashlib.sha256(levels.detach().cpu().float().numpy().tobytes()).hexdigest(),
        "other text encoders": [_sampled_hash(each) for each in others],  # FLUX.1 reads the summary of one
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
