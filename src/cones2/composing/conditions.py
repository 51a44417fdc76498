"""What one UNet call is conditioned on: the rows of both halves of classifier-free guidance."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.backbones import Backbone
from cones2.composing.settings import ComposeSettings
from cones2.composing.sizes import picture_size
from cones2.prompts import ParsedPrompt, plain_text, tokenize_prompt


def tokenize_negative(backbone: Backbone, settings: ComposeSettings) -> Int[Tensor, "1 tokens"] | None:
    """Give the negative prompt's tokens; None without classifier-free guidance."""
    if settings.guidance_scale <= 1:
        return None
    negative = ParsedPrompt(plain_text(settings.negative_prompt), ())
    return tokenize_prompt(negative, backbone.tokenizer, what="the negative prompt").input_ids


def embed_both(
    backbone: Backbone,
    conditional: Float[Tensor, "1 tokens dim"],
    negative: Int[Tensor, "1 tokens"] | None,
    settings: ComposeSettings,
) -> Float[Tensor, "rows tokens dim"]:
    """Stack the text of one UNet call: the negative prompt for every seed, then the prompt for every seed."""
    halves = [conditional]
    if negative is not None:
        halves.insert(0, _zeroed_if_empty(backbone.embed(negative), backbone, settings))
    return torch.cat([half.repeat(len(settings.seeds), 1, 1) for half in halves])


def add_both(
    backbone: Backbone,
    conditional: Int[Tensor, "1 tokens"],
    negative: Int[Tensor, "1 tokens"] | None,
    settings: ComposeSettings,
) -> dict[str, Float[Tensor, "rows numbers"]]:
    """Stack in the same order what Stable Diffusion XL reads beside the text's tokens; nothing for other models."""
    height, width = picture_size(backbone, settings)
    halves = [backbone.added_conditions(conditional, height=height, width=width)]
    if negative is not None and backbone.text_encoder_2 is not None:
        added = backbone.added_conditions(negative, height=height, width=width)
        halves.insert(0, added | {"text_embeds": _zeroed_if_empty(added["text_embeds"], backbone, settings)})
    return {name: torch.cat([half[name].repeat(len(settings.seeds), 1) for half in halves]) for name in halves[0]}


def _zeroed_if_empty(negative: Tensor, backbone: Backbone, settings: ComposeSettings) -> Tensor:
    zeroed = backbone.zeros_for_empty_prompt and not settings.negative_prompt
    return torch.zeros_like(negative) if zeroed else negative


def embed_plain(backbone: Backbone, text: str) -> Float[Tensor, "1 tokens dim"]:
    """Embed a text in which braces are braces."""
    return backbone.embed(tokenize_prompt(ParsedPrompt(text, ()), backbone.tokenizer).input_ids)
