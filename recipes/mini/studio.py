"""Where cases are drawn and looked at."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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
class Studio:
    """What every stage needs."""

    pipe: Cones2Pipeline
    judge: Judge
    world: World
    atlas: SpriteAtlas
    pictures: int

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


def save_pictures(path: Path, shown: Sequence[Seen]) -> None:
    """A sheet with the boxes asked for in white and what the judge saw in red."""
    pictures = [to_picture(one.image, [w.box for w in one.case.wanted if w.box], one.sightings) for one in shown]
    path.parent.mkdir(exist_ok=True)
    make_sheet(pictures).save(path, optimize=True)
