"""An equivalent of a training step of the authors' code (ali-vilab/Cones-V2 at 447c194), on today's libraries.

Written from a description of it. One photo a step; its latent is encoded anew each time; all parameters of the text
encoder are tuned by AdamW; preservation is a distance on one prompt, the class word, from the same pass as the
denoising loss. Where the description leaves a choice, it is the cheaper one: photos are decoded once and kept in
memory, and the UNet's attention is diffusers' own, fused.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.families import native_size
from cones2.learning.data import float32_copy
from cones2.photos import Photo, crop_square, stack_pixels
from cones2.schedulers import make_scheduler

_BOS_WEIGHT, _TAIL_WEIGHT = 1e-2, 1e-3


class Draw(NamedTuple):
    """What chance decides in a step: noise within the latent's distribution, the noise that is added, and when."""

    spread: Tensor  # [1, channels, height, width]
    noise: Tensor  # likewise
    timestep: Tensor  # [1]


class ConesV2Learner:
    """The text encoder being tuned, its optimiser and the photos.

    Args:
        pipeline: a diffusers pipeline of Stable Diffusion 1.x or 2.x.
        photos: of the subject.
        class_word: its raw category.
    """

    def __init__(self, pipeline: Any, photos: Sequence[Photo], class_word: str) -> None:
        self.pipeline, self.device = pipeline, pipeline.device
        self.scheduler = make_scheduler("ddpm", pipeline.scheduler)
        self.encoder = float32_copy(pipeline.text_encoder, self.device).requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.encoder.parameters(), lr=5e-6, weight_decay=1e-2)
        self.images = [as_tensor(photo, min(native_size(pipeline))).to(self.device) for photo in photos]
        self.input_ids = _tokenize(pipeline, class_word).to(self.device)
        with torch.no_grad():
            self.target = self.encoder(self.input_ids).last_hidden_state
        self.class_tokens = len(pipeline.tokenizer(class_word, add_special_tokens=False)["input_ids"])
        self.randomness = torch.Generator().manual_seed(0)

    def step(self) -> float:
        """Learn from one photo, and return the loss."""
        image = self.images[int(torch.randint(len(self.images), (), generator=self.randomness))]
        embeddings = self.encoder(self.input_ids).last_hidden_state
        loss = self.denoising_loss(embeddings, image, self.draw()) + self._preservation_loss(embeddings)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        return float(loss.detach())

    def denoising_loss(self, embeddings: Tensor, image: Tensor, draw: Draw) -> Tensor:
        """Encode a photo `[1, 3, height, width]`, noise it, and compare the UNet's prediction with what was added."""
        vae, unet = self.pipeline.vae, self.pipeline.unet
        with torch.no_grad():
            posterior = vae.encode(image.to(vae.dtype)).latent_dist
        latents = (posterior.mean.float() + posterior.std.float() * draw.spread) * vae.config["scaling_factor"]
        noised = self.scheduler.add_noise(latents, draw.noise, draw.timestep)
        target = draw.noise
        if self.scheduler.config["prediction_type"] == "v_prediction":
            target = self.scheduler.get_velocity(latents, draw.noise, draw.timestep)
        prediction = unet(noised.to(unet.dtype), draw.timestep, embeddings.to(unet.dtype), return_dict=False)[0]
        loss: Tensor = F.mse_loss(prediction.float(), target)
        return loss

    def _preservation_loss(self, embeddings: Tensor) -> Tensor:
        moved = embeddings - self.target
        tail: Tensor = moved[:, 1 + self.class_tokens :].norm()
        begin: Tensor = moved[:, 0].norm()
        return _BOS_WEIGHT * begin + _TAIL_WEIGHT * tail

    def draw(self) -> Draw:
        """Draw what chance decides in the next step."""
        size = min(native_size(self.pipeline)) // self.pipeline.vae_scale_factor
        shape = (1, self.pipeline.unet.config["in_channels"], size, size)
        spread, noise = (torch.randn(shape, generator=self.randomness).to(self.device) for _ in range(2))
        last = len(self.scheduler.alphas_cumprod)
        return Draw(spread, noise, torch.randint(last, (1,), generator=self.randomness).to(self.device))


def as_tensor(photo: Photo, size: int) -> Tensor:
    """Return a photo's whole view as `[1, 3, size, size]` in -1..1."""
    pixels: Tensor = stack_pixels([crop_square(photo.image, size)]) / 127.5 - 1
    return pixels


def _tokenize(pipeline: Any, text: str) -> Tensor:
    window = pipeline.tokenizer.model_max_length
    batch = pipeline.tokenizer([text], padding="max_length", max_length=window, return_tensors="pt")
    input_ids: Tensor = batch.input_ids
    return input_ids
