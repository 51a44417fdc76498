"""What a way of drawing that stands beside a way of learning takes from it: all but the drawing."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cones2.baselines.base import Learned, Lesson, Rival, Scope, Step


@runtime_checkable
class Beside(Protocol):
    """A rival that learns as another does, its base."""

    @property
    def base(self) -> Rival:
        """How subjects are learned."""


@property  # type: ignore[misc]  # of the classes that take it
def base_scope(self: Beside) -> Scope:
    """What is learned together."""
    return self.base.scope


def learn_base(
    self: Beside, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0
) -> Generator[Step, None, None]:
    """Learn as the base does: nothing is added."""
    return self.base.learn(pipeline, lessons, seed=seed)


def combine_base(self: Beside, pipeline: Any, learned: Sequence[Learned]) -> Learned:
    """Combine as the base does."""
    return self.base.combine(pipeline, learned)


def load_base(self: Beside, content: bytes) -> Learned:
    """Load as the base does."""
    return self.base.load(content)
