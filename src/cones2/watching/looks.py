"""The looks that patience counts, kept beside the checkpoints: a resumed learning stops where an undisturbed one does.

Each is a file `look-N.json`, whole or absent, with the residual's own file in it as base64.
"""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cones2.errors import Cones2Error, LearningError
from cones2.files import read_bounded, write_atomically
from cones2.residual.format import MAX_FILE_BYTES
from cones2.residual.residual import Residual

_LARGEST = 2 * MAX_FILE_BYTES
_NAME = re.compile(r"look-([0-9]{8,})\.json", re.ASCII)


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen at a step of learning.

    Attributes:
        step: which one.
        identity: how like the subject its pictures were.
        loss: L of Eq. 4 at that step.
        residual: what was learned by then.
    """

    step: int
    identity: float
    loss: float
    residual: Residual


def best_look(looks: Sequence[Look]) -> Look | None:
    """Give the look of the highest identity, the first of equals; None where there is none."""
    return max(looks, key=lambda look: look.identity, default=None)


def save_look(folder: Path, look: Look, *, how: str) -> None:
    """Keep a look, and `how` it was taken.

    Raises:
        OutputError: it can't be written.
    """
    residual = base64.b64encode(look.residual.to_bytes()).decode()
    fields = {"identity": look.identity, "loss": look.loss, "how": how, "residual": residual}
    write_atomically(folder / f"look-{look.step:08d}.json", json.dumps(fields).encode())


def load_looks(folder: Path, *, until: int, how: str) -> list[Look]:
    """Give the looks up to step `until`, in order, and delete the later ones: learning comes to those steps again.

    Raises:
        LearningError: one is damaged, or was taken in another way than `how`, so that it can't be compared with.
    """
    found = {int(name[1]): path for path in folder.glob("look-*") if (name := _NAME.fullmatch(path.name))}
    for step, path in found.items():
        if step > until:
            path.unlink()
    return [_load(found[step], step, how) for step in sorted(found) if step <= until]


def _load(path: Path, step: int, how: str) -> Look:
    try:
        fields = json.loads(read_bounded(path, limit=_LARGEST, error=LearningError))
        residual = Residual.from_bytes(base64.b64decode(fields["residual"]))
        look, taken = Look(step, float(fields["identity"]), float(fields["loss"]), residual), str(fields["how"])
    except (Cones2Error, ValueError, KeyError, TypeError, RecursionError) as error:
        advice = "Delete it, and the count of looks begins without it; or begin again without resuming"
        raise LearningError(f"{path} is damaged, expected a look at learning. {advice}.") from error
    if taken != how:
        raise LearningError(
            f"the looks in {path.parent} were measured or drawn in another way: resume with the options that learning"
            " began with, or begin again without resuming."
        )
    return look
