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

from cones2.backbones import Backbone, LatentMoments
from cones2.captions.corpus import find_class_word
from cones2.errors import CaptionError, Cones2Warning
from cones2.photos import Photo, crop_square, views
from cones2.prompts import token_span

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
            otherwise than the others.
    """
    spans = [token_span(backbone.tokenizer, caption, *find_class_word(caption, class_word)) for caption in captions]
    class_tokens = spans[0][1] - spans[0][0]
    own = torch.zeros(len(captions), backbone.window, dtype=torch.bool)
    for row, (caption, (start, stop)) in enumerate(zip(captions, spans, strict=True)):
        _check_span(caption, stop, stop - start == class_tokens, backbone.window)
        own[row, start:stop] = True
    return EncodedCaptions(_tokenize(backbone, captions), own.to(backbone.device), class_tokens)


def encode_views(backbone: Backbone, photos: Sequence[Photo], count: int, generator: torch.Generator) -> LatentMoments:
    """Encode `count` views of each photo, the whole one and closer ones; the moments lie on the CPU."""
    size = min(backbone.default_size)
    moments = [backbone.encode_images(_stack(views(photo, size, count=count, generator=generator))) for photo in photos]
    return LatentMoments(
        torch.cat([each.mean for each in moments]).cpu(), torch.cat([each.std for each in moments]).cpu()
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
            nearest = difflib.get_close_matches(word, backbone.lexicon, n=1, cutoff=0.0)[0]
            _warn(f"{backbone.name} does not know {word!r}; the nearest word that it knows is {nearest!r}.")
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


def _stack(images: Sequence[Image]) -> Float[Tensor, "batch channels height width"]:
    pixels = numpy.stack([numpy.asarray(image, dtype=numpy.float32) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def _rebuilt_psnr(backbone: Backbone, image: Image) -> float:
    rebuilt = backbone.decode(backbone.encode_images(_stack([image])).mean)[0]
    difference = numpy.asarray(rebuilt, dtype=numpy.float64) - numpy.asarray(image, dtype=numpy.float64)
    error = max(float(numpy.square(difference).mean()), 1e-6)
    return float(10 * numpy.log10(255**2 / error))
