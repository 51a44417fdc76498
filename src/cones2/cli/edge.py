"""The command line's edge: errors in one line, exit codes, and libraries that keep quiet."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from cones2.cli.console import complain
from cones2.errors import Cones2Error, Cones2Warning

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

# click's, or Typer's own copy of it; only its subclass has a public name.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Print what goes wrong in one line, and end with its exit code: 1, 2 for wrong usage, 130 for Ctrl-C."""
    try:
        yield
    except _UsageError as error:
        _end_misused(error)
    except Cones2Error as error:
        _end(str(error), FAILED, error)
    except BrokenPipeError:
        raise  # whoever reads stdout has enough; Typer ends quietly
    except OSError as error:
        place = ". Check the disk." if error.filename is None else f": {error.filename}. Check the path."
        _end(f"{error.strerror or error}{place}", FAILED, error)
    except KeyboardInterrupt as error:
        _end("interrupted.", INTERRUPTED, error)
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        advice = "draw smaller or fewer pictures at once, learn with a smaller batch_size, or use another --device"
        _end(f"out of memory: {advice}.", FAILED, error)


@contextmanager
def with_quiet_libraries() -> Iterator[None]:
    """Print our warnings in one line, and keep other libraries' remarks and bars off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Cones2Warning)
        told: set[str] = set()  # the same remark on each batch of pictures is one remark

        def tell(message: Warning | str, *_args: object, **_options: object) -> None:
            if str(message) not in told:
                told.add(str(message))
                complain("warning", message)

        warnings.showwarning = tell
        yield


def _end_misused(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":  # a command without anything after it shows its help
        raise error
    command = error.ctx.command_path if error.ctx else "cones2"
    what = error.format_message()
    end = "" if what.endswith((".", "?")) else "."
    _end(f"{what[:1].lower()}{what[1:]}{end} '{command} --help' tells how it is used.", MISUSED, error)


def _end(text: str, code: int, error: BaseException) -> None:
    notes = getattr(error, "__notes__", ())
    complain("error", " ".join((text, *notes)))
    raise typer.Exit(code) from error


def _is_lack_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Tell PyTorch's errors of memory, which are RuntimeErrors on a CPU, from others."""
    return isinstance(error, MemoryError) or any(
        hint in str(error).lower() for hint in ("out of memory", "can't allocate memory")
    )
