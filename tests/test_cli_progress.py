"""The bar itself, on a terminal."""

import io
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import suppress
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


@pytest.fixture
def heeded() -> Iterator[None]:
    """Ctrl-C as in a terminal, also where these tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupting(done: list[str], *, times: int) -> Generator[Step, None, None]:
    """Three steps; in the first, Ctrl-C is pressed."""
    try:
        for number in (1, 2, 3):
            for _ in range(times if number == 1 else 0):
                os.kill(os.getpid(), signal.SIGINT)
            done.append(f"step {number}")
            yield Step(number, 3, 0.5)
    finally:
        done.append("closed")


@pytest.mark.usefixtures("heeded")
def test_an_interrupt_waits_for_the_end_of_a_step() -> None:
    done: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        progress.follow(interrupting(done, times=1), "learning", whole_steps=True)
    assert done == ["step 1", "closed"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("heeded")
def test_an_interrupt_that_a_background_job_ignores_stays_ignored() -> None:
    done: list[str] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(KeyboardInterrupt):  # it would end these tests
        progress.follow(interrupting(done, times=2), "learning", whole_steps=True)
    assert done == ["step 1", "step 2", "step 3", "closed"]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(("times", "whole_steps"), [(2, True), (1, False)])
def test_an_interrupt_that_does_not_wait(times: int, whole_steps: bool) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        progress.follow(interrupting(done, times=times), "learning", whole_steps=whole_steps)
    assert done == ["closed"]
