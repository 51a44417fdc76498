"""Train encoder and decoder together on a GPU, starting from the linear encoder and staying near its latents.

At the end the decoder alone learns to draw sharply what the UNet gives it (`Finisher`).
"""

from collections.abc import Callable
from copy import deepcopy

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, mse_loss, relu

from autoencoder import psnr, reconstruction_loss
from batches import Batch, Encode, encoder_of
from model import Mini
from objective import embed_batch
from parts import Autoencoder

LEAST_GAIN = 1.0
"""In dB: what a learned encoder must rebuild better by than the linear one to take its place."""


@torch.no_grad()
def unfreeze_encoder(vae: Autoencoder) -> None:
    """Give the linear encoder's residual branches weights from which they can learn; what it gives stays the same."""
    for module in vae.encoder.modules():
        if isinstance(module, ResnetBlock2D) and not module.conv1.weight.any():
            nn.init.kaiming_normal_(module.conv1.weight, nonlinearity="relu")


@torch.no_grad()
def measure(vae: Autoencoder, pictures: Tensor) -> float:
    """PSNR in dB of pictures that were never trained on."""
    parts = [vae.decode(vae.encode(part).latent_dist.mean).sample for part in pictures.split(64)]
    return psnr(torch.cat(parts).float(), pictures)


class JointTraining:
    """Trains encoder and decoder on pictures; `step` takes one step.

    Attributes:
        vae: what is trained.
        linear: the encoder it started from.
        noise: on the scaled latents, as a sampler leaves some.
        pull: weight of the squared distance to the linear encoder's scaled latents.
    """

    def __init__(self, vae: Autoencoder, *, rate: float = 1.2e-3, noise: float = 0.07, pull: float = 0.05) -> None:
        self.linear = encoder_of(deepcopy(vae))
        unfreeze_encoder(vae)
        self.vae, self.noise, self.pull, self.rate = vae.requires_grad_(True), noise, pull, rate
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [*vae.encoder.parameters(), *vae.quant_conv.parameters()], "share": 0.5},
                {"params": [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()], "share": 1.0},
            ],
            lr=rate,
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )
        self.steps = 0

    def step(self, pictures: Tensor, share: float) -> Tensor:
        """One step on pictures in -1..1, with a `share` of the learning rate."""
        self.steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["share"] * share * min(1.0, self.steps / 100)
        scale = self.vae.config.scaling_factor
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast(pictures.device.type, torch.bfloat16):
            latents = self.vae.encode(pictures).latent_dist.mean.float()
            noised = latents + self.noise / scale * torch.randn_like(latents)
            rebuilt = self.vae.decode(noised).sample.float()
        loss = reconstruction_loss(rebuilt, pictures)
        loss = loss + self.pull * mse_loss(latents * scale, self.linear(pictures))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()


def settle(vae: Autoencoder, before: Autoencoder, held_out: Tensor, say: Callable[[str], None]) -> Autoencoder:
    """The trained autoencoder, or the one from before it where it gained too little."""
    vae.requires_grad_(False)
    old, new = measure(before, held_out), measure(vae, held_out)
    kept = vae if new >= old + LEAST_GAIN else before
    verdict = "the learned encoder stays" if kept is vae else "the linear encoder stays"
    say(f"autoencoder: PSNR {new:.2f} dB, was {old:.2f}: {verdict}")
    return kept


class Patches(nn.Module):
    """Says of each patch whether it was rendered or decoded."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.norm = nn.GroupNorm(8, 2 * width)
        self.third = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.last = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores, high for rendered ones."""
        features = leaky_relu(self.first(pictures), 0.2)
        features = leaky_relu(self.norm(self.second(features)), 0.2)
        scores: Tensor = self.last(leaky_relu(self.third(features), 0.2))
        return scores


class Finisher:
    """Trains the decoder on latents that the UNet denoised, and on true ones, against the true pictures.

    Attributes:
        sharpness: weight of the patch discriminator.
    """

    def __init__(self, vae: Autoencoder, mini: Mini, alphas: Tensor, *, rate: float = 5e-4) -> None:
        self.vae, self.mini, self.alphas, self.rate = vae, mini, alphas, rate
        self.sharpness = 0.03
        vae.requires_grad_(False)
        self.trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.patches = Patches().to(alphas.device)
        self.patches.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.judging = torch.optim.AdamW(self.patches.parameters(), lr=rate, betas=(0.5, 0.9), weight_decay=0.0)

    @torch.no_grad()
    def denoised(self, batch: Batch, *, low: int = 250, high: int = 750, steps: int = 3) -> Tensor:
        """Latents noised to random times and denoised in a few steps: `[batch, channels, height, width]`."""
        latents, count = batch.latents, len(batch.latents)
        nothing = torch.zeros(count, dtype=torch.bool, device=latents.device)
        embeddings, _ = embed_batch(self.mini, batch, torch.zeros_like(batch.thumbnails), nothing)
        first = torch.randint(low, high, (count,), device=latents.device)
        alpha = self.alphas[first][:, None, None, None]
        noisy = clean = alpha.sqrt() * latents + (1 - alpha).sqrt() * torch.randn_like(latents)
        for step in range(steps):
            now, later = first * (steps - step) // steps, first * (steps - step - 1) // steps
            alpha = self.alphas[now][:, None, None, None]
            v = self.mini.unet(noisy.contiguous(memory_format=torch.channels_last), now, embeddings).sample.float()
            clean, noise = alpha.sqrt() * noisy - (1 - alpha).sqrt() * v, alpha.sqrt() * v + (1 - alpha).sqrt() * noisy
            alpha = self.alphas[later][:, None, None, None]
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        return clean

    def step(self, batch: Batch, pictures: Tensor, share: float, *, sharpen: bool) -> dict[str, Tensor]:
        """One step on a batch and its pictures in -1..1; half of its latents are true ones with a little noise."""
        for optimizer in (self.optimizer, self.judging):
            optimizer.param_groups[0]["lr"] = self.rate * share
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        half = len(pictures) // 2
        with torch.autocast(pictures.device.type, torch.bfloat16):
            latents = self.denoised(batch)
            latents[:half] = batch.latents[:half] + 0.05 * torch.randn_like(latents[:half])
            rebuilt = self.vae.decode(latents / self.vae.config.scaling_factor).sample.float()
            fooled = -self.patches(rebuilt).float().mean()
        rebuilding = reconstruction_loss(rebuilt, pictures)
        self.optimizer.zero_grad()
        (rebuilding + (self.sharpness * fooled if sharpen else 0)).backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        with torch.autocast(pictures.device.type, torch.bfloat16):
            true, made = self.patches(pictures).float(), self.patches(rebuilt.detach()).float()
        telling = relu(1 - true).mean() + relu(1 + made).mean()
        self.judging.zero_grad()
        telling.backward()
        self.judging.step()
        return {"rebuilding": rebuilding.detach(), "telling": telling.detach()}


def sharpness(vae: Autoencoder, encode: Encode, pictures: Tensor) -> float:
    """The mean gradient of rebuilt pictures over that of the true ones."""
    with torch.no_grad():
        rebuilt = torch.cat(
            [vae.decode(encode(part) / vae.config.scaling_factor).sample for part in pictures.split(64)]
        )
    return float(_steepness(rebuilt.float().clamp(-1, 1)) / _steepness(pictures))


def _steepness(pictures: Tensor) -> Tensor:
    return pictures.diff(dim=-1).abs().mean() + pictures.diff(dim=-2).abs().mean()
