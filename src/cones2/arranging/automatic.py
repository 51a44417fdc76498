"""A layout without drawing: places in words, else what the prompt says, else its order."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cones2.arranging.grids import free_area, part_of, spread
from cones2.arranging.relations import Relation, find_relations
from cones2.arranging.words import PLACE_WORDS, Place, read_place
from cones2.errors import LayoutError
from cones2.layout.box import WHOLE, Box
from cones2.layout.region import Region
from cones2.layout.regions import Layout
from cones2.layout.shapes import Rest
from cones2.prompts import ParsedPrompt, parse_prompt, placeholders

_WORDS = "|".join(PLACE_WORDS)
_SAID = re.compile(rf"\b(?:on|at|in|to) the ((?:{_WORDS})(?:[ -](?:{_WORDS}))*)\b(?! of)", re.IGNORECASE)
_CLAUSE_END = re.compile(r"[,.;:]|\band\b")


@dataclass(frozen=True)
class _Nesting:
    """How two subjects share a place: their parts of it, and how much higher the guest is than the host."""

    guest: tuple[float, float, float, float]
    host: tuple[float, float, float, float]
    rise: int
    first_is_guest: bool = True


_WHOLE_PLACE = (0.0, 0.0, 1.0, 1.0)
_NESTINGS = {
    "wearing": _Nesting((0.2, 0.1, 0.8, 0.4), _WHOLE_PLACE, 1, first_is_guest=False),
    "holding": _Nesting((0.25, 0.5, 0.75, 0.85), _WHOLE_PLACE, 1, first_is_guest=False),
    "in": _Nesting((0.25, 0.15, 0.75, 0.7), _WHOLE_PLACE, 1),
    "on": _Nesting((0.1, 0.0, 0.9, 0.6), (0.0, 0.5, 1.0, 1.0), 1),
    "above": _Nesting((0.0, 0.0, 1.0, 0.48), (0.0, 0.52, 1.0, 1.0), 0),
    "below": _Nesting((0.0, 0.52, 1.0, 1.0), (0.0, 0.0, 1.0, 0.48), 0),
    "behind": _Nesting((0.0, 0.0, 1.0, 0.65), (0.1, 0.3, 0.9, 1.0), -1),
    "front": _Nesting((0.1, 0.4, 0.9, 1.0), (0.0, 0.0, 1.0, 0.75), 1),
}
_IN_FRONT_OF_MANY = (0.1, 0.55, 0.9, 1.0)  # who has somebody with guests behind them, and leaves these in sight


_Guests = dict[str, tuple[str, _Nesting]]  # host and nesting by guest


def auto_layout(
    prompt: str, *, places: Mapping[str, str] | None = None, given: Layout | None = None, aspect: float = 1.0
) -> Layout:
    """Place every subject of a prompt.

    What is given stays. Then places in words count, then words of the prompt itself ("a {rex} on the left"); subjects
    that the prompt nests ("a {rex} wearing {shades}", on, in, holding, above, below, behind, in front of) share a
    place, the one in front with the greater z; what is left is spread in the prompt's order over the free part of the
    picture, as many rows as suit its shape.

    Args:
        prompt: with placeholders.
        places: by name, words as `read_place` reads them.
        given: regions that are drawn already.
        aspect: the picture's width by its height.

    Raises:
        PromptError: a placeholder can't be read.
        LayoutError: a place is for no subject of the prompt, or its words are none.
    """
    names, given = placeholders(prompt), given or Layout({})
    for name in (places or {}).keys() - set(names):
        known = ", ".join(names) or "none"
        raise LayoutError(f"a place is for {name!r}, whom the prompt does not mention; it has: {known}.")
    parsed = parse_prompt(prompt, {name: name for name in names})
    said = {**_said_places(parsed), **{name: read_place(words) for name, words in (places or {}).items()}}
    relations = find_relations(parsed)
    guests = _guests(relations, placed={*given.names, *said})
    hosts = [name for name in names if name not in guests and name not in given.names]
    hosts, in_a_row = _ordered(hosts, relations, guests)
    found = _placed({name: said[name] for name in hosts if name in said}, given, aspect)
    others = [name for name in hosts if name not in found.names]
    boxes = _spread_beside(found, len(others), aspect=aspect, in_a_row=in_a_row)
    regions = {**found.regions, **{name: Region((box,)) for name, box in zip(others, boxes, strict=True)}}
    for name in tuple(regions):
        regions |= _with_guests(name, regions[name], guests)
    regions |= given.regions
    return _in_sight(Layout({name: regions[name] for name in dict.fromkeys((*given.names, *names))}), given)


def place_subjects(places: Mapping[str, str], *, given: Layout | None = None, aspect: float = 1.0) -> Layout:
    """Place subjects by words; those of the same place share it evenly, in the order given.

    Args:
        places: by name, words as `read_place` reads them: "left", "top right", "behind", "rest".
        given: regions that are drawn already; they stay.
        aspect: the picture's width by its height.

    Raises:
        LayoutError: words say no place.

    Example:
        >>> place_subjects({"rex": "left", "sea": "rest"}).regions["rex"].bounds
        Box(xmin=0.04, ymin=0.04, xmax=0.46, ymax=0.96)
    """
    return _placed({name: read_place(words) for name, words in places.items()}, given or Layout({}), aspect)


def _placed(places: Mapping[str, Place], given: Layout, aspect: float) -> Layout:
    regions = dict(given.regions)
    for place in dict.fromkeys(places.values()):
        names = [name for name, wanted in places.items() if wanted == place]
        if place.area is None:
            regions |= {name: Region((Rest(),)) for name in names}
        elif place.is_scene:
            regions |= {name: Region((place.area,), z=place.z) for name in names}
        else:
            boxes = spread(len(names), place.area, aspect=aspect)
            regions |= {name: Region((box,), z=place.z) for name, box in zip(names, boxes, strict=True)}
    return Layout(regions)


def _said_places(prompt: ParsedPrompt) -> dict[str, Place]:
    """Read what the prompt says right after a subject: "a {rex} sleeping on the left"."""
    found: dict[str, Place] = {}
    ends = (*(mention.start for mention in prompt.mentions[1:]), len(prompt.text))
    for mention, end in zip(prompt.mentions, ends, strict=False):
        clause = _CLAUSE_END.split(prompt.text[mention.end : end])[0]
        match = _SAID.search(clause)
        if match and mention.name not in found:
            found[mention.name] = read_place(match[1])
    return found


def _guests(relations: Iterable[Relation], placed: Iterable[str]) -> _Guests:
    """Say who stays with whom; who is a guest already brings their host along."""
    guests: _Guests = {}
    for relation in relations:
        nesting = _NESTINGS.get(relation.kind)
        if nesting is None:
            continue
        pair = (relation.first, relation.second)
        guest, host = pair if nesting.first_is_guest else pair[::-1]
        guest = _first_host(guest, guests)
        if guest not in placed and guest != _first_host(host, guests):
            guests[guest] = host, nesting
    return guests


def _first_host(name: str, guests: _Guests) -> str:
    """Give a subject's host, or that one's host, and so on."""
    while name in guests:
        name = guests[name][0]
    return name


def _with_guests(host: str, region: Region, guests: _Guests) -> dict[str, Region]:
    """Divide a host's place among the host and its guests, and theirs."""
    box = region.bounds
    found: dict[str, Region] = {}
    for guest, (theirs, nesting) in guests.items():
        if theirs == host:
            place = Region((part_of(box, nesting.guest),), z=region.z + _rise(nesting, _levels(guest, guests)))
            with_their_own = _with_guests(guest, place, guests)
            is_crowd_behind = nesting.rise < 0 and len(with_their_own) > 1
            box = part_of(box, _IN_FRONT_OF_MANY if is_crowd_behind else nesting.host)
            found |= with_their_own
    return {host: Region((box,), z=region.z) if found else region, **found}


def _levels(host: str, guests: _Guests) -> list[int]:
    """Say how much higher than a host everybody of their place is, the host included."""
    levels = [0]
    for guest, (theirs, nesting) in guests.items():
        if theirs == host:
            own = _levels(guest, guests)
            levels += [_rise(nesting, own) + level for level in own]
    return levels


def _rise(nesting: _Nesting, levels: Sequence[int]) -> int:
    """Say how much higher than their host a guest is, so that all their own guests are on the same side of the host."""
    return nesting.rise - (max(levels) if nesting.rise < 0 else min(levels) if nesting.rise > 0 else 0)


def _ordered(names: Sequence[str], relations: Sequence[Relation], guests: _Guests) -> tuple[list[str], bool]:
    """Put who is said to be left of another before them; also tell whether anyone is, so that one row is wanted."""
    ordered, in_a_row = list(names), False
    for relation in [relation for relation in relations if relation.kind in {"left", "right"}] * len(names):
        pair = (_first_host(relation.first, guests), _first_host(relation.second, guests))
        if not set(pair) <= set(names):
            continue
        in_a_row = True
        left, right = pair if relation.kind == "left" else pair[::-1]
        if ordered.index(left) > ordered.index(right):
            ordered.remove(left)
            ordered.insert(ordered.index(right), left)
    return ordered, in_a_row


def _in_sight(layout: Layout, given: Layout) -> Layout:
    """Let all that is not given share its place where nests are so deep that somebody would be covered wholly."""
    if all(region.cover.any() for region in layout.shown(1, 1).values()):
        return layout
    z = max((region.z for region in given.regions.values()), default=0)
    level = {name: replace(region, z=z) for name, region in layout.regions.items() if name not in given.names}
    return Layout({**layout.regions, **level})


def _spread_beside(found: Layout, count: int, *, aspect: float, in_a_row: bool) -> list[Box]:
    if not count:
        return []
    taken = [region.bounds for region in found.regions.values() if not region.is_rest and region.bounds != WHOLE]
    return spread(count, free_area(taken) if taken else WHOLE, aspect=aspect, rows=1 if in_a_row else None)
