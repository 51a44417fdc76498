"""The recipe of the authors' own code, which differs from their paper."""

import copy
import importlib.metadata
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step, check_lessons
from cones2.baselines.ours import kept_residual, with_residuals
from cones2.baselines.setup import Drawer, Reader, as_tensors, combined, loaded
from cones2.baselines.stored import Tensors
from cones2.baselines.templates import template_captions
from cones2.baselines.textual_inversion import frozen_unet
from cones2.baselines.trainer import Training, denoiser_with, materials_of, train
from cones2.baselines.twins import rival_family, unwrapped_pipeline
from cones2.captions import find_class_word
from cones2.errors import check_fields
from cones2.fingerprint import fingerprint
from cones2.prompts import token_span
from cones2.residual import Residual, ResidualPart
from cones2.shared import check_seed, own_settings

README = Training(steps=4000, batch_size=1, learning_rate=5e-6, prior_weight=0.0)
"""The settings that the authors' README trains with; their paper says 3,000 steps at 1e-6."""

_START, _AFTER = 1e-2, 1e-3


@dataclass(frozen=True, kw_only=True)
class ConesV2:
    """What the authors' `train_cones2.py` does (ali-vilab/Cones-V2 at 447c194), and their layout with its recurrence.

    The whole text encoder is tuned under the bare class word, by the denoising error and `preservation`; the residual
    is the mean shift of the class word over 27 sentences, not Eq. 5's 1,000. Drawn with a layout, the preset and the
    loop are the authors', where each guided step calls the UNet twice.

    Not inherited: after a resume, theirs keeps the already tuned encoder's output as the target, and with a batch above
    1 it takes the first photo for the first token.
    """

    training: Training = README
    name: ClassVar[str] = "cones_v2"
    scope: ClassVar[Scope] = "subject"

    def __post_init__(self) -> None:
        check_fields(self, "the authors' recipe")

    @own_settings()
    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of steps, as `Rival.learn`."""
        check_lessons(self, lessons)
        own, seed = unwrapped_pipeline(pipeline), check_seed(seed)
        rival_family(own)
        [(name, lesson)] = lessons.items()
        word, before, tuned = lesson.class_word, Reader(own, {}), Reader(own, {})
        materials = materials_of(own, lessons, {name: [word]}, self.training, seed)
        parameters = [weight.requires_grad_() for weight in tuned.encoder.parameters()]
        last: list[Tensor] = []

        def embed(texts: Sequence[str]) -> Float[Tensor, "texts tokens dim"]:
            last[:] = [tuned.embed([word])]
            return last[0].expand(len(texts), -1, -1)

        def extra() -> Float[Tensor, ""]:
            return preservation(last[0][0], before.embed_once([word])[0], own_span(before, word, word)[1])

        def read() -> Tensors:
            return kept_residual(self.name, name, self._residual(own, lesson, before, tuned))

        groups, denoiser = [{"params": parameters}], denoiser_with(own, frozen_unet(own))
        return train(denoiser, materials, embed, groups, self.training, seed=seed, read=read, extra=extra)

    @torch.no_grad()
    def _residual(self, pipeline: Any, lesson: Lesson, before: Reader, tuned: Reader) -> Residual:
        word, shifts = lesson.class_word, []
        for caption in template_captions(pipeline, word):
            span = slice(*own_span(before, caption, word))
            shifts.append((tuned.embed([caption])[0, span] - before.embed_once([caption])[0, span]).cpu())
        tokenizer = copy.deepcopy(pipeline.tokenizer)
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        encoder = fingerprint(pipeline.text_encoder, "text_encoder", pipeline.name_or_path or type(pipeline).__name__)
        part = ResidualPart(encoder, tuple(tokenizer.convert_ids_to_tokens(ids)), torch.stack(shifts).mean(0))
        photos = tuple(photo.sha256 for photo in lesson.pictures)
        return Residual(word, (part,), asdict(self.training), photos, importlib.metadata.version("cones2"))

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with the residuals, and where there is a layout, by the authors' loop."""
        made = with_residuals(pipeline, as_tensors(self, learned))
        yield Drawer(made, {"preset": "cones_v2", "sampler": "cones_v2"})


def preservation(
    tuned: Float[Tensor, "tokens dim"], before: Float[Tensor, "tokens dim"], stop: int
) -> Float[Tensor, ""]:
    """Return how far the start token, and all that follows the class word, padding too, moved; lengths, not squares.

    `stop` is the first position after the class word.
    """
    start = torch.linalg.vector_norm(tuned[0] - before[0])
    after = torch.linalg.vector_norm(tuned[stop:] - before[stop:])
    total: Tensor = _START * start + _AFTER * after
    return total


def own_span(reader: Reader, caption: str, word: str) -> tuple[int, int]:
    """Return where the class word's tokens stand in a caption."""
    return token_span(reader.tokenizer, caption, *find_class_word(caption, word))
