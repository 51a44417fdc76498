"""Where results go: checked before the work, and one rule for all of them. Nothing is replaced without `--replace`."""

import itertools
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cones2.errors import Cones2Error, OutputError
from cones2.files import exists, is_folder, make_folder, write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

_NUMBERED = re.compile(r"(\d{1,18})-seed")
_OTHER_PICTURES = {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def check_new(path: Path, *, suffix: str, replace: bool, option: str = "--out") -> None:
    """Check that a file can be written to `path`, which `option` gave."""
    if path.suffix.lower() != suffix:
        raise OutputError(f"{option} {path} does not end in {suffix}: give the file another name.")
    check_folder(path.parent)
    with _writing(path):
        if is_folder(path):
            raise OutputError(f"{path} is a folder. Choose another {option}.")
        if exists(path) and not replace:
            raise OutputError(f"{path} is there already. Add --replace if it may be lost, or choose another {option}.")


def check_folder(folder: Path) -> None:
    """Write a file to `folder`, or to the nearest folder above it that is there, as results are; leave nothing."""
    with _writing(folder):
        nearest = next(path for path in (folder, *folder.absolute().parents) if exists(path))
        tried = nearest / f".{secrets.token_hex(8)}.part"
        try:
            write_atomically(tried, b"")
        except OutputError as error:
            raise error.__cause__ or error from None  # it names the file
        tried.unlink()


@dataclass(frozen=True)
class Pictures:
    """Where pictures go: one file, or a folder, where each gets a number that is not taken, and its seed."""

    path: Path

    @classmethod
    def check(cls, path: Path, *, count: int, replace: bool, also: tuple[str, ...] = ()) -> "Pictures":
        """Check that `count` pictures can be written, and beside each what `also` names."""
        suffix = path.suffix.lower()
        if suffix == ".png" and not is_folder(path):
            if count > 1:
                raise OutputError(f"--out {path} is one file, and there are {count} pictures: give a folder.")
            for file in (path, *(beside(path, what) for what in also)):
                check_new(file, suffix=".png", replace=replace)
        elif suffix in _OTHER_PICTURES and not is_folder(path):
            raise OutputError(f"--out {path}: pictures are written as PNG. Give a name ending in .png, or a folder.")
        else:
            check_folder(path)
        return cls(path)

    def write(self, image: "Image", record: Mapping[str, Any], *, seed: int, embed: bool = True) -> Path:
        """Write a picture with its record, into a folder that is made if need be, and return its path."""
        from cones2.png import write_picture

        if self.path.suffix.lower() == ".png" and not is_folder(self.path):
            make_folder(self.path.parent)
            write_picture(self.path, image, record, embed=embed)
            return self.path
        make_folder(self.path)
        with _writing(self.path), self._next_number() as number:
            path = self.path / f"{number:04}-seed{seed}.png"
            write_picture(path, image, record, embed=embed)
        return path

    @contextmanager
    def _next_number(self) -> Iterator[int]:
        """Yield a number that nobody who writes here at the same time gets; a hidden file tells them of it."""
        for number in itertools.count(self._first_free()):
            mark = self.path / f".{number:04}.part"
            try:
                made = mark.open("xb")
            except FileExistsError:
                continue
            try:
                made.close()
                if number >= self._first_free():  # nobody took it between counting and marking
                    yield number
                    return
            finally:
                with suppress(OSError):  # the picture is written, and a mark that stays takes only its number
                    mark.unlink()

    def _first_free(self) -> int:
        names = [_NUMBERED.match(path.name) for path in self.path.iterdir()]
        return max((int(name[1]) for name in names if name), default=-1) + 1


def beside(path: Path, what: str) -> Path:
    """Return the path of a picture that belongs to another, `dog.png`: `dog-attention.png`."""
    return path.with_name(f"{path.stem}-{what}.png")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one line why nothing can be written to `path`."""
    try:
        yield
    except Cones2Error:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"can't write to {path}: {why}. Choose another place.") from error
