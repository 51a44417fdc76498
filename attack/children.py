"""Children of a process that has everything imported: each runs one piece of work, watched and harmed by `shim.c`."""

import ctypes
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cones2.cli import errors_in_one_line, main
from loaders import silence

OFF, WATCH, FAIL, FAIL_ON, SHORT, KILL_BEFORE, KILL_AMID = range(7)
"""What the shim does: count only; let one operation fail; from there on all that write; cut one short; kill."""

Work = Callable[[], object]


@dataclass(frozen=True)
class Fault:
    """What is to happen at the `at`-th operation, from 1, on files in `folder`."""

    folder: Path
    mode: int = WATCH
    at: int = 0
    code: int = 0


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, or the signal that killed it as a negative number, and what it printed."""

    code: int
    out: str
    err: str
    operations: tuple[tuple[str, str], ...] = ()


def begin_with_shim() -> None:
    """Begin this program anew with the shim in place, unless it is: needs a C compiler and Linux."""
    if "CONES2_SHIM" in os.environ:
        return
    library = Path(tempfile.mkdtemp()) / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-O1", "-Wall", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    changed = {"CONES2_SHIM": str(library), "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | changed)


def cli(*arguments: object) -> Work:
    """Return the work of a call of the command line."""

    def work() -> None:
        sys.argv = ["cones2", *map(str, arguments)]
        main()

    return work


def library_call(function: Work) -> Work:
    """Return the work of a call of the library, whose errors end as the command line's do."""

    def work() -> None:
        with errors_in_one_line():
            function()

    return work


def run(work: Work, fault: Fault | None = None, *, seconds: float = 120) -> Ended:
    """Do a piece of work in a child, and wait for its end."""
    with tempfile.TemporaryDirectory() as folder:
        begun = start(work, Path(folder), fault)
        deadline = time.monotonic() + seconds
        while not (ended := os.waitpid(begun, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(begun, 9)
                os.waitpid(begun, 0)
                return Ended(-99, "", f"took more than {seconds} seconds")
            time.sleep(0.002)
        return read_end(Path(folder), ended[1])


def start(work: Work, folder: Path, fault: Fault | None = None) -> int:
    """Start a piece of work in a child; `folder` gets what it prints."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        silence()
        streams = [os.open(folder / name, os.O_CREAT | os.O_RDWR, 0o600) for name in ("in", "out", "err", "log")]
        for number in range(3):
            os.dup2(streams[number], number)
        sys.stdin = io.TextIOWrapper(os.fdopen(0, "rb", closefd=False))
        sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), write_through=True)
        code = _work(work, fault, streams[3])
    finally:
        sys.stdout.flush()
        os._exit(code)


def _work(work: Work, fault: Fault | None, log: int) -> int:
    import traceback

    shim = ctypes.CDLL(None)
    try:
        if fault is not None:
            shim.shim_arm(os.fsencode(fault.folder), fault.mode, ctypes.c_long(fault.at), fault.code, log)
        work()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        if type(error).__name__ == "Exit":  # Typer's, outside of a command
            return int(getattr(error, "exit_code", 98))
        traceback.print_exc()
        return 98
    finally:
        if fault is not None:
            shim.shim_arm(b"/", OFF, ctypes.c_long(0), 0, -1)
    return 0


def read_end(folder: Path, status: int) -> Ended:
    """Return what became of a child that has ended with this status."""
    texts = [
        (folder / name).read_bytes().decode(errors="replace") if (folder / name).exists() else "" for name in _FILES
    ]
    operations = tuple(
        (kind, Path(name).name) for kind, _, name in (line.partition("\t") for line in texts[2].splitlines())
    )
    return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1], operations)


_FILES = ("out", "err", "log")
