"""What `cones2 inspect` tells of a file."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cones2.errors import PictureError
from cones2.files import read_bounded
from cones2.picture import LARGEST_PICTURE, read_record
from cones2.residual.residual import Residual

_DEEPEST = 4
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"


def describe(file: Path) -> dict[str, Any]:
    """Describe a residual or a picture, told apart by its first bytes, as JSON values.

    Raises:
        PictureError: it can't be read, or is a picture without a record.
        ResidualError: it is neither a picture nor a sound residual.
    """
    content = read_bounded(file, limit=LARGEST_PICTURE, error=PictureError)
    if content.startswith(_PNG):
        return {**read_record(file), "file": str(file), "kind": "picture"}
    if content.startswith(_JPEG):
        raise PictureError(f"{file} is a JPEG, which loses how it was made: expected the PNG that cones2 wrote.")
    return {"file": str(file), "kind": "residual", **_describe_residual(Residual.from_bytes(content, origin=str(file)))}


def rows(description: Mapping[str, Any]) -> dict[str, str]:
    """Give a row of text for each thing told: nested ones by their path, hashes cut short."""
    return dict(_rows(description))


def _describe_residual(residual: Residual) -> dict[str, Any]:
    return {
        "class_word": residual.class_word,
        "tokens": list(residual.tokens),
        **_describe_parts(residual),
        "recipe": dict(residual.recipe),
        "photos": list(residual.photos),
        "tool_version": residual.tool_version,
        "sha256": residual.sha256,
    }


def _describe_parts(residual: Residual) -> dict[str, Any]:
    """Tell each part's length by token and the text encoder that it fits, those of a second one under `_2`."""
    told: dict[str, Any] = {}
    for suffix, vector, encoder in zip(("", "_2"), residual.parts, residual.encoder.parts, strict=False):
        told["length" + suffix] = vector.norm(dim=-1).tolist()
        told["fits" + suffix] = {"name": encoder.name, "width": encoder.width, "weights": encoder.weights}
    return told


def _rows(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value and path.count(".") < _DEEPEST:
        for key, inner in value.items():
            yield from _rows(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, _HASH.sub(r"\1…", value if isinstance(value, str) else json.dumps(value))
