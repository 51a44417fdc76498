"""A picture of where the attention to each subject went."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from cones2.guidance.leakage import Leakage
from cones2.layout.drawing import draw_layout
from cones2.layout.regions import Layout
from cones2.picture import Row, contact_sheet

_DARKEST = 0.15  # of the picture's light, where no attention went: its outlines can still be seen


def draw_attention(picture: Image.Image, readings: Sequence[Leakage], layout: Layout) -> Image.Image:
    """Draw for each subject the picture, lit where the attention to it went, under the layout, with its reading.

    Raises:
        PictureError: there are no readings.
    """
    lit = (_light(picture, reading) for reading in readings)
    drawn = (draw_layout(layout, width=each.width, height=each.height, background=each) for each in lit)
    return contact_sheet([Row("Where the attention to each subject went", tuple(drawn), tuple(map(str, readings)))])


def _light(picture: Image.Image, reading: Leakage) -> Image.Image:
    """Darken the picture by how far a cell's attention is below that of the strongest one."""
    heat = (reading.heat / reading.heat.max()).numpy().astype(np.float32)
    light = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BILINEAR))[..., None]
    pixels = np.asarray(picture.convert("RGB")) * (_DARKEST + (1 - _DARKEST) * light)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
