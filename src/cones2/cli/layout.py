"""`cones2 layout`: a layout file made, changed or drawn."""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import say
from cones2.cli.layout_options import (
    BoxTexts,
    FeatherTexts,
    MaskTexts,
    PlaceTexts,
    PolygonTexts,
    WeightTexts,
    ZTexts,
)
from cones2.cli.progress import waiting


def layout(
    out: Annotated[Path, typer.Option(help="A .json file to write, or a .png file to draw.", metavar="FILE")],
    file: Annotated[Path | None, typer.Argument(help="A layout's JSON file to start from.", metavar="FILE")] = None,
    auto: Annotated[
        str | None, typer.Option(help="Place all subjects of a prompt by what it says.", metavar="PROMPT")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Place so many, called subject1, subject2...", min=1, max=64, metavar="N")
    ] = None,
    box: BoxTexts = None,
    polygon: PolygonTexts = None,
    mask: MaskTexts = None,
    place: PlaceTexts = None,
    z: ZTexts = None,
    feather: FeatherTexts = None,
    region_weight: WeightTexts = None,
    width: Annotated[int, typer.Option(help="Of the picture, in pixels.", min=1, metavar="W")] = 512,
    height: Annotated[int, typer.Option(help="Of the picture, in pixels.", min=1, metavar="H")] = 512,
) -> None:
    """Make a layout from words, shapes or a prompt; change one; or draw one, to see where subjects will stand.

    Example: cones2 layout beach.json --out preview.png
    """
    with waiting("starting"):
        import json

        from cones2.arranging.relations import warn_of_contradictions
        from cones2.cli.outputs import check_file
        from cones2.cli.places import Places, write_layout
        from cones2.errors import SettingsError
        from cones2.files import make_folder
        from cones2.layout.drawing import draw_layout
        from cones2.layout.regions import Layout
        from cones2.picture import read_record, write_picture
        from cones2.prompts import parse_prompt, placeholders

    if auto is not None and count is not None:
        raise SettingsError("--auto and --count both say whom to place: leave one out.")
    if count is not None:
        auto = " ".join(f"{{subject{number}}}" for number in range(1, count + 1))
    shapes = {"boxes": box, "polygons": polygon, "masks": mask, "words": place}
    places = Places.of(**shapes, heights=z, feathers=feather, weights=region_weight, file=file)
    made = places.read(auto, aspect=width / height)
    if made is None and auto is not None:
        raise SettingsError(f"{auto[:100]!r} names nobody to place: put names in braces, as in 'a {{rex}}'.")
    if made is None and file is None:
        raise SettingsError("nothing to lay out: give a layout's file, --auto, --count, or a place.")
    if auto is not None:
        warn_of_contradictions(parse_prompt(auto, {name: name for name in placeholders(auto)}), made)
    made = made or Layout({})
    if out.suffix.lower() == ".json":
        write_layout(made, out)
    else:
        check_file(out, suffix=".png", read=read_record)
        make_folder(out.parent)
        drawn = draw_layout(made, width=width, height=height)
        write_picture(out, drawn, {"layout": json.loads(made.to_json())})
    say(f"{out}: {', '.join(made.names) or 'no subjects'}.")
