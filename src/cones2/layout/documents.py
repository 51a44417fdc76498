"""Layouts as JSON: read with suspicion, written in one form.

Version 1 holds lists of boxes by name; version 2 also other shapes, and a region's z, weight and feather. What version
1 can say is written as version 1.
"""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError, field_validator

from cones2.checking import first_problem
from cones2.errors import LayoutError
from cones2.layout.box import Box
from cones2.layout.masks import Mask
from cones2.layout.region import Region, box_of, naming
from cones2.layout.shapes import Polygon, Rest, Shape

MAX_CHARACTERS = 1 << 20
EXAMPLE = '{"version": 1, "regions": {"rex": [[0.05, 0.25, 0.5, 0.95]]}}'


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Boxes(_Strict):
    version: Literal[1, 2]
    regions: dict[str, list[list[float]]]

    @field_validator("regions", mode="before")
    @classmethod
    def _list_single_boxes(cls, regions: object) -> object:
        if not isinstance(regions, dict):
            return regions
        return {name: [boxes] if _is_one_box(boxes) else boxes for name, boxes in regions.items()}


class _PolygonForm(_Strict):
    polygon: list[list[float]]


class _Embedded(_Strict):
    png: str


class _MaskForm(_Strict):
    mask: str | _Embedded


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "word"
    if isinstance(value, dict):
        return "mask" if "mask" in value else "polygon"
    return "box"


_ShapeForm = Annotated[
    Annotated[list[float], Tag("box")]
    | Annotated[_PolygonForm, Tag("polygon")]
    | Annotated[_MaskForm, Tag("mask")]
    | Annotated[Literal["rest"], Tag("word")],
    Discriminator(_kind),
]


class _RegionForm(_Strict):
    shapes: list[_ShapeForm]
    z: int = 0
    weight: float = 1.0
    feather: float = 0.0


class _Shapes(_Strict):
    version: Literal[2]
    regions: dict[str, _RegionForm]

    @field_validator("regions", mode="before")
    @classmethod
    def _name_shapes(cls, regions: object) -> object:
        if not isinstance(regions, dict):
            return regions
        return {name: _with_shapes(region) for name, region in regions.items()}


def read_regions(text: str, folder: Path | None = None) -> dict[str, Region]:
    """Read a layout's JSON.

    Args:
        text: the JSON.
        folder: where mask files are, for a layout that names some.

    Raises:
        LayoutError: over 1 MiB, no JSON, an unknown or missing key, a name twice, or a region that makes no sense.
    """
    data = _parse(text)
    try:
        if data.get("version") != 2:
            boxes = _Boxes.model_validate(data).regions
            return {name: _boxes(name, numbers) for name, numbers in boxes.items()}
        forms = _Shapes.model_validate(data).regions
    except ValidationError as error:
        raise LayoutError(_explain(error)) from error
    return {name: _region(name, form, folder) for name, form in forms.items()}


def write_regions(regions: Mapping[str, Region]) -> str:
    """Write what `read_regions` reads, a line for each region; masks are embedded."""
    version = 1 if all(region.is_plain for region in regions.values()) else 2
    lines = (f"    {json.dumps(name)}: {json.dumps(_written(region))}" for name, region in regions.items())
    return f'{{\n  "version": {version},\n  "regions": {{\n' + ",\n".join(lines) + "\n  }\n}\n"


def _parse(text: str) -> dict[str, Any]:
    if len(text) > MAX_CHARACTERS:
        raise LayoutError(f"the layout JSON is over {MAX_CHARACTERS} characters long. Expected a small one: {EXAMPLE}")
    try:
        data = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"the layout is not JSON that can be read: {error}. Expected {EXAMPLE}") from error
    if not isinstance(data, dict):
        raise LayoutError(f"the layout JSON holds {reprlib.repr(data)}. Expected an object: {EXAMPLE}")
    return data


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise LayoutError(f"the layout JSON has {reprlib.repr(key)} twice. Put all shapes of a region in one list.")
        found[key] = value
    return found


def _explain(error: ValidationError) -> str:
    place, message, got = first_problem(error)
    return f"the layout JSON is wrong at {place!r}: {message}, got {got}. Expected {EXAMPLE}"


def _is_one_box(boxes: object) -> bool:
    return isinstance(boxes, list) and bool(boxes) and all(isinstance(side, int | float) for side in boxes)


def _with_shapes(region: object) -> object:
    """Bring the short forms, one shape or a list of them, to the full one."""
    if isinstance(region, dict) and not region.keys() & {"polygon", "mask"}:
        return region
    return {"shapes": region if isinstance(region, list) and not _is_one_box(region) else [region]}


def _boxes(name: str, numbers: list[list[float]]) -> Region:
    with naming(name):
        return Region(tuple(box_of(sides) for sides in numbers))


def _region(name: str, form: _RegionForm, folder: Path | None) -> Region:
    with naming(name):
        return Region(tuple(_shape(shape, folder) for shape in form.shapes), form.z, form.weight, form.feather)


def _shape(form: object, folder: Path | None) -> Shape:
    if isinstance(form, _PolygonForm):
        return Polygon(tuple(_point(numbers) for numbers in form.polygon))
    if isinstance(form, _MaskForm):
        return _mask(form.mask, folder)
    return box_of(form) if isinstance(form, list) else Rest()


def _point(numbers: list[float]) -> tuple[float, float]:
    if len(numbers) != 2:
        raise LayoutError(f"a point is [x, y], 2 numbers; got {len(numbers)}: {reprlib.repr(numbers)}.")
    return numbers[0], numbers[1]


def _mask(form: str | _Embedded, folder: Path | None) -> Mask:
    if isinstance(form, _Embedded):
        return Mask.from_base64(form.png)
    path = PurePosixPath(form)
    if folder is None or path.is_absolute() or ".." in path.parts or "\\" in form:
        raise LayoutError(
            f"the mask {reprlib.repr(form)} can't be used: expected a file in the layout's folder or below it,"
            " such as rex.png. Put it there, and load the layout from its file."
        )
    return Mask.load(folder / path)


def _written(region: Region) -> object:
    shapes = [_shape_written(shape) for shape in region.shapes]
    if region.is_plain:
        return shapes
    changed = {key: getattr(region, key) for key in ("z", "weight", "feather")}
    plain = vars(Region(region.shapes))
    return {"shapes": shapes} | {key: value for key, value in changed.items() if value != plain[key]}


def _shape_written(shape: Shape) -> object:
    if isinstance(shape, Box):
        return astuple(shape)
    if isinstance(shape, Polygon):
        return {"polygon": shape.points}
    return {"mask": {"png": shape.to_base64()}} if isinstance(shape, Mask) else "rest"
