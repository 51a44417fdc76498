"""Masks: a region as a greyscale picture, white inside, black outside, grey in between for soft edges.

A mask is kept small enough to be embedded in a layout file, and so in the record of every picture drawn by it.
"""

import base64
import binascii
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from cones2.errors import LayoutError
from cones2.files import expanded, read_bounded
from cones2.images import MOST_PIXELS, flattened, opened_image, upright
from cones2.layout.shapes import Box

FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_FILE = 25_000_000
LONGEST_SIDE = 768
_BLACK = 16  # greys below are black: JPEG's noise, and what nobody can see
_MOST_EMBEDDED = 1_000_000  # pixels


@dataclass(frozen=True)
class Mask:
    """A greyscale mask, stretched over the picture whatever the shapes of both.

    Attributes:
        width: in pixels, at most 768.
        height: likewise.
        pixels: a byte each, row by row from the top; 255 is inside, 0 outside.

    Raises:
        LayoutError: a side is outside 1..768, the number of bytes is not that of the pixels, or all are 0.
    """

    width: int
    height: int
    pixels: bytes = field(repr=False)

    def __post_init__(self) -> None:
        size = f"a mask of {self.width}x{self.height} pixels"
        if not (1 <= self.width <= LONGEST_SIDE and 1 <= self.height <= LONGEST_SIDE):
            raise LayoutError(f"{size} can't be used: expected sides of 1 to {LONGEST_SIDE}. Scale it down.")
        if len(self.pixels) != self.width * self.height:
            raise LayoutError(f"{size} has {len(self.pixels)} bytes; expected one for each pixel. Make it 8-bit grey.")
        if not any(self.pixels):
            raise LayoutError(f"{size} is black everywhere: nothing is inside. Paint the region white.")

    @classmethod
    def from_image(cls, image: Image.Image) -> "Mask":
        """Return a picture's brightness, transparency as black; longer sides become 768 pixels, and faint greys black.

        Raises:
            LayoutError: the picture is black everywhere.
        """
        grey = flattened(image, "L", background="black")
        if max(grey.size) > LONGEST_SIDE:
            factor = LONGEST_SIDE / max(grey.size)
            width, height = (max(1, round(side * factor)) for side in grey.size)
            grey = grey.resize((width, height), Image.Resampling.BOX)
        clean = grey.point(lambda value: value if value >= _BLACK else 0)
        return cls(clean.width, clean.height, clean.tobytes())

    @classmethod
    def load(cls, path: Path | str) -> "Mask":
        """Read a PNG, JPEG or WebP file, upright; its sizes are checked before it is decoded.

        Raises:
            LayoutError: it can't be read, is too large, damaged, no such picture, or black everywhere.
        """
        path = expanded(path)
        return _decode(read_bounded(path, limit=LARGEST_FILE, error=LayoutError), origin=f"the mask {path}")

    @classmethod
    def from_base64(cls, text: str) -> "Mask":
        """Read what `to_base64` wrote.

        Raises:
            LayoutError: the text is no base64, or does not hold a mask.
        """
        try:
            content = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
            raise LayoutError(f"an embedded mask is no base64: {error}. Embed it again from its file.") from error
        return _decode(content, origin="an embedded mask", most_pixels=_MOST_EMBEDDED)

    def to_base64(self) -> str:
        """Return the mask as a PNG in base64."""
        content = io.BytesIO()
        Image.frombytes("L", (self.width, self.height), self.pixels).save(content, format="PNG", optimize=True)
        return base64.b64encode(content.getvalue()).decode()

    @property
    def grey(self) -> np.ndarray:
        """The pixels as an array of bytes, `[height, width]`."""
        return np.frombuffer(self.pixels, dtype=np.uint8).reshape(self.height, self.width)

    @property
    def bounds(self) -> Box:
        """The smallest box around all that is not black."""
        columns, rows = np.flatnonzero(self.grey.any(0)), np.flatnonzero(self.grey.any(1))
        left, right = columns[0] / self.width, (columns[-1] + 1) / self.width
        return Box(float(left), float(rows[0] / self.height), float(right), float((rows[-1] + 1) / self.height))


def _decode(content: bytes, *, origin: str, most_pixels: int = MOST_PIXELS) -> Mask:
    advice = "Save it again as a PNG."
    with opened_image(
        content, name=origin, formats=FORMATS, error=LayoutError, advice=advice, most_pixels=most_pixels
    ) as image:
        try:
            return Mask.from_image(upright(image))
        except LayoutError as error:
            raise LayoutError(f"{origin}: {error}") from error
