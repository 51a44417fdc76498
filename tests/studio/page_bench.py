"""The studio's page as its users have it: in Chromium, with a server on `mini` behind it."""

import contextlib
import io
import re
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from studio_server import TOKEN, Served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 240  # seconds for what takes a few, on a busy machine
_STILL = """async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    const where = () => document.querySelector("#canvas").getBoundingClientRect().toJSON();
    let found = where();
    for (let still = 0; still < 3; still += 1) {
        await frame();
        const now = where();
        if (["x", "y", "width", "height"].some((key) => now[key] !== found[key])) still = -1;
        found = now;
    }
    return found;
}"""


def ask(server: Served, path: str) -> Any:
    """Return the JSON that the API answers."""
    with server.client() as client:
        return client.get(path).raise_for_status().json()


def picture_of(server: Served, name: str) -> Image.Image:
    """Return a finished picture, with its record."""
    with server.client() as client:
        return Image.open(io.BytesIO(client.get(f"/v1/pictures/{name}/file").raise_for_status().content))


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


def _with_modules(expression: str) -> str:
    """Return JavaScript that evaluates an expression with the page's own modules."""
    modules = "Promise.all([import('/page/store.js'), import('/page/cast.js')])"
    return f"(given) => {modules}.then(([store, cast]) => {expression})"


class Screen:
    """One tab with the page: what a test does to it, and what it complained of."""

    def __init__(self, context: Any, server: Served, *, expected: str = "") -> None:
        """Open a tab; `expected` is a pattern of complaints that the test provokes."""
        self.server, self.complaints, self.foreign = server, [], []
        self.expected = re.compile(expected) if expected else None
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("console", self._hear)
        self.page.on("request", self._see)
        self.page.goto(f"{server.url}/?token={TOKEN}")
        self.page.wait_for_selector("#subjects .chip")

    complaints: list[str]
    foreign: list[str]

    def _hear(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self.complaints.append(f"{message.type}: {message.text} {message.location.get('url', '')}")

    def _see(self, request: Any) -> None:
        if not request.url.startswith((f"{self.server.url}/", "data:", "blob:")):
            self.foreign.append(request.url)

    def check(self) -> None:
        """Fail where anything left the origin or the console has a complaint that was not expected."""
        assert not self.foreign, self.foreign
        complaints = [text for text in self.complaints if not (self.expected and self.expected.search(text))]
        assert not complaints, complaints

    def store(self, expression: str, given: object = None) -> Any:
        """Evaluate JavaScript with the page's `store`, its `cast`, and what is `given`."""
        return self.page.evaluate(_with_modules(expression), given)

    def until(self, expression: str, given: object = None, seconds: float = 60) -> None:
        """Wait until such an expression holds; Playwright's own waiting takes the promise itself for the answer."""
        latest = time.monotonic() + seconds
        while not self.store(expression, given):
            assert time.monotonic() < latest, f"after {seconds:g} s this still does not hold: {expression}"
            self.page.wait_for_timeout(20)

    def draft(self) -> Any:
        """What the person has made so far."""
        return self.store("store.draft")

    def cast(self, name: str) -> None:
        """Let a subject into the draft, without a place."""
        self.store(
            "store.change({ members: [...store.draft.members, cast.memberFor(given)],"
            " prompt: `${store.draft.prompt} {${given}}` })",
            name,
        )

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
        """Where the canvas is on the screen, once it has stayed there for some frames."""
        self.page.locator("#canvas").scroll_into_view_if_needed()
        return self.page.evaluate(_STILL)

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
        with self.page.expect_response(
            lambda answer: answer.url.endswith("/v1/pictures") and answer.request.method == "POST"
        ) as heard:
            self.page.click("#make:not(:disabled)")
        return str(heard.value.json()["id"])

    def wait_for(self, job: str, state: str = "succeeded", seconds: float = PATIENCE) -> Any:
        """Wait until a job has a state; return it as the page has it."""
        end = time.monotonic() + seconds
        while not self.store("store.server.jobs.get(given[0])?.state === given[1]", [job, state]):
            assert time.monotonic() < end, ask(self.server, f"/v1/jobs/{job}")
            self.page.wait_for_timeout(100)
        return self.store("store.server.jobs.get(given)", job)


def violations(screen: Screen) -> list[str]:
    """What axe finds, as lines."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found: dict[str, Any] = axe.Axe().run(screen.page).response
    return [
        f"{each['id']} ({each['impact']}): {node['target']} {node.get('failureSummary', '')[:300]}"
        for each in found["violations"]
        for node in each["nodes"]
    ]
