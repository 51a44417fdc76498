"""Boxes from words such as "left", or from nothing: shaped like their subjects, on common ground, and apart."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cones2.errors import LayoutError
from cones2.layout import WHOLE, Box, Layout, Region, Rest
from cones2.subjects import PROPORTIONS

_COLUMNS = {"left": 0, "right": 2}
_ROWS = {"top": 0, "upper": 0, "bottom": 2, "lower": 2}
_DEPTHS = {"behind": -1, "back": -1, "background": -1, "front": 1, "foreground": 1}
_MIDDLE = {"center", "centre", "middle"}
_ALONE = {"all": WHOLE, "everywhere": WHOLE, "rest": Rest()}
_FILLERS = {"at", "in", "on", "the", "to", "corner", "half", "part", "side"}
PLACE_WORDS = (*_COLUMNS, *_ROWS, *sorted(_MIDDLE), *_DEPTHS, *_ALONE)
"""All words that say where."""

_GAP = 0.04  # between boxes, in shorter sides of the picture
_GROUND, _TALLEST = 0.9, 0.8  # of a row: where its boxes stand, and how high they may be
_LONGEST, _SHORTEST = 0.7, 0.25  # longer side of a box, in shorter sides of the picture; smaller subjects get lost
_LEAST_ROOM = 0.15  # of the picture's area


@dataclass(frozen=True)
class _Place:
    """Column and row of a 3 x 3 grid, None where nothing is said; or the shape of a scene."""

    column: int | None = None
    row: int | None = None
    z: int = 0
    scene: Box | Rest | None = None


def place_layout(
    words: Mapping[str, str], given: Layout | None = None, *, class_words: Mapping[str, str], aspect: float = 1.0
) -> Layout:
    """Place subjects by words: left, right, top, bottom, center and corners; front and behind; all, background, rest.

    `given` regions stay. A box has the proportions of its class word, square where there is none; `aspect` is the
    picture's width by its height.

    Raises:
        LayoutError: a word says no place, or two of them contradict each other.

    Example:
        >>> place_layout({"rex": "left", "sea": "rest"}, class_words={})
        Layout(rex=Region(Box(0.04, 0.48, 0.46, 0.9)), sea=Region(Rest()))
    """
    places = {name: _read(text) for name, text in words.items()}
    regions = {name: Region((place.scene,), place.z) for name, place in places.items() if place.scene is not None}
    for z in {place.z for place in places.values()}:
        level = {name: place for name, place in places.items() if place.z == z and place.scene is None}
        boxes = _boxes(_areas(level), class_words, aspect)
        regions |= {name: Region((box,), z) for name, box in boxes.items()}
    return Layout({**(given.regions if given else {}), **{name: regions[name] for name in words}})


def auto_layout(
    names: Sequence[str], class_words: Mapping[str, str], *, given: Layout | None = None, aspect: float = 1.0
) -> Layout:
    """Place subjects that have no region in `given` side by side, in as many rows as it takes to keep them large.

    Arguments are those of `place_layout`; what is given keeps its place, and the others get the largest strip beside.

    Example:
        >>> auto_layout(["rex", "car"], {"rex": "dog", "car": "car"})
        Layout(rex=Region(Box(0.04, 0.4888, 0.48, 0.9)), car=Region(Box(0.52, 0.6284, 0.96, 0.9)))
    """
    regions = dict(given.regions) if given else {}
    others = [name for name in dict.fromkeys(names) if name not in regions]
    area = _free_area([region.bounds for region in regions.values() if region.bounds != WHOLE])
    boxes = _boxes({area: others}, class_words, aspect)
    return Layout({**regions, **{name: Region((box,)) for name, box in boxes.items()}})


def _read(text: str) -> _Place:
    found = [word for word in re.split(r"[\s_-]+", text.lower()) if word and word not in _FILLERS]
    unknown = [word for word in found if word not in PLACE_WORDS]
    if unknown or not found:
        got = repr(unknown[0][:40]) if unknown else "nothing"
        raise LayoutError(f"{got} says no place: expected words of {', '.join(PLACE_WORDS)}.")
    column, row, depth, scene = (_only(found, table, text) for table in (_COLUMNS, _ROWS, _DEPTHS, _ALONE))
    if scene is not None:
        if len(found) > 1:
            raise LayoutError(f"{text[:40]!r} says two places: expected 'all', 'everywhere' or 'rest' alone.")
        return _Place(scene=scene)
    if not _MIDDLE.isdisjoint(found):
        column, row = (1 if line is None else line for line in (column, row))
    elif column is row is None and depth is not None:
        return _Place(row=2, z=1) if depth > 0 else _Place(z=-1, scene=WHOLE)
    return _Place(column, row, depth or 0)


def _only(found: Sequence[str], table: Mapping[str, Any], text: str) -> Any:
    """Return what a table says of the word that is there; two that mean the same are one."""
    named = [word for word in found if word in table]
    if len({table[word] for word in named}) > 1:
        raise LayoutError(f"{text[:40]!r} says two places: leave {named[0]!r} or {named[1]!r} out.")
    return table[named[0]] if named else None


def _areas(places: Mapping[str, _Place]) -> dict[Box, list[str]]:
    """Return the areas of the picture that are taken, and who shares each.

    A subject without a row stands on the ground: the lowest row that no other has; "center" alone joins them.
    """
    rows = {name: place.row for name, place in places.items()}
    if None in rows.values():
        rows |= {name: None for name, place in places.items() if (place.column, place.row) == (1, 1)}
    areas: dict[Box, list[str]] = {}
    down = _spans(rows, (2, 1, 0))
    for span in dict.fromkeys(down.values()):
        across = _spans({name: places[name].column for name in places if down[name] == span}, (1,))
        for name, (left, right) in across.items():
            areas.setdefault(Box(left, span[0], right, span[1]), []).append(name)
    return areas


def _spans(lines: Mapping[str, int | None], usual: Sequence[int]) -> dict[str, tuple[float, float]]:
    """Return everybody's part of a side: all of it where nobody says which, else a half; thirds beside a middle."""
    said = set(lines.values()) - {None}
    if not said:
        return dict.fromkeys(lines, (0.0, 1.0))
    other = next((line for line in usual if line not in said), 1)
    filled = {name: other if line is None else line for name, line in lines.items()}
    if 1 in filled.values() and len(set(filled.values())) > 1:
        return {name: (line / 3, (line + 1) / 3) for name, line in filled.items()}
    return {name: (line / 4, line / 4 + 0.5) for name, line in filled.items()}


def _boxes(areas: Mapping[Box, Sequence[str]], class_words: Mapping[str, str], aspect: float) -> dict[str, Box]:
    """Return a box for everybody in their areas, all of one scale, standing in rows and evenly apart."""
    ratios = {
        name: PROPORTIONS.get(class_words.get(name, "").lower(), 1.0) for names in areas.values() for name in names
    }
    shapes = {name: (min(ratio, 1.0), min(1 / ratio, 1.0)) for name, ratio in ratios.items()}  # the longer side is 1
    rows = {area: _rows(len(names), area, aspect) for area, names in areas.items() if names}
    scale = min((scale for _, scale in rows.values()), default=0.0)
    found: dict[str, Box] = {}
    for area, (count, _) in rows.items():
        height = (area.ymax - area.ymin) / count
        ends = [-(-len(areas[area]) * row // count) for row in range(count + 1)]
        for number, (start, end) in enumerate(pairwise(ends)):
            names, ground = areas[area][start:end], area.ymin + (number + _GROUND) * height
            taken = scale / aspect * sum(shapes[name][0] for name in names)
            space, right = (area.xmax - area.xmin - taken) / (len(names) + 1), area.xmin
            for name in names:
                left = right + space
                right = left + scale / aspect * shapes[name][0]
                sides = (left, ground - scale * shapes[name][1], right, ground)
                found[name] = Box(*(round(side, 4) for side in sides))
    return found


def _rows(count: int, area: Box, aspect: float) -> tuple[int, float]:
    """Return the fewest rows that keep `count` subjects large, and how long a longer side may be in them."""
    width, height, short = (area.xmax - area.xmin) * aspect, area.ymax - area.ymin, min(aspect, 1.0)
    best = (1, 0.0)
    for rows in range(1, count + 1):
        columns = -(-count // rows)
        cell = width / columns
        across = cell - min(_GAP * short, cell / 12) * (columns + 1) / columns
        scale = min(across, _TALLEST * height / rows, _LONGEST * short)
        best = max(best, (rows, scale), key=lambda found: found[1])
        if best[1] >= _SHORTEST * short:
            break
    return best


def _free_area(taken: Sequence[Box]) -> Box:
    """Return the largest strip of the picture beside all boxes; the whole picture where there is hardly any."""
    if not taken:
        return WHOLE
    left, top = min(box.xmin for box in taken), min(box.ymin for box in taken)
    right, bottom = max(box.xmax for box in taken), max(box.ymax for box in taken)
    strips = ((0.0, 0.0, left, 1.0), (right, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, top), (0.0, bottom, 1.0, 1.0))
    best = max(strips, key=lambda sides: (sides[2] - sides[0]) * (sides[3] - sides[1]))
    return Box(*best) if (best[2] - best[0]) * (best[3] - best[1]) >= _LEAST_ROOM else WHOLE
