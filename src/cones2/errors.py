"""Every error that this package raises on purpose.

Each is also the built-in error that fits, so that code which knows nothing of this package can catch it. A message says
what is wrong, what was given, what was expected and what to do next.
"""

import functools
import reprlib
import typing
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

_LONGEST = 1000  # characters of a message


class Cones2Error(Exception):
    """Base class: catch this to catch everything that this package raises on purpose."""

    def __str__(self) -> str:
        """Return the message as one line, cut short: it may repeat what a stranger's file says."""
        text = printable(" ".join(super().__str__().splitlines()))
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


class SettingsError(Cones2Error, ValueError):
    """A setting is outside its range or unknown."""


class PhotoError(Cones2Error, ValueError):
    """A photo, or a folder of photos, can't be used."""


class CaptionError(Cones2Error, ValueError):
    """A class word, or a file of captions, can't be used."""


class PromptError(Cones2Error, ValueError):
    """A prompt and its subjects do not match, or the prompt does not fit the model's window."""


class LayoutError(Cones2Error, ValueError):
    """A box, a region or a layout file makes no sense."""


class ResidualError(Cones2Error, ValueError):
    """A residual file is damaged, hostile or of an unknown version."""


class ResidualMismatchError(ResidualError):
    """A sound residual belongs to another text encoder."""


class LibraryError(Cones2Error, ValueError):
    """The library of subjects does not have a name, or can't have it."""


class HubError(Cones2Error, OSError):
    """A subject can't be read from the Hub or written to it."""


class ModelError(Cones2Error, ValueError):
    """A model can't be opened, or lacks what the method needs."""


class LearningError(Cones2Error, ValueError):
    """Learning can't start, continue or resume."""


class PictureError(Cones2Error, ValueError):
    """A picture can't be read, or holds no record of how it was made."""


class OutputError(Cones2Error, OSError):
    """Something can't be written."""


class Cancelled(Cones2Error):  # noqa: N818 - it is no fault
    """Drawing was cancelled, so there is no picture."""


class Cones2Warning(UserWarning):
    """Something that the user should know and that does not stop the work."""


class Problem(NamedTuple):
    """Where a document is wrong (keys and places, joined by dots), what is said of it, and what stands there."""

    place: str
    message: str
    got: str


def printable(text: str) -> str:
    """Return one line of any text: a file from anyone may hold line breaks, or commands to the terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def first_problem(error: "ValidationError") -> Problem:
    """Tell the first of a document's problems, place and content cut short: they may be a stranger's."""
    first = error.errors(include_url=False, include_context=False)[0]
    return Problem(".".join(str(part) for part in first["loc"])[:100], first["msg"], reprlib.repr(first["input"]))


def check_fields(settings: object, of: str) -> None:
    """Check a frozen dataclass's fields by their types and ranges, else SettingsError; 1 becomes 1.0 for a `float`."""
    from pydantic import ValidationError  # the command line's help does without it

    try:
        model = _model_of(type(settings))  # type: ignore[arg-type]  # mypy does not know that classes are hashable
        checked = model.model_validate(dict(vars(settings)))
    except ValidationError as error:
        place, message, got = first_problem(error)
        name = place.partition(".lax-or-strict[")[0]  # pydantic's word for a path, where a text would do as well
        raise SettingsError(f"{name} of {of} is {got}. {message}: correct it.") from error
    for name, value in checked:
        object.__setattr__(settings, name, value)


@functools.cache
def _model_of(kind: type) -> Any:
    from pydantic import ConfigDict, create_model

    fields: Any = {name: (hint, ...) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}
    config = ConfigDict(strict=True, arbitrary_types_allowed=True)  # a protocol: whatever has its methods
    return create_model(kind.__name__, __config__=config, **fields)


def is_unicode(text: str) -> bool:
    """Return whether a text is one: half an emoji, or a byte that could not be decoded, is none to any tokenizer."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def counted(count: int, thing: str) -> str:
    """Return `no photos`, `1 photo`, `2 photos`."""
    return f"{count or 'no'} {thing}{'s' * (count != 1)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".") + "."
