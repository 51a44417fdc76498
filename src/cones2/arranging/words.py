"""Places in words, such as "left" or "top right", and what areas of the picture they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cones2.errors import LayoutError
from cones2.layout.box import WHOLE, Box

_ACROSS = {"left": (0.0, 0.5), "right": (0.5, 1.0)}
_DOWN = {"top": (0.0, 0.5), "upper": (0.0, 0.5), "bottom": (0.5, 1.0), "lower": (0.5, 1.0)}
_MIDDLE = {"center", "centre", "middle"}
_MIDDLE_SIDES = (0.25, 0.75)
_DEPTH = {"behind": -1, "back": -1, "background": -1, "front": 1, "foreground": 1}
_WHOLE = {"all", "everywhere"}
_REST = {"rest"}
_FILLERS = {"at", "in", "on", "the", "to", "corner", "half", "part", "side"}

PLACE_WORDS = (*_ACROSS, *_DOWN, *sorted(_MIDDLE), *_DEPTH, *sorted(_WHOLE), *_REST)
"""All words that say where."""


@dataclass(frozen=True)
class Place:
    """Where words put a subject.

    Attributes:
        area: of the picture; None is what the others leave.
        z: behind the others, level with them, or before them.
        is_scene: whether the area is to be filled up to the picture's border.
    """

    area: Box | None
    z: int = 0
    is_scene: bool = False


def read_place(words: str) -> Place:
    """Read words such as "left", "in the top right corner", "behind", "all" or "rest".

    Raises:
        LayoutError: a word says no place, or two of them contradict each other.
    """
    found = [word for word in re.split(r"[\s_-]+", words.lower().strip()) if word and word not in _FILLERS]
    unknown = [word for word in found if word not in PLACE_WORDS]
    if unknown or not found:
        got = repr(unknown[0][:40]) if unknown else "nothing"
        raise LayoutError(f"{got} says no place: expected words of {', '.join(PLACE_WORDS)}.")
    across, down, depth = (_only(found, table, words) for table in (_ACROSS, _DOWN, _DEPTH))
    alone = {word for word in found if word in _WHOLE | _REST}
    if alone and len(found) > 1:
        raise LayoutError(f"{words!r} says two places: expected {sorted(alone)[0]!r} alone.")
    if alone & _REST:
        return Place(None, is_scene=True)
    z = _DEPTH.get(depth or "", 0)
    if alone or (z < 0 and len(found) == 1):
        return Place(WHOLE, z, is_scene=True)
    is_middle = any(word in _MIDDLE for word in found)
    usual_across = _MIDDLE_SIDES if is_middle and not across else (0.0, 1.0)
    usual_down = _MIDDLE_SIDES if is_middle and not down else (0.5, 1.0) if z > 0 and not across else (0.0, 1.0)
    (xmin, xmax), (ymin, ymax) = _ACROSS.get(across or "", usual_across), _DOWN.get(down or "", usual_down)
    return Place(Box(xmin, ymin, xmax, ymax), z)


def _only(found: list[str], table: Mapping[str, object], words: str) -> str | None:
    """Give the word of a table that is there; two that mean the same are one."""
    named = [word for word in found if word in table]
    if len({table[word] for word in named}) > 1:
        raise LayoutError(f"{words!r} says two places: leave {named[0]!r} or {named[1]!r} out.")
    return named[0] if named else None
