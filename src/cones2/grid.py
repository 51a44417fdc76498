"""Grids: the same prompt under every combination of some seeds, subjects and settings."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import pydantic

from cones2.errors import SettingsError, first_problem
from cones2.presets import find_preset
from cones2.residual import Residual
from cones2.run import LayoutSettings
from cones2.schedulers import scheduler_name
from cones2.shared import check_seed
from cones2.subjects import Subject

MOST_CELLS = 1000

_LAYOUT = {each.name for each in fields(LayoutSettings)}
_KINDS: Mapping[str, Any] = MappingProxyType(
    {
        "seed": pydantic.NonNegativeInt,
        "strength": float,
        "subject": str,
        "num_inference_steps": pydantic.PositiveInt,
        "guidance_scale": pydantic.NonNegativeFloat,
        "guidance_rescale": float,
        "negative_prompt": str,
        "height": pydantic.PositiveInt,
        "width": pydantic.PositiveInt,
        "scheduler": str,
        "force": bool,
        "layout_scale": float,
        "layout_effect": str,
        "layout_levels": pydantic.NonNegativeInt,
        "preset": str,
        "guided_steps": int,
        "weight_negative": float,
    }
)


@dataclass(frozen=True, eq=False)
class Axis:
    """What changes along one side of a grid.

    Attributes:
        name: `seed`, `scheduler`, `strength.NAME`, `subject.NAME`, or an argument of `Cones2Pipeline` such as
            `guidance_scale`.
        values: in order; for `subject.NAME`, residuals.
        labels: of the values; made of them when not given.

    Raises:
        SettingsError: the name is unknown, there is no value, or one is outside its range.
    """

    name: str
    values: tuple[Any, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind, _, subject = self.name.partition(".")
        if kind not in _KINDS or bool(subject) != (kind in ("strength", "subject")):
            known = ", ".join(f"{name}.NAME" if name in ("strength", "subject") else name for name in _KINDS)
            raise SettingsError(f"{self.name!r} can't be varied: expected one of {known}.")
        if not self.values:
            raise SettingsError(f"{self.name} has no values: expected at least one.")
        if not self.labels:
            object.__setattr__(self, "labels", tuple(str(value) for value in self.values))
        for value in self.values:
            if kind == "scheduler":
                scheduler_name(value)
            elif kind == "seed":
                check_seed(value)
            elif kind == "preset":
                find_preset(value)
            elif kind in _LAYOUT and kind != "weight_negative":  # which needs its preset beside it
                LayoutSettings(**{kind: value})

    @property
    def subject(self) -> str:
        """The subject that it changes; empty where it changes something else."""
        return self.name.partition(".")[2]


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture of a grid.

    Attributes:
        labels: by axis, what is special about it.
        scheduler: its name; None is the pipeline's own.
    """

    labels: Mapping[str, str]
    subjects: Mapping[str, Subject]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    scheduler: str | None = None


def plan_grid(
    axes: Sequence[Axis], *, subjects: Mapping[str, Subject] | None = None, **arguments: Any
) -> tuple[tuple[Cell, ...], ...]:
    """Return the rows of a grid: the first axis runs across, all combinations of the others run down.

    Args:
        axes: what changes.
        subjects: of all cells.
        **arguments: of `Cones2Pipeline`, the same for all cells unless an axis changes them; without a seed it is 0.

    Raises:
        SettingsError: an axis comes twice, changes no subject or the strength of an untaught word, or there are too
            many pictures.
    """
    _check(axes, subjects or {})
    rows = [Cell({}, subjects or {}, {"seed": 0, **arguments})]
    for axis in axes[1:]:
        rows = [_change(cell, axis, pick) for cell, pick in itertools.product(rows, range(len(axis.values)))]
    return tuple(tuple(_change(row, axes[0], pick) for pick in range(len(axes[0].values))) for row in rows)


def parse_values(name: str, texts: Sequence[str]) -> tuple[Any, ...]:
    """Read the values of an axis from text: those of a subject stay text, and of `layout_levels` each is one level.

    Raises:
        SettingsError: one is not of the argument's kind.
    """
    kind = pydantic.TypeAdapter(_KINDS.get(name.partition(".")[0], str))
    try:
        values = tuple(kind.validate_python(text) for text in texts)
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        raise SettingsError(f"{name} can't be {problem.got}: {problem.message}.") from error
    return tuple((level,) for level in values) if name == "layout_levels" else values


def _check(axes: Sequence[Axis], subjects: Mapping[str, Subject]) -> None:
    if not axes:
        raise SettingsError("a grid without axes: expected at least one, such as seed=0,1,2,3.")
    names = [axis.name for axis in axes]
    for axis in axes:
        if names.count(axis.name) > 1:
            raise SettingsError(f"{axis.name} is varied twice: put all its values in one axis.")
        if axis.subject and axis.subject not in subjects:
            known = ", ".join(subjects) or "none"
            raise SettingsError(f"{axis.name} varies {axis.subject!r}, which is not a subject; those are: {known}.")
        is_taught = (
            f"subject.{axis.subject}" in names or not axis.subject or subjects[axis.subject].residual is not None
        )
        if axis.name.startswith("strength.") and not is_taught:
            raise SettingsError(f"{axis.name} varies {axis.subject!r}, which has no residual: give it one first.")
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_CELLS:
        raise SettingsError(f"the grid has {count} pictures: expected at most {MOST_CELLS}.")


def _change(cell: Cell, axis: Axis, pick: int) -> Cell:
    value, labels = axis.values[pick], {**cell.labels, axis.name: axis.labels[pick]}
    if axis.name == "scheduler":
        return replace(cell, labels=labels, scheduler=value)
    if not axis.subject:
        return replace(cell, labels=labels, arguments={**cell.arguments, axis.name: value})
    subject = cell.subjects[axis.subject]
    if isinstance(value, Residual):
        subject = replace(subject, class_word=value.class_word, residual=value)
    else:
        subject = replace(subject, strength=value)
    return replace(cell, labels=labels, subjects={**cell.subjects, axis.subject: subject})
