"""What a prompt says of two subjects: "{rex} to the left of {cup}", "{rex} wearing {hat}"."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from cones2.errors import Cones2Warning
from cones2.layout.regions import Layout
from cones2.prompts import ParsedPrompt

# Longer phrases first: "on top of" is not "on".
_PHRASES = (
    ("left", r"(?:to|on|at) the left (?:side )?of|left of"),
    ("right", r"(?:to|on|at) the right (?:side )?of|right of"),
    ("front", r"in front of"),
    ("above", r"on top of|atop|above|over"),
    ("below", r"below|under|underneath|beneath"),
    ("behind", r"behind"),
    ("wearing", r"wearing"),
    ("holding", r"holding|carrying|hugging"),
    ("in", r"inside|within|in"),
    ("on", r"on|upon|riding"),
)
_NO_ADJECTIVE = (
    "a|an|the|and|or|but|with|of|to|in|on|at|by|near|next|beside|from|for|is|are|while|wearing|holding|above|below|under"
    "|over|behind"
)
_THING = rf"(?:\s+(?:a|an|the|my|his|her|its|our|their|your|another))?(?:\s+(?!(?:{_NO_ADJECTIVE})\b)[\w-]+){{0,2}}\s+"
_PATTERNS = tuple(
    (kind, re.compile(rf"(?<!\w)(?P<words>{phrases}){_THING}$", re.IGNORECASE)) for kind, phrases in _PHRASES
)
_OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
_SAID = {"left": "to the left", "right": "to the right", "above": "above it", "below": "below it"}


@dataclass(frozen=True)
class Relation:
    """`first` is in a relation to `second`, the next subject of the prompt, in the words of the prompt."""

    first: str
    second: str
    kind: str
    words: str


def find_relations(prompt: ParsedPrompt) -> list[Relation]:
    """Find what a prompt says between neighbouring subjects, in its order."""
    return list(_relations(prompt))


def contradictions(prompt: ParsedPrompt, layout: Layout) -> list[str]:
    """Tell, a sentence each, where a layout has two subjects the other way round than the prompt says.

    Middles of regions are compared. The paper asks for a layout that is "roughly consistent with the textual
    description" (arXiv:2305.19327, App. D).
    """
    return [
        f"the prompt has {relation.first!r} {relation.words} {relation.second!r}, but its region is"
        f" {_SAID[_OPPOSITES[relation.kind]]}: neither may come out well. Move one of them, or change the prompt."
        for relation in _relations(prompt)
        if _is_contradicted(relation, layout)
    ]


def warn_of_contradictions(prompt: ParsedPrompt, layout: Layout | None) -> None:
    """Give a `Cones2Warning` for each of the `contradictions`."""
    for text in contradictions(prompt, layout) if layout else ():
        warnings.warn(text, Cones2Warning, stacklevel=3)


def _relations(prompt: ParsedPrompt) -> Iterator[Relation]:
    for first, second in pairwise(prompt.mentions):
        between = prompt.text[first.end : second.start]
        if first.name == second.name:
            continue
        for kind, pattern in _PATTERNS:
            match = pattern.search(between)
            if match:
                yield Relation(first.name, second.name, kind, match["words"].lower())
                break


def _is_contradicted(relation: Relation, layout: Layout) -> bool:
    regions = [layout.regions.get(name) for name in (relation.first, relation.second)]
    if relation.kind not in _OPPOSITES or any(region is None or region.is_rest for region in regions):
        return False
    (x1, y1), (x2, y2) = (region.bounds.center for region in regions if region)
    return {"left": x1 > x2, "right": x1 < x2, "above": y1 > y2, "below": y1 < y2}[relation.kind]
