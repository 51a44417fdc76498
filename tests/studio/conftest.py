"""One studio on `mini` and one browser for all tests of the page; each test has a draft of its own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from studio.page_bench import CHROMIUM, Screen, browser
from studio_server import Served

Opener = Callable[..., Screen]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="the page is tested through Playwright: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("the page is tested in Chromium, and there is none here")
    with browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("fastapi", reason="the studio needs its extra: pip install cones2[studio]")
    running = Served(tmp_path_factory.mktemp("studio")).start()
    yield running
    running.stop()


@pytest.fixture
def open_screen(chromium: Any, server: Served) -> Iterator[Opener]:
    """Opens tabs, each with a draft of its own; afterwards none may have left the origin or complained."""
    screens: list[Screen] = []
    contexts: list[Any] = []

    def opened(*, expected: str = "", **options: Any) -> Screen:
        given = {"viewport": {"width": 1440, "height": 900}, "accept_downloads": True, **options}
        contexts.append(chromium.new_context(**given))
        screens.append(Screen(contexts[-1], server, expected=expected))
        return screens[-1]

    yield opened
    for screen in screens:
        screen.check()
    for context in contexts:
        context.close()


@pytest.fixture
def screen(open_screen: Opener) -> Screen:
    """A large screen with an empty draft; the model may still be being opened."""
    return open_screen()


@pytest.fixture
def ready(open_screen: Opener, server: Served) -> Screen:
    """A large screen with an empty draft of four steps; the model is open."""
    server.wait_until_ready()
    screen = open_screen()
    screen.until("store.server.info?.model && store.draft.width > 0")
    screen.steps(4)
    return screen
