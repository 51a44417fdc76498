"""A preview of a layout: coloured boxes with their names."""

from collections.abc import Iterator
from itertools import cycle

from PIL import Image, ImageDraw, ImageFont

from cones2.errors import LayoutError
from cones2.layout.regions import Box, Layout

# Okabe and Ito's colours, told apart also by the colour-blind; yellow last, it is hard to see on white.
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (240, 228, 66))
_PAPER = (250, 250, 248)
_MAX_SIDE = 8192
_Pixels = tuple[int, int, int, int]


def draw_layout(
    layout: Layout, *, width: int = 512, height: int = 512, background: Image.Image | None = None
) -> Image.Image:
    """Draw a layout's boxes and names on white, or over a picture (resized to fit).

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
    shading = ImageDraw.Draw(canvas, "RGBA")
    for _, colour, box in _boxes(layout, width, height):
        shading.rectangle(box, fill=(*colour, 80), outline=(*colour, 255), width=max(2, min(width, height) // 170))
    _write_names(canvas, layout)
    return canvas


def _boxes(layout: Layout, width: int, height: int) -> Iterator[tuple[str, tuple[int, int, int], _Pixels]]:
    for (name, boxes), colour in zip(layout.regions.items(), cycle(_COLOURS), strict=False):
        for box in boxes:
            yield name, colour, _pixels(box, width, height)


def _pixels(box: Box, width: int, height: int) -> _Pixels:
    left, top = int(box.xmin * (width - 1)), int(box.ymin * (height - 1))
    return left, top, round(box.xmax * (width - 1)), round(box.ymax * (height - 1))


def _write_names(canvas: Image.Image, layout: Layout) -> None:
    """Write each name on a plate in its box's top left corner, lower where that would hide another plate."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(10, min(canvas.size) // 24))
    plates: list[_Pixels] = []
    for name, colour, (left, top, _, _) in _boxes(layout, *canvas.size):
        ink = draw.textbbox((0, 0), name, font=font)
        plate = _place((left, top), (int(ink[2]) + 10, int(ink[3]) + 6), canvas.size, plates)
        plates.append(plate)
        draw.rectangle(plate, fill=colour)
        draw.text((plate[0] + 5, plate[1] + 2), name, font=font, fill=_ink_on(colour))


def _place(corner: tuple[int, int], size: tuple[int, int], canvas: tuple[int, int], taken: list[_Pixels]) -> _Pixels:
    left = max(0, min(corner[0], canvas[0] - size[0]))
    top = max(0, min(corner[1], canvas[1] - size[1]))
    while top + 2 * size[1] <= canvas[1] and any(_meet((left, top), size, plate) for plate in taken):
        top += size[1]
    return left, top, left + size[0], top + size[1]


def _meet(corner: tuple[int, int], size: tuple[int, int], plate: _Pixels) -> bool:
    across = corner[0] < plate[2] and plate[0] < corner[0] + size[0]
    return across and corner[1] < plate[3] and plate[1] < corner[1] + size[1]


def _ink_on(colour: tuple[int, int, int]) -> str:
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    return "black" if luminance > 140 else "white"
