"""Where text goes: results to stdout, all else to stderr, and nothing to the terminal's own commands."""

import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

messages = Console(stderr=True, soft_wrap=True, highlight=False)
"""Bars, warnings and errors."""


def printable(text: str) -> str:
    """Make one line of any text: a file from anyone may hold line breaks, or commands to the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def complain(kind: str, text: object) -> None:
    """Print one line to stderr, above a bar that is there: `error: ...` or `warning: ...`."""
    style = {"error": "bold red", "warning": "yellow"}[kind]
    messages.print(Text.assemble((f"{kind}:", style), " ", printable(" ".join(str(text).split()))))


def say(text: str) -> None:
    """Print a line of result, at once also where stdout is a pipe."""
    print(printable(text), flush=True)


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object, in ASCII."""
    print(json.dumps(value))


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """Print names and values."""
    table = Table(title=Text(printable(title), style="bold"), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(printable(name), style="cyan"), Text(printable(value)))
    Console().print(table)


def print_rows(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a head for each column."""
    table = Table(title=Text(printable(title), style="bold"), title_justify="left")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(table)
