"""The bytes of a residual file: writing them the same each time, and checking those that come from anyone.

The file is safetensors: a float32 tensor `text_encoder` of shape [tokens, dim], in format 2 also `text_encoder_2` for a
second text encoder, and string metadata under `cones2.*`, where tokens, encoders, recipe and photos are JSON. What has
one text encoder is still written in format 1, so that older versions read it. The safetensors library orders metadata
by chance, so the header is written here, with sorted keys. Checking reads the header alone, within bounds, before any
tensor is made.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from cones2.checking import first_problem
from cones2.errors import ResidualError

TENSORS = ("text_encoder", "text_encoder_2")
"""The names of the parts; a file of format 1 has the first, one of format 2 both."""

MAX_TOKENS = 16
MAX_FILE_BYTES = 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024

_PREFIX = "cones2."
_ENCODERS = ("encoder", "encoder_2")
_JSON_KEYS = ("tokens", *_ENCODERS, "recipe", "photos")


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


_Text = Annotated[str, Field(min_length=1, max_length=1000)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class EncoderFields(_Strict):
    """What the header says of a text encoder."""

    name: _Text
    width: int = Field(ge=1, le=16384)
    weights: _Sha256
    probe: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(min_length=1, max_length=64)


class Metadata(_Strict):
    """What the header says of the residual, in any format."""

    class_word: _Text
    tokens: list[_Text] = Field(min_length=1, max_length=MAX_TOKENS)
    encoder: EncoderFields
    recipe: dict[str, JsonValue]
    photos: list[_Sha256]
    tool_version: _Text

    @property
    def encoders(self) -> list[EncoderFields]:
        """Those of all parts."""
        return [self.encoder]


class _Metadata1(Metadata):
    format: Literal["1"]


class _Metadata2(Metadata):
    format: Literal["2"]
    encoder_2: EncoderFields

    @property
    def encoders(self) -> list[EncoderFields]:
        return [self.encoder, self.encoder_2]


class _TensorFields(_Strict):
    dtype: Literal["F32"]
    shape: list[int] = Field(min_length=2, max_length=2)
    data_offsets: list[int] = Field(min_length=2, max_length=2)


class _Header1(_Strict):
    metadata: _Metadata1 = Field(alias="__metadata__")
    text_encoder: _TensorFields

    @property
    def tensors(self) -> list[_TensorFields]:
        return [self.text_encoder]


class _Header2(_Strict):
    metadata: _Metadata2 = Field(alias="__metadata__")
    text_encoder: _TensorFields
    text_encoder_2: _TensorFields

    @property
    def tensors(self) -> list[_TensorFields]:
        return [self.text_encoder, self.text_encoder_2]


def pack(
    parts: Sequence[Float32[Tensor, "tokens _"]], encoders: Sequence[Mapping[str, object]], **metadata: object
) -> bytes:
    """Give the file's bytes for the part of each text encoder, their fields, and those of `Metadata`.

    Raises:
        ResidualError: a field is not what `Metadata` allows.
    """
    values = [part.detach().contiguous().numpy().astype("<f4").tobytes() for part in parts]
    fields = {"format": str(len(parts)), **dict(zip(_ENCODERS, encoders, strict=False)), **metadata}
    header: dict[str, object] = {
        "__metadata__": {_PREFIX + k: _to_json(v) if k in _JSON_KEYS else v for k, v in fields.items()},
    }
    start = 0
    for name, part, data in zip(TENSORS, parts, values, strict=False):
        header[name] = {"dtype": "F32", "shape": list(part.shape), "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = _to_json(header).encode()
    text += b" " * (-len(text) % 8)  # safetensors aligns the data
    content = struct.pack("<Q", len(text)) + text + b"".join(values)
    check_header(content)  # what is written can be read
    return content


def check_header(content: bytes) -> Metadata:
    """Check all of a file but the tensor's numbers, and give what its header says.

    Raises:
        ResidualError: anything is not exactly as `pack` writes it.
    """
    if not 8 <= len(content) <= MAX_FILE_BYTES:
        raise ResidualError(f"it has {len(content)} bytes, expected 8 to {MAX_FILE_BYTES}.")
    length = struct.unpack("<Q", content[:8])[0]
    if not 2 <= length <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise ResidualError(f"its header claims {length} bytes, expected 2 to {MAX_HEADER_BYTES}, all in the file.")
    header = _validate(_unpack(_from_json(content[8 : 8 + length])))
    _check_data(header, len(content) - 8 - length)
    return header.metadata


def _unpack(raw: Any) -> Any:
    """Parse those metadata values that are JSON themselves: safetensors allows only strings."""
    if not isinstance(raw, dict) or not isinstance(raw.get("__metadata__"), dict):
        return raw
    strangers = [key for key in raw["__metadata__"] if not key.startswith(_PREFIX)]
    if strangers:
        raise ResidualError(f"its metadata has an unknown key {strangers[0][:100]!r}.")
    metadata = {key.removeprefix(_PREFIX): value for key, value in raw["__metadata__"].items()}
    for key in _JSON_KEYS:
        if isinstance(metadata.get(key), str):
            metadata[key] = _from_json(metadata[key])
    return {**raw, "__metadata__": metadata}


def _validate(raw: Any) -> _Header1 | _Header2:
    try:
        return (_Header2 if _has_two_parts(raw) else _Header1).model_validate(raw)
    except ValidationError as error:
        problem = first_problem(error)
        raise ResidualError(f"{problem.place or 'header'!r}: {problem.message}.") from error


def _has_two_parts(raw: Any) -> bool:
    metadata = raw.get("__metadata__") if isinstance(raw, dict) else None
    return isinstance(metadata, dict) and metadata.get("format") == "2"


def _check_data(header: _Header1 | _Header2, data_bytes: int) -> None:
    start = 0
    for tensor, encoder in zip(header.tensors, header.metadata.encoders, strict=True):
        expected = [len(header.metadata.tokens), encoder.width]
        if tensor.shape != expected:
            raise ResidualError(f"its tensor has shape {tensor.shape}, its tokens and encoder need {expected}.")
        place = [start, start + 4 * expected[0] * expected[1]]
        if tensor.data_offsets != place:
            raise ResidualError(f"its tensor lies at {tensor.data_offsets}, not {place}.")
        start = place[1]
    if data_bytes != start:
        raise ResidualError(f"it holds {data_bytes} bytes of numbers, its header says {start}.")


def _from_json(text: bytes | str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ResidualError(f"its header is not the JSON that it should be ({type(error).__name__}).") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ResidualError("its header has a key twice.")
    return result


def _refuse_constant(name: str) -> None:
    raise ResidualError(f"its header holds {name}.")


def _to_json(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ResidualError(f"a residual's recipe and fingerprint must be finite JSON values: {error}.") from error
