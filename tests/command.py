"""Runs the command line in this process and tells what a shell would see."""

from pathlib import Path

from typer.testing import CliRunner, Result

from cones2.cli import app


def run(*arguments: object, code: int | None = 0, terminal_input: str | None = None) -> Result:
    """Run a command, and check its exit code, unless that is None."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=terminal_input)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert code in (None, result.exit_code), result.output
    return result


def refused(*arguments: object) -> str:
    """Run a command that must fail, and give its error: one line, nothing on stdout."""
    result = run(*arguments, code=1)
    assert result.stdout == ""
    *others, error = result.stderr.splitlines()
    assert all(line.startswith("warning: ") or " ..." in line for line in others)  # the rest is progress
    assert error.startswith("error: ")
    return error


def files_in(folder: Path) -> set[str]:
    """Name everything in a folder, hidden files too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
