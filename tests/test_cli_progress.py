"""The bar itself, on a terminal."""

import io
from collections.abc import Generator
from dataclasses import dataclass

import pytest
from rich.console import Console

from cones2.cli import progress


@dataclass(frozen=True)
class Step:
    """As a learner's."""

    step: int
    steps: int
    loss: float


def steps() -> Generator[Step, None, None]:
    yield from (Step(number, 3, 0.5 / number) for number in (1, 2, 3))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    shown = io.StringIO()
    monkeypatch.setattr(progress, "messages", Console(file=shown, force_terminal=True, width=100))
    return shown


def test_it_shows_step_loss_and_time_left(terminal: io.StringIO) -> None:
    last = progress.follow(steps(), "learning [red]rex", tell=lambda step: f"loss {step.loss:.4f}")
    assert last == Step(3, 3, 0.5 / 3)
    shown = terminal.getvalue()
    for part in ("learning [red]rex", "3/3", "loss 0.1667", "0:00:00", "left"):
        assert part in shown


def test_what_has_no_steps_is_shown_too(terminal: io.StringIO) -> None:
    with progress.waiting("opening mini"):
        pass
    assert "opening mini" in terminal.getvalue()


def test_it_is_closed_after_an_error(terminal: io.StringIO) -> None:
    def failing() -> Generator[Step, None, None]:
        yield Step(1, 3, 0.5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        progress.follow(failing(), "learning")
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is wiped
