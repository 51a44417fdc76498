"""What holds for every command: help, exit codes, one line for what goes wrong, nothing from other libraries."""

import errno
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from command import run
from cones2.cli import errors_in_one_line, with_quiet_libraries
from cones2.cli.options import read_seed
from cones2.errors import Cones2Warning, LayoutError
from cones2.examples import EXAMPLES
from cones2.library import Library
from cones2.png import write_picture

HELP = Path(__file__).parents[1] / "docs" / "help"
COMMANDS: tuple[str, ...] = (
    "demo",
    "check",
    "learn",
    "compose",
    "layout",
    "inspect",
    "mix",
    "import",
    "push",
    "pull",
)
COMMANDS += ("studio", "doctor", *(f"subjects {command}" for command in ("list", "show", "add", "rename", "remove")))
COMMANDS += tuple(f"batch {command}" for command in ("run", "plan", "status", "gallery", "sheet", "subjects", "verify"))
COMMANDS += tuple(f"evaluate {command}" for command in ("run", "report", "sheets", "power", "form"))


def help_file(command: str) -> Path:
    """The file of a command's help."""
    return HELP / f"{command.replace(' ', '-') or 'cones2'}.txt"


def shell(*arguments: str | bytes, **options: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, without a terminal."""
    return python("-m", "cones2", *arguments, **options)


def python(*arguments: str | bytes, **options: str) -> subprocess.CompletedProcess[str]:
    """Run Python without a terminal."""
    environment = {**os.environ, "COLUMNS": "100", "_TYPER_FORCE_DISABLE_TERMINAL": "1", **options}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)


def tidy(text: str) -> str:
    """Drop the spaces at the ends of lines."""
    return "".join(f"{line.rstrip()}\n" for line in text.strip().splitlines())


def all_help() -> dict[str, str]:
    """What each command says of itself, by its name."""
    script = """
import contextlib, io, json, sys
from cones2.cli import main
shown = {}
for command in sys.argv[1:]:
    sys.argv = ["cones2", *command.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    shown[command] = out.getvalue()
print(json.dumps(shown))
"""
    done = python("-c", script, "", *COMMANDS)
    return {command: tidy(text) for command, text in json.loads(done.stdout).items()}


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    return all_help()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_as_in_the_documentation(command: str, shown: dict[str, str]) -> None:
    """After a change, `python tests/test_cli_edge.py` writes the files anew."""
    text = help_file(command).read_text()
    assert shown[command] == text
    if command:
        assert f"Example: cones2 {command}" in text
        assert text.split("─ Options ─")[-1].split("╰")[0].count(" --") <= 16 or command == "learn"


def test_what_opens_no_model_does_without_pytorch(tmp_path: Path) -> None:
    example = EXAMPLES["rex"]
    library = Library(tmp_path / "library")
    library.add("rex", example.residual)
    layout, picture = tmp_path / "layout.json", tmp_path / "picture.png"
    write_picture(picture, Image.new("RGB", (8, 8)), {"prompt": "a dog"})
    commands: dict[tuple[object, ...], int] = {
        ("layout", "--auto", "a {rex} and a {cup}", "-o", layout): 0,
        ("layout", layout, "--place", "rex=left", "-o", tmp_path / "layout.png"): 0,
        ("inspect", picture): 0,
        ("inspect", example.folder / "rex.safetensors"): 0,
        ("subjects", "list", "--library", library.folder): 0,
        ("subjects", "show", "rex", "--library", library.folder): 0,
        ("subjects", "rename", "rex", "max", "--library", library.folder): 0,
        ("subjects", "remove", "max", "--yes", "--library", library.folder): 0,
        ("compose", "a dog", "--steps", "many"): 2,
        ("compose", "a {rex}"): 1,
        ("compose", "a {rex}", "--plain", "rex=dog", "--box", "rex=1"): 1,
        ("compose", "a dog", "--scheduler", "eulr"): 1,
        ("compose", "a dog", "--count", "99999"): 1,
        ("compose", "a dog", "--out", "a.jpg"): 1,
        ("learn", "photos", "--class", "dog"): 1,
        ("learn", "photos", "--class", "dog", "--out", "rex.safetensors", "--recipe", "best"): 1,
    }
    script = """
import contextlib, io, json, sys
from cones2.cli import main
codes = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["cones2", *command]
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            codes.append(end.code)
    assert "torch" not in sys.modules, command
print(json.dumps(codes))
"""
    done = python("-c", script, json.dumps([[str(word) for word in command] for command in commands]))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == list(commands.values())


def test_help_comes_at_once_since_it_imports_little() -> None:
    done = python("-X", "importtime", "-m", "cones2", "--help")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"cones2", "typer"} <= imported
    assert not imported & {"PIL", "diffusers", "fastapi", "numpy", "pydantic", "torch", "transformers"}
    assert "compose" in done.stdout
    assert "--install-completion" in done.stdout


def test_a_shell_completes_commands() -> None:
    done = shell(_CONES2_COMPLETE="complete_bash", COMP_WORDS="cones2 comp", COMP_CWORD="1")
    assert done.stdout.split() == ["compose"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["paint"], "'paint'"),
        (["--bare"], "--bare"),
        (["learn", "photos"], "'--class'"),
        (["compose", "a", "--count", "0"], "'--count'"),
        (["compose", "a", "--seed", "often"], "'often'"),
        (["compose", "a", "--stepz", "9"], "--stepz"),
        (["subjects", "lost"], "Did you mean 'list'?"),
        (["inspect", "a", "b"], "(b)"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], told: str) -> None:
    result = run(*arguments, code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert told in line


def test_what_deletes_is_never_suggested() -> None:
    assert "rename" in run("subjects", "renam", code=2).stderr
    assert "remove" not in run("subjects", "remov", code=2).stderr.split("--help")[0].replace("'remov'", "")


@pytest.mark.parametrize("command", ["", "subjects"])
def test_no_command_shows_the_help(command: str) -> None:
    told = run(*command.split(), code=2).output
    assert f"Usage: cones2 {command}".strip() in told
    assert "error:" not in told


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (LayoutError("a box\nof two lines \x1b[2J"), 1, r"error: a box of two lines \x1b[2J"),
        (KeyboardInterrupt(), 130, "error: interrupted."),
        (OSError(errno.EIO, "Input/output error", "rex.png"), 1, "error: Input/output error: rex.png"),
        (MemoryError(), 1, "error: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), 1, "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), 1, "error: out of memory"),
    ],
)
def test_what_goes_wrong_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, errors_in_one_line():
        raise error
    assert ended.value.exit_code == code
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(line)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), BrokenPipeError(errno.EPIPE, "Broken pipe")])
def test_what_the_user_cannot_mend_is_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)), errors_in_one_line():
        raise error


def test_our_warnings_are_one_line_each_and_others_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with with_quiet_libraries():
            for text in ("only\n2 photos", "only\n2 photos", "another"):
                warnings.warn(text, Cones2Warning, stacklevel=1)
            warnings.warn("a remark on NumPy", DeprecationWarning, stacklevel=1)
        assert capsys.readouterr().err == "warning: only 2 photos\nwarning: another\n"


def test_verbose_shows_where_an_error_arose() -> None:
    assert "Traceback" not in run("inspect", "missing.png", code=1).stderr
    assert "Traceback" in run("inspect", "missing.png", "--verbose", code=1).stderr


def test_it_ends_quietly_when_nobody_reads() -> None:
    command = f"'{sys.executable}' -m cones2 --help | true"
    assert subprocess.run(command, shell=True, capture_output=True, check=False).stderr == b""


def test_a_terminal_without_a_character_shows_its_code() -> None:
    done = shell("inspect", "фото.png", PYTHONIOENCODING="ascii")
    assert done.stderr.splitlines()[-1].startswith(r"error: can't read \u0444\u043e\u0442\u043e.png: ")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no arguments that are no text")
@pytest.mark.parametrize(
    "arguments", [[b"a cat \xe9"], ["a cat", "--negative", b"\xe9"], ["a cat", "--subject-negative", b"cat=\xe9"]]
)
def test_text_that_is_no_text(arguments: list[str | bytes]) -> None:
    done = shell("compose", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert r"\udce9" in done.stderr.splitlines()[-1]  # a slow machine tells what it waits for before


if __name__ == "__main__":
    HELP.mkdir(parents=True, exist_ok=True)
    for name, text in all_help().items():
        help_file(name).write_text(text)


def test_seeds_are_read_alike_by_all_commands() -> None:
    assert (read_seed("0"), read_seed(" 7 "), read_seed(str(2**63 - 1))) == (0, 7, 2**63 - 1)
    by_chance = {read_seed(text) for text in ("-1", "random", "Random", "-1")}
    assert len(by_chance) > 1
    assert all(0 <= seed < 2**63 for seed in by_chance)
    for text in ("-2", str(2**63), str(2**70), "1.5", "1e3"):
        with pytest.raises(typer.BadParameter, match=re.escape(text)):
            read_seed(text)
    last = ("compose", "a cat", "--seed", 2**63 - 1)
    assert str(2**63) in run(*last, "--count", 2, code=1).stderr
    assert "--count 1000000000 is too many" in run(*last[:2], "--count", 10**9, code=1).stderr
    learn, form = ("learn", "photos", "--class", "dog", "--name", "rex"), ("evaluate", "form", "a.toml", "--out", "a")
    for command in (("compose", "a cat"), learn, (*form, "--page", "a.html")):
        assert str(2**70) in run(*command, "--seed", 2**70, code=2).stderr.replace("\n", "").replace(" ", "")
