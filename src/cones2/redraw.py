"""Drawing a picture again from its record: the same batch, of which one is kept, with the same threads."""

import copy
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from cones2.errors import Cones2Warning, PictureError, ResidualError
from cones2.provenance import (
    content_hash,
    describe_adapters,
    describe_encoders,
    describe_scheduler,
    describe_surroundings,
)
from cones2.record import PictureRecord, RecordedScheduler
from cones2.residual import EncoderId
from cones2.schedulers import SCHEDULERS
from cones2.sources import find_by_hash
from cones2.subjects import Subject

_WITHOUT_EFFECT = ("callback_on_step_end", "callback_on_step_end_tensor_inputs", "measure_attention")
_NOT_OF_CONES_V2 = frozenset(
    {"seed", "sampler", "measure_attention", "num_images_per_prompt", "callback_on_step_end_tensor_inputs"}
    | {"layout_scale", "layout_effect", "layout_levels", "preset", "guided_steps", "weight_negative"}
)
_THREADS = threading.RLock()


def redraw(record: PictureRecord, pipe: Any, **arguments: Any) -> Any:
    """Draw the picture of a record again: its whole batch, of which its own picture is kept.

    It is the same bit for bit on the same machine, device, dtype and versions. What differs is said in one warning.
    PyTorch's thread count is the record's until this returns; only one picture at a time is redrawn.

    Args:
        record: what to draw.
        pipe: a `Cones2Pipeline` of the record's model and pipeline class; its scheduler stays as it is. Residuals that
            the record does not hold are found among its subjects, in the library and in the examples.
        **arguments: the record's `inputs` and `unrecorded` ones; also `callback_on_step_end` and `measure_attention`.

    Returns:
        A `Cones2Output` of one picture.

    Raises:
        PictureError: the picture can't be drawn again, or not on this pipeline; or an argument is missing, is not the
            record's, or is none that it needs.
        ResidualError: a residual is not found.
        Cones2Error: as a call.
    """
    check_pipeline(record, pipe)
    _check_arguments(record, arguments)
    call = record.arguments(recall_subjects(record, pipe.subjects)) | arguments
    warn_of_differences(record, pipe)
    with threads(record.threads):
        drawing = with_scheduler(pipe, make_scheduler(record.scheduler, pipe.scheduler))
        output = _draw_cones_v2(record, drawing, call) if record.is_cones_v2 else drawing(**call)
    kept = slice(record.index, record.index + 1)
    images, attention, records = output.images[kept], output.attention[kept], output.records[kept]
    return replace(output, images=images, attention=attention, records=records)


def recall_subjects(record: PictureRecord, known: Mapping[str, Subject] | None = None) -> dict[str, Subject]:
    """Return a record's subjects, their residuals embedded, or found by their hash.

    Args:
        record: of a picture.
        known: subjects that may be the record's, by any name; then come the library and the examples.

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
    """Check that a pipeline is of the record's class and model, with its adapters.

    Raises:
        PictureError: it is not.
    """
    kind = type(pipe.pipeline).__name__
    if record.pipeline != kind:
        raise PictureError(f"the picture was drawn by a {record.pipeline}, this is a {kind}: wrap one of that class.")
    here = _encoder_ids("here", describe_encoders(pipe.pipeline))
    there = _encoder_ids("there", [dict(encoder) for encoder in record.model.encoders])
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
        "threads": (record.threads, _possible(record.threads)),
        **{library: (version, here["versions"][library]) for library, version in record.versions.items()},
    }
    differing = [f"{name} {there} there, {found} here" for name, (there, found) in pairs.items() if there != found]
    if differing:
        warnings.warn(f"the picture may differ: {'; '.join(differing)}.", Cones2Warning, stacklevel=5)


def make_scheduler(recorded: RecordedScheduler, own: Any) -> Any:
    """Return the scheduler of a record, for a pipeline whose own is `own`; that itself where they are alike.

    Raises:
        PictureError: the class is not known, or does not take these settings.
    """
    if describe_scheduler(own) == recorded.model_dump():
        return own
    import diffusers

    kind: Any = type(own)
    if recorded.class_name != kind.__name__:
        if recorded.class_name not in (*SCHEDULERS.values(), "FlowMatchEulerDiscreteScheduler"):
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


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with `count` threads, or as many as this machine has, until the block ends.

    The count is the whole process's, so that blocks in several threads wait for one another.
    """
    with _THREADS:
        before = torch.get_num_threads()
        torch.set_num_threads(_possible(count))
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _possible(count: int) -> int:
    return min(count, max(os.cpu_count() or 1, torch.get_num_threads()))


def _encoder_ids(weights: str, encoders: Sequence[Mapping[str, Any]]) -> dict[str, EncoderId]:
    return {
        each["role"]: EncoderId(each["role"], "", each["width"], weights, tuple(each["probe"])) for each in encoders
    }


def _check_arguments(record: PictureRecord, arguments: Mapping[str, Any]) -> None:
    for name in (*record.inputs, *record.unrecorded):
        if name not in arguments:
            raise PictureError(f"the picture was drawn with an argument {name!r} that its record can't hold: give it.")
    for name, value in arguments.items():
        if name in record.inputs and content_hash(value) != record.inputs[name]:
            raise PictureError(f"{name!r} is another than the picture was drawn with: its sha256 differs.")
        if name not in (*record.inputs, *record.unrecorded, *_WITHOUT_EFFECT):
            raise PictureError(f"{name!r} is none that the record lacks: to draw another picture, call the pipeline.")


def _draw_cones_v2(record: PictureRecord, pipe: Any, call: dict[str, Any]) -> Any:
    """Draw with the authors' own loop, which has other names for some arguments."""
    from cones2.cones_v2.loop import draw

    call = {**call, "seeds": call["seed"], "meter": call.get("measure_attention", False)}
    passed = {name: value for name, value in call.items() if name not in _NOT_OF_CONES_V2}
    return draw(pipe, layout_settings=record.layout_settings, **passed)
