"""What is learned of the text: tuned copies of the encoders, or the residual itself in a prompt that is embedded once.

The two ways have the same methods; `learner.py` only chooses one of them.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.captions import photo_prompt
from cones2.conditioning import PromptEncoder
from cones2.families import Family, laid_out, places
from cones2.fingerprint import fingerprint, fingerprints
from cones2.learning.data import Captions, TextReader, check_length
from cones2.learning.losses import mean_shift, preservation_loss
from cones2.learning.recipe import Recipe
from cones2.prompts import TokenizedPrompt, parse_prompt
from cones2.residual import EncoderId
from cones2.shared import texts_read_alone

_NAME = "subject"

# η of polynomial-decay averaging (arXiv:1212.1824): half of the weight is on the last sixth of the steps.
_DECAY = 3.0


class TunedText:
    """As the paper does: copies of the text encoders are tuned, and Δ is their mean shift at the class word.

    Attributes:
        encoder_ids: the fingerprints of the untouched encoders.
        class_tokens: the class word's, for each encoder.
        caption_count: how many captions Eq. 3 draws from.
        encoders: the copies.
        parameters: what is tuned.
        averages: nothing: the last step's encoders are what is kept.
    """

    def __init__(self, reader: TextReader, captions: Captions, prompt: Captions, tune: str, model: str) -> None:
        self.reader, self.captions, self._prompt = reader, captions, prompt
        self.encoders, self.encoder_ids = reader.encoders, encoder_ids_of(reader, model)
        self.class_tokens = captions.class_tokens
        self.caption_count = len(captions.texts)
        self.averages: list[Tensor] = []
        self._original = reader.embed(captions)
        self.parameters = [
            parameter.requires_grad_()
            for encoder in reader.encoders
            for name, parameter in encoder.named_parameters()
            if (tune == "all" or ".layers." in name) and ".lora_" not in name
        ]

    def read(self, rows: Int[Tensor, "captions"]) -> tuple[Float[Tensor, "1 tokens dim"], Float[Tensor, ""]]:
        """Return the prompt's embedding and L_reg, by one pass of the text encoders over prompt and captions."""
        pairs = zip(self._prompt.input_ids, self.captions.rows(rows), strict=True)
        embeddings = self.reader.read([torch.cat(pair) for pair in pairs])
        preservation = preservation_loss(embeddings[1:], self._original[rows], self.captions.own[rows])  # Eq. 3
        return embeddings[:1], preservation

    def after_step(self, number: int) -> None:
        """Do nothing: all that a step changes is in the encoders."""

    def vectors(self) -> list[Float[Tensor, "_ _"]]:
        """Return Δ for each encoder: Eq. 5 over all captions."""
        shift = mean_shift(self.reader.compare(self.captions, self._original), len(self.class_tokens[0]))
        return list(torch.split(shift, [encoder.width for encoder in self.encoder_ids], dim=1))


class DirectText:
    """Δ itself is learned, in a prompt that the encoders read only once.

    `arXiv:2305.19327, Table A1 and App. C` ("token embedding"), where it does worse in other contexts than the photos'.
    No other word moves, so that L_reg is 0. It begins at the class word itself, Δ = 0.

    What a step learns is a number of units: of 1 on a UNet, and on a joint transformer of the root mean square of the
    class word's own embedding, token by token and layer by layer, since text encoders differ in it by far more than
    one learning rate could serve.

    Attributes:
        encoder_ids: the fingerprints of the encoders.
        class_tokens: the class word's, for each encoder.
        caption_count: 1, the prompt itself.
        parameters: Δ in its units, for each encoder.
        averages: what is kept of them.
        encoders: none: their memory is free.
        pooled: the summary that a joint transformer reads beside the text.
    """

    encoders: tuple[Any, ...] = ()
    caption_count = 1

    def __init__(
        self,
        original: Float[Tensor, "1 tokens dim"],
        family: Family,
        tokens: Sequence[TokenizedPrompt],
        encoder_ids: Sequence[EncoderId],
        class_tokens: Sequence[tuple[str, ...]],
        recipe: Recipe,
        pooled: Float[Tensor, "1 numbers"] | None = None,
    ) -> None:
        self._original, self._family, self._tokens, self._recipe = original, family, tokens, recipe
        self.encoder_ids, self.class_tokens, self.pooled = tuple(encoder_ids), tuple(class_tokens), pooled
        found = places(family, tokens, _NAME, [encoder.width for encoder in encoder_ids])
        self._own = [original[0][mentions[0]] for mentions in found]
        layers = [max(1, len(part.layers)) for part in family.text_parts]
        shares = zip(self._own, layers, strict=True)
        self._lengths = [own.unflatten(1, (count, -1)).norm(dim=-1, keepdim=True) for own, count in shares]
        self._units = [self._unit(*pair) for pair in zip(self._own, self._lengths, strict=True)]
        self.parameters = [torch.zeros_like(own, requires_grad=True) for own in self._own]
        self.averages = [torch.zeros_like(own) for own in self._own]

    def _unit(self, own: Float[Tensor, "tokens dim"], lengths: Float[Tensor, "tokens layers 1"]) -> Tensor:
        if self._family.velocity is None:
            return torch.ones_like(own)
        width = own.shape[1] // lengths.shape[1]
        return (lengths / math.sqrt(width)).expand(-1, -1, width).flatten(1)

    @classmethod
    def of_reader(cls, reader: TextReader, prompt: Captions, recipe: Recipe, model: str) -> "DirectText":
        """Read the prompt as a UNet's float32 text encoders do."""
        own = torch.where(prompt.own[0])[0].tolist()
        spans = {_NAME: ((own[0], own[-1] + 1),)}
        tokens = [TokenizedPrompt(prompt.texts[0], ids[:1], spans) for ids in prompt.input_ids]
        ids = encoder_ids_of(reader, model)
        return cls(reader.embed(prompt), reader.family, tokens, ids, prompt.class_tokens, recipe)

    @classmethod
    def of_pipeline(cls, pipeline: Any, family: Family, class_word: str, recipe: Recipe, model: str) -> "DirectText":
        """Let a pipeline embed the prompt as it does when it draws, chat template and padding included.

        Raises:
            CaptionError: the class word has more tokens than a residual can have.
            PromptError: its tokens are not those of the word alone.
        """
        template, words = photo_prompt(class_word, _NAME), {_NAME: class_word}
        with texts_read_alone(pipeline) as reader, torch.no_grad():
            encoder = PromptEncoder(reader, family, {}, None)
            inputs = encoder.encode(parse_prompt(template, words), "")
            tokens = encoder.tokenize(template, words)
            ids = fingerprints(reader, family, model)
            tokenizers = [getattr(reader, part.tokenizer) for part in family.text_parts]
        class_tokens = []
        for tokenizer, prompt in zip(tokenizers, tokens, strict=True):
            own = prompt.input_ids[0, slice(*prompt.spans[_NAME][0])]
            class_tokens.append(tuple(tokenizer.convert_ids_to_tokens(own.tolist())))
            check_length(class_word, len(own))
        original = inputs["prompt_embeds"][0][None].float()  # also of a list
        return cls(original, family, tokens, ids, class_tokens, recipe, inputs.get("pooled_prompt_embeds"))

    def read(self, _rows: Int[Tensor, "captions"]) -> tuple[Float[Tensor, "1 tokens dim"], Float[Tensor, ""]]:
        """Return E(prompt)[span] + Δ, and 0 for L_reg."""
        vectors = self._in_units(self.parameters)
        added = laid_out(self._original, self._family, self._tokens, _NAME, vectors)
        return self._original + added, self._original.new_zeros(())

    @torch.no_grad()
    def after_step(self, number: int) -> None:
        """Keep Δ within the recipe's limit, and average what the steps came to: one step alone carries its noise.

        By polynomial-decay averaging, arXiv:1212.1824.
        """
        limit, share = self._recipe.norm_limit, 1.0
        if limit is not None:
            for parameter, unit, lengths in zip(self.parameters, self._units, self._lengths, strict=True):
                layers = (parameter * unit).unflatten(1, (lengths.shape[1], -1))
                over = (limit * lengths / layers.norm(dim=-1, keepdim=True)).clamp(max=1)  # infinite where Δ = 0
                parameter.mul_(over.expand_as(layers).flatten(1))
        if self._recipe.averaged:
            share = (1 + _DECAY) / (number + _DECAY)
        for average, parameter in zip(self.averages, self.parameters, strict=True):
            average.lerp_(parameter, share)

    def vectors(self) -> list[Float[Tensor, "_ _"]]:
        """Return Δ for each encoder."""
        return [vector.cpu() for vector in self._in_units(self.averages)]

    def _in_units(self, numbers: Sequence[Tensor]) -> list[Tensor]:
        return [number * unit for number, unit in zip(numbers, self._units, strict=True)]


LearnedText = TunedText | DirectText


def encoder_ids_of(reader: TextReader, model: str) -> tuple[EncoderId, ...]:
    """Return the fingerprints of a UNet's text encoders, for a model of a name."""
    pairs = zip(reader.family.text_parts, reader.encoders, strict=True)
    return tuple(fingerprint(encoder, part.encoder, model) for part, encoder in pairs)
