"""Custom Diffusion: the cross-attention's keys and values are tuned, with a new word for each subject."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cones2.baselines.augmented import augmented
from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step, check_together
from cones2.baselines.merge import merged_weights
from cones2.baselines.setup import Reader, Setup, as_tensors, combined, drawer_of, loaded, set_up
from cones2.baselines.stored import Tensors, merged, token_rows
from cones2.baselines.trainer import Material, Training, denoiser_with, prior_of, train
from cones2.baselines.twins import trainable_twin, unet_with, unwrapped_pipeline
from cones2.baselines.words import identifier_of, mean_row, rare_words
from cones2.errors import check_fields
from cones2.learning.data import random_numbers
from cones2.models import facts_of
from cones2.shared import own_settings

APP_A = Training(steps=250, batch_size=2, learning_rate=1e-5, views_per_photo=8)
"""The paper's settings."""

_FRESH = 0.1  # of a new word's first row


@dataclass(frozen=True, kw_only=True)
class CustomDiffusion:
    """Custom Diffusion (arXiv:2212.04488), several subjects jointly, as in arXiv:2305.19327, App. A.

    Trained are `attn2.to_k` and `attn2.to_v` of all layers, and one new word V* for each subject, which begins as a
    rare one, under "photo of a V* CLASS". The loss counts where a photo lies on its canvas; pictures of the class keep
    the class. Keys and values of the start token get no gradient. All photos are pooled.

    Not inherited: diffusers' script for years, and Adobe's to this day, gives the last V* no gradient where there are
    several (huggingface/diffusers#7294). Eight augmented views of each photo are encoded once, where upstream makes new
    ones in each step; on a model of a small world the captions do not say that a photo was shrunk or enlarged, since it
    knows none of those words. App. A's 250 steps are upstream's number for two GPUs and a scaled rate.
    """

    training: Training = APP_A
    name: ClassVar[str] = "custom_diffusion"
    scope: ClassVar[Scope] = "set"

    def __post_init__(self) -> None:
        check_fields(self, "Custom Diffusion")

    @own_settings()
    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of steps, as `Rival.learn`."""
        setup = set_up_words(self, pipeline, lessons, seed)
        return train_keys_and_values(self, setup, lessons, self.training)

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with the tuned keys and values, and the new words."""
        yield draw_tuned(pipeline, as_tensors(self, learned))


@dataclass(frozen=True, kw_only=True)
class CustomDiffusionMerge(CustomDiffusion):
    """Custom Diffusion's other way to several subjects: each learned apart, then merged in closed form.

    arXiv:2212.04488, Eq. 4 (`cones2.baselines.merge`); takes a second, and no photos.
    """

    name: ClassVar[str] = "custom_diffusion_merge"
    scope: ClassVar[Scope] = "subject"

    @own_settings()
    def combine(self, pipeline: Any, learned: Sequence[Learned]) -> Tensors:
        """Merge the weights, as `Rival.combine`."""
        check_together(self, learned)
        parts = [as_tensors(self, each) for each in learned]
        if len(parts) == 1:
            return parts[0]
        together = merged(self.name, parts)
        reader = Reader(unwrapped_pipeline(pipeline), together.rows)
        weights = merged_weights(unwrapped_pipeline(pipeline), reader, parts)
        return replace(together, tensors=weights | token_rows(together.rows))


def keys_and_values(unet: Any) -> list[str]:
    """Return the names of the weights that make keys and values of the text."""
    return [name for name, _ in unet.named_parameters() if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight"))]


def set_up_words(rival: Any, pipeline: Any, lessons: Mapping[str, Lesson], seed: int) -> Setup:
    """Set a rival up with new words that begin as rare ones, each as another, apart or together: its name chooses.

    A tenth of a fresh row is mixed in: a small tokenizer has so few rare words that two names often meet on one, and
    subjects whose words begin alike can't be merged (`merge`).
    """
    setup = set_up(rival, pipeline, lessons, seed, "new")
    own, known = setup.pipeline, facts_of(setup.pipeline).lexicon or ()
    if not rare_words(own.tokenizer, known):
        return setup
    begin = {word: identifier_of(name, own.tokenizer, "rare", known) for name, word in setup.words.items()}
    rows = {
        word: torch.lerp(mean_row(own.text_encoder, own.tokenizer, like), setup.rows[word], _FRESH)
        for word, like in begin.items()
    }
    return replace(setup, rows=rows)


def train_keys_and_values(
    rival: Any, setup: Setup, lessons: Mapping[str, Lesson], training: Training
) -> Generator[Step, None, None]:
    """Train keys, values and words; what is kept are these."""
    reader, unet_names = Reader(setup.pipeline, setup.rows), keys_and_values(setup.pipeline.unet)
    materials, says_so = [], facts_of(setup.pipeline).lexicon is None
    for index, (name, lesson) in enumerate(lessons.items()):
        draw, caption = random_numbers(setup.seed + index, 0), setup.captions[name][0].removeprefix("a ")
        count = training.views_per_photo
        shown = augmented(setup.pipeline, lesson.pictures, caption, count, draw, says_so=says_so)
        materials.append(Material(shown, prior_of(setup.pipeline, lesson, training, draw)))
    unet, weights = trainable_twin(setup.pipeline, unet_names)
    for name in unet_names:
        unet.get_submodule(name.removesuffix(".weight")).register_forward_hook(_without_start)
    assert reader.table is not None  # every identifier is a new word
    reader.table.rows.requires_grad_()
    words = tuple(setup.words.values())

    def read() -> Tensors:
        kept = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
        return Tensors(rival.name, setup.texts, setup.class_words, kept | token_rows(reader.rows(words)))

    groups: list[dict[str, Any]] = [
        {"params": list(weights.values())},
        {"params": [reader.table.rows], "weight_decay": 0.0},
    ]
    denoiser = denoiser_with(setup.pipeline, unet)
    return train(denoiser, materials, reader.embed, groups, training, seed=setup.seed, read=read)


def _without_start(module: Any, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001  # a hook's arguments
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)


def draw_tuned(pipeline: Any, kept: Tensors) -> Draw:
    """Return what draws with tuned weights and new words."""
    return drawer_of(pipeline, kept.texts, kept.rows, unet=unet_with(unwrapped_pipeline(pipeline), kept.own))
