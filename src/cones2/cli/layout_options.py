"""Options that place subjects, and how a layout acts."""

from pathlib import Path
from typing import Annotated

import typer

ACTING = "How the layout acts"
"""The panel of what a layout does."""
PLACES = "Places of subjects, in 0..1 from the picture's top left corner"
"""The panel of what makes a layout."""

BoxTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--box", help="Where a subject belongs; shapes of one name unite.", metavar="NAME=XMIN,YMIN,XMAX,YMAX"
    ),
]
PolygonTexts = Annotated[
    list[str] | None,
    typer.Option("--polygon", help="A polygon, point by point.", metavar="NAME=X,Y,X,Y,...", rich_help_panel=PLACES),
]
MaskTexts = Annotated[
    list[str] | None,
    typer.Option("--mask", help="A greyscale picture, white inside.", metavar="NAME=FILE", rich_help_panel=PLACES),
]
ZTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--z", help="Who is on top: the greater; 0 where none is given.", metavar="NAME=N", rich_help_panel=PLACES
    ),
]
FeatherTexts = Annotated[
    list[str] | None,
    typer.Option("--feather", help="Width of a region's soft edge.", metavar="NAME=X", rich_help_panel=PLACES),
]
WeightTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--region-weight", help="Multiplies how strongly a region draws.", metavar="NAME=X", rich_help_panel=PLACES
    ),
]
PlaceTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--place", help="A place in words: left, top right, behind, rest.", metavar="NAME=WORDS", rich_help_panel=PLACES
    ),
]
Auto = Annotated[
    bool,
    typer.Option("--auto-layout", help="Place the other subjects by what the prompt says.", rich_help_panel=PLACES),
]
SaveLayout = Annotated[
    Path | None,
    typer.Option("--save-layout", help="Write the layout to a JSON file.", metavar="FILE", rich_help_panel=PLACES),
]
LayoutFile = Annotated[Path | None, typer.Option("--layout", help="Regions from a JSON file.", metavar="FILE")]

Effect = Annotated[
    str | None,
    typer.Option(
        "--layout-effect", help="strengthen or weaken alone, or both.", metavar="NAME", show_default="both",
        rich_help_panel=ACTING,
    ),
]  # fmt: skip
GuidedSteps = Annotated[
    int | None,
    typer.Option("--guided-steps", help="Act in the first N steps only.", metavar="N", rich_help_panel=ACTING),
]
Levels = Annotated[
    str | None,
    typer.Option(
        "--layout-levels", help="Act on these of the UNet's grids, 0 the finest.", metavar="N,N,...",
        rich_help_panel=ACTING,
    ),
]  # fmt: skip
