"""For everyone: axe finds nothing in any state and theme, Tab reaches all, focus comes back, changes are spoken."""

from collections.abc import Callable

import pytest

from studio.page_bench import Screen, violations

Opener = Callable[..., Screen]
THEMES = ("light", "dark")


@pytest.mark.parametrize("theme", THEMES)
def test_the_empty_and_the_drawn_page_are_for_everyone(open_screen: Opener, theme: str) -> None:
    screen = open_screen(color_scheme=theme)
    assert violations(screen) == []
    screen.join("rex", "momo")
    screen.page.fill("#prompt", "a {rex} and a {nobody}")
    screen.page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    screen.page.wait_for_selector("#doubts .doubt")
    assert violations(screen) == []


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", [360, 900])
def test_small_screens_are_for_everyone_and_never_wider_than_they_are(
    open_screen: Opener, theme: str, width: int
) -> None:
    screen = open_screen(color_scheme=theme, viewport={"width": width, "height": 800})
    screen.join("rex", "momo")
    screen.page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert violations(screen) == []
    assert screen.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
@pytest.mark.parametrize("theme", THEMES)
def test_jobs_results_and_dialogs_are_for_everyone(ready: Screen, theme: str) -> None:
    screen, page = ready, ready.page
    page.emulate_media(color_scheme=theme)
    page.evaluate("(theme) => (document.documentElement.dataset.theme = theme)", theme)
    screen.join("rex", "momo")
    screen.steps(400)
    job = screen.make()
    screen.wait_for(job, "running")
    assert violations(screen) == []
    page.click("#queue-open")
    assert violations(screen) == []
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "queue-open"
    page.click("#now button:text-is('Cancel')")
    screen.wait_for(job, "cancelled")
    assert "cancelled" in str(page.text_content("#live"))
    screen.steps(2)
    screen.wait_for(screen.make())
    page.click("#now .thumb")
    page.wait_for_selector("#viewer img")
    assert violations(screen) == []
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className").startswith("thumb")
    page.keyboard.press("?")
    assert violations(screen) == []
    page.keyboard.press("Escape")
    page.click("#teach-open")
    assert violations(screen) == []
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "teach-open"
    page.click("[aria-label='More about rex']")
    assert violations(screen) == []
    page.keyboard.press("Escape")
    page.click("#gallery-size")
    assert violations(screen) == []


@pytest.mark.slow
def test_a_server_that_is_gone_is_told_and_the_page_stays_for_everyone(screen: Screen) -> None:
    screen.store("{ store.server.connected = false; store.tell('connection'); }")
    screen.page.wait_for_selector("#banner.bad")
    assert "draft is kept" in str(screen.page.text_content("#banner"))
    assert violations(screen) == []


@pytest.mark.slow
def test_tab_reaches_everything_in_the_order_of_the_page(screen: Screen) -> None:
    screen.join("rex")
    seen: list[str] = []
    screen.page.focus(".skip")
    for _ in range(150):
        screen.page.keyboard.press("Tab")
        mark = screen.page.evaluate(
            "[document.activeElement].map((e) => e.id || e.getAttribute('aria-label') || e.className || e.tagName)[0]"
        )
        if mark == "BODY" or (seen and mark == seen[0]):
            break
        seen.append(mark)
    wanted = ["subject-search", "teach-open", "undo", "canvas", "prompt", "layout-scale", "seed", "filter-starred"]
    assert set(wanted) - {"undo"} <= set(seen)
    assert seen.index("subject-search") < seen.index("canvas") < seen.index("prompt") < seen.index("seed")
    assert any("rex, box" in mark for mark in seen)


@pytest.mark.slow
def test_nothing_moves_for_those_who_ask_for_it(open_screen: Opener) -> None:
    screen = open_screen(reduced_motion="reduce")
    lasting = "[...document.querySelectorAll('*')].map((each) => parseFloat(getComputedStyle(each).transitionDuration))"
    assert set(screen.page.evaluate(lasting)) == {0}
