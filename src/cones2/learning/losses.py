"""What a residual is learned by: Eqs. 1, 2, 3 and 5 of arXiv:2305.19327 as pure functions of tensors."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

CaptionChunk = tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch tokens dim"], Bool[Tensor, "batch tokens"]]
"""Some captions: their tuned embeddings, the original ones, and which tokens are the class word's own."""


class Noised(NamedTuple):
    """Latents with noise, and what the denoiser should predict from them."""

    latents: Float[Tensor, "batch channels height width"]
    target: Float[Tensor, "batch channels height width"]


class Displacement(NamedTuple):
    """How far other words than the class word moved: the criterion for λ.

    Attributes:
        preservation: Eq. 3 itself, a sum of squares over all positions, mean over captions.
        relative: its root as a share of the words' own length; near 0 is best.
    """

    preservation: float
    relative: float


def add_noise(
    latents: Float[Tensor, "batch channels height width"],
    noise: Float[Tensor, "batch channels height width"],
    alphas_cumprod: Float[Tensor, "batch"],
    prediction_type: str,
) -> Noised:
    """Add noise to latents by Eq. 1: `x_t = α·x + σ·ε` with `α² = alphas_cumprod` and `σ² = 1 - α²`.

    The target is ε for `epsilon` and x for `sample`; for `v_prediction`, `v = α·ε - σ·x` (arXiv:2202.00512, App. D).
    """
    alpha = alphas_cumprod.sqrt()[:, None, None, None]
    sigma = (1 - alphas_cumprod).sqrt()[:, None, None, None]
    targets = {"epsilon": noise, "sample": latents, "v_prediction": alpha * noise - sigma * latents}
    return Noised(alpha * latents + sigma * noise, targets[prediction_type])


def add_flow_noise(
    latents: Float[Tensor, "batch channels height width"],
    noise: Float[Tensor, "batch channels height width"],
    sigmas: Float[Tensor, "batch"],
) -> Noised:
    """Add noise to latents along a straight line: `x_σ = (1 - σ)·x + σ·ε`; the target is its velocity `ε - x`.

    Rectified flow (arXiv:2403.03206, Eq. 13 and 14).
    """
    sigma = sigmas[:, None, None, None]
    return Noised((1 - sigma) * latents + sigma * noise, noise - latents)


def subject_loss(
    prediction: Float[Tensor, "batch channels height width"],
    target: Float[Tensor, "batch channels height width"],
    weights: Float[Tensor, "batch 1 height width"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean-squared denoising error in float32, on the subject alone where `weights` say which cells it has.

    arXiv:2305.19327, Eq. 2, with the denoiser's own prediction type in place of ε. Weights are not the paper's: each
    photo's error is the weighted mean over its cells, so that a small subject counts as much as a large one.
    """
    if weights is None:
        return torch.nn.functional.mse_loss(prediction.float(), target.float())
    squared = (prediction.float() - target.float()).square().mean(dim=1, keepdim=True)
    return ((weights * squared).sum(dim=(1, 2, 3)) / weights.sum(dim=(1, 2, 3))).mean()


def preservation_loss(
    tuned: Float[Tensor, "batch tokens dim"],
    original: Float[Tensor, "batch tokens dim"],
    own: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """Return the squared distance of tuned from original embeddings, summed over positions, mean over captions.

    arXiv:2305.19327, Eq. 3. Every position of the window counts (BOS, words, EOS, padding) but the class word's
    `own`. The authors' code differs: distances that are not squared, on one prompt, with separate weights.
    """
    distance = (tuned - original).square().sum(dim=-1)  # (batch, tokens)
    return distance.masked_fill(own, 0.0).sum(dim=-1).mean()


def mean_shift(chunks: Iterable[CaptionChunk], class_tokens: int) -> Float[Tensor, "{class_tokens} dim"]:
    """Return the residual Δ, float32: the mean shift of the class word's own embeddings.

    arXiv:2305.19327, Eq. 5, added up in float64.
    """
    total, captions = torch.zeros((), dtype=torch.float64, device="cpu"), 0
    for tuned, original, own in chunks:
        shift = tuned[own].double().cpu() - original[own].double().cpu()
        shift = torch.unflatten(shift, 0, (-1, class_tokens))  # (batch, class_tokens, dim)
        total, captions = total + shift.sum(dim=0), captions + len(shift)
    return (total / captions).float()


def displacement(chunks: Iterable[CaptionChunk]) -> Displacement:
    """Measure how far a tuned encoder moved the words that it should leave, on captions that it was not tuned on."""
    moved, length, captions = 0.0, 0.0, 0
    for tuned, original, own in chunks:
        moved += len(own) * float(preservation_loss(tuned, original, own))
        length += len(own) * float(preservation_loss(torch.zeros_like(original), original, own))
        captions += len(own)
    return Displacement(moved / captions, math.sqrt(moved / length))
