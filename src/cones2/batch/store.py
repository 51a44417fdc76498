"""Where a batch keeps its results: a folder, or any URL of fsspec's. A thing is written whole or not at all.

Everything rests on `create`: of all that create one name, in any process or on any machine, one content stays.
"""

import contextlib
import errno
import itertools
import random
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from cones2.errors import Cones2Warning, OutputError, first_line
from cones2.files import create_atomically, expanded, make_folder, read_bounded, write_atomically

LARGEST = 2**28
"""Bytes of the largest thing that is read whole: a picture."""

_TRIES, _TRIES_OF_BUSY = 5, 12
_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before the second try; twice that before each later one, up to the longest
_TOLD = 4  # tries after which it is said that a storage is waited for
_USER = re.compile(r"(?<=://)(?:[^\s/?#:]*:\S*|[^\s/?#]*)@")
_QUERY = re.compile(r"(://[^\s?]*)\?\S*")
_BUSY = re.compile(r"slow ?down|request rate|too many requests|rate.?limit|throttl|server.?busy|\b(429|503)\b", re.I)

_Result = TypeVar("_Result")


@runtime_checkable
class Store(Protocol):
    """What the engine asks of a storage; names are `folder/file`.

    Whatever can't be done, after tries where that may help, is an `OutputError`.
    """

    def create(self, name: str, content: bytes) -> bool:
        """Write a thing unless its name is taken; return whether its content is now this one."""

    def write(self, name: str, content: bytes) -> None:
        """Write a thing, in place of what had its name."""

    def note(self, name: str, content: bytes) -> None:
        """Write a thing that may as well be missing: once, and whatever comes of it."""

    def put(self, name: str, path: Path) -> None:
        """Move a file of this machine there."""

    def get(self, name: str, path: Path) -> None:
        """Copy a thing to a file of this machine."""

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """Return a thing's bytes, or a part of them; None where nothing has that name."""

    def names(self, folder: str) -> list[str]:
        """Return the names of what is in a folder, without the folder's, sorted."""

    def delete(self, name: str) -> None:
        """Delete a thing, if it is there."""


class LocalStore:
    """A folder of this machine, or of one that is mounted here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create(self, name: str, content: bytes) -> bool:
        """See `Store`."""
        path = self._place(name)
        return create_atomically(path, content) or self.read(name) == content

    def write(self, name: str, content: bytes) -> None:
        """See `Store`."""
        write_atomically(self._place(name), content)

    def note(self, name: str, content: bytes) -> None:
        """See `Store`."""
        with contextlib.suppress(OutputError):
            self.write(name, content)

    def put(self, name: str, path: Path) -> None:
        """See `Store`; the file must be on the same disk, and written to it."""
        try:
            path.replace(self._place(name))
        except OSError as error:
            raise OutputError(f"can't write {self.folder / name}: {error.strerror}. Choose another place.") from error

    def get(self, name: str, path: Path) -> None:
        """See `Store`."""
        try:
            shutil.copyfile(self.folder / name, path)
        except OSError as error:
            raise OutputError(f"can't copy {self.folder / name} to {path}: {error.strerror}.") from error

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """See `Store`."""
        path = self.folder / name
        if not path.exists():
            return None
        if end is None:
            return read_bounded(path, limit=LARGEST, error=OutputError)
        try:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(min(end - start, LARGEST))
        except OSError as error:
            raise OutputError(f"can't read {path}: {error.strerror}. Check its permissions.") from error

    def names(self, folder: str) -> list[str]:
        """See `Store`; what is being written has no name yet."""
        try:
            return sorted(path.name for path in (self.folder / folder).iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OutputError(f"can't read {self.folder / folder}: {error.strerror}. Check the folder.") from error

    def delete(self, name: str) -> None:
        """See `Store`."""
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"can't delete {self.folder / name}: {error.strerror}.") from error

    def _place(self, name: str) -> Path:
        path = self.folder / name
        make_folder(path.parent)
        return path


class RemoteStore:
    """Any other storage of fsspec's: `s3://...`, `gs://...`, `memory://...`."""

    def __init__(self, url: str) -> None:
        import fsspec  # type: ignore[import-untyped]

        try:
            self._files, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            why = without_secrets(first_line(error))
            raise OutputError(f"can't write there: {why} Give a folder, or a URL of fsspec's.") from error
        self._shown = without_secrets(url).rstrip("/")
        self._told = False

    def create(self, name: str, content: bytes) -> bool:
        """See `Store`. A try that failed may have written all the same: what is there then is compared."""

        def make() -> bool:
            try:
                self._files.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return False
            return True

        return self._tried(name, make) or self.read(name) == content

    def write(self, name: str, content: bytes) -> None:
        """See `Store`."""
        self._tried(name, lambda: self._files.pipe_file(self._path(name), content))

    def note(self, name: str, content: bytes) -> None:
        """See `Store`."""
        with contextlib.suppress(Exception):  # each storage has its own errors
            self._files.pipe_file(self._path(name), content)

    def put(self, name: str, path: Path) -> None:
        """See `Store`."""
        self._tried(name, lambda: self._files.put_file(str(path), self._path(name)))
        path.unlink(missing_ok=True)

    def get(self, name: str, path: Path) -> None:
        """See `Store`."""
        self._tried(name, lambda: self._files.get_file(self._path(name), str(path)))

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        """See `Store`."""
        path = self._path(name)

        def fetch() -> bytes | None:
            try:
                if end is None and (size := self._files.size(path)) > LARGEST:
                    raise OutputError(f"{self._shown}/{name} has {size:,} bytes: expected at most {LARGEST:,}.")
                content: bytes = self._files.cat_file(path, start=start or None, end=end)
            except FileNotFoundError:
                return None
            return content

        return self._tried(name, fetch)

    def names(self, folder: str) -> list[str]:
        """See `Store`."""

        def listed() -> list[str]:
            try:
                paths = self._files.ls(self._path(folder), detail=False)
            except FileNotFoundError:
                return []
            return sorted(path.rsplit("/", 1)[-1] for path in paths if not path.endswith("/"))

        return self._tried(folder, listed)

    def delete(self, name: str) -> None:
        """See `Store`."""

        def remove() -> None:
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

        self._tried(name, remove)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _tried(self, name: str, action: Callable[[], _Result]) -> _Result:
        """Do something, again after a pause where the storage may only have been busy.

        Whoever works waits meanwhile, and so asks for no more work. That is all that holds back too many workers.
        """
        for attempt in itertools.count(1):
            try:
                return action()
            except OutputError:
                raise
            except Exception as error:  # each storage has its own errors
                busy = getattr(error, "errno", None) == errno.EBUSY or _BUSY.search(str(error)) is not None
                why = without_secrets(first_line(error))
                if attempt >= (_TRIES_OF_BUSY if busy else _TRIES) or isinstance(error, PermissionError):
                    advice = " It is busy: run it again later, with fewer workers." if busy else ""
                    raise OutputError(f"the storage fails at {self._shown}/{name}: {why}{advice}") from error
                if busy and attempt >= _TOLD and not self._told:
                    self._told = True
                    warnings.warn(f"the storage is busy, and waited for: {why}", Cones2Warning, stacklevel=3)
            time.sleep(min(_LONGEST_PAUSE, _PAUSE * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.5))
        raise AssertionError("the last try returns or raises")


def open_store(out: Path | str) -> Store:
    """Return the storage of a folder or URL; `OutputError` where there is none of that kind."""
    text = str(out)
    if isinstance(out, Path) or "://" not in text:
        return LocalStore(expanded(text).absolute())
    return LocalStore(Path(text.removeprefix("file://"))) if text.startswith("file://") else RemoteStore(text)


def without_secrets(text: object) -> str:
    """Return a text without what may be secret in its URLs: who asks, before an `@`, and what stands after a `?`."""
    return _QUERY.sub(r"\1", _USER.sub("", str(text)))


def check_store(store: Store) -> None:
    """Create a thing twice; warn where the second creation changes the first. OutputError where none can be made."""
    name = f"probe-{secrets.token_hex(8)}"
    store.create(name, b"one")
    second, content = store.create(name, b"two"), store.read(name)
    store.delete(name)
    if second or content != b"one" or _only_looks(store):
        message = "the storage can't create a file only once: let one engine at a time write there."
        warnings.warn(message, Cones2Warning, stacklevel=3)


def _only_looks(store: Store) -> bool:
    """Whether a storage of fsspec's looks first and then writes, between which another may write."""
    import fsspec

    write: Any = getattr(getattr(store, "_files", None), "pipe_file", None)
    return getattr(write, "__func__", None) is fsspec.AbstractFileSystem.pipe_file
