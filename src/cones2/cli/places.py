"""Options that place subjects, read into a layout."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cones2.arranging.automatic import auto_layout, place_subjects
from cones2.arranging.words import read_place
from cones2.cli.options import number, pairs, unique, whole_number
from cones2.cli.outputs import check_file
from cones2.errors import LayoutError, SettingsError
from cones2.files import make_folder
from cones2.layout.masks import Mask
from cones2.layout.region import Region, box_of, check_name, naming
from cones2.layout.regions import Layout
from cones2.layout.shapes import Polygon, Shape


@dataclass(frozen=True)
class Places:
    """Texts of the options that place subjects."""

    boxes: Sequence[str] = ()
    polygons: Sequence[str] = ()
    masks: Sequence[str] = ()
    heights: Sequence[str] = ()
    feathers: Sequence[str] = ()
    weights: Sequence[str] = ()
    words: Sequence[str] = ()
    file: Path | None = None

    @property
    def given(self) -> dict[str, object]:
        """What each option says."""
        return {
            "--box": self.boxes,
            "--polygon": self.polygons,
            "--mask": self.masks,
            "--z": self.heights,
            "--feather": self.feathers,
            "--region-weight": self.weights,
            "--place": self.words,
            "--layout": self.file,
        }

    def read(
        self, automatic: str | None = None, *, aspect: float = 1.0, recorded: Layout | None = None
    ) -> Layout | None:
        """Make the layout; None where nothing is placed.

        Args:
            automatic: a prompt whose other subjects are placed too; None places no others.
            aspect: the picture's width by its height, for places that several share.
            recorded: a picture's layout; what is given replaces its regions of the same names.

        Raises:
            SettingsError: a text can't be read, or a number is for no region.
            LayoutError: a shape makes no sense, a file is no layout or mask, or file and options both place a subject.
        """
        regions = self._drawn()
        if self.file is not None:
            loaded = Layout.load(self.file).regions
            for name in regions.keys() & loaded.keys():
                raise LayoutError(f"options and {self.file} both place {name!r}: leave one out.")
            regions = {**loaded, **regions}
        places = self._places(regions)
        if automatic is not None:
            regions = dict(auto_layout(automatic, places=places, given=Layout(regions), aspect=aspect).regions)
        else:
            given = {name: read_place(words) for name, words in places.items()}
            regions = dict(place_subjects(given, given=Layout(regions), aspect=aspect).regions)
        if recorded is not None:
            regions = {**recorded.regions, **regions}
        self._adjust(regions)
        return Layout(regions) if regions else None

    def _places(self, regions: Mapping[str, Region]) -> dict[str, str]:
        places = unique("--place", self.words, example="rex=left")
        for name in places.keys() & regions.keys():
            raise LayoutError(f"--place and another region both place {name!r}: leave one out.")
        for name in places:
            check_name(name)
        return places

    def _drawn(self) -> dict[str, Region]:
        shapes: dict[str, list[Shape]] = {}
        for name, shape in self._shapes():
            shapes.setdefault(name, []).append(shape)
        return {name: Region(tuple(found)) for name, found in shapes.items()}

    def _shapes(self) -> Iterator[tuple[str, Shape]]:
        for name, text in pairs("--box", self.boxes, example="rex=0.05,0.25,0.5,0.95"):
            sides = _numbers(f"--box {name}", text)
            with naming(name):
                yield name, box_of(sides)
        for name, text in pairs("--polygon", self.polygons, example="rex=0.1,0.9,0.3,0.2,0.5,0.9"):
            numbers = _numbers(f"--polygon {name}", text)
            if len(numbers) % 2:
                raise SettingsError(f"--polygon {name}: {len(numbers)} numbers are no points: expected X,Y,X,Y,...")
            with naming(name):
                yield name, Polygon(tuple(zip(numbers[::2], numbers[1::2], strict=True)))
        for name, text in pairs("--mask", self.masks, example="rex=rex.png"):
            with naming(name):
                yield name, Mask.load(Path(text))

    def _adjust(self, regions: dict[str, Region]) -> None:
        """Set z, feather and weight of regions, wherever they come from."""
        for name, text in _of(regions, "--z", self.heights, example="hat=1"):
            with naming(name):
                regions[name] = replace(regions[name], z=whole_number("--z", text))
        for name, text in _of(regions, "--feather", self.feathers, example="rex=0.05"):
            with naming(name):
                regions[name] = replace(regions[name], feather=number("--feather", text))
        for name, text in _of(regions, "--region-weight", self.weights, example="rex=1.5"):
            with naming(name):
                regions[name] = replace(regions[name], weight=number("--region-weight", text))


def read_levels(text: str | None) -> tuple[int, ...] | None:
    """Read `--layout-levels`.

    Raises:
        SettingsError: a part is no whole number.
    """
    return None if text is None else tuple(whole_number("--layout-levels", part) for part in text.split(","))


def write_layout(layout: Layout | None, path: Path) -> None:
    """Write a layout where nothing but an earlier one is lost.

    Raises:
        SettingsError: there is no layout.
        OutputError: it can't be written, or something else is there.
    """
    if layout is None:
        raise SettingsError("--save-layout has nothing to save: give places too, or --auto-layout.")
    check_file(path, suffix=".json", read=Layout.load)
    make_folder(path.parent)
    layout.save(path)


def _numbers(option: str, text: str) -> list[float]:
    return [number(option, part) for part in text.split(",")]


def _of(regions: dict[str, Region], option: str, texts: Iterable[str], *, example: str) -> Iterator[tuple[str, str]]:
    for name, text in unique(option, texts, example=example).items():
        if name not in regions:
            known = ", ".join(regions) or "none"
            raise SettingsError(f"{option} names {name!r}, which has no region; those that have: {known}.")
        yield name, text
