"""What rivals that train have in common before the first step, and when they draw: words, captions and copies."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.baselines.base import Learned, Lesson, Rival, check_lessons, check_together, with_articles
from cones2.baselines.stored import Tensors, merged, read_tensors
from cones2.baselines.twins import pipeline_with, rival_family, twin_of, unwrapped_pipeline
from cones2.baselines.words import Identifier, WordTable, add_words, fresh_row, identifier_of
from cones2.call import Cones2Output
from cones2.captions import photo_caption
from cones2.errors import PromptError, SettingsError
from cones2.learning.data import TextReader
from cones2.models import facts_of
from cones2.pipeline import Cones2Pipeline
from cones2.shared import check_seed, own_settings
from cones2.subjects import Subject


class Reader:
    """What the UNet reads of captions: by float32 copies of a pipeline's tokenizer and text encoder, with new words.

    Attributes:
        table: the copy's token table, whose rows are the new words'; None without any.
    """

    def __init__(self, pipeline: Any, rows: Mapping[str, Tensor]) -> None:
        self._reader = TextReader.copy_of(pipeline, rival_family(pipeline))
        self._known: dict[str, Tensor] = {}
        self.tokenizer, self.encoder = self._reader.tokenizers[0], self._reader.encoders[0]
        self.table: WordTable | None = add_words(self.tokenizer, self.encoder, rows) if rows else None

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "texts tokens dim"]:
        """Return E(text) of each; gradients flow to rows that are trained.

        Raises:
            PromptError: one has more tokens than the model reads.
        """
        window = int(self.tokenizer.model_max_length)
        found = self.tokenizer(list(texts), padding="max_length", max_length=window, return_tensors="pt", verbose=False)
        if found.input_ids.shape[1] > window:
            raise PromptError(f"a caption has {found.input_ids.shape[1]} tokens, and {window} are read: shorten it.")
        return self._reader.read([found.input_ids.to(self._reader.device)])

    @torch.no_grad()
    def embed_once(self, texts: Sequence[str]) -> Float[Tensor, "texts tokens dim"]:
        """Return the same without gradients, each text embedded once."""
        for text in dict.fromkeys(texts):
            if text not in self._known:
                self._known[text] = self.embed([text])[0]
        return torch.stack([self._known[text] for text in texts])

    def rows(self, words: Collection[str]) -> dict[str, Float[Tensor, "dim"]]:
        """Return the rows of the new words as they are, by word."""
        return {} if self.table is None else dict(zip(words, self.table.rows.detach().clone(), strict=True))


@dataclass(frozen=True, eq=False)
class Setup:
    """Identifiers and captions of a set of subjects.

    Attributes:
        words: each subject's identifier, by name.
        class_words: by name.
        texts: identifier and class word: what stands in a prompt.
        captions: what a photo is trained under: "a photo of a WORD CLASS".
        rows: of those identifiers that are new words.
    """

    pipeline: Any
    seed: int
    words: Mapping[str, str]
    class_words: Mapping[str, str]
    texts: Mapping[str, str]
    captions: Mapping[str, Sequence[str]]
    rows: Mapping[str, Tensor]


def set_up(rival: Rival, pipeline: Any, lessons: Mapping[str, Lesson], seed: int, identifier: Identifier) -> Setup:
    """Check what a rival is to learn, and choose each subject's identifier.

    Raises:
        ModelError, SettingsError: as `Rival.learn`.
    """
    check_lessons(rival, lessons)
    pipeline, seed = unwrapped_pipeline(pipeline), check_seed(seed)
    rival_family(pipeline)
    known = facts_of(pipeline).lexicon or ()
    words = {name: identifier_of(name, pipeline.tokenizer, identifier, known) for name in lessons}
    if len(set(words.values())) < len(words):
        raise SettingsError(f"the subjects {', '.join(words)} got one identifier: take identifier 'new'.")
    class_words = {name: lesson.class_word for name, lesson in lessons.items()}
    texts = {name: f"{words[name]} {class_word}" for name, class_word in class_words.items()}
    captions = {name: [photo_caption(text)] for name, text in texts.items()}
    is_new = identifier == "new"
    rows = {word: fresh_row(pipeline.text_encoder, word, seed) for word in words.values()} if is_new else {}
    return Setup(pipeline, seed, words, class_words, texts, captions, rows)


def as_tensors(rival: Rival, learned: Learned) -> Tensors:
    """Return what this rival learned; SettingsError where another did."""
    if not isinstance(learned, Tensors) or learned.rival != rival.name:
        by = learned.rival if isinstance(learned, Tensors) else type(learned).__name__
        raise SettingsError(f"{rival.name} can't use what {by} learned: load the file by the rival that wrote it.")
    return learned


def combined(rival: Rival, pipeline: Any, learned: Sequence[Learned]) -> Tensors:  # noqa: ARG001  # others need it
    """Put what was learned apart together, each tensor as it is; `Rival.combine` of most."""
    check_together(rival, learned)
    return merged(rival.name, [as_tensors(rival, each) for each in learned])


def loaded(rival: Rival, content: bytes) -> Tensors:
    """Read a rival's file; `Rival.load` of most."""
    return read_tensors(content, rival.name)


@dataclass(frozen=True, eq=False)
class Drawer:
    """Draws as a `Cones2Pipeline` does, with an article before each placeholder that fits the words put there.

    Attributes:
        pipeline: around the twin.
        defaults: arguments of its call where there is a layout and the caller gives no others.
        before: is told each prompt that is drawn.
    """

    pipeline: Cones2Pipeline
    defaults: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[str], None] | None = None

    @property
    def subjects(self) -> Mapping[str, Subject]:
        """The subjects that a prompt may name."""
        return self.pipeline.subjects

    def __call__(self, prompt: str, layout: Any = None, **options: Any) -> Cones2Output:
        """Draw pictures: arguments and errors are those of `Cones2Pipeline`."""
        texts = {name: subject.class_word for name, subject in self.subjects.items()}
        options = {**(self.defaults if layout is not None else {}), **options}
        prompt = with_articles(prompt, texts)
        if self.before is not None:
            self.before(prompt)
        return self.pipeline(prompt, layout, **options)


@own_settings(inference=True)
def drawer_of(pipeline: Any, texts: Mapping[str, str], rows: Mapping[str, Tensor], **parts: Any) -> Drawer:
    """Return what draws with a rival's words, and with other parts in place of the pipeline's.

    Raises:
        ModelError: something is at work on the model.
        ResidualError: a word's row does not fit.
    """
    pipeline = unwrapped_pipeline(pipeline)
    if rows:
        encoder = twin_of(pipeline.text_encoder)
        tokenizer = copy.deepcopy(pipeline.tokenizer)
        add_words(tokenizer, encoder, rows)
        parts |= {"text_encoder": encoder, "tokenizer": tokenizer}
    made = pipeline_with(pipeline, tuple(texts.values()), **parts)
    for name, text in texts.items():
        made.load_subject(name, Subject(text))
    return Drawer(made)
