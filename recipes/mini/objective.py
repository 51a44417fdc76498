"""What mini's training minimises: the v-prediction loss, with losses on attention maps and on nouns beside it.

A step has static shapes and waits for nothing on its device, so that a CUDA graph can hold it (`graph.py`).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate, max_pool2d

from batches import LABEL_SIZES, Batch
from model import SCHEDULE, Mini
from parts import UNet

LONGEST = 32
"""Tokens of the longest caption, at most."""


class RecordingAttention:
    """Cross-attention that keeps its map, averaged over heads, and adds `bias` of its grid to the scores.

    Attributes:
        maps: where maps `[batch, pixels, tokens]` go.
        bias: `[batch, pixels, tokens]` by number of pixels; empty for none.
    """

    def __init__(self, maps: list[Tensor], bias: dict[int, Tensor] | None = None) -> None:
        self.maps = maps
        self.bias = {} if bias is None else bias

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: object
    ) -> Tensor:
        """Attend as diffusers' own processor does, with the scores written out."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states), out_dim=4)
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states), out_dim=4)
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states), out_dim=4)
        scores = query @ key.transpose(-1, -2) * attn.scale
        if self.bias:
            scores = scores + self.bias[scores.shape[2]][:, None].to(scores.dtype)
        weights = scores.softmax(-1)
        self.maps.append(weights.mean(1))
        attended = (weights @ value).transpose(1, 2).flatten(2)
        out: Tensor = attn.to_out[0](attended)
        return out


def record_attention(unet: UNet, maps: list[Tensor], bias: dict[int, Tensor] | None = None) -> None:
    """Let all cross-attention append its maps to `maps` and add `bias`."""
    cross = {name: RecordingAttention(maps, bias) for name in unet.attn_processors if "attn2" in name}
    unet.set_attn_processor(dict(unet.attn_processors) | cross)


class Denoiser(nn.Module):
    """The UNet with its cross-attention recorded and biased; compiled, a step takes three quarters of the time."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        self.maps: list[Tensor] = []
        self.bias: dict[int, Tensor] = {}
        record_attention(unet, self.maps, self.bias)

    def forward(
        self, noisy: Tensor, timesteps: Tensor, embeddings: Tensor, bias: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Predict v under `bias` `[batch, tokens, height, width]`, and give the maps of all layers."""
        self.maps.clear()
        for shrink in (1, 2, 4):
            pooled = avg_pool2d(bias, shrink).flatten(2).transpose(1, 2)
            self.bias[pooled.shape[1]] = pooled
        dtype = self.unet.conv_in.weight.dtype
        mixed = torch.is_autocast_enabled(noisy.device.type) and dtype == torch.float32
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=mixed):
            predicted = self.unet(noisy.to(dtype), timesteps, embeddings.to(dtype)).sample
        return predicted, list(self.maps)


def layout_bias(batch: Batch, strength: Tensor, blocked: float = 20.0) -> Tensor:
    """What a layout of the true boxes adds to the scores: `[batch, tokens, height, width]`.

    As preset `paper` does it: an object's noun gains `strength` `[batch]` in its own box and is kept out of the other
    objects' boxes. Rows of strength 0 get nothing.
    """
    own = batch.boxes
    others = (own.sum(1, keepdim=True) - own).clamp(max=1) * (1 - own)
    forced = (strength > 0)[:, None, None, None]
    added = strength[:, None, None, None] * own - blocked * others * forced
    return torch.einsum("bohw,bot->bthw", added, batch.nouns)


def grounding_loss(maps: list[Tensor], batch: Batch, left_free: Tensor) -> Tensor:
    """Each pixel should look at the noun of the object it shows, and at no noun where it shows none.

    Only the rows that are `left_free` `[batch]` of a bias count.
    """
    total, grounded = torch.zeros((), device=batch.latents.device), batch.nouns.any(2)
    height, width = batch.latents.shape[-2:]
    shown = batch.masks * grounded[:, :, None, None]
    captioned = (grounded.any(1) & left_free).float()
    for weights in maps:
        shrink = round((height * width / weights.shape[1]) ** 0.5)
        if height // shrink < 4:
            continue
        masks = interpolate(shown, (height // shrink, width // shrink), mode="area").flatten(2)
        to_nouns = torch.einsum("bpt,bot->bop", weights.float(), batch.nouns)
        objects = -(masks * (to_nouns + 1e-4).log()).sum(1)
        rest = -(1 - masks.sum(1)).clamp(min=0) * (1 - to_nouns.sum(1)).clamp(min=1e-4).log()
        total = total + ((objects + rest).mean(1) * captioned).sum() / captioned.sum().clamp(min=1)
    return total / len(maps)


def reading_loss(readings: Tensor, labels: Tensor) -> Tensor:
    """Class, colour and pattern should be readable off the noun's vector."""
    total = torch.zeros((), device=labels.device)
    for k, part in enumerate(readings.split(LABEL_SIZES, dim=-1)):
        wanted = labels[..., k].flatten()
        lost = cross_entropy(part.flatten(0, 1).float(), wanted, ignore_index=-100, reduction="sum")
        total = total + lost / (wanted >= 0).sum().clamp(min=1)
    return total


def warp_loss(warps: Tensor, batch: Batch) -> Tensor:
    """An individual's proportions should be readable off its coded noun: pictures tell them only faintly."""
    coded = batch.coded.float()
    errors = (warps.float() - 10 * batch.warps).square().mean(-1)
    return (errors * coded).sum() / coded.sum().clamp(min=1)


@dataclass(frozen=True)
class Chance:
    """What is drawn at random for a step, after its batch.

    Attributes:
        code_noise: on the thumbnails: `[captions, objects, 2304]`.
        averaged: captions whose codes shift their nouns as a learned residual does: `[captions]`.
        noise: of the latents, `[pictures, channels, height, width]`.
        timesteps: `[pictures]`.
        pure: pictures of which the noise hides everything.
        left_free: pictures that are denoised without a layout.
        strength: of the layout of the others; 0 where left free.
    """

    code_noise: Tensor
    averaged: Tensor
    noise: Tensor
    timesteps: Tensor
    pure: Tensor
    left_free: Tensor
    strength: Tensor


def embed_batch(mini: Mini, batch: Batch, code_noise: Tensor, averaged: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings `[batch, tokens, dim]` and the nouns' vectors `[batch, objects, dim]`.

    In the second half of the batch the end and padding vectors are those of the empty caption, so that nothing but the
    words carries the picture; those captions need not be embedded further than the longest one's last word.
    """
    codes = mini.heads.code(batch.thumbnails + code_noise) * batch.coded[..., None]
    code = torch.einsum("bot,bod->btd", batch.nouns, codes.to(batch.nouns.dtype))
    half, states = (len(code) + 1) // 2, noun_states(mini)
    ids, short = batch.input_ids, slice(LONGEST)
    empty = mini.norm(mini.hidden(_empty_ids(mini, batch)))
    whole = add_codes(mini, ids[:half], code[:half], averaged[:half], states)
    words = add_codes(mini, ids[half:, short], code[half:, short], averaged[half:], states)
    beyond = torch.arange(LONGEST, device=code.device) >= batch.ends[half:, None]
    words = torch.where(beyond[..., None], empty[:, :LONGEST], words)
    emptied = torch.cat([words, empty[:, LONGEST:].expand(len(words), -1, -1)], dim=1)
    embeddings = torch.cat([whole, emptied])
    nouns = batch.nouns / batch.nouns.sum(2, keepdim=True).clamp(min=1)
    return embeddings, torch.einsum("bot,btd->bod", nouns, embeddings)


def noun_states(mini: Mini) -> Tensor:
    """What the last norm gets at each class word of a plain caption: `[nouns, dim]`."""
    return mini.places @ mini.hidden(mini.kinds).flatten(0, 1)


def add_codes(mini: Mini, input_ids: Tensor, code: Tensor, averaged: Tensor, states: Tensor) -> Tensor:
    """Embeddings with codes at their nouns: added before the last norm, or after it as a learned residual is.

    A residual is the same in all captions: it is what the code changes in a plain caption of the class.
    """
    hidden = mini.hidden(input_ids)
    plain = (input_ids[..., None] == mini.nouns).to(states.dtype) @ states
    shift = mini.norm(plain + code) - mini.norm(plain)
    exact, mean = mini.norm(hidden + code), mini.norm(hidden) + shift
    return torch.where(averaged[:, None, None], mean, exact)


def _empty_ids(mini: Mini, batch: Batch) -> Tensor:
    ids = torch.full_like(batch.input_ids[:1], mini.tokenizer.eos_token_id)
    ids[:, 0] = mini.tokenizer.bos_token_id
    return ids


def draw_timesteps(
    count: int,
    total: int,
    *,
    centre: float,
    spread: float = 0.27,
    even: float = 0.15,
    device: torch.device | None = None,
) -> Tensor:
    """Timesteps for training, most of them where a small picture's content is decided.

    Beyond, noise hides everything and the gradient is noise, too; below, little but texture is left to draw. A share
    `even` is drawn evenly, the rest from a normal distribution (fractions of `total`), one from each of `count` equal
    spans of probability: less noise in the gradient than chance.
    """
    chance = (torch.rand(count, device=device).argsort() + torch.rand(count, device=device)) / count
    grid = torch.linspace(0, 1, 1001, device=device)
    density = even + (1 - even) * torch.exp(-0.5 * ((grid - centre) / spread) ** 2) / (spread * (2 * torch.pi) ** 0.5)
    cumulative = density.cumsum(0) - density[0]
    position = torch.searchsorted(cumulative / cumulative[-1], chance)
    return (grid[position] * total).long().clamp(0, total - 1)


def draw_pure(timesteps: Tensor, *, first: int = 950, share: float = 0.5) -> Tensor:
    """Which latents are replaced by pure noise, a share of the noisiest: it is what drawing starts from.

    Stable Diffusion's noise leaves a little of the picture at its last step, and on 16 x 16 cells that little tells how
    bright the picture is; a model that learns to read it there draws everything half grey.
    """
    return (timesteps >= first) & (torch.rand(len(timesteps), device=timesteps.device) < share)


def object_weight(masks: Tensor, gain: float = 5.0) -> Tensor:
    """Weight of the loss: objects and their outlines, a fifth of the picture, count six times: `[batch, 1, h, w]`."""
    return 1 + gain * max_pool2d(masks.sum(1, keepdim=True).clamp(max=1), 3, stride=1, padding=1)


def repeat(values: Tensor, times: int) -> Tensor:
    """Each row as many times, one after the other."""
    return values[:, None].expand(-1, times, *values.shape[1:]).flatten(0, 1)


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        alphas: the schedule's cumulated alphas, on the device.
        centre: where most timesteps are drawn, as a fraction.
        draws: noises a caption's embedding is used for; embedding costs as much as denoising a small picture.
        grounding: weight of the loss on attention maps.
        forced: share of the pictures that are denoised under a layout of their true boxes.
        averaged: share of the captions whose codes shift their nouns as a learned residual does.
    """

    alphas: Tensor
    centre: float
    draws: int
    grounding: float
    forced: float
    averaged: float

    def chance(self, batch: Batch) -> Chance:
        """Draw what a step needs, on the batch's device."""
        count, device = self.draws * len(batch.latents), batch.latents.device
        timesteps = draw_timesteps(count, len(self.alphas), centre=self.centre, device=device)
        left_free = torch.rand(count, device=device) >= self.forced
        return Chance(
            code_noise=0.03 * torch.randn_like(batch.thumbnails),
            averaged=torch.rand(len(batch.latents), device=device) < self.averaged,
            noise=torch.randn(count, *batch.latents.shape[1:], device=device),
            timesteps=timesteps,
            pure=draw_pure(timesteps),
            left_free=left_free,
            strength=8 * torch.rand(count, device=device) * (timesteps / 1000).sqrt() * ~left_free,
        )

    def loss(self, mini: Mini, denoiser: Denoiser, batch: Batch, chance: Chance) -> tuple[Tensor, dict[str, Tensor]]:
        """The v-prediction loss and the two helpers' losses."""
        embeddings, nouns = embed_batch(mini, batch, chance.code_noise, chance.averaged)
        read = reading_loss(mini.heads.read(nouns), batch.labels)
        warp = warp_loss(mini.heads.warp(nouns), batch)
        names = ("latents", "masks", "boxes", "nouns")
        repeated = replace(batch, **{name: repeat(getattr(batch, name), self.draws) for name in names})
        latents, noise = repeated.latents, chance.noise
        alpha = self.alphas[chance.timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        noisy = torch.where(chance.pure[:, None, None, None], noise, noisy)
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        bias = layout_bias(repeated, chance.strength)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        predicted, maps = denoiser(noisy, chance.timesteps, repeat(embeddings, self.draws), bias)
        weight = object_weight(repeated.masks)
        denoising = (weight * (predicted.float() - target).square()).mean() / weight.mean()
        grounded = grounding_loss(maps, repeated, chance.left_free)
        parts = {
            "v": denoising.detach(),
            "grounding": grounded.detach(),
            "reading": read.detach(),
            "warp": warp.detach(),
        }
        return denoising + self.grounding * grounded + 0.02 * read + 0.02 * warp, parts


def schedule_alphas(device: str) -> Tensor:
    """The cumulated alphas of mini's noise."""
    keys = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
    scheduler: Any = DDPMScheduler(**{key: SCHEDULE[key] for key in keys})
    alphas: Tensor = scheduler.alphas_cumprod
    return alphas.to(device)
