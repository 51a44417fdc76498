"""A preview of a layout: coloured regions with their names, those on top covering those below."""

from collections.abc import Iterator
from itertools import cycle

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from cones2.errors import LayoutError
from cones2.layout.box import Box
from cones2.layout.regions import Layout
from cones2.layout.shapes import bounds_of

# Okabe and Ito's colours, told apart also by the colour-blind; yellow last, it is hard to see on white.
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (240, 228, 66))
_PAPER = (250, 250, 248)
_MAX_SIDE = 8192
_FINEST = 1024  # of the regions' own picture: larger ones are scaled up
_TINT = 80 / 255
_Colour = tuple[int, int, int]
_Pixels = tuple[int, int, int, int]


def draw_layout(
    layout: Layout, *, width: int = 512, height: int = 512, background: Image.Image | None = None
) -> Image.Image:
    """Draw a layout's regions and names on white, or over a picture (resized to fit).

    A region is drawn without what those of greater `z` cover; those of equal `z` shine through each other. Soft edges
    are fainter. Where not all have the same `z`, names are followed by it.

    Returns:
        An RGB picture of `width` x `height` pixels.

    Raises:
        LayoutError: a side is outside 1..8192 pixels.
    """
    if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
        raise LayoutError(f"can't draw a layout of {width}x{height} pixels: expected sides of 1 to {_MAX_SIDE}.")
    canvas = (
        background.convert("RGB").resize((width, height)) if background else Image.new("RGB", (width, height), _PAPER)
    )
    shown = layout.shown(min(height, _FINEST), min(width, _FINEST))
    for name, colour in _coloured(layout):
        _tint(canvas, shown[name].cover, colour)
    _write_names(canvas, layout)
    return canvas


def _coloured(layout: Layout) -> Iterator[tuple[str, _Colour]]:
    return zip(layout.regions, cycle(_COLOURS), strict=False)


def _tint(canvas: Image.Image, cover: Tensor, colour: _Colour) -> None:
    """Lay a region's colour over the picture, and a line along the inner side of its edge."""
    line = max(2, min(canvas.size) // 170)
    inside = _grey(cover, canvas.size)
    hard = inside.point(lambda value: 255 * (value >= 128))
    framed = Image.new("L", (canvas.width + 2, canvas.height + 2))  # the picture's border is an edge too
    framed.paste(hard, (1, 1))
    within = framed.filter(ImageFilter.MinFilter(2 * line + 1)).crop((1, 1, canvas.width + 1, canvas.height + 1))
    canvas.paste(colour, mask=inside.point(lambda value: round(value * _TINT)))
    canvas.paste(colour, mask=ImageChops.subtract(hard, within))


def _grey(cover: Tensor, size: tuple[int, int]) -> Image.Image:
    values: np.ndarray = (cover * 255).round().to(torch.uint8).numpy()
    image = Image.fromarray(values)
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def _write_names(canvas: Image.Image, layout: Layout) -> None:
    """Write each name on a plate in its shapes' top left corners, lower where that would hide another plate."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(10, min(canvas.size) // 24))
    plates: list[_Pixels] = []
    has_heights = len({region.z for region in layout.regions.values()}) > 1
    for name, colour in _coloured(layout):
        region = layout.regions[name]
        label = f"{name} (z {region.z})" if has_heights else name
        for shape in region.shapes:
            ink = draw.textbbox((0, 0), label, font=font)
            corner = _corner(bounds_of(shape), *canvas.size)
            plate = _place(corner, (int(ink[2]) + 10, int(ink[3]) + 6), canvas.size, plates)
            plates.append(plate)
            draw.rectangle(plate, fill=colour)
            draw.text((plate[0] + 5, plate[1] + 2), label, font=font, fill=_ink_on(colour))


def _corner(box: Box, width: int, height: int) -> tuple[int, int]:
    return int(box.xmin * (width - 1)), int(box.ymin * (height - 1))


def _place(corner: tuple[int, int], size: tuple[int, int], canvas: tuple[int, int], taken: list[_Pixels]) -> _Pixels:
    left = max(0, min(corner[0], canvas[0] - size[0]))
    top = max(0, min(corner[1], canvas[1] - size[1]))
    while top + 2 * size[1] <= canvas[1] and any(_meet((left, top), size, plate) for plate in taken):
        top += size[1]
    return left, top, left + size[0], top + size[1]


def _meet(corner: tuple[int, int], size: tuple[int, int], plate: _Pixels) -> bool:
    across = corner[0] < plate[2] and plate[0] < corner[0] + size[0]
    return across and corner[1] < plate[3] and plate[1] < corner[1] + size[1]


def _ink_on(colour: _Colour) -> str:
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return "black" if luminance > 140 else "white"
