"""Are these photos ready to be learned from? Facts about each, and what they mean, before any time is spent.

Most findings are advice: only what can't work is refused. What is measured and how the thresholds were found is in
`docs/learning.md`.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cones2.errors import PhotoError
from cones2.photos.loading import Photo
from cones2.photos.measures import clipped, contrast, difference_hash, filled, sharpness, tones

FEWEST = 3
BLURRED = 100.0
NEARLY_THE_SAME = 4
TOO_DARK = 90.0
TOO_BRIGHT = 200.0
MOST_CLIPPED = 0.85
SMALL_IN_THE_FRAME = 0.1
PLAIN = 2.0


@dataclass(frozen=True)
class PhotoFacts:
    """What was measured of one photo.

    Attributes:
        path: where it was read.
        width: in pixels.
        height: in pixels.
        sharpness: variance of the Laplacian in the sharpest sixteenth, at the size that is learned.
        tones: 5th and 95th percentile of grey, 0 to 255.
        clipped: shares of pixels that are black and white.
        contrast: standard deviation of grey.
        filled: share of the picture that the box around the subject takes; an estimate without a mask.
    """

    path: Path
    width: int
    height: int
    sharpness: float
    tones: tuple[float, float]
    clipped: tuple[float, float]
    contrast: float
    filled: float


@dataclass(frozen=True)
class Finding:
    """Something that the user should know of the photos.

    Attributes:
        kind: `count`, `size`, `blur`, `duplicate`, `dark`, `bright`, `small` or `plain`.
        photos: the names of those that it is about; none means all.
        text: what, and what to do about it.
        fatal: nothing can be learned from it.
    """

    kind: str
    photos: tuple[str, ...]
    text: str
    fatal: bool = False


@dataclass(frozen=True)
class PhotoReport:
    """Facts about photos, and what they mean.

    Attributes:
        size: the side, in pixels, that they are judged for.
        photos: facts, in the photos' order.
        findings: the gravest first.
    """

    size: int
    photos: tuple[PhotoFacts, ...]
    findings: tuple[Finding, ...]

    def check(self) -> None:
        """Refuse photos from which nothing can be learned.

        Raises:
            PhotoError: there is such a photo; names the first.
        """
        for finding in self.findings:
            if finding.fatal:
                raise PhotoError(finding.text)


def photo_report(photos: Sequence[Photo], *, size: int = 512) -> PhotoReport:
    """Judge photos before they are learned from.

    Args:
        photos: of one subject.
        size: the side, in pixels, of the pictures that the backbone draws: `min(backbone.default_size)`.
    """
    facts = tuple(_measure(photo, size) for photo in photos)
    findings = [*_findings_on_all(photos), *itertools.chain.from_iterable(_findings_on(one, size) for one in facts)]
    return PhotoReport(size, facts, tuple(sorted(findings, key=lambda finding: not finding.fatal)))


def _measure(photo: Photo, size: int) -> PhotoFacts:
    return PhotoFacts(
        path=photo.path,
        width=photo.image.width,
        height=photo.image.height,
        sharpness=sharpness(photo.image, size),
        tones=tones(photo.image),
        clipped=clipped(photo.image),
        contrast=contrast(photo.image),
        filled=filled(photo.image, photo.mask),
    )


def _findings_on_all(photos: Sequence[Photo]) -> Iterator[Finding]:
    if len(photos) < FEWEST:
        yield Finding("count", (), f"only {len(photos)} of the 3 to 5 photos that do best: add more views.")
    for names in _alike(photos):
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        advice = "they teach little more than one of them. Take others"
        yield Finding("duplicate", names, f"{listed} are nearly the same picture: {advice}.")


def _alike(photos: Sequence[Photo]) -> Iterator[tuple[str, ...]]:
    """Group photos that are nearly the same as the first of their group."""
    left = [(photo.path.name, difference_hash(photo.image)) for photo in photos]
    while left:
        (first, bits), *others = left
        near = [name for name, other in others if np.count_nonzero(bits != other) <= NEARLY_THE_SAME]
        left = [(name, other) for name, other in others if np.count_nonzero(bits != other) > NEARLY_THE_SAME]
        if near:
            yield (first, *near)


def _findings_on(facts: PhotoFacts, size: int) -> Iterator[Finding]:
    name = facts.path.name
    if facts.contrast < PLAIN:
        text = f"{name} is of one plain colour: nothing can be learned from it. Take it out."
        yield Finding("plain", (name,), text, fatal=True)
        return
    for kind, holds, text in (
        ("size", *_too_small(facts, size)),
        ("blur", facts.sharpness < BLURRED, "is blurred: its blur will be learned. Take a sharper one"),
        ("dark", _too_dark(facts), "is very dark: brighten it, or take another"),
        ("bright", _too_bright(facts), "is very bright, its detail washed out: take another"),
        ("small", facts.filled < SMALL_IN_THE_FRAME, _small_in_the_frame(facts)),
    ):
        if holds:
            yield Finding(kind, (name,), f"{name} {text}.")


def _too_small(facts: PhotoFacts, size: int) -> tuple[bool, str]:
    text = f"is {facts.width}x{facts.height} where {size} pixels are drawn: it is enlarged, and detail is missing"
    return min(facts.width, facts.height) < size, text


def _too_dark(facts: PhotoFacts) -> bool:
    return facts.tones[1] < TOO_DARK or facts.clipped[0] > MOST_CLIPPED


def _too_bright(facts: PhotoFacts) -> bool:
    return facts.tones[0] > TOO_BRIGHT or facts.clipped[1] > MOST_CLIPPED


def _small_in_the_frame(facts: PhotoFacts) -> str:
    return f"shows the subject on about {100 * facts.filled:.0f} % of it: crop it closer, or give a mask"
