"""Drawing a picture again from its record, which may come from anyone: its whole batch, of which one is kept."""

import base64
import copy
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field, JsonValue, PlainValidator, TypeAdapter

from cones2.call import Cones2Output
from cones2.errors import Cones2Warning, PictureError, ResidualError, first_problem
from cones2.families import native_size
from cones2.layout import Layout
from cones2.library import find_by_hash
from cones2.png import read_record
from cones2.prompts import LONGEST_PROMPT
from cones2.record import (
    MOST_PIXELS,
    LibraryName,
    content_hash,
    describe_adapters,
    describe_encoders,
    describe_scheduler,
    describe_surroundings,
    restored,
)
from cones2.residual import EncoderId, Residual, Sha256
from cones2.run import LayoutSettings
from cones2.schedulers import FLOW_SCHEDULERS, SCHEDULERS
from cones2.shared import possible_threads, threads
from cones2.subjects import Subject

MOST_PICTURES = 64
"""Pictures of a record's batch, and subjects in it."""
_MOST_STEPS = 1000
_WITHOUT_EFFECT = ("callback_on_step_end", "callback_on_step_end_tensor_inputs", "measure_attention")

_Short = Annotated[str, Field(max_length=1000)]
_Text = Annotated[str, Field(max_length=LONGEST_PROMPT)]
_Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Number = Annotated[float, Field(ge=-1e6, le=1e6)]
# Bounded, since numbers among a scheduler's settings decide how much memory it takes.
_Setting = bool | Annotated[int, Field(ge=-100_000, le=100_000)] | _Number | _Short | None | list[_Number]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class _Subject(_Strict):
    class_word: _Short
    residual: Sha256 | None
    strength: _Number
    during: tuple[_Number, _Number]
    negative: _Text


class _Encoder(_Strict):
    role: _Short
    width: Annotated[int, Field(ge=1, le=16384)]
    probe: Annotated[tuple[_Number, ...], Field(max_length=64)]


class _Model(_Strict):
    name: _Short
    encoders: Annotated[tuple[_Encoder, ...], Field(max_length=4)]


class _Scheduler(_Strict):
    class_name: Annotated[str, Field(pattern=r"^\w{1,100}$")]
    config: Annotated[dict[_Short, _Setting], Field(max_length=100)]


class _Adapter(_Strict):
    sha256: Sha256
    scales: dict[_Short, tuple[float, ...]]


def _read_layout(value: Any) -> Layout | None:
    return None if value is None else Layout.from_json(json.dumps(value))


def _read_settings(value: Any) -> LayoutSettings:
    return TypeAdapter(LayoutSettings).validate_json(json.dumps(value), strict=True, extra="forbid")


def _read_residuals(value: Any) -> dict[str, Residual]:
    encoded = TypeAdapter(dict[Sha256, str]).validate_python(value, strict=True)
    if len(encoded) > MOST_PICTURES:
        raise ValueError(f"there are {len(encoded)}, expected at most {MOST_PICTURES}")
    found = {}
    for sha256, text in encoded.items():
        found[sha256] = Residual.from_bytes(base64.b64decode(text, validate=True), origin="an embedded residual")
        if found[sha256].sha256 != sha256:
            raise ValueError(f"the residual of sha256 {sha256[:12]} has {found[sha256].sha256[:12]}")
    return found


class PictureRecord(_Strict):
    """A picture's record, as `cones2.record.describe` writes it, read back from anyone's file and checked.

    Attributes:
        text: the prompt as the model read it.
        seed: of this picture, one of the `seeds` of its batch.
        not_repeatable: why there are none; else empty.
        index: of this picture in its batch of `num_images`.
        options: other arguments of the call.
        inputs: hashes of the images and tensors among these, by name.
        unrecorded: the names of those that have neither JSON nor a hash.
        residuals: those that are embedded, by the sha256 of their files.
    """

    prompt: _Text
    text: str
    subjects: Annotated[dict[_Short, _Subject], Field(max_length=MOST_PICTURES)]
    layout: Annotated[Layout | None, PlainValidator(_read_layout)]
    seed: _Seed | None
    seeds: Annotated[tuple[_Seed, ...], Field(min_length=1, max_length=MOST_PICTURES)] | None
    not_repeatable: _Short
    index: Annotated[int, Field(ge=0)]
    num_images: Annotated[int, Field(ge=1, le=MOST_PICTURES)]
    num_inference_steps: Annotated[int, Field(ge=1, le=_MOST_STEPS)]
    guidance_scale: Annotated[float, Field(ge=0, le=1000)] | None
    negative_prompt: _Text
    layout_settings: Annotated[LayoutSettings, PlainValidator(_read_settings)]
    force: bool
    options: Annotated[dict[_Short, JsonValue], Field(max_length=100)]
    inputs: Annotated[dict[_Short, Sha256], Field(max_length=100)]
    unrecorded: Annotated[tuple[_Short, ...], Field(max_length=100)]
    scheduler: _Scheduler
    pipeline: _Short
    model: _Model
    adapters: Annotated[dict[_Short, _Adapter], Field(max_length=MOST_PICTURES)]
    device: Annotated[str, Field(pattern=r"^[a-z]{1,10}(:\d{1,3})?$")]
    dtype: Annotated[str, Field(pattern="^[a-z0-9_]{1,20}$")]
    threads: Annotated[int, Field(ge=1, le=1024)]
    versions: dict[LibraryName, _Short]
    residuals: Annotated[dict[str, Any], PlainValidator(_read_residuals)] = {}  # of Residual

    @pydantic.model_validator(mode="after")
    def _check(self) -> "PictureRecord":
        if self.index >= self.num_images:
            raise ValueError(f"index {self.index} is beyond the {self.num_images} pictures of its batch")
        if self.seeds and (len(self.seeds) != self.num_images or self.seeds[self.index] != self.seed):
            raise ValueError(f"seed {self.seed} is not number {self.index} of its batch of {self.num_images}")
        if not (self.seeds or self.not_repeatable):
            raise ValueError("it has no seed, and no reason for that")
        for side in (self.options.get("height"), self.options.get("width")):
            if side is not None and not (type(side) is int and side > 0):
                raise ValueError(f"a side of {side!r} pixels makes no sense")
        if self.seeds:
            self.check_pixels(1, 1)
        if any(isinstance(value, list) and len(value) > _MOST_STEPS for value in self.options.values()):
            raise ValueError(f"a list among its options is longer than {_MOST_STEPS}")  # timesteps, or sigmas
        return self

    def check_pixels(self, height: int, width: int) -> None:
        """Check the batch's pixels, of these sides where the record has none; ValueError where they are too many."""
        sides = [self.options.get(name) or side for name, side in (("height", height), ("width", width))]
        if (pixels := math.prod(each for each in (self.num_images, *sides) if isinstance(each, int))) > MOST_PIXELS:
            raise ValueError(f"it asks for {pixels:,} pixels at once, expected at most {MOST_PIXELS:,}")

    @classmethod
    def load(cls, source: Path | str | Mapping[str, Any]) -> "PictureRecord":
        """Read a picture's record from its PNG or as JSON values; PictureError where it is not as we write it."""
        record = source if isinstance(source, Mapping) else read_record(source)
        name = "the picture" if isinstance(source, Mapping) else str(source)
        try:
            # By way of JSON, since strict pydantic takes JSON's lists for tuples, but not Python's.
            return cls.model_validate_json(json.dumps(record, allow_nan=False))
        except pydantic.ValidationError as error:
            place, message, _ = first_problem(error)
            wrong = f"its record is wrong at {place!r}: {message}. Was it edited?"
            raise PictureError(f"{name} can't be drawn again: {wrong}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise PictureError(f"{name} can't be drawn again: its record is not JSON: {error}.") from error

    def arguments(self, subjects: Mapping[str, Subject]) -> dict[str, Any]:
        """Return the pipeline's arguments that draw the whole batch of these subjects, less what is not recorded.

        Raises:
            PictureError: the picture can't be drawn again.
        """
        if not self.seeds:
            raise PictureError(f"the picture can't be drawn again: {self.not_repeatable}.")
        return {
            **{name: restored(value) for name, value in self.options.items() if name not in ("seed", "generator")},
            "prompt": self.prompt,
            "layout": self.layout,
            "subjects": dict(subjects),
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "negative_prompt": self.negative_prompt or None,
            "num_images_per_prompt": self.num_images,
            **asdict(self.layout_settings),
            "force": self.force,
            "seed": list(self.seeds),
        }


def redraw(source: PictureRecord | Mapping[str, Any] | Path | str, pipe: Any, **arguments: Any) -> Cones2Output:
    """Draw the picture of a record again, as `Cones2Pipeline.redraw` says; the pipeline's scheduler stays as it is."""
    record = source if isinstance(source, PictureRecord) else PictureRecord.load(source)
    check_pipeline(record, pipe)
    _check_arguments(record, arguments)
    call = record.arguments(recall_subjects(record, pipe.subjects)) | arguments
    warn_of_differences(record, pipe)
    with threads(record.threads):
        drawing = with_scheduler(pipe, make_scheduler(record.scheduler, pipe.scheduler))
        output: Cones2Output = drawing(**call)
    kept = slice(record.index, record.index + 1)
    images, attention, records = output.images[kept], output.attention[kept], output.records[kept]
    return replace(output, images=images, attention=attention, records=records)


def _check_arguments(record: PictureRecord, arguments: Mapping[str, Any]) -> None:
    lacking = (*record.inputs, *record.unrecorded)
    for name in lacking:
        if name not in arguments:
            raise PictureError(f"the picture was drawn with an argument {name!r} that its record can't hold: give it.")
    for name, value in arguments.items():
        if name in record.inputs and content_hash(value) != record.inputs[name]:
            raise PictureError(f"{name!r} is another than the picture was drawn with: its sha256 differs.")
        if name not in (*lacking, *_WITHOUT_EFFECT):
            raise PictureError(f"{name!r} is none that the record lacks: to draw another picture, call the pipeline.")


def recall_subjects(record: PictureRecord, known: Mapping[str, Subject] | None = None) -> dict[str, Subject]:
    """Return a record's subjects; residuals are its own, or found by hash among `known`, the library and the examples.

    Raises:
        ResidualError: a residual is not found.
    """
    residuals = {each.residual.sha256: each.residual for each in (known or {}).values() if each.residual is not None}
    residuals |= record.residuals
    found = {}
    for name, subject in record.subjects.items():
        residual = None
        if subject.residual is not None:
            residual = residuals.get(subject.residual) or find_by_hash(subject.residual)
            if residual is None:
                raise ResidualError(
                    f"no residual at hand is the picture's {name!r}, a {subject.class_word} (sha256"
                    f" {subject.residual[:12]}...): add its file to the library, or give it in subjects."
                )
        found[name] = Subject(subject.class_word, residual, subject.strength, subject.during, subject.negative)
    return found


def check_pipeline(record: PictureRecord, pipe: Any) -> None:
    """Check that a pipeline is of the record's class and model, with its adapters; PictureError where it is not."""
    kind = type(pipe.pipeline).__name__
    if record.pipeline != kind:
        raise PictureError(f"the picture was drawn by a {record.pipeline}, this is a {kind}: wrap one of that class.")
    try:
        record.check_pixels(*native_size(pipe.pipeline))
    except ValueError as error:
        raise PictureError(
            f"the picture can't be drawn again: {error}. Draw one anew, by its prompt and seed."
        ) from error

    def ids(encoders: Any, weights: str) -> dict[str, EncoderId]:
        made = (EncoderId(each["role"], "", each["width"], weights, tuple(each["probe"])) for each in encoders)
        return {each.role: each for each in made}

    here = ids(describe_encoders(pipe.pipeline), "here")
    there = ids((each.model_dump() for each in record.model.encoders), "there")
    if here.keys() != there.keys() or not all(here[role].fits(there[role]) for role in here):
        raise PictureError(
            f"the picture was drawn on {record.model.name!r}, this is {pipe.facts.name!r} with another text encoder:"
            " open that model."
        )
    found = describe_adapters(pipe.pipeline)
    recorded = {name: each.model_dump(mode="json") for name, each in record.adapters.items()}
    if record.dtype != describe_surroundings(pipe.pipeline)["dtype"]:  # which changes the hashes
        for name in found.keys() & recorded.keys():
            found[name]["sha256"] = recorded[name]["sha256"]
    for name in found | recorded:
        if found.get(name) != recorded.get(name):
            raise PictureError(
                f"the adapter {name!r} is {found.get(name, 'not active')}, the picture was drawn with"
                f" {recorded.get(name, 'none')}: load what it was drawn with."
            )


def warn_of_differences(record: PictureRecord, pipe: Any) -> None:
    """Warn once of all that differs from the record and may move the picture's last bits, or the whole of it."""
    here = describe_surroundings(pipe.pipeline)
    pairs: dict[str, tuple[object, object]] = {
        "model": (record.model.name, pipe.facts.name),
        "device": (record.device, here["device"]),
        "dtype": (record.dtype, here["dtype"]),
        "threads": (record.threads, possible_threads(record.threads)),
        **{library: (version, here["versions"][library]) for library, version in record.versions.items()},
    }
    differing = [f"{name} {there} there, {found} here" for name, (there, found) in pairs.items() if there != found]
    if differing:
        warnings.warn(f"the picture may differ: {'; '.join(differing)}.", Cones2Warning, stacklevel=4)


def make_scheduler(recorded: _Scheduler, own: Any) -> Any:
    """Return the scheduler of a record, or a pipeline's `own` where it is like that; PictureError if there is none."""
    if describe_scheduler(own) == recorded.model_dump():
        return own
    import diffusers

    kind: Any = type(own)
    if recorded.class_name != kind.__name__:
        if recorded.class_name not in (*SCHEDULERS.values(), *FLOW_SCHEDULERS):
            raise PictureError(f"the picture's scheduler is a {recorded.class_name}: set one on the pipeline first.")
        kind = getattr(diffusers, recorded.class_name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers' own, about old settings
            return kind(**recorded.config)
    except Exception as error:  # on another's settings it may raise anything
        raise PictureError(f"{recorded.class_name} does not take the record's settings: {error}.") from error


def with_scheduler(pipe: Any, scheduler: Any) -> Any:
    """Return a `Cones2Pipeline` that shares models and subjects with this one and draws with another scheduler."""
    other, inner = copy.copy(pipe), copy.copy(pipe.pipeline)
    vars(inner)["scheduler"] = scheduler
    vars(other)["pipeline"] = inner
    return other
