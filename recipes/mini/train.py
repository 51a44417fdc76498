"""Train mini's text encoder and UNet together: `python recipes/mini/train.py --size 64 --minutes 40`.

Start again from a folder with `--resume`. Small pictures first (`--size 64`), then the real size.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from batches import Captions, Pool, SceneStream, Speller
from model import WINDOW, Mini, save_model
from objective import Denoiser, Objective, schedule_alphas
from parts import Autoencoder
from sprites import SpriteAtlas
from tokenizer import build_tokenizer
from training_world import TrainingWorld
from vocabulary import lexicon
from world import Scene


def update_average(average: Mini, mini: Mini, step: int, longest: float = 0.998) -> None:
    """Exponential moving average whose memory grows with the run."""
    decay = min(longest, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(mini.parameters()), 1 - decay)


def fill_pool(arguments: argparse.Namespace, vae: Autoencoder) -> tuple[Pool, Iterator[tuple[list[Scene], Captions]]]:
    """A pool with enough scenes to begin with, and the slices by which the rest comes and old ones are replaced."""
    atlas = SpriteAtlas.load(arguments.work / "sprites.safetensors")
    backgrounds = np.load(arguments.work / "backgrounds.npy")
    speller = Speller(build_tokenizer(lexicon(), WINDOW))
    stream = SceneStream(
        TrainingWorld(atlas, backgrounds),
        speller,
        slice_size=max(int(arguments.fresh * arguments.batch), 1),
        seed=arguments.seed,
        close=arguments.size < 128,
    )
    slices = stream.slices(arguments.workers)  # its processes begin before anything is on a GPU
    world = TrainingWorld(atlas, backgrounds, arguments.device)
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
    parser.add_argument("--averaged", type=float, default=0.5, help="share of captions coded as by a residual")
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
    mini = Mini(arguments.resume, vae.config.latent_channels).to(arguments.device)
    mini.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    average = deepcopy(mini).requires_grad_(False)
    objective = Objective(
        schedule_alphas(arguments.device),
        centre=arguments.centre,
        draws=arguments.draws,
        grounding=arguments.grounding,
        forced=arguments.forced,
        averaged=arguments.averaged,
    )
    denoiser = Denoiser(mini.unet)
    compiled: Any = torch.compile(denoiser, dynamic=False) if arguments.compile else denoiser
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
        batch = pool.batch(arguments.batch)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bfloat16):
            loss, parts = objective.loss(mini, compiled, batch, objective.chance(batch))
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
