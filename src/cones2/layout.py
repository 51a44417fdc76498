"""Layouts: which subject belongs where. Checked, read from Python values and from JSON, and written."""

import io
import json
import os
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Literal, SupportsFloat

import numpy as np
from PIL import Image
from pydantic import BaseModel, Field, ValidationError

from cones2.errors import LayoutError, first_problem
from cones2.files import expanded, is_name, name_hint, read_bounded, unique_keys, write_atomically
from cones2.shapes import WHOLE, Box, Mask, MaskFiles, Polygon, Rest, Shape, number, point_of

__all__ = ["WHOLE", "Box", "Layout", "Mask", "Polygon", "Region", "Rest"]

MAX_SHAPES = 256
MAX_REGIONS = 64
MAX_POLYGON_POINTS = 64 * 256  # in all
MAX_CHARACTERS = 1 << 20  # that are read
LARGEST_JSON = 900_000  # characters that are written, so that a picture's record has room for them
EXAMPLE = '{"version": 1, "regions": {"rex": [[0.05, 0.25, 0.5, 0.95]]}}'
_RANGES = {"z": (-100, 100), "weight": (0, 100), "feather": (0, 0.5)}
LoadMask = Callable[[str], Mask]


@dataclass(frozen=True)
class Region:
    """The union of shapes: the place of one subject.

    Where regions overlap, the one of the greatest `z` has the place; regions of equal `z` share it.

    Attributes:
        shapes: boxes, polygons and masks, mixed freely; or the rest, alone. Short forms are taken as by `Layout.of`.
        z: a whole number in -100..100; greater is nearer to the viewer.
        weight: multiplies how strongly the subject is drawn to its region (γ+ of arXiv:2305.19327, Alg. 1); 0..100.
        feather: width of the ramp that its edges become, in sides of the picture, 0..0.5; 0 is a hard edge.

    Raises:
        LayoutError: there is no shape, the rest is not alone, or a number is outside its range.
    """

    shapes: tuple[Shape, ...]
    z: int = 0
    weight: float = 1.0
    feather: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", tuple(_shape(shape) for shape in _shapes_in(self.shapes)))
        if not self.shapes:
            raise LayoutError("no shape; expected at least one box, polygon or mask.")
        if self.is_rest and len(self.shapes) > 1:
            raise LayoutError("the rest is mixed with other shapes; expected it alone.")
        for what, (lowest, highest) in _RANGES.items():
            value = number(getattr(self, what), what)
            if not lowest <= value <= highest:  # NaN is in no range
                raise LayoutError(f"{what} {value} can't be used: expected {lowest} to {highest}.")
            object.__setattr__(self, what, value)
        if self.z != int(self.z):
            raise LayoutError(f"z {self.z} can't be used: expected a whole number.")
        object.__setattr__(self, "z", int(self.z))

    def __repr__(self) -> str:
        shapes = str(self.shapes[0]) if len(self.shapes) == 1 else f"{len(self.shapes)} shapes"
        return f"Region({', '.join([shapes, *(f'{what}={value}' for what, value in self._settings.items())])})"

    @property
    def bounds(self) -> Box:
        """The smallest box around all shapes; of the rest, the whole picture."""
        boxes = np.array([astuple(shape.bounds) for shape in self.shapes])
        return Box(*boxes[:, :2].min(0), *boxes[:, 2:].max(0))

    @property
    def is_rest(self) -> bool:
        """Whether this is what the others leave."""
        return any(isinstance(shape, Rest) for shape in self.shapes)

    @property
    def _settings(self) -> dict[str, object]:
        """The numbers that are not the usual ones."""
        return {what: getattr(self, what) for what in _RANGES if getattr(self, what) != getattr(Region, what)}


@dataclass(frozen=True)
class Layout:
    """Regions by subject name; they may overlap, see `Region`.

    Raises:
        LayoutError: a name is not an identifier, or there are over 64 regions, 256 shapes, 16,384 points of polygons or
            900,000 characters of JSON.
    """

    regions: Mapping[str, Region]

    def __post_init__(self) -> None:
        regions = dict(self.regions)
        for name, region in regions.items():
            if not isinstance(name, str) or not is_name(name):
                raise LayoutError(f"{reprlib.repr(name)} can't name a region: {name_hint(str(name))}")
            if not isinstance(region, Region):
                raise LayoutError(f"region {name!r} is {reprlib.repr(region)}; expected a Region. Use Layout.of.")
        object.__setattr__(self, "regions", MappingProxyType(regions))
        shapes = [shape for region in regions.values() for shape in region.shapes]
        points = sum(len(shape.points) for shape in shapes if isinstance(shape, Polygon))
        for count, what, most in (
            (len(regions), "regions", MAX_REGIONS),
            (len(shapes), "shapes", MAX_SHAPES),
            (points, "points of polygons", MAX_POLYGON_POINTS),
        ):
            if count > most:
                raise LayoutError(f"the layout has {count} {what}; expected at most {most}. Use fewer.")
        size = 0 if all(isinstance(shape, Box | Rest) for shape in shapes) else len(self.to_json())
        if size > LARGEST_JSON:
            raise LayoutError(
                f"the layout takes {size:,} characters; expected at most {LARGEST_JSON:,}: use fewer masks."
            )

    def __repr__(self) -> str:
        return f"Layout({', '.join(f'{name}={region}' for name, region in self.regions.items())})"

    def __reduce__(self) -> tuple[type["Layout"], tuple[dict[str, Region]]]:
        """Let copies and other processes have it; a read-only mapping alone can't go there."""
        return type(self), (dict(self.regions),)

    def _repr_png_(self) -> bytes:
        """Draw the layout for a notebook."""
        from cones2.drawing import draw_layout

        content = io.BytesIO()
        draw_layout(self).save(content, format="PNG")
        return content.getvalue()

    @classmethod
    def of(cls, value: "Layout | Mapping[str, Any] | str | os.PathLike[str]") -> "Layout":
        """Return a layout, whatever describes it.

        Args:
            value: a layout; the path of a layout's file; or a mapping of subject names to four numbers, a `Box`,
                `Polygon`, `Mask` or `Rest`, a picture that is a mask, a list of any of these, a `Region`, or what
                stands in a layout's JSON.

        Raises:
            LayoutError: it is none of these, or makes no sense.

        Example:
            >>> Layout.of({"rex": (0, 0.25, 0.5, 1), "sea": "rest"})
            Layout(rex=Region(Box(0.0, 0.25, 0.5, 1.0)), sea=Region(Rest()))
        """
        if isinstance(value, Layout):
            return value
        if isinstance(value, str | os.PathLike):
            return cls.load(Path(value))
        if not isinstance(value, Mapping):
            expected = "regions by subject name, such as {'rex': (0.05, 0.25, 0.5, 0.95)}, or a path"
            raise LayoutError(f"a layout can't be {reprlib.repr(value)}: expected {expected}.")
        return cls(_regions(value, None))

    @classmethod
    def from_json(cls, text: str, *, folder: Path | None = None) -> "Layout":
        """Read `{"version": 1, "regions": {NAME: SHAPE or [SHAPE, ...] or REGION, ...}}`.

        A shape is `[xmin, ymin, xmax, ymax]`, `{"polygon": [[x, y], ...]}`, `{"mask": FILE}`, a file in `folder` or
        below it, `{"mask": {"png": BASE64}}`, or `"rest"`. A region is `{"shapes": [...], "z", "weight", "feather"}`.
        Anything else is a `LayoutError`.
        """
        if len(text) > MAX_CHARACTERS:
            raise LayoutError(f"the layout JSON is over {MAX_CHARACTERS} characters long. Expected less: {EXAMPLE}")
        try:
            data = json.loads(text, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise LayoutError(f"the layout is not JSON that can be read: {error}. Expected {EXAMPLE}") from error
        try:
            regions = _Document.model_validate(data).regions
        except ValidationError as error:
            raise LayoutError(f"the layout JSON is wrong {_first_problem(error)}. Expected {EXAMPLE}") from error
        return cls(_regions(regions, folder))

    def to_json(self) -> str:
        """Return what `from_json` reads, a line for each region, masks embedded."""
        lines = (f"    {json.dumps(name)}: {json.dumps(_written(region))}" for name, region in self.regions.items())
        return '{\n  "version": 1,\n  "regions": {\n' + ",\n".join(lines) + "\n  }\n}\n"

    @classmethod
    def load(cls, path: Path | str) -> "Layout":
        """Read a layout's JSON file, and the mask files that it names, beside it or below."""
        path = expanded(path)
        content = read_bounded(path, limit=MAX_CHARACTERS, error=LayoutError)
        try:
            return cls.from_json(content.decode("utf-8-sig"), folder=path.parent)
        except (UnicodeDecodeError, LayoutError) as error:
            raise LayoutError(f"{path}: {error}") from error

    def save(self, path: Path | str) -> None:
        """Write a layout's JSON file, masks and all."""
        write_atomically(expanded(path), self.to_json().encode())

    @property
    def names(self) -> tuple[str, ...]:
        """The subjects that have a region, in the order given."""
        return tuple(self.regions)


class _Document(BaseModel, extra="forbid", strict=True):
    version: Literal[1]
    regions: dict[str, Any]


class _RegionForm(BaseModel, extra="forbid", strict=True):
    shapes: list[Any]
    z: int = Region.z
    weight: float = Region.weight
    feather: float = Region.feather


class _ShapeForm(BaseModel, extra="forbid", strict=True):
    polygon: list[Any] = []
    mask: str | Annotated[dict[Literal["png"], str], Field(min_length=1)] | None = None


def _regions(values: Mapping[str, object], folder: Path | None) -> dict[str, Region]:
    files = MaskFiles()
    found: dict[str, Region] = {}
    for name, value in values.items():
        try:
            found[name] = _region(value, lambda text: files.load(_mask_path(text, folder)))
        except ValidationError as error:
            raise LayoutError(f"region {name!r} is wrong {_first_problem(error)}.") from error
        except LayoutError as error:
            raise LayoutError(f"region {name!r}: {error}") from error
    return found


def _region(value: object, load_mask: LoadMask) -> Region:
    if isinstance(value, Region):
        return value
    if isinstance(value, Mapping) and not value.keys() & {"polygon", "mask"}:
        form = _RegionForm.model_validate(value)
        shapes = tuple(_shape(shape, load_mask) for shape in form.shapes)
        return Region(shapes, form.z, form.weight, form.feather)
    return Region(tuple(_shape(shape, load_mask) for shape in _shapes_in(value)))


def _shapes_in(value: object) -> list[Any]:
    """Return a list's shapes; what is not a list, or holds numbers, is one shape."""
    items = _items(value)
    is_one = items is None or (items and isinstance(items[0], SupportsFloat) and _items(items[0]) is None)
    return [value] if is_one or items is None else items


def _items(value: object) -> list[Any] | None:
    to_list = getattr(value, "tolist", None)  # of an array or a tensor
    value = to_list() if callable(to_list) else value
    return list(value) if isinstance(value, list | tuple) else None


def _shape(value: object, load_mask: LoadMask | None = None) -> Shape:
    if isinstance(value, Shape):
        return value
    if isinstance(value, Image.Image):
        return Mask.from_image(value)
    items = _items(value)
    if items is not None and len(items) == 4:
        return Box(*(number(side, "a box's side") for side in items))
    if value == "rest":
        return Rest()
    if isinstance(value, Mapping):
        form = _ShapeForm.model_validate(value)
        if (form.mask is None) == (not form.polygon):
            raise LayoutError("a shape is a polygon or a mask, and not both: write two shapes.")
        if form.mask is None:
            return Polygon(tuple(map(point_of, form.polygon)))
        load = load_mask or (lambda name: Mask.load(_mask_path(name, None)))
        return load(form.mask) if isinstance(form.mask, str) else Mask.from_base64(form.mask["png"])
    raise LayoutError(f"{reprlib.repr(value)} is not a shape: expected a box of 4 numbers, polygon, mask or 'rest'.")


def _mask_path(name: str, folder: Path | None) -> Path:
    path = PurePosixPath(name)
    if folder is None or path.is_absolute() or ".." in path.parts or {"\\", ":"} & set(name):
        raise LayoutError(f"the mask {reprlib.repr(name)} can't be used: expected a file in the layout's folder.")
    return folder / path


def _first_problem(error: ValidationError) -> str:
    problem = first_problem(error)
    return f"at {problem.place!r}: {problem.message}, got {problem.got}"


def _written(region: Region) -> object:
    shapes = [_shape_written(shape) for shape in region.shapes]
    return {"shapes": shapes, **region._settings} if region._settings else shapes


def _shape_written(shape: Shape) -> object:
    match shape:
        case Box():
            return astuple(shape)
        case Polygon():
            return {"polygon": shape.points}
        case Mask():
            return {"mask": {"png": shape.as_base64}}
    return "rest"
