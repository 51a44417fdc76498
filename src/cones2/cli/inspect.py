"""`cones2 inspect`: what a file is, what it fits, how it was made."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cones2.cli.console import print_json, print_table, say, waiting
from cones2.cli.options import Json, option
from cones2.errors import PictureError, counted

_DEEPEST = 4
_EFFECTS = {"scale": "layout_scale", "preset": "preset"}
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_JPEG = b"\xff\xd8\xff"


def inspect(
    file: Annotated[Path, typer.Argument(help="A residual, or a picture that compose wrote.", metavar="FILE")],
    all_: Annotated[bool, option("--all", "Show everything that the file says.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a residual or a picture is, what it fits, and how to draw it.

    Example: cones2 inspect rex.safetensors
    """
    with waiting(f"reading {file.name}"):
        description = describe(file)
    if as_json:
        print_json(description)
    elif all_:
        print_table(str(file), dict(_all_rows({k: v for k, v in description.items() if k != "residuals"})))
    elif description["kind"] == "residual":
        print_table(str(file), residual_rows(description))
        name = file.stem if file.stem.isidentifier() else "it"
        say(f"Draw it with: {_command(f'a {{{name}}} on the beach', '--subject', f'{name}={file}')}")
    else:
        print_table(str(file), _picture_rows(description))
        if "batch" in description or "seeds" in description:
            again = file.with_name(f"{file.stem}-again.png")
            say(f"Draw it again with: {_command('--from', str(file), '--out', str(again))}")


def describe(file: Path) -> dict[str, Any]:
    """Describe a residual or a picture, told apart by its first bytes, as JSON values."""
    from cones2.files import read_bounded
    from cones2.images import PNG
    from cones2.png import LARGEST_PICTURE, record_in
    from cones2.residual import describe_file

    content = read_bounded(file, limit=LARGEST_PICTURE, error=PictureError)
    if content.startswith(PNG):
        return {**record_in(content, file), "file": str(file), "kind": "picture"}
    if content.startswith(_JPEG):
        raise PictureError(f"{file} is a JPEG, which loses how it was made: expected the PNG that cones2 wrote.")
    return {"file": str(file), "kind": "residual", **describe_file(content, origin=str(file))}


def residual_rows(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows that say what a residual is: eight, or fewer of one that was mixed or imported."""
    parts, recipe = description["parts"], description["recipe"]
    steps = recipe.get("taken", recipe.get("steps"))
    rows = {
        "class word": description["class_word"],
        "learned on": parts[0]["fits"],
        "fits": ", ".join(
            f"{part['role']} {part['weights'][:12]}"
            + (f", asked as {part['reading'][:12]} says" if "reading" in part else "")
            for part in parts
        ),
        "tokens": ", ".join(parts[0]["tokens"]),
        "length": ", ".join(f"{length:.3g}" for part in parts for length in part["length"]),
        "photos": str(len(description["photos"]) or ""),
        "steps": "" if steps is None else f"{steps} of {recipe.get('tune')}, seed {recipe.get('seed')}",
        "sha256": description["sha256"][:12],
    }
    return {name: value for name, value in rows.items() if value}


def _picture_rows(description: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows that say how a picture was made: eight, less what its record does not know.

    All that there is for a layout's picture or a sheet.
    """
    if not isinstance(description.get("subjects"), dict) or not isinstance(description.get("model"), dict):
        return dict(_all_rows(description))
    subjects = description["subjects"].items()
    options = _dict(description.get("options"))
    size = [str(options[side]) for side in ("width", "height") if options.get(side)]
    settings = _dict(description.get("layout_settings"))
    regions = _dict(_dict(description.get("layout")).get("regions"))
    steps, scale = description.get("num_inference_steps"), description.get("guidance_scale")
    drawn = (
        counted(steps, "step") if isinstance(steps, int) else None,
        _dict(description.get("scheduler")).get("class_name"),
        None if scale is None else f"guidance scale {_text(scale)}",
    )
    acts = [f"{name} {_text(settings[key])}" for name, key in _EFFECTS.items() if settings.get(key) is not None]
    model = [description["model"].get("name"), description.get("dtype"), description.get("device"), "x".join(size)]
    rows = {
        "prompt": _text(description.get("prompt") or ""),
        "subjects": "; ".join(f"{name}, a {_text(_dict(each).get('class_word'))}" for name, each in subjects) or "none",
        "layout": "; ".join(f"{name} {json.dumps(region)[:60]}" for name, region in regions.items()) or "none",
        "layout's effect": ", ".join(acts) if regions else "",
        "seed": "" if description.get("seed") is None else _text(description["seed"]),
        "drawing": ", ".join(_text(each) for each in drawn if each),
        "model": ", ".join(_text(each) for each in model if each),
        "not to show": _text(description.get("negative_prompt") or "nothing"),
    }
    return {name: value for name, value in rows.items() if value}


def _command(*words: str) -> str:
    return shlex.join(["cones2", "compose", *words])


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _all_rows(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield a row for each value: nested ones by their path, hashes cut short."""
    if isinstance(value, Mapping) and value and path.count(".") < _DEEPEST:
        for key, inner in value.items():
            yield from _all_rows(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, _HASH.sub(r"\1…", _text(value))
