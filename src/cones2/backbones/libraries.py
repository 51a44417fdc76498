"""Keeping the libraries that load models quiet, and their errors to one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


def first_line(error: Exception) -> str:
    """Give the first line of an error's message, with a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".") + "."


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and load reports off the terminal: what matters in them becomes an error here."""
    libraries = (transformers_logging, diffusers_logging)
    saved = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    try:
        for library in libraries:
            library.set_verbosity(50)
            library.disable_progress_bar()
        yield
    finally:
        for library, (verbosity, has_bars) in zip(libraries, saved, strict=True):
            library.set_verbosity(verbosity)
            if has_bars:
                library.enable_progress_bar()
