"""What must hold between the parts of a backbone, wherever they came from."""

import json
from typing import Any

from transformers import CLIPTokenizer

from cones2.backbones.backbone import Backbone
from cones2.errors import BackboneError

_MORE_INPUTS = {
    "time_cond_proj_dim": "the guidance scale, as distilled models such as LCM do",
    "class_embed_type": "a class beside the text",
    "num_class_embeds": "a class beside the text",
}


def check_parts_agree(backbone: Backbone) -> None:
    """Check that the parts belong together and are of a kind that the method works on.

    Raises:
        BackboneError: they do not, or are not.
    """
    unet, vae = backbone.unet.config, backbone.vae.config
    if unet["cross_attention_dim"] != backbone.width:
        raise BackboneError(
            f"{backbone.name}: its UNet reads embeddings of width {unet['cross_attention_dim']}, its text encoder"
            f" gives {backbone.width}; these are parts of different models."
        )
    if (unet["addition_embed_type"], _added_width(unet)) != _added_by(backbone):
        raise BackboneError(
            f"{backbone.name}: its UNet reads {_added_width(unet)} numbers beside the text's tokens, its text encoders"
            f" give {_added_by(backbone)[1]}; only Stable Diffusion XL's base model has such, and two text encoders."
        )
    for setting, what in _MORE_INPUTS.items():
        if unet[setting] is not None:
            raise BackboneError(
                f"{backbone.name}: its UNet reads {what} ({setting}), which is not supported; use the plain"
                " text-to-image model that it was made of."
            )
    if unet["in_channels"] != vae["latent_channels"]:
        raise BackboneError(
            f"{backbone.name}: its UNet takes {unet['in_channels']} channels, latents have {vae['latent_channels']};"
            " inpainting and depth models are not supported, use the plain text-to-image model."
        )
    if vae["latents_mean"] is not None or vae["latents_std"] is not None:
        raise BackboneError(
            f"{backbone.name}: its autoencoder shifts and scales each channel of the latents, which is not supported;"
            " use a model of Stable Diffusion's own autoencoders."
        )
    if backbone.prediction_type not in ("epsilon", "v_prediction"):
        raise BackboneError(
            f"{backbone.name}: prediction type {backbone.prediction_type!r} is not supported,"
            " expected epsilon or v_prediction."
        )
    if len(backbone.tokenizer) > backbone.text_encoder.config.vocab_size:
        raise BackboneError(
            f"{backbone.name}: its tokenizer has {len(backbone.tokenizer)} tokens, its text encoder knows"
            f" {backbone.text_encoder.config.vocab_size}; these are parts of different models."
        )

    if backbone.tokenizer_2 is not None and _words_of(backbone.tokenizer) != _words_of(backbone.tokenizer_2):
        raise BackboneError(
            f"{backbone.name}: its two tokenizers split words differently, so a subject would have two places; expected"
            " one vocabulary, as in Stable Diffusion XL."
        )


def _added_width(unet: Any) -> int:
    """How many numbers the UNet reads beside the text's tokens."""
    return int(unet["projection_class_embeddings_input_dim"] or 0)


def _added_by(backbone: Backbone) -> tuple[str | None, int]:
    """What kind of them the text encoders give, and how many: the pooled text, and six sizes as sinusoids."""
    if backbone.text_encoder_2 is None:
        return None, 0
    sinusoids = int(backbone.unet.config["addition_time_embed_dim"] or 0)
    return "text_time", int(backbone.text_encoder_2.config.projection_dim or 0) + 6 * sinusoids


def _words_of(tokenizer: CLIPTokenizer) -> tuple[object, object]:
    """Give vocabulary and merges; what they say of special tokens does not matter."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model["vocab"], model["merges"]
