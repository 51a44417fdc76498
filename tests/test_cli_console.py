"""Tables, bars and plain lines of progress."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from cones2.cli.console import complain, follow, note, print_rows, print_table


@dataclass(frozen=True)
class Step:
    """As a learner's."""

    step: int
    steps: int


def on_a_terminal(script: str) -> str:
    """Run Python on a terminal of 100 columns, and give what that shows."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", script], stderr=theirs, stdout=theirs, env=environment):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # Linux's end of a terminal
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    return shown.decode()


SCRIPT = """
from cones2.cli.console import follow, waiting
from types import SimpleNamespace
with waiting("opening mini"):
    pass
steps = (SimpleNamespace(step=number, steps=3) for number in (1, 2, 3))
follow(steps, "learning [red]rex", tell=lambda step: f"loss {step.step / 2}")
"""


def test_a_terminal_shows_bars() -> None:
    shown = on_a_terminal(SCRIPT)
    for part in ("opening mini", "learning [red]rex", "3/3", "loss 1.5", "left"):
        assert part in shown


def test_a_pipe_shows_a_line_every_few_seconds(capfd: pytest.CaptureFixture[str]) -> None:
    script = SCRIPT.replace("follow(", "from cones2.cli import console; import time\nconsole.follow(", 1).replace(
        "for number in (1, 2, 3)", "for number in (1, 2, 3) if not time.sleep(5.1 * (number == 2))"
    )
    subprocess.run([sys.executable, "-c", "import time\n" + script], check=True)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("learning [red]rex: step 2 of 3, loss 1.0, ")


def test_a_smiley_is_printed_as_typed(capsys: pytest.CaptureFixture[str]) -> None:
    note("drawing :smiley: [bold]")
    complain("error", ":smiley:")
    print_table(":smiley:", {":dog:": ":cat:"})
    shown = capsys.readouterr()
    assert shown.err == "drawing :smiley: [bold]\nerror: :smiley:\n"
    assert [":smiley:" in shown.out, ":dog:" in shown.out, ":cat:" in shown.out] == [True] * 3


@pytest.mark.parametrize("columns", ["30", "45", "80", "200"])
def test_values_stay_visible_on_narrow_terminals(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    print_table("momo", {"a long name of a row that has no end": "value", "weights": "0123456789abcdef"})
    print_rows("library", ("subject", "class word", ""), [("rex", "dog", "broken: sad")])
    shown = capsys.readouterr().out.replace("\n", " ")
    for part in ("value", "0123456789abcdef", "rex", "dog", "sad"):
        assert part in shown


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
            yield Step(number, 3)
    finally:
        done.append("closed")


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(("times", "expected"), [(1, ["step 1", "kept 1", "closed"]), (2, ["closed"])])
def test_an_interrupt_waits_for_the_end_of_a_step_and_a_second_one_does_not(times: int, expected: list[str]) -> None:
    done: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        follow(
            interrupting(done, times=times),
            "learning",
            tell=lambda _: "",
            at_interrupt=lambda step: done.append(f"kept {step.step}"),
        )
    assert done == expected
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("heeded")
def test_an_interrupt_that_a_background_job_ignores_stays_ignored() -> None:
    done: list[str] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(KeyboardInterrupt):  # it would end these tests
        follow(interrupting(done, times=2), "learning", tell=lambda _: "")
    assert done == ["step 1", "step 2", "step 3", "closed"]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
