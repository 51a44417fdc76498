"""`cones2 layout`: a layout file as a drawing."""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import say


def layout(
    file: Annotated[Path, typer.Argument(help="The layout's JSON file.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="The drawing to write, a .png file.", metavar="FILE")],
) -> None:
    """Draw the boxes of a layout file, to see where subjects will stand.

    Example: cones2 layout beach.json --out preview.png
    """
    import json

    from cones2.cli.outputs import check_file
    from cones2.files import make_folder
    from cones2.layout.drawing import draw_layout
    from cones2.layout.regions import Layout
    from cones2.picture import read_record, write_picture

    loaded = Layout.load(file)
    check_file(out, suffix=".png", read=read_record)
    make_folder(out.parent)
    write_picture(out, draw_layout(loaded), {"layout": json.loads(loaded.to_json())})
    say(f"{out}: {', '.join(loaded.names) or 'no subjects'}.")
