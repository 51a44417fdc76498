"""Looking at a batch: a labelled contact sheet, and a page of HTML that needs nothing but its own folder."""

import html
import io
import itertools
import json
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cones2.batch.results import Result
from cones2.drawing import Row, contact_sheet
from cones2.errors import PictureError, SettingsError, counted, printable
from cones2.files import make_folder, write_atomically
from cones2.images import opened_image
from cones2.png import record_in, strip_residuals

MOST_ON_SHEET = 1000
ON_PAGE = 200

_THUMBNAIL = 256  # pixels
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; color: #1f2328;
  background: #fff; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } img { width: 100%; height: auto; border: 1px solid #d1d9e0; }
figcaption { font-size: 0.85rem; overflow-wrap: anywhere; } dl { margin: 0.3rem 0; }
dt { float: left; clear: left; margin-right: 0.4rem; color: #59636e; } dd { margin: 0; }
pre { white-space: pre-wrap; font-size: 0.75rem; max-height: 20rem; overflow: auto; background: #f6f8fa;
  padding: 0.5rem; }
code { user-select: all; }
nav a { margin-right: 0.7rem; }
@media (prefers-color-scheme: dark) { body { color: #e6edf3; background: #0d1117; } dt { color: #9198a1; }
  img { border-color: #3d444d; } pre { background: #151b23; } a { color: #4493f8; } }
"""


def chosen(results: Iterable[Result], only: Mapping[str, str]) -> Iterator[Result]:
    """Yield the results whose labels are these texts."""
    for result in results:
        if all(as_text(result.labels.get(name)) == value for name, value in only.items()):
            yield result


def as_text(value: Any) -> str:
    """Return a label as people write it."""
    return value if isinstance(value, str) else json.dumps(value)


def varied(results: Sequence[Result]) -> list[str]:
    """Return the fields in which results differ, in the order of the job."""
    names = dict.fromkeys(itertools.chain.from_iterable(result.labels for result in results))
    return [name for name in names if len({as_text(result.labels.get(name)) for result in results}) > 1]


def make_sheet(
    results: Sequence[Result], *, across: str = "seed", rows: Sequence[str] | None = None, cell: int = 256
) -> Image.Image:
    """Return a contact sheet of results: one field runs across, the others that differ run down.

    Args:
        results: what to show.
        across: the field whose values are columns.
        rows: the fields whose values make rows; all others that differ when None.
        cell: pixels of a picture.

    Raises:
        SettingsError: there are no results, or more than a sheet can hold.
        PictureError: a picture is damaged.
    """
    if not 0 < len(results) <= MOST_ON_SHEET:
        told = f"{len(results):,}" if results else "no"
        advice = "Choose some with only, such as seed=0."
        raise SettingsError(f"there are {told} pictures for the sheet: expected 1 to {MOST_ON_SHEET:,}. {advice}")
    fields = [name for name in varied(results) if name != across] if rows is None else list(rows)
    known = {name for result in results for name in result.labels}
    for name in (across, *fields):
        if name not in known:
            raise SettingsError(f"no picture has {name!r}: expected one of {', '.join(sorted(known))}.")
    found: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        found.setdefault(tuple(as_text(result.labels.get(name)) for name in fields), []).append(result)
    lines = []
    for key, each in found.items():
        heading = ", ".join(
            value if name == "prompt" else f"{name} {value}" for name, value in zip(fields, key, strict=True)
        )
        label = heading or as_text(each[0].labels.get("prompt", ""))
        captions = tuple(f"{across} {as_text(result.labels.get(across))}" for result in each)
        lines.append(Row(printable(label), tuple(picture_of(result) for result in each), captions))
    return contact_sheet(lines, cell=cell)


def picture_of(result: Result) -> Image.Image:
    """Decode a result's picture; `PictureError` where it is damaged."""
    name = f"picture {result.id[:12]}"
    with opened_image(
        result.content, name=name, formats=("PNG",), error=PictureError, advice="Verify the batch."
    ) as image:
        return image.convert("RGB")


def write_gallery(
    results: Iterable[Result],
    folder: Path,
    *,
    title: str,
    most: int = 2000,
    model: str = "mini",
    config: str | None = None,
) -> tuple[int, int]:
    """Write pages with thumbnails, labels, records and how to draw each picture again; return pictures and pages.

    Args:
        results: what to show.
        folder: is made where it is missing; gets `index.html`, `page-2.html`..., `pictures` and `thumbnails`.
        title: of the pages.
        most: how many pictures are shown, from the first.
        model: as `Cones2Pipeline.from_pretrained` takes it, for the lines that draw again what it drew.
        config: likewise.

    Raises:
        SettingsError: there are no results.
        OutputError: the folder can't be written.
        PictureError: a picture is damaged.
    """
    for each in ("pictures", "thumbnails"):
        make_folder(folder / each)
    shown = itertools.islice(results, most)
    count, pages = 0, 0
    names: list[str] = []
    opened = ["--model", model, *(["--model-config", config] if config else [])]
    with tempfile.TemporaryDirectory() as kept:  # a page says how many there are, which the last one tells
        while page := list(itertools.islice(shown, ON_PAGE)):
            pages, count = pages + 1, count + len(page)
            names.append("index.html" if pages == 1 else f"page-{pages}.html")
            fields = [name for name in varied(page) if name != "prompt"]
            figures = "\n".join(_figure(result, fields, folder, opened) for result in page)
            write_atomically(Path(kept) / names[-1], figures.encode())
        if not count:
            raise SettingsError("there are no pictures for the gallery yet.")
        for name in names:
            figures = (Path(kept) / name).read_text(encoding="utf-8")
            write_atomically(folder / name, _page(title, names, name, count, figures).encode())
    return count, pages


def _figure(result: Result, fields: Sequence[str], folder: Path, opened: Sequence[str]) -> str:
    """Write a picture and its thumbnail, and return what a page says of it; `opened` is how its model may be."""
    picture, thumbnail = f"pictures/{result.id[:16]}.png", f"thumbnails/{result.id[:16]}.webp"
    image, small = picture_of(result), io.BytesIO()
    size = image.size
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    image.save(small, format="WEBP", quality=85)
    write_atomically(folder / picture, result.content)
    write_atomically(folder / thumbnail, small.getvalue())
    prompt = as_text(result.labels.get("prompt", ""))
    labels = "".join(
        f"<dt>{_escaped(name)}</dt><dd>{_escaped(as_text(result.labels.get(name)))}</dd>" for name in fields
    )
    record = strip_residuals(record_in(result.content, result.id))
    made, drawn = json.dumps(record, indent=1), record.get("model")
    name = drawn.get("name") if isinstance(drawn, dict) else None
    named = name != "mini" and name in (opened[1], Path(opened[1]).name, Path(opened[1]).stem)
    again = shlex.join(["cones2", "compose", "--from", picture, *(opened if named else ()), "--out", "again.png"])
    return (
        f'<figure id="{result.id[:16]}"><a href="{picture}"><img src="{thumbnail}" alt="{_escaped(prompt)}"'
        f' loading="lazy" width="{size[0]}" height="{size[1]}"></a>\n<figcaption>{_escaped(prompt)}<dl>{labels}</dl>\n'
        f"<details><summary>Draw it again, here in this folder</summary><code>{_escaped(again)}</code></details>\n"
        f"<details><summary>How it was made</summary><pre>{_escaped(made)}</pre></details></figcaption></figure>"
    )


def _page(title: str, names: Sequence[str], name: str, count: int, figures: str) -> str:
    links = "".join(
        f"<b>{number}</b> " if each == name else f'<a href="{each}">{number}</a>'
        for number, each in enumerate(names, start=1)
    )
    pages = f"<nav>{links}</nav>" if len(names) > 1 else ""
    policy = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escaped(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{_escaped(title)}</h1><p>{counted(count, 'picture')}</p>{pages}\n"
        f"<main>\n{figures}\n</main>{pages}</body></html>\n"
    )


def _escaped(text: str) -> str:
    return html.escape(printable(text) if "\n" not in text else text)
