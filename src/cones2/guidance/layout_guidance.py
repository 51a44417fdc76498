"""A layout bound to a prompt: what is added for every pixel and token, and how strongly at each timestep."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cones2.errors import LayoutError, PromptError, SettingsError
from cones2.guidance.presets import PRESETS, GuidancePreset, RegionWeights, StrengthTable
from cones2.layout.regions import Layout

Spans = Mapping[str, tuple[tuple[int, int], ...]]


class TokenWeights(NamedTuple):
    """M of all subjects, for every pixel of a grid (row by row) and every token."""

    gain: Float[Tensor, "pixels tokens"]
    blocked: Bool[Tensor, "pixels tokens"]


EFFECTS = ("both", "strengthen", "weaken")
"""Which of Sec. 3.3's two ideas act."""


@dataclass(frozen=True, eq=False)
class LayoutGuidance:
    """A layout bound to the token spans of one prompt, to a preset and to a noise schedule.

    A subject without a region gets 0 everywhere, like tokens of no subject.

    Attributes:
        layout: regions by subject name; every name needs a span.
        spans: (start, stop) token ranges of each mention of each subject.
        alphas_cumprod: ᾱ of the scheduler's training timesteps.
        preset: how Eq. 7 is read; `find_preset` knows them by name.
        timesteps: those of the sampler's guided steps, in its order; only `official` uses them (see there).
        layout_scale: multiplies η; 0 turns the layout off, the hard mask too.
        layout_effect: `both`, or for an ablation (arXiv:2305.19327, Fig. 6) one alone: `strengthen`, only γ+ in own
            regions, or `weaken`, only what hides irrelevant subjects.
        layout_levels: of the UNet's grids, those whose layers are edited: 0 has the latents' size, each next one half
            of it; None is all.

    Raises:
        LayoutError: a region's name has no span, or nothing of it can be seen.
        SettingsError: the layout scale is negative or not finite, or the effect unknown.
    """

    layout: Layout
    spans: Spans
    alphas_cumprod: Float[Tensor, "train_steps"]
    preset: GuidancePreset = PRESETS["paper"]
    timesteps: Sequence[float] | None = None
    layout_scale: float = 1.0
    layout_effect: str = EFFECTS[0]
    layout_levels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in self.layout.names:
            if not self.spans.get(name):
                raise LayoutError(
                    f"region {name!r} is for no subject of the prompt. Write {{{name}}} there, or drop it."
                )
        for name, region in self.layout.shown(1, 1).items():
            if not region.cover.any():
                raise LayoutError(
                    f"nothing can be seen of region {name!r}: it is too thin, or wholly behind others. Raise its z, or"
                    " make it larger."
                )
        check_effect(self.layout_effect)
        check_levels(self.layout_levels)
        if not (math.isfinite(self.layout_scale) and self.layout_scale >= 0):
            raise SettingsError(
                f"layout scale {self.layout_scale} can't be used: expected 0 (no layout) or more. Take 1, the preset's."
            )

    @cached_property
    def strengths(self) -> StrengthTable:
        """η(t) / std(scores)."""
        return self.preset.strengths(self.alphas_cumprod, self.timesteps).scaled(self.layout_scale)

    def weights(self, height: int, width: int, tokens: int, *, level: int = 0) -> TokenWeights:
        """Lay M out for a grid and a number of tokens; all 0 where the grid's level is not among `layout_levels`.

        Raises:
            PromptError: a subject's tokens lie beyond the last one.
        """
        gain = torch.zeros(height * width, tokens)
        blocked = torch.zeros(height * width, tokens, dtype=torch.bool)
        if self.layout_levels is not None and level not in self.layout_levels:
            return TokenWeights(gain, blocked)
        for name, region in self.preset.weigh(self.layout, height, width).items():
            region = _limited(region, self.layout_effect)
            drawn = region.gain * torch.where(region.gain > 0, self.layout.regions[name].weight, 1)
            for start, stop in self.spans[name]:
                if not 0 <= start < stop <= tokens:
                    raise PromptError(f"tokens {start}..{stop} of {name!r} are not among {tokens}. Shorten the prompt.")
                gain[:, start:stop] = drawn.reshape(-1, 1)
                blocked[:, start:stop] = region.blocked.reshape(-1, 1)
        return TokenWeights(gain, blocked & (self.layout_scale > 0))


def check_effect(name: str) -> None:
    """Check a layout effect's name.

    Raises:
        SettingsError: there is none of this name.
    """
    if name not in EFFECTS:
        raise SettingsError(f"unknown layout effect {name!r}: expected one of {', '.join(EFFECTS)}.")


def check_levels(levels: tuple[int, ...] | None) -> None:
    """Check which of a UNet's grids are to be edited.

    Raises:
        SettingsError: there is none, or one is negative.
    """
    if levels is not None and (not levels or min(levels) < 0):
        got = ", ".join(map(str, levels)) or "none"
        raise SettingsError(f"layout levels {got} can't be used: expected at least one, from 0, the finest grid.")


def _limited(region: RegionWeights, effect: str) -> RegionWeights:
    """Leave out what strengthens, or what weakens."""
    if effect == "strengthen":
        return RegionWeights(region.gain.clamp(min=0), torch.zeros_like(region.blocked))
    return region._replace(gain=region.gain.clamp(max=0)) if effect == "weaken" else region
