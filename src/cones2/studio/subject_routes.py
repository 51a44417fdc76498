"""The API's routes to subjects: list, teach, import, rename, bin and push."""

import contextlib
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pydantic
from fastapi import APIRouter, Header, Request
from fastapi.responses import FileResponse, Response
from starlette.datastructures import FormData

from cones2.errors import CaptionError, LibraryError
from cones2.files import is_name
from cones2.learning.recipe import find_recipe
from cones2.library import check_name
from cones2.prompts import check_class_word
from cones2.studio import schema
from cones2.studio.database import Row
from cones2.studio.journal import NewJob
from cones2.studio.problems import InvalidError, NameTakenError, NotAPictureError, NotFoundError
from cones2.studio.security import as_json, body_hash
from cones2.studio.shelf import names_in_use
from cones2.studio.studio import Client, InStudio, Studio
from cones2.studio.uploads import MOST_PHOTOS, decode, file_of, form_of, form_schema, photos_of

_SIDE = 512  # pixels that photos are judged for, until the model is open
_FORM = {"name": "text", "class_word": "text", "recipe": "text", "steps": "number", "seed": "number"}


_PHOTO_FORM = {**_FORM, "force_class": "text", "crops": "text", "photos": "files"}
router = APIRouter()
_decoders = anyio.CapacityLimiter(2)
"""How many requests decode photos at once, each in a child that may take 3 GiB; the others wait, and hold no thread."""


@contextlib.contextmanager
def _known() -> Iterator[None]:
    """Tell a name that is not there from one that is taken."""
    try:
        yield
    except LibraryError as error:
        text = str(error)
        if "has no" in text or "no such" in text:
            raise NotFoundError(text) from error
        if "already" in text or "differs" in text:
            raise NameTakenError(text) from error
        raise


@router.get("/v1/subjects")
def list_subjects(studio: InStudio) -> schema.Subjects:
    """The library's subjects, then the examples."""
    return schema.Subjects(subjects=[schema.Subject(**each) for each in studio.shelf.all()])


@router.get("/v1/subjects/bin")
def list_bin(studio: InStudio) -> schema.Bin:
    """Subjects that were deleted."""
    return schema.Bin(subjects=[schema.Binned(**row) for row in studio.album.in_bin()])


@router.get("/v1/subjects/{name}")
def get_subject(name: str, studio: InStudio) -> schema.Subject:
    """A subject."""
    with _known():
        return schema.Subject(**studio.shelf.find(check_name(name)))


@router.get("/v1/subjects/{name}/thumb", response_class=Response)
def subject_thumb(name: str, studio: InStudio) -> Response:
    """A WebP of one of its photos."""
    with _known():
        content = studio.shelf.thumb(check_name(name))
    if content is None:
        raise NotFoundError(f"{name} has no picture.")
    return Response(content, media_type="image/webp", headers={"Cache-Control": "private, max-age=60"})


@router.get("/v1/subjects/{name}/file", response_class=FileResponse)
def subject_file(name: str, studio: InStudio) -> FileResponse:
    """Its residual, to be kept or given away."""
    with _known():
        path = studio.shelf.find(check_name(name))["path"]
    return FileResponse(path, media_type="application/octet-stream", filename=f"{name}.safetensors")


@router.post("/v1/photos/check", openapi_extra=form_schema({"photos": "files", "class_word": "text"}, ["photos"]))
async def check_photos(request: Request, studio: InStudio) -> schema.PhotosChecked:
    """Say what is doubtful about photos before they are learned from."""
    async with form_of(request, files=MOST_PHOTOS) as form:
        given, word = await photos_of(form), str(form.get("class_word") or "")
    checked = await anyio.to_thread.run_sync(_checked, studio, given, limiter=_decoders)
    checked["doubts"] += _doubts_of_word(studio, word)
    return schema.PhotosChecked(**checked)


@router.post("/v1/subjects", status_code=202, openapi_extra=form_schema(_PHOTO_FORM, ["name", "class_word", "photos"]))
async def teach(
    request: Request,
    studio: InStudio,
    client: Client,
    response: Response,
    idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
) -> schema.Job:
    """Queue the learning of a subject from its photos."""
    async with form_of(request, files=MOST_PHOTOS) as form:
        given = await photos_of(form)
        asked, crops = _read_fields(form, len(given))
    row = await anyio.to_thread.run_sync(
        _queue_learning, studio, client, asked, given, crops, idempotency_key, limiter=_decoders
    )
    response.headers["Location"] = f"/v1/jobs/{row['id']}"
    view = (await anyio.to_thread.run_sync(studio.supervisor.views, [row]))[0]
    return schema.Job(**{**view, "mine": True})


@router.post(
    "/v1/subjects/import",
    status_code=201,
    openapi_extra=form_schema({"file": "file", "name": "text"}, ["file", "name"]),
)
async def import_subject(request: Request, studio: InStudio) -> schema.Subject:
    """Put somebody's residual into the library."""
    async with form_of(request, files=1) as form:
        content, name = await file_of(form, "file"), str(form.get("name") or "")
    studio.check_room()
    with _known():
        found = await anyio.to_thread.run_sync(studio.shelf.add, name, content)
    studio.supervisor.tell_subjects()
    return schema.Subject(**found)


@router.post("/v1/subjects/{name}/push", status_code=202)
def push_subject(
    name: str, asked: schema.PushRequest, studio: InStudio, client: Client, response: Response
) -> schema.Job:
    """Queue the way of a subject to the Hub."""
    with _known():
        sha256 = studio.shelf.store(check_name(name))
    request = asked.model_dump() | {"name": name, "sha256": sha256}
    job = NewJob(id=secrets.token_hex(8), client=client, kind="push", request=request, steps=1, subject=name)
    row, _ = studio.journal.add(job)
    studio.supervisor.wake()
    response.headers["Location"] = f"/v1/jobs/{row['id']}"
    return schema.Job(**{**studio.supervisor.views([row])[0], "mine": True})


@router.patch("/v1/subjects/{name}")
def rename_subject(name: str, new: schema.NewName, studio: InStudio) -> schema.Subject:
    """Give a subject another name."""
    with _known():
        found = studio.shelf.rename(check_name(name), new.name)
    studio.supervisor.tell_subjects()
    return schema.Subject(**found)


@router.delete("/v1/subjects/{name}", status_code=204)
def delete_subject(name: str, studio: InStudio) -> None:
    """Put a subject into the bin."""
    with _known():
        studio.shelf.delete(check_name(name))
    studio.supervisor.tell_subjects()


@router.post("/v1/subjects/bin/{binned}/restore")
def restore_subject(binned: str, studio: InStudio) -> schema.Subject:
    """Take a subject out of the bin."""
    with _known():
        found = studio.shelf.restore(binned)
    studio.supervisor.tell_subjects()
    return schema.Subject(**found)


def _read_fields(form: FormData, count: int) -> tuple[schema.LearnRequest, list[list[float] | None]]:
    """Return what a form asks to be learned, and the crop of each photo; InvalidError where it can't be used."""
    values: dict[str, Any] = {name: str(form[name]) for name in _FORM if form.get(name) not in (None, "")}
    for name in ("steps", "seed"):
        if name in values:
            if not (values[name].isascii() and values[name].isdecimal() and len(values[name]) < 20):
                raise InvalidError(name, f"{name} {values[name][:40]!r} can't be used: expected a whole number.")
            values[name] = int(values[name])
    values["force_class"] = str(form.get("force_class") or "").lower() in ("1", "true", "on", "yes")
    try:
        asked = schema.LearnRequest(**values)
        asked.class_word = check_class_word(asked.class_word)
        if asked.recipe is not None:
            if not is_name(asked.recipe):
                raise InvalidError("recipe", f"there is no recipe {asked.recipe!r}.")
            find_recipe(asked.recipe)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidError(place, f"{place}: {first['msg']}.") from error
    except CaptionError as error:
        raise InvalidError("class_word", str(error)) from error
    return asked, _read_crops(str(form.get("crops") or "null"), count)


def _read_crops(text: str, count: int) -> list[list[float] | None]:
    try:
        crops = json.loads(text[:10_000])
    except (ValueError, RecursionError) as error:
        raise InvalidError("crops", "crops is not JSON: expected a list, a box or null for each photo.") from error
    if crops is None:
        return []
    if not isinstance(crops, list) or len(crops) > count:
        raise InvalidError("crops", "expected a list, a box [x0, y0, x1, y1] in 0..1 or null for each photo.")
    for crop in crops:
        sides = crop if isinstance(crop, list) else []
        numbers = len(sides) == 4 and all(type(side) in (int, float) for side in sides)  # NaN is between none
        if crop is not None and not (numbers and 0 <= sides[0] < sides[2] <= 1 and 0 <= sides[1] < sides[3] <= 1):
            raise InvalidError("crops", f"{str(crop)[:80]} is no crop: expected [x0, y0, x1, y1] in 0..1, or null.")
    return [None if crop is None else [float(side) for side in crop] for crop in crops]


def _checked(studio: Studio, photos: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=studio.folder / "learning", prefix="check-") as folder:
        return decode(photos, Path(folder), size=_side(studio))


def _side(studio: Studio) -> int:
    info = studio.supervisor.info
    return min(info["size"]) if info else _SIDE


def _doubts_of_word(studio: Studio, word: str) -> list[str]:
    known = (studio.supervisor.info or {}).get("knows_class_words")
    if not word or not known or word.lower() in known:
        return []
    return [f"the model does not know {word[:60]!r}; it knows {', '.join(known)}."]


def _queue_learning(
    studio: Studio,
    client: str,
    asked: schema.LearnRequest,
    photos: Sequence[tuple[str, bytes]],
    crops: Sequence[Sequence[float] | None],
    key: str | None,
) -> Row:
    """Decode the photos into the job's folder, and queue it; nothing stays of one that is refused."""
    studio.check_room()
    doubts = _doubts_of_word(studio, asked.class_word)
    if doubts and not asked.force_class:
        raise InvalidError("class_word", f"{doubts[0]} Choose one of these, or teach it all the same by force_class.")
    hashed = body_hash(b"learn", as_json([asked.model_dump(), crops]), *(content for _, content in photos))
    job = secrets.token_hex(8)
    new = NewJob(
        id=job,
        client=client,
        kind="learn",
        request=asked.model_dump(),
        steps=asked.steps or find_recipe(asked.recipe or (studio.supervisor.info or {}).get("recipe", "mini")).steps,
        subject=asked.name,
        key=key,
        body_hash=hashed,
    )
    known = studio.journal.with_key(client, key)
    if known is None:
        for taken in names_in_use(studio.shelf, studio.journal, asked.name):
            raise NameTakenError(taken)
    folder = studio.folder / "learning" / job
    try:
        if known is None:
            told = decode(photos, folder, size=_side(studio), crops=crops)
            bad = [doubt for each in told["photos"] if not each["ok"] for doubt in each["doubts"]]
            if bad:
                raise NotAPictureError(" ".join(bad))
        row, is_new = studio.journal.add(new)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if not is_new:
        shutil.rmtree(folder, ignore_errors=True)
    studio.supervisor.wake()
    return row
