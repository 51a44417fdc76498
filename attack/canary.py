"""Notices code that runs, files that are written and connections that are made where nothing of that should be."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_NEVER = (
    *("compile", "ctypes.dlopen", "http.client.", "marshal.loads", "pickle.find_class", "shutil.", "socket."),
    *("os.chmod", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn", "os.remove", "os.rename"),
    *("os.rmdir", "os.spawn", "os.symlink", "os.system", "os.truncate", "smtplib.", "subprocess.", "urllib."),
)
_WRITING = 0o3 | 0o100 | 0o1000 | 0o2000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND
_TRUSTED = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]), "<frozen"})


class Canary:
    """Hears of what Python does, for as long as the process lives."""

    def __init__(self) -> None:
        self._seen: list[str] | None = None
        sys.addaudithook(self._hear)

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Yield a list of what happens in a `with` block and should not."""
        seen: list[str] = []
        self._seen = seen
        try:
            yield seen
        finally:
            self._seen = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._seen is None:
            return
        if event == "exec":
            code = arguments[0]
            suspect = not (isinstance(code, types.CodeType) and code.co_filename.startswith(_TRUSTED))
        elif event == "open":
            suspect = isinstance(arguments[2], int) and bool(arguments[2] & _WRITING)
        else:
            suspect = event.startswith(_NEVER) and not _importing()
        if suspect:
            self._seen.append(f"{event} {arguments!r}"[:200])


def _importing() -> bool:
    """Whether Python's own import of a module that is needed for the first time is under way."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
    return False
