"""`cones2 inspect`: what a file is, what it fits, how it was made."""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import print_json, print_table
from cones2.cli.progress import waiting


def inspect(
    file: Annotated[Path, typer.Argument(help="A residual, or a picture that compose wrote.", metavar="FILE")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Tell what a residual or a picture is, what it fits, and how it was made.

    Example: cones2 inspect rex.safetensors
    """
    with waiting(f"reading {file.name}"):
        from cones2.cli.descriptions import describe, rows

        description = describe(file)
    if as_json:
        print_json(description)
    else:
        print_table(str(file), rows(description))
