"""The denoising loop of one call of `compose`."""

import inspect
import warnings
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from cones2.backbones import Backbone
from cones2.composing.guiding import guide
from cones2.composing.official import EulerSampler, Latents
from cones2.composing.settings import ComposeSettings
from cones2.errors import SettingsError
from cones2.guidance.attention import edited_cross_attention, unedited_cross_attention
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.leakage import AttentionMeter, Leakage
from cones2.guidance.presets import recurs
from cones2.guidance.text import TextEdit


@dataclass(frozen=True, eq=False)
class ComposeStep:
    """Where composing stands after a step.

    Attributes:
        step: UNet calls so far.
        steps: UNet calls in all; some schedulers, and the preset `official`, make two a step.
        latents: the pictures so far, one row for each seed.
        pictures: one for each seed, at the last step; empty before.
        attention: for each picture, where the attention to each subject went, if that was measured; with the pictures.
    """

    step: int
    steps: int
    latents: Float[Tensor, "batch channels height width"]
    pictures: tuple[Image, ...] = ()
    attention: tuple[tuple[Leakage, ...], ...] = ()


class Sampler:
    """The denoising loop of one call."""

    def __init__(
        self,
        backbone: Backbone,
        scheduler: Any,
        *,
        embeddings: Float[Tensor, "rows tokens dim"],
        added: Mapping[str, Float[Tensor, "rows numbers"]],
        guidance: LayoutGuidance | None,
        text: TextEdit | None,
        meter: AttentionMeter | None,
        settings: ComposeSettings,
    ) -> None:
        self._backbone = backbone
        self._scheduler = scheduler
        self._alphas_cumprod = scheduler.alphas_cumprod.to(backbone.device)
        # in the UNet's dtype once, not in each call: a layer keeps what it made of a text that stays the same tensor
        self._embeddings = embeddings if text else embeddings.to(backbone.dtype)
        self._added = added
        self._guidance = guidance
        self._text = text
        self._meter = meter
        self._settings = settings
        self._recurs = recurs(settings.preset)
        total = len(scheduler.timesteps)
        self._guided = settings.guided_calls(total)
        self._generators = [torch.Generator().manual_seed(seed) for seed in settings.seeds]
        options = {"generator": self._generators, "eta": 0.0}  # as diffusers' pipeline calls its schedulers
        taken = inspect.signature(scheduler.step).parameters
        self._step_options = {name: value for name, value in options.items() if name in taken}

    def run(self, shape: tuple[int, int, int]) -> Generator[ComposeStep, None, None]:
        """Yield after each UNet call.

        Raises:
            SettingsError: a picture came out as no numbers.
        """
        calls = len(self._scheduler.timesteps) + (self._guided if self._recurs else 0)
        noise = self._draw_noise(shape) * float(self._scheduler.init_noise_sigma)
        with closing(self._advance(noise)) as advancing:
            for step, latents in enumerate(advancing, start=1):
                is_last = step == calls
                pictures = self._decode(latents) if is_last else ()
                attention = self._meter.read() if is_last and self._meter else ()
                yield ComposeStep(step, calls, latents, pictures, attention)

    def _decode(self, latents: Latents) -> tuple[Image, ...]:
        if not latents.isfinite().all():
            how = f"scheduler {self._settings.sampler!r} with {self._settings.steps} steps"
            dtype = str(self._backbone.dtype).removeprefix("torch.")
            raise SettingsError(
                f"{how} in {dtype} gave infinite numbers or NaN, no picture: take another number of steps or another"
                " scheduler, or dtype bfloat16 or float32."
            )
        return tuple(self._backbone.decode(latents))

    def _advance(self, latents: Latents) -> Generator[Latents, None, None]:
        """Give the latents after each UNet call: first of the guided steps, then of the others."""
        guided, others = range(self._guided), range(self._guided, len(self._scheduler.timesteps))
        conditional = [row >= len(self._embeddings) - len(latents) for row in range(len(self._embeddings))]
        euler = self._euler(latents.shape[1:]) if self._recurs else None
        with self._edited(self._guidance, conditional):
            latents = yield from euler.run(latents, guided, passes=2) if euler else self._follow(latents, guided)
        with self._edited(self._unguided, conditional):
            yield from euler.run(latents, others, passes=1) if euler else self._follow(latents, others)

    @property
    def _unguided(self) -> LayoutGuidance | None:
        """The layout without its pull, for the regions of negative texts."""
        if self._guidance is None or self._text is None or not self._text.negatives:
            return None
        return replace(self._guidance, layout_scale=0.0, timesteps=None)

    def _edited(self, guidance: LayoutGuidance | None, conditional: list[bool]) -> AbstractContextManager[None]:
        if not (self._text or self._meter or (guidance and guidance.layout.names)):
            return unedited_cross_attention(self._backbone.unet)
        return edited_cross_attention(
            self._backbone.unet,
            guidance,
            conditional=conditional,
            text=self._text,
            meter=self._meter,
            keep_text=True,
        )

    def _follow(self, latents: Latents, steps: range) -> Generator[Latents, None, Latents]:
        """Take steps of the scheduler."""
        for timestep in self._scheduler.timesteps[steps.start : steps.stop]:
            latents = self._denoise(latents, timestep)
            yield latents
        return latents

    def _euler(self, shape: tuple[int, ...]) -> EulerSampler:
        return EulerSampler(
            self._scheduler.timesteps.float(),
            tuple(self._scheduler.sigmas.tolist()),
            is_velocity=self._backbone.prediction_type == "v_prediction",
            predict=self._predict,
            draw_noise=lambda: self._draw_noise(shape),
        )

    def _draw_noise(self, shape: tuple[int, ...]) -> Latents:
        """Draw each seed's noise from its own generator, on the CPU: the same on every device and in every batch."""
        noise: Tensor = randn_tensor((len(self._generators), *shape), self._generators, self._backbone.device)
        return noise

    def _denoise(self, latents: Latents, timestep: Tensor) -> Latents:
        prediction = self._predict(self._scheduler.scale_model_input(latents, timestep), timestep)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Should have t", UserWarning
            )  # torchsde's, of times equal but for rounding
            stepped = self._scheduler.step(prediction, timestep, latents, **self._step_options, return_dict=False)
        advanced: Tensor = stepped[0]
        return advanced

    @torch.no_grad()  # here and not around the loop: a generator would leave it switched on between its steps
    def _predict(self, latents: Latents, timestep: Tensor) -> Latents:
        """Call the UNet once, for both halves of classifier-free guidance."""
        copies = len(self._embeddings) // len(latents)
        rows = torch.cat([latents] * copies)
        predictions = self._backbone.predict(rows, timestep, self._embeddings, self._added).chunk(copies)
        if copies == 1:
            return predictions[0]
        return guide(
            *predictions,
            latents=latents,
            alpha_bar=self._alphas_cumprod[timestep.round().long()],
            is_velocity=self._backbone.prediction_type == "v_prediction",
            settings=self._settings,
        )
