"""Which of the objects that a detector saw is which of the subjects that were asked for."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

NOBODY = -1
"""In place of a detection's index: none is left for this subject."""

Boxes = Float[np.ndarray, "count 4"]
"""xmin, ymin, xmax, ymax in 0..1."""
Matches = Int[np.ndarray, "subjects"]
"""For each subject the index of its detection, or NOBODY; no detection serves two."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a detector saw in one picture.

    Attributes:
        classes: an index of each object's class.
        scores: how sure the detector is of each, 0 to 1.
        boxes: where each is.
        identities: how each looks, of length 1, compared by dot product.
    """

    classes: Int[np.ndarray, "seen"]
    scores: Float[np.ndarray, "seen"]
    boxes: Float[np.ndarray, "seen 4"]
    identities: Float[np.ndarray, "seen dim"]


@dataclass(frozen=True, eq=False)
class Wanted:
    """What one picture should show.

    Attributes:
        classes: an index of each subject's class.
        references: how each looks, of length 1.
        lookalikes: how others of its class look, by subject, of length 1; there may be none.
        boxes: where each should be, if the picture has a layout.
    """

    classes: Int[np.ndarray, "subjects"]
    references: Float[np.ndarray, "subjects dim"]
    lookalikes: tuple[Float[np.ndarray, "_ dim"], ...] = ()
    boxes: Float[np.ndarray, "subjects 4"] | None = None


def overlaps(
    ones: Float[np.ndarray, "ones 4"], others: Float[np.ndarray, "others 4"]
) -> Float[np.ndarray, "ones others"]:
    """Return the intersection over union of each pair of boxes; 0 for two without area."""
    least = np.maximum(ones[:, None, :2], others[None, :, :2])
    most = np.minimum(ones[:, None, 2:], others[None, :, 2:])
    shared = np.clip(most - least, 0, None).prod(axis=-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1) for boxes in (ones, others)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.asarray(shared / np.where(union > 0, union, 1))


def match(agree: Bool[np.ndarray, "seen subjects"], likeness: Float[np.ndarray, "seen subjects"]) -> Matches:
    """Give each subject a detection: as many of the right class as can be, and of all such ways the most alike.

    Args:
        agree: whether a detection is of a subject's class.
        likeness: how alike the two are, -1 to 1, by look or by place.
    """
    # One agreement more must outweigh whatever likeness can lose, 2 for each subject.
    subjects = agree.shape[1]
    seen, taken = linear_sum_assignment((2 * subjects + 1) * agree + likeness, maximize=True)
    matches = np.full(subjects, NOBODY)
    matches[taken] = seen
    return matches


def match_by_look(seen: Seen, wanted: Wanted) -> Matches:
    """Match by class, and within a class by identity."""
    return match(_agree(seen, wanted), seen.identities @ wanted.references.T)


def match_by_place(seen: Seen, wanted: Wanted) -> Matches:
    """Match by class, and within a class by the boxes that were asked for; whoever stands there is asked later."""
    assert wanted.boxes is not None, "only a picture with a layout can be matched by place"
    middles = [(boxes[:, :2] + boxes[:, 2:]) / 2 for boxes in (seen.boxes, wanted.boxes)]
    distances = np.linalg.norm(middles[0][:, None] - middles[1][None, :], axis=-1)
    # Of two that overlap neither box, each belongs to the nearer one.
    return match(_agree(seen, wanted), overlaps(seen.boxes, wanted.boxes) - distances / 10)


def right_class(seen: Seen, wanted: Wanted, matches: Matches) -> Bool[np.ndarray, "subjects"]:
    """Return for each subject whether its detection is of its class."""
    found = matches != NOBODY
    right = np.zeros(len(matches), dtype=bool)
    right[found] = seen.classes[matches[found]] == wanted.classes[found]
    return right


def _agree(seen: Seen, wanted: Wanted) -> Bool[np.ndarray, "seen subjects"]:
    return np.asarray(seen.classes[:, None] == wanted.classes[None, :])
