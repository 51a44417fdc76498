"""Subjects of a prompt: what a placeholder stands for, and how it enters the texts that the UNet reads."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.backbones import Backbone
from cones2.captions.corpus import check_class_word
from cones2.errors import ResidualMismatchError, SettingsError
from cones2.guidance.text import TextEdit, TimedAddition
from cones2.layout.regions import Layout
from cones2.prompts import TokenizedPrompt, Tokenizer, check_no_weights, plain_text
from cones2.residual.residual import Residual

_ALWAYS = (0.0, 1.0)


@dataclass(frozen=True)
class Subject:
    """What a placeholder of the prompt stands for.

    Attributes:
        class_word: the raw category, as in the text that the model reads.
        residual: what makes it the user's own; None is an untaught word that only gets a place.
        strength: how much of the residual is added; 1 as learned.
        during: the part of the steps in which it is: 0 is pure noise, 1 the finished picture (`guidance.text.acts`).
        negative: what this subject should not show. Its own region alone sees it, as a part of the negative prompt
            there; needs a region, and classifier-free guidance.

    Raises:
        CaptionError: the class word is empty or punctuation only.
        PromptError: something in the negative text is weighed.
        ResidualMismatchError: the residual was learned for another class word.
        SettingsError: the strength is not finite, or `during` is no part of 0..1.
    """

    class_word: str
    residual: Residual | None = None
    strength: float = 1.0
    during: tuple[float, float] = _ALWAYS
    negative: str = ""

    def __post_init__(self) -> None:
        check_class_word(self.class_word)
        if not math.isfinite(self.strength):
            raise SettingsError(f"strength {self.strength} can't be used: expected a number, 1 as learned.")
        start, end = self.during
        if not 0 <= start < end <= 1:
            raise SettingsError(f"the steps {start} to {end} can't be used: expected a part of 0 to 1, such as 0,0.6.")
        check_no_weights(self.negative)
        if self.residual is not None and self.residual.class_word != self.class_word:
            raise ResidualMismatchError(
                f"the residual was learned for {self.residual.class_word!r}, the subject is called a"
                f" {self.class_word!r}: use the residual's own class word."
            )

    def describe(self) -> dict[str, Any]:
        """Tell what this is as JSON values: a residual by its sha256, `during` and `negative` where they are set."""
        residual = None if self.residual is None else self.residual.sha256
        told = {"class_word": self.class_word, "residual": residual, "strength": self.strength}
        during = {} if self.during == _ALWAYS else {"during": list(self.during)}
        negative = {"negative": self.negative} if self.negative else {}
        return {**told, **during, **negative}


def embed_prompt(
    backbone: Backbone, prompt: TokenizedPrompt, subjects: Mapping[str, Subject]
) -> Float[Tensor, "1 tokens dim"]:
    """Embed a prompt with its subjects: E(prompt)[span] += strength * residual, at every mention.

    `arXiv:2305.19327, Eq. 6`. Residuals that act during a part of the steps are not in it; `edit_text` has them.

    Raises:
        ResidualMismatchError: a class word has another number of tokens here than the residual has.
    """
    return add_residuals(backbone.embed(prompt.input_ids), prompt, subjects)


def add_residuals(
    embeddings: Float[Tensor, "1 tokens dim"], prompt: TokenizedPrompt, subjects: Mapping[str, Subject]
) -> Float[Tensor, "1 tokens dim"]:
    """Add to a prompt's embedding the residuals that act during all steps; `embed_prompt` says how.

    Raises:
        ResidualMismatchError: a class word has another number of tokens here than the residual has.
    """
    embeddings = embeddings.clone()
    for name, subject in subjects.items():
        if subject.during == _ALWAYS:
            _add(embeddings[0], prompt, name, subject)
    return embeddings


def edit_text(
    prompt: TokenizedPrompt,
    subjects: Mapping[str, Subject],
    *,
    words: Callable[[str], Float[Tensor, "words dim"]],
    train_steps: int,
) -> TextEdit | None:
    """Give what changes in the UNet's text while it runs; None where nothing does.

    Args:
        prompt: the prompt.
        subjects: by name.
        words: embeds a negative text, as `keep_words` gives it.
        train_steps: of the noise schedule.

    Raises:
        ResidualMismatchError: a class word has another number of tokens here than the residual has.
    """
    negatives = {name: words(plain_text(subject.negative)) for name, subject in subjects.items() if subject.negative}
    additions = []
    for name, subject in subjects.items():
        if subject.residual is not None and subject.during != _ALWAYS:
            vector = torch.zeros(prompt.input_ids.shape[1], subject.residual.vector.shape[1])
            _add(vector, prompt, name, subject)
            additions.append(TimedAddition(subject.during, vector))
    return TextEdit(train_steps, tuple(additions), negatives) if additions or negatives else None


def keep_words(embedding: Float[Tensor, "1 tokens dim"], text: str, tokenizer: Tokenizer) -> Float[Tensor, "words dim"]:
    """Keep of a text's embedding its words and its end, which holds the whole in CLIP; not its start, nor padding."""
    count = len(tokenizer(text, truncation=True, verbose=False)["input_ids"])
    return embedding[0, 1:count]


def check_negatives(subjects: Mapping[str, Subject], layout: Layout | None, *, guidance_scale: float) -> None:
    """Check that every negative text has a region, and a row that reads it.

    Raises:
        SettingsError: one has not.
    """
    for name, subject in subjects.items():
        if subject.negative and (layout is None or name not in layout.names):
            raise SettingsError(f"{name!r} has a negative text and no region to show it to: give it a region.")
        if subject.negative and guidance_scale <= 1:
            raise SettingsError(
                f"the negative text of {name!r} has no effect at guidance scale {guidance_scale}: take more than 1."
            )


def _add(embedding: Float[Tensor, "tokens dim"], prompt: TokenizedPrompt, name: str, subject: Subject) -> None:
    """Add a subject's residual in place, at every mention."""
    if subject.residual is None:
        return
    vector = subject.residual.vector.to(embedding)
    for start, stop in prompt.spans[name]:
        if stop - start != len(vector):
            raise ResidualMismatchError(
                f"the residual of {subject.class_word!r} has {len(vector)} tokens, this backbone makes"
                f" {stop - start} of that word: learn the subject on this backbone."
            )
        embedding[start:stop] += subject.strength * vector
