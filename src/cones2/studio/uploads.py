"""Photos from anyone: bounded as they come, decoded in a child process with little memory and time, and re-encoded.

What is learned from, and what the page shows, is made of their pixels alone. The child is
`python -m cones2.studio.uploads`, with one JSON object on its standard input and one as its answer.
"""

import base64
import contextlib
import io
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from cones2.errors import Cones2Error, PhotoError, printable
from cones2.studio.problems import NotAPictureError, TooLargeError

PHOTO_BYTES = 25_000_000
MOST_PHOTOS = 8
SMALL_BYTES = 25_000_000
"""Of a residual, a picture or a layout that is to be read."""
_MEMORY = 3 * 2**30
_SECONDS = 60
_PREVIEW = 256
_MOST_FIELDS = 20


def form_schema(fields: Mapping[str, str], required: Sequence[str]) -> dict[str, Any]:
    """Return what OpenAPI is told of a multipart form: fields of `text`, `number`, `file` or `files`."""
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    kinds = {
        "text": {"type": "string"},
        "number": {"type": "integer"},
        "file": file,
        "files": {"type": "array", "items": file, "maxItems": MOST_PHOTOS},
    }
    properties = {name: kinds[kind] for name, kind in fields.items()}
    form = {"type": "object", "properties": properties, "required": list(required)}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


@contextlib.asynccontextmanager
async def form_of(request: Request, *, files: int) -> AsyncIterator[FormData]:
    """Read a multipart form of at most so many files for a `with` block."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise NotAPictureError("expected a multipart/form-data body.")
    form = await request.form(max_files=files, max_fields=_MOST_FIELDS, max_part_size=2**20)
    try:
        yield form
    finally:
        await form.close()


async def file_of(form: FormData, name: str) -> bytes:
    """Return the one file of a form; PhotoError where there is none, TooLargeError where it is too large."""
    file = form.get(name)
    if not isinstance(file, UploadFile):
        raise PhotoError(f"the form has no file {name!r}: add it.")
    return await _content(file, SMALL_BYTES)


async def photos_of(form: FormData) -> list[tuple[str, bytes]]:
    """Return the names, made harmless and unlike, and the contents of a form's photos."""
    found: list[tuple[str, bytes]] = []
    for number, file in enumerate(form.getlist("photos"), 1):
        if isinstance(file, UploadFile):
            name = printable(Path((file.filename or "").replace("\\", "/")).name)[:80] or f"photo {number}"
            name = f"{name} ({number})" if name in dict(found) else name
            found.append((name, await _content(file, PHOTO_BYTES)))
    if not 0 < len(found) <= MOST_PHOTOS:
        raise PhotoError(f"there are {len(found)} photos: expected 1 to {MOST_PHOTOS}, and 3 to 5 do best.")
    return found


async def _content(file: UploadFile, limit: int) -> bytes:
    if (file.size or 0) > limit:
        raise TooLargeError(
            f"{printable(file.filename or 'a file')[:80]} has over {limit:,} bytes: send a smaller one."
        )
    return await file.read()


def decode(
    photos: Sequence[tuple[str, bytes]], folder: Path, *, size: int, crops: Sequence[Sequence[float] | None] = ()
) -> dict[str, Any]:
    """Decode photos in a child into `folder`: `photos/0.png` and so on, a thumbnail, and what is doubtful.

    Returns:
        `{"photos": [{name, ok, width, height, doubts, preview}], "doubts": [...]}`.

    Raises:
        PhotoError: the child took too much memory or time.
    """
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    (folder / "raw").mkdir()
    for number, (_, content) in enumerate(photos):
        (folder / "raw" / str(number)).write_bytes(content)
    asked = {"folder": str(folder), "names": [name for name, _ in photos], "size": size, "crops": list(crops)}
    command = [sys.executable, "-P", "-m", "cones2.studio.uploads"]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked).encode(), capture_output=True, timeout=2 * _SECONDS, check=True
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        raise PhotoError(
            "the photos took too much memory or time to read: save them smaller, as JPEG or PNG."
        ) from error
    return answer


def main() -> None:
    """Decode what the standard input names, within limits of memory and time."""
    asked = json.loads(sys.stdin.buffer.read())
    _limit()
    print(json.dumps(_decoded(Path(asked["folder"]), asked["names"], asked["size"], asked["crops"])))  # noqa: T201


def _limit() -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limits; what is decoded is bounded all the same
        return
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))


def _decoded(folder: Path, names: Sequence[str], size: int, crops: Sequence[Sequence[float] | None]) -> dict[str, Any]:
    from cones2.photos import Photo, load_photos, photo_report

    photos: list[Photo] = []
    told: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        path = folder / "raw" / str(number)
        try:
            photo = load_photos(path)[0]
            crop = crops[number] if number < len(crops) else None
            photo = replace(photo, path=Path(name), image=_cropped(photo.image, crop) if crop else photo.image)
        except (Cones2Error, MemoryError) as error:
            text = str(error).replace(str(path), name) or f"{name} takes too much memory."
            told.append({"name": name, "ok": False, "doubts": [text], "preview": None})
            continue
        finally:
            path.unlink()
        photo.image.save(folder / "photos" / f"{number}.png")
        preview = _webp(photo.image)
        if not photos:
            (folder / "thumb.webp").write_bytes(preview)
        photos.append(photo)
        facts = {"name": name, "ok": True, "width": photo.image.width, "height": photo.image.height, "doubts": []}
        told.append(facts | {"preview": f"data:image/webp;base64,{base64.b64encode(preview).decode()}"})
    (folder / "raw").rmdir()
    report = photo_report(photos, size=size) if photos else None
    return {"photos": told, "doubts": _shared_out(told, report.findings if report else ())}


def _shared_out(told: Sequence[Mapping[str, Any]], findings: Sequence[Any]) -> list[str]:
    """Put findings to the photos that they are about; return those about all."""
    for finding in findings:
        for each in told:
            if each["name"] in finding.photos:
                each["doubts"].append(finding.text)
    return [finding.text for finding in findings if not finding.photos]


def _cropped(image: Any, crop: Sequence[float]) -> Any:
    left, top, right, bottom = crop
    sides = (left * image.width, top * image.height, right * image.width, bottom * image.height)
    box = [round(side) for side in sides]
    if box[2] - box[0] < 16 or box[3] - box[1] < 16:
        raise PhotoError("the crop leaves less than 16 pixels a side: make it larger.")
    return image.crop(box)


def _webp(image: Any) -> bytes:
    small = image.copy()
    small.thumbnail((_PREVIEW, _PREVIEW))
    content = io.BytesIO()
    small.save(content, format="WEBP", quality=80)
    return content.getvalue()


if __name__ == "__main__":
    main()
