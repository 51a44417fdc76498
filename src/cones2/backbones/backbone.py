"""A pretrained text-to-image model behind one small interface."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float, Int, Shaped
from PIL.Image import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from cones2.backbones.fingerprint import fingerprint
from cones2.residual.residual import EncoderId


class LatentMoments(NamedTuple):
    """Mean and standard deviation of images' latents, in the units that the UNet works in."""

    mean: Float[Tensor, "batch channels height width"]
    std: Float[Tensor, "batch channels height width"]


@dataclass(frozen=True, eq=False)
class Backbone:
    """Tokenizer, text encoder, UNet, autoencoder and scheduler of one Stable Diffusion model, all frozen.

    The UNet has the dtype asked for. Text encoder and autoencoder stay float32, whatever that is: they cost little,
    a residual is a small difference of embeddings, and Stable Diffusion's autoencoder overflows in float16.

    Attributes:
        name: what the user opened: `mini`, a Hub id or a folder's name.
        lexicon: the words that the model was trained on, lower case; None when it does not say.
    """

    name: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any
    lexicon: frozenset[str] | None = None

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self._first_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's dtype."""
        return self._first_weight.dtype

    @property
    def _first_weight(self) -> Tensor:
        """Stand for all of the UNet's: diffusers' own properties walk through every module, at each step of a loop."""
        weight: Tensor = self.unet.conv_in.weight
        return weight

    @property
    def window(self) -> int:
        """The most tokens that a prompt may have, start and end tokens included."""
        return int(self.tokenizer.model_max_length)

    @property
    def width(self) -> int:
        """Numbers in the embedding of a token."""
        return int(self.text_encoder.config.hidden_size)

    @property
    def vae_factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width, in latent cells, that the model was trained at."""
        size = self.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height, width

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width, in pixels, that the model was trained at."""
        height, width = self.latent_size
        return height * self.vae_factor, width * self.vae_factor

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: `epsilon` or `v_prediction`."""
        return str(self.scheduler.config.prediction_type)

    @property
    def learn_preset(self) -> str:
        """Name of the recipe that suits this model when the user names none."""
        return "mini" if self.name == "mini" else "paper"

    @cached_property
    def encoder_id(self) -> EncoderId:
        """The text encoder's fingerprint: what a residual fits. Computed once, when first asked for."""
        return fingerprint(self.text_encoder, self.name)

    @torch.no_grad()
    def embed(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """Give E(prompt): the text encoder's last hidden state, after its final norm."""
        embeddings: Tensor = self.text_encoder(input_ids.to(self.device)).last_hidden_state
        return embeddings

    def predict(
        self,
        latents: Float[Tensor, "batch channels height width"],
        timesteps: Shaped[Tensor, "*batch"],
        embeddings: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels height width"]:
        """Call the UNet in its own dtype; give its prediction in the latents' dtype. Gradients flow to `embeddings`."""
        prediction: Tensor = self.unet(
            latents.to(self.dtype),
            timesteps,
            encoder_hidden_states=embeddings.to(self.dtype),
            return_dict=False,
        )[0]
        return prediction.to(latents.dtype)

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "batch 3 rows columns"]) -> LatentMoments:
        """Give the moments of the latents of images in -1..1; sides are multiples of `vae_factor`."""
        posterior = self.vae.encode(images.to(self.device, self.vae.dtype)).latent_dist
        scale = self.vae.config["scaling_factor"]
        return LatentMoments(posterior.mean * scale, posterior.std * scale)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channels height width"]) -> list[Image]:
        """Draw latents as RGB images."""
        scaled = latents.to(self.vae.dtype) / self.vae.config["scaling_factor"]
        images = self.vae.decode(scaled, return_dict=False)[0]
        pictures: list[Image] = VaeImageProcessor().postprocess(images, output_type="pil")
        return pictures

    def pipeline(self) -> Any:
        """Give diffusers' own `StableDiffusionPipeline` of these components, without a safety checker.

        It needs one dtype for all: components that are not in the UNet's are copied, the others shared.
        """
        from diffusers import StableDiffusionPipeline  # slow to import, and only few need it

        return StableDiffusionPipeline(  # type: ignore[no-untyped-call]
            vae=_in_dtype(self.vae, self.dtype),
            text_encoder=_in_dtype(self.text_encoder, self.dtype),
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def _in_dtype(component: Any, dtype: torch.dtype) -> Any:
    return component if component.dtype == dtype else copy.deepcopy(component).to(dtype)
