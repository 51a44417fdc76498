"""Checks that files and names of every kind share; each caller says them in an error of its own."""

import re
import reprlib
from typing import NamedTuple

import pydantic

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


class Problem(NamedTuple):
    """Where a document is wrong (keys and places, joined by dots), what is said of it, and what stands there."""

    place: str
    message: str
    got: str


def first_problem(error: pydantic.ValidationError) -> Problem:
    """Tell the first of a document's problems, place and content cut short: they may be a stranger's."""
    first = error.errors()[0]
    return Problem(".".join(str(part) for part in first["loc"])[:100], first["msg"], reprlib.repr(first["input"]))


def is_name(text: str) -> bool:
    """Whether a text can name a subject: up to 64 letters, digits and underscores, no digit first."""
    return _NAME.fullmatch(text) is not None


def is_hub_id(text: str) -> bool:
    """Whether a text could be the id of a repository of the Hub, `owner/name`."""
    return _HUB_ID.fullmatch(text) is not None
