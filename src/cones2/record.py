"""The record of how a picture was made, read back from anyone's file; `cones2.provenance` writes it."""

import base64
import binascii
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from cones2.checking import first_problem
from cones2.errors import PictureError
from cones2.layout import Layout
from cones2.png import read_record, strip_residuals, write_picture
from cones2.prompts import LONGEST_PROMPT
from cones2.provenance import CPU_STATE, MOST_STATES, DrawCall, Library, describe, restored
from cones2.residual import Residual
from cones2.run import LayoutSettings
from cones2.subjects import Subject

__all__ = ["DrawCall", "PictureRecord", "describe", "read_record", "strip_residuals", "write_picture"]

MOST_PICTURES = 64
"""Pictures of a record's batch, and subjects in it."""
MOST_PIXELS = 2**26
"""Pixels of a record's batch."""

_MOST_STEPS = 1000
_USUAL_SIDE = 1024  # pixels, where a record does not say


_Short = Annotated[str, Field(max_length=1000)]
_Text = Annotated[str, Field(max_length=LONGEST_PROMPT)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Number = Annotated[float, Field(ge=-1e6, le=1e6)]
# Bounded, since numbers among a scheduler's settings decide how much memory it takes.
_Setting = bool | Annotated[int, Field(ge=-100_000, le=100_000)] | _Number | _Short | None | list[_Number]
_Device = Annotated[str, Field(pattern=r"^[a-z]{1,10}(:\d{1,3})?$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class RecordedSubject(_Strict):
    """A subject as a record names it; `residual` is the sha256 of its file, None for an untaught word."""

    class_word: _Short
    residual: _Sha256 | None
    strength: _Number
    during: tuple[_Number, _Number]
    negative: _Text


class RecordedGenerators(_Strict):
    """Generators before a picture was drawn: one for all pictures, or one for each."""

    device: _Device
    states: Annotated[tuple[Annotated[str, Field(max_length=20_000)], ...], Field(min_length=1, max_length=MOST_STATES)]

    def make(self) -> torch.Generator | list[torch.Generator]:
        """Return generators in these states.

        Raises:
            PictureError: the device is not there, or has no such states.
        """
        made = []
        try:
            for state in map(bytes.fromhex, self.states):
                # PyTorch does not check these two against each other, and would read beyond its 624 numbers.
                left, _, following = struct.unpack_from("<8xiiQ", state) if len(state) == CPU_STATE else (1, 1, 0)
                if (left, following) != (1, 0) and left + following != 625:
                    raise ValueError("it is damaged")
                made.append(torch.Generator(self.device).set_state(torch.tensor(list(state), dtype=torch.uint8)))
        except (ValueError, RuntimeError) as error:
            raise PictureError(f"no generator on {self.device} has the record's state: {error}.") from error
        return made if len(made) > 1 else made[0]


class RecordedEncoder(_Strict):
    """A text encoder by its role in the pipeline, its width, and what it gives for a fixed input."""

    role: _Short
    width: Annotated[int, Field(ge=1, le=16384)]
    probe: Annotated[tuple[_Number, ...], Field(max_length=64)]


class RecordedModel(_Strict):
    """A model by what its user opened: `mini`, a Hub id or a folder's name; and by its text encoders."""

    name: _Short
    encoders: Annotated[tuple[RecordedEncoder, ...], Field(max_length=4)]


class RecordedScheduler(_Strict):
    """A scheduler by its class in diffusers and its settings."""

    class_name: Annotated[str, Field(pattern=r"^\w{1,100}$")]
    config: Annotated[dict[_Short, _Setting], Field(max_length=100)]


class RecordedAdapter(_Strict):
    """A LoRA by the hash of its weights, and its scales in each component."""

    sha256: _Sha256
    scales: dict[_Short, tuple[float, ...]]


def _read_layout(value: Any) -> Layout | None:
    return None if value is None else Layout.from_json(json.dumps(value))


def _read_settings(value: Any) -> LayoutSettings:
    return TypeAdapter(LayoutSettings).validate_json(json.dumps(value), strict=True, extra="forbid")


def _read_residuals(value: Any) -> dict[str, Residual]:
    encoded = TypeAdapter(dict[_Sha256, str]).validate_python(value, strict=True)
    if len(encoded) > MOST_PICTURES:
        raise ValueError(f"there are {len(encoded)}, expected at most {MOST_PICTURES}")
    found = {}
    for sha256, text in encoded.items():
        try:
            residual = Residual.from_bytes(base64.b64decode(text, validate=True), origin="an embedded residual")
        except binascii.Error as error:
            raise ValueError(f"it is not base64: {error}") from error
        if residual.sha256 != sha256:
            raise ValueError(f"the residual of sha256 {sha256[:12]} has {residual.sha256[:12]}")
        found[sha256] = residual
    return found


class PictureRecord(_Strict):
    """A picture's record, checked: what `describe` returned, read back from anyone's file.

    Attributes:
        text: the prompt as the model read it.
        seed: of this picture, one of the `seeds` of its batch; None where there are `generators` instead.
        not_repeatable: why there is neither; else empty.
        index: of this picture in its batch of `num_images`.
        options: other arguments of the call.
        inputs: hashes of the images and tensors among these, by name.
        unrecorded: the names of those that have neither JSON nor a hash.
        pipeline: the class of the diffusers pipeline.
        adapters: active LoRA, by name.
        versions: of the libraries that move the last bits.
        residuals: those that are embedded, by the sha256 of their files.
    """

    prompt: _Text
    text: str
    subjects: Annotated[dict[_Short, RecordedSubject], Field(max_length=MOST_PICTURES)]
    layout: Annotated[Layout | None, PlainValidator(_read_layout)]
    seed: _Seed | None
    seeds: Annotated[tuple[_Seed, ...], Field(min_length=1, max_length=MOST_PICTURES)] | None
    generators: RecordedGenerators | None
    not_repeatable: _Short
    index: Annotated[int, Field(ge=0)]
    num_images: Annotated[int, Field(ge=1, le=MOST_PICTURES)]
    num_inference_steps: Annotated[int, Field(ge=1, le=_MOST_STEPS)]
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] | None
    negative_prompt: _Text
    layout_settings: Annotated[LayoutSettings, PlainValidator(_read_settings)]
    force: bool
    options: Annotated[dict[_Short, JsonValue], Field(max_length=100)]
    inputs: Annotated[dict[_Short, _Sha256], Field(max_length=100)]
    unrecorded: Annotated[tuple[_Short, ...], Field(max_length=100)]
    scheduler: RecordedScheduler
    pipeline: _Short
    model: RecordedModel
    adapters: Annotated[dict[_Short, RecordedAdapter], Field(max_length=MOST_PICTURES)]
    device: _Device
    dtype: Annotated[str, Field(pattern="^[a-z0-9_]{1,20}$")]
    threads: Annotated[int, Field(ge=1, le=1024)]
    versions: dict[Library, _Short]
    residuals: Annotated[dict[str, Residual], PlainValidator(_read_residuals)] = {}

    @model_validator(mode="after")
    def _check(self) -> "PictureRecord":
        if self.index >= self.num_images:
            raise ValueError(f"index {self.index} is beyond the {self.num_images} pictures of its batch")
        if self.seeds and (len(self.seeds) != self.num_images or self.seeds[self.index] != self.seed):
            raise ValueError(f"seed {self.seed} is not number {self.index} of its batch of {self.num_images}")
        if self.generators and len(self.generators.states) not in (1, self.num_images):
            raise ValueError(f"{len(self.generators.states)} generators for {self.num_images} pictures")
        if not (self.seeds or self.generators or self.not_repeatable):
            raise ValueError("it has no seed, no generator and no reason for that")
        pixels = self.num_images
        for side in (self.options.get("height"), self.options.get("width")):
            if side is not None and not (type(side) is int and side > 0):
                raise ValueError(f"a side of {side!r} pixels makes no sense")
            pixels *= side or _USUAL_SIDE
        if pixels > MOST_PIXELS:
            raise ValueError(f"it asks for {pixels:,} pixels at once, expected at most {MOST_PIXELS:,}")
        if any(isinstance(value, list) and len(value) > _MOST_STEPS for value in self.options.values()):
            raise ValueError(f"a list among its options is longer than {_MOST_STEPS}")  # timesteps, or sigmas
        return self

    @classmethod
    def load(cls, source: Path | str | Mapping[str, Any]) -> "PictureRecord":
        """Read the record of a picture that may come from anyone, given its PNG or what `read_record` returned.

        Raises:
            PictureError: there is none, or it is not what `describe` returns, or asks for too much.
        """
        if isinstance(source, Mapping):
            return cls.from_record(source)
        record = read_record(source)
        try:
            return cls.from_record(record)
        except PictureError as error:
            raise PictureError(f"{source} can't be drawn again: {error}") from error

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "PictureRecord":
        """Check a record.

        Raises:
            PictureError: a key is unknown, missing or of another kind than `describe` writes, or too large.
        """
        try:
            # By way of JSON, since strict pydantic takes JSON's lists for tuples, but not Python's.
            return cls.model_validate_json(json.dumps(record, allow_nan=False))
        except ValidationError as error:
            problem = first_problem(error)
            where = f" at {problem.place!r}" if problem.place else ""
            raise PictureError(f"its record is wrong{where}: {problem.message}. Was it edited?") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise PictureError(f"its record is not JSON: {error}.") from error

    def arguments(self, subjects: Mapping[str, Subject]) -> dict[str, Any]:
        """Return the arguments of `Cones2Pipeline` that draw the whole batch, without inputs and unrecorded ones.

        Args:
            subjects: as `cones2.redraw.recall_subjects` returns them.

        Raises:
            PictureError: the picture can't be drawn again, or its generators can't be made here.
        """
        if not (self.seeds or self.generators):
            raise PictureError(f"the picture can't be drawn again: {self.not_repeatable}.")
        settings = asdict(self.layout_settings)
        noise = {"seed": list(self.seeds)} if self.seeds else {"generator": self.generators and self.generators.make()}
        return {
            **{name: restored(value) for name, value in self.options.items() if name not in ("seed", "generator")},
            "prompt": self.prompt,
            "layout": self.layout,
            "subjects": dict(subjects),
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt or None,
            "num_images_per_prompt": self.num_images,
            **{f"layout_{name}": settings.pop(name) for name in ("scale", "effect", "levels")},
            **settings,
            "force": self.force,
            **noise,
        }

    @property
    def is_cones_v2(self) -> bool:
        """Whether the authors' own loop drew it, `cones2.cones_v2.loop`."""
        return self.options.get("sampler") == "cones_v2"

    def redraw(self, pipe: Any, **arguments: Any) -> Any:
        """Draw the picture again on a `Cones2Pipeline`; see `cones2.redraw.redraw`."""
        from cones2.redraw import redraw

        return redraw(self, pipe, **arguments)
