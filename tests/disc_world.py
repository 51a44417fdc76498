"""A world of `recipes/mini` that needs no sprites: discs on grey."""

import sys
from pathlib import Path

import numpy as np
import torch

RECIPE = Path(__file__).parents[1] / "recipes" / "mini"
sys.path.insert(0, str(RECIPE))

from sprites import PARTS, SpriteAtlas  # noqa: E402
from vocabulary import CLASSES, SCENES  # noqa: E402
from world import World  # noqa: E402


def disc_world() -> World:
    """Two disc sprites a class and one of the held-out style, on grey."""
    side = (torch.arange(32) - 15.5) / 16
    disc = (side[:, None] ** 2 + side**2 < 0.9).float()
    planes = torch.zeros(3 * len(CLASSES), 2, PARTS + 3, 32, 32)
    planes[:, :, 0] = disc
    palette = torch.rand(len(planes), PARTS, 3, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(len(CLASSES)).repeat_interleave(3)
    held_out = torch.arange(len(planes)) % 3 == 2
    atlas = SpriteAtlas(planes, palette, classes, held_out, tuple(map(str, range(len(planes)))))
    return World(atlas, np.full((len(SCENES) + 1, 2, 3, 32, 32), 128, dtype=np.uint8))
