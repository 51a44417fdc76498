"""Where results go: checked before the work, so that an hour of it is never lost to a closed folder."""

import itertools
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cones2.errors import Cones2Error, OutputError
from cones2.files import make_folder
from cones2.picture import read_record, write_picture
from cones2.residual.residual import Residual

_NUMBERED = re.compile(r"(\d{1,18})-seed")
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

    def write(self, picture: Image.Image, record: Mapping[str, object], *, seed: int) -> Path:
        """Write a picture with its record, into a folder that is made if need be, and give its path.

        Raises:
            OutputError: it can't be written; nothing is left behind.
        """
        if self.path.suffix.lower() == ".png" and not self.path.is_dir():
            make_folder(self.path.parent)
            write_picture(self.path, picture, record)
            return self.path
        make_folder(self.path)
        path = self._reserved(seed)
        try:
            write_picture(path, picture, record)
        except BaseException:
            path.unlink()
            raise
        return path

    def _reserved(self, seed: int) -> Path:
        """Make an empty file of the next number, so that nobody who writes here at the same time takes its name."""
        try:
            names = [_NUMBERED.match(path.name) for path in self.path.iterdir()]
            first = max((int(name[1]) for name in names if name), default=-1) + 1
            for number in itertools.count(first):
                path = self.path / f"{number:04}-seed{seed}.png"
                with suppress(FileExistsError):
                    path.open("xb").close()
                    break
        except OSError as error:
            raise OutputError(f"can't write in {self.path}: {error.strerror}. Choose another --out.") from error
        return path


def beside(path: Path, what: str) -> Path:
    """Name a picture that belongs to another, `dog.png`: `dog-attention.png`."""
    return path.with_name(f"{path.stem}-{what}.png")


def check_pictures_folder(folder: Path) -> None:
    """Check that `folder` can hold pictures, and is not meant for one.

    Raises:
        OutputError: it can't, or has the name of a picture.
    """
    if folder.suffix.lower() in {".png", *_OTHER_PICTURES} and not folder.is_dir():
        raise OutputError(f"--out {folder} is one file, and there are more to write: give a folder.")
    check_folder(folder)


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


def check_residual(path: Path, *, replace: bool) -> None:
    """Check that a residual can be written to `path`; one that is there may be lost only with `replace`.

    Raises:
        OutputError: it can't, or something is there.
    """
    check_file(path, suffix=".safetensors", read=Residual.load)
    if path.exists() and not replace:
        raise OutputError(
            f"--out {path} is there already. Add --replace if it may be lost, or begin with another --out."
        )


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
