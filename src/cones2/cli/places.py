"""Options that place subjects, read into a layout."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from cones2.arranging.automatic import auto_layout, place_subjects
from cones2.cli.options import number, pairs, unique, whole_number
from cones2.cli.outputs import check_file
from cones2.errors import LayoutError, SettingsError
from cones2.files import expanded, make_folder
from cones2.layout.masks import Mask
from cones2.layout.region import Region, box_of, check_name, naming
from cones2.layout.regions import Layout
from cones2.layout.shapes import Polygon, Shape


@dataclass(frozen=True, kw_only=True)
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

    @classmethod
    def of(cls, *, file: Path | None, **texts: Sequence[str] | None) -> "Places":
        """Take options as the command line has them: None where one is not given."""
        return cls(file=file, **{name: given or () for name, given in texts.items()})

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
            aspect: the picture's width by its height, for places that several share; nothing is checked by it.
            recorded: a picture's layout. The file's regions replace those of the same names, options both; a shape
                leaves z, feather and weight of the file's region as they are.

        Raises:
            SettingsError: a text can't be read, or a number is for no region.
            LayoutError: a shape makes no sense, a file is no layout or mask, or two options place a subject.
        """
        places = self._places(self._drawn)
        before = {**(recorded.regions if recorded else {}), **self._loaded}
        kept = {name: region for name, region in before.items() if name not in places}
        given = Layout({**kept, **self._drawn})
        if automatic is not None:
            regions = dict(auto_layout(automatic, places=places, given=given, aspect=aspect).regions)
        else:
            regions = dict(place_subjects(places, given=given, aspect=aspect).regions)
        self._adjust(regions)
        return Layout(regions) if regions else None

    def _places(self, regions: Mapping[str, Region]) -> dict[str, str]:
        places = unique("--place", self.words, example="rex=left")
        for name in places.keys() & regions.keys():
            raise LayoutError(f"--place and another option both place {name!r}: leave one out.")
        for name in places:
            check_name(name)
        return places

    @cached_property
    def _drawn(self) -> dict[str, Region]:
        """The regions of shapes, read once."""
        shapes: dict[str, list[Shape]] = {}
        for name, shape in self._shapes():
            shapes.setdefault(name, []).append(shape)
        return {
            name: replace(self._loaded[name], shapes=tuple(found)) if name in self._loaded else Region(tuple(found))
            for name, found in shapes.items()
        }

    @cached_property
    def _loaded(self) -> Mapping[str, Region]:
        """The file's regions, read once."""
        return Layout.load(self.file).regions if self.file is not None else {}

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
                yield name, Mask.load(expanded(text))

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


def check_acting(layout: Layout | None, options: Mapping[str, object]) -> None:
    """Check that options which say how a layout acts have one; None is not given.

    Raises:
        SettingsError: one is given without a layout.
    """
    for option, value in options.items():
        if layout is None and value is not None:
            raise SettingsError(f"{option} says how a layout acts, and there is none: give places, or leave it out.")


def check_saving(layout: Layout | None, path: Path) -> None:
    """Check that there is a layout to write, and that nothing but an earlier one is lost.

    Raises:
        SettingsError: there is no layout.
        OutputError: it can't be written, or something else is there.
    """
    if layout is None:
        raise SettingsError("--save-layout has nothing to save: give places too, or --auto-layout.")
    check_file(path, suffix=".json", read=Layout.load)


def write_layout(layout: Layout, path: Path) -> None:
    """Write a layout; raises as `check_saving` does."""
    check_saving(layout, path)
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
