"""Photos that everything can be learned from: sharp, well exposed, and each another."""

from pathlib import Path

import numpy as np
from PIL import Image


def save_photos(folder: Path, side: int) -> Path:
    """Save a.png, b.png and c.png of `side` x `side` pixels, grey blocks at random, in a new folder; return it."""
    folder.mkdir()
    for index, name in enumerate("abc"):
        blocks = np.random.default_rng(index).integers(30, 226, (16, 16), dtype=np.uint8)
        Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).save(folder / f"{name}.png")
    return folder
