"""`cones2 subjects`, the library of residuals by name; and `mix`, `import`, `push`, `pull`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cones2.cli.console import note, print_json, print_rows, print_table, say, waiting
from cones2.cli.options import Json, Library, ModelConfig, Replace, hint, open_model, option, read_residual
from cones2.errors import LibraryError

Name = Annotated[str, typer.Argument(help="Of the subject.", metavar="NAME")]
_RepoId = Annotated[str, typer.Argument(help="The repository.", metavar="OWNER/NAME")]
_Source = Annotated[str, typer.Argument(help="A subject of your library, or a file.", metavar="SUBJECT")]
_Out = Annotated[Path, option("--out -o", "The residual to write: NAME.safetensors.", "FILE")]


def list_subjects(library: Library = None, as_json: Json = False) -> None:
    """List all subjects; a file that can't be used is listed with what is wrong with it.

    Example: cones2 subjects list
    """
    shelf = _open(library)
    from cones2.examples import EXAMPLES

    entries = list(shelf.entries())
    if as_json:
        print_json({"library": str(shelf.folder), "subjects": [entry.describe() for entry in entries]})
        return
    if not entries:
        say(f"{shelf.folder} has no subjects yet.")
        note("Learn one with 'cones2 learn PHOTOS --class dog --name rex', or add a file with 'cones2 subjects add'.")
        note(f"Prompts may also name the examples: {', '.join(EXAMPLES)}.")
        return
    rows = []
    for entry in entries:
        told = entry.describe()
        problem = f"broken: {entry.problem}" if entry.problem else ""
        rows.append((entry.name, told["class_word"] or "", told["learned_on"] or "", problem))
    print_rows(str(shelf.folder), ("subject", "class word", "learned on", ""), rows)


def show(name: Name, library: Library = None, as_json: Json = False) -> None:
    """Show what a subject of the library is, what it fits, and how it was learned.

    Example: cones2 subjects show rex
    """
    from cones2.cli.inspect import describe, residual_rows

    description = describe(_open(library).file_of(name))
    if as_json:
        print_json(description)
    else:
        print_table(name, residual_rows(description))


def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="Its residual.", metavar="FILE")],
    replace: Replace = False,
    library: Library = None,
) -> None:
    """Copy a residual into the library under a name.

    Example: cones2 subjects add rex rex.safetensors
    """
    shelf = _open(library)
    from cones2.residual import Residual

    say(f"{keep(shelf, name, Residual.load(file), replace=replace)}: added.")


def rename(
    name: Name,
    new_name: Annotated[str, typer.Argument(help="What it will be called.", metavar="NEW_NAME")],
    replace: Replace = False,
    library: Library = None,
) -> None:
    """Give a subject of the library another name.

    Example: cones2 subjects rename rex rex_the_dog
    """
    shelf = _open(library)
    with hint(LibraryError, "" if replace else "--replace replaces a subject that has the new name."):
        say(f"{name} is now {new_name}: {shelf.rename(name, new_name, replace=replace)}.")


def remove(
    name: Name,
    yes: Annotated[bool, option("--yes -y", "Do not ask.")] = False,
    library: Library = None,
) -> None:
    """Delete a subject from the library, once it is confirmed.

    Example: cones2 subjects remove rex
    """
    shelf = _open(library)
    path = shelf.path_of(name)
    if not yes and path.exists():
        if not sys.stdin.isatty():
            raise LibraryError(f"{name} is kept, since nobody can be asked here: confirm with --yes.")
        if not typer.confirm(f"Delete {path}?", err=True):
            raise LibraryError(f"{name} is kept.")
    shelf.remove(name)
    say(f"{name}: removed from {shelf.folder}.")


def mix(
    first: _Source,
    second: Annotated[str, typer.Argument(help="Another of the same class word and model.", metavar="SUBJECT")],
    out: _Out,
    weight: Annotated[float, option("--weight", "Of the second: 0 is the first alone, 1 the second.", "X")] = 0.5,
    replace: Replace = False,
    library: Library = None,
    as_json: Json = False,
) -> None:
    """Make one subject of two: what lies between them.

    Example: cones2 mix rex fido --weight 0.3 -o mixed.safetensors
    """
    from cones2.cli.outputs import check_new

    shelf = _open(library)
    mixed = read_residual(first, shelf).mix(read_residual(second, shelf), weight)
    check_new(out, suffix=".safetensors", replace=replace)
    _save(mixed, out)
    if as_json:
        print_json({"residual": str(out), "sha256": mixed.sha256, "class_word": mixed.class_word, "weight": weight})
    else:
        say(f"{out}: {mixed.class_word!r}, {1 - weight:g} of {first} and {weight:g} of {second}.")


def import_(
    file: Annotated[Path, typer.Argument(help="The residual.pt that the authors' script wrote.", metavar="FILE")],
    class_word: Annotated[str, option("--class", "The word that it was learned at.", "WORD")],
    model: Annotated[
        str, option("--model", "What it was learned on: a diffusers folder, .safetensors file or Hub id.", "MODEL")
    ],
    out: _Out,
    replace: Replace = False,
    model_config: ModelConfig = None,
    as_json: Json = False,
) -> None:
    """Turn a residual of the authors' code (ali-vilab/Cones-V2) into one of ours. Nothing in its file is executed.

    Example: cones2 import mug/residual.pt --class mug --model stable-diffusion-2-1 -o mug.safetensors
    """
    with waiting("starting"):
        from cones2.cli.outputs import check_new
        from cones2.cones_v2.tensor import import_residual, read_tensor

        check_new(out, suffix=".safetensors", replace=replace)
        read_tensor(file)  # so that an error comes before the model is opened
    pipe = open_model(model, device="cpu", config=model_config)
    residual = import_residual(pipe.pipeline, file, class_word)
    _save(residual, out)
    if as_json:
        tokens = {part.encoder.role: list(part.tokens) for part in residual.parts}
        about = {"class_word": residual.class_word, "tokens": tokens, "model": pipe.facts.name}
        print_json({"residual": str(out), "sha256": residual.sha256, **about})
    else:
        say(f"{out}: {residual.class_word!r} of {file}, for {pipe.facts.name}.")


def push(
    subject: _Source,
    repo_id: _RepoId,
    license_: Annotated[str, option("--license", "That you give it, such as cc-by-4.0.", "ID")],
    sample: Annotated[Path | None, option("--sample", "A picture of it, drawn by compose.", "PICTURE")] = None,
    base_model: Annotated[
        str | None, option("--base-model", "What it fits; default: as its file says.", "OWNER/NAME")
    ] = None,
    private: Annotated[bool, option("--private", "For your eyes only, if it is new.")] = False,
    library: Library = None,
    as_json: Json = False,
) -> None:
    """Upload a subject to the Hub, with a model card. Its photos stay here; their hashes are in its file.

    Example: cones2 push rex ann/rex --license cc-by-4.0 --sample beach.png
    """
    with waiting("starting"):
        from cones2.hub import name_for, push
        from cones2.library import Library
        from cones2.png import read_record

        residual = read_residual(subject, Library.open(library))
        name = subject if subject.isidentifier() else name_for(repo_id)
        sample_prompt = "" if sample is None else str(read_record(sample).get("text", ""))
    with waiting(f"uploading {name} to {repo_id}"):
        where = push(
            residual,
            repo_id,
            license=license_,
            name=name,
            base_model=base_model,
            sample=sample,
            sample_prompt=sample_prompt,
            private=private,
        )
    if as_json:
        print_json({"name": name, "sha256": residual.sha256, "where": where})
    else:
        say(f"{name}: {where}")


def pull(
    repo_id: _RepoId,
    name: Annotated[
        str | None, option("--name", "Its name in your library; default: the repository's.", "NAME")
    ] = None,
    revision: Annotated[str | None, option("--revision", "A branch, tag or commit.", "REVISION")] = None,
    replace: Replace = False,
    library: Library = None,
    as_json: Json = False,
) -> None:
    """Get a subject from the Hub into your library; it is checked before it is kept.

    Example: cones2 pull ann/rex
    """
    with waiting(f"downloading {repo_id}"):
        from cones2.hub import name_for, pull
        from cones2.library import Library, check_name

        name = check_name(name) if name else name_for(repo_id)
        residual = pull(repo_id, revision=revision)
    path = keep(Library.open(library), name, residual, replace=replace)
    if as_json:
        print_json({"name": name, "sha256": residual.sha256, "where": str(path)})
    else:
        say(f"{name}, a {residual.class_word}: {path}")


def keep(shelf: Any, name: str, residual: Any, *, replace: bool) -> Path:
    """Add a residual to a library; what the library says of a name that is taken gets the option's name."""
    with hint(LibraryError, "--replace replaces it." if not replace and shelf.path_of(name).exists() else ""):
        path: Path = shelf.add(name, residual, replace=replace)
        return path


def _open(library: Path | None) -> Any:
    with waiting("starting"):
        from cones2.library import Library

        return Library.open(library)


def _save(residual: Any, out: Path) -> None:
    from cones2.files import make_folder

    make_folder(out.parent)
    residual.save(out)
