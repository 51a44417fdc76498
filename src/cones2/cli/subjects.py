"""`cones2 subjects`: the library, a folder of residuals by name."""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import print_json, print_rows, print_table, say
from cones2.cli.options import Json, Library, Replace
from cones2.cli.progress import waiting

Name = Annotated[str, typer.Argument(help="Of the subject.", metavar="NAME")]

app = typer.Typer(
    name="subjects",
    help="Keep your subjects by name: 'compose --subject rex' finds them without a path.",
    no_args_is_help=True,
)


@app.command(name="list")
def list_subjects(library: Library = None, as_json: Json = False) -> None:
    """List all subjects; a file that can't be used is listed with what is wrong with it.

    Example: cones2 subjects list
    """
    with waiting("starting"):
        from cones2.library import Library

    shelf = Library.open(library)
    entries = list(shelf.entries())
    if as_json:
        print_json({"library": str(shelf.folder), "subjects": [entry.describe() for entry in entries]})
        return
    rows = [
        (
            entry.name,
            entry.residual.class_word if entry.residual else "",
            entry.residual.encoder.name if entry.residual else "",
            f"broken: {entry.problem}" if entry.problem else "",
        )
        for entry in entries
    ]
    print_rows(str(shelf.folder), ("subject", "class word", "learned on", ""), rows)


@app.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="Its residual.", metavar="FILE")],
    replace: Replace = False,
    library: Library = None,
) -> None:
    """Copy a residual into the library under a name.

    Example: cones2 subjects add rex rex.safetensors
    """
    with waiting("starting"):
        from cones2.library import Library
        from cones2.residual.residual import Residual

    say(f"{Library.open(library).add(name, Residual.load(file), replace=replace)}: added.")


@app.command()
def remove(name: Name, library: Library = None) -> None:
    """Delete a subject from the library.

    Example: cones2 subjects remove rex
    """
    with waiting("starting"):
        from cones2.library import Library

    shelf = Library.open(library)
    shelf.remove(name)
    say(f"{name}: removed from {shelf.folder}.")


@app.command()
def show(name: Name, library: Library = None, as_json: Json = False) -> None:
    """Tell what a subject of the library is, what it fits, and how it was learned.

    Example: cones2 subjects show rex
    """
    with waiting("starting"):
        from cones2.cli.descriptions import describe, rows
        from cones2.library import Library

    shelf = Library.open(library)
    shelf.load(name)
    description = describe(shelf.path_of(name))
    if as_json:
        print_json(description)
    else:
        print_table(name, rows(description))
