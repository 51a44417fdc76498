"""`cones2 layout`: a layout made, changed or drawn; and the options that place subjects, also in other commands."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cones2.cli import options as opt
from cones2.cli.console import say, waiting
from cones2.cli.options import number, option, pairs, unique
from cones2.errors import LayoutError, SettingsError

if TYPE_CHECKING:
    from cones2.layout import Layout, Region


def layout(
    out: Annotated[Path, option("--out -o", "A .json file to write, or a .png to draw.", "FILE")],
    file: Annotated[Path | None, typer.Argument(help="A layout's JSON file to start from.", metavar="FILE")] = None,
    auto: Annotated[str | None, option("--auto", "Place all subjects of a prompt, side by side.", "PROMPT")] = None,
    count: Annotated[
        int | None, option("--count -n", "Place so many, called subject1, subject2...", "N", min=1, max=64)
    ] = None,
    place: opt.PlaceTexts = None,
    box: opt.BoxTexts = None,
    plain: Annotated[opt.Texts, option("--plain", "What a subject is, for the shape of its box.", "NAME=WORD")] = None,
    size: Annotated[str, option("--size", "Of the picture, in pixels.", "WxH")] = "512x512",
    polygon: opt.PolygonTexts = None,
    mask: opt.MaskTexts = None,
    z: opt.ZTexts = None,
    feather: opt.FeatherTexts = None,
    region_weight: opt.WeightTexts = None,
    replace: opt.Replace = False,
) -> None:
    """Make a layout from words, shapes or a prompt; change one; or draw one, to see where subjects will stand.

    Example: cones2 layout beach.json -o preview.png
    """
    if auto is not None and count is not None:
        raise SettingsError("--auto and --count both say what to place: leave one out.")
    with waiting("starting"):
        import json

        from cones2.cli.outputs import check_new
        from cones2.drawing import draw_layout
        from cones2.files import make_folder
        from cones2.layout import Layout
        from cones2.png import write_picture
        from cones2.prompts import placeholders

        width, height = read_size(size)
        names = tuple(placeholders(auto or "")) if count is None else tuple(f"subject{n}" for n in range(1, count + 1))
        if auto is not None and not names:
            raise SettingsError(f"{auto[:100]!r} names no subject to place: put names in braces, as in 'a {{rex}}'.")
        places = Places(box, polygon, mask, place, z, feather, region_weight, file)
        words = {name: name for name in names} | unique("--plain", plain, example="rex=dog")
        made = places.read(class_words=words, aspect=width / height, others=names)
        if made is None and file is None:
            raise SettingsError("nothing to lay out: give a layout's file, --auto, --count, or a place.")
        made = made or Layout({})
        check_new(out, suffix=".json" if out.suffix.lower() == ".json" else ".png", replace=replace)
        make_folder(out.parent)
        if out.suffix.lower() == ".json":
            made.save(out)
        else:
            write_picture(out, draw_layout(made, width=width, height=height), {"layout": json.loads(made.to_json())})
    say(f"{out}: {', '.join(made.names) or 'no subjects'}.")


def read_size(text: str, *, multiple: int = 1) -> tuple[int, int]:
    """Read `--size`: width and height in pixels."""
    sides = re.fullmatch(r"\s*(\d{1,5})\s*[xX\N{MULTIPLICATION SIGN}]\s*(\d{1,5})\s*", text)
    width, height = (int(side) for side in sides.groups()) if sides else (0, 0)
    if not (width and height) or width % multiple or height % multiple:
        of = "" if multiple == 1 else f" of multiples of {multiple}"
        raise SettingsError(f"--size {text!r} can't be used: expected WIDTHxHEIGHT{of}, such as 512x768.")
    return width, height


@dataclass(frozen=True)
class Places:
    """Texts of the options that place subjects, as the command line has them."""

    boxes: Sequence[str] | None = None
    polygons: Sequence[str] | None = None
    masks: Sequence[str] | None = None
    words: Sequence[str] | None = None
    heights: Sequence[str] | None = None
    feathers: Sequence[str] | None = None
    weights: Sequence[str] | None = None
    file: Path | None = None

    def read(
        self,
        *,
        class_words: Mapping[str, str],
        aspect: float = 1.0,
        others: Iterable[str] = (),
        recorded: "Layout | None" = None,
    ) -> "Layout | None":
        """Make the layout; None where nothing is placed.

        `recorded` is a picture's layout. The file's regions replace those of the same names, options both; a shape
        leaves z, feather and weight of the file's region as they are.
        """
        from cones2.layout import Layout
        from cones2.places import auto_layout, place_layout

        loaded = Layout.load(self.file).regions if self.file is not None else {}
        drawn: dict[str, Region] = dict(Layout.of(self._shapes()).regions)
        for name in drawn.keys() & loaded.keys():
            drawn[name] = replace(loaded[name], shapes=drawn[name].shapes)
        words = unique("--place", self.words, example="rex=left")
        for name in words.keys() & drawn.keys():
            raise LayoutError(f"--place and another option both place {name!r}: leave one out.")
        before = {**(recorded.regions if recorded else {}), **loaded, **drawn}
        given = Layout({name: region for name, region in before.items() if name not in words})
        placed = place_layout(words, given, class_words=class_words, aspect=aspect)
        placed = auto_layout(tuple(others), class_words, given=placed, aspect=aspect)
        regions = dict(placed.regions)
        self._adjust(regions)
        return Layout(regions) if regions else None

    def _shapes(self) -> dict[str, list[Any]]:
        from cones2.shapes import MaskFiles

        files = MaskFiles()
        shapes: dict[str, list[Any]] = {}
        for name, text in pairs("--box", self.boxes, example="rex=0.05,0.25,0.5,0.95"):
            shapes.setdefault(name, []).append(_numbers(f"--box {name}", text))
        for name, text in pairs("--polygon", self.polygons, example="rex=0.1,0.9,0.3,0.2,0.5,0.9"):
            numbers = _numbers(f"--polygon {name}", text)
            points = [list(point) for point in zip(numbers[::2], numbers[1::2], strict=False)]
            if len(numbers) % 2:
                raise SettingsError(f"--polygon {name}: {len(numbers)} numbers are no points: expected X,Y,X,Y,...")
            shapes.setdefault(name, []).append({"polygon": points})
        for name, text in pairs("--mask", self.masks, example="rex=rex.png"):
            shapes.setdefault(name, []).append(files.load(Path(text)))
        return shapes

    def _adjust(self, regions: dict[str, "Region"]) -> None:
        """Set z, feather and weight of regions, wherever they come from."""
        for typed, field, texts, example in (
            ("--z", "z", self.heights, "hat=1"),
            ("--feather", "feather", self.feathers, "rex=0.05"),
            ("--region-weight", "weight", self.weights, "rex=1.5"),
        ):
            for name, text in unique(typed, texts, example=example).items():
                if name not in regions:
                    known = ", ".join(regions) or "none"
                    raise SettingsError(f"{typed} names {name!r}, which has no region; those that have: {known}.")
                value = number(f"{typed} {name}", text, int if field == "z" else float)
                regions[name] = replace(regions[name], **{field: value})


def _numbers(option: str, text: str) -> list[float]:
    return [number(option, part) for part in text.split(",")]
