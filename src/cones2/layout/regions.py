"""Layouts: where each subject should stand, as regions by name in a picture whose sides are 1 long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from jaxtyping import Float
from torch import Tensor

from cones2.errors import LayoutError
from cones2.files import read_bounded, write_atomically
from cones2.layout.documents import EXAMPLE, MAX_CHARACTERS, read_regions, write_regions
from cones2.layout.region import Region, box_of, check_name, naming
from cones2.layout.rendering import Canvas, Shown, draw_all, show

MAX_SHAPES = 256
LARGEST_JSON = 900_000  # so that a picture's record has room for it


@dataclass(frozen=True)
class Layout:
    """Regions by subject name; they may overlap, see `Region`.

    Example:
        >>> Layout.from_numbers({"rex": [(0.05, 0.25, 0.5, 0.95)], "cup": [(0.55, 0.5, 0.9, 0.9)]}).names
        ('rex', 'cup')

    Raises:
        LayoutError: a name is no identifier, there are more than 256 shapes, or polygons and masks take more than
            900,000 characters as JSON.
    """

    regions: Mapping[str, Region]

    def __post_init__(self) -> None:
        regions = dict(self.regions)
        for name in regions:
            check_name(name)
        count = sum(len(region.shapes) for region in regions.values())
        if count > MAX_SHAPES:
            raise LayoutError(f"the layout has {count} shapes; expected at most {MAX_SHAPES}. Use fewer, larger ones.")
        object.__setattr__(self, "regions", MappingProxyType(regions))
        if all(region.is_plain for region in regions.values()):
            return  # so few boxes are short enough
        size = len(self.to_json())
        if size > LARGEST_JSON:
            raise LayoutError(
                f"the layout takes {size:,} characters; expected at most {LARGEST_JSON:,}. Use fewer or plainer masks."
            )

    def __reduce__(self) -> tuple[type["Layout"], tuple[dict[str, Region]]]:
        """Let copies and other processes have it; a read-only mapping alone can't go there."""
        return type(self), (dict(self.regions),)

    @classmethod
    def from_numbers(cls, regions: Mapping[str, Sequence[Sequence[float]]]) -> "Layout":
        """Build a layout of boxes from `[xmin, ymin, xmax, ymax]` lists by name.

        Raises:
            LayoutError: a box makes no sense, with its region's name; or as `Layout` does.
        """
        found = {}
        for name, boxes in regions.items():
            with naming(name):
                found[name] = Region(tuple(box_of(numbers) for numbers in boxes))
        return cls(found)

    @classmethod
    def from_json(cls, text: str, *, folder: Path | None = None) -> "Layout":
        """Read `{"version": 1, "regions": {"rex": [[xmin, ymin, xmax, ymax], ...]}}`; a single box needs no outer list.

        In version 2 a shape is a box, `{"polygon": [[x, y], ...]}`, `{"mask": FILE}` with a file of `folder`,
        `{"mask": {"png": BASE64}}` or `"rest"`; and a region may be `{"shapes": [...], "z", "weight", "feather"}`.

        Raises:
            LayoutError: over 1 MiB, no JSON, an unknown or missing key, a name twice, or a region that makes no sense.
        """
        return cls(read_regions(text, folder))

    def to_json(self) -> str:
        """Write what `from_json` reads, a line for each region, masks embedded; version 1 where boxes are all."""
        return write_regions(self.regions)

    @classmethod
    def load(cls, path: Path | str) -> "Layout":
        """Read a layout's JSON file, and the mask files that it names, beside it or below.

        Raises:
            LayoutError: a file can't be read, or its content makes no sense.
        """
        path = Path(path)
        content = read_bounded(path, limit=MAX_CHARACTERS, error=LayoutError)
        try:
            return cls.from_json(content.decode("utf-8-sig"), folder=path.parent)
        except UnicodeDecodeError as error:
            raise LayoutError(f"{path} is not text in UTF-8. Expected a JSON file: {EXAMPLE}") from error
        except LayoutError as error:
            raise LayoutError(f"{path}: {error}") from error

    def save(self, path: Path | str) -> None:
        """Write a layout's JSON file, masks and all.

        Raises:
            OutputError: it can't be written.
        """
        write_atomically(Path(path), self.to_json().encode())

    @property
    def names(self) -> tuple[str, ...]:
        """The subjects that have a region, in the order given."""
        return tuple(self.regions)

    def coverage(self, name: str, height: int, width: int) -> Float[Tensor, "{height} {width}"]:
        """Return the fraction of each cell of a grid that a region covers, as if it were alone.

        Exact for boxes, overlapping ones counted once; for polygons, masks and soft edges as true as 1,024 lines.

        Raises:
            LayoutError: no region has this name.
        """
        if name not in self.regions:
            raise LayoutError(f"the layout has no region {name!r}; it has {', '.join(self.names) or 'none'}.")
        region = self.regions[name]
        regions = self.regions if region.is_rest else {name: region}
        canvas = Canvas.of(regions)
        return canvas.reduce(draw_all(canvas, regions)[name], height, width)

    def shown(self, height: int, width: int) -> dict[str, Shown]:
        """Return for each cell of a grid what can be seen of each region: all that none of greater `z` covers."""
        return show(self.regions, height, width)
