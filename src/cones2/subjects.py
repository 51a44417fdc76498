"""Subjects of a prompt: what a placeholder stands for, and how a residual enters the prompt's embedding."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from cones2.backbones import Backbone
from cones2.captions.corpus import check_class_word
from cones2.errors import ResidualMismatchError, SettingsError
from cones2.prompts import TokenizedPrompt
from cones2.residual.residual import Residual


@dataclass(frozen=True)
class Subject:
    """What a placeholder of the prompt stands for.

    Attributes:
        class_word: the raw category, as in the text that the model reads.
        residual: what makes it the user's own; None is an untaught word that only gets a place.
        strength: how much of the residual is added; 1 as learned.

    Raises:
        CaptionError: the class word is empty or punctuation only.
        ResidualMismatchError: the residual was learned for another class word.
        SettingsError: the strength is not finite.
    """

    class_word: str
    residual: Residual | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_class_word(self.class_word)
        if not math.isfinite(self.strength):
            raise SettingsError(f"strength {self.strength} can't be used: expected a number, 1 as learned.")
        if self.residual is not None and self.residual.class_word != self.class_word:
            raise ResidualMismatchError(
                f"the residual was learned for {self.residual.class_word!r}, the subject is called a"
                f" {self.class_word!r}: use the residual's own class word."
            )

    def describe(self) -> dict[str, Any]:
        """Tell what this is as JSON values; a residual by its sha256."""
        residual = None if self.residual is None else self.residual.sha256
        return {"class_word": self.class_word, "residual": residual, "strength": self.strength}


def embed_prompt(
    backbone: Backbone, prompt: TokenizedPrompt, subjects: Mapping[str, Subject]
) -> Float[Tensor, "1 tokens dim"]:
    """Embed a prompt with its subjects: E(prompt)[span] += strength * residual, at every mention.

    `arXiv:2305.19327, Eq. 6`.

    Raises:
        ResidualMismatchError: a class word has another number of tokens here than the residual has.
    """
    embeddings = backbone.embed(prompt.input_ids)
    for name, subject in subjects.items():
        if subject.residual is None:
            continue
        vector = subject.residual.vector.to(embeddings)
        for start, stop in prompt.spans[name]:
            if stop - start != len(vector):
                raise ResidualMismatchError(
                    f"the residual of {subject.class_word!r} has {len(vector)} tokens, this backbone makes"
                    f" {stop - start} of that word: learn the subject on this backbone."
                )
            embeddings[0, start:stop] += subject.strength * vector
    return embeddings
