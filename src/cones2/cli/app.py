"""The commands, and what holds for all of them: one-line errors, exit codes, quiet libraries."""

import importlib.metadata
import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cones2.cli import check, compose, demo, grid, hub, import_, inspect, layout, learn, learn_all, mix, subjects
from cones2.cli.edge import told_in_one_line, with_quiet_libraries


class _Commands(TyperGroup):
    """Runs every command inside the edge: what goes wrong in it is told in one line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with told_in_one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with with_quiet_libraries(), told_in_one_line():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    name="cones2",
    help="Teach a text-to-image model your own subjects, and place any number of them in one picture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(check.check)
app.command()(learn.learn)
app.command(name="learn-all")(learn_all.learn_all)
app.command()(mix.mix)
app.command()(compose.compose)
app.command()(grid.grid)
app.command()(inspect.inspect)
app.command()(layout.layout)
app.command("import")(import_.import_)
app.add_typer(subjects.app)
app.command()(hub.push)
app.command()(hub.pull)


def _tell_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"cones2 {importlib.metadata.version('cones2')}")
        raise typer.Exit
    return asked


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line, as `cones2` does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character shows its code
    app(prog_name="cones2")
