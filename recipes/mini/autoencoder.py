"""Set mini's encoder and train its decoder: `python recipes/mini/autoencoder.py --minutes 30`."""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from linear_encoder import set_linear_encoder
from parts import Autoencoder
from sprites import SpriteAtlas
from world import World

LATENT_CHANNELS = 8


def new_autoencoder() -> Autoencoder:
    """An 8x autoencoder without attention, small enough for two CPU cores."""
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )
    start_decoder_as_copy(model)
    return model


@torch.no_grad()
def start_decoder_as_copy(model: Autoencoder) -> None:
    """Start with residual branches at zero, shortcuts and upsampling as copying: colours pass from the start."""
    for module in model.decoder.modules():
        if isinstance(module, ResnetBlock2D):
            block: Any = module
            block.conv2.weight.zero_()
            block.conv2.bias.zero_()
            if block.conv_shortcut is not None:
                _copy(block.conv_shortcut)
        elif isinstance(module, Upsample2D):
            upsampling: Any = module
            _copy(upsampling.conv)
    _copy(model.decoder.conv_in)


def _copy(conv: torch.nn.Conv2d) -> None:
    conv.weight.zero_()
    if conv.bias is not None:
        conv.bias.zero_()
    middle = conv.kernel_size[0] // 2
    for channel in range(min(conv.in_channels, conv.out_channels)):
        conv.weight[channel, channel, middle, middle] = 1


def reconstruction_loss(picture: Tensor, original: Tensor) -> Tensor:
    """L1 and squared error on pixels, and L1 on their differences, so that outlines stay sharp."""
    down = l1_loss(picture.diff(dim=-2), original.diff(dim=-2))
    across = l1_loss(picture.diff(dim=-1), original.diff(dim=-1))
    return l1_loss(picture, original) + 2 * mse_loss(picture, original) + 0.5 * (down + across)


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
    parser.add_argument("--noise", type=float, default=0.05, help="on the scaled latents, as a sampler leaves some")
    parser.add_argument("--seed", type=int, default=1, help="of the pictures trained on; another one for each run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    world = World(
        SpriteAtlas.load(arguments.work / "sprites.safetensors"),
        np.load(arguments.work / "backgrounds.npy"),
        arguments.device,
    )
    rng, generator = np.random.default_rng(arguments.seed), torch.Generator().manual_seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    model: Autoencoder = (
        AutoencoderKL.from_pretrained(arguments.resume).float() if arguments.resume else new_autoencoder()
    )
    if not arguments.resume:
        pictures = world.render([world.scene(rng) for _ in range(96)], 128).images * 2 - 1
        set_linear_encoder(model, pictures.cpu())
        model.register_to_config(scaling_factor=round(1 / float(latents_of(model, pictures.cpu()).std()), 5))
    model = model.to(arguments.device, memory_format=torch.channels_last)
    model.encoder.requires_grad_(False)
    held_out_rng = np.random.default_rng(0)
    held_out = world.render([world.scene(held_out_rng) for _ in range(48)], 128).images * 2 - 1
    report(model, held_out)
    model.save_pretrained(arguments.work / "vae")
    parameters = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=1e-3)
    start, limit, saved = time.monotonic(), 60 * arguments.minutes, time.monotonic()
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
        latents = latents_of(model, crops)
        latents = latents + arguments.noise / model.config.scaling_factor * torch.randn_like(latents)
        rebuilt = model.decode(latents).sample
        loss = reconstruction_loss(rebuilt, crops)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step} {elapsed / 60:.1f} min PSNR {psnr(rebuilt.detach(), crops):.2f} dB", flush=True)
        if time.monotonic() - saved > 180:
            saved = time.monotonic()
            model.save_pretrained(arguments.work / "vae")
    report(model, held_out)
    model.save_pretrained(arguments.work / "vae")


@torch.no_grad()
def latents_of(model: Autoencoder, pictures: Tensor) -> Tensor:
    """The mean of the posterior, unscaled."""
    latents: Tensor = model.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mean
    return latents


@torch.no_grad()
def report(model: Autoencoder, pictures: Tensor) -> None:
    """Print how well pictures that were never trained on are rebuilt, and the spread of the latents."""
    latents = torch.cat([latents_of(model, part) for part in pictures.split(16)])
    rebuilt = torch.cat([model.decode(part).sample for part in latents.split(16)])
    spread = (latents * model.config.scaling_factor).std(dim=(0, 2, 3)).tolist()
    print(f"PSNR {psnr(rebuilt, pictures):.2f} dB; scaled spread {[round(value, 3) for value in spread]}", flush=True)


if __name__ == "__main__":
    main()
