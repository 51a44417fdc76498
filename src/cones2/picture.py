"""Pictures that say how they were made: PNG files with a JSON record."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cones2.errors import PictureError
from cones2.files import read_bounded, write_atomically
from cones2.images import opened_image
from cones2.infotext import INFOTEXT_KEY, infotext

RECORD_KEY = "cones2"
LARGEST_RECORD = 2**20
LARGEST_PICTURE = 2**28
_LARGEST_SHEET = 80_000_000  # pixels; only their number is read, and Pillow itself warns of more than 89 million


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


def _record_text(path: Path, content: bytes) -> str | None:
    advice = "Expected one that cones2 wrote."
    with opened_image(
        content, name=str(path), formats=("PNG",), error=PictureError, advice=advice, most_pixels=_LARGEST_SHEET
    ) as image:
        text = image.info.get(RECORD_KEY)
    return text if isinstance(text, str) else None
