"""Where text goes: results to stdout, all else to stderr, as bars on a terminal and as plain lines elsewhere."""

import json
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cones2.errors import printable

messages = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
"""Bars, warnings and errors."""

_EVERY = 5.0
"""Seconds between two plain lines of progress."""
_NARROW = 60
"""Columns of a terminal in which names and values stand below one another."""


@dataclass
class Volume:
    """How much of what is not a result is printed."""

    quiet: bool = False
    verbose: bool = False


volume = Volume()


def complain(kind: str, text: object) -> None:
    """Print one line to stderr, above a bar that is there: `error: ...` or `warning: ...`."""
    style = {"error": "bold red", "warning": "yellow"}[kind]
    messages.print(Text.assemble((f"{kind}:", style), " ", printable(" ".join(str(text).split()))))


def say(text: str) -> None:
    """Print a line of result, at once also where stdout is a pipe."""
    print(printable(text), flush=True)


def note(text: str) -> None:
    """Print a message to stderr, unless --quiet was given."""
    if not volume.quiet:
        messages.print(printable(text), markup=False)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object, in ASCII."""
    print(json.dumps(value))


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """Print names and values; on a narrow terminal each value below its name."""
    out = Console(emoji=False)
    if out.width < _NARROW:
        out.print(Text(printable(title), style="bold"))
        for name, value in rows.items():
            out.print(Text(printable(name), style="cyan"))
            out.print(Text(f"  {printable(value)}", overflow="fold"))
        return
    table = Table(title=Text(printable(title), style="bold"), title_justify="left", show_header=False)
    table.add_column(overflow="fold", max_width=out.width // 2)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(printable(name), style="cyan"), Text(printable(value)))
    out.print(table)


def print_rows(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a head for each column; on a narrow terminal each row as lines of its own."""
    out = Console(emoji=False)
    if out.width < _NARROW:
        for row in rows:
            print_table(
                row[0], {head: cell for head, cell in zip(heads, row, strict=True) if cell and head != heads[0]}
            )
        return
    table = Table(title=Text(printable(title), style="bold"), title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    out.print(table)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show that something without steps is under way: a spinner, or after a while one line."""
    if messages.is_terminal or volume.quiet:
        with _bar(SpinnerColumn(), _text("what")) as bar:
            bar.add_task("", total=None, what=printable(what))
            yield
        return
    later = threading.Timer(_EVERY, note, [f"{what} ..."])
    later.daemon = True
    later.start()
    try:
        yield
    finally:
        later.cancel()


Show = Callable[..., None]
"""`show(step, steps, extra="")`."""


@contextmanager
def progress(what: str, *, timed: bool = True) -> Iterator[Show]:
    """Show steps that are done: a bar on a terminal, elsewhere a line every few seconds.

    Where it is not `timed`, `extra` alone tells how many are done and how long the rest takes, in one line or several.
    """
    began = last = time.monotonic()
    if messages.is_terminal or volume.quiet:
        times = (MofNCompleteColumn(), _text("extra"), TimeRemainingColumn(), TextColumn("left"))
        with _bar(_text("what"), BarColumn(), *(times if timed else times[1:2])) as bar:
            task = bar.add_task("", total=None, what=printable(what), extra="")
            yield lambda step, steps, extra="": bar.update(task, completed=step, total=steps, extra=extra)
        return

    def show(step: int, steps: int, extra: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY and (step or not timed):
            last = now
            if not timed:
                note("; ".join(f"{what}: {extra}".splitlines()))
                return
            left = (now - began) / step * (steps - step)
            note(", ".join([f"{what}: step {step} of {steps}", *([extra] if extra else []), f"{left:.0f} s left"]))

    yield show


@contextmanager
def drawing(what: str) -> Iterator[Callable[..., dict[str, Any]]]:
    """Show the steps of a drawing: yield what diffusers calls at the end of each."""
    with progress(what) as show:

        def at_step_end(pipeline: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            show(step + 1, pipeline.num_timesteps)
            return tensors

        yield at_step_end


def follow(
    steps: Generator[Any, None, None],
    what: str,
    *,
    tell: Callable[[Any], str],
    at_interrupt: Callable[[Any], object] = lambda _: None,
) -> Any:
    """Run a generator of steps, each with its `step` and `steps`, to its end, show them, and return the last one.

    Ctrl-C waits for the end of a step, and `at_interrupt` keeps that one; a second Ctrl-C does not wait.
    """
    with closing(steps), progress(what) as show, _interrupt_held() as interrupted:
        for step in steps:
            show(step.step, step.steps, tell(step))
            if interrupted():
                at_interrupt(step)
                raise KeyboardInterrupt
        return step


@contextmanager
def _interrupt_held() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back, and yield what tells whether it came; the second one interrupts.

    Where it is ignored, as by a shell's background jobs, it stays so.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = False

    def hold(*_: object) -> None:
        nonlocal came
        if came:
            raise KeyboardInterrupt
        came = True

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGINT, before)


def _bar(*columns: Any) -> Progress:
    return Progress(*columns, console=messages, transient=True, disable=volume.quiet)


def _text(field: str) -> TextColumn:
    return TextColumn("{task.fields[" + field + "]}", markup=False)
