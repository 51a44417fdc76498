"""Train mini's autoencoder: `python recipes/mini/autoencoder.py --minutes 12`."""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import l1_loss

from sprites import SpriteAtlas
from world import World

LATENT_CHANNELS = 6


def new_autoencoder() -> AutoencoderKL:
    """An 8x autoencoder without attention, small enough for two CPU cores."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )


def reconstruction_loss(picture: Tensor, original: Tensor) -> Tensor:
    """L1 on pixels, plus L1 on their differences, so that outlines stay sharp."""
    down = l1_loss(picture.diff(dim=-2), original.diff(dim=-2))
    across = l1_loss(picture.diff(dim=-1), original.diff(dim=-1))
    return l1_loss(picture, original) + down + across


def random_crops(pictures: Tensor, size: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` random square crops of each picture."""
    limit = pictures.shape[-1] - size + 1
    corners = torch.randint(limit, (count, 2), generator=generator).tolist()
    return torch.cat([pictures[:, :, y : y + size, x : x + size] for y, x in corners])


def psnr(pictures: Tensor, originals: Tensor) -> float:
    """Mean peak signal-to-noise ratio in dB of pictures in -1..1."""
    error = (pictures.clamp(-1, 1) - originals).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())


def main() -> None:
    """Train for a stretch of time, then save the weights and the spread of the latents."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--resume", type=Path, help="a diffusers folder to start from")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    world = World(
        SpriteAtlas.load(arguments.work / "sprites.safetensors"),
        np.load(arguments.work / "backgrounds.npy"),
        arguments.device,
    )
    rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    model = AutoencoderKL.from_pretrained(arguments.resume) if arguments.resume else new_autoencoder()
    model = model.to(arguments.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=1e-3)
    start, limit = time.monotonic(), 60 * arguments.minutes
    for step in itertools.count():
        elapsed = time.monotonic() - start
        if elapsed > limit:
            break
        rate = arguments.learning_rate * min(
            (step + 1) / 100, 0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * elapsed / limit))
        )
        optimizer.param_groups[0]["lr"] = rate
        scenes = [world.scene(rng) for _ in range(arguments.batch // 4)]
        crops = random_crops(world.render(scenes, 128).images, 64, 4, generator) * 2 - 1
        posterior = model.encode(crops.contiguous(memory_format=torch.channels_last)).latent_dist
        loss = reconstruction_loss(model.decode(posterior.sample()).sample, crops) + 1e-6 * posterior.kl().sum() / len(
            crops
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} {elapsed / 60:.1f} min loss {loss.item():.4f}", flush=True)
    model.eval()
    with torch.no_grad():
        pictures = world.render([world.scene(rng) for _ in range(64)], 128).images * 2 - 1
        latents = torch.cat([model.encode(part).latent_dist.mean for part in pictures.split(16)])
        rebuilt = torch.cat([model.decode(part).sample for part in latents.split(16)])
    spread = latents.std(dim=(0, 2, 3))
    print(f"steps {step}, PSNR {psnr(rebuilt, pictures):.2f} dB, latent std {latents.std():.3f}")
    print("by channel", [round(value, 3) for value in spread.tolist()])
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    model.save_pretrained(arguments.work / "vae")


if __name__ == "__main__":
    main()
