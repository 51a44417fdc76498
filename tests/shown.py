"""Runs what a page shows, block by block, in the working folder: `python tests/shown.py PAGE.md` or `SCRIPT.py`."""

import re
import runpy
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, its text, and the line above that."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    content = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(content):
        yield Block(match[1], match[2], content[: match.start()].count("\n") + 1)


def commands(block: Block) -> Iterator[list[str]]:
    """The lines after a `$`, joined where they end in a backslash."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield shlex.split(line.removeprefix("$ "))


def run_block(block: Block, page: Path, names: dict[str, Any]) -> None:
    """Run Python, with `names` from the blocks before, and commands; read layouts, recipes and jobs that are shown."""
    from command import run
    from cones2.batch.job import read_job
    from cones2.evaluation.protocol import read_protocol
    from cones2.layout import Layout
    from cones2.learning.recipe import Recipe

    if block.language == "python":
        exec(compile("\n" * block.line + block.text, page, "exec"), names)
    for program, *arguments in commands(block) if block.language == "console" else ():
        assert program == "cones2", "only cones2's own commands are run"
        run(*arguments)
    shown = Path(f"shown.{block.language}")
    if block.language in ("json", "toml"):
        shown.write_text(block.text, encoding="utf-8")
    if block.language == "json":
        Layout.load(shown)
    if block.language == "toml":
        readers = {"[[pictures]]": read_job, "[[combinations]]": read_protocol}
        next((read for name, read in readers.items() if name in block.text), Recipe.from_toml)(shown)


def main(page: Path) -> None:
    """Run a page or a script; warnings of ours are errors, since nothing that is shown should need one."""
    from cones2.errors import Cones2Warning

    warnings.simplefilter("error", Cones2Warning)
    if page.suffix == ".py":
        runpy.run_path(str(page), run_name="__main__")
        return
    names: dict[str, Any] = {}
    for block in blocks(page):
        try:
            run_block(block, page, names)
        except BaseException as error:
            error.add_note(f"{page.name}, the block at line {block.line}:\n{block.text}")
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
