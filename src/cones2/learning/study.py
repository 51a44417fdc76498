"""One step of learning after the other, and what each has learned."""

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from cones2.backbones import Backbone
from cones2.errors import LearningError
from cones2.learning.lesson import Lesson, random_numbers
from cones2.learning.ways import choose_way
from cones2.residual.residual import Residual

_HALF_SCALE = 2.0**12
"""What the loss is multiplied by where gradients pass a UNet in float16.

They are means over a latent's 10,000 numbers or so, and most of them would be 0 there. A power of two, so that dividing
by it is exact.
"""


@dataclasses.dataclass(frozen=True, eq=False)
class LearnStep:
    """What one step of `learn` did.

    Attributes:
        step: this step, from 1.
        steps: how many there are.
        loss: L of Eq. 4, before this step's update.
        subject_loss: its first term, Eq. 2.
        preservation_loss: Eq. 3, not yet weighted by λ.
        study: what is being learned, as of this step until the next one is taken.
    """

    step: int
    steps: int
    loss: float
    subject_loss: float
    preservation_loss: float
    study: "Study" = dataclasses.field(repr=False)

    @functools.cached_property
    def residual(self) -> Residual:
        """What was learned up to this step; computed when first asked for, from all captions (Eq. 5).

        Raises:
            LearningError: another step was taken before it was asked for, or it is not finite.
        """
        self._check_last()
        return self.study.residual()

    @property
    def tuned(self) -> Backbone:
        """The backbone with the tuned text encoder, to compare with; it is tuned further by the next step.

        Where the residual is learned directly, it is the backbone itself.

        Raises:
            LearningError: another step was taken.
        """
        self._check_last()
        return self.study.way.tuned

    def keep_on_close(self, keep: bool) -> None:
        """Say whether closing `learn` at this step writes a checkpoint, if it has a folder; it does unless told not to.

        Raises:
            LearningError: another step was taken.
        """
        self._check_last()
        self.study.kept_on_close = keep

    def _check_last(self) -> None:
        if self.study.taken != self.step:
            advice = "Ask for what a step has learned before taking the next one"
            raise LearningError(f"step {self.step} is gone: learning is at step {self.study.taken}. {advice}.")


class Study:
    """What is being learned, its optimiser, the step that was taken last, and whether closing there keeps the state."""

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.taken = 0
        self.kept_on_close = True
        self.way = choose_way(lesson)
        self.parameters = self.way.parameters
        recipe = lesson.recipe
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )

    def steps(self, after: int) -> Iterator[LearnStep]:
        """Take the steps that follow step `after`; the last one computes the residual, so that its failure is told."""
        steps = self.lesson.recipe.steps
        try:
            for number in range(after + 1, steps + 1):
                losses = self._update(number)
                self.taken, self.kept_on_close = number, True
                step = LearnStep(number, steps, *losses, study=self)
                if number == steps:
                    self._freeze()
                    _ = step.residual
                yield step
        finally:
            self._freeze()

    def residual(self) -> Residual:
        """Compute Δ of what is learned so far.

        Raises:
            LearningError: it is not finite.
        """
        vector = self.way.vector()
        if not vector.isfinite().all():
            raise self._diverged("the residual is not finite")
        return _make_residual(self.lesson, vector, taken=self.taken)

    def state(self) -> dict[str, Tensor]:
        """Give what a step changes, not copied: parameters, their averages and the optimiser's moments, by name."""
        tensors = {f"parameter.{index}": parameter.detach() for index, parameter in enumerate(self.parameters)}
        tensors |= {f"average.{index}": average for index, average in enumerate(self.way.averages)}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}": moment for name, moment in moments.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `state` gave."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, index = key.split(".")
            if name == "parameter":
                self.parameters[int(index)].data.copy_(tensor)
            elif name == "average":
                self.way.averages[int(index)].copy_(tensor)
            else:
                moments.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})

    def _update(self, step: int) -> tuple[float, float, float]:
        """Take one step of the optimiser; give L, L_sub and L_reg before it."""
        subject, preservation = self.way.losses(random_numbers(self.lesson.seed, step))
        loss = subject + self.lesson.recipe.preservation_weight * preservation
        norm = torch.nn.utils.get_total_norm(self._gradients(loss))
        total, first, second, size = torch.stack([loss, subject, preservation, norm]).tolist()
        if not math.isfinite(total + size):
            raise self._diverged(f"loss {total}, gradient {size} at step {step} of {self.lesson.recipe.steps}")
        self.optimizer.step()
        self.way.gather(step)
        return total, first, second

    def _gradients(self, loss: Float[Tensor, ""]) -> list[Float32[Tensor, "..."]]:
        """Put the loss's gradients where the optimiser finds them, and give them."""
        self.optimizer.zero_grad()
        scale = _HALF_SCALE if self.lesson.backbone.dtype == torch.float16 else 1.0
        torch.autograd.backward(scale * loss)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if scale != 1:
            for gradient in gradients:
                gradient.div_(scale)
        return gradients

    def _freeze(self) -> None:
        self.optimizer.zero_grad()
        for parameter in self.parameters:
            parameter.requires_grad_(False)

    def _diverged(self, what: str) -> LearningError:
        rate = self.lesson.recipe.learning_rate
        advice = f"Begin again with a learning_rate below {rate:g} or another dtype"
        return LearningError(f"learning diverged: {what}, expected finite numbers; no residual was written. {advice}.")


def _make_residual(lesson: Lesson, vector: Float[Tensor, "tokens dim"], *, taken: int) -> Residual:
    ids = lesson.captions.input_ids[0][lesson.captions.own[0]].tolist()[: len(vector)]
    return Residual(
        class_word=lesson.class_word,
        vector=vector,
        tokens=tuple(lesson.backbone.tokenizer.convert_ids_to_tokens(ids)),
        encoder=lesson.backbone.encoder_id,
        recipe=lesson.record(taken),
        photos=tuple(photo.sha256 for photo in lesson.photos),
        tool_version=importlib.metadata.version("cones2"),
    )
