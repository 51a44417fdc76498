"""Pictures that say how they were made: PNG files with a JSON record, and with the text that other tools read."""

import io
import json
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cones2.errors import Cones2Warning, PictureError
from cones2.files import expanded, read_bounded, write_atomically

RECORD_KEY = "cones2"
"""The keyword of the iTXt chunk that holds the record."""

PARAMETERS_KEY = "parameters"
"""The keyword of the text that AUTOMATIC1111's web UI writes, and that many other tools read."""

LARGEST_RECORD = 2**20
LARGEST_PICTURE = 2**28

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SAMPLERS = {
    "DDIM": "DDIM", "DPMSolverMultistep": "DPM++ 2M", "DPMSolverSDE": "DPM++ SDE", "EulerAncestralDiscrete": "Euler a",
    "EulerDiscrete": "Euler", "FlowMatchEulerDiscrete": "Euler", "HeunDiscrete": "Heun", "KDPM2Discrete": "DPM2",
    "KDPM2AncestralDiscrete": "DPM2 a", "LCM": "LCM", "LMSDiscrete": "LMS", "PNDM": "PLMS", "UniPCMultistep": "UniPC",
}  # fmt: skip


def write_picture(path: Path | str, image: Any, record: Mapping[str, Any], *, embed: bool = True) -> None:
    """Write a PNG that carries a record, anything JSON can hold, in an iTXt chunk keyed `cones2`.

    A record of `describe` is also there as text keyed `parameters`, for other tools to read.

    Args:
        path: of the file; a file that is there is replaced.
        image: a PIL image.
        record: how it was made.
        embed: whether the residuals in the record go into the file too. Where they do not fit, they are left out with a
            warning.

    Raises:
        PictureError: this is no PIL image that a PNG can hold, or the record is no JSON or takes more than 1 MiB.
        OutputError: the file can't be written; nothing is left behind.
    """
    if not isinstance(image, Image.Image):
        raise PictureError(f"the picture is a {type(image).__name__}: expected a PIL image. Ask for output_type 'pil'.")
    text = _to_json(record if embed else strip_residuals(record))
    if len(text) > LARGEST_RECORD and embed and record.get("residuals"):
        text = _to_json(strip_residuals(record))
        warnings.warn(f"the record of {path} has no room for its residuals: keep their files.", Cones2Warning, 2)
    if len(text) > LARGEST_RECORD:
        raise PictureError(f"the record for {path} takes {len(text):,} bytes: expected at most {LARGEST_RECORD:,}.")
    chunks, content = PngInfo(), io.BytesIO()
    chunks.add_itxt(RECORD_KEY, text)
    parameters = infotext(record, image.size)
    if parameters is not None:
        chunks.add_text(PARAMETERS_KEY, parameters)
    try:
        image.save(content, format="PNG", pnginfo=chunks)
    except (OSError, ValueError) as error:
        raise PictureError(f"the picture for {path} can't be a PNG: {error}. Convert it to RGB first.") from error
    write_atomically(expanded(path), content.getvalue())


def read_record(path: Path | str) -> dict[str, Any]:
    """Return the record that `write_picture` put into a PNG, without decoding its pixels.

    Raises:
        PictureError: the file can't be read, is not a PNG, or holds no such record or a damaged one.
    """
    content = read_bounded(expanded(path), limit=LARGEST_PICTURE, error=PictureError)
    if not content.startswith(_SIGNATURE):
        raise PictureError(f"{path} is not a PNG picture: expected one that cones2 wrote.")
    try:
        text = _find_text(content, RECORD_KEY.encode())
        record = None if text is None else json.loads(text)
    except (ValueError, IndexError, zlib.error, RecursionError) as error:
        raise PictureError(f"{path}: its record is damaged: {str(error)[:100]}.") from error
    if text is None:
        raise PictureError(
            f"{path} holds no record of how it was made: expected a picture that cones2 wrote, unedited."
        )
    if not isinstance(record, dict):
        raise PictureError(f"{path}: its record is a {type(record).__name__}: expected a JSON object.")
    return record


def strip_residuals(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without the bytes of its residuals; their hashes stay, so that their files can be found."""
    return {key: value for key, value in record.items() if key != "residuals"}


def infotext(record: Mapping[str, Any], size: tuple[int, int]) -> str | None:
    """Return prompt, negative prompt and settings as AUTOMATIC1111's web UI writes them; None for any other record.

    The prompt is as the model read it, without placeholders. Subjects and layout have no place in this format.
    """
    scheduler = record.get("scheduler")
    if not isinstance(scheduler, Mapping) or "text" not in record:
        return None
    kind, config = str(scheduler.get("class_name")).removesuffix("Scheduler"), scheduler.get("config", {})
    values = {
        "Steps": record.get("num_inference_steps"),
        "Sampler": _SAMPLERS.get(kind, kind) + (" SDE" if config.get("algorithm_type") == "sde-dpmsolver++" else ""),
        "Schedule type": "Karras" if config.get("use_karras_sigmas") else None,
        "CFG scale": record.get("guidance_scale"),
        "Seed": record.get("seed"),
        "Size": f"{size[0]}x{size[1]}",
        "Model": record.get("model", {}).get("name"),
    }
    negative = record.get("negative_prompt")
    lines = [str(record["text"]), *([f"Negative prompt: {negative}"] if negative else [])]
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in values.items() if value is not None))
    # An undecodable byte of a command line has no place in UTF-8.
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def _to_json(record: Mapping[str, Any]) -> str:
    # ASCII, so that any string comes back as it was, also an undecodable byte of a command line.
    try:
        return json.dumps(record, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PictureError(f"the record is not JSON: {error}. Expected what describe returned.") from error


def _find_text(content: bytes, key: bytes) -> str | None:
    """Return the text of the first iTXt chunk of this keyword; None where there is none.

    Raises:
        ValueError, IndexError, zlib.error: it is damaged or too large.
    """
    place = len(_SIGNATURE)
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        start, place = place + 8, place + 12 + length
        if kind != b"iTXt" or not content.startswith(key + b"\0", start):
            continue
        data, checksum = content[start : start + length], content[start + length : place]
        if zlib.crc32(kind + data).to_bytes(4, "big") != checksum:
            raise ValueError("its checksum is wrong")
        is_compressed, rest = data[len(key) + 1], data[len(key) + 3 :]
        text = rest.split(b"\0", 2)[2]  # after the language and the translated keyword
        if is_compressed:
            text = zlib.decompressobj().decompress(text, LARGEST_RECORD + 1)
        if len(text) > LARGEST_RECORD:
            raise ValueError(f"it has {len(text):,} bytes, expected at most {LARGEST_RECORD:,}")
        return text.decode()
    return None


def _quoted(value: object) -> str:
    """Quote what holds a separator, as the web UI does."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text
