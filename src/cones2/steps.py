"""Taking all the steps of a loop at once."""

from collections.abc import Iterable
from typing import TypeVar

Step = TypeVar("Step")


def finish(steps: Iterable[Step]) -> Step:
    """Run `learn` or `compose` to its end and give the last step, which holds the residual or the pictures.

    Raises:
        ValueError: there is no step at all.
    """
    step = None
    for step in steps:  # noqa: B007
        pass
    if step is None:
        raise ValueError("there are no steps to finish: give a generator that has not ended.")
    return step
