"""The residual: what turns a class word's embedding into the user's subject, and its file of about 5 KB.

Reading a file checks everything before any tensor is made, and never touches a model (`format.py`).
"""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float32
from torch import Tensor

from cones2.errors import Cones2Warning, ResidualError, ResidualMismatchError, SettingsError
from cones2.files import read_bounded, write_atomically
from cones2.residual.format import MAX_FILE_BYTES, MAX_TOKENS, TENSORS, EncoderFields, check_header, pack

_PROBE_TOLERANCE = 0.05  # half-precision copies of an encoder stay below 0.02, another encoder is near 1


@dataclass(frozen=True)
class EncoderId:
    """The fingerprint of a backbone's text encoder, or of both where it has two.

    Attributes:
        name: the model that the user opened.
        width: numbers in the embedding of a token.
        weights: sha256 of the float32 weights under canonical names.
        probe: a few numbers that the encoder gives for a fixed input; they know it again in another dtype.
        second: Stable Diffusion XL's other text encoder; None elsewhere.
    """

    name: str
    width: int
    weights: str
    probe: tuple[float, ...]
    second: "EncoderId | None" = None

    @property
    def parts(self) -> tuple["EncoderId", ...]:
        """This encoder alone, or both."""
        return (self,) if self.second is None else (self, self.second)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each part; a residual's vector has as many columns as they have together."""
        return tuple(part.width for part in self.parts)

    def fits(self, other: "EncoderId") -> bool:
        """Tell whether a residual of these encoders belongs in the others."""
        return self.widths == other.widths and all(
            mine.weights == theirs.weights or mine._probe_agrees(theirs)
            for mine, theirs in zip(self.parts, other.parts, strict=True)
        )

    def fields(self) -> dict[str, object]:
        """Give what a file keeps of this part, as JSON values."""
        return {"name": self.name, "width": self.width, "weights": self.weights, "probe": list(self.probe)}

    def _probe_agrees(self, other: "EncoderId") -> bool:
        if len(self.probe) != len(other.probe):
            return False
        return math.dist(self.probe, other.probe) <= _PROBE_TOLERANCE * math.hypot(*self.probe)


@dataclass(frozen=True, eq=False)
class Residual:
    """Δ of one subject: added to the class word's token embeddings, it makes them the subject's.

    `arXiv:2305.19327, Eq. 5 and 6`.

    Attributes:
        class_word: the word, or words, for the raw category.
        vector: one row for each token of the class word; float32, on the CPU. Where there are two text encoders, the
            columns of the first, then those of the second.
        tokens: those tokens, as the tokenizer writes them.
        encoder: the text encoder, or both, that it was learned on, and fits.
        recipe: the settings that it was learned with; JSON values.
        photos: sha256 of each photo's file.
        tool_version: the version of cones2 that learned it.

    Raises:
        ResidualError: tokens and vector do not match, or the vector is not finite.
    """

    class_word: str
    vector: Float32[Tensor, "tokens dim"]
    tokens: tuple[str, ...]
    encoder: EncoderId
    recipe: Mapping[str, object]
    photos: tuple[str, ...]
    tool_version: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.tokens) <= MAX_TOKENS:
            raise ResidualError(f"a residual has 1 to {MAX_TOKENS} tokens, this one has {len(self.tokens)}.")
        expected = (len(self.tokens), sum(self.encoder.widths))
        if tuple(self.vector.shape) != expected:
            raise ResidualError(
                f"a residual of {expected[0]} tokens and width {expected[1]} needs a vector of shape {list(expected)},"
                f" got {list(self.vector.shape)}."
            )
        if not torch.isfinite(self.vector).all():
            raise ResidualError(f"the residual of {self.class_word!r} holds NaN or infinity; learn it again.")

    @property
    def parts(self) -> tuple[Float32[Tensor, "tokens _"], ...]:
        """The vector's columns for each text encoder."""
        return torch.split(self.vector, list(self.encoder.widths), dim=-1)

    @cached_property
    def sha256(self) -> str:
        """Hash of the file that `save` writes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """Give the file's content; the same residual always gives the same bytes."""
        return pack(
            self.parts,
            [part.fields() for part in self.encoder.parts],
            class_word=self.class_word,
            tokens=self.tokens,
            recipe=dict(self.recipe),
            photos=self.photos,
            tool_version=self.tool_version,
        )

    def save(self, path: Path | str) -> None:
        """Write the file, all of it or nothing.

        Raises:
            OutputError: it can't be written there.
        """
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: Path | str) -> "Residual":
        """Read a file that may come from anyone.

        Raises:
            ResidualError: it can't be read, or is not exactly a residual file of a known version.
        """
        content = read_bounded(Path(path), limit=MAX_FILE_BYTES, error=ResidualError)
        return cls.from_bytes(content, origin=str(path))

    @classmethod
    def from_bytes(cls, content: bytes, *, origin: str = "bytes") -> "Residual":
        """Read a file's content; `origin` names it in errors.

        Raises:
            ResidualError: it is not exactly a residual file of a known version.
        """
        try:
            meta = check_header(content)
            tensors = safetensors.torch.load(content)
            residual = cls(
                class_word=meta.class_word,
                vector=torch.cat([tensors[name] for name in TENSORS if name in tensors], dim=-1),
                tokens=tuple(meta.tokens),
                encoder=_encoder_id(meta.encoders),
                recipe=meta.recipe,
                photos=tuple(meta.photos),
                tool_version=meta.tool_version,
            )
            _ = residual.sha256  # what was read can be written: no infinity in the recipe, nothing too long
            return residual
        except (ResidualError, safetensors.SafetensorError) as error:
            raise ResidualError(
                f"{origin} is no sound residual file: {error} Get or learn it again with 'cones2 learn'."
            ) from error

    def mix(self, other: "Residual", weight: float) -> "Residual":
        """Give the subject between this one and another, `(1 - weight)·Δ + weight·Δ'`.

        0 is this one, 1 the other; below and beyond, their difference is exaggerated.

        Raises:
            ResidualMismatchError: they have not the same class word, tokens and text encoder.
            SettingsError: the weight is not finite.
        """
        if not math.isfinite(weight):
            raise SettingsError(f"weight {weight} can't be used: expected a number, 0 for the one, 1 for the other.")
        return self._combined(other, (1 - weight, weight))

    def __add__(self, other: "Residual") -> "Residual":
        """Give the subject that is both at once, `Δ + Δ'`.

        Raises:
            ResidualMismatchError: they have not the same class word, tokens and text encoder.
        """
        return self._combined(other, (1.0, 1.0)) if isinstance(other, Residual) else NotImplemented

    def _combined(self, other: "Residual", weights: tuple[float, float]) -> "Residual":
        """Weigh and add; the recipe tells of what."""
        if (self.class_word, self.tokens) != (other.class_word, other.tokens):
            raise ResidualMismatchError(
                f"residuals of {self.class_word!r} and {other.class_word!r} can't be combined: they are added to"
                " other tokens. Combine residuals of one class word."
            )
        if not other.encoder.fits(self.encoder):
            raise ResidualMismatchError(
                f"residuals of {_name_width(self.encoder)} and {_name_width(other.encoder)} can't be combined:"
                " learn both on one backbone."
            )
        parts = [{"residual": one.sha256, "weight": x} for one, x in zip((self, other), weights, strict=True)]
        return replace(
            self,
            vector=weights[0] * self.vector + weights[1] * other.vector,
            recipe={"combined": parts},
            photos=tuple(dict.fromkeys(self.photos + other.photos)),
        )

    def check_fits(self, encoder: EncoderId, *, force: bool = False) -> None:
        """Check that this residual was learned on `encoder`, whatever its dtype or file.

        Args:
            encoder: the fingerprint of the backbone at hand.
            force: only warn about another encoder of the same width; another width is always an error.

        Raises:
            ResidualMismatchError: it was learned on another text encoder.
        """
        if self.encoder.fits(encoder):
            return
        got = (
            f"the residual of {self.class_word!r} was learned on {_name_width(self.encoder)},"
            f" this backbone is {_name_width(encoder)}"
        )
        if self.encoder.widths != encoder.widths:
            raise ResidualMismatchError(
                f"{got}: the widths must be equal. Use that backbone, or learn the subject on this one."
            )
        if not force:
            raise ResidualMismatchError(
                f"{got}, and its text encoder is another one: the subject would be lost."
                " Use that backbone, learn the subject on this one, or force it."
            )
        warnings.warn(f"{got}: used all the same, as forced; expect another subject.", Cones2Warning, stacklevel=2)


def _encoder_id(parts: Sequence[EncoderFields]) -> EncoderId:
    first, *others = parts
    return EncoderId(
        name=first.name,
        width=first.width,
        weights=first.weights,
        probe=tuple(first.probe),
        second=_encoder_id(others) if others else None,
    )


def _name_width(encoder: EncoderId) -> str:
    return f"{encoder.name} (width {'+'.join(map(str, encoder.widths))})"
