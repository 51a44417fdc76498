"""Options that several commands share, and how their text is read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from cones2.errors import SettingsError

MORE = "More options"
"""The panel of the less common options."""

_MODELS = "mini, a diffusers folder, a .safetensors file, or a Hub id OWNER/NAME."

Prompt = Annotated[
    str | None,
    typer.Argument(help="The prompt, with each subject's name in braces.", metavar="PROMPT", show_default=False),
]
SubjectTexts = Annotated[
    list[str] | None,
    typer.Option("--subject", help="A learned subject, of your library or a file.", metavar="NAME[=FILE]"),
]
PlainTexts = Annotated[
    list[str] | None,
    typer.Option("--plain", help="An untaught word that gets a place.", metavar="NAME[=WORD]"),
]
StrengthTexts = Annotated[
    list[str] | None,
    typer.Option("--strength", help="How much of a subject's residual: rex=1.0.", metavar="NAME=X"),
]
Official = Annotated[
    Path | None,
    typer.Option(help="Draw what a config of the authors' code asks for.", metavar="FILE", rich_help_panel=MORE),
]
Latents = Annotated[
    Path | None,
    typer.Option(help="Keep the latents, too: NAME.safetensors.", metavar="FILE", rich_help_panel=MORE),
]
Model = Annotated[str, typer.Option(help=_MODELS, metavar="MODEL")]
PictureModel = Annotated[
    str | None,
    typer.Option(help=_MODELS, metavar="MODEL", show_default="mini, or the picture's"),
]
ModelConfig = Annotated[
    str | None,
    typer.Option(
        help="What a .safetensors MODEL holds: sd1, sd2, sd2-base, sdxl, or a diffusers folder.",
        metavar="NAME_OR_DIR",
        rich_help_panel=MORE,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="cuda, mps or cpu; default: the best there is.", metavar="NAME", rich_help_panel=MORE),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16 or float16; default: what suits the device.", metavar="NAME", rich_help_panel=MORE
    ),
]
Library = Annotated[
    Path | None,
    typer.Option(
        help="Your subjects' folder; default: $CONES2_LIBRARY, else your data folder.",
        metavar="DIR",
        rich_help_panel=MORE,
    ),
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace one that is there already.")]
SaveMemory = Annotated[
    bool,
    typer.Option("--save-memory", help="Learn in less GPU memory, each step a UNet pass longer.", rich_help_panel=MORE),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.", rich_help_panel=MORE)]


def pairs(option: str, texts: Iterable[str], *, example: str) -> list[tuple[str, str]]:
    """Split `name=value` texts.

    Raises:
        SettingsError: one has no name or no value.
    """
    return [_pair(option, text, example) for text in texts]


def unique(option: str, texts: Iterable[str], *, example: str) -> dict[str, str]:
    """Split `name=value` texts, each name once.

    Raises:
        SettingsError: one has no name or no value, or a name comes twice.
    """
    found: dict[str, str] = {}
    for name, value in pairs(option, texts, example=example):
        if name in found:
            raise SettingsError(f"{option} names {name!r} twice: expected each name once. Leave one out.")
        found[name] = value
    return found


def number(option: str, text: str) -> float:
    """Read a number.

    Raises:
        SettingsError: it is none.
    """
    try:
        return float(text)
    except ValueError as error:
        raise SettingsError(f"{option}: {text!r} is no number. Write it like 0.5.") from error


def whole_number(option: str, text: str) -> int:
    """Read a whole number.

    Raises:
        SettingsError: it is none.
    """
    try:
        return int(text)
    except ValueError as error:
        raise SettingsError(f"{option}: {text!r} is no whole number. Write it like 1.") from error


def _pair(option: str, text: str, example: str) -> tuple[str, str]:
    name, _, value = (part.strip() for part in text.partition("="))
    if not (name and value):
        raise SettingsError(f"{option} {text!r} can't be read: expected NAME=VALUE, such as {example}.")
    return name, value
