"""A learning as files: its curves in `curves.csv`, and its previews as `0050-0.png` (the step, then which image)."""

import io
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

from cones2.errors import OutputError
from cones2.files import make_folder, read_bounded, write_atomically
from cones2.learning.previews import PreviewedStep

COLUMNS = ("step", "loss", "subject_loss", "preservation_loss", "identity")
"""Of `curves.csv`: L of Eq. 4, Eq. 2, Eq. 3, and how like the subject the images are, where that was measured."""


def logged(steps: Generator[PreviewedStep, None, None], folder: Path) -> Generator[PreviewedStep, None, None]:
    """Pass on the steps of `with_previews` and write them into `folder`; `steps` is closed at the end.

    The curves are written with each preview and at the end, whole or not at all. A learning that is resumed keeps the
    rows before its first step; one that begins anew replaces them all.

    Raises:
        OutputError: the folder can't be made or written, or its `curves.csv` is something else.
    """
    path = folder / "curves.csv"
    make_folder(folder)
    content = read_bounded(path, limit=2**27, error=OutputError) if path.exists() else b""
    header, *found = [tuple(line.split(",")) for line in content.decode(errors="replace").splitlines()] or [COLUMNS]
    if header != COLUMNS or not all(row[0].isdecimal() and len(row[0]) < 10 for row in found):
        raise OutputError(f"{path} is there, and cones2 did not write it. Move it away, or choose another folder.")
    rows: list[tuple[str, ...]] = []

    def write_curves() -> None:
        write_atomically(path, "".join(f"{','.join(row)}\n" for row in (COLUMNS, *rows)).encode())

    def follow() -> Generator[PreviewedStep, None, None]:
        with closing(steps):
            try:
                for step in steps:
                    rows[:] = rows or [row for row in found if int(row[0]) < step.step]
                    learned = step.learned
                    numbers = (learned.loss, learned.subject_loss, learned.preservation_loss, step.identity)
                    rows.append((str(step.step), *("" if value is None else f"{value:.6g}" for value in numbers)))
                    for number, image in enumerate(step.images):
                        content = io.BytesIO()
                        image.save(content, "PNG")
                        write_atomically(folder / f"{step.step:04}-{number}.png", content.getvalue())
                    if step.images:
                        write_curves()
                    yield step
            finally:
                if rows:
                    write_curves()

    return follow()
