"""Rows that are no rivals: the residual itself, and the plain model with the class words alone."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step, check_lessons
from cones2.baselines.setup import Drawer, as_tensors, combined, loaded
from cones2.baselines.stored import Tensors
from cones2.baselines.twins import pipeline_with, unwrapped_pipeline
from cones2.errors import ResidualError, check_fields
from cones2.learning.learner import LearnStep, learn_steps
from cones2.learning.recipe import Recipe
from cones2.models import facts_of
from cones2.residual import Residual
from cones2.subjects import Subject

_FILE = "residual."


@dataclass(frozen=True, kw_only=True)
class Ours:
    """A residual for each subject (arXiv:2305.19327), by cones2's own learner.

    Attributes:
        recipe: a `Recipe`, the name of one, or None for what suits the model.
    """

    recipe: Recipe | str | None = None
    name: ClassVar[str] = "ours"
    scope: ClassVar[Scope] = "subject"

    def __post_init__(self) -> None:
        check_fields(self, "Ours")

    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of steps, as `Rival.learn`."""
        check_lessons(self, lessons)
        [(name, lesson)] = lessons.items()
        own = unwrapped_pipeline(pipeline)
        recipe = self.recipe or facts_of(own).recipe
        steps = learn_steps(own, lesson.pictures, lesson.class_word, recipe, seed=seed)

        def read(step: LearnStep) -> Callable[[], Tensors]:
            return lambda: kept_residual(self.name, name, step.residual)

        return (Step(each.step, each.steps, each.loss, read(each)) for each in steps)

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with the residuals."""
        yield Drawer(with_residuals(pipeline, as_tensors(self, learned)))


def kept_residual(rival: str, name: str, residual: Residual) -> Tensors:
    """Return a residual as its own file's bytes, which say what encoder it fits."""
    content = torch.frombuffer(bytearray(residual.to_bytes()), dtype=torch.uint8)
    words = {name: residual.class_word}
    return Tensors(rival, words, words, {f"{_FILE}{name}": content})


def with_residuals(pipeline: Any, kept: Tensors) -> Any:
    """Return a pipeline with the residuals of a file loaded.

    Raises:
        ResidualError: one is missing or damaged.
    """
    made = pipeline_with(pipeline)
    for name in kept.texts:
        content = kept.tensors.get(f"{_FILE}{name}")
        if content is None or content.dtype != torch.uint8:
            raise ResidualError(f"there is no residual of {name!r}: learn it again.")
        residual = Residual.from_bytes(content.numpy().tobytes(), origin=name)
        made.load_subject(name, Subject(kept.class_words[name], residual))
    return made


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The model as it is: its own dog for a dog. What a layout alone gives, and chance for every identity."""

    name: ClassVar[str] = "plain"
    scope: ClassVar[Scope] = "subject"

    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:  # noqa: ARG002
        """Return one step of nothing."""
        check_lessons(self, lessons)
        words = {name: lesson.class_word for name, lesson in lessons.items()}
        return (step for step in [Step(0, 0, 0.0, lambda: Tensors(self.name, words, words, {}))])

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw the class words."""
        made = pipeline_with(pipeline)
        for name, word in as_tensors(self, learned).texts.items():
            made.load_subject(name, Subject(word))
        yield Drawer(made)
