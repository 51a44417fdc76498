"""Who may ask: every request passes `Guard` first, before anything of it is read.

Host and Origin must be names of this server (against DNS rebinding and foreign pages), the token must be there (a
cookie for the page, a bearer for programs), and no body is larger than it may be. Every answer carries headers that
keep the page to itself.
"""

import hashlib
import ipaddress
import json
import re
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cones2.studio.problems import problem

LARGEST_JSON = 2_000_000
LARGEST_UPLOAD = 210_000_000
"""Bytes of a body: eight photos of 25 MB and their form."""
_UPLOADS = ("/v1/subjects", "/v1/subjects/import", "/v1/photos/check", "/v1/requests/read")
_CLIENT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_YEAR = 365 * 24 * 3600
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none';"
    " base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """Whom the server lets in.

    Attributes:
        names: the hosts that it is reached by, without a port; `localhost` and loopback addresses are always there.
        is_public: whether any IP address will do as a host: a page that is rebound always has a name.
    """

    token: str
    port: int
    names: frozenset[str] = frozenset()
    is_public: bool = False

    def knows_host(self, host: str) -> bool:
        """Return whether a Host header names this server."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if parts.netloc != host or "@" in host:
            return False
        if name in self.names:
            return True  # whatever the port: a proxy before it has its own
        return (port or 80) == self.port and (name == "localhost" or self._knows_address(name))

    def _knows_address(self, name: str) -> bool:
        try:
            return ipaddress.ip_address(name).is_loopback or self.is_public
        except ValueError:
            return False

    def knows_token(self, given: str) -> bool:
        """Return whether a token is right; it takes the same time where it is wrong."""
        return secrets.compare_digest(
            hashlib.sha256(given.encode(errors="replace")).digest(), hashlib.sha256(self.token.encode()).digest()
        )

    @property
    def token_cookie(self) -> str:
        """The name of the token's cookie; two studios on one machine have two."""
        return f"cones2_token_{self.port}"

    @property
    def client_cookie(self) -> str:
        """The name of the cookie that tells browsers apart."""
        return f"cones2_client_{self.port}"


class Guard:
    """ASGI middleware that lets in who may, sets `scope["client_id"]`, and bounds bodies."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    found[name] = value
                if "cache-control" not in found:
                    found["Cache-Control"] = "no-store"
                if scope.get("new_client"):
                    found.append("Set-Cookie", self._cookie(self._access.client_cookie, scope["client_id"]))
            await send(message)

        refused = self._refuse(scope, headers)
        if refused is not None:
            await refused(scope, receive, send_guarded)
            return
        limit = LARGEST_UPLOAD if scope["path"] in _UPLOADS else LARGEST_JSON
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 15 or int(length) > limit:
            answer = problem(413, "too_large", f"the body is larger than {limit:,} bytes: send less.")
            await answer(scope, receive, send_guarded)
            return
        await self._app(scope, _bounded(receive, limit), send_guarded)

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the answer to a request that goes no further; else set who it is."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._access.knows_host(hosts[0]):
            return problem(403, "bad_host", "this server does not go by that name: use the address that it printed.")
        for origin in headers.getlist("origin"):
            if origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
                return problem(403, "bad_origin", "another site's page may not ask here.")
        if scope["path"] == "/healthz":
            return None
        if scope["path"] == "/" and scope["method"] == "GET" and b"token=" in scope["query_string"]:
            return self._enter(scope, headers)
        return self._identify(scope, headers)

    def _enter(self, scope: Scope, headers: Headers) -> Response:
        """Exchange the token in the address for a cookie, once."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not self._access.knows_token(given):
            return problem(401, "no_token", "this token is not the server's: use the address that it printed.")
        answer = RedirectResponse("/", 303)
        answer.headers.append("Set-Cookie", self._cookie(self._access.token_cookie, given))
        if not _CLIENT.fullmatch(_cookies(headers).get(self._access.client_cookie, "")):
            client = secrets.token_urlsafe(18)
            answer.headers.append("Set-Cookie", self._cookie(self._access.client_cookie, client))
        return answer

    def _identify(self, scope: Scope, headers: Headers) -> Response | None:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        cookies = _cookies(headers)
        if kind.lower() == "bearer" and self._access.knows_token(bearer.strip()):
            client = headers.get("x-client-id", "program")
            if not _CLIENT.fullmatch(client):
                return problem(422, "invalid", "X-Client-Id: expected up to 64 letters, digits, '_', '.' and '-'.")
            scope["client_id"] = f"program:{client}"
            return None
        if not kind and self._access.knows_token(cookies.get(self._access.token_cookie, "")):
            client = cookies.get(self._access.client_cookie, "")
            scope["new_client"] = not _CLIENT.fullmatch(client)
            scope["client_id"] = secrets.token_urlsafe(18) if scope["new_client"] else client
            return None
        hint = {"WWW-Authenticate": "Bearer"}
        advice = "open the address that the server printed, or send 'Authorization: Bearer TOKEN'."
        return problem(401, "no_token", f"this request has no token, or a wrong one: {advice}", headers=hint)

    @staticmethod
    def _cookie(name: str, value: str) -> str:
        return f"{name}={value}; Max-Age={_YEAR}; Path=/; HttpOnly; SameSite=Strict"


def _bounded(receive: Receive, limit: int) -> Receive:
    taken = 0

    async def receive_bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"the body is larger than {limit:,} bytes: send less.")
        return message

    return receive_bounded


def _cookies(headers: Headers) -> dict[str, str]:
    """Return a browser's cookies; what other servers on this machine set among them, however odd, spoils none."""
    return {name: value for line in headers.getlist("cookie") for name, value in cookie_parser(line).items()}


def body_hash(*parts: bytes) -> str:
    """Return a hash of a body's parts, by which a request that comes twice is known."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def as_json(value: Any) -> bytes:
    """Return sorted JSON, the same for the same value."""
    return json.dumps(value, sort_keys=True).encode()
