"""Fetch the sprites and draw the backgrounds: `python recipes/mini/prepare.py` (needs npm and its registry)."""

import argparse
from pathlib import Path

import numpy as np

from scenes import draw_pool
from sprites import build_atlas, fetch_icons


def main() -> None:
    """Write `sprites.safetensors` and `backgrounds.npy` into the work folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--backgrounds", type=int, default=200, help="of each scene")
    parser.add_argument("--size", type=int, default=128)
    arguments = parser.parse_args()
    fetch_icons(arguments.work / "icons")
    atlas = build_atlas(arguments.work / "icons")
    atlas.save(arguments.work / "sprites.safetensors")
    np.save(
        arguments.work / "backgrounds.npy", draw_pool(np.random.default_rng(0), arguments.size, arguments.backgrounds)
    )
    print(f"{len(atlas.names)} sprites, {arguments.backgrounds} backgrounds of each scene")


if __name__ == "__main__":
    main()
