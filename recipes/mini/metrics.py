"""What counts as present, as in its right box and as the same individual, and how sure a rate is."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import permutations

import torch
from torch import Tensor

from cones2.evaluation.boxes import fits
from cones2.judge import Corners, Sighting, overlap


@dataclass(frozen=True)
class Wanted:
    """One object that a picture should show: its class, where, and who it is (an embedding), if that is known."""

    class_index: int
    box: Corners | None = None
    identity: Tensor | None = None


@dataclass(frozen=True)
class Rate:
    """A share of trials: `hits` of `trials`, and what chance would give."""

    hits: int
    trials: int
    chance: float | None = None

    @property
    def share(self) -> float:
        """Hits over trials."""
        return self.hits / max(self.trials, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.hits, self.trials)

    def as_json(self) -> dict[str, object]:
        """Everything, the interval too."""
        low, high = self.interval
        return {**asdict(self), "share": round(self.share, 4), "low": round(low, 4), "high": round(high, 4)}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


@dataclass(frozen=True)
class Ratio:
    """A mean over another mean of as many pictures, and its 95 % interval."""

    share: float
    interval: tuple[float, float]
    trials: int

    @classmethod
    def of(cls, ours: Tensor, theirs: Tensor) -> "Ratio":
        """Divide the means of two values a picture; the interval is a bootstrap's of 2,000 draws."""
        chosen = torch.randint(len(ours), (2000, len(ours)), generator=torch.Generator().manual_seed(0))
        low, high = (ours[chosen].mean(1) / theirs[chosen].mean(1)).quantile(torch.tensor([0.025, 0.975])).tolist()
        return cls(float(ours.mean() / theirs.mean()), (low, high), len(ours))

    def as_json(self) -> dict[str, object]:
        """Everything, as of a rate; there is no chance."""
        low, high = (round(end, 4) for end in self.interval)
        return {"trials": self.trials, "chance": None, "share": round(self.share, 4), "low": low, "high": high}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def gradients(images: Tensor) -> Tensor:
    """How much neighbouring pixels differ, across and down, on average over each picture: `[pictures]`."""
    across, down = images.diff(dim=-1).abs(), images.diff(dim=-2).abs()
    return across.flatten(1).mean(1) + down.flatten(1).mean(1)


def steepness(images: Tensor) -> Tensor:
    """How steep the edges of each picture are: its neighbours' differences, each weighed by itself: `[pictures]`.

    The mean gradient counts a blurred edge as much as a sharp one of the same height; this tells them apart.
    """
    differences = [images.diff(dim=dim).abs().flatten(1) for dim in (-1, -2)]
    squares = torch.stack([each.square().sum(1) for each in differences]).sum(0)
    return squares / torch.stack([each.sum(1) for each in differences]).sum(0).clamp(min=1e-9)


def wilson(hits: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson, 1927)."""
    if trials == 0:
        return 0.0, 1.0
    share, spread = hits / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def rate(outcomes: Sequence[bool], chance: float | None = None) -> Rate:
    """The share of outcomes that are true."""
    return Rate(sum(outcomes), len(outcomes), chance)


def all_present(sightings: Sequence[Sighting], wanted: Sequence[Wanted]) -> bool:
    """Each wanted class is seen exactly as often as it is wanted."""
    kinds = [object_.class_index for object_ in wanted]
    seen = [sighting.class_index for sighting in sightings]
    return all(seen.count(kind) == kinds.count(kind) for kind in set(kinds))


def in_right_boxes(sightings: Sequence[Sighting], wanted: Sequence[Wanted]) -> list[bool]:
    """For each wanted object: it is in its box, and its class is nowhere else."""
    found = match(sightings, wanted)
    kinds = [object_.class_index for object_ in wanted]
    alone = [
        sum(sighting.class_index == kind for sighting in sightings) <= kinds.count(kind) for kind in kinds
    ]  # a second copy would be outside, since a box holds one
    return [
        one is not None and only and fits(one.box, object_.box)
        for one, only, object_ in zip(found, alone, wanted, strict=True)
    ]


def match(sightings: Sequence[Sighting], wanted: Sequence[Wanted]) -> list[Sighting | None]:
    """Who of those seen is who of those wanted: by class, and within a class by identity if known, else by place."""
    found: list[Sighting | None] = [None] * len(wanted)
    for kind in {object_.class_index for object_ in wanted}:
        slots = [slot for slot, object_ in enumerate(wanted) if object_.class_index == kind]
        seen = [sighting for sighting in sightings if sighting.class_index == kind]
        padded: list[Sighting | None] = [*seen, *([None] * max(0, len(slots) - len(seen)))]
        best = max(
            permutations(padded, len(slots)),
            key=lambda order: sum(_likeness(s, wanted[slot]) for s, slot in zip(order, slots, strict=True)),
        )
        for slot, sighting in zip(slots, best, strict=True):
            found[slot] = sighting
    return found


def _likeness(sighting: Sighting | None, wanted: Wanted) -> float:
    if sighting is None:
        return -2.0
    if wanted.identity is not None:
        return float(sighting.embedding @ wanted.identity)
    return overlap(sighting.box, wanted.box) if wanted.box else sighting.score


def at_place(sightings: Sequence[Sighting], wanted: Wanted) -> Sighting | None:
    """The sighting of the wanted class that is most in the wanted box, whoever it is; identity is asked of that one."""
    seen = [s for s in sightings if s.class_index == wanted.class_index]
    if wanted.box is not None:
        region = wanted.box
        seen = [s for s in seen if overlap(s.box, region) > 0]
        return max(seen, key=lambda s: overlap(s.box, region), default=None)
    return max(seen, key=lambda s: s.score, default=None)


def is_nearest(embedding: Tensor, own: Tensor, others: Tensor) -> bool:
    """An embedding is nearer to its own reference than to any of the others `[others, dim]`."""
    return bool(embedding @ own > torch.max(others @ embedding))
