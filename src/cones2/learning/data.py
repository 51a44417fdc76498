"""What a residual is learned from: captions as tokens, photos as the moments of their latents."""

import difflib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor

from cones2.backbones import Backbone
from cones2.captions.corpus import find_class_word
from cones2.errors import CaptionError, Cones2Warning, PhotoError
from cones2.photos import Photo, View, crop_square, stack_pixels, views
from cones2.prompts import token_span
from cones2.residual.format import MAX_TOKENS

_POOR_PSNR = 22.0  # decibels; below it, fine structure is lost


@dataclass(frozen=True, eq=False)
class EncodedCaptions:
    """Captions in the tokens of a backbone.

    Attributes:
        input_ids: each caption, padded to the backbone's window.
        own: where the class word stands.
        class_tokens: how many tokens the class word has.
    """

    input_ids: Int[Tensor, "batch tokens"]
    own: Bool[Tensor, "batch tokens"]
    class_tokens: int


def encode_captions(backbone: Backbone, captions: Sequence[str], class_word: str) -> EncodedCaptions:
    """Tokenize captions and find the class word in each.

    Raises:
        CaptionError: a caption lacks the class word, is too long for the backbone, or splits the class word's tokens
            otherwise than the others; or these are more than a residual can have.
    """
    spans = [token_span(backbone.tokenizer, caption, *find_class_word(caption, class_word)) for caption in captions]
    class_tokens = spans[0][1] - spans[0][0]
    if class_tokens > MAX_TOKENS:
        raise CaptionError(
            f"{class_word!r} is {class_tokens} tokens long for {backbone.name}, expected at most {MAX_TOKENS}. Take a"
            " shorter class word."
        )
    own = torch.zeros(len(captions), backbone.window, dtype=torch.bool)
    for row, (caption, (start, stop)) in enumerate(zip(captions, spans, strict=True)):
        _check_span(caption, stop, stop - start == class_tokens, backbone.window)
        own[row, start:stop] = True
    return EncodedCaptions(_tokenize(backbone, captions), own.to(backbone.device), class_tokens)


@dataclass(frozen=True, eq=False)
class EncodedViews:
    """Square views of photos as moments of their latents, on the CPU.

    Attributes:
        mean: of each view's latents.
        std: of each view's latents.
        weights: the subject's share of each latent cell, 0 to 1; None where no photo has a mask.
    """

    mean: Float[Tensor, "views channels height width"]
    std: Float[Tensor, "views channels height width"]
    weights: Float[Tensor, "views 1 height width"] | None


def encode_views(backbone: Backbone, photos: Sequence[Photo], count: int, generator: torch.Generator) -> EncodedViews:
    """Encode `count` views of each photo, the whole one and closer ones, and their masks.

    Raises:
        PhotoError: a square view shows nothing of what the photo's mask marks.
    """
    size = min(backbone.default_size)
    chosen = [(photo, views(photo, count=count, generator=generator)) for photo in photos]
    moments = [
        backbone.encode_images(stack_pixels([view.of(photo, size) for view in each]) / 127.5 - 1)
        for photo, each in chosen
    ]
    masked = any(photo.mask is not None for photo in photos)
    return EncodedViews(
        torch.cat([each.mean for each in moments]).cpu(),
        torch.cat([each.std for each in moments]).cpu(),
        torch.cat([_weigh(photo, each, size // backbone.vae_factor) for photo, each in chosen]) if masked else None,
    )


def rebuild_error(backbone: Backbone, photos: Sequence[Photo]) -> tuple[float, ...]:
    """How well the autoencoder rebuilds each photo: its PSNR in decibels; what it can't rebuild can't be learned."""
    size = min(backbone.default_size)
    return tuple(_rebuilt_psnr(backbone, crop_square(photo.image, size)) for photo in photos)


def warn_if_strange(backbone: Backbone, photos: Sequence[Photo], class_word: str) -> None:
    """Warn of what a model with a lexicon, hence of a small world, has hardly learned: other words, other pictures."""
    if not backbone.lexicon:
        return
    for word in class_word.lower().split():
        if word not in backbone.lexicon:
            known = backbone.class_words or sorted(backbone.lexicon)
            nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
            all_of_them = f" It draws {', '.join(backbone.class_words)}." if backbone.class_words else ""
            _warn(
                f"{backbone.name} does not know {word!r}; the nearest word that it knows is {nearest!r}.{all_of_them}"
            )
    warn_if_undrawable(backbone, photos)


def warn_if_undrawable(backbone: Backbone, photos: Sequence[Photo]) -> None:
    """Warn of photos that a model with a lexicon, hence of a small world, can't draw: its autoencoder loses them."""
    if not backbone.lexicon:
        return
    psnr, photo = min(zip(rebuild_error(backbone, photos), [photo.path.name for photo in photos], strict=True))
    if psnr < _POOR_PSNR:
        advice = "expect the subject's colours more than its shape"
        _warn(f"{backbone.name} can't draw {photo} well (PSNR {psnr:.0f} dB, {_POOR_PSNR:.0f} is fair): {advice}.")


def _warn(text: str) -> None:
    warnings.warn(text, Cones2Warning, stacklevel=4)


def _tokenize(backbone: Backbone, captions: Sequence[str]) -> Int[Tensor, "batch tokens"]:
    batch = backbone.tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=backbone.window, return_tensors="pt"
    )
    input_ids: Tensor = batch.input_ids.to(backbone.device)
    return input_ids


def _check_span(caption: str, stop: int, alike: bool, window: int) -> None:
    if stop > window - 1:  # the last place is the end token's
        advice = "Put the class word nearer to the start"
        raise CaptionError(f"{caption!r} is cut off before the class word ends, at {window} tokens. {advice}.")
    if not alike:
        raise CaptionError(f"{caption!r} has the class word in other tokens than the captions before it: leave it out.")


def _weigh(photo: Photo, chosen: Sequence[View], cells: int) -> Float[Tensor, "views 1 {cells} {cells}"]:
    weights = torch.stack([view.share(photo, cells) for view in chosen])
    if (weights.sum(dim=(1, 2, 3)) == 0).any():
        advice = "Crop the photo, with its mask, around the subject"
        raise PhotoError(f"a square view of {photo.path} shows nothing of what its mask marks. {advice}.")
    return weights


def _rebuilt_psnr(backbone: Backbone, image: Image) -> float:
    rebuilt = backbone.decode(backbone.encode_images(stack_pixels([image]) / 127.5 - 1).mean)[0]
    difference = numpy.asarray(rebuilt, dtype=numpy.float64) - numpy.asarray(image, dtype=numpy.float64)
    error = max(float(numpy.square(difference).mean()), 1e-6)
    return float(10 * numpy.log10(255**2 / error))
