"""The studio as its users have it: a server on `mini` in a process of its own, and Chromium with the page in it."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 180  # seconds until the model is open, on a busy machine


@dataclass
class Server:
    """A running `cones2 studio`.

    Attributes:
        folder: of its pictures and jobs; its library is below.
        url: with the token.
    """

    folder: Path
    port: int = 0
    url: str = ""
    process: "subprocess.Popen[str] | None" = field(default=None, repr=False)

    def start(self) -> "Server":
        """Start it; returns when it listens, before the model is open."""
        command = [sys.executable, "-m", "cones2", "studio", "--no-browser", "--port", str(self.port)]
        command += ["--data", str(self.folder), "--library", str(self.folder / "library")]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "400"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S+", line):
                self.url, self.port = found[0], int(found[1])
                return self
        raise RuntimeError(f"the studio ended with {self.process.wait()} before it listened")

    @property
    def token(self) -> str:
        """Who may come in."""
        return self.url.partition("token=")[2]

    def ask(self, path: str) -> Any:
        """Return what the API answers."""
        request = urllib.request.Request(  # noqa: S310
            f"http://127.0.0.1:{self.port}{path}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            content = answer.read()
            return json.loads(content) if "json" in answer.headers["Content-Type"] else content

    def wait_for_model(self) -> "Server":
        """Return when it can draw."""
        end = time.monotonic() + PATIENCE
        while not self.ask("/v1/info")["model"]:
            assert time.monotonic() < end, "the model did not open"
            time.sleep(0.3)
        return self

    def worker(self) -> int:
        """The process that holds the model (Linux)."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[-1])

    def kill(self) -> None:
        """End it as a power cut would, and its worker."""
        assert self.process is not None
        with contextlib.suppress(OSError, IndexError):
            os.kill(self.worker(), signal.SIGKILL)
        self.process.kill()
        self.process.communicate()

    def stop(self) -> None:
        """End it as Ctrl+C does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


class Screen:
    """One tab with the page: what a test does to it, and what it complained of."""

    def __init__(self, context: Any, server: Server, *, expected: str = "") -> None:
        """Open a tab; `expected` is a pattern of complaints that the test provokes."""
        self.server, self.complaints, self.foreign = server, [], []
        self.expected = re.compile(expected) if expected else None
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("console", self._hear)
        self.page.on("request", self._see)
        self.page.goto(server.url)
        self.page.wait_for_selector("#subjects .chip")

    complaints: list[str]
    foreign: list[str]

    def _hear(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def _see(self, request: Any) -> None:
        if not request.url.startswith((f"http://127.0.0.1:{self.server.port}/", "data:", "blob:")):
            self.foreign.append(request.url)

    def check(self) -> None:
        """Fail where anything left the origin or the console has a complaint that was not expected."""
        assert self.foreign == []
        assert [text for text in self.complaints if not (self.expected and self.expected.search(text))] == []

    def draft(self) -> Any:
        """What the person has made so far."""
        return self.page.evaluate("import('/page/store.js').then((store) => store.draft)")

    def layout(self) -> Any:
        """The regions as they are sent, by name; empty where nothing is placed."""
        text = """Promise.all([import('/page/store.js'), import('/page/layouts.js')])
            .then(([store, layouts]) => layouts.toLayout(store.draft.places)?.regions ?? {})"""
        return self.page.evaluate(text)

    def box(self, name: str) -> Any:
        """The first box of a subject."""
        return self.layout()[name]["shapes"][0]

    def join(self, *names: str) -> None:
        """Click subjects."""
        for name in names:
            self.page.click(f"#subjects .chip-main:has(b:text-is('{name}'))")

    def sheet(self) -> Any:
        """Where the canvas is on the screen."""
        self.page.locator("#canvas").scroll_into_view_if_needed()
        return self.page.locator("#canvas").bounding_box()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """A point of the picture on the screen."""
        sheet = self.sheet()
        return sheet["x"] + x * sheet["width"], sheet["y"] + y * sheet["height"]

    def drag(self, start: tuple[float, float], end: tuple[float, float], *, steps: int = 4) -> None:
        """Press, pull and let go, in fractions of the picture."""
        first, last = self.at(*start), self.at(*end)
        self.page.mouse.move(*first)
        self.page.mouse.down()
        self.page.mouse.move(*last, steps=steps)
        self.page.mouse.up()

    def set(self, selector: str, value: object) -> None:
        """Type into a field and leave it."""
        self.page.fill(selector, str(value))
        self.page.dispatch_event(selector, "change")

    def steps(self, steps: int) -> None:
        """Set the number of steps, which is folded away."""
        self.page.evaluate("document.querySelector('#more').open = true")
        self.set("#steps", steps)

    def make(self) -> str:
        """Press Make; return the job's id."""
        with self.page.expect_response(lambda answer: answer.url.endswith("/v1/pictures") and answer.request.method == "POST") as heard:
            self.page.click("#make:not(:disabled)")
        return str(heard.value.json()["id"])

    def wait_for(self, job: str, state: str = "succeeded", seconds: float = PATIENCE) -> Any:
        """Wait until a job has a state; return it as the page has it."""
        text = "([id, state]) => import('/page/store.js').then((store) => store.server.jobs.get(id)?.state === state)"
        end = time.monotonic() + seconds
        while not self.page.evaluate(text, [job, state]):
            assert time.monotonic() < end, self.server.ask(f"/v1/jobs/{job}")
            self.page.wait_for_timeout(100)
        return self.page.evaluate("(id) => import('/page/store.js').then((store) => store.server.jobs.get(id))", job)
