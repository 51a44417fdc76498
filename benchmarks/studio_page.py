"""Measure the studio's page in Chromium: its weight, its first paint, the frames while one of 60 places is dragged.

`python benchmarks/studio_page.py` starts a studio on `mini` in a folder of its own, opens the page five times, and
prints a table. Nothing is drawn meanwhile; the load of the machine is printed, because a busy one paints late.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tests' bench, which starts servers and browsers
from studio.page_bench import Screen, browser
from studio_server import Served

PAGE = Path(__file__).parents[1] / "src" / "cones2" / "studio" / "page"
MOST_BYTES, LATEST_PAINT, LONGEST_FRAME = 150_000, 500, 50
PLACES = 60
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


def frames(screen: Screen) -> list[float]:
    """Return the milliseconds between frames while one of 60 places is dragged across the canvas."""
    page: Any = screen.page
    page.evaluate(FILL, PLACES)
    page.wait_for_function(f"document.querySelectorAll('.place').length === {PLACES}")
    page.wait_for_timeout(800)
    page.mouse.move(*screen.at(0.05, 0.05))
    page.mouse.down()
    page.evaluate(FRAMES)
    for step in range(90):
        page.mouse.move(*screen.at(0.05 + step / 100, 0.05 + step / 120))
    seen = page.evaluate("(window.watching = false, window.frames_seen)")
    page.mouse.up()
    return [float(each) for each in seen[1:]]


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
            seen = frames(screen)
        finally:
            server.stop()
    files = sum(path.stat().st_size for path in PAGE.iterdir())
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print("| figure | measured | at most |\n| --- | ---: | ---: |")
    print(f"| bytes that travel | {max(weights):,} (files: {files:,}) | {MOST_BYTES:,} |")
    print(f"| first paint, median of {times} | {statistics.median(paints):.0f} ms | {LATEST_PAINT} ms |")
    print(f"| longest of {len(seen)} frames, {PLACES} places, one dragged | {max(seen):.0f} ms | {LONGEST_FRAME} ms |")


if __name__ == "__main__":
    main()
