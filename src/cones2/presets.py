"""Two readings of Eq. 7, since the paper and the authors' code differ: what M and η(t) are (arXiv:2305.19327)."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.errors import SettingsError
from cones2.guidance import RegionWeights
from cones2.layout import Layout
from cones2.rasterize import Cover, cover, owned, pixel_maps


class NoiseLevel(NamedTuple):
    """Where in its run a call of the denoiser stands.

    Attributes:
        time: of each row: 1 is pure noise, 0 the finished picture; t/T where timesteps run to T.
        step: which of the guided steps this is, from 0.
        steps: how many guided steps there are.
    """

    time: Float[Tensor, "rows"]
    step: int
    steps: int


@dataclass(frozen=True)
class PaperPreset:
    """Algorithm 1 and Eq. 7 as printed, with two readings of our own.

    The printed γ- of -1e-5 would do nothing, so it is a hard mask here. Eq. 7 asks for a concave η and names none; here
    it is `scale·√(t/T)·std(scores)`, the scale set by a sweep on the embedded model (docs/method.md).
    """

    positive: float = 2.5
    scale: float = 1.0

    def weigh(self, layout: Layout, height: int, width: int) -> dict[str, RegionWeights]:
        """Return M of every region on a grid: a subject is irrelevant in the others' own regions, except its own.

        Only what can be seen of a region counts, so a subject is irrelevant where one on top of it has the cell. At
        soft edges it is strengthened by the part that it covers, and others are kept out from a half on.
        """
        shown = cover(layout, height, width)
        anyone = np.zeros((height, width), bool)
        for region in shown.values():
            anyone |= owned(region.cover, region.cover)
        return {name: self._weigh(region, anyone) for name, region in shown.items()}

    def _weigh(self, region: Cover, anyone: Bool[np.ndarray, "height width"]) -> RegionWeights:
        reached = owned(region.reach, region.cover)
        softness = np.divide(region.cover, region.reach, out=np.zeros_like(region.cover), where=region.reach > 0)
        return RegionWeights(torch.from_numpy(self.positive * softness * reached), torch.from_numpy(anyone & ~reached))

    def strength(self, noise: NoiseLevel) -> Float[Tensor, "rows"]:
        """Return η(t) / std(scores) of each row, `scale·√(t/T)`."""
        return self.scale * noise.time.sqrt()


@dataclass(frozen=True)
class ConesV2Preset:
    """What the authors' code does (ali-vilab/Cones-V2 at 447c194).

    One difference: tokens are bound to subjects by name, so two subjects of one class word do not cancel each other.
    The authors also run each guided step twice; that is a loop of its own (`cones2.cones_v2`).
    """

    positive: float = 2.5
    negative: float = -1e8
    scale: float = 0.08

    def weigh(self, layout: Layout, height: int, width: int) -> dict[str, RegionWeights]:
        """Return M: a subject is irrelevant everywhere outside its own region, the background included.

        Pixel maps of 768 x 768 become weights, and these are reduced to the grid: bilinear, corners aligned.
        """
        unblocked = torch.zeros(height, width, dtype=torch.bool, device="cpu")
        return {
            name: RegionWeights(self.shrink(torch.from_numpy(inside), height, width), unblocked)
            for name, inside in pixel_maps(layout).items()
        }

    def shrink(
        self, inside: Bool[Tensor, "rows columns"], height: int, width: int
    ) -> Float[Tensor, "{height} {width}"]:
        """Make weights of a pixel map into weights, and reduce these to a grid."""
        weights = torch.full(inside.shape, self.negative, dtype=torch.float32, device="cpu")
        weights[inside] = self.positive
        return F.interpolate(weights[None, None], (height, width), mode="bilinear", align_corners=True)[0, 0]

    def strength(self, noise: NoiseLevel) -> Float[Tensor, "rows"]:
        """Return η(t) / std(scores) of each row, `scale·log(1 + σ²)`, which is `scale·(-ln ᾱ)`.

        The authors read σ of guided step i from entry i of a table of their own, whatever the sampler.
        """
        sigma = cones_v2_sigmas(noise.steps)[min(noise.step, noise.steps - 1)]
        return torch.full_like(noise.time, float(self.scale * sigma.square().log1p()))


def cones_v2_sigmas(steps: int) -> Float[Tensor, "{steps}"]:
    """Return σ at evenly spaced timesteps, the noisiest first, on Stable Diffusion's betas, whatever the model."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64, device="cpu") ** 2
    alphas_cumprod = (1 - betas).cumprod(0)
    sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
    timesteps = torch.linspace(0, 999, steps, dtype=torch.float64, device="cpu")
    before = timesteps.long().clamp(max=998)
    return torch.lerp(sigmas[before], sigmas[before + 1], timesteps - before).flip(0).float()


Preset = PaperPreset | ConesV2Preset
PRESETS: Mapping[str, Preset] = MappingProxyType({"paper": PaperPreset(), "cones_v2": ConesV2Preset()})
"""By name: the paper, and the authors' code."""


def find_preset(name: str, *, weight_negative: float | None = None) -> Preset:
    """Return a preset by its name, `cones_v2` also with another γ-; SettingsError where there is none to set."""
    if name not in PRESETS:
        raise SettingsError(f"unknown layout preset {name!r}: expected one of {', '.join(PRESETS)}.")
    if weight_negative is None:
        return PRESETS[name]
    if name != "cones_v2":
        raise SettingsError(f"weight_negative is for the preset 'cones_v2', got {name!r}: leave one of both out.")
    return ConesV2Preset(negative=weight_negative)
