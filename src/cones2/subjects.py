"""Subjects: what a placeholder of the prompt stands for, and how it enters the text that the model reads."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cones2.errors import PromptError, ResidualMismatchError, SettingsError
from cones2.files import is_name, name_hint
from cones2.prompts import check_class_word, check_no_weights
from cones2.residual import Residual

PROPORTIONS: Mapping[str, float] = {
    "dog": 1.07, "cat": 1.08, "owl": 0.79, "teddy bear": 0.84, "sunglasses": 2.0, "hat": 1.02, "mug": 1.21,
    "backpack": 0.96, "ball": 1.0, "car": 1.62,
}  # fmt: skip
"""Width by height of some class words' subjects; all others are taken for square."""

_ALWAYS = (0.0, 1.0)


@dataclass(frozen=True)
class Subject:
    """What a placeholder of the prompt stands for.

    Attributes:
        class_word: the raw category, as in the text that the model reads.
        residual: what makes it the user's own; None is an untaught word that only gets a place.
        strength: how much of the residual is added; 1 as learned.
        during: from when to when it is added, by noise: 0 is pure noise, 1 the finished picture.
        negative: what this subject should not show. Only its own region sees it, as a part of the negative prompt
            there; it needs a region and classifier-free guidance.

    Raises:
        CaptionError: the class word is empty or only punctuation.
        PromptError: something in the negative text is weighed.
        ResidualMismatchError: the residual was learned for another class word.
        SettingsError: the strength is not finite, or `during` is not a part of 0..1.
    """

    class_word: str
    residual: Residual | None = None
    strength: float = 1.0
    during: tuple[float, float] = _ALWAYS
    negative: str = ""

    def __post_init__(self) -> None:
        check_class_word(self.class_word)
        if not isinstance(self.strength, int | float) or not math.isfinite(self.strength):
            raise SettingsError(f"strength {self.strength!r} can't be used: expected a number, 1 as learned.")
        if not _is_part(self.during):
            raise SettingsError(f"during {self.during!r} can't be used: expected a part of 0 to 1, such as (0, 0.6).")
        check_no_weights(self.negative)
        if self.residual is not None and self.residual.class_word != self.class_word:
            raise ResidualMismatchError(
                f"the residual was learned for {self.residual.class_word!r}, the subject is called a"
                f" {self.class_word!r}: use the residual's own class word."
            )

    @property
    def is_always(self) -> bool:
        """Whether its residual acts in all steps."""
        return self.during == _ALWAYS

    def __repr__(self) -> str:
        """Return a short form: what it is and what differs from the defaults."""
        taught = "untaught" if self.residual is None else f"residual {self.residual.sha256[:12]}"
        others = {"strength": 1.0, "during": _ALWAYS, "negative": ""}
        changed = [f", {k}={getattr(self, k)!r}" for k, default in others.items() if getattr(self, k) != default]
        return f"Subject({self.class_word!r}, {taught}{''.join(changed)})"


def _is_part(value: object) -> bool:
    """Whether this is two numbers of 0..1, the smaller first."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    return len(numbers) == 2 and all(isinstance(n, int | float) for n in numbers) and 0 <= numbers[0] < numbers[1] <= 1


def as_subjects(given: Any) -> dict[str, Subject]:
    """Make subjects of a mapping of names to what `as_subject` takes; SettingsError for anything else."""
    if not isinstance(given, Mapping):
        raise SettingsError(f"subjects is {reprlib.repr(given)}: expected a dict by name, such as {{'cup': 'mug'}}.")
    return {name: as_subject(name, value) for name, value in given.items()}


def as_subject(name: str, value: Any) -> Subject:
    """Make a subject of what a user gives for a name: a subject, a residual, an example, or an untaught word.

    Raises:
        SettingsError: it is none of them, or the name can't be one.
    """
    if not isinstance(name, str) or not is_name(name):
        raise SettingsError(f"{reprlib.repr(name)} can't name a subject: {name_hint(str(name))}")
    if isinstance(value, Subject):
        return value
    residual = value if isinstance(value, Residual) else getattr(value, "residual", None)
    if isinstance(residual, Residual):
        return Subject(residual.class_word, residual)
    if isinstance(value, str):
        return Subject(value)
    raise SettingsError(
        f"subject {name!r} is {reprlib.repr(value)}, a {type(value).__name__}: expected a Subject, a Residual, or the"
        " class word of an untaught one, such as 'ball'."
    )


def check_mentioned(names: Mapping[str, Any], mentioned: Mapping[str, Any]) -> None:
    """Check that the prompt mentions every subject of a call; PromptError where it does not mention one."""
    for name in names:
        if name not in mentioned:
            raise PromptError(f"the prompt does not mention {{{name}}}: write it where that subject belongs.")
