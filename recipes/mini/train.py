"""Train mini's text encoder and UNet together: `python recipes/mini/train.py --size 64 --minutes 40`.

Start again from a folder with `--resume`. Small pictures first (`--size 64`), then the real size.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, mse_loss

from batches import LABEL_SIZES, Batch, Pool
from model import SCHEDULE, Mini, save_model
from sprites import SpriteAtlas
from world import World


class RecordingAttention:
    """Cross-attention that keeps its map, averaged over heads, for the grounding loss."""

    def __init__(self, maps: list[Tensor]) -> None:
        self.maps = maps

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_) -> Tensor:
        """Attend as diffusers' own processor does, with the scores written out."""
        query = attn.head_to_batch_dim(attn.to_q(hidden_states), out_dim=4)
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states), out_dim=4)
        value = attn.head_to_batch_dim(attn.to_v(encoder_hidden_states), out_dim=4)
        weights = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)
        self.maps.append(weights.mean(1))
        attended = (weights @ value).transpose(1, 2).flatten(2)
        return attn.to_out[0](attended)


@contextmanager
def recorded_attention(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Record all cross-attention maps of the calls inside the block."""
    maps: list[Tensor] = []
    saved = dict(unet.attn_processors)
    recording = {name: RecordingAttention(maps) if "attn2" in name else processor for name, processor in saved.items()}
    unet.set_attn_processor(recording)
    try:
        yield maps
    finally:
        unet.set_attn_processor(saved)


def grounding_loss(maps: list[Tensor], batch: Batch) -> Tensor:
    """Each pixel should look at the noun of the object it shows, and at no noun where it shows none."""
    total, grounded = torch.zeros((), device=batch.latents.device), batch.nouns.any(2)
    height, width = batch.latents.shape[-2:]
    shown = batch.masks * grounded[:, :, None, None]
    captioned = grounded.any(1)
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


def training_loss(
    mini: Mini, batch: Batch, schedule: DDPMScheduler, grounding: float
) -> tuple[Tensor, dict[str, float]]:
    """The v-prediction loss and the two helpers' losses.

    All timesteps weigh the same: min-SNR weights leave next to nothing to the noisy half, where so small a picture's
    content is decided.
    """
    embeddings, readings = embed_batch(mini, batch)
    noise = torch.randn_like(batch.latents)
    timesteps = torch.randint(schedule.config.num_train_timesteps, (len(noise),), device=noise.device)
    noisy = schedule.add_noise(batch.latents, noise, timesteps)
    target = schedule.get_velocity(batch.latents, noise, timesteps)
    with recorded_attention(mini.unet) as maps:
        predicted = mini.unet(noisy, timesteps, embeddings).sample
    denoising = mse_loss(predicted.float(), target)
    grounded, read = grounding_loss(maps, batch), reading_loss(readings, batch.labels)
    parts = {"v": denoising.item(), "grounding": grounded.item(), "reading": read.item()}
    return denoising + grounding * grounded + 0.02 * read, parts


def update_average(average: Mini, mini: Mini, step: int, longest: float = 0.998) -> None:
    """Exponential moving average whose memory grows with the run."""
    decay = min(longest, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, new in zip(average.parameters(), mini.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)


def main() -> None:
    """Train for a stretch of time; the averaged weights are saved every few minutes and at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--out", type=Path, help="default: WORK/mini")
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--grounding", type=float, default=0.1)
    parser.add_argument("--pool", type=int, default=6000)
    parser.add_argument("--fresh", type=float, default=0.25, help="new scenes a step, as a share of the batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    out = arguments.out or arguments.work / "mini"
    torch.manual_seed(arguments.seed)
    vae = AutoencoderKL.from_pretrained(arguments.work / "vae").float().eval().requires_grad_(False)
    vae = vae.to(arguments.device, memory_format=torch.channels_last)
    world = World(
        SpriteAtlas.load(arguments.work / "sprites.safetensors"),
        np.load(arguments.work / "backgrounds.npy"),
        arguments.device,
    )
    mini = Mini(arguments.resume, vae.config.latent_channels).to(arguments.device, memory_format=torch.channels_last)
    average = deepcopy(mini).requires_grad_(False)
    pool = Pool(world, vae, mini.tokenizer, size=arguments.size, seed=arguments.seed)
    start, limit = time.monotonic(), 60 * arguments.minutes
    first = arguments.pool // 6  # enough to begin with; the rest comes slice by slice
    while len(pool.scenes) < first:
        pool.refill(32, arguments.pool)
    print(f"{len(pool.scenes)} scenes encoded in {time.monotonic() - start:.0f} s", flush=True)
    schedule = DDPMScheduler(
        **{
            key: SCHEDULE[key]
            for key in ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
        }
    )
    optimizer = torch.optim.AdamW(mini.parameters(), lr=1.0, betas=(0.9, 0.99), weight_decay=0.01)
    saved, logged = time.monotonic(), time.monotonic()
    for step in itertools.count():
        elapsed = time.monotonic() - start
        if elapsed > limit:
            break
        fresh = int(arguments.fresh * arguments.batch * (2 if len(pool.scenes) < arguments.pool else 1))
        pool.refill(max(fresh, 1), arguments.pool)
        rate = arguments.learning_rate * min(
            (step + 1) / 200, 0.03 + 0.97 * 0.5 * (1 + np.cos(np.pi * elapsed / limit))
        )
        optimizer.param_groups[0]["lr"] = rate
        loss, parts = training_loss(mini, pool.batch(arguments.batch), schedule, arguments.grounding)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mini.parameters(), 1.0)
        optimizer.step()
        update_average(average, mini, step)
        if step % 50 == 0:
            speed = 50 * arguments.batch / (time.monotonic() - logged)
            logged = time.monotonic()
            print(
                f"step {step} {elapsed / 60:.1f} min {speed:.0f}/s pool {len(pool.scenes)} "
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
