"""DreamBooth: the whole UNet is tuned on a set of subjects, each under an identifier before its class word."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step
from cones2.baselines.setup import Reader, as_tensors, combined, drawer_of, loaded, set_up
from cones2.baselines.stored import Tensors, token_rows
from cones2.baselines.trainer import Training, denoiser_with, materials_of, train
from cones2.baselines.twins import trainable_twin, unet_with, unwrapped_pipeline
from cones2.baselines.words import Identifier
from cones2.errors import check_fields
from cones2.shared import own_settings

APP_A = Training(steps=800, batch_size=2, learning_rate=5e-5)
"""The paper's settings."""


@dataclass(frozen=True, kw_only=True)
class DreamBooth:
    """DreamBooth (arXiv:2208.12242, Eqs. 1 and 2), several subjects jointly, as in arXiv:2305.19327, App. A.

    All weights of the UNet are trained on "a photo of a ID CLASS" and, with the prior term, on the class's own pictures
    under "a photo of a CLASS"; the text encoder stays frozen, as the storage in Table 1 tells. The specification is
    diffusers' `examples/dreambooth/train_dreambooth.py`. Its script for several subjects puts a photo of each into
    every step; here "batch 2" is two photos a step, each of a subject drawn uniformly.

    App. A's rate, 5e-5, is ten times that of diffusers' README: it is one to tune.

    Attributes:
        training: `steps` are for each subject.
        identifier: a `new` word with a random row, or a `rare` one of the model's own.
    """

    training: Training = APP_A
    identifier: Identifier = "new"
    name: ClassVar[str] = "dreambooth"
    scope: ClassVar[Scope] = "set"

    def __post_init__(self) -> None:
        check_fields(self, "DreamBooth")

    @own_settings()
    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of steps, as `Rival.learn`."""
        setup = set_up(self, pipeline, lessons, seed, self.identifier)
        materials = materials_of(setup.pipeline, lessons, setup.captions, self.training, seed)
        reader = Reader(setup.pipeline, setup.rows)
        unet, weights = trainable_twin(setup.pipeline, dict(setup.pipeline.unet.named_parameters()))

        def read() -> Tensors:
            kept = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
            return Tensors(self.name, setup.texts, setup.class_words, kept | token_rows(setup.rows))

        groups, denoiser = [{"params": list(weights.values())}], denoiser_with(setup.pipeline, unet)
        return train(denoiser, materials, reader.embed_once, groups, self.training, seed=seed, read=read)

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with the tuned UNet."""
        kept = as_tensors(self, learned)
        yield drawer_of(pipeline, kept.texts, kept.rows, unet=unet_with(unwrapped_pipeline(pipeline), kept.own))
