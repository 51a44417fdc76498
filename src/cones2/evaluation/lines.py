"""Results as they come: a file of lines for each row, each line on the disk before the next picture is drawn.

A process that is killed loses the line that it was writing: whoever reads leaves it out, and the next run cuts it off.
A finished row can be packed, to be committed: gzip without a time, so that equal lines are equal bytes.
"""

import contextlib
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from cones2.batch.job import as_json
from cones2.errors import OutputError, SettingsError, first_problem
from cones2.evaluation.judging import Judged
from cones2.files import locked, make_folder, write_atomically

_LONGEST_LINE = 2**16
_LARGEST = 2**30  # bytes of a row, unpacked: a stranger's few packed bytes may promise any number
_Hash = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
_Text = Annotated[str, pydantic.Field(max_length=1000)]
_Count = Annotated[int, pydantic.Field(ge=0, lt=2**50)]
_Seconds = Annotated[float, pydantic.Field(ge=0, lt=2**50)]


class _Line(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    protocol: _Hash
    row: _Text


class LearnedLine(_Line, frozen=True):
    """What it took to learn subjects.

    Attributes:
        id: the hash of all that decides what is learned.
        subjects: learned together.
        bytes: of the file that keeps them; 0 where learning failed.
        steps: of learning.
        seconds: of learning.
        failed: why there is nothing, "" where there is.
    """

    kind: Literal["learned"] = "learned"
    id: _Hash
    subjects: Annotated[list[_Text], pydantic.Field(min_length=1, max_length=8)]
    bytes: _Count
    steps: _Count
    seconds: _Seconds
    failed: _Text = ""


class PictureLine(_Line, frozen=True):
    """A picture, and what the judges saw in it.

    Attributes:
        case: the hash of all that decides the picture.
        combination, prompt, number: which picture of the protocol it is; `number` is the seed's.
        layout: whether the layout was given.
        picture: the hash of its pixels; "" where there is none, since learning failed.
        seconds: of drawing it.
        judged: what the judges saw.
    """

    kind: Literal["picture"] = "picture"
    case: _Hash
    combination: _Text
    prompt: _Count
    number: _Count
    layout: bool
    picture: Annotated[str, pydantic.Field(pattern=r"^([0-9a-f]{64})?$")]
    seconds: _Seconds
    judged: Judged

    @pydantic.model_validator(mode="after")
    def _judged_where_there_is_one(self) -> "PictureLine":
        if self.picture and not (self.judged.whole and self.judged.words):
            raise ValueError("expected a picture to be judged")
        return self


Line = LearnedLine | PictureLine
_ANY: pydantic.TypeAdapter[Line] = pydantic.TypeAdapter(Annotated[Line, pydantic.Field(discriminator="kind")])


class RowLines:
    """The lines of one row, in a folder: those that were packed, and those that came since. Reading changes nothing.

    Raises:
        SettingsError: a line is damaged.
        OutputError: the folder can't be read or written.
    """

    def __init__(self, folder: Path, row: str) -> None:
        self._path, self._packed = folder / f"{row}.jsonl", folder / f"{row}.jsonl.gz"

    def __iter__(self) -> Iterator[Line]:
        for path in (self._packed, self._path):
            if path.exists():
                yield from _read(path)

    def append(self, *lines: Line) -> None:
        """Write lines, all of them on the disk when this returns."""
        make_folder(self._path.parent)
        content = b"".join(line.model_dump_json().encode() + b"\n" for line in lines)
        try:
            with self._path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"can't write {self._path}: {error.strerror}. Make room there.") from error

    def pack(self) -> int:
        """Put all lines into the packed file; return its size in bytes.

        Raises:
            OutputError: a run is at work in the folder.
        """
        with alone(self._path.parent.parent):
            content = b"".join(line.model_dump_json().encode() + b"\n" for line in self)
            packed = gzip.compress(content, mtime=0)
            write_atomically(self._packed, packed)
            self._path.unlink(missing_ok=True)
        return len(packed)

    def sha256(self) -> str:
        """Return the hash of all lines but for how long things took, in the order of their contents."""
        lines = sorted(as_json(line.model_dump(mode="json", exclude={"seconds"})) for line in self)
        return hashlib.sha256(b"\n".join(lines)).hexdigest()

    def cut_off_torn_line(self) -> None:
        """Take the line away that a killed process was writing; only for one that is `alone`."""
        if not self._path.exists():
            return
        with self._path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LONGEST_LINE))
            end = file.read()
            file.truncate(size - (len(end) - end.rfind(b"\n") - 1))


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder for a `with` block.

    Raises:
        OutputError: another process holds it.
    """
    try:
        with locked(folder / ".lock", wait=False):
            yield
    except BlockingIOError as error:
        raise OutputError(
            f"an evaluation is at work in {folder} already: wait for it, or take another folder."
        ) from error


def _read(path: Path) -> Iterator[Line]:
    total = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number in range(1, _LARGEST):
                if not (content := file.readline(_LONGEST_LINE + 1)):
                    return
                total += len(content)
                if len(content) > _LONGEST_LINE or total > _LARGEST:
                    raise SettingsError(f"{path}, line {number}: too long. Take the row's results away, and run again.")
                if path.suffix == ".jsonl" and not content.endswith(b"\n"):
                    return  # torn
                yield _ANY.validate_json(content)
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        told = f"{problem.place or 'the whole'!r} is {problem.got}: {problem.message}"
        raise SettingsError(f"{path}, line {number}: {told}. Take the row's results away, and run again.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise SettingsError(f"can't read {path}: {error}. Take the row's results away, and run again.") from error
