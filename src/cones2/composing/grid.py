"""Grids: the same prompt under every combination of some seeds, subjects and settings."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

import pydantic

from cones2.checking import first_problem
from cones2.composing.settings import ComposeSettings
from cones2.errors import SettingsError
from cones2.residual.residual import Residual
from cones2.subjects import Subject

MOST_CELLS = 1000

_SETTINGS = tuple(field.name for field in fields(ComposeSettings) if field.name != "seeds")


@dataclass(frozen=True, eq=False)
class Axis:
    """What changes along one side of a grid.

    Attributes:
        name: `seed`, a field of `ComposeSettings`, `strength.NAME` or `subject.NAME`.
        values: in order; for `subject.NAME`, residuals.
        labels: of the values; made of them when not given.

    Raises:
        SettingsError: the name is unknown, or there is no value.
    """

    name: str
    values: tuple[Any, ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind, _, subject = self.name.partition(".")
        if self.name not in ("seed", *_SETTINGS) and not (kind in ("strength", "subject") and subject):
            known = ", ".join(("seed", "strength.NAME", "subject.NAME", *_SETTINGS))
            raise SettingsError(f"{self.name!r} can't be varied: expected one of {known}.")
        if not self.values:
            raise SettingsError(f"{self.name} has no values: expected at least one.")
        if not self.labels:
            object.__setattr__(self, "labels", tuple(str(value) for value in self.values))

    @property
    def subject(self) -> str:
        """The subject that it changes; empty where it changes a setting."""
        return self.name.partition(".")[2]


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture of a grid.

    Attributes:
        labels: by axis, what is special about it.
        subjects: to compose with.
        settings: to compose with; one seed.
    """

    labels: Mapping[str, str]
    subjects: Mapping[str, Subject]
    settings: ComposeSettings


def plan_grid(
    axes: Sequence[Axis], *, subjects: Mapping[str, Subject] | None = None, settings: ComposeSettings | None = None
) -> tuple[tuple[Cell, ...], ...]:
    """Give the rows of a grid: the first axis runs across, all combinations of the others run down.

    Without an axis of seeds, all cells have the settings' first seed.

    Raises:
        SettingsError: an axis comes twice, changes no subject or the strength of a plain word, a value is outside its
            range, or there are too many.
    """
    _check(axes, subjects or {})
    settings = settings or ComposeSettings()
    start = Cell({}, subjects or {}, replace(settings, seeds=settings.seeds[:1]))
    across, down = axes[0], axes[1:]
    rows = [_combine(start, down, picks) for picks in itertools.product(*(range(len(axis.values)) for axis in down))]
    return tuple(tuple(_change(row, across, pick) for pick in range(len(across.values))) for row in rows)


def parse_values(name: str, texts: Sequence[str]) -> tuple[Any, ...]:
    """Read the values of an axis from text: those of a subject stay text, and of `layout_levels` each is one level.

    Raises:
        SettingsError: one is not of the setting's kind.
    """
    kinds = {**get_type_hints(ComposeSettings), "seed": int, "strength": float, "subject": str, "layout_levels": int}
    kind = pydantic.TypeAdapter(kinds.get(name.partition(".")[0], str))
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
            raise SettingsError(f"{axis.name} varies {axis.subject!r}, which is no subject; those are: {known}.")
        if axis.name.startswith("strength.") and not _is_taught(axis.subject, subjects, names):
            raise SettingsError(f"{axis.name} varies {axis.subject!r}, which has no residual: give it one first.")
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MOST_CELLS:
        raise SettingsError(f"the grid has {count} pictures: expected at most {MOST_CELLS}.")


def _is_taught(subject: str, subjects: Mapping[str, Subject], names: Sequence[str]) -> bool:
    return subjects[subject].residual is not None or f"subject.{subject}" in names


def _combine(cell: Cell, axes: Sequence[Axis], picks: Sequence[int]) -> Cell:
    for axis, pick in zip(axes, picks, strict=True):
        cell = _change(cell, axis, pick)
    return cell


def _change(cell: Cell, axis: Axis, pick: int) -> Cell:
    value, labels = axis.values[pick], {**cell.labels, axis.name: axis.labels[pick]}
    if axis.name == "seed":
        return replace(cell, labels=labels, settings=replace(cell.settings, seeds=(value,)))
    if not axis.subject:
        return replace(cell, labels=labels, settings=replace(cell.settings, **{axis.name: value}))
    subject = _changed_subject(cell.subjects[axis.subject], value)
    return replace(cell, labels=labels, subjects={**cell.subjects, axis.subject: subject})


def _changed_subject(subject: Subject, value: Residual | float) -> Subject:
    if isinstance(value, Residual):
        return replace(subject, class_word=value.class_word, residual=value)
    return replace(subject, strength=value)
