"""Lets many processes use one library at once: `python attack/crowd.py --processes 8 --rounds 20`.

In each round every process adds a subject of its own, renames it, lists the library, takes part in a race for one name
with all others, and removes every second of its own. Afterwards exactly the subjects are there that should be, each
sound and with its own content; one process has won each race, and the others were told so in one line.
"""

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from children import Ended, library_call, read_end, start
from cones2.cli import app
from cones2.library import Library
from cones2.pipeline import Cones2Pipeline
from cones2.residual import Residual
from loaders import a_residual, silence, small_model
from stage import snapshot

_LEFT = re.compile(r"\.lock|\w+\.safetensors")


def call(*arguments: object) -> tuple[int, str]:
    """Run a command of the command line in this process; return its exit code and what it printed."""
    printed = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            app([str(argument) for argument in arguments], prog_name="cones2")
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    return code, printed.getvalue()


def member(number: int, rounds: int, folder: Path, source: Path) -> Callable[[], None]:
    """Return what one process does; it prints `won N` for each race, and whatever goes wrong."""

    def take_part() -> None:
        shelf = ("--library", folder)

        def must(*arguments: object) -> None:
            code, printed = call("subjects", *arguments, *shelf)
            if code:
                print(f"wrong: {arguments} ended with {code}: {printed[-500:]}")

        for turn in range(rounds):
            must("add", f"own_{number}_{turn}", source)
            must("rename", f"own_{number}_{turn}", f"kept_{number}_{turn}")
            must("list", "--json")
            code, printed = call("subjects", "add", f"race_{turn}", source, *shelf)
            if code == 0:
                print(f"won {turn}")
            elif code != 1 or "has a subject" not in printed:
                print(f"wrong: a lost race ended with {code}: {printed[-500:]}")
            if turn % 2:
                must("remove", f"kept_{number}_{turn}", "--yes")

    return take_part


def wrong_in(ended: list[Ended], processes: int, rounds: int, library: Library, sources: list[str]) -> list[str]:
    """Return what is wrong after all have ended."""
    found = [line for each in ended for line in each.out.splitlines() if line.startswith("wrong")]
    found += [f"a process ended with {each.code}: {each.err[-500:]}" for each in ended if each.code]
    races = [line for each in ended for line in each.out.splitlines() if line.startswith("won")]
    expected = {f"kept_{number}_{turn}" for number in range(processes) for turn in range(0, rounds, 2)}
    expected |= {f"race_{turn}" for turn in range(rounds)}
    if sorted(races) != sorted(f"won {turn}" for turn in range(rounds)):
        found.append(f"each race should have one winner, got {sorted(races)}")
    if set(library.names()) != expected:
        found.append(f"lost or left: {set(library.names()) ^ expected}")
    for entry in library.entries():
        owner = re.fullmatch(r"kept_(\d+)_\d+", entry.name)
        if entry.problem or (owner and entry.describe()["sha256"] != sources[int(owner[1])]):
            found.append(f"{entry.name} is broken or another's: {entry.problem}")
    found += [f"left behind: {path}" for path in snapshot(library.folder) if not _LEFT.fullmatch(path)]
    return found


def main() -> None:
    """Run, print one line, and end with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=20)
    asked = parser.parse_args()
    silence()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pipe = Cones2Pipeline.from_pretrained(small_model(folder / "model"), device="cpu")
        hashes, children = [], []
        for number in range(asked.processes):
            residual: Residual = a_residual(pipe, 0.1 * (number + 1))
            source = folder / f"source{number}.safetensors"
            residual.save(source)
            hashes.append(residual.sha256)
        for number in range(asked.processes):
            work = member(number, asked.rounds, folder / "library", folder / f"source{number}.safetensors")
            (folder / f"told{number}").mkdir()
            children.append(start(library_call(work), folder / f"told{number}"))
        ended = [read_end(folder / f"told{n}", os.waitpid(child, 0)[1]) for n, child in enumerate(children)]
        wrong = wrong_in(ended, asked.processes, asked.rounds, Library(folder / "library"), hashes)
    changes = asked.processes * (asked.rounds * 3 + asked.rounds // 2)
    print(f"{asked.processes} processes, {changes:,} changes of one library: {len(wrong)} wrong")
    print(*wrong[:20], sep="\n", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
