"""What most rivals keep: named tensors and which words carry which subject, as one safetensors file."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from cones2.errors import CaptionError, ResidualError, first_line, first_problem
from cones2.files import is_name
from cones2.prompts import check_class_word

LARGEST_FILE = 2**34
"""Bytes: a whole UNet of Stable Diffusion in float32 has a fifth of it."""

_LARGEST_HEADER = 2**22
_KEY = "cones2-baseline"
_TOKEN = "token."  # of a word's row
_Text = Annotated[str, pydantic.Field(min_length=1, max_length=200)]


class _Document(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    version: Literal[1]
    rival: _Text
    texts: Annotated[dict[_Text, _Text], pydantic.Field(min_length=1, max_length=100)]
    class_words: dict[_Text, _Text]


@dataclass(frozen=True, eq=False)
class Tensors:
    """What a rival learned, as named tensors.

    Attributes:
        rival: the rival's name.
        texts: by subject name, the words of a prompt that carry it.
        class_words: by subject name.
        tensors: by name; `token.WORD` is the row of a new word, all else is the rival's own.
    """

    rival: str
    texts: Mapping[str, str]
    class_words: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    @property
    def rows(self) -> dict[str, Tensor]:
        """The rows of new words, by word."""
        return {name[len(_TOKEN) :]: row for name, row in self.tensors.items() if name.startswith(_TOKEN)}

    @property
    def own(self) -> dict[str, Tensor]:
        """All other tensors."""
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith(_TOKEN)}

    def to_bytes(self) -> bytes:
        """Return the file's content: the same for the same tensors."""
        words = {"texts": dict(self.texts), "class_words": dict(self.class_words)}
        document = {"version": 1, "rival": self.rival, **words}
        held = {name: self.tensors[name].detach().cpu().contiguous() for name in sorted(self.tensors)}
        return safetensors.torch.save(held, {_KEY: json.dumps(document, sort_keys=True)})


def token_rows(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of new words by the names that they have in a file."""
    return {f"{_TOKEN}{word}": row.detach().float().cpu().clone() for word, row in rows.items()}


def merged(rival: str, learned: Sequence[Tensors]) -> Tensors:
    """Return what was learned apart as one; a tensor's name must say whose it is."""
    texts = {name: text for each in learned for name, text in each.texts.items()}
    class_words = {name: word for each in learned for name, word in each.class_words.items()}
    tensors = {name: tensor for each in learned for name, tensor in each.tensors.items()}
    return Tensors(rival, texts, class_words, tensors)


def read_tensors(content: bytes, rival: str) -> Tensors:
    """Read a file of a rival, which may come from anyone; nothing in it is executed.

    Raises:
        ResidualError: it is damaged, too large, of another rival or version, or holds numbers that are not finite.
    """
    try:
        document = _Document.model_validate_json(_header(content)[_KEY])
        tensors = safetensors.torch.load(content)
        for name, text in document.texts.items():
            if not is_name(name) or check_class_word(text) != text or not check_class_word(document.class_words[name]):
                raise ResidualError(f"{name[:100]!r} or {text[:100]!r} can't name a subject.")
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        raise ResidualError(f"not a file of a rival: {problem.place}: {problem.message}. Learn it again.") from error
    except (SafetensorError, CaptionError, KeyError, TypeError, ValueError, RecursionError, struct.error) as error:
        raise ResidualError(f"not a sound file of a rival: {first_line(error)} Learn it again.") from error
    if document.rival != rival:
        raise ResidualError(f"this was learned by {document.rival[:100]!r}, expected {rival!r}: load it by that rival.")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ResidualError(f"{name[:100]} holds NaN or infinity: learn it again.")
    return Tensors(rival, document.texts, document.class_words, tensors)


def _header(content: bytes) -> dict[str, str]:
    """Return a safetensors file's metadata, its length checked before anything is parsed."""
    if len(content) > LARGEST_FILE:
        raise ValueError(f"it has {len(content):,} bytes, expected at most {LARGEST_FILE:,}")
    (length,) = struct.unpack("<Q", content[:8])
    if length > min(_LARGEST_HEADER, len(content) - 8):
        raise ValueError(f"its header claims {length:,} bytes")
    found: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return found
