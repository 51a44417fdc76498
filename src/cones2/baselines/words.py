"""Words that stand for a subject in a rival's prompts: a rare one of the model's own, or a new one with its own row."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.errors import ModelError, ResidualError
from cones2.learning.data import random_numbers

Identifier = Literal["new", "rare"]

_LETTERS = 8
_SHORT = re.compile(r"(?!(?:a|an|the)$)[a-z]{1,3}")


def new_word(name: str) -> str:
    """Return the word that stands for a subject of a name: eight letters that no text holds by chance."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return "v" + "".join(chr(ord("a") + number // 26**place % 26) for place in range(_LETTERS - 1))


def rare_words(tokenizer: Any, known: Collection[str] = ()) -> list[str]:
    """Return short words that are one token, the rarest first, but for those that a model is known to have learned.

    As DreamBooth chooses identifiers (arXiv:2208.12242, Sec. 3.2): of at most three letters, with a weak prior. Byte
    pairs are numbered by how frequent they were, so the last of three letters are the rarest. `sks`, which diffusers'
    examples take, is a rifle.
    """
    ends = [(token.removesuffix("</w>"), number) for token, number in tokenizer.get_vocab().items() if "</w>" in token]
    short = [(word, number) for word, number in ends if _SHORT.fullmatch(word) and word not in known]
    return [word for word, _ in sorted(short, key=lambda each: (-len(each[0]), -each[1]))]


def identifier_of(name: str, tokenizer: Any, identifier: Identifier, known: Collection[str] = ()) -> str:
    """Return the word before the class word of a subject.

    Raises:
        ModelError: the tokenizer has no rare words.
    """
    if identifier == "new":
        return new_word(name)
    pool = rare_words(tokenizer, known)[:1000]
    if not pool:
        raise ModelError("this tokenizer has no short words of one token: take identifier 'new'.")
    return pool[int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % len(pool)]


class WordTable(torch.nn.Module):
    """A token table with more rows, from the id `first` on: the model's own can't change, whatever an optimiser does.

    Upstream's scripts train the whole table and put the other rows back after each step; weight decay reaches some of
    them in between (and in Adobe's the last new word never learns: diffusers#7294).
    """

    def __init__(self, weight: Float[Tensor, "vocabulary dim"], rows: Float[Tensor, "new dim"], first: int) -> None:
        super().__init__()
        self.first = first
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.rows = torch.nn.Parameter(rows, requires_grad=False)

    def forward(self, input_ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """Look tokens up."""
        weight: Any = self.weight
        new = input_ids - self.first
        own = F.embedding(input_ids.clamp(max=self.first - 1), weight)
        return torch.where((new >= 0)[..., None], F.embedding(new.clamp(min=0), self.rows).to(own), own)


def add_words(tokenizer: Any, text_encoder: Any, rows: Mapping[str, Float[Tensor, "dim"]]) -> WordTable:
    """Give copies of a tokenizer and its text encoder new words, and return the encoder's table.

    Raises:
        ResidualError: a word is there already, or a row has another width.
    """
    weight = text_encoder.get_input_embeddings().weight.detach()
    first, added = len(tokenizer), tokenizer.add_tokens(list(rows))
    values = torch.stack(list(rows.values())).to(weight)
    if added != len(rows) or values.shape[1:] != weight.shape[1:]:
        raise ResidualError(f"{', '.join(rows)} can't be added to this model's words: learn the subjects on it.")
    table = WordTable(weight, values, first)
    text_encoder.set_input_embeddings(table)
    return table


def fresh_row(text_encoder: Any, word: str, seed: int) -> Float[Tensor, "dim"]:
    """Draw a row that looks like the others of a token table: each number from their normal distribution."""
    weight = text_encoder.get_input_embeddings().weight.detach().float().cpu()
    number = int.from_bytes(hashlib.sha256(f"{seed}/{word}".encode()).digest()[:4], "big")
    noise = torch.randn(weight.shape[1], generator=random_numbers(number, 0), dtype=torch.float32, device="cpu")
    row: Tensor = weight.mean(0) + weight.std(0) * noise
    return row


def mean_row(text_encoder: Any, tokenizer: Any, text: str) -> Float[Tensor, "dim"]:
    """Return the mean row of a text's tokens."""
    ids: Sequence[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    weight: Tensor = text_encoder.get_input_embeddings().weight.detach()
    mean: Tensor = weight[list(ids)].float().cpu().mean(0)
    return mean
