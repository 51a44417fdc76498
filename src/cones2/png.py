"""Pictures that say how they were made: PNG files with a JSON record, and with the text that other tools read."""

import io
import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.numpy
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from cones2.errors import Cones2Warning, PictureError
from cones2.files import expanded, read_bounded, write_atomically
from cones2.images import PNG, png_chunks

if TYPE_CHECKING:
    from torch import Tensor

RECORD_KEY = "cones2"
"""The keyword of the iTXt chunk that holds the record."""

LARGEST_RECORD = 2**20
LARGEST_PICTURE = 2**28
_MOST_CHUNKS = 10_000  # before the pixels
_END = b"\0\0\0\0IEND\xaeB`\x82"

# What AUTOMATIC1111's web UI calls diffusers' schedulers, where the names differ.
_SAMPLERS = {
    "DPMSolverMultistep": "DPM++ 2M", "DPMSolverSDE": "DPM++ SDE", "EulerAncestralDiscrete": "Euler a",
    "EulerDiscrete": "Euler", "FlowMatchEulerDiscrete": "Euler", "HeunDiscrete": "Heun", "KDPM2Discrete": "DPM2",
    "KDPM2AncestralDiscrete": "DPM2 a", "LMSDiscrete": "LMS", "PNDM": "PLMS", "UniPCMultistep": "UniPC",
}  # fmt: skip


def write_picture(path: Path | str, image: Any, record: Mapping[str, Any], *, embed: bool = True) -> None:
    """Write a PNG that carries a record, anything JSON can hold, in an iTXt chunk keyed `cones2`.

    A pipeline's record is also there as text keyed `parameters`, which many other tools read.

    Args:
        path: of the file; a file that is there is replaced.
        image: a PIL image.
        record: how it was made.
        embed: whether the record's residuals go into the file. Those that do not fit are left out with a warning.

    Raises:
        PictureError: this is not a PIL image that a PNG can hold, or the record is not JSON or takes more than 1 MiB.
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
    if {"scheduler", "num_inference_steps"} <= record.keys():
        chunks.add_text("parameters", _infotext(record, image.size))
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
    return record_in(read_bounded(expanded(path), limit=LARGEST_PICTURE, error=PictureError), path)


def record_in(content: bytes, path: Path | str) -> dict[str, Any]:
    """Return the record in the bytes of a PNG, as `read_record` does; errors name its `path`."""
    try:
        text = PngImageFile(io.BytesIO(_only_record(content))).info.get(RECORD_KEY, "null")
        if len(text) > LARGEST_RECORD:
            raise ValueError(f"it has {len(text):,} characters, expected at most {LARGEST_RECORD:,}")
        record = json.loads(text)
    except Exception as error:  # on hostile bytes a decoder may raise anything
        raise PictureError(f"{path} is not a PNG picture, or its record is damaged: {str(error)[:100]}.") from error
    if not isinstance(record, dict):
        raise PictureError(f"{path} holds no record of how it was made: expected a picture that cones2 wrote.")
    return record


def _only_record(content: bytes) -> bytes:
    """Return a PNG cut down to its head and our record, since other texts may take gigabytes."""
    if not content.startswith(PNG):
        raise ValueError("it does not start like one")
    kept: list[bytes | memoryview] = [PNG]
    for kind, chunk in itertools.islice(png_chunks(content), _MOST_CHUNKS):
        if kind in (b"IDAT", b"IEND"):
            kept.append(_END)
            break
        if kind == b"IHDR" or (kind == b"iTXt" and chunk[8 : 9 + len(RECORD_KEY)] == f"{RECORD_KEY}\0".encode()):
            kept.append(chunk)
    size = sum(map(len, kept))
    if size > 2 * LARGEST_RECORD:
        raise ValueError(f"it has {size:,} bytes, expected at most {LARGEST_RECORD:,}")
    return b"".join(kept)


def strip_residuals(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without the bytes of its residuals; their hashes stay, so that their files can be found."""
    return {key: value for key, value in record.items() if key != "residuals"}


def write_latents(path: Path, latents: "Float[Tensor, 'batch channels height width']", seeds: Sequence[int]) -> None:
    """Write a safetensors file with one tensor, `latents`, in float32; its metadata has the seed of each row."""
    rows = latents.detach().float().cpu().numpy()
    write_atomically(path, safetensors.numpy.save({"latents": rows}, {"seeds": json.dumps(list(seeds))}))


def _infotext(record: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Return prompt, negative prompt and settings as AUTOMATIC1111's web UI writes them; it has no subjects."""
    kind = record["scheduler"]["class_name"].removesuffix("Scheduler")
    values = {
        "Steps": record["num_inference_steps"],
        "Sampler": _SAMPLERS.get(kind, kind),
        "CFG scale": record["guidance_scale"],
        "Seed": record["seed"],
        "Size": f"{size[0]}x{size[1]}",
        "Model": record["model"]["name"].translate({ord(sign): " " for sign in ",:\n"}),
    }
    lines = [record["text"]] + [f"Negative prompt: {record['negative_prompt']}"] * bool(record["negative_prompt"])
    lines.append(", ".join(f"{name}: {value}" for name, value in values.items() if value is not None))
    # An undecodable byte of a command line has no place in UTF-8.
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def _to_json(record: Mapping[str, Any]) -> str:
    # ASCII, so that any string comes back as it was, also an undecodable byte of a command line.
    try:
        return json.dumps(record, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PictureError(f"the record is not JSON: {error}. Expected what describe returned.") from error
