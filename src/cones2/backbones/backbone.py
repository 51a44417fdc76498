"""A pretrained text-to-image model behind one small interface."""

import copy
from collections.abc import Mapping
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
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from cones2.backbones.fingerprint import TextEncoder, fingerprint
from cones2.residual.residual import EncoderId


class LatentMoments(NamedTuple):
    """Mean and standard deviation of images' latents, in the units that the UNet works in."""

    mean: Float[Tensor, "batch channels height width"]
    std: Float[Tensor, "batch channels height width"]


@dataclass(frozen=True, eq=False)
class Backbone:
    """Tokenizer, text encoder, UNet, autoencoder and scheduler of one Stable Diffusion model, all frozen.

    The UNet has the dtype asked for. Text encoders and autoencoder stay float32, whatever that is: they cost little,
    a residual is a small difference of embeddings, and Stable Diffusion's autoencoder overflows in float16. Both may be
    on another device than the UNet: they work where they are, and give their results where the UNet is.

    Stable Diffusion XL has two text encoders. Both read the tokens of `tokenizer`: their vocabularies are one, and each
    gets its own padding. A prompt's embedding is their penultimate hidden states side by side, so a token has one
    place and one residual in both.

    Attributes:
        name: what the user opened: `mini`, a Hub id or a folder's name.
        lexicon: the words that the model was trained on, lower case; None when it does not say. Only a model of a small
            world says: `mini`, and what is trained on from it.
        class_words: those of its words that name what it can draw; empty when it does not say.
        text_encoder_2: Stable Diffusion XL's other text encoder; None elsewhere.
        tokenizer_2: its tokenizer, of which only the padding token is used here.
        zeros_for_empty_prompt: whether an empty negative prompt is all zeros rather than an empty text.
    """

    name: str
    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler: Any
    lexicon: frozenset[str] | None = None
    class_words: tuple[str, ...] = ()
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None
    zeros_for_empty_prompt: bool = False

    @property
    def device(self) -> torch.device:
        """Where the UNet runs."""
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
        """Numbers in the embedding of a token, of all text encoders together."""
        return sum(int(encoder.config.hidden_size) for encoder in self.text_encoders)

    @property
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        """The text encoder, or both."""
        return (self.text_encoder,) if self.text_encoder_2 is None else (self.text_encoder, self.text_encoder_2)

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
        return "paper" if self.lexicon is None else "direct"

    @property
    def guidance_parallel(self) -> float:
        """What share of guidance's part along a picture of subjects suits this model, when the user names none."""
        return 1.0 if self.lexicon is None else 0.0

    @cached_property
    def encoder_id(self) -> EncoderId:
        """The text encoders' fingerprint: what a residual fits. Computed once, when first asked for."""
        return fingerprint(self.text_encoders, self.name)

    @torch.no_grad()
    def embed(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """Give E(prompt): the last hidden state after its final norm, or the penultimate ones of two text encoders."""
        return self.read(input_ids)

    def read(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """Give the same as `embed`; gradients flow to the text encoders' weights."""
        input_ids = input_ids.to(_place_of(self.text_encoder))
        if self.text_encoder_2 is None:
            embeddings: Tensor = self.text_encoder(input_ids).last_hidden_state
            return embeddings.to(self.device)
        states = [
            encoder(ids.to(_place_of(encoder)), output_hidden_states=True).hidden_states[-2].to(self.device)
            for encoder, ids in ((self.text_encoder, input_ids), (self.text_encoder_2, self._padded_anew(input_ids)))
        ]
        return torch.cat(states, dim=-1)

    @torch.no_grad()
    def added_conditions(
        self, input_ids: Int[Tensor, "batch tokens"], *, height: int, width: int
    ) -> dict[str, Float[Tensor, "batch numbers"]]:
        """Give what the UNet of Stable Diffusion XL reads beside the prompt's tokens; nothing for other models.

        The text as a whole, pooled from its end token by the second encoder, and the sizes, as diffusers makes them for
        a picture of `height` by `width` pixels that is not cropped. No residual enters the pooled text: it belongs to
        no token.
        """
        if self.text_encoder_2 is None:
            return {}
        input_ids = self._padded_anew(input_ids.to(_place_of(self.text_encoder_2)))
        pooled = self.text_encoder_2(input_ids).text_embeds.to(self.device)
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=pooled.dtype, device=self.device)
        return {"text_embeds": pooled, "time_ids": sizes.expand(len(pooled), -1)}

    def _padded_anew(self, input_ids: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
        """Put the second tokenizer's padding in place of the first's, behind the text's end."""
        assert self.tokenizer_2 is not None
        is_end = input_ids == self.tokenizer.eos_token_id
        is_behind = is_end.cumsum(dim=-1) > is_end.int()
        return input_ids.masked_fill(
            is_behind & (input_ids == self.tokenizer.pad_token_id), self.tokenizer_2.pad_token_id
        )

    def predict(
        self,
        latents: Float[Tensor, "batch channels height width"],
        timesteps: Shaped[Tensor, "*batch"],
        embeddings: Float[Tensor, "batch tokens dim"],
        added: Mapping[str, Float[Tensor, "batch numbers"]] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Call the UNet in its own dtype; give its prediction in the latents' dtype. Gradients flow to `embeddings`.

        `added` is what `added_conditions` gives, a row for each of the batch.
        """
        prediction: Tensor = self.unet(
            latents.to(self.dtype),
            timesteps,
            encoder_hidden_states=embeddings.to(self.dtype),
            added_cond_kwargs=dict(added) if added else None,
            return_dict=False,
        )[0]
        return prediction.to(latents.dtype)

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "batch 3 rows columns"]) -> LatentMoments:
        """Give the moments of the latents of images in -1..1, one after the other; sides are multiples of `vae_factor`.

        At 1024 pixels and in float32, the autoencoder takes 2.7 GB for each image that it encodes at once.
        """
        rows = images.to(_place_of(self.vae), self.vae.dtype)[:, None]
        posteriors = [self.vae.encode(row).latent_dist for row in rows]
        scale = self.vae.config["scaling_factor"]
        mean, std = (torch.cat([getattr(each, name) for each in posteriors]) * scale for name in ("mean", "std"))
        return LatentMoments(mean.to(self.device), std.to(self.device))

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "batch channels height width"]) -> list[Image]:
        """Draw latents as RGB images, one after the other: decoding is what needs the most memory."""
        return [self._decode_row(row) for row in latents[:, None]]

    def _decode_row(self, latents: Float[Tensor, "1 channels height width"]) -> Image:
        scaled = latents.to(_place_of(self.vae), self.vae.dtype) / self.vae.config["scaling_factor"]
        images = self.vae.decode(scaled, return_dict=False)[0]
        picture: Image = VaeImageProcessor().postprocess(images, output_type="pil")[0]
        return picture

    def pipeline(self) -> Any:
        """Give diffusers' own `StableDiffusionPipeline` or `StableDiffusionXLPipeline` of these components.

        It has no safety checker and adds no watermark. Its scheduler is its own. It needs one dtype for all: components
        that are not in the UNet's are copied, the others shared.
        """
        components = {
            "vae": _in_dtype(self.vae, self.dtype),
            "text_encoder": _in_dtype(self.text_encoder, self.dtype),
            "tokenizer": self.tokenizer,
            "unet": self.unet,
            "scheduler": copy.deepcopy(self.scheduler),
        }
        if self.text_encoder_2 is None:
            from diffusers import StableDiffusionPipeline  # slow to import, and only few need it

            return StableDiffusionPipeline(  # type: ignore[no-untyped-call]
                **components, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline(  # type: ignore[no-untyped-call]
            **components,
            text_encoder_2=_in_dtype(self.text_encoder_2, self.dtype),
            tokenizer_2=self.tokenizer_2,
            force_zeros_for_empty_prompt=self.zeros_for_empty_prompt,
            add_watermarker=False,
        )


def _place_of(part: torch.nn.Module) -> torch.device:
    return next(part.parameters()).device


def _in_dtype(component: Any, dtype: torch.dtype) -> Any:
    return component if component.dtype == dtype else copy.deepcopy(component).to(dtype)
