"""The layout pictures of the authors' code: a plain colour for each subject, whatever else is background."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cones2.errors import LayoutError
from cones2.files import read_bounded
from cones2.images import opened_image
from cones2.layout.masks import FORMATS, LARGEST_FILE, Mask
from cones2.layout.region import Region
from cones2.layout.regions import Layout

SIDE = 768
"""Pixels of a side, whatever the picture's own."""

Colour = tuple[int, int, int]
_COLOUR = re.compile(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(,\s*\d{1,3}\s*)?")


def read_colour_map(path: Path, colours: Mapping[str, Colour]) -> Layout:
    """Read a layout picture as the authors' code does: scaled to 768 x 768 pixels, and each colour exactly as given.

    Args:
        path: a PNG, JPEG or WebP file; JPEG blurs colours, so that few pixels have the very one.
        colours: of each subject, by its name; red, green and blue in 0..255.

    Raises:
        LayoutError: it can't be read, is too large, damaged or no such picture, or no pixel has one of the colours.
    """
    masks = read_masks(path, colours.values())
    for colour in colours.values():
        if colour not in masks:
            raise LayoutError(f"{absence(colour, path)} Paint it without soft edges, and save it as a PNG.")
    return Layout({name: Region((masks[colour],)) for name, colour in colours.items()})


def read_masks(path: Path, colours: Iterable[Colour]) -> dict[Colour, Mask]:
    """Read the regions of those colours that a pixel has; of a picture raises as `read_colour_map` does."""
    content = read_bounded(path, limit=LARGEST_FILE, error=LayoutError)
    advice = "Save it again as a PNG."
    with opened_image(content, name=str(path), formats=FORMATS, error=LayoutError, advice=advice) as image:
        pixels = np.asarray(image.resize((SIDE, SIDE)).convert("RGB"))
    inside = {colour: (pixels == np.array(colour, np.uint8)).all(-1) for colour in colours}
    return {
        colour: Mask(SIDE, SIDE, (cells * np.uint8(255)).tobytes()) for colour, cells in inside.items() if cells.any()
    }


def absence(colour: Colour, path: Path) -> str:
    """Say that no pixel has a colour."""
    return f"no pixel of {path} is {','.join(map(str, colour))}."


def parse_colour(text: str) -> Colour:
    """Read `255,192,0`; a fourth number is left out, as in the authors' code.

    Raises:
        LayoutError: it is something else.
    """
    match = _COLOUR.fullmatch(text)
    red, green, blue = (int(number) for number in match.groups()[:3]) if match else (256, 256, 256)
    if max(red, green, blue) > 255:
        raise LayoutError(f"{text[:40]!r} is no colour: expected red, green and blue in 0..255, such as 255,192,0.")
    return red, green, blue
