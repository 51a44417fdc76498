"""Where results go: checked before the work, so that an hour of it is never lost to a closed folder."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cones2.errors import Cones2Error, OutputError
from cones2.files import make_folder
from cones2.picture import read_record

_OTHER_PICTURES = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Output:
    """Where pictures go: one file, or a folder, where each gets a number that is not taken, and its seed."""

    path: Path

    @classmethod
    def check(cls, path: Path, *, count: int, also: Sequence[str] = ()) -> "Output":
        """Check that `count` pictures can be written, and beside each what `also` names.

        Raises:
            OutputError: they can't, or something else is there.
        """
        suffix = path.suffix.lower()
        if suffix == ".png" and not path.is_dir():
            for file in (path, *(beside(path, what) for what in also)):
                check_file(file, suffix=".png", read=read_record)
            if count > 1:
                raise OutputError(f"--out {path} is one file, --count {count} makes more: give a folder.")
        elif suffix in _OTHER_PICTURES:
            raise OutputError(f"--out {path}: pictures are written as PNG. Give a name ending in .png, or a folder.")
        else:
            check_folder(path)
        return cls(path)

    def path_for(self, seed: int) -> Path:
        """Make the folder and give the next picture's path."""
        if self.path.suffix.lower() == ".png" and not self.path.is_dir():
            make_folder(self.path.parent)
            return self.path
        make_folder(self.path)
        numbers = [int(name[:4]) for name in (path.name for path in self.path.glob("[0-9][0-9][0-9][0-9]-seed*.png"))]
        return self.path / f"{max(numbers, default=-1) + 1:04}-seed{seed}.png"


def beside(path: Path, what: str) -> Path:
    """Name a picture that belongs to another, `dog.png`: `dog-attention.png`."""
    return path.with_name(f"{path.stem}-{what}.png")


def check_folder(folder: Path) -> None:
    """Check that files can be made in `folder`, or in the nearest folder above it that is there; leave nothing.

    Raises:
        OutputError: they can't.
    """
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OutputError(f"can't write in {folder}: {error.strerror}. Choose another --out.") from error


def check_file(path: Path, *, suffix: str, read: Callable[[Path], object], option: str = "--out") -> None:
    """Check that `path`, which `option` gave, can be written.

    Nothing but an earlier result, one that `read` can read, may be lost.

    Raises:
        OutputError: it can't, or something else is there.
    """
    if path.suffix.lower() != suffix:
        raise OutputError(f"{option} {path} does not end in {suffix}: give the file another name.")
    check_folder(path.parent)
    try:
        if path.exists():
            read(path)
    except OSError as error:
        raise OutputError(f"can't write {path.name}: {error.strerror}. Choose another {option}.") from error
    except Cones2Error as error:
        raise OutputError(f"{path} is there, and cones2 did not write it. Choose another {option}.") from error
