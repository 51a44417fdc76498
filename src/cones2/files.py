"""Reading files within bounds, and writing them so that a reader sees the old content or the new, never a part."""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from cones2.errors import Cones2Error, OutputError


def expanded(path: Path | str) -> Path:
    """Put the user's home in place of `~`; `~nobody`, at which pathlib's own way fails, stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def read_bounded(path: Path, *, limit: int, error: type[Cones2Error]) -> bytes:
    """Return the bytes of `path`, a regular file of at most `limit` bytes.

    Symbolic links are followed; pipes, devices and folders are refused without blocking on them.

    Raises:
        Cones2Error: of the type `error`; the file is missing, unreadable, not a regular file or too large.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            # Asked of the open file, so that nothing can be swapped in between.
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise error(f"can't read {path}: it is a pipe or device, expected a regular file.")
            content = file.read(limit + 1)
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the path
        raise error(f"can't read {path}: {_reason(cause)}. Check the path and its permissions.") from cause
    if len(content) > limit:
        raise error(f"{path} is too large: expected at most {limit:,} bytes.")
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`: temporary file beside it, fsync, rename, fsync of the folder.

    Raises:
        OutputError: the folder is missing or can't be written, or the disk is full; nothing is left behind.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        _write_new(temporary, content)
        temporary.replace(path)
        _fsync_folder(path.parent)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise OutputError(f"can't write {path}: {_reason(error)}. Choose another place, or make room there.") from error
    finally:
        _remove(temporary)


def make_folder(path: Path) -> None:
    """Make the folder `path` and its parents, if they are not there yet.

    Raises:
        OutputError: it can't be made, for instance because a file is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"can't make the folder {path}: {_reason(error)}. Choose another --out.") from error


@contextlib.contextmanager
def held(lock: Path, *, wait: bool) -> Iterator[None]:
    """Hold the file `lock` until the block ends; the lock goes with the process, however that ends.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        OutputError: it can't be made.
    """
    try:
        file = lock.open("w")
    except (OSError, ValueError) as error:
        raise OutputError(f"can't write in {lock.parent}: {_reason(error)}. Choose another folder.") from error
    with file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _write_new(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # Where even this fails, nothing was made, and the error under way says why.
    with contextlib.suppress(OSError, ValueError):
        path.unlink(missing_ok=True)


def _open_without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK)  # a pipe would wait for a writer


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
