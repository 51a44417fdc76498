"""How a picture was made: the record that goes into its file, and what a file from anyone may ask for."""

import dataclasses
import functools
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import pydantic
import torch
from pydantic import Field

from cones2.backbones import Backbone
from cones2.checking import first_problem
from cones2.composing.guiding import settle
from cones2.composing.settings import ComposeSettings
from cones2.errors import Cones2Error, PictureError
from cones2.layout.regions import Layout
from cones2.picture import read_record
from cones2.prompts import parse_prompt
from cones2.subjects import Subject

MOST_PICTURES = 64
"""Seeds in a record's batch, and subjects in it."""
MOST_PIXELS = 2**26
"""Pixels of a record's batch, where it gives a size."""
MOST_THREADS = 1024

_STRICT = pydantic.ConfigDict(extra="forbid", strict=True)
_Library = Literal["cones2", "diffusers", "torch", "transformers"]

Parsed = TypeVar("Parsed")
_Short = Annotated[str, Field(max_length=1000)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def picture_record(
    backbone: Backbone,
    prompt: str,
    seed: int,
    *,
    subjects: Mapping[str, Subject] | None = None,
    layout: Layout | None = None,
    settings: ComposeSettings | None = None,
) -> dict[str, Any]:
    """Tell how the picture of `seed` was made, as JSON values: all that is needed to draw it again."""
    subjects = subjects or {}
    settings = settle(settings or ComposeSettings(), backbone, subjects=subjects, layout=layout)
    parsed = parse_prompt(prompt, {name: subject.class_word for name, subject in subjects.items()})
    return {
        "prompt": prompt,
        "text": parsed.text,
        "subjects": {name: subject.describe() for name, subject in subjects.items()},
        "layout": None if layout is None else json.loads(layout.to_json()),
        "seed": seed,
        "batch": list(settings.seeds),
        "settings": {key: value for key, value in asdict(settings).items() if key != "seeds"},
        "sampler": settings.sampler,
        "backbone": describe_backbone(backbone),
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in get_args(_Library)},
    }


def describe_backbone(backbone: Backbone) -> dict[str, Any]:
    """Name a model for a record, with its text encoders' fingerprints: name, width, and the hash of the weights."""
    encoders = [{k: v for k, v in part.fields().items() if k != "probe"} for part in backbone.encoder_id.parts]
    return {"name": backbone.name, **dict(zip(("encoder", "encoder_2"), encoders, strict=False))}


@dataclass(frozen=True)
class RecordedSubject:
    """A subject as a record names it.

    Attributes:
        class_word: the raw category.
        residual: sha256 of the residual's file; None is an untaught word.
        options: the other fields of `Subject`, by name.
    """

    class_word: str
    residual: str | None
    options: Mapping[str, Any]


@dataclass(frozen=True)
class RecordedBackbone:
    """A model as a record names it.

    Attributes:
        name: what its user opened: `mini`, a Hub id or a folder's name.
        encoder: its text encoder's fingerprint, as JSON values.
        encoder_2: of the second, where it has two.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT

    name: _Short
    encoder: dict[str, pydantic.JsonValue]
    encoder_2: dict[str, pydantic.JsonValue] | None = None

    @property
    def weights(self) -> list[object]:
        """The hash of each text encoder's weights."""
        return [encoder.get("weights") for encoder in (self.encoder, self.encoder_2) if encoder is not None]


@dataclass(frozen=True, eq=False)
class PictureRecord:
    """A picture's record, checked: `picture_record` read back.

    Attributes:
        prompt: with placeholders.
        subjects: by name.
        layout: where they belong.
        seed: of this picture.
        settings: its seeds are all that were drawn as one batch.
        backbone: the model.
        device: `cpu`, `cuda` or `mps`, with or without a number.
        dtype: the UNet's.
        threads: of PyTorch.
        versions: of the libraries that move the last bits.
    """

    prompt: str
    subjects: Mapping[str, RecordedSubject]
    layout: Layout | None
    seed: int
    settings: ComposeSettings
    backbone: RecordedBackbone
    device: str
    dtype: str
    threads: int
    versions: Mapping[_Library, str]

    @classmethod
    def load(cls, path: Path | str) -> "PictureRecord":
        """Read the record of a picture that may come from anyone.

        Raises:
            PictureError: there is none, or it asks for what `compose` would not draw, or for too much.
        """
        record = read_record(path)
        try:
            return cls.from_record(record)
        except Cones2Error as error:
            raise PictureError(f"{path} can't be drawn again: {error}") from error

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> "PictureRecord":
        """Check what `read_record` gave.

        Raises:
            PictureError: a key is unknown, missing or of another kind than `picture_record` writes, or too large.
            LayoutError: its layout makes no sense.
            SettingsError: a setting is outside its range.
        """
        fields = _parse(_Fields, record)
        settings = _parse(ComposeSettings, {**fields.settings, "seeds": fields.batch}, place="settings")
        _check_size(settings)
        if fields.seed not in settings.seeds:
            raise PictureError(f"its record's seed {fields.seed} is not in its batch: expected one of those drawn.")
        return cls(
            prompt=fields.prompt,
            subjects={name: _parse_subject(name, subject) for name, subject in fields.subjects.items()},
            layout=None if fields.layout is None else Layout.from_json(json.dumps(fields.layout)),
            seed=fields.seed,
            settings=settings,
            backbone=fields.backbone,
            device=fields.device,
            dtype=fields.dtype,
            threads=fields.threads,
            versions=fields.versions,
        )

    def naming(self, names: frozenset[str]) -> "PictureRecord":
        """Give the same with only these subjects, and their places."""
        regions = None if self.layout is None else {n: r for n, r in self.layout.regions.items() if n in names}
        return replace(
            self,
            subjects={name: subject for name, subject in self.subjects.items() if name in names},
            layout=None if regions is None else Layout(regions),
        )


@dataclass(frozen=True)
class _Fields:
    """The keys of a record; layout and settings are read by their own classes."""

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = _STRICT

    prompt: str
    text: str
    subjects: Annotated[dict[_Short, dict[str, pydantic.JsonValue]], Field(max_length=MOST_PICTURES)]
    layout: pydantic.JsonValue
    seed: int
    batch: Annotated[list[int], Field(min_length=1, max_length=MOST_PICTURES)]
    settings: dict[str, pydantic.JsonValue]
    sampler: _Short
    backbone: RecordedBackbone
    device: Annotated[str, Field(pattern=r"^(cpu|cuda|mps)(:\d{1,3})?$")]
    dtype: Literal["float32", "bfloat16", "float16"]
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]
    versions: dict[_Library, _Short]


def _parse(kind: type[Parsed], value: Mapping[str, object], *, place: str = "") -> Parsed:
    # By way of JSON, since pydantic's strict mode makes a dataclass of a JSON object but not of a dict.
    try:
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(value))
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        where = ".".join(part for part in (place, problem.place) if part)[:100]
        raise PictureError(
            f"its record is wrong at {where!r}: {problem.message}; expected what this version of cones2 writes."
        ) from error


def _parse_subject(name: str, value: Mapping[str, object]) -> RecordedSubject:
    parsed = dict(_parse(_subject_model(), value, place=f"subjects.{name}"))
    return RecordedSubject(parsed.pop("class_word"), parsed.pop("residual"), parsed)


@functools.cache
def _subject_model() -> type[pydantic.BaseModel]:
    """Describe what `Subject.describe` gives: a residual's hash, and all other fields as the class has them."""
    kinds = get_type_hints(Subject)
    options = {field.name: (kinds[field.name], field.default) for field in dataclasses.fields(Subject)}
    fields: dict[str, Any] = {**options, "class_word": (_Short, ...), "residual": (_Sha256 | None, ...)}
    return pydantic.create_model("RecordedSubject", __config__=_STRICT, **fields)


def _check_size(settings: ComposeSettings) -> None:
    pixels = len(settings.seeds) * (settings.height or 0) * (settings.width or 0)
    if pixels > MOST_PIXELS:
        raise PictureError(f"its record asks for {pixels:,} pixels at once: expected at most {MOST_PIXELS:,}.")
