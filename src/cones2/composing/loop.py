"""Composing: one picture, or a batch of them, of any number of subjects, each where the layout puts it.

The loop is diffusers' own, bit for bit, when there is neither residual nor layout; a residual changes the prompt's
embedding, a layout the cross-attention, and each costs next to nothing.
"""

import inspect
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pydantic
import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor

from cones2.arranging.relations import warn_of_contradictions
from cones2.backbones import Backbone, make_scheduler
from cones2.composing.official import EulerSampler, Latents
from cones2.errors import SettingsError
from cones2.guidance.attention import edited_cross_attention
from cones2.guidance.leakage import AttentionMeter, Leakage
from cones2.guidance.presets import (
    GuidancePreset,
    LayoutGuidance,
    OfficialPreset,
    check_effect,
    check_levels,
    find_preset,
    recurs,
)
from cones2.guidance.text import TextEdit
from cones2.layout.regions import Layout
from cones2.prompts import ParsedPrompt, TokenizedPrompt, check_no_weights, parse_prompt, tokenize_prompt
from cones2.subjects import Subject, check_negatives, edit_text, embed_prompt, keep_words

__all__ = ["ComposeSettings", "ComposeStep", "Subject", "compose", "embed_prompt"]

_SMALLEST_SIDE, _LARGEST_SIDE = 64, 4096
_USUAL_SAMPLER, _OFFICIAL_SAMPLER = "ddim", "euler"


@dataclass(frozen=True)
class ComposeSettings:
    """How to draw; the defaults are the paper's (arXiv:2305.19327, App. A).

    Attributes:
        seeds: one picture each, drawn as one batch.
        steps: of the scheduler.
        guidance_scale: classifier-free guidance; without effect, and without its cost, up to 1.
        layout_scale: multiplies the layout's strength; 0 turns it off.
        guided_steps: how many steps, from the first, the layout takes part in; None is all.
        layout_effect: `both`, or one alone, for ablations: `strengthen` subjects in their regions, or `weaken` others.
        layout_levels: which of the UNet's grids the layout acts on, 0 the finest; None is all.
        weight_negative: γ- of the presets `official` and `official-layout`, everywhere outside a subject's region.
        height: in pixels; None is what the model was trained at.
        width: likewise.
        negative_prompt: what the picture should not show.
        scheduler: a name of `backbones.SCHEDULERS`; None is the preset's: `ddim`, or `euler` for `official`.
        preset: a name of `guidance.PRESETS`.
        force: use residuals of another text encoder of the same width, with a warning.

    Raises:
        SettingsError: a value is outside its range, or the preset has a sampler of its own and another is asked for.
        PromptError: something in the negative prompt is weighed.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", strict=True)

    seeds: tuple[int, ...] = (0,)
    steps: int = 50
    guidance_scale: float = 7.5
    layout_scale: float = 1.0
    guided_steps: int | None = None
    layout_effect: str = "both"
    layout_levels: tuple[int, ...] | None = None
    weight_negative: float = -1e8
    height: int | None = None
    width: int | None = None
    negative_prompt: str = ""
    scheduler: str | None = None
    preset: str = "paper"
    force: bool = False

    def __post_init__(self) -> None:
        if not self.seeds:
            raise SettingsError("no seeds: expected at least one, each makes a picture.")
        for seed in self.seeds:
            _check_range("seed", seed, 0, 2**63 - 1)
        _check_range("steps", self.steps, 1, 1000)
        _check_range("guidance scale", self.guidance_scale, 0, 1000)
        _check_range("layout scale", self.layout_scale, 0, 1000)
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None:
                _check_range(name, side, _SMALLEST_SIDE, _LARGEST_SIDE)
        check_effect(self.layout_effect)
        check_levels(self.layout_levels)
        check_no_weights(self.negative_prompt)
        if self.guided_steps is not None:
            _check_range("guided steps", self.guided_steps, 0, 1000)
        _check_range("weight_negative", self.weight_negative, -1e30, 0)
        if recurs(self.preset) and self.sampler != _OFFICIAL_SAMPLER:
            raise SettingsError(
                f"preset {self.preset!r} has a sampler of its own, {_OFFICIAL_SAMPLER}; got scheduler"
                f" {self.scheduler!r}. Leave the scheduler out, or take preset 'official-layout'."
            )

    @property
    def reading(self) -> GuidancePreset:
        """The preset, with its γ-."""
        preset = find_preset(self.preset)
        return replace(preset, negative=self.weight_negative) if isinstance(preset, OfficialPreset) else preset

    @property
    def sampler(self) -> str:
        """The scheduler's name, also where that is left to the preset."""
        return self.scheduler or (_OFFICIAL_SAMPLER if recurs(self.preset) else _USUAL_SAMPLER)


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


def compose(
    backbone: Backbone,
    prompt: str,
    *,
    subjects: Mapping[str, Subject] | None = None,
    layout: Layout | None = None,
    settings: ComposeSettings | None = None,
    measure_attention: bool = False,
) -> Generator[ComposeStep, None, None]:
    """Draw pictures of subjects, step by step; the last step holds them.

    Everything is checked before the first step. Closing the generator cancels; the UNet is edited from the first step
    to the last guided one, or to the last where a subject has `during` or `negative` or attention is measured, or until
    the generator is closed.

    Args:
        backbone: the model; the residuals' own.
        prompt: with each subject's name as a placeholder, `"a {rex} on the beach"`.
        subjects: by name.
        layout: where subjects belong; None leaves that to the model.
        settings: the paper's when None.
        measure_attention: whether the last step tells where the attention to each subject went; needs a layout.

    Raises:
        PromptError: prompt and subjects do not match, or the prompt is too long.
        LayoutError: a region is for no subject.
        ResidualMismatchError: a residual was learned on another text encoder.
        SettingsError: the scheduler is unknown, can't make so many steps, or the size does not suit the model; or what
            is asked for needs a region or classifier-free guidance.
    """
    subjects, settings = subjects or {}, settings or ComposeSettings()
    parsed = parse_prompt(prompt, {name: subject.class_word for name, subject in subjects.items()})
    warn_of_contradictions(parsed, layout)
    tokenized = tokenize_prompt(parsed, backbone.tokenizer)
    for subject in subjects.values():
        if subject.residual is not None:
            subject.residual.check_fits(backbone.encoder_id, force=settings.force)
    check_negatives(subjects, layout, guidance_scale=settings.guidance_scale)
    scheduler = _start_scheduler(backbone, settings)
    shape = _latent_shape(backbone, settings)
    negative = _tokenize_negative(backbone, settings)
    sampler = _Sampler(
        backbone,
        scheduler,
        embeddings=_embed_both(backbone, embed_prompt(backbone, tokenized, subjects), negative, settings),
        added=_add_both(backbone, tokenized.input_ids, negative, settings),
        guidance=_guide(layout, tokenized, scheduler, settings),
        text=edit_text(
            tokenized,
            subjects,
            words=lambda text: keep_words(_embed_plain(backbone, text), text, backbone.tokenizer),
            train_steps=len(scheduler.alphas_cumprod),
        ),
        meter=AttentionMeter(layout or Layout({}), tokenized.spans) if measure_attention else None,
        settings=settings,
    )
    return sampler.run(shape)


class _Sampler:
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
        self._embeddings = embeddings
        self._added = added
        self._guidance = guidance
        self._text = text
        self._meter = meter
        self._guidance_scale = settings.guidance_scale
        self._recurs = recurs(settings.preset)
        total = len(scheduler.timesteps)
        self._guided = total if settings.guided_steps is None else min(settings.guided_steps, total)
        self._generators = [torch.Generator().manual_seed(seed) for seed in settings.seeds]
        options = {"generator": self._generators, "eta": 0.0}  # as diffusers' pipeline calls its schedulers
        taken = inspect.signature(scheduler.step).parameters
        self._step_options = {name: value for name, value in options.items() if name in taken}

    def run(self, shape: tuple[int, int, int]) -> Generator[ComposeStep, None, None]:
        """Yield after each UNet call."""
        calls = len(self._scheduler.timesteps) + (self._guided if self._recurs else 0)
        noise = self._draw_noise(shape) * float(self._scheduler.init_noise_sigma)
        with closing(self._advance(noise)) as advancing:
            for step, latents in enumerate(advancing, start=1):
                is_last = step == calls
                pictures = tuple(self._backbone.decode(latents)) if is_last else ()
                attention = self._meter.read() if is_last and self._meter else ()
                yield ComposeStep(step, calls, latents, pictures, attention)

    def _advance(self, latents: Latents) -> Generator[Latents, None, None]:
        """Give the latents after each UNet call: first of the guided steps, then of the others."""
        guided, others = range(self._guided), range(self._guided, len(self._scheduler.timesteps))
        conditional = [row >= len(self._embeddings) - len(latents) for row in range(len(self._embeddings))]
        euler = self._euler(latents.shape[1:]) if self._recurs else None
        with self._edited(self._guidance, conditional):
            latents = yield from euler.run(latents, guided, passes=2) if euler else self._follow(latents, guided)
        with self._edited(self._unguided, conditional) if self._text or self._meter else nullcontext():
            yield from euler.run(latents, others, passes=1) if euler else self._follow(latents, others)

    @property
    def _unguided(self) -> LayoutGuidance | None:
        """The layout without its pull, for the regions of negative texts."""
        if self._guidance is None or self._text is None or not self._text.negatives:
            return None
        return replace(self._guidance, layout_scale=0.0)

    def _edited(self, guidance: LayoutGuidance | None, conditional: list[bool]) -> AbstractContextManager[None]:
        return edited_cross_attention(
            self._backbone.unet, guidance, conditional=conditional, text=self._text, meter=self._meter
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
        stepped = self._scheduler.step(prediction, timestep, latents, **self._step_options, return_dict=False)
        advanced: Tensor = stepped[0]
        return advanced

    @torch.no_grad()  # here and not around the loop: a generator would leave it switched on between its steps
    def _predict(self, latents: Latents, timestep: Tensor) -> Latents:
        """Call the UNet once, for both halves of classifier-free guidance."""
        copies = len(self._embeddings) // len(latents)
        rows = torch.cat([latents] * copies)
        predictions = self._backbone.predict(rows, timestep, self._embeddings, self._added).chunk(copies)
        prediction = predictions[0]
        if copies == 2:
            unconditional, conditional = predictions
            prediction = unconditional + self._guidance_scale * (conditional - unconditional)
        return prediction


def _tokenize_negative(backbone: Backbone, settings: ComposeSettings) -> Int[Tensor, "1 tokens"] | None:
    """Give the negative prompt's tokens; None without classifier-free guidance."""
    if settings.guidance_scale <= 1:
        return None
    return tokenize_prompt(ParsedPrompt(settings.negative_prompt, ()), backbone.tokenizer).input_ids


def _embed_both(
    backbone: Backbone,
    conditional: Float[Tensor, "1 tokens dim"],
    negative: Int[Tensor, "1 tokens"] | None,
    settings: ComposeSettings,
) -> Float[Tensor, "rows tokens dim"]:
    """Stack the text of one UNet call: the negative prompt for every seed, then the prompt for every seed."""
    halves = [conditional]
    if negative is not None:
        halves.insert(0, _zeroed_if_empty(backbone.embed(negative), backbone, settings))
    return torch.cat([half.repeat(len(settings.seeds), 1, 1) for half in halves])


def _add_both(
    backbone: Backbone,
    conditional: Int[Tensor, "1 tokens"],
    negative: Int[Tensor, "1 tokens"] | None,
    settings: ComposeSettings,
) -> dict[str, Float[Tensor, "rows numbers"]]:
    """Stack in the same order what Stable Diffusion XL reads beside the text's tokens; nothing for other models."""
    height, width = _picture_size(backbone, settings)
    halves = [backbone.added_conditions(conditional, height=height, width=width)]
    if negative is not None and backbone.text_encoder_2 is not None:
        added = backbone.added_conditions(negative, height=height, width=width)
        halves.insert(0, added | {"text_embeds": _zeroed_if_empty(added["text_embeds"], backbone, settings)})
    return {name: torch.cat([half[name].repeat(len(settings.seeds), 1) for half in halves]) for name in halves[0]}


def _zeroed_if_empty(negative: Tensor, backbone: Backbone, settings: ComposeSettings) -> Tensor:
    zeroed = backbone.zeros_for_empty_prompt and not settings.negative_prompt
    return torch.zeros_like(negative) if zeroed else negative


def _embed_plain(backbone: Backbone, text: str) -> Float[Tensor, "1 tokens dim"]:
    return backbone.embed(tokenize_prompt(ParsedPrompt(text, ()), backbone.tokenizer).input_ids)


def _guide(
    layout: Layout | None, prompt: TokenizedPrompt, scheduler: Any, settings: ComposeSettings
) -> LayoutGuidance | None:
    if layout is None:
        return None
    return LayoutGuidance(
        layout,
        prompt.spans,
        scheduler.alphas_cumprod,
        preset=settings.reading,
        timesteps=scheduler.timesteps[: settings.guided_steps].float().tolist(),
        layout_scale=settings.layout_scale,
        layout_effect=settings.layout_effect,
        layout_levels=settings.layout_levels,
    )


def _start_scheduler(backbone: Backbone, settings: ComposeSettings) -> Any:
    scheduler = make_scheduler(settings.sampler, backbone.scheduler)
    try:
        scheduler.set_timesteps(settings.steps, device=backbone.device)
    except (ValueError, IndexError) as error:
        raise SettingsError(
            f"scheduler {settings.sampler!r} can't make {settings.steps} steps: take another number of steps."
        ) from error
    return scheduler


def _latent_shape(backbone: Backbone, settings: ComposeSettings) -> tuple[int, int, int]:
    """Give channels, height and width of the latents of one picture."""
    height, width = _picture_size(backbone, settings)
    for name, side in (("height", height), ("width", width)):
        if side % backbone.vae_factor:
            nearest = max(1, round(side / backbone.vae_factor)) * backbone.vae_factor
            raise SettingsError(
                f"{name} {side} does not suit {backbone.name}: expected a multiple of {backbone.vae_factor},"
                f" such as {nearest}."
            )
    channels = int(backbone.unet.config["in_channels"])
    return channels, height // backbone.vae_factor, width // backbone.vae_factor


def _picture_size(backbone: Backbone, settings: ComposeSettings) -> tuple[int, int]:
    """Give height and width in pixels."""
    return settings.height or backbone.default_size[0], settings.width or backbone.default_size[1]


def _check_range(name: str, value: float | int, lowest: float | int, highest: float | int) -> None:
    if not lowest <= value <= highest:  # NaN is in no range
        raise SettingsError(f"{name} {value} can't be used: expected {lowest} to {highest}.")
