"""The command line: each command parses its options, calls the library and prints what came of it.

Commands import the library when they run, not before, so that help and errors in options come at once. What holds for
all of them is here: errors in one line, exit codes, and libraries that keep quiet.
"""

import difflib
import functools
import importlib.metadata
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from cones2.cli import batch, check, compose, demo, doctor, evaluate, inspect, layout, learn, studio, subjects
from cones2.cli.console import complain, messages, volume
from cones2.cli.options import option
from cones2.errors import Cones2Error, Cones2Warning, is_unicode

__all__ = ["app", "errors_in_one_line", "main", "with_quiet_libraries"]

FAILED, MISUSED, INTERRUPTED = 1, 2, 130

# click's, or Typer's own copy of it; only its subclass has a public name.
_UsageError: Any = typer.BadParameter.__mro__[1]
_NEVER_SUGGESTED = {"remove"}


_QUIET = Annotated[bool, option("--quiet -q", "Print results and errors alone.", panel="Messages")]
_VERBOSE = Annotated[bool, option("--verbose -v", "Print more, also where an error arose.", panel="Messages")]


def _with_volume(function: Any) -> Any:
    """Give a command `--quiet` and `--verbose`."""

    @functools.wraps(function)
    def command(*, quiet: bool, verbose: bool, **arguments: Any) -> None:
        volume.quiet, volume.verbose = quiet, verbose
        if verbose:
            warnings.simplefilter("default")
        function(**arguments)

    parameters = list(signature(function).parameters.values())
    for name, kind in {"quiet": _QUIET, "verbose": _VERBOSE}.items():
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=kind))
        command.__annotations__[name] = kind
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return command


class _Command(TyperCommand):
    """A command that refuses arguments which are not UTF-8."""

    def invoke(self, ctx: Any) -> Any:
        for name, value in ctx.params.items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and not is_unicode(text):
                    raise typer.BadParameter(f"{text!r} is not text in UTF-8.", ctx=ctx, param_hint=name)
        return super().invoke(ctx)


class _Group(TyperGroup):
    """Suggests a command for a misspelt one, but none that deletes."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except _UsageError as error:
            close = difflib.get_close_matches(args[0], self.commands.keys() - _NEVER_SUGGESTED)
            hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
            error.message = f"No such command {args[0]!r}.{hint}"
            raise


class _BatchGroup(_Group):
    """Takes a job alone for `batch run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, batch.arguments_of(args))


class _Commands(_Group):
    """Runs every command inside the edge: an error is one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        volume.quiet = volume.verbose = False
        with errors_in_one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with with_quiet_libraries(), errors_in_one_line():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    name="cones2",
    help="Teach a text-to-image model your own subjects, and place any number of them in one picture.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _name, _function in {
    "demo": demo.demo,
    "studio": studio.studio,
    "check": check.check,
    "learn": learn.learn,
    "compose": compose.compose,
    "layout": layout.layout,
    "inspect": inspect.inspect,
    "mix": subjects.mix,
    "import": subjects.import_,
    "push": subjects.push,
    "pull": subjects.pull,
    "doctor": doctor.doctor,
}.items():
    app.command(_name, cls=_Command)(_with_volume(_function))


def _add_group(name: str, kind: type[_Group], text: str, commands: Mapping[str, Callable[..., None]]) -> None:
    group = typer.Typer(name=name, cls=kind, help=text, no_args_is_help=True, suggest_commands=False)
    for each, function in commands.items():
        group.command(each, cls=_Command)(_with_volume(function))
    app.add_typer(group)


_add_group(
    "subjects",
    _Group,
    "Keep your subjects by name: 'compose --subject rex' finds them without a path.",
    {
        "list": subjects.list_subjects,
        "show": subjects.show,
        "add": subjects.add,
        "rename": subjects.rename,
        "remove": subjects.remove,
    },
)
_add_group(
    "batch",
    _BatchGroup,
    "Learn thousands of subjects and draw millions of pictures; 'cones2 batch JOB --out OUT' does a job.",
    batch.COMMANDS,
)
_add_group(
    "evaluate",
    _Group,
    "Compare ways to draw several subjects as a protocol says, with intervals, and report what came.",
    evaluate.COMMANDS,
)


def _show_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"cones2 {importlib.metadata.version('cones2')}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line, as `cones2` does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character shows its code
    app(prog_name="cones2")


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print what goes wrong in one line, and end with its exit code: 1, 2 for wrong usage, 130 for Ctrl-C."""
    try:
        yield
    except _UsageError as error:
        _end_misused(error)
    except Cones2Error as error:
        _end(str(error), FAILED, error)
    except BrokenPipeError:
        raise  # whoever reads stdout has enough; Typer ends quietly
    except OSError as error:
        place = ". Check the disk." if error.filename is None else f": {error.filename}. Check the path."
        _end(f"{error.strerror or error}{place}", FAILED, error)
    except (KeyboardInterrupt, typer.Abort) as error:
        _end("interrupted.", INTERRUPTED, error)
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        advice = "draw smaller or fewer pictures at once, learn with a smaller batch_size, or use another --device"
        _end(f"out of memory: {advice}.", FAILED, error)


def _end_misused(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":  # a command without anything after it shows its help
        raise error
    command = error.ctx.command_path if error.ctx else "cones2"
    what = error.format_message()
    end = "" if what.endswith((".", "?")) else "."
    _end(f"{what[:1].lower()}{what[1:]}{end} '{command} --help' tells how it is used.", MISUSED, error)


def _end(text: str, code: int, error: BaseException) -> None:
    if volume.verbose:
        messages.print("".join(traceback.format_exception(error)), markup=False, end="")
    complain("error", " ".join((text, *getattr(error, "__notes__", ()))))
    raise typer.Exit(code) from error


def _is_lack_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Return whether this is one of PyTorch's errors of memory, which are RuntimeErrors on a CPU."""
    return isinstance(error, MemoryError) or any(
        hint in str(error).lower() for hint in ("out of memory", "can't allocate memory")
    )


@contextmanager
def with_quiet_libraries() -> Iterator[None]:
    """Print our warnings in one line, and keep other libraries' remarks and bars off the terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", Cones2Warning)
        shown: set[str] = set()  # the same remark on each batch of pictures is one remark

        def tell(message: Warning | str, *_args: object, **_options: object) -> None:
            if str(message) not in shown and not volume.quiet:
                shown.add(str(message))
                complain("warning", message)

        warnings.showwarning = tell
        yield
