"""Measure the studio's page in Chromium: its weight, its first paint, the frames of a drag and of a scroll.

`python benchmarks/studio_page.py` starts a studio on `mini` in a folder of its own, opens the page five times, and
prints a table. Nothing is drawn meanwhile; the load of the machine is printed, because a busy one paints late.
"""

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tests' bench, which starts servers and browsers
from studio.page_bench import Screen, browser
from studio_server import Served

PAGE = Path(__file__).parents[1] / "src" / "cones2" / "studio" / "page"
MOST_BYTES, LATEST_PAINT, LONGEST_FRAME = 150_000, 500, 50
PLACES, PICTURES, MOVES = 60, 5000, 120
FILL = """async (count) => {
  const store = await import('/page/store.js');
  const side = Math.ceil(Math.sqrt(count));
  const names = Array.from({ length: count }, (_, at) => `thing_${at}`);
  const places = names.map((subject, at) => {
    const [x, y] = [(at % side) / side, Math.floor(at / side) / side];
    const shapes = [{ box: [x, y, x + 0.9 / side, y + 0.9 / side] }];
    return { id: subject, subject, shapes, z: count - at, weight: 1, feather: 0 };
  });
  const member = { source: 'word', class_word: 'ball', sha256: null, strength: 1, negative: '' };
  const members = names.map((name, colour) => ({ ...member, name, colour }));
  store.change({ places, members, prompt: names.map((name) => `{${name}}`).join(' ') });
}"""
GALLERY = """async (count) => {
  const { pictures } = await import('/page/pictures.js');
  const store = await import('/page/store.js');
  const same = { job: '', width: 128, height: 128, prompt: 'a dog', subjects: [], attention: [], layout: null };
  for (let seed = 0; seed < count; seed += 1) {
    const id = `none-${seed}`;
    pictures.set(id, { ...same, id, seed, created: String(seed), starred: false, note: '', deleted: false });
  }
  store.tell('pictures');
}"""
FRAMES = """() => {
  window.frames_seen = [];
  window.watching = true;
  let last = performance.now();
  const next = (now) => {
    window.frames_seen.push(now - last);
    last = now;
    if (window.watching) requestAnimationFrame(next);
  };
  requestAnimationFrame(next);
}"""


def weight(screen: Screen) -> int:
    """Return the bytes of the page's own files as they travelled, headers left out."""
    return int(
        screen.page.evaluate(
            "performance.getEntries().filter((each) => each.entryType === 'navigation' || each.name.includes('/page/'))"
            ".reduce((sum, each) => sum + each.encodedBodySize, 0)"
        )
    )


def first_paint(screen: Screen) -> float:
    """Return milliseconds from the navigation to the first paint with content."""
    return float(screen.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))


def drag(screen: Screen) -> tuple[list[float], float]:
    """Drag one of 60 places across the canvas."""
    page: Any = screen.page
    page.evaluate(FILL, PLACES)
    page.wait_for_function(f"() => document.querySelectorAll('.place').length === {PLACES}")
    page.wait_for_timeout(800)
    sheet = screen.sheet()

    def move(step: int) -> None:
        page.mouse.move(sheet["x"] + (0.05 + step / 150) * sheet["width"], sheet["y"] + 0.05 * sheet["height"])

    move(0)
    page.mouse.down()
    seen = frames(page, move)
    page.mouse.up()
    return seen


def scroll(screen: Screen) -> tuple[list[float], float]:
    """Scroll through a gallery of 5,000."""
    page: Any = screen.page
    page.evaluate(GALLERY, PICTURES)
    page.wait_for_selector(f".picture[aria-setsize='{PICTURES}']")
    page.click("#gallery-size")
    page.mouse.move(600, 500)
    page.wait_for_timeout(800)
    return frames(page, lambda _: page.mouse.wheel(0, 300))


def frames(page: Any, move: Callable[[int], None]) -> tuple[list[float], float]:
    """Return the milliseconds between frames during many moves, and those that the page's thread worked for a frame."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.evaluate(FRAMES)
    before = worked(session)
    for step in range(MOVES):
        move(step)
    seen = page.evaluate("(window.watching = false, window.frames_seen)")[1:]
    return [float(each) for each in seen], 1000 * (worked(session) - before) / len(seen)


def worked(session: Any) -> float:
    """Return the seconds of a core that the page's thread has taken so far, whatever else the machine does."""
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    return float(metrics["TaskDuration"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="openings of the page (5)")
    times = parser.parse_args().times
    with tempfile.TemporaryDirectory() as folder, browser() as opened:
        server = Served(Path(folder)).start().wait_until_ready()
        try:
            paints, weights = [], []
            for _ in range(times):
                context = opened.new_context(viewport={"width": 1440, "height": 900})
                screen = Screen(context, server)
                paints.append(first_paint(screen))
                weights.append(weight(screen))
                if len(paints) < times:
                    context.close()
            measured = {
                f"{PLACES} places, one dragged": drag(screen),
                f"{PICTURES:,} pictures scrolled": scroll(screen),
            }
        finally:
            server.stop()
    files = sum(path.stat().st_size for path in PAGE.iterdir())
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| figure | measured | at most |\n| --- | ---: | ---: |")
    print(f"| bytes that travel | {max(weights):,} (files: {files:,}) | {MOST_BYTES:,} |")
    print(f"| first paint, median of {times} | {statistics.median(paints):.0f} ms | {LATEST_PAINT} ms |")
    for what, (seen, work) in measured.items():
        print(f"| {what}: longest of {len(seen)} frames | {max(seen):.0f} ms | {LONGEST_FRAME} ms |")
        print(f"| {what}: work of the page's thread for a frame | {work:.1f} ms | |")


if __name__ == "__main__":
    main()
