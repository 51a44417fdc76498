"""Gives commands numbers, names and terminals that make no sense: `python attack/arguments.py --cases 300`.

A case is a sound call in which one value, or a new option, is odd; or a sound call on an odd terminal, or with its
streams closed or full. Each has to end with 0, 1 or 2, within a minute, and without a traceback.
"""

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer

from children import Ended, cli, run
from cones2.cli import app
from cones2.pipeline import Cones2Pipeline
from loaders import silence, small_model
from stage import make_stage

_NUMBERS = (
    *("0", "-1", "1", "1e3", "1e308", "-1e308", "1e400", "nan", "inf", "-inf", "0x10", "1_000", "٣", "0.5", "1e-320"),
    *("", " ", "1,2", "64x64", "9999999x8", "9" * 30, "9" * 5000, str(2**31), str(2**63), str(-(2**63) - 1)),
)
_NAMES = (
    *(
        "",
        " ",
        ".",
        "..",
        "../x",
        "/",
        "~",
        "~nobody/x",
        "-",
        "--",
        "a/b",
        "nul\nline",
        "\u202e",
        "é",
        "CON",
        "a" * 300,
    ),
    *(
        "rex=",
        "=rex",
        "rex=rex=rex",
        "{rex}",
        "rex=../../x",
        "rex=nan",
        "rex=0,0,1",
        "rex=1,1,0,0",
        "rex=" + "1," * 500,
    ),
)
_TERMINALS: tuple[dict[str, str], ...] = (
    *({"COLUMNS": columns} for columns in ("1", "0", "-5", "x", "1000000")),
    *({"TERM": name, "COLUMNS": "20"} for name in ("", "dumb", "nonsense")),
    *({"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "LC_ALL": "C"}, {"NO_COLOR": "1"}, {"FORCE_COLOR": "1"}),
    *({"HOME": ""}, {"HOME": "/nonexistent"}, {"TMPDIR": "/nonexistent"}, {"PYTHONWARNINGS": "error"}),
    *({"CONES2_LIBRARY": "/dev/null"}, {"CONES2_LIBRARY": "/nonexistent/x"}),
)
_STREAMS = (">&-", "2>&-", "<&-", ">&- 2>&- <&-", ">/dev/full", "2>/dev/full", ">/dev/full 2>/dev/full", "| head -c 1")


def sound_calls(folder: Path, model: Path) -> dict[str, list[str]]:
    """Return a sound call of each command that can be called without the network."""
    drawn = ["a {rex} and a {cup}", "--subject", "rex", "--plain", "cup=mug", "--model", str(model)]
    drawn += ["--library", f"{folder}/library"]
    shelf = ["--library", f"{folder}/library"]
    kept = ["--out", f"{folder}/kept.safetensors", "--replace"]
    learned = ["--class", "dog", "--recipe", f"{folder}/recipe.toml", "--model", str(model), "--steps", "1"]
    return {
        "compose": [
            *drawn,
            "--steps",
            "1",
            "--seed",
            "1",
            "--out",
            f"{folder}/new.png",
            "--box",
            "rex=0,0,0.5,1",
            "--replace",
        ],
        "layout": [f"{folder}/layout.json", "--out", f"{folder}/layout.png", "--replace"],
        "learn": [f"{folder}/photos", *learned, "--out", f"{folder}/old/rex.safetensors", "--replace"],
        "batch run": [f"{folder}/subjects.toml", "--out", f"{folder}/batch"],
        "batch plan": [f"{folder}/batch.toml"],
        "batch status": [f"{folder}/drawn"],
        "batch gallery": [f"{folder}/drawn"],
        "batch sheet": [f"{folder}/drawn", "--sheet", f"{folder}/sheet.png", "--replace"],
        "batch subjects": [f"{folder}/drawn", "--add", "--replace", *shelf],
        "batch verify": [f"{folder}/drawn"],
        "check": [f"{folder}/photos", "--model", str(model)],
        "inspect": [f"{folder}/old/rex.safetensors"],
        "mix": ["rex", "momo", *shelf, *kept, "--weight", "0.3"],
        "import": [f"{folder}/cat.pt", *kept, "--class", "cat", "--model", str(model)],
        "subjects list": shelf,
        "subjects show": ["rex", *shelf],
        "subjects add": ["new", f"{folder}/old/rex.safetensors", "--replace", *shelf],
        "subjects rename": ["rex", "rex", *shelf],
        "subjects remove": ["rex", "--yes", *shelf],
    }


def odd_calls(calls: dict[str, list[str]], draw: random.Random) -> Iterator[list[str]]:
    """Yield sound calls with one odd value, endlessly."""
    command: typer.core.TyperGroup = typer.main.get_command(app)  # type: ignore[assignment]
    while True:
        name = draw.choice(sorted(calls))
        inner = command
        for part in name.split():
            inner = inner.commands[part]  # type: ignore[assignment]
        arguments = list(calls[name])
        odd = draw.choice(draw.choice((_NUMBERS, _NAMES)))
        options = [max(param.opts, key=len) for param in inner.params if param.param_type_name == "option"]
        options.remove("--verbose")  # its tracebacks are asked for
        if arguments and draw.random() < 0.5:
            arguments[draw.randrange(len(arguments))] = odd
        else:
            arguments += [draw.choice(options), odd]
        yield [*name.split(), *arguments]


def wrong_with(ended: Ended) -> str:
    """Return what is wrong with the end of a command; empty where nothing is."""
    if ended.code not in (0, 1, 2):
        return f"exit code {ended.code}: {ended.err[-1500:]}"
    return ended.err[-1500:] if "Traceback" in ended.err or "Exception ignored" in ended.err else ""


def on_terminals(folder: Path) -> Iterator[tuple[str, Ended]]:
    """Run sound calls on odd terminals and with odd streams, each in a Python of its own."""
    calls = [f"subjects list --library {folder}/library", f"inspect {folder}/old/picture.png"]
    calls += ["compose --help", "compose --nonsense"]
    program = f"{sys.executable} -m cones2"
    for changes in _TERMINALS:
        for call in calls[:2]:
            yield f"{changes} {call}", _shell(f"{program} {call}", changes)
    for streams in _STREAMS:
        for call in calls:
            yield f"{call} {streams}", _shell(f"{program} {call} {streams}", {})


def _shell(line: str, changes: dict[str, str]) -> Ended:
    ended = subprocess.run(["sh", "-c", line], env=os.environ | changes, capture_output=True, timeout=120, check=False)
    return Ended(ended.returncode, ended.stdout.decode(errors="replace"), ended.stderr.decode(errors="replace"))


def main() -> None:
    """Run, print one line, and end with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300, help="of odd values")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--terminals", action="store_true", help="also the odd terminals: 68 calls, a minute or two")
    asked = parser.parse_args()
    silence()
    wrong = count = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "stage"
        model = small_model(Path(name) / "model")
        pipe = Cones2Pipeline.from_pretrained(model, device="cpu")
        pipe.set_progress_bar_config(disable=True)
        make_stage(folder, pipe)
        os.chdir(folder)  # where odd names may become files
        odd = odd_calls(sound_calls(folder, model), random.Random(asked.seed))
        cases = ((" ".join(map(repr, call)), run(cli(*call), seconds=60)) for call in odd)
        terminals = on_terminals(folder) if asked.terminals else iter(())
        for call, ended in itertools.chain(itertools.islice(cases, asked.cases), terminals):
            count += 1
            if what := wrong_with(ended):
                wrong += 1
                print(f"{call[:300]}\n  {what}", file=sys.stderr, flush=True)
    print(f"{count} calls with odd values or terminals: {wrong} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
