"""Reading files within bounds, and writing them so that a reader sees the old content or the new, never a part."""

import contextlib
import errno
import json
import os
import re
import reprlib
import secrets
import stat
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from cones2.errors import Cones2Error, Cones2Warning, OutputError, SettingsError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_DEEP_KEY = re.compile(r"""(?:\.[ \t]*+(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+){32}""")
_LARGEST_TOML, _MOST_TABLES = 2**18, 4000
_LOCKS_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}
_LINKS_UNSUPPORTED = {errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK}


def expanded(path: Path | str) -> Path:
    """Return `path` with the user's home in place of `~`; `~nobody`, at which pathlib fails, stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def exists(path: Path) -> bool:
    """Return whether something is at a path; no, where pathlib fails: at a name too long, a folder not to be read."""
    return os.path.exists(path)  # noqa: PTH110


def is_folder(path: Path) -> bool:
    """Return whether a folder is at a path; no, where pathlib fails."""
    return os.path.isdir(path)  # noqa: PTH112


def is_regular(path: Path) -> bool:
    """Return whether a regular file is at a path; no, where pathlib fails."""
    return os.path.isfile(path)  # noqa: PTH113


def is_name(text: str) -> bool:
    """Whether a text can name a subject and its file: up to 64 letters, digits and underscores, no digit first."""
    return _NAME.fullmatch(text) is not None


def name_hint(text: str) -> str:
    """Return what to say of a name that can't be one: what it may hold, and the nearest that can."""
    near = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")[:64]
    near = f"_{near}"[:64] if near[:1].isdigit() else near
    offered = f" Take {near!r}." if near and near != text else ""
    return f"expected up to 64 letters, digits and _, no digit first.{offered}"


def is_hub_id(text: str) -> bool:
    """Whether a text could be the id of a repository of the Hub, `owner/name`, rather than a file."""
    return _HUB_ID.fullmatch(text) is not None


def read_bounded(path: Path, *, limit: int, error: type[Cones2Error]) -> bytes:
    """Return the bytes of `path`, a regular file of at most `limit` bytes; pipes and devices are not waited for.

    Raises:
        Cones2Error: of the type `error`: the file is missing, unreadable, not a regular file or too large.
    """

    def open_without_waiting(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no such flag

    try:
        with open(path, "rb", opener=open_without_waiting) as file:
            # The open file is asked, so that nothing can be swapped in between.
            is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            content = file.read(limit + 1) if is_regular else b""
    except (OSError, ValueError) as cause:  # ValueError: a NUL in the path
        raise error(f"can't read {path}: {_reason(cause)}. Check the path and its permissions.") from cause
    if not is_regular:
        raise error(f"can't read {path}: it is a pipe or device, expected a regular file.")
    if len(content) > limit:
        raise error(f"{path} is too large: expected at most {limit:,} bytes.")
    return content


def read_toml(path: Path, *, example: str) -> dict[str, Any]:
    """Return what a TOML file of at most 256 KiB says; `example` is what an error shows of how it should be.

    Raises:
        SettingsError: it can't be read, is too large or no TOML, or would take too long to read.
    """
    content = read_bounded(path, limit=_LARGEST_TOML, error=SettingsError)
    if content.count(b"[") + content.count(b"{") > _MOST_TABLES:
        raise SettingsError(f"{path} has over {_MOST_TABLES} brackets: expected fewer lists and tables. Split it.")
    try:
        text = content.decode("utf-8-sig")
        if _DEEP_KEY.search(text):  # Python's reader takes time by the square of a key's parts
            raise ValueError("a key has more than 32 parts")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"can't read {path} as TOML: {reason}. Expected {example}.") from error


def read_json_object(path: Path, *, limit: int, error: type[Cones2Error]) -> dict[str, Any]:
    """Return the JSON object that a file of at most `limit` bytes holds; an `error` where it can't be read as one."""
    content = read_bounded(path, limit=limit, error=error)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise error(f"{path} can't be read as JSON: get it again.") from cause
    if not isinstance(value, dict):
        raise error(f"{path} holds no JSON object, as it should: get it again.")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object's pairs, as `json.loads` hands them out; ValueError where a key is there twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{reprlib.repr(key)} is there twice")
        found[key] = value
    return found


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file beside `path`, to the disk, and then under its name.

    The name is written to the disk as well, where folders can be: SMB, WSL and some of FUSE have no such thing.

    Raises:
        OutputError: the folder is missing or can't be written, or the disk is full; the old content is kept.
    """
    with _written_beside(path, content) as temporary:
        temporary.replace(path)


def create_atomically(path: Path, content: bytes) -> bool:
    """Write as `write_atomically` does, but only where nothing has that name yet; return whether nothing had.

    Of any number of processes that create one file at once, one is told True. Where the file system has no hard links,
    a lock file beside it sees to that.

    Raises:
        OutputError: the folder is missing or can't be written, or the disk is full.
    """
    with _written_beside(path, content) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _LINKS_UNSUPPORTED:
                raise
            with locked(path.parent / ".lock", wait=True):
                if path.exists():
                    return False
                temporary.replace(path)
    return True


@contextlib.contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """Yield a temporary file beside `path` that is on the disk; what the block makes of it is so afterwards."""
    temporary = path.parent / f".{secrets.token_hex(8)}.part"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise OutputError(f"can't write {path}: {_reason(error)}. Choose another place, or make room there.") from error
    finally:
        with contextlib.suppress(OSError, ValueError):  # the error under way says what is wrong
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # from here on the file is there, and nothing may undo that
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def make_folder(path: Path) -> None:
    """Make the folder `path` and its parents where they are missing; OutputError where that can't be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"can't make the folder {path}: {_reason(error)}. Choose another place.") from error


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock file `path` for a `with` block; the lock ends with the process, however that ends.

    The file is made where it is missing, and stays. Where the file system has no locks, there is a warning instead.

    Raises:
        BlockingIOError: somebody else holds it, and `wait` is False.
        OutputError: it can't be made, or something that is not a regular file has its name.
    """
    mode = stat.S_IFREG
    with contextlib.suppress(OSError, ValueError):  # missing, or an error that locking meets as well
        mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise OutputError(f"{path} is in the way: expected a regular file, or none. Remove it.")
    lock = filelock.FileLock(path, timeout=-1 if wait else 0, thread_local=False, fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except filelock.Timeout as error:
            raise BlockingIOError(errno.EAGAIN, "somebody else holds the lock", str(path)) from error
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) not in _LOCKS_UNSUPPORTED:
                raise OutputError(f"can't lock {path}: {_reason(error)}. Choose another folder.") from error
            message = f"can't lock {path}: {_reason(error)}. Let nothing else write to {path.parent} at the same time."
            warnings.warn(message, Cones2Warning, stacklevel=3)
        yield


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
