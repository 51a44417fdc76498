"""A small Hub of this machine: over a real connection, or as its client's cache on the disk."""

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

COMMIT = "0123456789abcdef" * 2 + "01234567"
TOKEN = "hf_secret"


class LittleHub(ThreadingHTTPServer):
    """What of the Hub's protocol `push` and `pull` meet, with files in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, str | None] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Requests(BaseHTTPRequestHandler):
    server: LittleHub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo_id = f"{asked['organization']}/{asked['name']}"
            self.server.repositories[repo_id] = asked.get("visibility")
            return self.answer(200, {"url": f"{self.server.address}/{repo_id}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in files]
            return self.answer(200, {"files": modes})
        return self.commit([json.loads(line) for line in body.splitlines()])

    def commit(self, lines: list[dict[str, Any]]) -> None:
        repo_id = "/".join(self.path.split("/")[3:5])
        for line in lines:
            if line["key"] == "file":
                self.server.files[f"{repo_id}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
        self.answer(200, {"commitUrl": f"{self.server.address}/{repo_id}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_HEAD(self) -> None:
        self.download()

    def do_GET(self) -> None:
        self.download()

    def download(self) -> None:
        owner, name, _, _, *path = self.path.strip("/").split("/")
        content = self.server.files.get("/".join((owner, name, *path)))
        if content is None:
            known = any(file.startswith(f"{owner}/{name}/") for file in self.server.files)
            return self.answer(404, {}, {"X-Error-Code": "EntryNotFound" if known else "RepoNotFound"})
        tag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self.answer(200, content, tag)

    def answer(self, code: int, content: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def little_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LittleHub]:
    """Serve an empty Hub; its client is online, and logged in where it asks this address."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with LittleHub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def talk_to(hub: LittleHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this Hub the one that the commands know, and log in."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
    template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def keep_in_cache(folder: Path, repo_id: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay a copy of a model into `cache` as the Hub's client does, and make that the client's; return the copy."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return Path(shutil.copytree(folder, repository / "snapshots" / COMMIT))
