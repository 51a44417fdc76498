"""What holds for every command: help, exit codes, one line for what goes wrong, nothing from other libraries."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import typer

from command import run
from cones2.cli.edge import told_in_one_line, with_quiet_libraries
from cones2.errors import Cones2Warning, LayoutError

HELP = Path(__file__).parents[1] / "docs" / "help"
SUBJECTS = tuple(f"subjects {command}" for command in ("list", "add", "remove", "show"))
COMMANDS = (
    *(
        "",
        "demo",
        "check",
        "learn",
        "learn-all",
        "mix",
        "compose",
        "grid",
        "inspect",
        "layout",
        "import",
        "push",
        "pull",
    ),
    *SUBJECTS,
)
SCRIPT = "from cones2.cli import main; main()"


def help_file(command: str) -> Path:
    """The file of a command's help."""
    return HELP / f"{command.replace(' ', '-') or 'cones2'}.txt"


def shell(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, without a terminal."""
    environment = {**os.environ, "COLUMNS": "100", "_TYPER_FORCE_DISABLE_TERMINAL": "1", **options}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_as_in_the_documentation(command: str) -> None:
    """After a change, `python tests/test_cli_edge.py` writes the files anew."""
    done = shell(*command.split(), "--help")
    written = help_file(command).read_text()
    assert tidy(done.stdout) == written


def test_every_command_shows_an_example_and_at_most_twelve_common_options() -> None:
    for command in COMMANDS[1:]:
        text = help_file(command).read_text()
        assert f"Example: cones2 {command}" in text
        common = text.split("─ Options ─")[1].split("╰")[0]
        assert common.count("--") - common.count("--help") <= 12


def test_help_imports_no_library() -> None:
    script = (
        "import sys\n"
        "from cones2.cli import main\n"
        "sys.argv = ['cones2', 'compose', '--help']\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'numpy', 'PIL', 'diffusers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["paint"], "no such command 'paint'. 'cones2 --help' tells how it is used."),
        (["--bare"], "no such option: --bare. 'cones2 --help' tells how it is used."),
        (["learn", "photos"], "missing option '--class'. 'cones2 learn --help' tells how it is used."),
        (["compose"], "invalid value for PROMPT: give one, or a picture with --from. 'cones2 compose --help' tells"),
        (["compose", "a", "--count", "0"], "invalid value for '--count': "),
        (["compose", "a", "--stepz", "9"], "no such option: --stepz (Possible options: "),
        (["subjects", "lost"], "no such command 'lost'. Did you mean 'list'? 'cones2 subjects --help' tells how it"),
        (["inspect", "a", "b"], "got unexpected extra argument(s) (b). 'cones2 inspect --help' tells how it is"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], told: str) -> None:
    result = run(*arguments, code=2)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {told}")


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
        (OSError(errno.EIO, "Input/output error", "rex.png"), 1, "error: Input/output error: rex.png. Check the path."),
        (OSError(errno.ENOLCK, "No locks available"), 1, "error: No locks available. Check the disk."),
        (MemoryError(), 1, "error: out of memory: draw smaller or fewer pictures at once"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), 1, "error: out of memory: draw smaller"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), 1, "error: out of memory: draw smaller"),
    ],
)
def test_what_goes_wrong_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, told_in_one_line():
        raise error
    assert ended.value.exit_code == code
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(line)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), BrokenPipeError(errno.EPIPE, "Broken pipe")])
def test_what_is_not_the_users_to_mend_is_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)), told_in_one_line():
        raise error


def test_our_warnings_are_one_line_and_others_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with with_quiet_libraries():
        warnings.warn("only\n2 photos", Cones2Warning, stacklevel=1)
        warnings.warn("a remark on NumPy", DeprecationWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: only 2 photos\n"


def test_the_same_warning_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with with_quiet_libraries():
            for text in ("twice", "twice", "another"):
                warnings.warn(text, Cones2Warning, stacklevel=1)
        assert capsys.readouterr().err == "warning: twice\nwarning: another\n"


def test_it_ends_quietly_when_nobody_reads() -> None:
    command = f"'{sys.executable}' -c '{SCRIPT}' --help | true"
    assert subprocess.run(command, shell=True, capture_output=True, check=False).stderr == b""


def test_a_terminal_without_a_character_shows_its_code() -> None:
    done = shell("inspect", "фото.png", PYTHONIOENCODING="ascii")
    assert done.stderr.startswith(r"error: can't read \u0444\u043e\u0442\u043e.png: No such file")


def tidy(text: str) -> str:
    """Drop the spaces at the ends of lines."""
    return "".join(f"{line.rstrip()}\n" for line in text.strip().splitlines())


if __name__ == "__main__":
    HELP.mkdir(parents=True, exist_ok=True)
    for name in COMMANDS:
        help_file(name).write_text(tidy(shell(*name.split(), "--help").stdout))
