"""The world as training sees it: more drawings, wider warps, colours told in words beside codes, more that is worn."""

from dataclasses import replace

import numpy as np

from sprites import SpriteAtlas
from vocabulary import CLASSES, COLOURS
from world import Instance, Placed, World

MORE_STYLES = ("noto-v1", "fxemoji", "mug1", "mug2", "mug3", "panels", "star")
"""Drawings that training sees beside each class's own, by code alone: a bare word draws the class's own. The example
subjects of tier T2 are of none of them."""
WARPS = (0.14, 0.10, 0.09)
"""Spreads of the warp's three numbers, wider than the world's own: of the individuals that mini confused, most differed
in their proportions alone, which it drew as the average's."""
RECOLOURED = 0.15
"""The share of objects whose code tells of an individual in another colour, the colour itself being told in words."""


class TrainingWorld(World):
    """mini's world with what its training needs and its evaluation does not.

    Attributes:
        others: by class, further drawings that a code may tell of.
        share: of the individuals that are of those.
    """

    counts = (0.4, 0.27, 0.17, 0.16)
    related = 0.32
    relations = (0.62, 0.16, 0.11, 0.11)

    def __init__(
        self, atlas: SpriteAtlas, backgrounds: np.ndarray, device: str = "cpu", *, share: float = 0.25
    ) -> None:
        super().__init__(atlas, backgrounds, device)
        chosen = {number for number, name in enumerate(atlas.names) if name.split("/")[-1] in MORE_STYLES}
        self.others = [[s for s in self.unseen_sprites[kind].tolist() if s in chosen] for kind in range(len(CLASSES))]
        self.share = share

    def choose_drawing(self, rng: np.random.Generator, class_index: int, *, unseen: bool) -> int:
        """The class's own drawing, or one of the others."""
        others = self.others[class_index]
        if others and not unseen and rng.random() < self.share:
            return int(rng.choice(others))
        return super().choose_drawing(rng, class_index, unseen=unseen)

    def instance(self, rng: np.random.Generator, class_index: int | None = None, *, unseen: bool = False) -> Instance:
        """Draw an individual, of wider proportions than the world's own."""
        return replace(super().instance(rng, class_index, unseen=unseen), warp=rng.normal(0, WARPS).clip(-0.3, 0.3))

    def placed(self, rng: np.random.Generator, instance: Instance, x: float, y: float, size: float) -> Placed:
        """Place an instance; one in seven is told by the code of itself in another colour and by its colour's word."""
        placed = super().placed(rng, instance, x, y, size)
        if instance.sprite in self.others[instance.class_index]:
            placed = replace(placed, coded=True)
        if instance.colour_word and rng.random() < RECOLOURED:
            placed = replace(placed, told=in_another_colour(rng, instance))
        return placed


def in_another_colour(rng: np.random.Generator, instance: Instance) -> Instance:
    """The same individual, its largest part of another named colour."""
    words = [word for word in COLOURS if word != instance.colour_word]
    palette = instance.palette.copy()
    palette[0] = np.clip(np.array(COLOURS[words[rng.integers(len(words))]]) + rng.normal(0, 0.04, 3), 0, 1)
    return replace(instance, palette=palette)
