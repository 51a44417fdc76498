"""Pictures that say how they were made: PNG files with a JSON record, and contact sheets of many pictures."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from cones2.errors import PictureError
from cones2.files import read_bounded, write_atomically
from cones2.images import opened_image
from cones2.infotext import INFOTEXT_KEY, infotext

RECORD_KEY = "cones2"
LARGEST_RECORD = 2**20
LARGEST_PICTURE = 2**28
_LARGEST_SHEET = 80_000_000  # pixels; only their number is read, and Pillow itself warns of more than 89 million

_PAPER, _INK, _GRAY, _LINE = "#ffffff", "#1f2328", "#59636e", "#d1d9e0"
_MOST_LINES = 3


def write_picture(path: Path | str, image: Image.Image, record: Mapping[str, object]) -> None:
    """Write `image` to `path` as a PNG that carries `record`, anything JSON can hold, in an iTXt chunk keyed "cones2".

    A record of `picture_record` is also there as text, keyed "parameters", for other tools to read.

    Raises:
        PictureError: the record takes more than 1 MiB.
        OutputError: the file can't be written; nothing is left behind.
    """
    # ASCII, so that any string comes back as it was, also an undecodable byte of a command line.
    text = json.dumps(record, allow_nan=False)
    if len(text) > LARGEST_RECORD:
        raise PictureError(f"record of {len(text):,} bytes for {path}; expected at most {LARGEST_RECORD:,}.")
    chunks = PngInfo()
    chunks.add_itxt(RECORD_KEY, text)
    parameters = infotext(record, image.size)
    if parameters is not None:
        chunks.add_text(INFOTEXT_KEY, parameters)
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=chunks)
    write_atomically(Path(path), content.getvalue())


def read_record(path: Path | str) -> dict[str, object]:
    """Return the record that `write_picture` put into the PNG file `path`, without decoding its pixels.

    Raises:
        PictureError: the file can't be read, is not a PNG, or holds no such record or a damaged one.
    """
    path = Path(path)
    content = read_bounded(path, limit=LARGEST_PICTURE, error=PictureError)
    text = _record_text(path, content)
    if text is None:
        raise PictureError(
            f"{path} holds no record of how it was made; expected a picture that cones2 wrote, unedited."
        )
    if len(text) > LARGEST_RECORD:
        raise PictureError(f"{path}: its record has {len(text):,} characters; expected at most {LARGEST_RECORD:,}.")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PictureError(f"{path}: its record is damaged: {error}.") from error
    if not isinstance(record, dict):
        raise PictureError(f"{path}: its record is a {type(record).__name__}; expected a JSON object.")
    return record


@dataclass(frozen=True, eq=False)
class Row:
    """A row of a contact sheet.

    Attributes:
        label: heading above the pictures; may be empty.
        images: the pictures, at least one, of any shape.
        captions: a line for each picture, drawn under it, or none at all.
    """

    label: str
    images: tuple[Image.Image, ...]
    captions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.images:
            raise PictureError(f"row {self.label!r} has no pictures; expected at least one.")
        if len(self.captions) not in (0, len(self.images)):
            raise PictureError(
                f"row {self.label!r} has {len(self.captions)} captions for {len(self.images)} pictures; "
                "expected one for each, or none."
            )


def contact_sheet(rows: Sequence[Row], *, cell: int = 256) -> Image.Image:
    """Return one picture of all rows, each picture scaled to fit a cell of `cell` x `cell` pixels, its shape kept.

    Long headings and captions are wrapped, and after three lines cut with an ellipsis.

    Raises:
        PictureError: there are no rows.
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
    heading = _text_block(row.label, width, font=ImageFont.load_default(max(12, cell // 11)), color=_INK)
    pictures = [_framed(image, cell) for image in row.images]
    small = ImageFont.load_default(max(11, cell // 16))
    captions = [_text_block(caption, cell, font=small, color=_GRAY) for caption in row.captions]
    heights = [
        heading.height,
        max(picture.height for picture in pictures),
        max((c.height for c in captions), default=0),
    ]
    below_heading, below_pictures = (gap // 2 if part else 0 for part in (heights[0], heights[2]))
    strip = Image.new("RGB", (width, sum(heights) + below_heading + below_pictures), _PAPER)
    strip.paste(heading, (0, 0))
    for column, picture in enumerate(pictures):
        left, top = column * (cell + gap), heights[0] + below_heading
        strip.paste(picture, (left + (cell - picture.width) // 2, top + (heights[1] - picture.height) // 2))
    for column, caption in enumerate(captions):
        strip.paste(caption, (column * (cell + gap), strip.height - heights[2]))
    return strip


def _framed(image: Image.Image, cell: int) -> Image.Image:
    """Return `image` scaled to touch the cell's edges, with a hair line around it, so that a white one has an end."""
    scaled = ImageOps.contain(image.convert("RGB"), (cell, cell), Image.Resampling.LANCZOS)
    ImageDraw.Draw(scaled).rectangle((0, 0, scaled.width - 1, scaled.height - 1), outline=_LINE)
    return scaled


def _text_block(
    text: str, width: int, *, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, color: str
) -> Image.Image:
    """Return wrapped text as a picture, as high as its lines; of no height when there is no text."""
    lines = _wrapped(text, width, font)
    line_height = round(sum(font.getbbox("Ag")[1::2]) * 1.1)
    block = Image.new("RGB", (width, line_height * len(lines)), _PAPER)
    for number, line in enumerate(lines):
        ImageDraw.Draw(block).text((0, number * line_height), line, fill=color, font=font)
    return block


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES - 1] += " \N{HORIZONTAL ELLIPSIS}"
    return [_shortened(line, width, font) for line in lines[:_MOST_LINES]]


def _shortened(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while font.getlength(line) > width and len(line) > 1:
        line = line[:-2] + "\N{HORIZONTAL ELLIPSIS}"
    return line


def _record_text(path: Path, content: bytes) -> str | None:
    advice = "Expected one that cones2 wrote."
    with opened_image(
        content, name=str(path), formats=("PNG",), error=PictureError, advice=advice, most_pixels=_LARGEST_SHEET
    ) as image:
        text = image.info.get(RECORD_KEY)
    return text if isinstance(text, str) else None
