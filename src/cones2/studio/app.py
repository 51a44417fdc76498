"""The studio's app: the page, what is to be known of the model, and all other routes, behind the guard."""

import asyncio
import contextlib
import functools
import gzip
import hashlib
import importlib.metadata
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from cones2.learning.recipe import RECIPES
from cones2.studio import requests, routes, schema, subject_routes
from cones2.studio.journal import QUEUED, QUEUED_PER_CLIENT
from cones2.studio.problems import NotFoundError, add_problems
from cones2.studio.security import Access, Guard
from cones2.studio.studio import KEPT_DAYS, InStudio, Studio
from cones2.studio.uploads import MOST_PHOTOS, PHOTO_BYTES, file_of, form_of, form_schema

VERSION = importlib.metadata.version("cones2")
_PAGE = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".json": "application/json",
}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Problem} for status in (400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 507)
}


router = APIRouter()


def create_app(studio: Studio, access: Access) -> FastAPI:
    """Return the app; its lifespan starts and stops the studio."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        studio.broker.attach(asyncio.get_running_loop())
        studio.start()
        forgetting = asyncio.create_task(_forget_hourly(studio))
        try:
            yield
        finally:
            forgetting.cancel()
            await anyio.to_thread.run_sync(studio.stop)

    app = FastAPI(
        title="cones2 studio",
        version=VERSION,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=_PROBLEMS,
        redirect_slashes=False,
    )
    app.state.studio = studio
    for each in (router, routes.router, subject_routes.router):
        app.include_router(each)
    add_problems(app)
    app.add_middleware(Guard, access=access)
    return app


async def _forget_hourly(studio: Studio) -> None:
    while True:
        await asyncio.sleep(3600)
        with contextlib.suppress(sqlite3.Error, OSError):  # it is tried again
            await anyio.to_thread.run_sync(studio.forget)


@router.get("/", include_in_schema=False)
def page(request: Request) -> Response:
    """The page."""
    return _static("index.html", request)


@router.get("/page/{name}", include_in_schema=False)
def part(name: str, request: Request) -> Response:
    """A part of the page."""
    return _static(name, request)


@router.get("/healthz")
def healthz(studio: InStudio) -> schema.Health:
    """Whether the model is there; needs no token."""
    state = studio.supervisor.state
    return schema.Health(status="ok" if state == "ready" else state, version=VERSION)


@router.get("/v1/info")
def info(studio: InStudio) -> dict[str, Any]:
    """What the model is, and what is taken; `model` is null while it opens."""
    return _info(studio)


@router.post("/v1/prompts/check")
def check_prompt(asked: schema.PromptCheck, studio: InStudio) -> schema.PromptChecked:
    """Check a prompt while it is typed."""
    return schema.PromptChecked(**requests.check_prompt(asked, studio.supervisor))


@router.post("/v1/layouts/suggest")
def suggest_layout(asked: schema.Suggestion) -> schema.Suggested:
    """Place subjects side by side."""
    return schema.Suggested(layout=requests.suggest(asked))


@router.post("/v1/requests/read", openapi_extra=form_schema({"file": "file"}, ["file"]))
async def read_request(request: Request, studio: InStudio) -> schema.RequestRead:
    """Read how a picture was asked for from a file of anyone."""
    async with form_of(request, files=1) as form:
        content = await file_of(form, "file")
    read = await anyio.to_thread.run_sync(requests.read_request, content, studio.shelf, studio.folder)
    return schema.RequestRead(**read)


def _static(name: str, request: Request) -> Response:
    """Return a file of the page, packed where the browser takes that; by its name alone, never a path."""
    path = _PAGE / name
    if not re.fullmatch(r"[a-z0-9_-]+\.[a-z]+", name) or path.suffix not in _TYPES or not path.is_file():
        raise NotFoundError("the page has no such part.")
    plain, packed, tag = _part(path, path.stat().st_mtime_ns)
    headers = {"Cache-Control": "no-cache", "ETag": tag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed, headers=headers | {"Content-Encoding": "gzip"}, media_type=_TYPES[path.suffix])
    return Response(plain, headers=headers, media_type=_TYPES[path.suffix])


@functools.lru_cache(maxsize=100)
def _part(path: Path, _changed: int) -> tuple[bytes, bytes, str]:
    """Return a file of the page, the same packed, and its tag; read again when it changed."""
    content = path.read_bytes()
    return content, gzip.compress(content, mtime=0), f'"{hashlib.sha256(content).hexdigest()[:16]}"'


def _info(studio: Studio) -> dict[str, Any]:
    model = studio.supervisor.info
    sides = model["sides"] if model else None
    names = ("name", "drawings_only", "family", "guidance_scale", "recipe", "size", "knows_class_words")
    size = model["size"] if model else [None, None]
    return {
        "version": VERSION,
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
            "bin_days": KEPT_DAYS,
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
