"""Bars on everything that takes a while; they go to stderr and leave nothing behind."""

import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from typing import Protocol, TypeVar, runtime_checkable

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from cones2.cli.console import messages, printable


@runtime_checkable
class _Stepped(Protocol):
    @property
    def step(self) -> int: ...

    @property
    def steps(self) -> int: ...


StepT = TypeVar("StepT", bound=_Stepped)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something without steps is under way."""
    with _bar(SpinnerColumn(), _text("what")) as bar:
        bar.add_task("", total=None, what=printable(what))
        yield


def follow(
    steps: Generator[StepT, None, None],
    what: str,
    *,
    tell: Callable[[StepT], str] = lambda _: "",
    whole_steps: bool = False,
) -> StepT:
    """Run a generator of steps to its end under a bar: step, what `tell` says, time left. Give the last step.

    It is closed whatever happens, so that it can put things back, or keep a checkpoint. With `whole_steps`, Ctrl-C
    waits for the end of a step, so that this one is kept, too; a second Ctrl-C does not wait.

    Raises:
        KeyboardInterrupt: on Ctrl-C.
    """
    columns = (
        _text("what"),
        BarColumn(),
        MofNCompleteColumn(),
        _text("told"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with closing(steps), _bar(*columns) as bar, _interrupt_held() if whole_steps else nullcontext(bool) as interrupted:
        task = bar.add_task("", total=None, what=printable(what), told="")
        for step in steps:
            bar.update(task, completed=step.step, total=step.steps, told=tell(step))
            if interrupted():
                raise KeyboardInterrupt
    return step


@contextmanager
def _interrupt_held() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back, and give what tells whether it came; the second one interrupts.

    Where it is ignored, as by a shell's background jobs, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: False
        return
    came = False

    def note(*_: object) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def _bar(*columns: ProgressColumn) -> Progress:
    return Progress(*columns, console=messages, transient=True, disable=not messages.is_terminal)


def _text(field: str) -> TextColumn:
    return TextColumn("{task.fields[" + field + "]}", markup=False)
