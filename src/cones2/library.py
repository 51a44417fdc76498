"""The user's subjects by name: a folder of residuals that several processes may write at once."""

import contextlib
import difflib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from cones2.checking import is_name
from cones2.errors import Cones2Error, LibraryError
from cones2.files import expanded, held, make_folder
from cones2.residual.residual import Residual

FOLDER_VARIABLE = "CONES2_LIBRARY"
"""The environment variable that names another folder than the default."""

_SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Entry:
    """A file of the library.

    Attributes:
        name: of the subject.
        path: of its file.
        residual: what is in it; None where it is broken.
        problem: why it is broken; empty where it is not.
    """

    name: str
    path: Path
    residual: Residual | None
    problem: str = ""

    def describe(self) -> dict[str, str | None]:
        """Tell what this is as JSON values."""
        return {
            "name": self.name,
            "file": str(self.path),
            "class_word": self.residual.class_word if self.residual else None,
            "learned_on": self.residual.encoder.name if self.residual else None,
            "sha256": self.residual.sha256 if self.residual else None,
            "problem": self.problem or None,
        }


@dataclass(frozen=True)
class Library:
    """A folder of residuals, `NAME.safetensors` each; it need not be there yet.

    A file is whole or absent, whoever else writes. Files that other programs put there are read like any stranger's.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path | str | None = None) -> "Library":
        """Give the library in `folder`, else in $CONES2_LIBRARY, else in the user's data folder."""
        named = folder or os.environ.get(FOLDER_VARIABLE)
        return cls(expanded(named) if named else platformdirs.user_data_path("cones2") / "subjects")

    def entries(self) -> Iterator[Entry]:
        """Read all files, sorted by name; a broken one says why.

        Raises:
            LibraryError: the folder is there and can't be read.
        """
        try:
            paths = sorted(self.folder.iterdir()) if self.folder.exists() else []
        except (OSError, ValueError) as error:
            raise LibraryError(f"can't read the library {self.folder}: {error}. Check the folder.") from error
        for path in paths:
            if path.suffix == _SUFFIX and not path.name.startswith("."):
                yield _read_entry(path)

    def path_of(self, name: str) -> Path:
        """Give where a subject's file is, or would be.

        Raises:
            LibraryError: the name is not one.
        """
        return self.folder / f"{check_name(name)}{_SUFFIX}"

    def load(self, name: str) -> Residual:
        """Read the residual of a subject.

        Raises:
            LibraryError: the name is not one, or none of the library's.
            ResidualError: its file is damaged.
        """
        path = self.path_of(name)
        if not path.exists():
            raise self._unknown(name)
        return Residual.load(path)

    def find(self, sha256: str) -> Residual | None:
        """Give the residual whose file has this sha256, under whatever name; None where there is none."""
        residuals = (entry.residual for entry in self.entries())
        return next((residual for residual in residuals if residual and residual.sha256 == sha256), None)

    def add(self, name: str, residual: Residual, *, replace: bool = False) -> Path:
        """Keep a residual under a name, and give its path; of two that add one name at once, one wins.

        Raises:
            LibraryError: the name is not one, or is taken and `replace` is False.
            OutputError: it can't be written.
        """
        path = self.path_of(name)
        make_folder(self.folder)
        with self._locked():
            self.check_case(name)
            if name in self._names() and not replace:
                raise LibraryError(f"the library has a subject {name!r} already: choose another name, or replace it.")
            residual.save(path)
        return path

    def check_case(self, name: str) -> None:
        """Check that a name is the library's, or differs from all of them by more than case: one file, on some disks.

        Raises:
            LibraryError: it differs from one only in case.
        """
        names = self._names()
        for other in names:
            if name not in names and other.casefold() == name.casefold():
                raise LibraryError(f"{name!r} differs from {other!r} only in case: choose another name.")

    def remove(self, name: str) -> None:
        """Delete a subject, sound or broken.

        Raises:
            LibraryError: the name is not one, or none of the library's, or its file can't be deleted.
            OutputError: the folder can't be written.
        """
        path = self.path_of(name)
        if not path.parent.is_dir():
            raise self._unknown(name)
        with self._locked():
            try:
                path.unlink()
            except FileNotFoundError as error:
                raise self._unknown(name) from error
            except OSError as error:
                raise LibraryError(f"can't delete {path}: {error.strerror}. Check the folder.") from error

    def _names(self) -> list[str]:
        return sorted(path.stem for path in self.folder.glob(f"*{_SUFFIX}"))

    def _unknown(self, name: str) -> LibraryError:
        names = self._names() if self.folder.is_dir() else []
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "'cones2 subjects list' tells what is there."
        return LibraryError(f"the library {self.folder} has no subject {name!r}; {hint}")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with held(self.folder / ".lock", wait=True):
            yield


def check_name(name: str) -> str:
    """Give the name of a subject back.

    Raises:
        LibraryError: it can't be one.
    """
    if not is_name(name):
        raise LibraryError(
            f"{name[:100]!r} can't name a subject: expected up to 64 letters, digits and _, no digit first."
        )
    return name


def _read_entry(path: Path) -> Entry:
    try:
        return Entry(check_name(path.stem), path, Residual.load(path))
    except (Cones2Error, OSError) as error:
        return Entry(path.stem, path, None, str(error))
