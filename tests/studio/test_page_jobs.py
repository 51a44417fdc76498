"""The page and its server on `mini`: pictures form, are cancelled, survive and come back; a subject from photos."""

import io
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from studio.page_bench import Screen, ask, picture_of, violations
from studio_server import Served

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "src" / "cones2" / "examples"
Opener = Callable[..., Screen]


WATCH = """() => {
  const [seen, steps] = [(window.seen = []), (window.steps = [])];
  const [backdrop, now] = ['#backdrop', '#now'].map((each) => document.querySelector(each));
  const look = () => steps.push(...[...now.querySelectorAll('progress')].map((bar) => bar.value));
  new MutationObserver(() => seen.push(backdrop.getAttribute('src'))).observe(backdrop, { attributes: true });
  new MutationObserver(look).observe(now, { subtree: true, childList: true, attributes: true });
}"""
DROP = """([bytes, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }));
  for (const kind of ['dragenter', 'dragover', 'drop']) {
    const event = new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
    document.querySelector('#stage').dispatchEvent(event);
  }
}"""


SEE = """() => {
  const [backdrop, canvas] = [document.querySelector('#backdrop'), document.createElement('canvas')];
  [canvas.width, canvas.height] = [64, 64];
  window.seen = new Set();
  backdrop.addEventListener('load', () => {
    if (!backdrop.src.includes('/preview')) return;
    canvas.getContext('2d').drawImage(backdrop, 0, 0, 64, 64);
    window.seen.add(canvas.toDataURL());
  });
}"""


def pictures(server: Served) -> list[Any]:
    return list(ask(server, "/v1/pictures?limit=100")["pictures"])


def test_a_picture_forms_before_ones_eyes_and_its_record_is_what_was_asked(ready: Screen) -> None:
    screen, page = ready, ready.page
    screen.join("rex", "momo")
    screen.steps(12)
    screen.set("#seed", 7)
    page.evaluate(WATCH)
    job = screen.wait_for(screen.make())
    steps = page.evaluate("window.steps")
    assert steps == sorted(steps)
    assert max(steps) > min(steps)
    assert len({url for url in page.evaluate("window.seen") if url and "preview" in url}) >= 2
    picture = ask(screen.server, f"/v1/pictures/{job['results'][0]}")
    assert (picture["seed"], picture["subjects"]) == (7, ["rex", "momo"])
    record = json.loads(picture_of(screen.server, picture["id"]).info["cones2"])
    assert record["prompt"] == "a {rex} and a {momo}"
    assert screen.draft()["seed"] == 8  # another seed each time


def test_a_forming_picture_is_seen_to_change(ready: Screen) -> None:
    screen, page = ready, ready.page
    screen.join("rex")
    screen.steps(400)
    page.evaluate(SEE)
    job = screen.make()
    page.wait_for_function("() => window.seen.size >= 3", timeout=120_000)  # three that differ, as they are shown
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Shift+X")
    screen.wait_for(job, "cancelled")


def test_cancelling_saves_nothing_and_the_next_begins_at_once(ready: Screen) -> None:
    screen = ready
    screen.join("rex")
    before = len(pictures(screen.server))
    screen.steps(400)
    job = screen.make()
    screen.wait_for(job, "running")
    screen.until("store.server.jobs.get(given).step > 1", job)
    screen.page.keyboard.press("Escape")
    screen.page.evaluate("document.activeElement.blur()")
    screen.page.keyboard.press("Shift+X")
    screen.wait_for(job, "cancelled")
    assert "cancelled at" in str(screen.page.text_content("#now"))
    assert len(pictures(screen.server)) == before
    screen.steps(2)
    screen.wait_for(screen.make())
    assert len(pictures(screen.server)) == before + 1


def test_a_double_click_makes_one_job_and_one_press_can_start_anew(ready: Screen) -> None:
    screen = ready
    screen.join("rex")
    screen.steps(400)
    count = len(ask(screen.server, "/v1/jobs")["jobs"])
    screen.page.dblclick("#make:not(:disabled)")
    screen.page.wait_for_selector("#now progress")
    screen.page.wait_for_timeout(800)
    jobs = ask(screen.server, "/v1/jobs")["jobs"]
    assert len(jobs) == count + 1
    screen.steps(2)
    screen.page.wait_for_timeout(700)
    with screen.page.expect_response(
        lambda answer: answer.url.endswith("/v1/pictures") and answer.request.method == "POST"
    ) as heard:
        screen.page.keyboard.press("Control+Shift+Enter")
    screen.wait_for(heard.value.json()["id"])
    states = {job["id"]: job["state"] for job in ask(screen.server, "/v1/jobs")["jobs"]}
    new = [state for each, state in states.items() if each not in {job["id"] for job in jobs} or state == "cancelled"]
    assert "cancelled" in new


def test_a_closed_tab_loses_nothing_and_two_tabs_agree(ready: Screen) -> None:
    screen, context = ready, ready.page.context
    screen.join("fido")
    screen.steps(30)
    job = screen.make()
    screen.page.close()
    again, other = context.new_page(), context.new_page()
    for page in (again, other):
        page.goto(screen.server.url)
        page.wait_for_selector("#now .dot.succeeded", timeout=120_000)
        page.wait_for_selector("#pictures .picture")
        assert page.input_value("#prompt") == "a {fido}"
    shown = [
        page.evaluate("[...document.querySelectorAll('.picture')].map((each) => each.dataset.id)")
        for page in (again, other)
    ]
    assert shown[0] == shown[1]
    assert shown[0][0].startswith(job)


def test_killed_workers_and_servers_are_waited_for(chromium: Any, tmp_path: Path) -> None:
    server = Served(tmp_path).start().wait_until_ready()
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    try:
        screen = Screen(context, server)
        screen.until("store.server.info?.model")
        screen.join("rex")
        screen.steps(60)
        job = screen.make()
        screen.until("store.server.jobs.get(given)?.step > 2", job, 120)
        worker = server.worker()
        assert worker is not None
        os.kill(worker, signal.SIGKILL)
        screen.page.wait_for_selector("#banner:not([hidden])")
        screen.until("[store.server.jobs.get(given)].some((job) => job?.attempt > 1 && job.step > 2)", job, 180)
        server.kill()
        screen.page.wait_for_selector("#banner.bad:not([hidden])")
        server.start()
        screen.wait_for(job, seconds=300)
        assert screen.page.is_hidden("#banner.bad")
        assert len(pictures(server)) == 1
        assert screen.draft()["prompt"] == "a {rex}"
        assert screen.foreign == []
    finally:
        context.close()
        server.stop()


def test_a_picture_opens_again_and_is_made_again_to_the_byte(ready: Screen) -> None:
    screen, page = ready, ready.page
    screen.join("rex", "ball") if page.locator("#subjects b:text-is('ball')").count() else screen.join("rex")
    screen.set("#seed", 11)
    first = screen.wait_for(screen.make())["results"][0]
    layout, prompt = screen.layout(), screen.draft()["prompt"]
    page.fill("#prompt", "something else")
    screen.set("#seed", 3)
    page.click("#now .thumb")
    page.wait_for_selector("#viewer[open]")
    page.keyboard.press("s")
    page.wait_for_selector("#viewer [aria-label='Unstar']")
    page.keyboard.press("a")
    page.wait_for_selector("#viewer", state="hidden")
    assert (screen.layout(), screen.draft()["prompt"], screen.draft()["seed"]) == (layout, prompt, 11)
    second = screen.wait_for(screen.make())["results"][0]
    assert picture_of(screen.server, first).tobytes() == picture_of(screen.server, second).tobytes()
    page.locator(f".picture[data-id='{first}']").click()
    page.keyboard.press("r")
    page.wait_for_selector("#viewer", state="hidden")
    assert (screen.layout(), screen.draft()["prompt"]) == (layout, prompt)
    assert screen.draft()["seed"] != 11
    page.click("#filter-starred")
    assert page.locator(f".picture[data-id='{first}']").count() == 1


def test_a_dropped_picture_is_loaded_and_a_strange_file_is_one_clear_line(ready: Screen) -> None:
    screen, page = ready, ready.page
    screen.join("rex")
    screen.set("#seed", 5)
    made = screen.wait_for(screen.make())["results"][0]
    layout = screen.layout()
    with screen.server.client() as client:
        content = client.get(f"/v1/pictures/{made}/file").content
    page.fill("#prompt", "")
    page.keyboard.press("Escape")
    page.evaluate(DROP, [list(content), "mine.png"])
    screen.until("store.draft.prompt === 'a {rex}'")
    assert (screen.layout(), screen.draft()["seed"]) == (layout, 5)
    screen.expected = re.compile("42[0-9]|413|415|400")
    for name, broken in (("plain.png", content[:200]), ("noise.json", b"{"), ("empty.png", b"")):
        page.set_input_files("#any-file", {"name": name, "mimeType": "application/octet-stream", "buffer": broken})
        page.wait_for_selector(".toast.bad")
        assert len(page.locator(".toast.bad span").last.inner_text()) < 400
        page.locator(".toast.bad [aria-label=Dismiss]").last.click()
    assert screen.draft()["prompt"] == "a {rex}"


def test_a_dropped_picture_of_another_tool_fills_the_draft(ready: Screen) -> None:
    screen, page = ready, ready.page
    info, content = PngImagePlugin.PngInfo(), io.BytesIO()
    text = "a dog on the beach\nNegative prompt: rain\nSteps: 23, Sampler: Euler, CFG scale: 4.5, Seed: 77, Size: 64x64"
    info.add_text("parameters", text)
    Image.new("RGB", (64, 64)).save(content, "PNG", pnginfo=info)
    page.evaluate(DROP, [list(content.getvalue()), "theirs.png"])
    screen.until("store.draft.prompt === 'a dog on the beach'")
    draft = screen.draft()
    asked = {"negative_prompt": "rain", "steps": 23, "seed": 77, "guidance_scale": 4.5}
    assert {name: draft[name] for name in asked} == asked
    page.wait_for_selector(".toast:has-text('another tool')")
    assert page.input_value("#seed") == "77"
    assert page.input_value("#negative") == "rain"


def test_a_photo_is_cropped_before_it_is_learned_from(ready: Screen) -> None:
    screen, page = ready, ready.page
    page.click("#teach-open")
    page.set_input_files("#teach-files", [str(EXAMPLES / "luna" / "photos" / f"{at}.png") for at in range(3)])
    page.wait_for_selector(".photo-doubt:not(:has-text('looking'))")
    page.click("[aria-label='Crop photo 2']")
    image = page.locator(".crop-stage img")
    page.wait_for_function("() => document.querySelector('.crop-over')?.getAttribute('viewBox')")
    box = image.bounding_box()
    assert box is not None
    corner = (box["x"] + box["width"] - 2, box["y"] + box["height"] - 2)
    page.mouse.move(*corner)
    page.mouse.down()
    page.mouse.move(corner[0] - box["width"] / 4, corner[1] - box["height"] / 2, steps=4)
    page.mouse.up()
    left = page.locator(".crop .mini:has(span:text-is('left')) input")
    left.fill("10")
    left.press("Tab")
    page.click(".crop button:text-is('Keep')")
    assert page.locator(".photo").nth(1).locator(".crop-shade").count() == 1
    page.fill("#teach-name", "cropped")
    page.fill("#teach-class", "cat")
    with page.expect_response(
        lambda answer: answer.url.endswith("/v1/subjects") and answer.request.method == "POST"
    ) as heard:
        page.click("#teach-start:not(:disabled)")
    job = heard.value.json()["id"]
    page.click("#teach button:text-is('Stop, keep nothing')")
    screen.wait_for(job, "cancelled")
    sizes = [
        Image.open(io.BytesIO(path.read_bytes())).size
        for path in sorted((screen.server.folder / "data/learning" / job / "photos").iterdir())
    ]
    assert [abs(across - 0.65 * 128) <= 3 and abs(down - 64) <= 3 for across, down in sizes] == [False, True, False]


def test_a_subject_is_taught_from_photos_to_its_first_picture(ready: Screen) -> None:
    screen, page = ready, ready.page
    photos: list[Any] = [str(EXAMPLES / "luna" / "photos" / f"{at}.png") for at in range(4)]
    page.click("#teach-open")
    page.set_input_files("#teach-files", photos)
    page.wait_for_selector(".photo-doubt:not(:has-text('looking'))")
    page.set_input_files("#teach-files", {"name": "torn.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.wait_for_selector(".photo.bad:has-text('torn.png')")
    assert page.locator(".photo:not(.bad)").count() == 4
    page.fill("#teach-name", "taught")
    page.fill("#teach-class", "cat")
    page.evaluate("document.querySelector('#teach-form details').open = true")
    page.fill("#teach-steps", "6")
    with page.expect_response(
        lambda answer: answer.url.endswith("/v1/subjects") and answer.request.method == "POST"
    ) as heard:
        page.click("#teach-start:not(:disabled)")
    screen.wait_for(heard.value.json()["id"], seconds=400)
    page.click("#teach button:text-is('Try it')")
    screen.until("store.draft.prompt === 'a photo of {taught}'")
    job = screen.wait_for(screen.make())
    assert ask(screen.server, f"/v1/pictures/{job['results'][0]}")["subjects"] == ["taught"]
    page.click("[aria-label='More about taught']")
    page.click("dialog button:text-is('Delete')")
    page.wait_for_selector("#subjects .chip:has(b:text-is('taught'))", state="detached")
    page.click(".toast button:text-is('Undo')")
    page.wait_for_selector("#subjects .chip:has(b:text-is('taught'))")


def test_the_prompt_is_checked_as_it_is_written(ready: Screen) -> None:
    screen, page = ready, ready.page
    page.fill("#prompt", "a {nobody} on the beach")
    page.wait_for_selector("#doubts .bad:has-text('nobody')")
    assert page.is_disabled("#make")
    page.click("#doubts button:text-is('use as a plain word')")
    page.fill("#prompt", "a {nobody}")
    screen.join("rex")
    page.fill("#prompt", "a {nobody} and a house")
    page.wait_for_selector("#doubts .doubt:has-text('rex has a place but no mention')")
    assert page.is_enabled("#make")
    page.fill("#prompt", "a {rex} " + "on the beach " * 40)
    page.wait_for_selector("#tokens.bad")
    page.fill("#prompt", "a {rex")
    page.wait_for_selector("#doubts .bad:has-text('brace')")
    assert page.is_disabled("#make")
    page.fill("#prompt", "a {rex} and a {fido}")
    page.click("#suggest:not(:disabled)")
    screen.until("Boolean(store.placeNamed('fido'))")


def test_the_gallery_is_walked_chosen_compared_and_emptied_by_keys(ready: Screen) -> None:
    screen, page = ready, ready.page
    screen.join("rex")
    screen.steps(1)
    screen.set("#count", 3)
    made = screen.wait_for(screen.make())["results"]
    page.wait_for_selector(f".picture[data-id='{made[0]}']")
    page.locator(".picture").first.focus()
    first = page.evaluate("document.activeElement.dataset.id")
    page.keyboard.press("Space")
    page.keyboard.press("Shift+ArrowRight")
    assert page.locator(".picture[aria-selected=true]").count() == 2
    page.click("#compare")
    assert page.locator("#viewer .frame").count() == 2
    page.keyboard.press("Escape")
    page.locator(".picture").nth(1).focus()
    page.keyboard.press("Delete")
    page.wait_for_selector(f".picture[data-id='{first}']", state="detached")
    assert {picture["id"] for picture in pictures(screen.server)} & set(made) == {made[0]}
    page.click(".toast button:text-is('Undo')")
    page.wait_for_selector(f".picture[data-id='{first}']")
    page.locator(".picture").first.focus()
    page.keyboard.press("End")
    assert page.evaluate(
        "document.activeElement.getAttribute('aria-posinset') === document.activeElement.getAttribute('aria-setsize')"
    )


def test_what_was_deleted_comes_back_from_the_bin_or_goes_for_good(ready: Screen) -> None:
    screen, page = ready, ready.page
    screen.join("rex")
    screen.steps(1)
    screen.set("#count", 2)
    made = screen.wait_for(screen.make())["results"]
    for picture in made:
        page.locator(f".picture[data-id='{picture}']").focus()
        page.keyboard.press("Delete")
        page.wait_for_selector(f".picture[data-id='{picture}']", state="detached")
    page.click("#bin-open")
    page.wait_for_selector(f"#bin-list li:has(img[src*='{made[1]}'])")
    assert violations(screen) == []
    page.click(f"#bin-list li:has(img[src*='{made[1]}']) button")
    page.wait_for_selector(f"#bin-list li:has(img[src*='{made[1]}'])", state="detached")
    page.wait_for_selector(f".picture[data-id='{made[1]}']", state="attached")
    page.click("#bin-clear")
    assert ask(screen.server, f"/v1/pictures/{made[0]}")["deleted"]  # the first press asks
    page.click("#bin-clear:text-is('Delete all of it for good')")
    page.wait_for_selector("#bin-empty:not([hidden])")
    assert page.is_disabled("#bin-clear")
    with screen.server.client() as client:
        assert client.get(f"/v1/pictures/{made[0]}").status_code == 404
    assert made[1] in {picture["id"] for picture in pictures(screen.server)}
