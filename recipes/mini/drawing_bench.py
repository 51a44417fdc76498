"""Where cases are drawn and looked at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from cones2.judge import Judge, Sighting
from cones2.pipeline import Cones2Pipeline
from drawing import SETTINGS, Settings, draw_case, make_sheet, to_picture
from evaluation_cases import Case
from sprites import SpriteAtlas
from world import World

SEEDS_A_CASE = 2


@dataclass(frozen=True)
class Seen:
    """A picture, what it should show and what the judge saw in it."""

    case: Case
    image: Tensor
    sightings: Sequence[Sighting]


@dataclass(frozen=True)
class DrawingBench:
    """What every stage needs."""

    pipe: Cones2Pipeline
    judge: Judge
    world: World
    atlas: SpriteAtlas
    pictures: int
    results: Path

    def draw(self, cases: Sequence[Case], settings: Settings = SETTINGS) -> Iterator[Seen]:
        """Draw cases and look at them."""
        for case in cases:
            images = draw_case(self.pipe, case, settings)
            for image, sightings in zip(images, self.judge.look(images), strict=True):
                yield Seen(case, image, sightings)

    def seeds(self) -> list[tuple[int, ...]]:
        """Seeds for as many cases as make `pictures` pictures."""
        starts = range(0, self.pictures, SEEDS_A_CASE)
        return [tuple(range(start, min(start + SEEDS_A_CASE, self.pictures))) for start in starts]

    def save_failures(self, stage: str, failures: Sequence[Seen]) -> None:
        """Keep a sheet of pictures: boxes asked for in white, what the judge saw in red."""
        if failures:
            self.results.mkdir(parents=True, exist_ok=True)
            make_sheet([_marked(one) for one in failures]).save(self.results / f"failures-{stage}.png", optimize=True)


def failed(seen: Sequence[Seen], outcomes: Sequence[bool], most: int = 4) -> list[Seen]:
    """The first pictures whose outcome is bad."""
    return [one for one, good in zip(seen, outcomes, strict=True) if not good][:most]


def _marked(one: Seen) -> Image.Image:
    return to_picture(one.image, [wanted.box for wanted in one.case.wanted if wanted.box], one.sightings)
