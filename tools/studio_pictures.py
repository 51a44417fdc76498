"""Take the pictures of the studio that the documentation shows: `python tools/studio_pictures.py [FOLDER]`.

A studio on `mini` draws what they show; nothing is arranged afterwards, and no seed was picked. It takes some minutes.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the tests' bench, which starts servers and browsers
from studio.page_bench import Screen, browser  # noqa: E402
from studio_server import Served  # noqa: E402

PROMPT = "a {rex} and a {momo} on the beach"
PHOTOS = [str(ROOT / "src" / "cones2" / "examples" / "luna" / "photos" / f"{at}.png") for at in range(4)]


def save(screen: Screen, folder: Path, name: str) -> None:
    """Write what the tab shows as a WebP."""
    with Image.open(io.BytesIO(screen.page.screenshot())) as shown:
        shown.convert("RGB").save(folder / f"studio-{name}.webp", quality=70, method=6)


def compose(screen: Screen) -> None:
    """Place two subjects and make four pictures of them."""
    screen.join("rex", "momo")
    screen.page.fill("#prompt", PROMPT)
    for name, box in (("rex", (5, 38, 44, 52)), ("momo", (60, 50, 33, 40))):
        for side, value in zip(("left", "top", "width", "height"), box, strict=True):
            screen.set(f"[aria-label='{name}: {side} in percent']", value)
    screen.set("#count", 4)
    screen.page.click(".place-row button.name")
    screen.wait_for(screen.make(), seconds=600)
    screen.page.wait_for_timeout(1500)


def open_tab(opened: Any, server: Served, theme: str, width: int, height: int) -> Screen:
    """Open the page when the model is there."""
    context = opened.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    screen = Screen(context, server)
    screen.until("store.draft.width > 0")
    return screen


def main() -> None:
    """Take all pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    with tempfile.TemporaryDirectory() as room, browser() as opened:
        server = Served(Path(room)).start().wait_until_ready()
        try:
            screen = open_tab(opened, server, "light", 1280, 800)
            compose(screen)
            save(screen, folder, "drawn")
            screen.page.click("#now .thumb")
            screen.page.wait_for_timeout(800)
            save(screen, folder, "picture")
            screen.page.keyboard.press("Escape")
            screen.page.click("#teach-open")
            screen.page.set_input_files("#teach-files", PHOTOS)
            screen.page.wait_for_selector(".photo >> nth=3")
            screen.page.wait_for_selector(".photo:has-text('looking...')", state="detached")
            screen.page.fill("#teach-name", "luna")
            screen.page.fill("#teach-class", "cat")
            save(screen, folder, "teach")
            small = open_tab(opened, server, "dark", 390, 844)
            small.join("rex", "momo")
            small.page.locator("#tools").scroll_into_view_if_needed()
            save(small, folder, "phone")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
