"""Layouts: where each subject should stand, as boxes by name in a picture whose sides are 1 long."""

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from torch import Tensor

from cones2.errors import LayoutError
from cones2.files import write_atomically

MAX_FILE_BYTES = 1 << 20
MAX_BOXES = 256
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_EXAMPLE = '{"version": 1, "regions": {"rex": [[0.05, 0.25, 0.5, 0.95]]}}'


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in fractions of the picture: x to the right, y down, (0, 0) the top left corner.

    Raises:
        LayoutError: a side is not a number in 0..1, or the box is inverted or empty.
    """

    xmin: float
    ymin: float
    xmax: float
    ymax: float

    def __post_init__(self) -> None:
        sides = f"box ({self.xmin}, {self.ymin}, {self.xmax}, {self.ymax})"
        for side, value in vars(self).items():
            if not math.isfinite(value):
                raise LayoutError(f"{sides}: {side} is {value}; expected a number in 0..1. Write a number there.")
            if not 0 <= value <= 1:
                raise LayoutError(
                    f"{sides}: {side} {value} is outside 0..1. Divide pixels by the picture's width or height."
                )
        for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
            if getattr(self, low) >= getattr(self, high):
                raise LayoutError(f"{sides}: {low} is not less than {high}. Swap them, or make the box larger.")


@dataclass(frozen=True)
class Layout:
    """Regions by subject name; a region is the union of its boxes, and regions may overlap.

    Example:
        >>> Layout.from_numbers({"rex": [(0.05, 0.25, 0.5, 0.95)], "cup": [(0.55, 0.5, 0.9, 0.9)]}).names
        ('rex', 'cup')

    Raises:
        LayoutError: a name is no identifier, a region has no box, or there are more than 256 boxes.
    """

    regions: Mapping[str, tuple[Box, ...]]

    def __post_init__(self) -> None:
        regions = {name: tuple(boxes) for name, boxes in self.regions.items()}
        for name, boxes in regions.items():
            _check_name(name)
            if not boxes:
                raise LayoutError(f"region {name!r} has no box; expected at least one. Give it one, or leave it out.")
        count = sum(map(len, regions.values()))
        if count > MAX_BOXES:
            raise LayoutError(f"the layout has {count} boxes; expected at most {MAX_BOXES}. Use fewer, larger boxes.")
        object.__setattr__(self, "regions", MappingProxyType(regions))

    @classmethod
    def from_numbers(cls, regions: Mapping[str, Sequence[Sequence[float]]]) -> "Layout":
        """Build a layout from `[xmin, ymin, xmax, ymax]` lists by name.

        Raises:
            LayoutError: as `Box` and `Layout` do, with the region's name.
        """
        return cls({name: tuple(_box(name, numbers) for numbers in boxes) for name, boxes in regions.items()})

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        """Read `{"version": 1, "regions": {"rex": [[xmin, ymin, xmax, ymax], ...]}}`; a single box needs no outer list.

        Raises:
            LayoutError: over 1 MiB, no JSON, an unknown or missing key, a name twice, or a box that makes no sense.
        """
        if len(text) > MAX_FILE_BYTES:
            raise LayoutError(
                f"the layout JSON is over {MAX_FILE_BYTES} characters long. Expected a small one: {_EXAMPLE}"
            )
        try:
            data = json.loads(text, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise LayoutError(f"the layout is not JSON that can be read: {error}. Expected {_EXAMPLE}") from error
        if not isinstance(data, dict):
            raise LayoutError(f"the layout JSON holds {reprlib.repr(data)}. Expected an object: {_EXAMPLE}")
        try:
            regions = _LayoutFile.model_validate(data).regions
        except ValidationError as error:
            raise LayoutError(_first_problem(error)) from error
        return cls.from_numbers(regions)

    def to_json(self) -> str:
        """Write what `from_json` reads, a line for each region."""
        lines = (
            f"    {json.dumps(name)}: {json.dumps([astuple(b) for b in boxes])}" for name, boxes in self.regions.items()
        )
        return '{\n  "version": 1,\n  "regions": {\n' + ",\n".join(lines) + "\n  }\n}\n"

    @classmethod
    def load(cls, path: Path) -> "Layout":
        """Read a layout's JSON file.

        Raises:
            LayoutError: the file can't be read, or its content makes no sense.
        """
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            return cls.from_json(content.decode("utf-8-sig"))
        except OSError as error:
            raise LayoutError(f"can't read the layout {path}: {error.strerror or error}. Check the path.") from error
        except UnicodeDecodeError as error:
            raise LayoutError(f"{path} is not text in UTF-8. Expected a JSON file: {_EXAMPLE}") from error
        except LayoutError as error:
            raise LayoutError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        """Write a layout's JSON file.

        Raises:
            OutputError: it can't be written.
        """
        write_atomically(path, self.to_json().encode())

    @property
    def names(self) -> tuple[str, ...]:
        """The subjects that have a region, in the order given."""
        return tuple(self.regions)

    def coverage(self, name: str, height: int, width: int) -> Float[Tensor, "{height} {width}"]:
        """Return the fraction of each cell of a grid that the region covers, exactly (overlapping boxes count once).

        The single precision of the result absorbs the rounding of decimals like 0.29: half a cell is 0.5, not less.

        Raises:
            LayoutError: no region has this name.
        """
        if name not in self.regions:
            raise LayoutError(f"the layout has no region {name!r}; it has {', '.join(self.names) or 'none'}.")
        return _covered(self.regions[name], height, width)


class _LayoutFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    regions: dict[str, list[list[float]]]

    @field_validator("regions", mode="before")
    @classmethod
    def _list_single_boxes(cls, regions: object) -> object:
        if not isinstance(regions, dict):
            return regions
        return {name: [boxes] if _is_one_box(boxes) else boxes for name, boxes in regions.items()}


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        got = reprlib.repr(name)
        raise LayoutError(
            f"{got} can't name a region: expected up to 64 letters, digits and _, no digit first. Rename it."
        )


def _box(name: str, numbers: Sequence[float]) -> Box:
    _check_name(name)
    if len(numbers) != 4:
        got = reprlib.repr(list(numbers))
        raise LayoutError(f"region {name!r}: a box is [xmin, ymin, xmax, ymax], 4 numbers; got {len(numbers)}: {got}.")
    try:
        return Box(*numbers)
    except LayoutError as error:
        raise LayoutError(f"region {name!r}: {error}") from error


def _is_one_box(boxes: object) -> bool:
    return isinstance(boxes, list) and bool(boxes) and not any(isinstance(box, list) for box in boxes)


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise LayoutError(f"the layout JSON has {reprlib.repr(key)} twice. Put all boxes of a region in one list.")
        found[key] = value
    return found


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    got = reprlib.repr(problem["input"])
    return f"the layout JSON is wrong at {reprlib.repr(where)}: {problem['msg']}, got {got}. Expected {_EXAMPLE}"


def _covered(boxes: Sequence[Box], height: int, width: int) -> Float[Tensor, "{height} {width}"]:
    """Cut the picture along all sides of the boxes: each piece is inside or outside as a whole."""
    xs = torch.tensor(sorted({side for box in boxes for side in (box.xmin, box.xmax)}), dtype=torch.float64)
    ys = torch.tensor(sorted({side for box in boxes for side in (box.ymin, box.ymax)}), dtype=torch.float64)
    pieces = _pieces_inside(boxes, xs, ys)
    return (_overlap(ys, height).mT @ pieces.double() @ _overlap(xs, width)).float()


def _pieces_inside(
    boxes: Sequence[Box], xs: Float[Tensor, "columns"], ys: Float[Tensor, "rows"]
) -> Bool[Tensor, "rows-1 columns-1"]:
    inside = torch.zeros(len(ys) - 1, len(xs) - 1, dtype=torch.bool)
    for box in boxes:
        across = (xs[:-1] >= box.xmin) & (xs[1:] <= box.xmax)
        down = (ys[:-1] >= box.ymin) & (ys[1:] <= box.ymax)
        inside |= down[:, None] & across
    return inside


def _overlap(cuts: Float[Tensor, "cuts"], cells: int) -> Float[Tensor, "cuts-1 {cells}"]:
    """Length that each piece of a side has in each cell, in cells."""
    edges = cuts[:, None] * cells - torch.arange(cells)  # of the pieces, from each cell's start
    return edges.clamp(0, 1).diff(dim=0)
