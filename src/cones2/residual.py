"""The residual: what turns a class word's embedding into the user's subject, and its file of a few KB.

The file is safetensors: one float32 tensor of shape [tokens, dim] for each text encoder, named by the encoder's role in
a diffusers pipeline, and one metadata key, `cones2`, with sorted JSON. The same residual always gives the same bytes.
Reading bounds and checks the header before any tensor is made, and what a file says is told without PyTorch.
"""

import hashlib
import json
import math
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from jaxtyping import Float32
from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from cones2.errors import Cones2Warning, ResidualError, ResidualMismatchError, SettingsError, counted, first_problem
from cones2.files import read_bounded, unique_keys, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 3
MAX_TOKENS = 16
MAX_FILE_BYTES = 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024

_PROBE_TOLERANCE = 0.05  # half-precision copies of an encoder stay below 0.02, another encoder is near 1

_Text = Annotated[str, Field(min_length=1, max_length=1000)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# Bounded, so that no product of these numbers overflows and makes every encoder fit.
_ProbeNumber = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class _Part(BaseModel, strict=True, extra="forbid", frozen=True):
    role: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$")]
    name: _Text
    width: int = Field(ge=1, le=16384)
    weights: Sha256
    probe: list[_ProbeNumber] = Field(min_length=1, max_length=64)
    tokens: list[_Text] = Field(min_length=1, max_length=MAX_TOKENS)
    span: Literal["class word"]
    reading: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""


class _Document(BaseModel, strict=True, extra="forbid", frozen=True):
    """What the metadata key `cones2` holds."""

    version: Literal[3]
    class_word: _Text
    parts: list[_Part] = Field(min_length=1, max_length=4)
    recipe: dict[str, JsonValue]
    photos: list[Sha256]
    tool_version: _Text


@dataclass(frozen=True)
class EncoderId:
    """The fingerprint of one text encoder of a pipeline.

    Attributes:
        role: its name among the pipeline's components: `text_encoder`, `text_encoder_2`...
        weights: sha256 of the float32 weights under canonical names.
        probe: a few numbers that it gives for a fixed input, almost the same in every dtype.
        reading: sha256 of how it is asked, by which chat template, for which layers and with which padding; empty where
            that is a plain text with padding at its right.
    """

    role: str
    name: str
    width: int
    weights: str
    probe: tuple[float, ...]
    reading: str = ""

    def fits(self, other: "EncoderId") -> bool:
        """Return whether both are the same encoder, whatever its dtype, its file or its name."""
        if self.width != other.width or self.reading != other.reading:
            return False
        if self.weights == other.weights:
            return True
        if len(self.probe) != len(other.probe):
            return False
        scale = min(math.hypot(*self.probe), math.hypot(*other.probe))
        return math.isfinite(scale) and math.dist(self.probe, other.probe) <= _PROBE_TOLERANCE * scale


@dataclass(frozen=True, eq=False, repr=False)
class ResidualPart:
    """What was learned for one text encoder.

    Attributes:
        vector: Δ, one row for each token; float32.
        span: the tokens of a prompt to which the rows are added.

    Raises:
        ResidualError: tokens and vector do not match, or the vector is not finite.
    """

    encoder: EncoderId
    tokens: tuple[str, ...]
    vector: "Float32[Tensor, 'tokens dim']"
    span: Literal["class word"] = "class word"

    def __post_init__(self) -> None:
        if not 1 <= len(self.tokens) <= MAX_TOKENS:
            raise ResidualError(f"a residual has 1 to {MAX_TOKENS} tokens, this one has {len(self.tokens)}.")
        expected = [len(self.tokens), self.encoder.width]
        dtype = str(self.vector.dtype).removeprefix("torch.")
        if list(self.vector.shape) != expected or dtype != "float32":
            raise ResidualError(
                f"a residual of {counted(expected[0], 'token')} and width {expected[1]} needs a float32 vector of shape"
                f" {expected}, got {dtype} of shape {list(self.vector.shape)}."
            )
        _check_finite(self.encoder.role, self.vector.numpy(force=True))

    def __repr__(self) -> str:
        return f"ResidualPart({self.encoder.role}, {len(self.tokens)} x {self.encoder.width})"


@dataclass(frozen=True, eq=False, repr=False)
class Residual:
    """Δ of one subject: added to the class word's token embeddings, it turns them into the subject's.

    `arXiv:2305.19327, Eq. 5 and 6`.

    Attributes:
        class_word: the word, or words, for the raw category.
        parts: what was learned for each text encoder of the model.
        recipe: the settings that it was learned with; JSON values.
        photos: sha256 of each photo's file.
        tool_version: the version of cones2 that learned it.

    Raises:
        ResidualError: there is no part, or two have one role.
    """

    class_word: str
    parts: tuple[ResidualPart, ...]
    recipe: Mapping[str, object]
    photos: tuple[str, ...]
    tool_version: str

    def __post_init__(self) -> None:
        roles = [part.encoder.role for part in self.parts]
        if not roles or len(set(roles)) < len(roles):
            raise ResidualError(f"a residual needs parts of different roles, got {roles}.")

    def __repr__(self) -> str:
        learned = " + ".join(f"{len(part.tokens)} x {part.encoder.width}" for part in self.parts)
        return f"Residual({self.class_word!r}, {learned}, learned on {self.parts[0].encoder.name!r})"

    def part(self, role: str) -> ResidualPart:
        """Return what was learned for the text encoder of this role; ResidualMismatchError where there is nothing."""
        parts = {part.encoder.role: part for part in self.parts}
        if role not in parts:
            raise ResidualMismatchError(
                f"the residual of {self.class_word!r} has no part for {role!r}, it has {list(parts)}."
            )
        return parts[role]

    @cached_property
    def sha256(self) -> str:
        """Hash of the file that `save` writes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the file's content; ResidualError where a field is not what a file can hold."""
        parts = [{**asdict(part.encoder), "tokens": part.tokens, "span": part.span} for part in self.parts]
        fields = {name: getattr(self, name) for name in ("class_word", "photos", "tool_version")}
        document = {"version": VERSION, **fields, "parts": parts, "recipe": dict(self.recipe)}
        return _written(document, {part.encoder.role: part.vector.numpy(force=True) for part in self.parts})

    def save(self, path: Path | str) -> None:
        """Write the file, all of it or nothing; OutputError where it can't be written."""
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: Path | str) -> "Residual":
        """Read a file that may come from anyone; ResidualError where it is not a sound residual of this version."""
        content = read_bounded(Path(path), limit=MAX_FILE_BYTES, error=ResidualError)
        return cls.from_bytes(content, origin=str(path))

    @classmethod
    def from_bytes(cls, content: bytes, *, origin: str = "bytes") -> "Residual":
        """Read a file's content, as `load` does; `origin` names it in errors."""
        import torch  # what a file says is read without

        with _sound(origin):
            document, arrays, _ = _read(content)
            parts = []
            for entry in document.parts:
                encoder = EncoderId(**entry.model_dump(exclude={"probe", "tokens", "span"}), probe=tuple(entry.probe))
                vector = torch.from_numpy(arrays[entry.role].copy())
                parts.append(ResidualPart(encoder, tuple(entry.tokens), vector, entry.span))
            photos = tuple(document.photos)
            return cls(document.class_word, tuple(parts), document.recipe, photos, document.tool_version)

    def mix(self, other: "Residual", weight: float) -> "Residual":
        """Return the subject between this one and another, `(1 - weight)·Δ + weight·Δ'`.

        Raises:
            ResidualMismatchError: they do not have the same class word, tokens and text encoders.
            SettingsError: the weight is not finite.
        """
        if not math.isfinite(weight):
            raise SettingsError(f"weight {weight} can't be used: expected a number: 0 is this one, 1 the other.")
        try:
            other.check_fits([part.encoder for part in self.parts])
        except ResidualMismatchError as error:
            raise ResidualMismatchError(f"residuals of two models can't be combined: {error}") from error
        pairs = [(part, other.part(part.encoder.role)) for part in self.parts]
        if self.class_word != other.class_word or any(one.tokens != two.tokens for one, two in pairs):
            raise ResidualMismatchError(
                f"residuals of {self.class_word!r} and {other.class_word!r} can't be combined: they are added to"
                " other tokens. Combine residuals of one class word."
            )
        mixed = [replace(one, vector=(1 - weight) * one.vector + weight * two.vector) for one, two in pairs]
        recipe = {"mixed": [self.sha256, other.sha256], "weight": weight}
        photos = tuple(dict.fromkeys(self.photos + other.photos))
        return replace(self, parts=tuple(mixed), recipe=recipe, photos=photos)

    def fits(self, encoders: Sequence[EncoderId]) -> bool:
        """Return whether this residual was learned on these text encoders, whatever their dtype or file."""
        mine = {part.encoder.role: part.encoder for part in self.parts}
        given = {encoder.role: encoder for encoder in encoders}
        return mine.keys() == given.keys() and all(mine[role].fits(given[role]) for role in mine)

    def check_fits(self, encoders: Sequence[EncoderId], *, force: bool = False) -> None:
        """Check that this residual was learned on these text encoders, whatever their dtype or file.

        Args:
            encoders: the fingerprints of a model's text encoders.
            force: only warn about other encoders of the same widths.

        Raises:
            ResidualMismatchError: it was learned on other text encoders.
        """
        if self.fits(encoders):
            return
        mine = [part.encoder for part in self.parts]
        text = (
            f"the residual of {self.class_word!r} was learned on {_described(mine)}, and this is {_described(encoders)}"
        )
        other = "another text encoder"
        if {each.role: each.reading for each in mine} != {each.role: each.reading for each in encoders}:
            other += ", or one that is asked otherwise (chat template, layers or padding)"
        if {each.role: each.width for each in mine} != {each.role: each.width for each in encoders}:
            raise ResidualMismatchError(f"{text}: the widths must be equal. Learn the subject on this model.")
        if not force:
            raise ResidualMismatchError(
                f"{text}, {other}: the subject would be lost. Use the model that it was learned on, learn"
                " it on this one, or pass force=True."
            )
        warnings.warn(f"{text}, {other}: expect another subject.", Cones2Warning, stacklevel=2)


def describe_file(content: bytes, *, origin: str) -> dict[str, Any]:
    """Return what a residual's file says, as JSON values; ResidualError where `Residual.load` would raise it."""
    with _sound(origin):
        document, arrays, sha256 = _read(content)
        return {
            "class_word": document.class_word,
            "parts": [
                {
                    "role": part.role,
                    "fits": part.name,
                    "width": part.width,
                    "weights": part.weights,
                    "tokens": part.tokens,
                    "length": np.linalg.norm(arrays[part.role], axis=-1).tolist(),
                }
                | ({"reading": part.reading} if part.reading else {})
                for part in document.parts
            ],
            "recipe": document.recipe,
            "photos": document.photos,
            "tool_version": document.tool_version,
            "sha256": sha256,
        }


def _described(encoders: Sequence[EncoderId]) -> str:
    name = encoders[0].name if encoders else "nothing"
    return f"{name} (width {'+'.join(str(encoder.width) for encoder in encoders)})"


@contextmanager
def _sound(origin: str) -> Iterator[None]:
    """Say of which file it is that something is wrong."""
    try:
        yield
    except (ResidualError, safetensors.SafetensorError, UnicodeEncodeError) as error:
        message = f"{origin} is not a sound residual file: {error} Download it or learn it again."
        raise ResidualError(message) from error


def _read(content: bytes) -> tuple[_Document, dict[str, np.ndarray], str]:
    """Return what a file says, its vectors and `Residual.sha256`, all of it checked."""
    document = _read_header(content)
    arrays = safetensors.numpy.load(content)
    for role, array in arrays.items():
        _check_finite(role, array)
    again = _written(document.model_dump(), arrays)  # it can be written: no half characters, nothing too long
    return document, arrays, hashlib.sha256(again).hexdigest()


def _written(document: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of a file; ResidualError where it could not be read again."""
    told = [{name: value for name, value in part.items() if name != "reading" or value} for part in document["parts"]]
    try:
        text = json.dumps({**document, "parts": told}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ResidualError(f"a residual's recipe and fingerprint must be finite JSON values: {error}.") from error
    contiguous = {role: np.ascontiguousarray(array) for role, array in arrays.items()}
    content = bytes(safetensors.numpy.save(contiguous, metadata={"cones2": text}))
    _read_header(content)
    return content


def _check_finite(role: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise ResidualError(f"the residual for {role} holds NaN or infinity. Learn it again.")


def _read_header(content: bytes) -> _Document:
    """Check a file's header, and return what its metadata says; the tensors are checked as they are read."""
    if not 8 <= len(content) <= MAX_FILE_BYTES:
        raise ResidualError(f"it has {len(content)} bytes, expected 8 to {MAX_FILE_BYTES}.")
    (length,) = struct.unpack("<Q", content[:8])
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise ResidualError(f"its header claims {length} bytes, expected 2 to {MAX_HEADER_BYTES}, all in the file.")
    try:
        header = TypeAdapter(dict[str, dict[str, Any]]).validate_python(_from_json(content[8 : 8 + length]))
        metadata = header.pop("__metadata__", {})
        if list(metadata) != ["cones2"]:
            raise ResidualError(f"its metadata is not that of version {VERSION}, the one key 'cones2'.")
        document = _Document.model_validate(_from_json(metadata["cones2"]))
    except ValidationError as error:
        place, message, _ = first_problem(error)
        raise ResidualError(f"{place or 'its header'!r}: {message}.") from error
    tensors = {name: entry.get("dtype") == "F32" and entry.get("shape") for name, entry in header.items()}
    if tensors != {part.role: [len(part.tokens), part.width] for part in document.parts}:
        raise ResidualError("its tensors are not float32 of the names and shapes that its metadata tells.")
    return document


def _from_json(text: Any) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (TypeError, ValueError, RecursionError) as error:
        raise ResidualError(f"its header is not the JSON that it should be: {str(error)[:100]}.") from error
