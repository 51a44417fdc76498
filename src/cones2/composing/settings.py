"""How pictures are drawn: every setting of composing, checked."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pydantic

from cones2.backbones.schedulers import check_scheduler
from cones2.errors import SettingsError
from cones2.guidance.layout_guidance import check_effect, check_levels
from cones2.guidance.presets import GuidancePreset, OfficialPreset, find_preset, recurs
from cones2.prompts import check_no_weights

_SMALLEST_SIDE, _LARGEST_SIDE = 64, 4096
_USUAL_SAMPLER, _OFFICIAL_SAMPLER = "ddim", "euler"


@dataclass(frozen=True)
class ComposeSettings:
    """How to draw; the defaults are the paper's (arXiv:2305.19327, App. A).

    Attributes:
        seeds: one picture each, drawn as one batch.
        steps: of the scheduler.
        guidance_scale: classifier-free guidance; without effect, and without its cost, up to 1.
        guidance_rescale: how far to bring a guided prediction back to the spread of the prompt's own (arXiv:2305.08891,
            Eq. 15 and 16), against over-saturated colours: 0 not at all, 1 wholly. Their source says 0.7.
        guidance_parallel: what share to keep of the part of guidance that lies along the prompt's own picture and
            over-saturates its colours (arXiv:2410.02416): 1 is classifier-free guidance as it is, 0 without. None is
            what suits the model: 1, and 0 where `mini` draws subjects.
        layout_scale: multiplies the layout's strength; 0 turns it off.
        guided_steps: how many steps, from the first, the layout takes part in; None is all.
        layout_effect: `both`, or one alone, for ablations: `strengthen` subjects in their regions, or `weaken` others.
        layout_levels: which of the UNet's grids the layout acts on, 0 the finest; None is all.
        weight_negative: γ- of the presets `official` and `official-layout`, everywhere outside a subject's region.
        height: in pixels; None is what the model was trained at.
        width: likewise.
        negative_prompt: what the picture should not show; needs classifier-free guidance.
        scheduler: a name of `backbones.SCHEDULERS`; None is the preset's: `ddim`, or `euler` for `official`.
        preset: a name of `guidance.PRESETS`.
        force: use residuals of another text encoder of the same width, with a warning.

    Raises:
        SettingsError: a value is outside its range or without effect, or the preset has a sampler of its own and
            another is asked for.
        PromptError: something in the negative prompt is weighed.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", strict=True)

    seeds: tuple[int, ...] = (0,)
    steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    guidance_parallel: float | None = None
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
        if isinstance(self.seeds, int):
            raise SettingsError(f"seeds {self.seeds} can't be used: expected a list, such as ({self.seeds},).")
        if not self.seeds:
            raise SettingsError("no seeds: expected at least one, each makes a picture.")
        for seed in self.seeds:
            _check_range("seed", seed, 0, 2**63 - 1)
        _check_range("steps", self.steps, 1, 1000)
        _check_range("guidance scale", self.guidance_scale, 0, 1000)
        _check_range("guidance rescale", self.guidance_rescale, 0, 1)
        if self.guidance_parallel is not None:
            _check_range("guidance parallel", self.guidance_parallel, 0, 1)
        _check_range("layout scale", self.layout_scale, 0, 1000)
        for name, side in (("height", self.height), ("width", self.width)):
            if side is not None:
                _check_range(name, side, _SMALLEST_SIDE, _LARGEST_SIDE)
        check_effect(self.layout_effect)
        check_levels(self.layout_levels)
        check_no_weights(self.negative_prompt)
        if self.negative_prompt and self.guidance_scale <= 1:
            raise SettingsError(
                f"the negative prompt has no effect at guidance scale {self.guidance_scale}: take more than 1, or leave"
                " the negative prompt out."
            )
        if self.guided_steps is not None:
            _check_range("guided steps", self.guided_steps, 0, 1000)
        _check_range("weight_negative", self.weight_negative, -1e30, 0)
        if self.scheduler is not None:
            check_scheduler(self.scheduler)
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

    def guided_calls(self, calls: int) -> int:
        """Give how many of a scheduler's UNet calls, from the first, are guided: the same part of them as of the steps.

        Where a scheduler makes two calls in each step but the last one, or in the first one alone, these are exactly
        the calls of the guided steps.
        """
        guided = self.steps if self.guided_steps is None else min(self.guided_steps, self.steps)
        return math.ceil(calls * guided / self.steps)

    @property
    def sampler(self) -> str:
        """The scheduler's name, also where that is left to the preset."""
        return self.scheduler or (_OFFICIAL_SAMPLER if recurs(self.preset) else _USUAL_SAMPLER)


def _check_range(name: str, value: float | int, lowest: float | int, highest: float | int) -> None:
    if not lowest <= value <= highest:  # NaN is in no range
        raise SettingsError(f"{name} {value} can't be used: expected {lowest} to {highest}.")
