"""Textual Inversion: one new word for each subject, in place of identifier and class word; nothing else is trained."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step
from cones2.baselines.setup import Reader, as_tensors, combined, drawer_of, loaded, set_up
from cones2.baselines.stored import Tensors, token_rows
from cones2.baselines.templates import template_captions
from cones2.baselines.trainer import Training, denoiser_with, materials_of, train
from cones2.baselines.twins import twin_of
from cones2.baselines.words import mean_row
from cones2.errors import check_fields
from cones2.learning.data import float32_copy
from cones2.shared import own_settings

APP_A = Training(steps=3000, batch_size=4, learning_rate=2e-3, weight_decay=0.0, prior_weight=0.0)
"""The paper's settings."""


@dataclass(frozen=True, kw_only=True)
class TextualInversion:
    """Textual Inversion (arXiv:2208.01618), settings of arXiv:2305.19327, App. A.

    A new row of the token table is trained through the frozen text encoder, under 27 sentences with the pseudo-word
    alone; it begins as the class word's row, the mean of several. Subjects that were learned apart are several words.
    The specification is diffusers' `examples/textual_inversion`, which trains the whole table and puts the other rows
    back after each step; here these have no gradient in the first place.
    """

    training: Training = APP_A
    name: ClassVar[str] = "textual_inversion"
    scope: ClassVar[Scope] = "subject"

    def __post_init__(self) -> None:
        check_fields(self, "Textual Inversion")

    @own_settings()
    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of steps, as `Rival.learn`."""
        setup = set_up(self, pipeline, lessons, seed, "new")
        own = setup.pipeline
        rows = {
            word: mean_row(own.text_encoder, own.tokenizer, setup.class_words[name])
            for name, word in setup.words.items()
        }
        reader = Reader(own, rows)
        captions = {name: template_captions(own, word) for name, word in setup.words.items()}
        materials = materials_of(own, lessons, captions, self.training, seed)
        assert reader.table is not None  # there is a row
        reader.table.rows.requires_grad_()

        def read() -> Tensors:
            return Tensors(self.name, setup.words, setup.class_words, token_rows(reader.rows(tuple(rows))))

        groups, denoiser = [{"params": [reader.table.rows], "weight_decay": 0.0}], denoiser_with(own, frozen_unet(own))
        return train(denoiser, materials, reader.embed, groups, self.training, seed=seed, read=read)

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with the new words."""
        kept = as_tensors(self, learned)
        yield drawer_of(pipeline, kept.texts, kept.rows)


def frozen_unet(pipeline: Any) -> Any:
    """Return a pipeline's UNet in float32, its weights shared where they are that already, without gradients."""
    is_float32 = str(pipeline.unet.dtype) == "torch.float32"
    return twin_of(pipeline.unet) if is_float32 else float32_copy(pipeline.unet, pipeline._execution_device)
