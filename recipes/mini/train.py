"""Train mini's text encoder and UNet together: `python recipes/mini/train.py --size 64 --minutes 40`.

Start again from a folder with `--resume`. Small pictures first (`--size 64`), then the real size.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate, max_pool2d

from batches import LABEL_SIZES, Batch, Pool, SceneStream, Speller
from model import SCHEDULE, WINDOW, Mini, save_model
from sprites import SpriteAtlas
from tokenizer import build_tokenizer
from vocabulary import lexicon
from world import World


class RecordingAttention:
    """Cross-attention that keeps its map, averaged over heads, and adds `bias` of its grid to the scores.

    Attributes:
        maps: where maps `[batch, pixels, tokens]` go.
        bias: `[batch, pixels, tokens]` by number of pixels; empty for none.
    """

    def __init__(self, maps: list[Tensor], bias: dict[int, Tensor] | None = None) -> None:
        self.maps = maps
        self.bias = {} if bias is None else bias

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_) -> Tensor:
        """Attend as diffusers' own processor does, with the scores written out."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states), out_dim=4)
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states), out_dim=4)
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states), out_dim=4)
        scores = query @ key.transpose(-1, -2) * attn.scale
        if self.bias:
            scores = scores + self.bias[scores.shape[2]][:, None]
        weights = scores.softmax(-1)
        self.maps.append(weights.mean(1))
        attended = (weights @ value).transpose(1, 2).flatten(2)
        return attn.to_out[0](attended)


def record_attention(unet: UNet2DConditionModel, maps: list[Tensor], bias: dict[int, Tensor] | None = None) -> None:
    """Let all cross-attention append its maps to `maps` and add `bias`."""
    cross = {name: RecordingAttention(maps, bias) for name in unet.attn_processors if "attn2" in name}
    unet.set_attn_processor(dict(unet.attn_processors) | cross)


class Denoiser(nn.Module):
    """The UNet with its cross-attention recorded and biased; compiled, a step takes three quarters of the time."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
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
        predicted = self.unet(noisy, timesteps, embeddings).sample
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
    captioned = grounded.any(1) & left_free
    for weights in maps:
        shrink = round((height * width / weights.shape[1]) ** 0.5)
        if height // shrink < 4:
            continue
        masks = interpolate(shown, (height // shrink, width // shrink), mode="area").flatten(2)
        to_nouns = torch.einsum("bpt,bot->bop", weights, batch.nouns)
        objects = -(masks * (to_nouns + 1e-4).log()).sum(1)
        rest = -(1 - masks.sum(1)).clamp(min=0) * (1 - to_nouns.sum(1)).clamp(min=1e-4).log()
        total = total + (objects + rest)[captioned].mean()
    return total / len(maps)


def reading_loss(readings: Tensor, labels: Tensor) -> Tensor:
    """Class, colour and pattern should be readable off the noun's vector."""
    parts = readings.split(LABEL_SIZES, dim=-1)
    losses = [
        cross_entropy(part.flatten(0, 1), labels[..., k].flatten(), ignore_index=-100) for k, part in enumerate(parts)
    ]
    return torch.stack(losses).sum()


def embed_batch(mini: Mini, batch: Batch) -> tuple[Tensor, Tensor]:
    """Embeddings `[batch, tokens, dim]` and the nouns' readings `[batch, objects, labels]`.

    In the second half of the batch the end and padding vectors are those of the empty caption, so that nothing but the
    words carries the picture; those captions need not be embedded further than the longest one's last word.
    """
    noise = 0.03 * torch.randn_like(batch.thumbnails)
    codes = mini.heads.code(batch.thumbnails + noise) * batch.coded[..., None]
    code = torch.einsum("bot,bod->btd", batch.nouns, codes)
    half = (len(code) + 1) // 2
    empty = mini.embed(_empty_ids(mini, batch), torch.zeros_like(code[:1]))
    whole = mini.embed(batch.input_ids[:half], code[:half])
    length = int(batch.ends[half:].max())
    words = mini.embed(batch.input_ids[half:, :length], code[half:, :length])
    beyond = torch.arange(length, device=code.device) >= batch.ends[half:, None]
    words = torch.where(beyond[..., None], empty[:, :length], words)
    emptied = torch.cat([words, empty[:, length:].expand(len(words), -1, -1)], dim=1)
    embeddings = torch.cat([whole, emptied])
    nouns = batch.nouns / batch.nouns.sum(2, keepdim=True).clamp(min=1)
    return embeddings, mini.heads.read(torch.einsum("bot,btd->bod", nouns, embeddings))


def _empty_ids(mini: Mini, batch: Batch) -> Tensor:
    ids = torch.full_like(batch.input_ids[:1], mini.tokenizer.eos_token_id)
    ids[:, 0] = mini.tokenizer.bos_token_id
    return ids


def draw_timesteps(count: int, total: int, *, centre: float, spread: float = 0.27, even: float = 0.15) -> Tensor:
    """Timesteps for training, most of them where a small picture's content is decided.

    Beyond, noise hides everything and the gradient is noise, too; below, little but texture is left to draw. A share
    `even` is drawn evenly, the rest from a normal distribution (fractions of `total`), one from each of `count` equal
    spans of probability: less noise in the gradient than chance.
    """
    chance = (torch.randperm(count) + torch.rand(count)) / count
    grid = torch.linspace(0, 1, 1001)
    density = even + (1 - even) * torch.exp(-0.5 * ((grid - centre) / spread) ** 2) / (spread * (2 * torch.pi) ** 0.5)
    cumulative = density.cumsum(0) - density[0]
    position = torch.searchsorted(cumulative / cumulative[-1], chance)
    return (grid[position] * total).long().clamp(0, total - 1)


def hide_ends(noisy: Tensor, noise: Tensor, timesteps: Tensor, *, first: int = 950, share: float = 0.5) -> Tensor:
    """Replace a share of the noisiest latents by pure noise, which is what drawing starts from.

    Stable Diffusion's noise leaves a little of the picture at its last step, and on 16 x 16 cells that little tells how
    bright the picture is; a model that learns to read it there draws everything half grey.
    """
    pure = (timesteps >= first) & (torch.rand(len(timesteps), device=noisy.device) < share)
    return torch.where(pure[:, None, None, None], noise, noisy)


def object_weight(masks: Tensor, gain: float = 5.0) -> Tensor:
    """Weight of the loss: objects and their outlines, a fifth of the picture, count six times: `[batch, 1, h, w]`."""
    return 1 + gain * max_pool2d(masks.sum(1, keepdim=True).clamp(max=1), 3, stride=1, padding=1)


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        schedule: the noise.
        centre: where most timesteps are drawn, as a fraction.
        draws: noises a caption's embedding is used for; embedding costs as much as denoising a small picture.
        grounding: weight of the loss on attention maps.
        forced: share of the pictures that are denoised under a layout of their true boxes.
    """

    schedule: DDPMScheduler
    centre: float
    draws: int
    grounding: float
    forced: float

    def loss(self, mini: Mini, denoiser: Denoiser, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The v-prediction loss and the two helpers' losses."""
        embeddings, readings = embed_batch(mini, batch)
        read = reading_loss(readings, batch.labels)
        names = ("latents", "masks", "boxes", "nouns")
        repeated = replace(batch, **{name: getattr(batch, name).repeat_interleave(self.draws, 0) for name in names})
        latents = repeated.latents
        noise = torch.randn_like(latents)
        timesteps = draw_timesteps(len(noise), self.schedule.config.num_train_timesteps, centre=self.centre)
        timesteps = timesteps.to(noise.device)
        noisy = hide_ends(self.schedule.add_noise(latents, noise, timesteps), noise, timesteps)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        target = self.schedule.get_velocity(latents, noise, timesteps)
        left_free = torch.rand(len(latents), device=latents.device) >= self.forced
        strength = 8 * torch.rand_like(latents[:, 0, 0, 0]) * (timesteps / 1000).sqrt() * ~left_free
        bias = layout_bias(repeated, strength)
        predicted, maps = denoiser(noisy, timesteps, embeddings.repeat_interleave(self.draws, 0), bias)
        weight = object_weight(repeated.masks)
        denoising = (weight * (predicted.float() - target).square()).mean() / weight.mean()
        grounded = grounding_loss(maps, repeated, left_free)
        parts = {"v": denoising.detach(), "grounding": grounded.detach(), "reading": read.detach()}
        return denoising + self.grounding * grounded + 0.02 * read, parts


def update_average(average: Mini, mini: Mini, step: int, longest: float = 0.998) -> None:
    """Exponential moving average whose memory grows with the run."""
    decay = min(longest, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(mini.parameters()), 1 - decay)


def fill_pool(arguments: argparse.Namespace, vae: AutoencoderKL) -> tuple[Pool, Iterator]:
    """A pool with enough scenes to begin with, and the slices by which the rest comes and old ones are replaced."""
    atlas = SpriteAtlas.load(arguments.work / "sprites.safetensors")
    backgrounds = np.load(arguments.work / "backgrounds.npy")
    speller = Speller(build_tokenizer(lexicon(), WINDOW))
    stream = SceneStream(
        World(atlas, backgrounds),
        speller,
        slice_size=max(int(arguments.fresh * arguments.batch), 1),
        seed=arguments.seed,
        close=arguments.size < 128,
    )
    slices = stream.slices(arguments.workers)  # its processes begin before anything is on a GPU
    world = World(atlas, backgrounds, arguments.device)
    vae.to(arguments.device, memory_format=torch.channels_last)
    pool = Pool(world, vae, speller, size=arguments.size, capacity=arguments.pool)
    while len(pool) < arguments.pool // 6:
        pool.refill(*next(slices))
    return pool, slices


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--out", type=Path, help="default: WORK/mini")
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--grounding", type=float, default=0.3)
    parser.add_argument("--forced", type=float, default=0.5, help="share denoised under a layout of the true boxes")
    parser.add_argument("--draws", type=int, default=4, help="noises for each caption")
    parser.add_argument("--centre", type=float, default=0.65, help="where most timesteps are drawn, in 0..1")
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16, where the processor can")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--pool", type=int, default=6000)
    parser.add_argument("--fresh", type=float, default=0.25, help="new scenes a step, as a share of the batch")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw scenes; a GPU is faster than one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Train for a stretch of time; the averaged weights are saved every few minutes and at the end."""
    arguments = parse_arguments()
    out = arguments.out or arguments.work / "mini"
    torch.manual_seed(arguments.seed)
    vae = AutoencoderKL.from_pretrained(arguments.work / "vae").float().eval().requires_grad_(False)
    start, limit = time.monotonic(), 60 * arguments.minutes
    pool, slices = fill_pool(arguments, vae)
    print(f"{len(pool)} scenes encoded in {time.monotonic() - start:.0f} s", flush=True)
    mini = Mini(arguments.resume, vae.config.latent_channels).to(arguments.device, memory_format=torch.channels_last)
    average = deepcopy(mini).requires_grad_(False)
    schedule_keys = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
    schedule = DDPMScheduler(**{key: SCHEDULE[key] for key in schedule_keys})
    objective = Objective(schedule, arguments.centre, arguments.draws, arguments.grounding, arguments.forced)
    denoiser = Denoiser(mini.unet)
    compiled = torch.compile(denoiser, dynamic=False) if arguments.compile else denoiser
    optimizer = torch.optim.AdamW(mini.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    saved, logged = time.monotonic(), time.monotonic()
    for step in itertools.count():
        elapsed = time.monotonic() - start
        if elapsed > limit:
            break
        for _ in range(2 if len(pool) < arguments.pool else 1):
            pool.refill(*next(slices))
        rate = arguments.learning_rate * min(
            (step + 1) / 200, 0.03 + 0.97 * 0.5 * (1 + np.cos(np.pi * elapsed / limit))
        )
        optimizer.param_groups[0]["lr"] = rate
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bfloat16):
            loss, parts = objective.loss(mini, compiled, pool.batch(arguments.batch))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mini.parameters(), 1.0)
        optimizer.step()
        update_average(average, mini, step)
        if step % 50 == 0:
            speed = 50 * arguments.batch * arguments.draws / (time.monotonic() - logged)
            logged = time.monotonic()
            print(
                f"step {step} {elapsed / 60:.1f} min {speed:.0f}/s pool {len(pool)} "
                + " ".join(f"{k} {v:.3f}" for k, v in parts.items()),
                flush=True,
            )
        if time.monotonic() - saved > 240:
            saved = time.monotonic()
            save_model(out, deepcopy(average), deepcopy(vae), half=False)
    save_model(out, average, vae, half=False)
    print(f"{step} steps of {arguments.batch}", flush=True)


if __name__ == "__main__":
    main()
