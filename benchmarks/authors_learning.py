"""An equivalent of a training step of the authors' code (ali-vilab/Cones-V2 at 447c194), on today's libraries.

Written from a description of it. One photo a step; its latent is encoded anew each time; all parameters of the text
encoder are tuned by AdamW; preservation is a distance on one prompt, the class word, from the same pass as the
denoising loss. Where the description leaves a choice, it is the cheaper one: photos are decoded once and kept in
memory, and the UNet's attention is diffusers' own, fused.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2 import Backbone, Photo, make_scheduler
from cones2.photos import crop_square

_BOS_WEIGHT, _TAIL_WEIGHT = 1e-2, 1e-3


class Draw(NamedTuple):
    """What chance decides in a step: noise within the latent's distribution, the noise that is added, and when."""

    spread: Tensor  # [1, channels, height, width]
    noise: Tensor  # likewise
    timestep: Tensor  # [1]


class AuthorsLearner:
    """The text encoder being tuned, its optimiser and the photos."""

    def __init__(self, backbone: Backbone, photos: Sequence[Photo], class_word: str) -> None:
        self.backbone = backbone
        self.scheduler = make_scheduler("ddpm", backbone.scheduler)
        self.encoder = copy.deepcopy(backbone.text_encoder).requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=5e-6, weight_decay=1e-2)
        self.images = [as_tensor(photo, min(backbone.default_size)).to(backbone.device) for photo in photos]
        self.input_ids = _tokenize(backbone, class_word)
        self.target = backbone.embed(self.input_ids)
        self.class_tokens = len(backbone.tokenizer(class_word, add_special_tokens=False)["input_ids"])
        self.randomness = torch.Generator().manual_seed(0)

    def step(self) -> float:
        """Learn from one photo, and return the loss."""
        image = self.images[int(torch.randint(len(self.images), (), generator=self.randomness))]
        embeddings = self.encoder(self.input_ids).last_hidden_state
        loss = self.denoising_loss(embeddings, image, self._draw()) + self._preservation_loss(embeddings)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def denoising_loss(self, embeddings: Tensor, image: Tensor, draw: Draw) -> Tensor:
        """Encode a photo `[1, 3, height, width]`, noise it, and compare the UNet's prediction with what was added."""
        with torch.no_grad():
            posterior = self.backbone.vae.encode(image).latent_dist
        latents = (posterior.mean + posterior.std * draw.spread) * self.backbone.vae.config["scaling_factor"]
        noised = self.scheduler.add_noise(latents, draw.noise, draw.timestep)
        target = draw.noise
        if self.backbone.prediction_type == "v_prediction":
            target = self.scheduler.get_velocity(latents, draw.noise, draw.timestep)
        return F.mse_loss(self.backbone.predict(noised, draw.timestep, embeddings), target)

    def _preservation_loss(self, embeddings: Tensor) -> Tensor:
        moved = embeddings - self.target
        return _BOS_WEIGHT * moved[:, 0].norm() + _TAIL_WEIGHT * moved[:, 1 + self.class_tokens :].norm()

    def _draw(self) -> Draw:
        device = self.backbone.device
        shape = (1, self.backbone.unet.config["in_channels"], *self.backbone.latent_size)
        spread, noise = (torch.randn(shape, generator=self.randomness).to(device) for _ in range(2))
        last = len(self.scheduler.alphas_cumprod)
        return Draw(spread, noise, torch.randint(last, (1,), generator=self.randomness).to(device))


def as_tensor(photo: Photo, size: int) -> Tensor:
    """A photo's whole view as `[1, 3, size, size]` in -1..1."""
    pixels = np.asarray(crop_square(photo.image, size), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


def _tokenize(backbone: Backbone, text: str) -> Tensor:
    batch = backbone.tokenizer([text], padding="max_length", max_length=backbone.window, return_tensors="pt")
    input_ids: Tensor = batch.input_ids.to(backbone.device)
    return input_ids
