"""The API's routes to jobs, their events, and pictures.

Whoever has the token shares the gallery and the queue; only the client that queued a job may cancel it, retry it or
finish it.
"""

import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Header, Query
from fastapi.responses import FileResponse, Response, StreamingResponse

from cones2.errors import LibraryError
from cones2.studio import requests, schema
from cones2.studio.database import Row
from cones2.studio.events import Stream, change
from cones2.studio.journal import NewJob
from cones2.studio.problems import InvalidError, NotFoundError, NotYoursError
from cones2.studio.security import as_json, body_hash
from cones2.studio.studio import Client, InStudio, Studio, show_picture

LastEventId = Annotated[str | None, Header(pattern=r"^\d{0,18}$")]
IdempotencyKey = Annotated[str | None, Header(max_length=255)]
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
_MOST_WAIT = 60
_SNAPSHOT = 50
router = APIRouter()


@router.get("/v1/events")
async def events(studio: InStudio, client: Client, last_event_id: LastEventId = None) -> StreamingResponse:
    """All that happens, as server-sent events."""
    return StreamingResponse(_told(studio, client, None, last_event_id), media_type="text/event-stream")


async def _told(studio: Studio, client: str, job: str | None, last: str | None) -> AsyncIterator[bytes]:
    """Yield a snapshot, what was missed since the event `last`, and then what happens."""
    with studio.broker.stream(client, job) as stream:
        yield await anyio.to_thread.run_sync(_begun, studio, client, stream, last)
        if job is None or not await anyio.to_thread.run_sync(_has_ended, studio, job):
            async for lines in stream.read():
                yield lines


def _begun(studio: Studio, client: str, stream: Stream, last: str | None) -> bytes:
    number = studio.journal.last_event()
    rows = [row] if stream.job and (row := studio.journal.job(stream.job)) else studio.journal.jobs(limit=_SNAPSHOT)
    jobs = seen(studio, rows, client)
    states = [each["state"] for each in jobs]
    counted = {"queued": states.count("queued"), "running": states.count("running"), "worker": studio.supervisor.state}
    told = [change("snapshot", {"jobs": jobs, "info": counted}, number=number)]
    for event in studio.journal.events_after(int(last)) if last else ():
        if stream.job not in (None, event.job):
            continue
        if event.kind == "result" and (picture := studio.album.picture(event.picture or "")) is not None:
            told.append(change("result", {"job": event.job, "picture": show_picture(picture)}, number=event.number))
        elif event.kind == "state" and (row := studio.journal.job(event.job)) is not None:
            told.append(change("state", seen(studio, [row], client)[0], number=event.number))
    return b"".join(each.lines(client) for each in told)


def _has_ended(studio: Studio, job: str) -> bool:
    row = studio.journal.job(job)
    return row is None or row["state"] in schema.FINAL


def seen(studio: Studio, rows: list[Row], client: str) -> list[dict[str, Any]]:
    """Return jobs as a client sees them."""
    views = studio.supervisor.views(rows)
    return [{**view, "mine": row["client"] == client} for row, view in zip(rows, views, strict=True)]


def _job(studio: Studio, job: str) -> Row:
    row = studio.journal.job(job)
    if row is None:
        raise NotFoundError("there is no such job.")
    return row


def _own(studio: Studio, job: str, client: str) -> Row:
    row = _job(studio, job)
    if row["client"] != client:
        raise NotYoursError("another client queued this job: it is for that one to change.")
    return row


def _answer(studio: Studio, row: Row, client: str) -> schema.Job:
    return schema.Job(**seen(studio, [row], client)[0])


@router.get("/v1/jobs")
def list_jobs(
    studio: InStudio, client: Client, state: schema.State | None = None, kind: schema.Kind | None = None
) -> schema.Jobs:
    """The newest jobs, and all that wait or run."""
    rows = studio.journal.jobs(states=(state,) if state else (), kind=kind)
    return schema.Jobs(jobs=[schema.Job(**each) for each in seen(studio, rows, client)])


@router.get("/v1/jobs/{job}")
def get_job(job: str, studio: InStudio, client: Client) -> schema.Job:
    """A job."""
    return _answer(studio, _job(studio, job), client)


@router.get("/v1/jobs/{job}/events")
def job_events(job: str, studio: InStudio, client: Client, last_event_id: LastEventId = None) -> StreamingResponse:
    """What happens to a job, until its end."""
    _job(studio, job)
    return StreamingResponse(_told(studio, client, job, last_event_id), media_type="text/event-stream")


@router.get("/v1/jobs/{job}/preview")
def job_preview(job: str, studio: InStudio, n: str = "") -> Response:  # noqa: ARG001  # n tells browsers it is new
    """The latest look of a job, as a WebP."""
    preview = studio.supervisor.previews.get(job)
    if preview is None:
        raise NotFoundError("there is no preview of this job.")
    return Response(preview.content, media_type="image/webp")


@router.post("/v1/jobs/{job}/cancel")
def cancel_job(job: str, studio: InStudio, client: Client) -> schema.Job:
    """Cancel a job: one that waits at once, one that runs at the end of its step."""
    _own(studio, job, client)
    return _answer(studio, studio.supervisor.wish(job, "cancel") or _job(studio, job), client)


@router.post("/v1/jobs/{job}/finish")
def finish_job(job: str, studio: InStudio, client: Client) -> schema.Job:
    """Let a learning end now, and keep the step whose picture was most like; without a measure, the last one."""
    if _own(studio, job, client)["kind"] != "learn":
        raise InvalidError("job", "only learning can be finished early: cancel this job instead.")
    return _answer(studio, studio.supervisor.wish(job, "finish") or _job(studio, job), client)


@router.post("/v1/jobs/{job}/retry", status_code=202)
def retry_job(job: str, studio: InStudio, client: Client) -> schema.Job:
    """Queue a job again that failed or was cancelled."""
    row = _own(studio, job, client)
    if row["kind"] == "learn" and not (studio.folder / "learning" / job / "photos").is_dir():
        raise LibraryError("the photos of this job are gone: teach the subject anew.")
    studio.check_room()
    row = studio.journal.retry(job) or row
    studio.supervisor.wake()
    return _answer(studio, row, client)


def _picture(studio: Studio, picture: str) -> Row:
    row = studio.album.picture(picture)
    if row is None:
        raise NotFoundError("there is no such picture.")
    return row


def _file(path: Path, kind: str, headers: dict[str, str] | None = None) -> FileResponse:
    if not path.is_file():
        raise NotFoundError("there is no such file: it was deleted from the studio's folder.")
    return FileResponse(path, media_type=kind, headers=_KEPT | (headers or {}))


@router.post("/v1/pictures", status_code=202, responses={200: {"model": schema.Job}})
async def make_pictures(
    asked: schema.Request,
    studio: InStudio,
    client: Client,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    prefer: Annotated[str | None, Header(max_length=200)] = None,
) -> schema.Job:
    """Queue pictures; with `Prefer: wait=SECONDS`, wait for them."""
    row = await anyio.to_thread.run_sync(_queue_pictures, studio, client, asked, idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{row['id']}"
    wait = re.search(r"\bwait=(\d{1,3})\b", prefer or "")
    if wait:
        response.headers["Preference-Applied"] = f"wait={min(int(wait[1]), _MOST_WAIT)}"
        seconds = min(int(wait[1]), _MOST_WAIT)
        await studio.broker.wait_for_end(row["id"], seconds, lambda: _has_ended(studio, row["id"]))
    row = await anyio.to_thread.run_sync(_job, studio, row["id"])
    response.status_code = 200 if row["state"] in schema.FINAL else 202
    return schema.Job(**(await anyio.to_thread.run_sync(seen, studio, [row], client))[0])


@router.get("/v1/pictures")
def list_pictures(
    studio: InStudio,
    cursor: Annotated[str | None, Query(pattern=r"^\d{1,18}$")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    subject: Annotated[str | None, Query(max_length=64)] = None,
    starred: bool | None = None,
    deleted: bool = False,
) -> schema.Pictures:
    """The gallery."""
    before = int(cursor) if cursor else None
    rows = studio.album.pictures(before=before, limit=limit, subject=subject, starred=starred or None, deleted=deleted)
    following = str(rows[-1]["number"]) if len(rows) == limit else None
    return schema.Pictures(pictures=[schema.Picture(**show_picture(row)) for row in rows], next=following)


@router.get("/v1/pictures/{picture}")
def get_picture(picture: str, studio: InStudio) -> schema.Picture:
    """A picture."""
    return schema.Picture(**show_picture(_picture(studio, picture)))


@router.get("/v1/pictures/{picture}/file", response_class=FileResponse)
def picture_file(picture: str, studio: InStudio) -> FileResponse:
    """The PNG, with its record."""
    name = _picture(studio, picture)["id"]
    shown = {"Content-Disposition": f'inline; filename="{name}.png"'}
    return _file(studio.folder / "pictures" / f"{name}.png", "image/png", shown)


@router.get("/v1/pictures/{picture}/thumb", response_class=FileResponse)
def picture_thumb(picture: str, studio: InStudio) -> FileResponse:
    """A WebP of at most 256 pixels."""
    return _file(studio.folder / "pictures" / f"{_picture(studio, picture)['id']}.webp", "image/webp")


@router.get("/v1/pictures/{picture}/request")
def picture_request(picture: str, studio: InStudio) -> dict[str, Any]:
    """What it was asked with, to be asked again."""
    request: dict[str, Any] = _picture(studio, picture)["request"]
    return request


@router.get("/v1/pictures/{picture}/attention/{name}", response_class=FileResponse)
def picture_attention(picture: str, name: str, studio: InStudio) -> FileResponse:
    """Where the attention to a subject went, as a PNG to lay over the picture."""
    row = _picture(studio, picture)
    names = [each["name"] for each in row["data"]["attention"]]
    if name not in names:
        raise NotFoundError("the attention to this subject was not measured.")
    return _file(studio.folder / "pictures" / f"{row['id']}-{names.index(name)}.heat.png", "image/png")


def _changed(studio: Studio, picture: str, **changes: Any) -> Row:
    row = studio.album.change(picture, **changes)
    if row is None:
        raise NotFoundError("there is no such picture.")
    return row


@router.patch("/v1/pictures/{picture}")
def change_picture(picture: str, changes: schema.PictureChange, studio: InStudio) -> schema.Picture:
    """Star it, or note something."""
    given = {name: value for name, value in changes.model_dump(exclude_unset=True).items() if value is not None}
    return schema.Picture(**show_picture(_changed(studio, picture, **given)))


@router.delete("/v1/pictures/{picture}", status_code=204)
def delete_picture(picture: str, studio: InStudio) -> None:
    """Put it into the bin."""
    _changed(studio, picture, deleted=True)


@router.post("/v1/pictures/{picture}/restore")
def restore_picture(picture: str, studio: InStudio) -> schema.Picture:
    """Take it out of the bin."""
    return schema.Picture(**show_picture(_changed(studio, picture, deleted=False)))


@router.delete("/v1/bin")
def empty_bin(studio: InStudio) -> schema.Emptied:
    """Delete for good what is in the bin; starred pictures stay there."""
    pictures, subjects = studio.empty_bin()
    return schema.Emptied(pictures=pictures, subjects=subjects)


def _queue_pictures(studio: Studio, client: str, asked: schema.Request, key: str | None) -> Row:
    hashed, known = body_hash(b"draw", as_json(asked.model_dump())), studio.journal.with_key(client, key)
    if known is not None and known["body_hash"] == hashed:
        return known  # even where it could not be drawn any more
    studio.check_room()
    request = requests.completed(asked, studio.shelf, studio.supervisor.info)
    job = NewJob(
        id=secrets.token_hex(8),
        client=client,
        kind="draw",
        request=request,
        steps=len(request["seeds"]) * request["num_inference_steps"],
        key=key,
        body_hash=hashed,
    )
    row, _ = studio.journal.add(job)
    studio.supervisor.wake()
    return row
