"""Keeping diffusers and transformers quiet while they are imported or load a model, and their errors to one line."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.RLock()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".") + "."


@contextmanager
def without_import_notices() -> Iterator[None]:
    """Drop what transformers says on being imported where torchvision is not installed; nothing here needs that.

    It imports nothing itself, so that a lazy import can stand in the block.
    """
    logger = logging.getLogger("transformers.utils.import_utils")

    def is_kept(record: logging.LogRecord) -> bool:
        return "torchvision" not in record.getMessage()

    logger.addFilter(is_kept)
    try:
        yield
    finally:
        logger.removeFilter(is_kept)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and load reports off the terminal: what matters in them becomes an error here.

    The user's settings are back after the block. Threads wait for one another, so that none takes another's silence for
    the user's settings.
    """
    with without_import_notices():
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

    libraries = (transformers_logging, diffusers_logging)
    with _LOCK, without_import_notices():
        saved = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
        try:
            for library in libraries:
                library.set_verbosity(logging.CRITICAL)
                library.disable_progress_bar()
            yield
        finally:
            for library, (verbosity, has_bars) in zip(libraries, saved, strict=True):
                library.set_verbosity(verbosity)
                if has_bars:
                    library.enable_progress_bar()
