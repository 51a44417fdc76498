"""The residual files of the authors' code, read without executing anything.

Their training script calls `torch.save` on one tensor `[tokens, dim]`: a zip archive with a pickle, which is a program,
and the tensor's bytes. No unpickler ever runs that program. Its operations are listed, and compared with those that
torch writes for one tensor of that kind; whatever differs in any of them is refused.
"""

import hashlib
import io
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from cones2.errors import ResidualError
from cones2.files import read_bounded
from cones2.residual.format import MAX_FILE_BYTES, MAX_TOKENS

MAX_WIDTH = 16384

_DTYPES = {"torch FloatStorage": "<f4", "torch HalfStorage": "<f2"}
_DEVICE = re.compile(r"[a-z]{2,8}(:\d{1,3})?")
_MAX_PROGRAM_BYTES = 512
_NOT_A_TENSOR = "its pickle is not the program of one tensor [tokens, dim] of float32 or float16."

_PROGRAM, _NUMBERS = "data.pkl", "data/0"
_NEEDED = {_PROGRAM, _NUMBERS, "version"}
_KNOWN = _NEEDED | {"byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}  # newer torch's
_LOCAL_HEADER_BYTES = 30
_END_RECORD_BYTES = 22
_FLAGS = 0x0808  # sizes after the data, names in UTF-8

_Operation = tuple[str, object]


class AuthorsFile(NamedTuple):
    """What such a file holds, and the sha256 of its bytes. It does not say of which word, nor of which model."""

    vector: Float32[Tensor, "tokens dim"]
    sha256: str


def read_authors_file(path: Path) -> AuthorsFile:
    """Read a file: float32 or float16, saved from any device.

    Raises:
        ResidualError: it can't be read, or is anything but what the authors' training script saves.
    """
    content = read_bounded(path, limit=MAX_FILE_BYTES, error=ResidualError)
    try:
        return AuthorsFile(_read_tensor(_read_entries(content)), hashlib.sha256(content).hexdigest())
    except ResidualError as error:
        raise ResidualError(
            f"{path} is no residual of the authors' script: {error} Expected the residual.pt that it writes."
        ) from error


def _read_entries(content: bytes) -> Mapping[str, bytes]:
    """Give the archive's entries by their names below its one folder."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check_names(entries)
            _check_places(content, entries)
            return {entry.filename.partition("/")[2]: archive.read(entry) for entry in entries}
    except ResidualError:
        raise
    except Exception as error:  # on hostile bytes zipfile raises nearly anything
        raise ResidualError(f"it is not the archive that torch.save writes ({type(error).__name__}).") from error


def _check_names(entries: list[zipfile.ZipInfo]) -> None:
    parts = [entry.filename.partition("/") for entry in entries]
    names = {name for _, _, name in parts}
    if len(names) != len(entries) or len({folder for folder, _, _ in parts}) != 1:
        raise ResidualError("its archive holds a name twice, or more than one folder.")
    for name in sorted(names - _KNOWN):
        raise ResidualError(f"its archive holds {name[:60]!r}, which no tensor needs.")
    for name in sorted(_NEEDED - names):
        raise ResidualError(f"its archive lacks {name!r}.")


def _check_places(content: bytes, entries: list[zipfile.ZipInfo]) -> None:
    """Check that each entry is a plain file, stored as it is, in bytes of its own, and that nothing is around them."""
    first = min(entry.header_offset for entry in entries)
    if first != 0 or not content[-_END_RECORD_BYTES:].startswith(b"PK\x05\x06"):
        raise ResidualError("there is something before or after its archive.")
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
        if not stored or entry.flag_bits & ~_FLAGS or entry.external_attr:
            raise ResidualError(f"its entry {entry.filename[:60]!r} is compressed, encrypted or no plain file.")
        if entry.header_offset < end:
            raise ResidualError(f"its entry {entry.filename[:60]!r} overlaps another.")
        name_and_extra = struct.unpack_from("<HH", content, entry.header_offset + _LOCAL_HEADER_BYTES - 4)
        end = entry.header_offset + _LOCAL_HEADER_BYTES + sum(name_and_extra) + entry.compress_size


def _read_tensor(entries: Mapping[str, bytes]) -> Float32[Tensor, "tokens dim"]:
    if entries["version"] != b"3\n" or entries.get("byteorder", b"little") != b"little":
        raise ResidualError("it is of another version of torch's format, or big-endian.")
    storage, tokens, width = _read_program(entries[_PROGRAM])
    if not (1 <= tokens <= MAX_TOKENS and 1 <= width <= MAX_WIDTH):
        raise ResidualError(f"it has shape [{tokens}, {width}], at most [{MAX_TOKENS}, {MAX_WIDTH}] makes sense.")
    dtype, content = np.dtype(_DTYPES[storage]), entries[_NUMBERS]
    expected = tokens * width * dtype.itemsize
    if len(content) != expected:
        raise ResidualError(f"it has {len(content)} bytes of numbers, [{tokens}, {width}] of {dtype} is {expected}.")
    numbers = np.frombuffer(content, dtype).astype(np.float32).reshape(tokens, width)
    if not np.isfinite(numbers).all():
        raise ResidualError("it holds NaN or infinity.")
    return torch.from_numpy(numbers)


def _read_program(program: bytes) -> tuple[str, int, int]:
    """Give storage class, tokens and width, after checking that the pickle is the program for such a tensor."""
    try:
        operations = list(_operations(program))
        storage, device = (str(operations[place][1]) for place in (5, 7))
        tokens, width = (int(str(operations[place][1])) for place in (12, 13))
    except (ValueError, IndexError, OverflowError) as error:
        raise ResidualError(_NOT_A_TENSOR) from error
    known = storage in _DTYPES and _DEVICE.fullmatch(device)
    if not known or operations != _program_for(storage, device, tokens, width):
        raise ResidualError(_NOT_A_TENSOR)
    return storage, tokens, width


def _operations(program: bytes) -> Iterator[_Operation]:
    """List a pickle's operations: integers of any size as one kind, either truth value too, notes to itself left out.

    What is noted (BINPUT) is harmless, as nothing in a tensor's program asks for it again (BINGET).
    """
    if len(program) > _MAX_PROGRAM_BYTES:
        raise ResidualError(f"its pickle has {len(program)} bytes, a tensor's has at most {_MAX_PROGRAM_BYTES}.")
    last = None
    for operation, argument, last in pickletools.genops(program):  # noqa: B007
        if operation.name in ("BININT", "BININT1", "BININT2"):
            yield "INTEGER", argument
        elif operation.name in ("NEWTRUE", "NEWFALSE"):
            yield "BOOL", None
        elif operation.name != "BINPUT":
            yield operation.name, argument
    if last != len(program) - 1:
        raise ResidualError("there is something after its pickle.")


def _program_for(storage: str, device: str, tokens: int, width: int) -> list[_Operation]:
    """List what torch writes for a contiguous tensor: how to rebuild it, from which storage, shape and strides."""
    return [
        ("PROTO", 2),
        ("GLOBAL", "torch._utils _rebuild_tensor_v2"),
        ("MARK", None),
        ("MARK", None),
        ("BINUNICODE", "storage"),
        ("GLOBAL", storage),
        ("BINUNICODE", "0"),  # the entry data/0
        ("BINUNICODE", device),
        ("INTEGER", tokens * width),
        ("TUPLE", None),
        ("BINPERSID", None),
        ("INTEGER", 0),  # from its first number
        ("INTEGER", tokens),
        ("INTEGER", width),
        ("TUPLE2", None),
        ("INTEGER", width),
        ("INTEGER", 1),
        ("TUPLE2", None),
        ("BOOL", None),  # whether gradients were wanted
        ("GLOBAL", "collections OrderedDict"),  # no hooks
        ("EMPTY_TUPLE", None),
        ("REDUCE", None),
        ("TUPLE", None),
        ("REDUCE", None),
        ("STOP", None),
    ]
