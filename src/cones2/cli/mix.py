"""`cones2 mix`: sums of residuals, and what lies between two."""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import print_json, say
from cones2.cli.options import Json, Library, Replace
from cones2.cli.progress import waiting


def mix(
    first: Annotated[str, typer.Argument(help="A subject of your library, or a file.", metavar="SUBJECT")],
    second: Annotated[str, typer.Argument(help="Another of the same class word and model.", metavar="SUBJECT")],
    out: Annotated[Path, typer.Option(help="The residual to write: NAME.safetensors.", metavar="FILE")],
    weight: Annotated[
        float | None,
        typer.Option(help="Of the second: 0 is the first alone, 1 the second.", metavar="X", show_default="their sum"),
    ] = None,
    replace: Replace = False,
    library: Library = None,
    as_json: Json = False,
) -> None:
    """Make one subject of two: what lies between them, or both at once.

    Example: cones2 mix rex fido --weight 0.3 --out mixed.safetensors
    """
    with waiting("starting"):
        from cones2.cli.orders import read_residual
        from cones2.cli.outputs import check_residual
        from cones2.files import make_folder
        from cones2.library import Library

        shelf = Library.open(library)
        one, other = read_residual(first, shelf), read_residual(second, shelf)
        mixed = one + other if weight is None else one.mix(other, weight)
        check_residual(out, replace=replace)
    make_folder(out.parent)
    mixed.save(out)
    if as_json:
        print_json({"residual": str(out), "sha256": mixed.sha256, "class_word": mixed.class_word, "weight": weight})
    else:
        made = "the sum" if weight is None else f"{1 - weight:g} and {weight:g}"
        say(f"{out}: {mixed.class_word!r}, {made} of {first} and {second}.")
