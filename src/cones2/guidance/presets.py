"""What a layout adds to cross-attention scores, as numbers on a grid: M and η(t) of arXiv:2305.19327, Eq. 7.

Edited attention is `softmax(QKᵀ/√d + η(t)·M)·V` with `η(t) = strength(t)·std(QKᵀ/√d)`. For the tokens of a subject, M
is γ+ in its own region, γ- where it is irrelevant and 0 elsewhere; for tokens of no subject it is 0. The paper and the
authors' code read this differently, so there are two presets. Nothing here knows a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.errors import SettingsError
from cones2.guidance.cells import covered_cells, pixel_maps, reached_cells, softness
from cones2.layout.regions import Layout

_MIN_ALPHA_BAR = 0.004  # just under Stable Diffusion's last, 0.0047; bounds η where a schedule ends at pure noise


class RegionWeights(NamedTuple):
    """M of one subject on a grid: `gain` is multiplied by η; `blocked` cells get the dtype's floor whatever η is."""

    gain: Float[Tensor, "height width"]
    blocked: Bool[Tensor, "height width"]


class StrengthTable(NamedTuple):
    """η(t) / std(scores) at two or more ascending timesteps; linear between them, flat beyond."""

    timesteps: Float[Tensor, "steps"]
    strengths: Float[Tensor, "steps"]

    def at(self, timestep: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Look timesteps up on the table's device, with no wait for it."""
        right = torch.searchsorted(self.timesteps, timestep).clamp(1, len(self.timesteps) - 1)
        before, after = self.timesteps[right - 1], self.timesteps[right]
        position = ((timestep - before) / (after - before)).clamp(0, 1)
        return torch.lerp(self.strengths[right - 1], self.strengths[right], position)

    def scaled(self, factor: float) -> "StrengthTable":
        """Return the table with all strengths multiplied."""
        return self._replace(strengths=self.strengths * factor)

    def to(self, device: torch.device) -> "StrengthTable":
        """Return the table on a device."""
        return StrengthTable(self.timesteps.to(device), self.strengths.to(device))


@runtime_checkable
class GuidancePreset(Protocol):
    """One reading of Eq. 7."""

    def weigh(self, layout: Layout, height: int, width: int) -> dict[str, RegionWeights]:
        """Return M of every region on a grid."""

    def strengths(
        self, alphas_cumprod: Float[Tensor, "train_steps"], timesteps: Sequence[float] | None
    ) -> StrengthTable:
        """Return η(t) / std(scores) for a noise schedule and, if known, the sampler's timesteps in its order."""


@dataclass(frozen=True)
class PaperPreset:
    """Algorithm 1 and Eq. 7 as printed, with two readings of our own.

    The printed γ- of -1e-5 would do nothing, so it is a hard mask here. Eq. 7 asks for a concave η and names none; here
    it is `scale·√(t/T)·std(scores)`, the scale set by a sweep on the embedded model.
    """

    positive: float = 2.5
    scale: float = 1.0

    def weigh(self, layout: Layout, height: int, width: int) -> dict[str, RegionWeights]:
        """Return M: a subject is irrelevant in the other subjects' own regions, less its own.

        Only what can be seen of a region counts, so a subject is irrelevant where one on top of it has the place. At
        soft edges it is drawn in by the part that it covers, and others are kept out from a half on.
        """
        shown = layout.shown(height, width)
        anyone = torch.zeros(height, width, dtype=torch.bool)
        for region in shown.values():
            anyone |= covered_cells(region)
        reached = {name: reached_cells(region) for name, region in shown.items()}
        return {
            name: RegionWeights(self.positive * softness(region) * reached[name], anyone & ~reached[name])
            for name, region in shown.items()
        }

    def strengths(self, alphas_cumprod: Float[Tensor, "train_steps"], _: Sequence[float] | None) -> StrengthTable:
        """Return `scale·√(t/T)`."""
        timesteps = torch.arange(len(alphas_cumprod), dtype=torch.float32)
        return _table(timesteps, self.scale * (timesteps / len(alphas_cumprod)).sqrt())


@dataclass(frozen=True)
class OfficialPreset:
    """What the authors' code does (ali-vilab/Cones-V2 at 447c194).

    One difference: tokens are bound to subjects by name, so two subjects of one class word do not cancel each other.
    Whether guided steps recur is for `compose`; M and η are the same.
    """

    positive: float = 2.5
    negative: float = -1e8
    scale: float = 0.08
    recurs: bool = True

    def weigh(self, layout: Layout, height: int, width: int) -> dict[str, RegionWeights]:
        """Return M: a subject is irrelevant everywhere outside its own region, the background included."""
        unblocked = torch.zeros(height, width, dtype=torch.bool)
        return {
            name: RegionWeights(self.shrink(inside, height, width), unblocked)
            for name, inside in pixel_maps(layout).items()
        }

    def shrink(
        self, inside: Bool[Tensor, "rows columns"], height: int, width: int
    ) -> Float[Tensor, "{height} {width}"]:
        """Turn a pixel map into weights, and reduce these to a grid: bilinear, corners aligned."""
        weights = torch.where(inside, self.positive, self.negative)
        return F.interpolate(weights[None, None], (height, width), mode="bilinear", align_corners=True)[0, 0]

    def strengths(
        self, alphas_cumprod: Float[Tensor, "train_steps"], timesteps: Sequence[float] | None
    ) -> StrengthTable:
        """Return `scale·log(1 + σ²)`, which is `scale·(-ln ᾱ)`.

        The authors read σ of step i from entry i of a table of their own, whatever the sampler; without the sampler's
        timesteps it is the schedule's at t, capped for schedules that end at pure noise.
        """
        if timesteps is None:
            knots = torch.arange(len(alphas_cumprod), dtype=torch.float32)
            return _table(knots, -self.scale * alphas_cumprod.float().cpu().clamp(min=_MIN_ALPHA_BAR).log())
        distinct = torch.tensor(list(dict.fromkeys(map(float, timesteps))))
        order = distinct.argsort()
        return _table(distinct[order], self.scale * _authors_sigmas(len(distinct)).square().log1p()[order])


PRESETS: Mapping[str, GuidancePreset] = MappingProxyType(
    {
        "paper": PaperPreset(),
        "official": OfficialPreset(),
        "official-layout": OfficialPreset(recurs=False),
    }
)
"""By name: the paper; the authors' code; its layout guidance alone, each step once, with any scheduler."""


def find_preset(name: str) -> GuidancePreset:
    """Return a preset by its name.

    Raises:
        SettingsError: there is none of this name.
    """
    if name not in PRESETS:
        raise SettingsError(f"unknown layout preset {name!r}: expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def recurs(name: str) -> bool:
    """Tell whether a preset runs each guided step twice, with noise put back between, in a sampler of its own.

    Raises:
        SettingsError: there is none of this name.
    """
    preset = find_preset(name)
    return isinstance(preset, OfficialPreset) and preset.recurs


def floor_of(dtype: torch.dtype) -> float:
    """Return what hides a token in scores of a dtype: finite, so that a row of nothing else still has a softmax."""
    return torch.finfo(dtype).min / 2


def _table(timesteps: Float[Tensor, "steps"], strengths: Float[Tensor, "steps"]) -> StrengthTable:
    """Add a knot below the first, so that even one entry makes a table."""
    return StrengthTable(torch.cat([timesteps[:1] - 1, timesteps]), torch.cat([strengths[:1], strengths]))


def _authors_sigmas(steps: int) -> Float[Tensor, "{steps}"]:
    """Return σ at evenly spaced timesteps, last one first, on Stable Diffusion's betas, whatever the model."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas_cumprod = (1 - betas).cumprod(0)
    sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
    knots = torch.arange(1000, dtype=torch.float64)
    return StrengthTable(knots, sigmas).at(torch.linspace(0, 999, steps, dtype=torch.float64)).flip(0).float()
