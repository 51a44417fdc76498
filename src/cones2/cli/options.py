"""Options that several commands share, and how their text is read."""

import difflib
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cones2.cli.console import waiting
from cones2.errors import Cones2Error, LibraryError, ModelError, SettingsError
from cones2.shared import LARGEST_SEED

if TYPE_CHECKING:
    from cones2.library import Library as SubjectLibrary
    from cones2.pipeline import Cones2Pipeline
    from cones2.residual import Residual

SUBJECTS, PLACES, ACTING = "Subjects", "Places, in 0..1 from the picture's top left corner", "How the layout acts"
MODEL, OUTPUT = "Model", "Output"

Texts = list[str] | None


def option(names: str, help: str, metavar: str | None = None, panel: str | None = None, **more: Any) -> Any:  # noqa: A002
    """Describe an option by its names, one or more in a text, and its help."""
    return typer.Option(*names.split(), help=help, metavar=metavar, rich_help_panel=panel, **more)


def read_seed(text: str | int) -> int:
    """Read a seed; `random` and -1 take one by chance."""
    if str(text).strip().lower() in ("random", "-1"):
        return secrets.randbelow(2**32)
    try:
        seed = int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a whole number, and not 'random'.") from error
    if not 0 <= seed <= LARGEST_SEED:
        raise typer.BadParameter(f"{seed} is not in 0..{LARGEST_SEED}, nor is it -1 or 'random'.")
    return seed


_MODELS = "mini, a diffusers folder, a .safetensors file, or a Hub id OWNER/NAME."
_CONFIGS = "What a .safetensors MODEL holds: sd1, sd2, sd2-base, sdxl, or a diffusers folder."
_LIBRARY = "Your subjects' folder; default: $CONES2_LIBRARY, else your data folder."

Prompt = Annotated[
    str | None,
    typer.Argument(help="The prompt, with each subject's name in braces.", metavar="PROMPT", show_default=False),
]
Model = Annotated[str, option("--model", _MODELS, "MODEL")]
PictureModel = Annotated[str | None, option("--model", _MODELS, "MODEL", show_default="mini, or the picture's")]
ModelConfig = Annotated[str | None, option("--model-config", _CONFIGS, "NAME_OR_DIR", MODEL)]
Device = Annotated[str | None, option("--device", "cuda, mps or cpu; default: the best there is.", "NAME", MODEL)]
Dtype = Annotated[
    str | None, option("--dtype", "float32, bfloat16 or float16; default: what suits the device.", "NAME", MODEL)
]
Compile = Annotated[bool, option("--compile", "Faster, once compiled; worth it for many pictures.", panel=MODEL)]
Library = Annotated[Path | None, option("--library", _LIBRARY, "DIR", SUBJECTS)]
Replace = Annotated[bool, option("--replace", "Replace what is there already.", panel=OUTPUT)]
Json = Annotated[bool, option("--json", "Print one JSON object, for scripts.", panel=OUTPUT)]
SubjectTexts = Annotated[Texts, option("--subject", "A learned subject, of your library or a file.", "NAME[=FILE]")]
PlainTexts = Annotated[Texts, option("--plain", "An untaught word that gets a place.", "NAME[=WORD]")]
StrengthTexts = Annotated[Texts, option("--strength", "How much of a subject's residual: rex=1.0.", "NAME=X", SUBJECTS)]

PlaceTexts = Annotated[Texts, option("--place", "A place in words: left, top right, behind, rest.", "NAME=WORDS")]
BoxTexts = Annotated[Texts, option("--box", "A place as a box; shapes of one name unite.", "NAME=XMIN,YMIN,XMAX,YMAX")]
LayoutFile = Annotated[Path | None, option("--layout", "Places from a layout's JSON file.", "FILE")]
PolygonTexts = Annotated[Texts, option("--polygon", "A polygon, point by point.", "NAME=X,Y,X,Y,...", PLACES)]
MaskTexts = Annotated[Texts, option("--mask", "A greyscale picture, white inside.", "NAME=FILE", PLACES)]
ZTexts = Annotated[Texts, option("--z", "Which is on top: the greatest; usually 0.", "NAME=N", PLACES)]
FeatherTexts = Annotated[Texts, option("--feather", "Width of a region's soft edge.", "NAME=X", PLACES)]
WeightTexts = Annotated[Texts, option("--region-weight", "Multiplies how strongly a region draws.", "NAME=X", PLACES)]
Auto = Annotated[bool, option("--auto-layout", "Place all other subjects, side by side.", panel=PLACES)]


def read_job(ctx: Any, _: Any, path: Path | None) -> Path | None:
    """Read `--config`: a TOML file whose keys are the command's options, which then are their defaults."""
    if path is None or ctx.resilient_parsing:
        return path
    from pydantic import BaseModel, ConfigDict, ValidationError, create_model

    from cones2.files import expanded, read_toml

    value = bool | int | float | str
    named = dict[str, value | list[value] | list[list[value]]] | list[str]
    names = {
        str(param.name): param.multiple for param in ctx.command.params if getattr(param, "multiple", None) is not None
    }
    fields: Any = {name: (named if several else value, None) for name, several in names.items() if name != "config"}
    model: type[BaseModel] = create_model("Job", __config__=ConfigDict(extra="forbid", strict=True), **fields)
    job = read_toml(expanded(path), example="lines such as steps = 30")
    try:
        given = model.model_validate({name.replace("-", "_"): entry for name, entry in job.items()})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"][:2]))[:100]
        if problem["type"] == "extra_forbidden":
            near = "".join(f" Did you mean {name!r}?" for name in difflib.get_close_matches(place, fields, n=1))
            raise SettingsError(f"{path}: {place!r} is not an option of this command.{near}") from error
        raise SettingsError(f"{path}: {place!r} can't be used: {problem['msg']}.") from error
    ctx.default_map = {name: _as_typed(entry) for name, entry in given.model_dump(exclude_unset=True).items()}
    return path


def _as_typed(entry: Any) -> Any:
    """Return a job's entry as it would be typed: `NAME=1,2` for each one of a table."""
    if not isinstance(entry, dict):
        return entry if isinstance(entry, bool | list) else str(entry)
    texts = []
    for name, value in entry.items():
        several = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
        texts += [f"{name}={','.join(map(str, one)) if isinstance(one, list) else one}" for one in several]
    return texts


@contextmanager
def hint(kind: type[Cones2Error], text: str) -> Iterator[None]:
    """Add what the command line has to say to an error of the library."""
    try:
        yield
    except kind as error:
        error.add_note(text)
        raise


def open_model(
    model: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    config: str | None = None,
    compile: bool = False,  # noqa: A002  # the library's word
) -> "Cones2Pipeline":
    """Open a model under a spinner; raises as `Cones2Pipeline.from_pretrained` does."""
    with (
        waiting(f"opening {model}"),
        hint(ModelError, "The model is what --model names."),
        hint(SettingsError, "See --model-config, --device, --dtype."),
    ):
        from cones2.pipeline import Cones2Pipeline

        pipe = Cones2Pipeline.from_pretrained(model, device=device, dtype=dtype, config=config, compile=compile)
        pipe.set_progress_bar_config(disable=True)
        return pipe


def read_residual(source: str, library: "SubjectLibrary") -> "Residual":
    """Read a subject from the library or the examples where `source` is a name, else from a file or the Hub."""
    from cones2.library import find_residual

    with hint(LibraryError, "A file is given as ./NAME or NAME.safetensors."):
        return find_residual(source, library)


def pairs(option: str, texts: Iterable[str] | None, *, example: str) -> list[tuple[str, str]]:
    """Split `name=value` texts."""
    found = []
    for text in texts or ():
        name, _, value = (part.strip() for part in text.partition("="))
        if not (name and value):
            raise SettingsError(f"{option} {text!r} can't be read: expected NAME=VALUE, such as {example}.")
        found.append((name, value))
    return found


def unique(option: str, texts: Iterable[str] | None, *, example: str) -> dict[str, str]:
    """Split `name=value` texts, each name once."""
    found: dict[str, str] = {}
    for name, value in pairs(option, texts, example=example):
        if name in found:
            raise SettingsError(f"{option} names {name!r} twice: expected each name once. Leave one out.")
        found[name] = value
    return found


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers and ranges of them, each with its last, such as `0,4-7`.

    Raises:
        SettingsError: there is something else, or there are more than a thousand.
    """
    found: list[int] = []
    for each in text.split(","):
        first, _, last = each.partition("-")
        start, stop = number(option, first, int), number(option, last or first, int)
        if not 0 <= start <= stop or stop - start + len(found) >= 1000:
            raise SettingsError(f"{option}: {each!r} is no range of at most 1000 numbers. Write it like 0,4-7.")
        found += range(start, stop + 1)
    return tuple(found)


def number(option: str, text: str, kind: Any = float) -> Any:
    """Read a number, or with `int` a whole number."""
    try:
        return kind(text)
    except ValueError as error:
        what = "whole number" if kind is int else "number"
        raise SettingsError(f"{option}: {text!r} is not a {what}. Write it like {kind(1)}.") from error
