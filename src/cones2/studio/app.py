"""The studio's HTTP API and page: `create_app` puts the routes behind the guard.

Whoever has the token shares the gallery, the library and the queue; only the client that queued a job may cancel it,
retry it or finish it.
"""

import contextlib
import errno
import importlib.metadata
import re
import secrets
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import anyio.to_thread
from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from cones2.errors import Cones2Error, HubError, LibraryError, OutputError
from cones2.learning.recipe import RECIPES
from cones2.studio import requests, schema, subject_routes
from cones2.studio.events import Stream, change
from cones2.studio.journal import KeyReusedError, NewJob, QueueFullError, Row
from cones2.studio.requests import InvalidError
from cones2.studio.security import (
    Access,
    BodyTooLargeError,
    Guard,
    as_json,
    body_hash,
    problem,
)
from cones2.studio.studio import Client, DiskFullError, InStudio, Studio, show_picture
from cones2.studio.supervisor import NotReadyError
from cones2.studio.uploads import MOST_PHOTOS, PHOTO_BYTES, TooLargeError, file_of, read_form

LastEventId = Annotated[str | None, Header(pattern=r"^\d{0,18}$")]
IdempotencyKey = Annotated[str | None, Header(max_length=255)]
QUEUED, QUEUED_PER_CLIENT = 64, 16
_PAGE = Path(__file__).with_name("page")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".json": "application/json"}
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
_MOST_WAIT = 60
_SNAPSHOT = 50
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Problem} for status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 507)
}


class NotFoundError(Cones2Error):
    """There is no such thing."""


class NotYoursError(Cones2Error):
    """Another client queued this job."""


def create_app(studio: Studio, access: Access) -> FastAPI:
    """Return the app; its lifespan starts and stops the studio."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        import asyncio

        studio.broker.attach(asyncio.get_running_loop())
        studio.start()
        try:
            yield
        finally:
            await anyio.to_thread.run_sync(studio.stop)

    app = FastAPI(
        title="cones2 studio",
        version=importlib.metadata.version("cones2"),
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=_PROBLEMS,
        redirect_slashes=False,
    )
    app.state.studio = studio
    for router in (_page_routes, _job_routes, _picture_routes, subject_routes.add_routes):
        router(app)
    _add_errors(app)
    app.add_middleware(Guard, access=access)
    return app


def _page_routes(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return _static("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    def part(name: str) -> Response:
        return _static(name)

    @app.get("/healthz")
    def healthz(studio: InStudio) -> schema.Health:
        state = studio.supervisor.state
        return schema.Health(status="ok" if state == "ready" else state, version=app.version)

    @app.get("/v1/info")
    def info(studio: InStudio) -> dict[str, Any]:
        return _info(studio, app.version)

    @app.get("/v1/events")
    async def events(studio: InStudio, client: Client, last_event_id: LastEventId = None) -> StreamingResponse:
        return StreamingResponse(_told(studio, client, None, last_event_id), media_type="text/event-stream")

    @app.post("/v1/prompts/check")
    def check_prompt(asked: schema.PromptCheck, studio: InStudio) -> schema.PromptChecked:
        return schema.PromptChecked(**requests.check_prompt(asked, studio.supervisor))

    @app.post("/v1/layouts/suggest")
    def suggest_layout(asked: schema.Suggestion) -> schema.Suggested:
        return schema.Suggested(layout=requests.suggest(asked))

    @app.post("/v1/requests/read", openapi_extra=subject_routes.form_schema({"file": "file"}, ["file"]))
    async def read_request(request: Request, studio: InStudio) -> schema.RequestRead:
        async with contextlib.AsyncExitStack() as stack:
            form = await read_form(request, files=1)
            stack.push_async_callback(form.close)
            content = await file_of(form, "file")
        read = await anyio.to_thread.run_sync(requests.read_request, content, studio.shelf, studio.folder)
        return schema.RequestRead(**read)


def _static(name: str) -> Response:
    """Return a file of the page; by its name alone, never a path."""
    path = _PAGE / name
    if not re.fullmatch(r"[a-z0-9_-]+\.[a-z]+", name) or path.suffix not in _TYPES or not path.is_file():
        raise NotFoundError("the page has no such part.")
    return FileResponse(path, media_type=_TYPES[path.suffix], headers={"Cache-Control": "no-cache"})


def _info(studio: Studio, version: str) -> dict[str, Any]:
    model = studio.supervisor.info
    sides = model["sides"] if model else None
    names = ("name", "drawings_only", "family", "guidance_scale", "recipe", "size", "knows_class_words")
    size = model["size"] if model else [None, None]
    return {
        "version": version,
        "model": {name: model[name] for name in names} if model else None,
        "limits": {
            "queued": QUEUED,
            "queued_per_client": QUEUED_PER_CLIENT,
            "seeds": schema.MOST_SEEDS,
            "photo_bytes": PHOTO_BYTES,
            "photos": MOST_PHOTOS,
            "regions": 64,
            "width": sides,
            "height": sides,
            "multiple_of": model["multiple_of"] if model else None,
            "steps": [1, schema.MOST_STEPS],
            "mask_bytes": requests.MASK_BYTES,
        },
        "schedulers": model["schedulers"] if model else [],
        "presets": ["paper", "cones_v2"],
        "recipes": model["recipes"] if model else list(RECIPES),
        "defaults": {
            "num_inference_steps": requests.DEFAULT_STEPS,
            "guidance_scale": model["guidance_scale"] if model else None,
            "layout_scale": 1.0,
            "width": size[0],
            "height": size[1],
            "preset": "paper",
            "scheduler": None,
        },
    }


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
        if event.kind == "result" and (picture := studio.journal.picture(event.picture or "")) is not None:
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


def _job_routes(app: FastAPI) -> None:
    def found(studio: Studio, job: str) -> Row:
        row = studio.journal.job(job)
        if row is None:
            raise NotFoundError("there is no such job.")
        return row

    def own(studio: Studio, job: str, client: str) -> Row:
        row = found(studio, job)
        if row["client"] != client:
            raise NotYoursError("another client queued this job: it is for that one to change.")
        return row

    def answer(studio: Studio, row: Row, client: str) -> schema.Job:
        return schema.Job(**seen(studio, [row], client)[0])

    @app.get("/v1/jobs")
    def list_jobs(
        studio: InStudio, client: Client, state: schema.State | None = None, kind: schema.Kind | None = None
    ) -> schema.Jobs:
        rows = studio.journal.jobs(states=(state,) if state else (), kind=kind)
        return schema.Jobs(jobs=[schema.Job(**each) for each in seen(studio, rows, client)])

    @app.get("/v1/jobs/{job}")
    def get_job(job: str, studio: InStudio, client: Client) -> schema.Job:
        return answer(studio, found(studio, job), client)

    @app.get("/v1/jobs/{job}/events")
    def job_events(job: str, studio: InStudio, client: Client, last_event_id: LastEventId = None) -> StreamingResponse:
        found(studio, job)
        return StreamingResponse(_told(studio, client, job, last_event_id), media_type="text/event-stream")

    @app.get("/v1/jobs/{job}/preview")
    def job_preview(job: str, studio: InStudio, n: str = "") -> Response:  # noqa: ARG001  # n tells browsers it is new
        preview = studio.supervisor.previews.get(job)
        if preview is None:
            raise NotFoundError("there is no preview of this job.")
        return Response(preview.content, media_type="image/webp")

    @app.post("/v1/jobs/{job}/cancel")
    def cancel_job(job: str, studio: InStudio, client: Client) -> schema.Job:
        own(studio, job, client)
        return answer(studio, studio.supervisor.wish(job, "cancel") or found(studio, job), client)

    @app.post("/v1/jobs/{job}/finish")
    def finish_job(job: str, studio: InStudio, client: Client) -> schema.Job:
        if own(studio, job, client)["kind"] != "learn":
            raise InvalidError("job", "only learning can be finished early: cancel this job instead.")
        return answer(studio, studio.supervisor.wish(job, "finish") or found(studio, job), client)

    @app.post("/v1/jobs/{job}/retry", status_code=202)
    def retry_job(job: str, studio: InStudio, client: Client) -> schema.Job:
        row = own(studio, job, client)
        if row["kind"] == "learn" and not (studio.folder / "learning" / job / "photos").is_dir():
            raise LibraryError("the photos of this job are gone: teach the subject anew.")
        studio.check_room()
        row = studio.journal.retry(job, most=QUEUED, most_per_client=QUEUED_PER_CLIENT) or row
        studio.supervisor.wake()
        return answer(studio, row, client)



def _picture_routes(app: FastAPI) -> None:
    def found(studio: Studio, picture: str) -> Row:
        row = studio.journal.picture(picture)
        if row is None:
            raise NotFoundError("there is no such picture.")
        return row

    def file(path: Path, kind: str, headers: dict[str, str] | None = None) -> FileResponse:
        if not path.is_file():
            raise NotFoundError("there is no such file: it was deleted from the studio's folder.")
        return FileResponse(path, media_type=kind, headers=_KEPT | (headers or {}))

    @app.post("/v1/pictures", status_code=202, responses={200: {"model": schema.Job}})
    async def make_pictures(
        asked: schema.Request,
        studio: InStudio,
        client: Client,
        response: Response,
        idempotency_key: IdempotencyKey = None,
        prefer: Annotated[str | None, Header(max_length=200)] = None,
    ) -> schema.Job:
        row = await anyio.to_thread.run_sync(_queue_pictures, studio, client, asked, idempotency_key)
        response.headers["Location"] = f"/v1/jobs/{row['id']}"
        wait = re.search(r"\bwait=(\d{1,3})\b", prefer or "")
        if wait:
            response.headers["Preference-Applied"] = f"wait={min(int(wait[1]), _MOST_WAIT)}"
            seconds = min(int(wait[1]), _MOST_WAIT)
            await studio.broker.wait_for_end(row["id"], seconds, lambda: _has_ended(studio, row["id"]))
        row = await anyio.to_thread.run_sync(studio.journal.job, row["id"]) or row
        response.status_code = 200 if row["state"] in schema.FINAL else 202
        return schema.Job(**(await anyio.to_thread.run_sync(seen, studio, [row], client))[0])

    @app.get("/v1/pictures")
    def list_pictures(
        studio: InStudio,
        cursor: Annotated[str | None, Query(pattern=r"^\d{1,18}$")] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        subject: Annotated[str | None, Query(max_length=64)] = None,
        starred: bool | None = None,
        deleted: bool = False,  # noqa: FBT001, FBT002
    ) -> schema.Pictures:
        before = int(cursor) if cursor else None
        rows = studio.journal.pictures(
            before=before, limit=limit, subject=subject, starred=starred or None, deleted=deleted
        )
        following = str(rows[-1]["number"]) if len(rows) == limit else None
        return schema.Pictures(pictures=[schema.Picture(**show_picture(row)) for row in rows], next=following)

    @app.get("/v1/pictures/{picture}")
    def get_picture(picture: str, studio: InStudio) -> schema.Picture:
        return schema.Picture(**show_picture(found(studio, picture)))

    @app.get("/v1/pictures/{picture}/file", response_class=FileResponse)
    def picture_file(picture: str, studio: InStudio) -> FileResponse:
        name = found(studio, picture)["id"]
        shown = {"Content-Disposition": f'inline; filename="{name}.png"'}
        return file(studio.folder / "pictures" / f"{name}.png", "image/png", shown)

    @app.get("/v1/pictures/{picture}/thumb", response_class=FileResponse)
    def picture_thumb(picture: str, studio: InStudio) -> FileResponse:
        return file(studio.folder / "pictures" / f"{found(studio, picture)['id']}.webp", "image/webp")

    @app.get("/v1/pictures/{picture}/request")
    def picture_request(picture: str, studio: InStudio) -> dict[str, Any]:
        request: dict[str, Any] = found(studio, picture)["request"]
        return request

    @app.get("/v1/pictures/{picture}/attention/{name}", response_class=FileResponse)
    def picture_attention(picture: str, name: str, studio: InStudio) -> FileResponse:
        row = found(studio, picture)
        names = [each["name"] for each in row["data"]["attention"]]
        if name not in names:
            raise NotFoundError("the attention to this subject was not measured.")
        return file(studio.folder / "pictures" / f"{row['id']}-{names.index(name)}.heat.png", "image/png")

    @app.patch("/v1/pictures/{picture}")
    def change_picture(picture: str, changes: schema.PictureChange, studio: InStudio) -> schema.Picture:
        found(studio, picture)
        given = {name: value for name, value in changes.model_dump(exclude_unset=True).items() if value is not None}
        return schema.Picture(**show_picture(studio.journal.change_picture(picture, **given) or {}))

    @app.delete("/v1/pictures/{picture}", status_code=204)
    def delete_picture(picture: str, studio: InStudio) -> None:
        found(studio, picture)
        studio.journal.change_picture(picture, deleted=1)

    @app.post("/v1/pictures/{picture}/restore")
    def restore_picture(picture: str, studio: InStudio) -> schema.Picture:
        found(studio, picture)
        return schema.Picture(**show_picture(studio.journal.change_picture(picture, deleted=0) or {}))


def _queue_pictures(studio: Studio, client: str, asked: schema.Request, key: str | None) -> Row:
    studio.check_room()
    request = requests.completed(asked, studio.shelf, studio.supervisor.info)
    job = NewJob(
        id=secrets.token_hex(8),
        client=client,
        kind="draw",
        request=request,
        steps=len(request["seeds"]) * request["num_inference_steps"],
        key=key,
        body_hash=body_hash(b"draw", as_json(asked.model_dump())),
    )
    row, _ = studio.journal.add(job, most=QUEUED, most_per_client=QUEUED_PER_CLIENT)
    studio.supervisor.wake()
    return row


def _add_errors(app: FastAPI) -> None:
    """Answer every error as a problem."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return problem(422, "invalid", "the request can't be read; see its errors.", errors=_fields(error))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        kinds = {404: "not_found", 405: "not_found", 400: "invalid", 413: "too_large"}
        status = 413 if str(error.detail).startswith("Too many") else error.status_code
        return problem(status, kinds.get(status, "refused"), str(error.detail), headers=error.headers)

    @app.exception_handler(Cones2Error)
    async def ours(request: Request, error: Cones2Error) -> Response:
        return _answer_to(error, request.app.state.studio)

    @app.exception_handler(sqlite3.Error)
    async def journal(_: Request, error: sqlite3.Error) -> Response:
        if "full" in str(error) or "disk" in str(error):
            return problem(507, "disk_full", f"the journal can't be written: {error}. Make room on the disk.")
        return problem(503, "busy", f"the journal is in use: {error}. Try again.", headers={"Retry-After": "2"})

    @app.exception_handler(OSError)
    async def system(_: Request, error: OSError) -> Response:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return problem(507, "disk_full", f"{error.strerror}: make room on the disk.")
        return problem(503, "busy", f"{error.strerror or error}. Try again.", headers={"Retry-After": "5"})

    @app.exception_handler(BodyTooLargeError)
    async def too_large(_: Request, __: Exception) -> Response:
        return problem(413, "too_large", "the body is too large: send less.")

    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> Response:
        return problem(500, "unexpected", "something unexpected happened: the server's terminal shows where.")


def _answer_to(error: Cones2Error, studio: Studio) -> Response:
    """Return the problem that an error of the library, or of the studio, is to a client."""
    text = str(error)
    if isinstance(error, InvalidError):
        field = {"path": error.path, "got": "", "expected": "", "hint": text}
        return problem(422, "invalid", text, errors=[field])
    if isinstance(error, QueueFullError):
        wait = str(max(1, round(studio.supervisor.seconds_left())))
        return problem(429, "queue_full", text, headers={"Retry-After": wait})
    if isinstance(error, NotReadyError):
        return problem(503, "not_ready", text, headers={"Retry-After": "5"})
    kinds: dict[type[Cones2Error], tuple[int, str]] = {
        NotFoundError: (404, "not_found"),
        NotYoursError: (403, "not_yours"),
        KeyReusedError: (422, "key_reused"),
        TooLargeError: (413, "too_large"),
        DiskFullError: (507, "disk_full"),
        OutputError: (507, "disk_full"),
        subject_routes.UnknownError: (404, "not_found"),
        subject_routes.NameTakenError: (409, "name_taken"),
        subject_routes.NotAPictureError: (415, "not_a_picture"),
        HubError: (502, "hub"),
    }
    status, kind = next((found for known, found in kinds.items() if isinstance(error, known)), (422, "invalid"))
    return problem(status, kind, text)


def _fields(error: RequestValidationError) -> list[dict[str, str]]:
    """Return what is wrong with each field, cut short: it may be a stranger's."""
    found = []
    for each in list(error.errors())[:20]:
        place = [str(part) for part in each["loc"] if part != "body"]
        got = repr(each.get("input"))[:100].encode(errors="backslashreplace").decode()
        path = ".".join(place)[:200].encode(errors="backslashreplace").decode()
        hint = str(each["msg"])[:300].encode(errors="backslashreplace").decode()
        found.append({"path": path, "got": got, "expected": str(each["type"]), "hint": hint})
    return found
