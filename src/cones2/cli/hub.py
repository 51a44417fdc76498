"""`cones2 push` and `cones2 pull`: subjects to the Hugging Face Hub, and from it."""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import print_json, say
from cones2.cli.options import Json, Library, Replace
from cones2.cli.progress import waiting

RepoId = Annotated[str, typer.Argument(help="The repository.", metavar="OWNER/NAME")]


def push(
    subject: Annotated[str, typer.Argument(help="A subject of your library, or a file.", metavar="NAME_OR_FILE")],
    repo_id: RepoId,
    license_: Annotated[str, typer.Option("--license", help="That you give it, such as cc-by-4.0.", metavar="ID")],
    sample: Annotated[Path | None, typer.Option(help="A picture of it, drawn by compose.", metavar="PICTURE")] = None,
    base_model: Annotated[
        str | None, typer.Option(help="What it fits; default: as its file says.", metavar="OWNER/NAME")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="For your eyes only, if it is new.")] = False,
    draft: Annotated[
        Path | None, typer.Option(help="Write all of it to this folder, and bring nothing there.", metavar="DIR")
    ] = None,
    library: Library = None,
    as_json: Json = False,
) -> None:
    """Bring a subject to the Hub, with a model card. Its photos stay here; their hashes are in its file.

    Example: cones2 push rex ann/rex --license cc-by-4.0 --sample beach.png
    """
    with waiting("starting"):
        from huggingface_hub import HfApi

        from cones2.checking import is_name
        from cones2.cli.orders import read_residual
        from cones2.hub import Publication, name_for, push
        from cones2.library import Library

        residual = read_residual(subject, Library.open(library))
        name = subject if is_name(subject) else name_for(repo_id)
        publication = Publication(name, residual, license_, base_model=base_model, sample=sample)
    if draft is not None:
        publication.write(draft, repo_id)
        where = str(draft)
    else:
        with waiting(f"bringing {name} to {repo_id}"):
            where = push(publication, repo_id, api=HfApi(library_name="cones2"), private=private)
    if as_json:
        print_json({"name": name, "sha256": residual.sha256, "where": where})
    else:
        say(f"{name}: {where}")


def pull(
    repo_id: RepoId,
    name: Annotated[
        str | None, typer.Option(help="Its name in your library; default: the repository's.", metavar="NAME")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit.", metavar="REVISION")] = None,
    replace: Replace = False,
    library: Library = None,
    as_json: Json = False,
) -> None:
    """Get a subject from the Hub into your library; it is checked before it is kept.

    Example: cones2 pull ann/rex
    """
    with waiting(f"getting {repo_id}"):
        from huggingface_hub import HfApi

        from cones2.hub import name_for, pull
        from cones2.library import Library, check_name

        name = check_name(name) if name else name_for(repo_id)
        residual = pull(repo_id, api=HfApi(library_name="cones2"), revision=revision)
        path = Library.open(library).add(name, residual, replace=replace)
    if as_json:
        print_json({"name": name, "sha256": residual.sha256, "where": str(path)})
    else:
        say(f"{name}, a {residual.class_word}: {path}")
