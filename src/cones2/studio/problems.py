"""The studio's errors, and how every error is answered: `application/problem+json`, RFC 9457."""

import errno
import math
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from cones2.errors import Cones2Error, OutputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StudioError(Cones2Error):
    """A request that can't be met; its class says by which status and kind of problem it is answered."""

    status, kind = 422, "invalid"


class NotFoundError(StudioError):
    """There is no such thing."""

    status, kind = 404, "not_found"


class NotYoursError(StudioError):
    """Another client queued this job."""

    status, kind = 403, "not_yours"


class NameTakenError(StudioError):
    """A subject has the name already, or is being taught under it."""

    status, kind = 409, "name_taken"


class KeyReusedError(StudioError):
    """An Idempotency-Key came again with another body."""

    status, kind = 422, "key_reused"


class QueueFullError(StudioError):
    """No job more can wait, of this client or of all."""

    status, kind = 429, "queue_full"


class TooLargeError(StudioError):
    """A file, or the number of files, is beyond what is taken."""

    status, kind = 413, "too_large"


class NotAPictureError(StudioError):
    """A file is no picture that can be used."""

    status, kind = 415, "not_a_picture"


class DiskFullError(StudioError):
    """There is too little room for another job."""

    status, kind = 507, "disk_full"


class NotReadyError(StudioError):
    """The worker is still opening the model."""

    status, kind = 503, "not_ready"


class InvalidError(StudioError):
    """A request can't be used; `path` says where."""

    def __init__(self, path: str, text: str) -> None:
        super().__init__(text)
        self.path = path


def problem(
    status: int,
    kind: str,
    detail: str,
    *,
    errors: Sequence[Mapping[str, str]] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """Return an error as RFC 9457 has it; `errors` are `{path, got, expected, hint}`."""
    title = kind.replace("_", " ")
    body = {"type": f"/problems/{kind}", "title": title, "status": status, "detail": _safe(detail)}
    return JSONResponse(
        {**body, "errors": list(errors)}, status, headers=dict(headers or {}), media_type="application/problem+json"
    )


def _safe(text: str) -> str:
    """Return a text that can be UTF-8: what is told again may be a stranger's half character."""
    return text.encode(errors="backslashreplace").decode()


def add_problems(app: FastAPI) -> None:
    """Answer every error of an app as a problem."""
    answers: dict[type[Exception], Any] = {
        RequestValidationError: _of_fields,
        HTTPException: _of_http,
        Cones2Error: _of_ours,
        sqlite3.Error: _of_journal,
        OSError: _of_system,
        Exception: _of_bug,
    }
    for kind, answer in answers.items():
        app.add_exception_handler(kind, answer)


async def _of_fields(_: Request, error: RequestValidationError) -> Response:
    found = []
    for each in list(error.errors())[:20]:
        path = ".".join(str(part) for part in each["loc"] if part != "body")[:200]
        got, hint = repr(each.get("input"))[:100], str(each["msg"])[:300]
        found.append({"path": _safe(path), "got": _safe(got), "expected": str(each["type"]), "hint": _safe(hint)})
    return problem(422, "invalid", "the request can't be read: see its errors.", errors=found)


async def _of_http(_: Request, error: HTTPException) -> Response:
    kinds = {404: "not_found", 405: "not_found", 400: "invalid", 413: "too_large"}
    status = 413 if str(error.detail).startswith("Too many") else error.status_code  # files, of a form
    return problem(status, kinds.get(status, "refused"), str(error.detail), headers=error.headers)


async def _of_ours(request: Request, error: Cones2Error) -> Response:
    text = str(error)
    if isinstance(error, InvalidError):
        return problem(422, "invalid", text, errors=[{"path": error.path, "got": "", "expected": "", "hint": text}])
    if isinstance(error, OutputError):
        return problem(507, "disk_full", text)
    if not isinstance(error, StudioError):
        return problem(422, "invalid", text)
    wait: dict[str, str] = {}
    if isinstance(error, QueueFullError):
        wait["Retry-After"] = str(max(1, math.ceil(request.app.state.studio.supervisor.seconds_left())))
    elif isinstance(error, NotReadyError):
        wait["Retry-After"] = "5"
    return problem(error.status, error.kind, text, headers=wait)


async def _of_journal(_: Request, error: sqlite3.Error) -> Response:
    if "full" in str(error) or "disk" in str(error):
        return problem(507, "disk_full", f"the journal can't be written: {error}. Make room on the disk.")
    return problem(503, "busy", f"the journal is in use: {error}. Try again.", headers={"Retry-After": "2"})


async def _of_system(_: Request, error: OSError) -> Response:
    if error.errno in _NO_ROOM:
        return problem(507, "disk_full", f"{error.strerror}: make room on the disk.")
    return problem(503, "busy", f"{error.strerror or error}. Try again.", headers={"Retry-After": "5"})


async def _of_bug(_: Request, __: Exception) -> Response:
    return problem(500, "unexpected", "something unexpected happened: the server's terminal shows where.")
