"""Where residuals come from: files, the user's own library of subjects by name, the examples and the Hub."""

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from cones2.errors import Cones2Error, LibraryError, ResidualError
from cones2.examples import EXAMPLES
from cones2.files import expanded, is_hub_id, is_name, is_regular, locked, make_folder, name_hint, read_bounded
from cones2.residual import MAX_FILE_BYTES, Residual, describe_file

FOLDER_VARIABLE = "CONES2_LIBRARY"
"""The environment variable that names another folder than the default."""

_SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Entry:
    """A file of the library, by the name of its subject, and what it says; where it is broken, `problem` says why."""

    name: str
    path: Path
    facts: Mapping[str, Any] | None
    problem: str = ""

    def describe(self) -> dict[str, str | None]:
        """Return what this is as JSON values."""
        found = self.facts
        return {
            "name": self.name,
            "file": str(self.path),
            "class_word": found["class_word"] if found else None,
            "learned_on": found["parts"][0]["fits"] if found else None,
            "sha256": found["sha256"] if found else None,
            "problem": self.problem or None,
        }


@dataclass(frozen=True)
class Library:
    """A folder of residuals, `NAME.safetensors` each, that several processes may write at once.

    It need not be there yet. Files that other programs put there are read like any stranger's.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path | str | None = None) -> "Library":
        """Return the library in `folder`, else in $CONES2_LIBRARY, else in the user's data folder."""
        named = folder or os.environ.get(FOLDER_VARIABLE)
        return cls(expanded(named) if named else platformdirs.user_data_path("cones2") / "subjects")

    def names(self) -> list[str]:
        """Return the names of all files, sorted; LibraryError where the folder is there and can't be read."""
        try:
            paths = list(self.folder.iterdir()) if self.folder.exists() else []
        except (OSError, ValueError) as error:
            raise LibraryError(f"can't read the library {self.folder}: {error}. Check the folder.") from error
        return sorted(path.stem for path in paths if path.suffix == _SUFFIX and not path.name.startswith("."))

    def entries(self) -> Iterator[Entry]:
        """Read all files, sorted by name; a broken one says why."""
        for name in self.names():
            path = self.folder / f"{name}{_SUFFIX}"
            try:
                content = read_bounded(path, limit=MAX_FILE_BYTES, error=ResidualError)
                yield Entry(check_name(name), path, describe_file(content, origin=str(path)))
            except (Cones2Error, OSError) as error:
                if os.path.lexists(path):  # else it was removed meanwhile
                    yield Entry(name, path, None, str(error))

    def path_of(self, name: str) -> Path:
        """Return where a subject's file is, or would be; LibraryError for what can't be a name."""
        return self.folder / f"{check_name(name)}{_SUFFIX}"

    def load(self, name: str) -> Residual:
        """Read a subject; LibraryError for a name that is not there, ResidualError for a damaged file."""
        return Residual.load(self.file_of(name))

    def file_of(self, name: str) -> Path:
        """Return a subject's file; LibraryError for a name that is not there."""
        path = self.path_of(name)
        if not path.exists():
            raise self._unknown(name)
        return path

    def add(self, name: str, residual: Residual, *, replace: bool = False) -> Path:
        """Keep a residual under a name, and return its path; of two that add one name at once, one wins.

        Raises:
            LibraryError: the name can't be one, or is taken and `replace` is False.
            OutputError: it can't be written.
        """
        path = self.path_of(name)
        make_folder(self.folder)
        with self._changing():
            self.check_free(name, replace=replace)
            residual.save(path)
        return path

    def rename(self, old: str, new: str, *, replace: bool = False) -> Path:
        """Give a subject, sound or broken, another name, and return its path.

        Raises:
            LibraryError: `old` is not there, or `new` can't be a name, or is taken and `replace` is False.
        """
        before, after = self.path_of(old), self.path_of(new)
        with self._changing(old):
            self.check_free(new, replace=replace or old == new, besides=old)
            before.replace(after)
        return after

    def remove(self, name: str) -> None:
        """Delete a subject, sound or broken; LibraryError for a name that is not there, or can't be deleted."""
        path = self.path_of(name)
        with self._changing(name):
            path.unlink()

    def check_can_add(self, name: str, *, replace: bool = False) -> None:
        """Check that `add` could keep a subject, by the same lock: before work whose result it will keep.

        Raises:
            LibraryError: as `add`.
            OutputError: the lock can't be taken.
        """
        self.path_of(name)
        if self.folder.is_dir():
            with self._changing():
                self.check_free(name, replace=replace)

    def check_free(self, name: str, *, replace: bool = False, besides: str = "") -> None:
        """Check that a subject can have a name: where disks ignore case, names that differ only in it are one file.

        Raises:
            LibraryError: it is taken and `replace` is False, or differs only in case from another than `besides`.
        """
        names = self.names()
        if name in names and not replace:
            raise LibraryError(f"the library has a subject {name!r} already: choose another name, or replace it.")
        for other in names:
            if name not in names and other != besides and other.casefold() == name.casefold():
                raise LibraryError(f"{name!r} differs from {other!r} only in case: choose another name.")

    @contextlib.contextmanager
    def _changing(self, name: str | None = None) -> Iterator[None]:
        """Keep other writers out for a `with` block that changes files; a `name` must be there."""
        if name is not None and not self.folder.is_dir():
            raise self._unknown(name)
        with locked(self.folder / ".lock", wait=True):
            if name is not None and name not in self.names():
                raise self._unknown(name)
            try:
                yield
            except Cones2Error:
                raise
            except OSError as error:
                raise LibraryError(f"can't change {error.filename}: {error.strerror}. Check the folder.") from error

    def _unknown(self, name: str) -> LibraryError:
        names = self.names() if self.folder.is_dir() else []
        nearest = difflib.get_close_matches(name, names, n=1)
        known = f"it has {', '.join(names[:20])}." if names else "it is empty."
        hint = f"did you mean {nearest[0]!r}?" if nearest else known
        examples = f" The examples are {', '.join(EXAMPLES)}."
        return LibraryError(f"the library {self.folder} has no subject {name!r}; {hint}{examples}")


def check_name(name: str) -> str:
    """Return the name of a subject as it is; LibraryError for what can't be one."""
    if not is_name(name):
        raise LibraryError(f"{name[:100]!r} can't name a subject: {name_hint(name)}")
    return name


def find_residual(source: str | Path, library: Library | None = None) -> Residual:
    """Return the residual that a user names.

    That is a name in the library, or else of an example; a file, which is any `Path`, and any text that is a path
    and no name; or a Hub id, `owner/name`, where there is no such file.

    Raises:
        ResidualError: the file is not a sound residual.
        LibraryError: neither the library nor the examples have this name.
        HubError: the Hub does not have this id, or can't be reached.
    """
    path, name = expanded(source), str(source)
    is_file = isinstance(source, Path) or path.suffix == _SUFFIX or (is_regular(path) and not is_name(name))
    if not is_file and is_hub_id(name):
        from cones2.hub import pull

        return pull(name)
    if is_file or len(path.parts) > 1:
        return Residual.load(path)
    library = library or Library.open()
    if name in EXAMPLES and not library.path_of(name).exists():
        return EXAMPLES[name].residual
    return library.load(name)


def find_by_hash(sha256: str) -> Residual | None:
    """Return the residual of the library or of the examples whose file has this sha256; None where there is none."""
    for entry in Library.open().entries():
        if entry.facts and entry.facts["sha256"] == sha256:
            with contextlib.suppress(ResidualError):  # it was removed or replaced meanwhile
                residual = Residual.load(entry.path)
                if residual.sha256 == sha256:
                    return residual
    return next((each.residual for each in EXAMPLES.values() if each.residual.sha256 == sha256), None)
