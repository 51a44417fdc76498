"""A studio of its own for tests: the app without a worker, or the whole server as a process, on `mini`."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

from cones2.studio.app import create_app
from cones2.studio.security import Access
from cones2.studio.studio import Studio

TOKEN = "a-token-of-the-tests"
PORT = 8321
MODEL = {"name": "mini", "options": {}}
REX = Path(__file__).parents[1] / "src" / "cones2" / "examples" / "rex"


@contextmanager
def app_alone(folder: Path) -> Iterator[tuple[TestClient, Studio]]:
    """Yield a client of the app whose worker was never started, and the studio behind it."""
    studio = Studio(folder / "data", folder / "library", MODEL, token=TOKEN)
    app = create_app(studio, Access(TOKEN, PORT))
    try:
        yield client_of(app), studio
    finally:
        studio.stop()


def client_of(app: Any, *, client: str = "a", headers: dict[str, str] | None = None) -> TestClient:
    """Return a client of an app, with the token, under a client id."""
    given = {"Authorization": f"Bearer {TOKEN}", "X-Client-Id": client} if headers is None else headers
    return TestClient(app, f"http://127.0.0.1:{PORT}", headers=given, raise_server_exceptions=False)


class Served:
    """A studio's process. It can be killed and started again on the same folders and port."""

    def __init__(self, folder: Path, *, limit: int | None = None) -> None:
        self.folder, self.port, self._limit = folder, _free_port(), limit
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address, without the token."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Served":
        """Start the server and wait until it answers, which is before its model is open."""
        options = ["--no-browser", "--port", str(self.port), "--token", TOKEN]
        folders = ["--data", str(self.folder / "data"), "--library", str(self.folder / "library")]
        log = (self.folder / "log").open("ab")
        command = [sys.executable, "-m", "cones2", "studio", *options, *folders]
        preparation = _limited(self._limit) if self._limit else None
        self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=preparation)
        log.close()
        self._wait("/healthz", lambda answer: answer.status_code == 200)
        return self

    def wait_until_ready(self) -> "Served":
        """Wait until the model is open."""
        self._wait("/healthz", lambda answer: answer.json()["status"] == "ok")
        return self

    def client(self, name: str = "a", **options: Any) -> httpx.Client:
        """Return an HTTP client with the token, under a client id."""
        headers = {"Authorization": f"Bearer {TOKEN}", "X-Client-Id": name}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)

    def kill(self) -> None:
        """Kill the server at once, and wait until its worker is gone as well."""
        worker = self.worker()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        _wait_for(lambda: worker is None or not _lives(worker), 60)

    def stop(self) -> None:
        """End the server as Ctrl+C does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(30)

    def worker(self) -> int | None:
        """Return the process id of the worker; None where there is none."""
        if self.process is None:
            return None
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        found = listed.stdout.split()
        return int(found[0]) if found else None

    def log(self) -> str:
        """Return what the server printed."""
        return (self.folder / "log").read_text(errors="replace")

    def _wait(self, path: str, is_there: Any, seconds: float = 240) -> None:
        def ask() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"the server ended: {self.log()[-2000:]}")
            try:
                return bool(is_there(httpx.get(f"{self.url}{path}", timeout=5, trust_env=False)))
            except httpx.HTTPError:
                return False

        _wait_for(ask, seconds)


def wait_for_job(client: httpx.Client, job: str, seconds: float = 900) -> dict[str, Any]:
    """Wait until a job has ended, and return it."""
    found: dict[str, Any] = {}

    def ended() -> bool:
        found.update(client.get(f"/v1/jobs/{job}").json())
        return found["state"] in ("succeeded", "failed", "cancelled")

    _wait_for(ended, seconds)
    return found


def photos(count: int = 3) -> list[tuple[str, tuple[str, bytes, str]]]:
    """Return a form's photos of rex."""
    paths = sorted((REX / "photos").iterdir())[:count]
    return [("photos", (path.name, path.read_bytes(), "image/png")) for path in paths]


def request(**changes: Any) -> dict[str, Any]:
    """Return what a small picture of rex and a ball is asked with."""
    regions = {"rex": [[0.04, 0.45, 0.5, 0.91]], "ball": [[0.55, 0.5, 0.9, 0.9]]}
    return {
        "prompt": "a {rex} and a {ball} on the beach",
        "subjects": [
            {"name": "rex", "source": "example"},
            {"name": "ball", "source": "word", "class_word": "ball"},
        ],
        "layout": {"version": 1, "regions": regions},
        "seeds": [0],
        "num_inference_steps": 3,
        **changes,
    }


def _limited(limit: int) -> Any:
    import resource

    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_for(is_so: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)
