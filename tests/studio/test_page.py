"""The page without a model: places by mouse, touch and keyboard, undo, prompt, strangers' texts."""

import itertools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from studio.page_bench import Screen

HANDLES = ("nw", "n", "ne", "e", "se", "s", "sw", "w")


def near(box: Any, expected: Any, screen: Screen, pixels: float = 1.0) -> bool:
    sheet = screen.sheet()
    allowed = [(pixels + 0.1) / sheet[side] for side in ("width", "height", "width", "height")]
    return all(abs(a - b) <= most for a, b, most in zip(box, expected, allowed, strict=True))


def draw(screen: Screen, name: str, *corners: tuple[float, float]) -> None:
    """Put a subject without a place into the draft, and draw its box."""
    screen.cast(name)
    screen.drag(*corners)
    screen.until("Boolean(store.placeNamed(given))", name)


def test_a_click_gives_a_subject_its_mention_and_a_box_is_drawn_as_it_is_kept(screen: Screen) -> None:
    screen.join("rex")
    assert screen.draft()["prompt"] == "a {rex}"
    draw(screen, "fido", (0.125, 0.25), (0.5, 0.875))
    assert near(screen.box("fido"), (0.125, 0.25, 0.5, 0.875), screen)
    assert screen.page.locator(".place").count() == 2
    assert "left 12.5 %" in str(screen.page.locator(".place.selected").get_attribute("aria-label"))
    screen.page.reload()
    screen.page.wait_for_selector(".place")
    assert near(screen.box("fido"), (0.125, 0.25, 0.5, 0.875), screen)


@pytest.mark.slow
def test_moves_and_all_eight_handles_stay_in_the_picture(screen: Screen) -> None:
    draw(screen, "rex", (0.3, 0.3), (0.6, 0.7))
    screen.drag((0.45, 0.5), (0.55, 0.4))
    assert near(screen.box("rex"), (0.4, 0.2, 0.7, 0.6), screen)
    for handle, (dx, dy) in itertools.product(HANDLES, ((0.1, 0.05), (-1.5, -1.5), (1.5, 1.5))):
        before = screen.box("rex")
        x = before[0] if "w" in handle else before[2] if "e" in handle else (before[0] + before[2]) / 2
        y = before[1] if "n" in handle else before[3] if "s" in handle else (before[1] + before[3]) / 2
        first = screen.at(x, y)
        screen.page.mouse.move(*first)
        screen.page.mouse.down()
        screen.page.mouse.move(first[0] + dx * 300, first[1] + dy * 300, steps=3)
        screen.page.mouse.up()
        x0, y0, x1, y1 = screen.box("rex")
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        assert x1 - x0 >= 0.0199
        assert y1 - y0 >= 0.0199
        held = {0: "w", 1: "n", 2: "e", 3: "s"}
        assert all(before[at] == (x0, y0, x1, y1)[at] for at, side in held.items() if side not in handle)
        screen.store("store.undo()")
        assert screen.box("rex") == before


@pytest.mark.slow
def test_the_keyboard_alone_draws_moves_resizes_and_deletes(screen: Screen) -> None:
    screen.page.focus("#subject-search")
    screen.page.keyboard.type("rex")
    screen.page.keyboard.press("Enter")
    before = screen.box("rex")
    screen.page.locator(".place").focus()
    for key in ("ArrowRight", "Shift+ArrowUp", "Alt+ArrowRight", "Alt+Shift+ArrowUp"):
        screen.page.keyboard.press(key)
    x0, y0, x1, y1 = before
    assert screen.box("rex") == pytest.approx([x0 + 0.01, y0 - 0.05, x1 + 0.02, y1 - 0.1], abs=1e-4)
    screen.page.keyboard.press("Control+z")
    assert screen.box("rex") == pytest.approx([x0 + 0.01, y0 - 0.05, x1 + 0.02, y1 - 0.05], abs=1e-4)
    screen.page.keyboard.press("Delete")
    assert screen.layout() == {}
    assert screen.page.evaluate("document.activeElement.id") == "canvas"
    screen.page.keyboard.press("Enter")
    assert list(screen.layout()) == ["rex"]


@pytest.mark.slow
def test_the_number_fields_alone_do_the_same(screen: Screen) -> None:
    screen.join("rex")
    for side, value in (("left", 10), ("top", 20), ("width", 30), ("height", 40)):
        screen.set(f"[aria-label='rex: {side} in percent']", value)
    assert screen.box("rex") == [0.1, 0.2, 0.4, 0.6]
    screen.set("[aria-label='rex: left in percent']", 500)
    x0, _, x1, _ = screen.box("rex")
    assert 0 <= x0 < x1 <= 1


@pytest.mark.slow
def test_undo_and_redo_give_the_same_bytes_and_escape_changes_nothing(screen: Screen) -> None:
    chance = random.Random(3)
    screen.join("rex", "fido")
    states = [json.dumps(screen.layout())]
    while len(states) < 31:
        spots = [(round(chance.uniform(0.05, 0.95), 2), round(chance.uniform(0.05, 0.95), 2)) for _ in range(2)]
        screen.drag(*spots, steps=2)
        if (now := json.dumps(screen.layout())) != states[-1]:
            states.append(now)
    screen.page.mouse.move(*screen.at(0.5, 0.7))
    screen.page.mouse.down()
    screen.page.mouse.move(*screen.at(0.8, 0.2), steps=3)
    screen.page.keyboard.press("Escape")
    screen.page.mouse.up()
    assert json.dumps(screen.layout()) == states[-1]
    for state in reversed(states[:-1]):
        screen.page.keyboard.press("Control+z")
        assert json.dumps(screen.layout()) == state
    for state in states[1:]:
        screen.page.keyboard.press("Control+Shift+z")
        assert json.dumps(screen.layout()) == state


MASK = """async ([name]) => {
  const [store, brush] = await Promise.all([import('/page/store.js'), import('/page/brush.js')]);
  const shape = store.placeNamed(name)?.shapes.find((each) => 'mask' in each);
  if (!shape) return null;
  const canvas = await brush.maskCanvas(shape.mask);
  const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return { width: canvas.width, height: canvas.height, alpha: [...data].filter((_, at) => at % 4 === 3) };
}"""


@pytest.mark.slow
def test_a_painted_mask_covers_what_was_painted(screen: Screen) -> None:
    screen.join("rex")
    screen.page.keyboard.press("b")
    screen.store("store.setUi({ brush: 0.2 })")
    screen.drag((0.3, 0.5), (0.7, 0.5), steps=8)
    mask = screen.page.evaluate(MASK, ["rex"])
    side = mask["width"]
    painted = {at for at, alpha in enumerate(mask["alpha"]) if alpha >= 128}
    meant = {
        y * side + x
        for y in range(mask["height"])
        for x in range(side)
        if ((x + 0.5) / side - min(0.7, max(0.3, (x + 0.5) / side))) ** 2 + ((y + 0.5) / side - 0.5) ** 2 <= 0.01
    }
    assert len(painted & meant) / len(painted | meant) >= 0.98
    screen.page.keyboard.press("e")
    screen.drag((0.3, 0.5), (0.5, 0.5), steps=8)
    erased = screen.page.evaluate(MASK, ["rex"])["alpha"]
    assert sum(erased) < 0.7 * sum(mask["alpha"])
    screen.page.keyboard.press("b")
    screen.page.check("#brush-soft")
    screen.drag((0.2, 0.2), (0.4, 0.2), steps=4)
    soft = screen.page.evaluate(MASK, ["rex"])["alpha"]
    assert sum(1 for alpha in soft if 20 < alpha < 235) > 3 * sum(1 for alpha in erased if 20 < alpha < 235)
    assert len(json.dumps(screen.layout())) < 64_000
    screen.page.keyboard.press("v")
    screen.page.locator(".place").focus()
    before = screen.store("store.draft.places[0].shapes[0].bounds")
    screen.page.keyboard.press("Shift+ArrowDown")
    after = screen.store("store.draft.places[0].shapes[0].bounds")
    assert after[1] == pytest.approx(before[1] + 0.05, abs=0.006)
    screen.page.keyboard.press("Delete")
    assert screen.layout() == {}


@pytest.mark.slow
def test_a_polygon_is_closed_changed_and_loses_a_point(screen: Screen) -> None:
    screen.cast("rex")
    screen.page.keyboard.press("p")
    corners = [(0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]
    for corner in [*corners, corners[0]]:
        screen.page.mouse.click(*screen.at(*corner))
    points = screen.layout()["rex"]["shapes"][0]["polygon"]
    assert all(near((*a, *a), (*b, *b), screen) for a, b in zip(points, corners, strict=True))
    screen.page.keyboard.press("v")
    screen.drag((0.8, 0.8), (0.6, 0.7))
    moved = screen.layout()["rex"]["shapes"][0]["polygon"]
    assert near((*moved[2], *moved[2]), (0.6, 0.7, 0.6, 0.7), screen)
    assert [*moved[:2], moved[3]] == [*points[:2], points[3]]
    screen.page.locator(".vertex").nth(3).focus()
    screen.page.keyboard.press("ArrowRight")
    assert screen.layout()["rex"]["shapes"][0]["polygon"][3][0] == pytest.approx(moved[3][0] + 0.01, abs=1e-4)
    screen.page.locator(".vertex").nth(3).focus()
    screen.page.keyboard.press("Delete")
    assert len(screen.layout()["rex"]["shapes"][0]["polygon"]) == 3


TRIANGLE = [[0.2, 0.3], [0.8, 0.3], [0.5, 0.8]]


def triangle(screen: Screen) -> None:
    """Put rex into the draft, in a triangle that is selected."""
    screen.cast("rex")
    screen.page.evaluate(
        """([points]) => Promise.all([import('/page/store.js'), import('/page/cast.js')]).then(([store, cast]) =>
            cast.addShape('rex', { polygon: points }))""",
        [TRIANGLE],
    )
    screen.page.wait_for_selector(".vertex")


def corners_of(screen: Screen) -> Any:
    return screen.layout()["rex"]["shapes"][0]["polygon"]


@pytest.mark.slow
def test_a_corner_is_dragged_snapped_undone_and_has_the_keys(screen: Screen) -> None:
    triangle(screen)
    for at, to in ((0, (0.1, 0.15)), (1, (0.9, 0.4)), (2, (0.45, 0.95))):
        before = corners_of(screen)
        screen.drag((before[at][0], before[at][1]), to)
        after = corners_of(screen)
        assert near((*after[at], *after[at]), (*to, *to), screen)
        assert [*after[:at], *after[at + 1 :]] == [*before[:at], *before[at + 1 :]]
    screen.page.keyboard.press("ArrowLeft")  # the corner that was pulled
    assert corners_of(screen)[2][0] == pytest.approx(after[2][0] - 0.01, abs=1e-4)
    for _ in range(4):
        screen.page.keyboard.press("Control+z")
    assert corners_of(screen) == TRIANGLE
    screen.page.mouse.click(*(side + 3 for side in screen.at(0.5, 0.8)))  # beside its middle: nothing moves
    assert corners_of(screen) == TRIANGLE
    screen.page.mouse.move(*screen.at(0.5, 0.8))
    screen.page.mouse.down()
    screen.page.mouse.move(*screen.at(0.6, 0.6), steps=3)
    screen.page.keyboard.press("Escape")
    screen.page.mouse.up()
    assert corners_of(screen) == TRIANGLE
    screen.page.keyboard.press("g")
    screen.drag((0.5, 0.8), (0.612, 2.0))  # as far as the picture goes
    assert corners_of(screen)[2] == [0.6, 1]


@pytest.mark.slow
def test_two_of_one_class_keep_their_colours_and_a_new_name_goes_everywhere(screen: Screen) -> None:
    screen.join("rex", "fido")
    colours = screen.store("['rex', 'fido'].map(store.colourOf)")
    assert colours[0] != colours[1]
    screen.page.fill("#subject-search", "ball")
    screen.page.keyboard.press("Enter")
    screen.page.click("[aria-label='Rename ball']")
    screen.page.fill("#asked", "red_ball")
    screen.page.keyboard.press("Enter")
    screen.until("Boolean(store.placeNamed('red_ball'))")
    assert "{red_ball}" in screen.draft()["prompt"]
    assert "{ball}" not in screen.draft()["prompt"]
    screen.page.click("[aria-label='Take rex out of the picture']")
    assert screen.store("store.colourOf('fido')") == colours[1]
    assert screen.draft()["prompt"] == "a {fido} and a {red_ball}" or "{fido}" in screen.draft()["prompt"]


@pytest.mark.slow
def test_the_order_of_the_rows_is_what_is_drawn_and_sent(screen: Screen) -> None:
    screen.join("rex", "fido", "mimi")
    layout = screen.layout()
    assert layout["mimi"]["z"] > layout["fido"]["z"] > layout["rex"]["z"]
    screen.page.locator("#places li").nth(2).drag_to(screen.page.locator("#places li").nth(0))
    layout = screen.layout()
    assert layout["rex"]["z"] > layout["mimi"]["z"] > layout["fido"]["z"]
    drawn = screen.page.evaluate("[...document.querySelectorAll('.place .tag text')].map((each) => each.textContent)")
    assert drawn == ["fido", "mimi", "rex"]
    screen.page.click("[aria-label='Send rex back by one']")
    layout = screen.layout()
    assert layout["mimi"]["z"] > layout["rex"]["z"] > layout["fido"]["z"]
    screen.page.check("#overlap-share")
    assert {region["z"] for region in screen.layout().values()} == {0}


@pytest.mark.slow
def test_a_subject_that_is_pulled_onto_the_canvas_gets_its_place_there(screen: Screen) -> None:
    sheet = screen.sheet()
    chip = screen.page.locator("#subjects .chip-main:has(b:text-is('rex'))")
    for x, y, expected in ((0.6, 0.5, (0.43, 0.3, 0.77, 0.7)), (0.99, 0.01, (0.66, 0, 1, 0.4))):
        spot = {"x": x * sheet["width"], "y": y * sheet["height"]}
        chip.drag_to(screen.page.locator("#canvas"), target_position=spot)
        screen.until("Boolean(store.placeNamed('rex'))")
        assert near(screen.layout()["rex"]["shapes"][-1], expected, screen)
    assert screen.draft()["prompt"] == "a {rex}"  # the second pull adds a place, no mention
    assert len(screen.layout()["rex"]["shapes"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "zoom"), [({"device_scale_factor": 2}, 0), ({"viewport": {"width": 800, "height": 900}}, 2), ({}, -2)]
)
def test_drawing_is_exact_at_every_zoom_and_density(
    open_screen: Callable[..., Screen], options: dict[str, Any], zoom: int
) -> None:
    screen = open_screen(**options)
    for _ in range(abs(zoom)):
        screen.page.click("#zoom-in" if zoom > 0 else "#zoom-out")
    draw(screen, "rex", (0.3, 0.3), (0.55, 0.6))
    assert near(screen.box("rex"), (0.3, 0.3, 0.55, 0.6), screen)


@pytest.fixture
def fingers(open_screen: Callable[..., Screen]) -> tuple[Screen, Callable[..., None]]:
    """A phone, and what pulls a finger over its canvas."""
    screen = open_screen(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    touch = screen.page.context.new_cdp_session(screen.page)

    def swipe(*spots: tuple[float, float], beside: float = 0) -> None:
        for turn, spot in enumerate(spots):
            x, y = (side + beside for side in screen.at(*spot))
            touch.send(
                "Input.dispatchTouchEvent",
                {"type": "touchMove" if turn else "touchStart", "touchPoints": [{"x": x, "y": y}]},
            )
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        screen.page.wait_for_timeout(100)

    return screen, swipe


@pytest.mark.slow
def test_a_finger_pulls_a_corner(fingers: tuple[Screen, Callable[..., None]]) -> None:
    screen, swipe = fingers
    triangle(screen)
    swipe((0.2, 0.3), (0.25, 0.2), (0.3, 0.1), beside=6)  # a finger hardly meets its middle
    moved, *others = corners_of(screen)
    assert near((*moved, *moved), (0.3, 0.1, 0.3, 0.1), screen)
    assert others == TRIANGLE[1:]
    screen.store("store.undo()")
    assert corners_of(screen) == TRIANGLE


@pytest.mark.slow
def test_a_finger_draws_and_moves(fingers: tuple[Screen, Callable[..., None]]) -> None:
    screen, swipe = fingers
    screen.cast("rex")
    swipe((0.2, 0.2), (0.4, 0.3), (0.6, 0.7))
    screen.until("Boolean(store.placeNamed('rex'))")
    assert near(screen.box("rex"), (0.2, 0.2, 0.6, 0.7), screen)
    swipe((0.4, 0.5), (0.45, 0.55), (0.5, 0.6))
    assert near(screen.box("rex"), (0.3, 0.3, 0.7, 0.8), screen)


@pytest.mark.slow
def test_a_grid_of_dots_holds_what_is_drawn(screen: Screen) -> None:
    screen.page.keyboard.press("g")
    draw(screen, "rex", (0.212, 0.19), (0.587, 0.71))
    assert screen.box("rex") == [0.2, 0.2, 0.6, 0.7]


@pytest.mark.slow
def test_what_strangers_write_is_text(screen: Screen) -> None:
    texts = ["<img src=x onerror=alert(1)>", "\"'`;--", "\u202eabc \u0627\u0644", "\U0001f9f8" * 5, "x" * 10_000]
    for text in texts:
        screen.page.fill("#prompt", text)
        screen.page.wait_for_timeout(50)
        assert screen.page.input_value("#prompt") == text
        assert screen.page.text_content("#prompt-mirror") == text + "\n"
    assert screen.page.locator("#prompt-mirror img").count() == 0
    screen.page.fill("#prompt", "")
    screen.page.fill("#subject-search", "<b onclick=x>")
    screen.page.keyboard.press("Enter")
    assert screen.page.locator("#places b b").count() == 0
    assert "<b onclick=x>" in str(screen.page.text_content("#places"))


@pytest.mark.slow
def test_a_table_of_boxes_goes_out_and_comes_back(screen: Screen) -> None:
    screen.join("rex", "fido")
    screen.page.evaluate("document.querySelector('#more').open = true")
    with screen.page.expect_download() as saved:
        screen.page.click("#export-table")
    rows = json.loads(saved.value.path().read_text())
    x0, y0, x1, y1 = screen.box("rex")
    assert {"id": "rex", "bbox": [round(side * 1000) for side in (y0, x0, y1, x1)], "desc": "dog"} in rows
    before = {name: region["shapes"] for name, region in screen.layout().items()}
    screen.page.keyboard.press("Control+z")
    screen.page.set_input_files(
        "#any-file", {"name": "boxes.json", "mimeType": "application/json", "buffer": json.dumps(rows).encode()}
    )
    screen.until("store.draft.places.length === 2")
    after = {name: region["shapes"] for name, region in screen.layout().items()}
    assert {name: [pytest.approx(box, abs=0.0006) for box in shapes] for name, shapes in before.items()} == after
