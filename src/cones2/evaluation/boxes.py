"""Whether objects are where a layout asks for them: right box, mIoU, AP50, and relations between boxes."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from cones2.evaluation.matching import Seen, Wanted, match_by_place, overlaps, right_class
from cones2.judge import Corners, overlap

LEAST_OVERLAP = 0.4


def fits(box: Corners, region: Corners | None) -> bool:
    """Its centre is inside the region, and they overlap by 0.4 or more; everything fits no region."""
    if region is None:
        return True
    x, y = centre(box)
    inside = region[0] <= x <= region[2] and region[1] <= y <= region[3]
    return inside and overlap(box, region) >= LEAST_OVERLAP


def centre(box: Corners) -> tuple[float, float]:
    """Return the middle of a box."""
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def holds(relation: str, one: Corners, other: Corners) -> bool:
    """Two boxes are as a relation says: `one` wears, is on, or is next to `other`."""
    (x, y), (u, v) = centre(one), centre(other)
    width, height = max(one[2] - one[0], other[2] - other[0]), max(one[3] - one[1], other[3] - other[1])
    if relation == "wearing":
        return abs(x - u) < 0.3 * width and one[1] - 0.6 * height < v < one[3]
    if relation == "on":
        return abs(x - u) < 0.5 * width and y < v - 0.3 * height
    return abs(y - v) < 0.5 * height and 0.4 * width < abs(x - u) < 1.6 * width


def in_right_boxes(seen: Seen, wanted: Wanted) -> Bool[np.ndarray, "subjects"]:
    """Return for each subject whether something of its class fits its box, and no copy is outside of all boxes."""
    matches, boxes = match_by_place(seen, wanted), _boxes(wanted)
    there = right_class(seen, wanted, matches)
    counts = [(seen.classes == kind).sum() <= (wanted.classes == kind).sum() for kind in wanted.classes.tolist()]
    fitting = [
        bool(present) and fits(_corners(seen.boxes[match]), _corners(box))
        for present, match, box in zip(there.tolist(), matches.tolist(), boxes, strict=True)
    ]
    return np.logical_and(fitting, counts)


def box_overlaps(seen: Seen, wanted: Wanted) -> Float[np.ndarray, "subjects"]:
    """Return for each subject how much what is of its class overlaps its box; 0 for one that is missing.

    The mean over subjects and pictures is mIoU.
    """
    matches, boxes = match_by_place(seen, wanted), _boxes(wanted)
    there = right_class(seen, wanted, matches)
    shared = np.zeros(len(matches))
    shared[there] = np.diagonal(overlaps(seen.boxes[matches[there]], boxes[there]))
    return shared


def average_precision(pictures: Sequence[tuple[Seen, Wanted]], least: float = 0.5) -> float:
    """Return the mean over classes of the area under precision against recall: AP50 at the default of `least`, 0 to 1.

    The requested boxes are the truth. As in PASCAL VOC since 2010: detections of all pictures, surest first, each takes
    the box that it overlaps most, if by `least` or more and not taken yet; precision is made to fall.
    """
    hits: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    truths: dict[int, int] = defaultdict(int)
    for seen, wanted in pictures:
        for kind in wanted.classes.tolist():
            truths[kind] += 1
        for kind in set(wanted.classes.tolist()):
            own = seen.classes == kind
            hits[kind] += _hits(seen.boxes[own], seen.scores[own], _boxes(wanted)[wanted.classes == kind], least)
    return float(np.mean([_area(hits[kind], count) for kind, count in truths.items()])) if truths else 0.0


def _hits(
    found: Float[np.ndarray, "found 4"],
    scores: Float[np.ndarray, "found"],
    boxes: Float[np.ndarray, "boxes 4"],
    least: float,
) -> list[tuple[float, bool]]:
    shared, taken, hits = overlaps(found, boxes), set(), []
    for index in np.argsort(-scores, kind="stable").tolist():
        best = int(shared[index].argmax())
        hit = bool(shared[index, best] >= least) and best not in taken
        taken |= {best} if hit else set()
        hits.append((float(scores[index]), hit))
    return hits


def _area(hits: Sequence[tuple[float, bool]], truths: int) -> float:
    ordered = np.array([hit for _, hit in sorted(hits, key=lambda each: -each[0])], dtype=float)
    if not ordered.size:
        return 0.0
    precision = ordered.cumsum() / np.arange(1, len(ordered) + 1)
    falling = np.maximum.accumulate(precision[::-1])[::-1]
    return float((falling * ordered).sum() / truths)


def _boxes(wanted: Wanted) -> Float[np.ndarray, "subjects 4"]:
    assert wanted.boxes is not None, "only a picture with a layout has boxes to be in"
    return wanted.boxes


def _corners(box: Float[np.ndarray, "4"]) -> Corners:
    xmin, ymin, xmax, ymax = box.tolist()
    return xmin, ymin, xmax, ymax
