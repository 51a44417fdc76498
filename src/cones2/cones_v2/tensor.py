"""The residual files of the authors' code, read without executing anything.

Their training script calls `torch.save` on one tensor `[tokens, dim]`. That makes a zip archive with the tensor's bytes
and a pickle, which is a program. No unpickler ever runs it: it has to be, byte for byte, what torch writes for one
contiguous tensor, and anything else is refused.
"""

import copy
import hashlib
import importlib.metadata
import io
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from cones2.errors import ModelError, ResidualError, ResidualMismatchError
from cones2.families import family_of
from cones2.files import expanded, read_bounded
from cones2.fingerprint import fingerprint
from cones2.prompts import check_class_word
from cones2.residual import MAX_FILE_BYTES, MAX_TOKENS, EncoderId, Residual, ResidualPart

_LARGEST_WIDTH = 16384
_INTEGER = rb"(K.|M..|J....)"  # of one, two or four bytes
_PROGRAM = re.compile(
    rb"\x80\x02ctorch\._utils\n_rebuild_tensor_v2\nq\x00\(\(X\x07\x00\x00\x00storageq\x01"
    rb"ctorch\n(Float|Half)Storage\nq\x02X\x01\x00\x00\x000q\x03X(.)\x00\x00\x00([a-z]{2,8}(?::\d{1,3})?)q\x04"
    + _INTEGER  # how many numbers there are in data/0
    + rb"tq\x05QK\x00"  # from the first one on
    + _INTEGER * 2  # the shape: tokens, width
    + rb"\x86q\x06"
    + _INTEGER * 2  # the strides: width, 1
    + rb"\x86q\x07[\x88\x89]"  # whether gradients were wanted
    rb"ccollections\nOrderedDict\nq\x08\)Rq\ttq\nRq\x0b\.",  # without hooks
    re.DOTALL,
)
_NEEDED = {"data.pkl", "data/0", "version"}
_OF_NEWER_TORCH = {"byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
_PLAIN_FLAGS = 0x0808  # sizes after the data, names in UTF-8


class SavedTensor(NamedTuple):
    """What such a file holds, and the sha256 of its bytes."""

    vector: Float32[Tensor, "tokens dim"]
    sha256: str


def import_residual(pipeline: Any, path: Path | str, class_word: str) -> Residual:
    """Read a `residual.pt` that the authors' training script wrote; nothing in it is ever executed.

    The file holds numbers alone: that they were learned on this model, for this class word, is for the caller to know.

    Raises:
        ModelError: the model is not of Stable Diffusion 1.x or 2.x.
        ResidualError: the file is anything but one tensor as that script saves it.
        ResidualMismatchError: it has another shape than the class word's embedding has on this model.
    """
    saved = read_tensor(path)
    return adopt(encoder_of(pipeline), copy.deepcopy(pipeline.tokenizer), saved, class_word, origin=str(path))


def encoder_of(pipeline: Any) -> EncoderId:
    """Return the fingerprint of the text encoder that such residuals are for, of Stable Diffusion 1.x or 2.x."""
    inner = getattr(pipeline, "pipeline", pipeline)
    family = family_of(inner)
    if [part.encoder for part in family.text_parts] != ["text_encoder"]:
        raise ModelError(f"{family.name} has no residuals of the authors' code: expected Stable Diffusion 1.x or 2.x.")
    return fingerprint(inner.text_encoder, "text_encoder", str(inner.name_or_path or type(inner).__name__))


def adopt(encoder: EncoderId, tokenizer: Any, saved: SavedTensor, class_word: str, *, origin: str) -> Residual:
    """Make a residual of what was read, as `import_residual`; `origin` names it in errors."""
    class_word = check_class_word(class_word)
    ids = tokenizer(class_word, add_special_tokens=False, verbose=False)["input_ids"]
    if saved.vector.shape != (len(ids), encoder.width):
        shapes = f"{list(saved.vector.shape)}, and {class_word!r} on {encoder.name} needs {[len(ids), encoder.width]}"
        raise ResidualMismatchError(f"{origin} has shape {shapes}: it was learned on another model or class word.")
    part = ResidualPart(encoder, tuple(tokenizer.convert_ids_to_tokens(ids)), saved.vector)
    recipe = {"imported_from": "ali-vilab/Cones-V2", "sha256": saved.sha256}
    return Residual(class_word, (part,), recipe, (), importlib.metadata.version("cones2"))


def read_tensor(path: Path | str) -> SavedTensor:
    """Read a file, float32 or float16, from any device; ResidualError for all but what the authors' script saves."""
    content = read_bounded(expanded(path), limit=MAX_FILE_BYTES, error=ResidualError)
    try:
        vector = _tensor_in(content)
    except Exception as error:  # on hostile bytes zipfile raises nearly anything
        reason = error if isinstance(error, ResidualError) else f"it is not a sound archive ({type(error).__name__})."
        raise ResidualError(f"{path} is not a residual.pt of the authors' code: {reason}") from error
    return SavedTensor(vector, hashlib.sha256(content).hexdigest())


def _tensor_in(content: bytes) -> Float32[Tensor, "tokens dim"]:
    entries = _entries(content)
    if entries["version"] != b"3\n" or entries.get("byteorder", b"little") != b"little":
        raise ResidualError("it is of another version of torch's format, or big-endian.")
    found = _PROGRAM.fullmatch(entries["data.pkl"])
    if not found or found[2][0] != len(found[3]):
        raise ResidualError("its pickle is not the program for one tensor [tokens, dim] of float32 or float16.")
    count, tokens, width, *strides = (int.from_bytes(each[1:], "little") for each in found.groups()[3:])
    numbers = np.frombuffer(entries["data/0"], "<f4" if found[1] == b"Float" else "<f2").astype(np.float32)
    if not (1 <= tokens <= MAX_TOKENS and 1 <= width <= _LARGEST_WIDTH and strides == [width, 1]):
        raise ResidualError(f"its shape [{tokens}, {width}] with strides {strides} makes no sense.")
    if not tokens * width == count == len(numbers):
        raise ResidualError(f"it has {len(numbers)} numbers and claims {count}, expected {tokens * width}.")
    if not np.isfinite(numbers).all():
        raise ResidualError("it holds NaN or infinity.")
    return torch.from_numpy(numbers.reshape(tokens, width))


def _entries(content: bytes) -> dict[str, bytes]:
    """Return the archive's entries by their names below its one folder: plain files, as large as they say."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if min(entry.header_offset for entry in entries) or content[-22:][:4] != b"PK\x05\x06":
            raise ResidualError("there is something before or after its archive.")
        folders, _, parts = zip(*(entry.filename.partition("/") for entry in entries), strict=True)
        names = set(parts)
        if len({*folders}) > 1 or len(names) < len(parts) or not _NEEDED <= names <= _NEEDED | _OF_NEWER_TORCH:
            raise ResidualError(f"its archive holds {', '.join(parts)[:200]!r}, expected one folder with a tensor.")
        for entry in entries:
            is_stored = not entry.compress_type and entry.compress_size == entry.file_size
            if not is_stored or entry.flag_bits & ~_PLAIN_FLAGS or entry.external_attr:
                raise ResidualError(f"its entry {entry.filename[:60]!r} is compressed, encrypted or no plain file.")
        return {name: archive.read(entry) for name, entry in zip(parts, entries, strict=True)}
