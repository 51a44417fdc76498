"""Sheets of pictures that nobody chose: some by a hash, the worst of a row, and those where another row wins."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL.Image import Image

from cones2.drawing import Row, contact_sheet
from cones2.errors import SettingsError
from cones2.evaluation.lines import PictureLine
from cones2.evaluation.run import PICTURES
from cones2.evaluation.scores import Scorer
from cones2.photos import load_photos

SHOWN = 16
"""Pictures of a sheet's row."""
_AT_ONCE = 8  # in a line of a sheet
_CELL = 128  # pixels

Key = tuple[str, int, int, bool]
"""Which picture of a protocol a line is: combination, prompt, number and layout, the same for every row."""


def sheets(scorer: Scorer, lines: Sequence[PictureLine], folder: Path, ours: str) -> dict[str, Image]:
    """Return sheets by name, of pictures of a run that were kept: `drawn`, `worst` and `lost`.

    Args:
        scorer: of the protocol.
        lines: of all rows.
        folder: of the run.
        ours: the row whose worst pictures are shown, and those where another row has all subjects right and it has not.

    Raises:
        SettingsError: no picture was kept.
    """
    kept = [line for line in lines if (folder / PICTURES / f"{line.picture}.png").is_file()]
    if not kept:
        raise SettingsError(f"{folder} keeps no pictures: run again with pictures kept, into a new folder.")
    own = [line for line in kept if line.row == ours]
    groups = {
        "drawn": {row: by_hash([line for line in kept if line.row == row]) for row in {line.row: 0 for line in kept}},
        "worst": {f"the worst of {ours}": worst(scorer, own)},
        "lost": lost(scorer, kept, ours),
    }
    return {name: _sheet(scorer, folder, some) for name, some in groups.items() if any(some.values())}


def by_hash(lines: Sequence[PictureLine]) -> list[PictureLine]:
    """Return 16 pictures in the order of hashes of what they are of: for every row the same ones, chosen by nobody."""
    return sorted(lines, key=lambda line: hashlib.sha256(repr(key_of(line)).encode()).digest())[:SHOWN]


def worst(scorer: Scorer, lines: Sequence[PictureLine]) -> list[PictureLine]:
    """Return the 16 pictures in which the fewest subjects are themselves, and of equal ones the least present."""

    def badness(line: PictureLine) -> tuple[float, float, float]:
        found = scorer.measure(line)
        return found["identity"] or 0.0, found["present"] or 0.0, found["image"] or 0.0

    return sorted(lines, key=badness)[:SHOWN]


def lost(scorer: Scorer, lines: Sequence[PictureLine], ours: str) -> dict[str, list[PictureLine]]:
    """Return for each rival the pictures that it has all right and ours has not, each followed by ours."""
    right = {(line.row, key_of(line)): bool(scorer.measure(line)["all_right"]) for line in lines}
    own: Mapping[Key, PictureLine] = {key_of(line): line for line in lines if line.row == ours}
    found: dict[str, list[PictureLine]] = {}
    for line in lines:
        key = key_of(line)
        if line.row != ours and key in own and right[line.row, key] and not right[ours, key]:
            found.setdefault(f"{line.row} has it right, and then {ours}", []).extend([line, own[key]])
    return {name: some[:SHOWN] for name, some in found.items()}


def key_of(line: PictureLine) -> Key:
    """Return which picture of the protocol a line is."""
    return line.combination, line.prompt, line.number, line.layout


def _sheet(scorer: Scorer, folder: Path, groups: Mapping[str, Sequence[PictureLine]]) -> Image:
    rows = []
    for label, lines in groups.items():
        for first in range(0, len(lines), _AT_ONCE):
            some = lines[first : first + _AT_ONCE]
            photos = load_photos([folder / PICTURES / f"{line.picture}.png" for line in some])
            captions = tuple(_caption(scorer, line) for line in some)
            rows.append(Row("" if first else label, tuple(photo.image for photo in photos), captions))
    return contact_sheet(rows, cell=_CELL)


def _caption(scorer: Scorer, line: PictureLine) -> str:
    prompt = scorer.protocol.document.prompts[line.prompt].text.replace("{subjects}", line.combination)
    return f"{prompt}, {'with' if line.layout else 'without'} layout"
