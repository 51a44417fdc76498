"""Cones, the paper's predecessor: a subject is the set of key and value weights that are shut, that is, set to 0."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pydantic
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step
from cones2.baselines.custom_diffusion import keys_and_values
from cones2.baselines.setup import Reader, as_tensors, combined, drawer_of, loaded, set_up
from cones2.baselines.stored import Tensors, token_rows
from cones2.baselines.trainer import Material, Training, denoiser_with, loss_of, materials_of, train
from cones2.baselines.twins import trainable_twin, unet_with, unwrapped_pipeline
from cones2.baselines.words import Identifier
from cones2.errors import ResidualError, check_fields
from cones2.learning.data import random_numbers
from cones2.learning.model import Denoiser
from cones2.shared import own_settings

APP_A = Training(steps=1200, batch_size=2, learning_rate=4e-5, weight_decay=0.0)
"""The paper's settings; the rate is that of `tuned`, since ranking weights needs none."""

_INDICES, _VALUES = "indices.", "values."
_TUNED_PART = 10  # of the steps, one in so many

Mode = Literal["joint", "union", "tuned"]


@dataclass(frozen=True, kw_only=True)
class Cones:
    """Cones (arXiv:2303.05125), re-implemented from its description: its repository holds no code.

    A weight θ of the text's keys and values is a concept neuron if shrinking it lowers the concept-implanting loss,
    DreamBooth's, and the first-order change is -θ·∂L/∂θ. So θ·∂L/∂θ is summed over the steps' batches, and the largest
    positive sums are shut. The paper walks a mask by that score at a rate of 2e-5, at which the walk is a ranking, and
    gives no threshold; here a share of the weights is kept, which is one to sweep. Beside subjects' indices, nothing is
    kept.

    Attributes:
        training: `steps` batches for each subject.
        share: of the weights, for each subject. Table 1's bytes are 0.014 of Stable Diffusion 2.1's.
        mode: `joint`, where the loss is that of a set; `union`, where each subject is searched apart; `tuned`, joint,
            and the shut weights then trained on a tenth of the steps, their values kept as well.
        identifier: as `DreamBooth`.
    """

    training: Training = APP_A
    share: Annotated[float, pydantic.Field(gt=0, le=0.5)] = 0.014
    mode: Mode = "joint"
    identifier: Identifier = "new"

    def __post_init__(self) -> None:
        check_fields(self, "Cones")

    @property
    def name(self) -> str:
        """The row's name."""
        return f"cones_{self.mode}"

    @property
    def scope(self) -> Scope:
        """What is learned together."""
        return "subject" if self.mode == "union" else "set"

    @own_settings()
    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of steps, as `Rival.learn`."""
        setup = set_up(self, pipeline, lessons, seed, self.identifier)
        materials = materials_of(setup.pipeline, lessons, setup.captions, self.training, seed)
        reader = Reader(setup.pipeline, setup.rows)
        unet, weights = trainable_twin(setup.pipeline, keys_and_values(setup.pipeline.unet))
        key, rows = "+".join(lessons), token_rows(setup.rows)
        search = _Search(denoiser_with(setup.pipeline, unet), materials, reader, weights)

        def read_with(chosen: Int[Tensor, "some"], values: Float[Tensor, "some"] | None) -> Tensors:
            own = {f"{_INDICES}{key}": chosen} | ({} if values is None else {f"{_VALUES}{key}": values})
            return Tensors(self.name, setup.texts, setup.class_words, own | rows)

        def take_steps() -> Generator[Step, None, None]:
            steps = self.training.steps * len(lessons)
            for number in range(1, steps + 1):
                loss = search.step(self.training, seed, number)
                yield Step(number, steps, loss, lambda: read_with(search.best(self.share * len(lessons)), None))
            if self.mode != "tuned":
                return
            chosen = search.best(self.share * len(lessons))
            again = replace(self.training, steps=max(1, self.training.steps // _TUNED_PART))
            groups, embed = search.shut(chosen), reader.embed_once

            def read() -> Tensors:
                return read_with(chosen, flattened(weights)[chosen.long()].float().cpu())

            for step in train(search.denoiser, materials, embed, groups, again, seed=seed + 1, read=read):
                yield Step(steps + step.step, steps + step.steps, step.loss, read)

        return take_steps()

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with the weights shut."""
        kept, own = as_tensors(self, learned), unwrapped_pipeline(pipeline)
        yield drawer_of(own, kept.texts, kept.rows, unet=unet_with(own, shut_weights(own, kept)))


class _Search:
    """The sums of θ·∂L/∂θ."""

    def __init__(
        self, denoiser: Denoiser, materials: Sequence[Material], reader: Reader, weights: Mapping[str, Tensor]
    ) -> None:
        self.denoiser, self._materials, self._reader, self._weights = denoiser, materials, reader, weights
        self._total = torch.zeros_like(flattened(weights), dtype=torch.float64)

    @own_settings()
    def step(self, training: Training, seed: int, number: int) -> float:
        """Add one batch's scores; return its loss."""
        with torch.enable_grad():
            embed, draw = self._reader.embed_once, random_numbers(seed, number)
            loss = loss_of(self.denoiser, self._materials, embed, training, draw)
        self._total += scores(self._weights, loss)
        return float(loss.detach())

    def best(self, share: float) -> Int[Tensor, "some"]:
        """Return the indices of the largest positive sums, in their order: at most a share of the weights."""
        count = min(round(share * len(self._total)), int((self._total > 0).sum()))
        return self._total.topk(count).indices.sort().values.to(torch.int32).cpu()

    def shut(self, chosen: Int[Tensor, "some"]) -> list[dict[str, Any]]:
        """Set weights to 0 and let only these be trained; return the optimiser's group."""
        is_shut = torch.zeros(len(self._total), dtype=torch.float32, device=self._total.device)
        is_shut[chosen.long()] = 1
        for weight, mask in zip(self._weights.values(), _cut(is_shut, self._weights), strict=True):
            weight.data.mul_(1 - mask)
            weight.register_hook(lambda gradient, mask=mask: gradient * mask)  # AdamW leaves the others as they are
        return [{"params": list(self._weights.values()), "weight_decay": 0.0}]


def scores(weights: Mapping[str, Tensor], loss: Float[Tensor, ""]) -> Float[Tensor, "all"]:
    """Return θ·∂L/∂θ of all weights, float64: how much L falls, to first order, for each part by which θ shrinks."""
    gradients = torch.autograd.grad(loss, list(weights.values()))
    pairs = zip(weights.values(), gradients, strict=True)
    return torch.cat([(weight.detach().double() * gradient.double()).flatten() for weight, gradient in pairs])


def flattened(weights: Mapping[str, Tensor]) -> Float[Tensor, "all"]:
    """Return all weights in a row, in which indices count."""
    return torch.cat([weight.detach().flatten() for weight in weights.values()])


def _cut(values: Float[Tensor, "all"], weights: Mapping[str, Tensor]) -> list[Tensor]:
    parts = values.split([weight.numel() for weight in weights.values()])
    return [part.view_as(weight) for part, weight in zip(parts, weights.values(), strict=True)]


def shut_weights(pipeline: Any, kept: Tensors) -> dict[str, Tensor]:
    """Return a UNet's keys and values with the union of all subjects' weights shut, or at their tuned values.

    Raises:
        ResidualError: an index is none of this UNet's.
    """
    names = set(keys_and_values(pipeline.unet))
    weights = {name: weight for name, weight in pipeline.unet.named_parameters() if name in names}
    whole = flattened(weights).cpu()
    for name, indices in kept.own.items():
        if not name.startswith(_INDICES):
            continue
        values = kept.own.get(
            _VALUES + name.removeprefix(_INDICES), torch.zeros(len(indices), dtype=torch.float32, device="cpu")
        )
        fits = indices.dtype == torch.int32 and indices.ndim == 1 and values.shape == indices.shape
        if not fits or not bool(((indices >= 0) & (indices < len(whole))).all()):
            raise ResidualError(f"{name[:100]} does not fit this UNet's {len(whole)} weights: learn it on this model.")
        whole[indices.long()] = values.to(whole)
    return dict(zip(weights, _cut(whole, weights), strict=True))
