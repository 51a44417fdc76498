"""Pictures about pictures: a layout's regions, contact sheets, and where attention went."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont, ImageOps

from cones2.errors import LayoutError, PictureError, counted
from cones2.layout import Layout
from cones2.rasterize import cover

if TYPE_CHECKING:
    from cones2.monitor import AttentionReading

# Okabe and Ito's colours, told apart also by the colour-blind; yellow last, it is hard to see on white.
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0), (240, 228, 66))
_MAX_SIDE = 8192
_FINEST = 512  # of the regions' own picture: larger ones are scaled up
_TINT = 80 / 255
_PAPER, _INK, _GRAY, _LINE = "#ffffff", "#1f2328", "#59636e", "#d1d9e0"
_MOST_LINES = 3
_DARKEST = 0.15  # of the picture's light, where no attention went: its outlines can still be seen

Colour = tuple[int, int, int]
Plate = tuple[int, int, int, int]


def draw_layout(
    layout: Layout, *, width: int = 512, height: int = 512, background: Image.Image | None = None
) -> Image.Image:
    """Draw a layout's regions and names on white, or over a picture (resized to fit), as an RGB picture.

    A region is drawn without what those of greater `z` cover; those of equal `z` shine through each other. Where not
    all have the same `z`, names are followed by it.

    Raises:
        LayoutError: a side is outside 1..8192 pixels.
    """
    if not (1 <= width <= _MAX_SIDE and 1 <= height <= _MAX_SIDE):
        raise LayoutError(f"can't draw a layout of {width}x{height} pixels: expected sides of 1 to {_MAX_SIDE}.")
    canvas = Image.new("RGB", (width, height), _PAPER)
    if background is not None:
        canvas = background.convert("RGB").resize((width, height))
    seen = cover(layout, min(height, _FINEST), min(width, _FINEST))
    for name, colour in zip(layout.names, cycle(_COLOURS), strict=False):
        _tint(canvas, seen[name].cover, colour)
    _write_names(canvas, layout)
    return canvas


def _tint(canvas: Image.Image, cover: Float[np.ndarray, "height width"], colour: Colour) -> None:
    """Lay a region's colour over the picture, and a line along the inner side of its edge."""
    inside = Image.fromarray((cover * 255).round().astype(np.uint8))
    inside = inside.resize(canvas.size, Image.Resampling.BILINEAR)
    hard = np.asarray(inside) >= 128
    core, line = hard, max(2, min(canvas.size) // 170)
    for _ in range(2):  # down, then across; the picture's border is an edge too
        framed = np.pad(core, ((line, line), (0, 0)))
        core = reduce(np.logical_and, (framed[start : start + len(core)] for start in range(2 * line + 1))).T
    canvas.paste(colour, mask=inside.point(lambda value: round(value * _TINT)))
    canvas.paste(colour, mask=Image.fromarray(hard & ~core))


def _write_names(canvas: Image.Image, layout: Layout) -> None:
    """Write each name on a plate in its shapes' top left corners, lower where that would hide another plate."""
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(max(10, min(canvas.size) // 24))
    plates: list[Plate] = []
    has_heights = len({region.z for region in layout.regions.values()}) > 1
    for (name, region), colour in zip(layout.regions.items(), cycle(_COLOURS), strict=False):
        label = f"{name} (z {region.z})" if has_heights else name
        ink = "black" if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else "white"
        right, bottom = draw.textbbox((0, 0), label, font=font)[2:]
        width, height = int(right) + 10, int(bottom) + 6
        for shape in region.shapes:
            left = max(0, min(int(shape.bounds.xmin * (canvas.width - 1)), canvas.width - width))
            top = max(0, min(int(shape.bounds.ymin * (canvas.height - 1)), canvas.height - height))
            plate = (left, top, left + width, top + height)
            while plate[3] + height <= canvas.height and any(_meet(plate, other) for other in plates):
                plate = (left, plate[1] + height, left + width, plate[3] + height)
            plates.append(plate)
            draw.rectangle(plate, fill=colour)
            draw.text((plate[0] + 5, plate[1] + 2), label, font=font, fill=ink)


def _meet(one: Plate, other: Plate) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a contact sheet: a heading, at least one picture, and a caption for each picture or none at all.

    Raises:
        PictureError: there are no pictures, or another number of captions.
    """

    label: str
    images: tuple[Image.Image, ...]
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.images:
            raise PictureError(f"row {self.label!r} has no pictures; expected at least one.")
        if len(self.captions) not in (0, len(self.images)):
            numbers = f"{counted(len(self.captions), 'caption')} for {counted(len(self.images), 'picture')}"
            raise PictureError(f"row {self.label!r} has {numbers}; expected one for each, or none.")


def contact_sheet(rows: Sequence[Row], *, cell: int = 256) -> Image.Image:
    """Return one picture of all rows, each picture scaled to fit a cell of `cell` x `cell` pixels, its shape kept.

    Long headings and captions are wrapped, and after three lines cut with an ellipsis.
    """
    if not rows:
        raise PictureError("a contact sheet of no rows; expected at least one.")
    margin, gap = cell // 8, cell // 16
    columns = max(len(row.images) for row in rows)
    width = columns * cell + (columns - 1) * gap
    strips = [_strip(row, width=width, cell=cell, gap=gap) for row in rows]
    height = sum(strip.height for strip in strips) + (len(strips) + 1) * margin
    sheet = Image.new("RGB", (width + 2 * margin, height), _PAPER)
    top = margin
    for strip in strips:
        sheet.paste(strip, (margin, top))
        top += strip.height + margin
    return sheet


def _strip(row: Row, *, width: int, cell: int, gap: int) -> Image.Image:
    """Return one row as a picture: heading, pictures, captions."""
    heading = _text(row.label, width, size=max(12, cell // 11), colour=_INK)
    pictures = [ImageOps.contain(image.convert("RGB"), (cell, cell), Image.Resampling.LANCZOS) for image in row.images]
    captions = [_text(caption, cell, size=max(11, cell // 16), colour=_GRAY) for caption in row.captions]
    tallest = max(picture.height for picture in pictures)
    top = heading.height + (gap // 2 if heading.height else 0)
    below = max((caption.height for caption in captions), default=0)
    under = top + tallest + (gap // 2 if below else 0)
    strip = Image.new("RGB", (width, under + below), _PAPER)
    strip.paste(heading, (0, 0))
    for column, picture in enumerate(pictures):
        # A hair line, so that a white picture has an end.
        ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=_LINE)
        left = column * (cell + gap) + (cell - picture.width) // 2
        strip.paste(picture, (left, top + (tallest - picture.height) // 2))
    for column, caption in enumerate(captions):
        strip.paste(caption, (column * (cell + gap), under))
    return strip


def _text(text: str, width: int, *, size: int, colour: str) -> Image.Image:
    """Return wrapped text as a picture, as high as its lines; of no height when there is no text."""
    font = ImageFont.load_default(size)
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        elif len(lines) < _MOST_LINES:
            lines.append(word)
        else:
            lines[-1] += " \N{HORIZONTAL ELLIPSIS}"
            break
    line_height = round(sum(font.getbbox("Ag")[1::2]) * 1.1)
    block = Image.new("RGB", (width, line_height * len(lines)), _PAPER)
    for number, line in enumerate(lines):
        while font.getlength(line) > width and len(line) > 1:
            line = line[:-2] + "\N{HORIZONTAL ELLIPSIS}"
        ImageDraw.Draw(block).text((0, number * line_height), line, fill=colour, font=font)
    return block


def draw_attention(picture: Image.Image, readings: "Sequence[AttentionReading]", layout: Layout) -> Image.Image:
    """Draw for each subject the picture, lit where the attention to it went, under the layout, with its reading.

    Raises:
        PictureError: there are no readings.
    """
    size = {"width": picture.width, "height": picture.height}
    drawn = (draw_layout(layout, **size, background=_light(picture, reading)) for reading in readings)
    return contact_sheet([Row("Where the attention to each subject went", tuple(drawn), tuple(map(str, readings)))])


def _light(picture: Image.Image, reading: "AttentionReading") -> Image.Image:
    """Darken the picture by how far a cell's attention is below that of the strongest one."""
    heat = (reading.heat / reading.heat.max()).numpy().astype(np.float32)
    light = np.asarray(Image.fromarray(heat).resize(picture.size, Image.Resampling.BILINEAR))[..., None]
    pixels = np.asarray(picture.convert("RGB")) * (_DARKEST + (1 - _DARKEST) * light)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
