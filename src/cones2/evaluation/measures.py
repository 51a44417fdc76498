"""Who is in a picture of several subjects: present, themselves, swapped, cloned, missing, collapsed.

Each measure looks at one picture. MuDI's Detect-and-Compare (arXiv:2404.04243) is the model of the matching.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from cones2.evaluation.matching import NOBODY, Seen, Wanted, match_by_look, match_by_place, right_class

Flags = Bool[np.ndarray, "subjects"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of one picture's subjects.

    Attributes:
        present: each is there, as something of its class.
        missing: no detection is left for it, of whatever class.
        identity: nearest to what stands for it is its own reference, of those of its look-alikes and of the others in
            the picture.
        told: whether there is anybody that it could be taken for: a look-alike, or another of its class in the picture.
            Where there is nobody, its identity says nothing, and is not counted.
        likeness: of what stands for it with its reference, -1 to 1; -1 where it is not present.
        all_right: every subject is present and itself, and none of their classes is there more often than asked for;
            None where a subject is not `told`.
        swapped: two subjects are both there, each looking like the other; None where that can't be told: for one
            subject, or where no two are present that are told apart by class or by place.
        cloned: two objects look most like one and the same subject.
    """

    present: Flags
    missing: Flags
    identity: Flags
    told: Flags
    likeness: Float[np.ndarray, "subjects"]
    all_right: bool | None
    swapped: bool | None
    cloned: bool


def look_at(seen: Seen, wanted: Wanted) -> Outcome:
    """Measure one picture."""
    matches = match_by_look(seen, wanted)
    present = right_class(seen, wanted, matches)
    likeness = np.full(len(matches), -1.0)
    own = seen.identities[matches[present]] * wanted.references[present]
    likeness[present] = np.clip(own.sum(axis=1), -1, 1)
    identity = np.array(
        [
            bool(present[slot]) and _is_itself(seen.identities[matches[slot]], wanted, slot)
            for slot in range(len(matches))
        ],
        dtype=bool,
    )
    told = _told(wanted)
    all_right = bool(identity.all()) and right_counts(seen, wanted) if told.all() else None
    return Outcome(
        present, matches == NOBODY, identity, told, likeness, all_right, swapped(seen, wanted), cloned(seen, wanted)
    )


def _told(wanted: Wanted) -> Flags:
    same = (wanted.classes[:, None] == wanted.classes[None, :]).sum(axis=1) > 1
    return np.asarray(same | [len(each) > 0 for each in wanted.lookalikes] if wanted.lookalikes else same)


def right_counts(seen: Seen, wanted: Wanted) -> bool:
    """Return whether each class that is asked for is there exactly as often as it is asked for."""
    return all((seen.classes == kind).sum() == (wanted.classes == kind).sum() for kind in set(wanted.classes.tolist()))


def _is_itself(identity: Float[np.ndarray, "dim"], wanted: Wanted, slot: int) -> bool:
    """Return whether an identity is nearer to the reference of subject `slot` than to anybody else's."""
    likeness = wanted.references @ identity
    own, others = likeness[slot], np.delete(likeness, slot)
    if wanted.lookalikes:
        others = np.concatenate([others, wanted.lookalikes[slot] @ identity])
    return bool(own > others.max(initial=-np.inf))


def swapped(seen: Seen, wanted: Wanted) -> bool | None:
    """Return whether any two subjects have changed places: see `Outcome`.

    Two of different classes are told apart by class: a cat that looks like the dog, and a dog that looks like the cat.
    Two of one class need a layout, and are told apart by their boxes.
    """
    places = match_by_look(seen, wanted) if wanted.boxes is None else match_by_place(seen, wanted)
    there = np.flatnonzero(right_class(seen, wanted, places)).tolist()
    pairs = [
        (one, other)
        for number, one in enumerate(there)
        for other in there[:number]
        if wanted.boxes is not None or wanted.classes[one] != wanted.classes[other]
    ]
    return any(_changed_places(seen, wanted, places, pair) for pair in pairs) if pairs else None


def _changed_places(seen: Seen, wanted: Wanted, places: np.ndarray, pair: tuple[int, int]) -> bool:
    slots = list(pair)
    likeness = seen.identities[places[slots]] @ wanted.references[slots].T
    return bool(likeness[0, 1] + likeness[1, 0] > likeness[0, 0] + likeness[1, 1])


def cloned(seen: Seen, wanted: Wanted) -> bool:
    """Return whether two objects of the classes that are asked for have the same nearest reference."""
    nearest = (seen.identities @ wanted.references.T)[np.isin(seen.classes, wanted.classes)].argmax(axis=1)
    return len(set(nearest.tolist())) < len(nearest)


def collapse_rate(likenesses: Sequence[Float[np.ndarray, "_"]], least: float) -> float:
    """Return the share of (picture, subject) whose likeness is below `least`: SCR at that threshold, 0 to 1.

    A subject that is missing has a likeness of -1, so that it counts as collapsed.
    """
    return float((np.concatenate(likenesses) < least).mean())


def collapse_curve(
    likenesses: Sequence[Float[np.ndarray, "_"]], thresholds: Float[np.ndarray, "thresholds"]
) -> Float[np.ndarray, "thresholds"]:
    """Return the collapse rate at each threshold; it never falls."""
    return np.array([collapse_rate(likenesses, each) for each in thresholds.tolist()])


def collapse_threshold(true: Float[np.ndarray, "pairs"]) -> float:
    """Return the likeness that 5 % of true pairs, a subject and its reference, stay below."""
    return float(np.quantile(true, 0.05))
