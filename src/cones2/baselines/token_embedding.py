"""The token embedding at the text encoder's output, in place of the class word's or added to it.

arXiv:2305.19327, Table A1 and Fig. A9: what the detour through the encoder (Eqs. 2 to 5) is worth.
"""

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step, check_lessons
from cones2.baselines.setup import Drawer, Reader, as_tensors, combined, loaded
from cones2.baselines.stored import Tensors
from cones2.baselines.templates import template_captions
from cones2.baselines.textual_inversion import frozen_unet
from cones2.baselines.trainer import Training, denoiser_with, materials_of, train
from cones2.baselines.twins import pipeline_with, rival_family, twin_of, unwrapped_pipeline
from cones2.baselines.words import new_word
from cones2.captions import find_class_word
from cones2.errors import ResidualError, check_fields
from cones2.prompts import token_span
from cones2.shared import check_seed, own_settings
from cones2.subjects import Subject

SETTINGS = Training(steps=3000, batch_size=1, learning_rate=2e-3, weight_decay=0.0, prior_weight=0.0)
"""The paper gives none: batch and steps are those of its own method, the rate is Textual Inversion's."""


@dataclass(frozen=True, kw_only=True)
class TokenEmbedding:
    """A vector for each token of the class word, trained at the text encoder's output.

    As arXiv:2305.19327, App. C describes the ablation, it stands in place of E(prompt) at the class word, whatever the
    rest of the prompt says, so that "a blue {rex}" can't act there. With `added`, Δ is trained in the same way and
    added, which is the paper's residual without its detour through the encoder. No gradient passes the text encoder.

    Attributes:
        training: how long and how fast.
        added: whether the vectors are added, and begin at 0; else they begin as the mean of E there over the sentences.
    """

    training: Training = SETTINGS
    added: bool = False
    scope: ClassVar[Scope] = "subject"

    def __post_init__(self) -> None:
        check_fields(self, "a token embedding")

    @property
    def name(self) -> str:
        """The row's name."""
        return "token_added" if self.added else "token_replaced"

    @own_settings()
    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of steps, as `Rival.learn`."""
        check_lessons(self, lessons)
        own, seed = unwrapped_pipeline(pipeline), check_seed(seed)
        rival_family(own)
        [(name, lesson)] = lessons.items()
        captions = template_captions(own, lesson.class_word)
        materials = materials_of(own, lessons, {name: captions}, self.training, seed)
        reader, spans = Reader(own, {}), {}
        for caption in captions:
            spans[caption] = token_span(reader.tokenizer, caption, *find_class_word(caption, lesson.class_word))
        plain = {caption: reader.embed_once([caption])[0] for caption in captions}
        begin = torch.stack([plain[caption][slice(*spans[caption])] for caption in captions]).mean(0)
        vector = (torch.zeros_like(begin) if self.added else begin.clone()).requires_grad_()

        def embed(texts: Sequence[str]) -> Float[Tensor, "texts tokens dim"]:
            return torch.stack([self.put(plain[text], vector, spans[text]) for text in texts])

        def read() -> Tensors:
            texts = {name: _pseudo_words(name, len(vector))}
            return Tensors(self.name, texts, {name: lesson.class_word}, {name: vector.detach().cpu().clone()})

        groups, denoiser = [{"params": [vector], "weight_decay": 0.0}], denoiser_with(own, frozen_unet(own))
        return train(denoiser, materials, embed, groups, self.training, seed=seed, read=read)

    def put(
        self, states: Float[Tensor, "tokens dim"], vector: Float[Tensor, "own dim"], span: tuple[int, int]
    ) -> Float[Tensor, "tokens dim"]:
        """Return a text's states with a subject's vectors at its span."""
        start, stop = span
        middle = states[start:stop] + vector if self.added else vector
        return torch.cat([states[:start], middle, states[stop:]])

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with pseudo-words that the encoder reads as the class word, and answers with the vectors."""
        kept, own = as_tensors(self, learned), unwrapped_pipeline(pipeline)
        made = pipeline_with(own, tuple(kept.texts.values()), **_speaking(own, kept, added=self.added))
        for name, text in kept.texts.items():
            made.load_subject(name, Subject(text))
        yield Drawer(made)


def _pseudo_words(name: str, count: int) -> str:
    return " ".join(new_word(f"{name} {index}") for index in range(count))


def _speaking(pipeline: Any, kept: Tensors, *, added: bool) -> dict[str, Any]:
    """Return a tokenizer with pseudo-words, and an encoder that reads them as class words and answers with vectors."""
    tokenizer, encoder = copy.deepcopy(pipeline.tokenizer), twin_of(pipeline.text_encoder)
    first, ids, vectors = len(tokenizer), list[int](), list[Tensor]()
    for name, text in kept.texts.items():
        own, words = tokenizer(kept.class_words[name], add_special_tokens=False)["input_ids"], text.split()
        shape = (len(own), encoder.config.hidden_size)
        vector = kept.tensors.get(name)
        if vector is None or vector.shape != shape or tokenizer.add_tokens(words) != len(own):
            raise ResidualError(f"{name!r} needs vectors of shape {list(shape)}: learn it on this model.")
        ids, vectors = ids + own, [*vectors, vector]
    weight = next(encoder.parameters())
    table, classes = torch.cat(vectors).to(weight), torch.tensor(ids, dtype=torch.long, device=weight.device)
    inner = encoder.forward

    def forward(input_ids: Tensor, *args: Any, **options: Any) -> Any:
        new = (input_ids - first).clamp(min=0)
        spoken = input_ids >= first
        output = inner(torch.where(spoken, classes[new], input_ids), *args, **options)
        states = output.last_hidden_state
        output.last_hidden_state = torch.where(spoken[..., None], table[new] + states * added, states)
        return output

    encoder.forward = forward
    return {"text_encoder": encoder, "tokenizer": tokenizer}
