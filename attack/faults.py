"""Lets each file operation of each command fail: `python attack/faults.py --cases 300`.

A command first runs undisturbed, and its operations are counted. Then it runs again from the same start, and one
operation fails: by itself (EIO, EACCES, EROFS), with all that write from there on (a full disk, ENOSPC), or by reading
or writing only a half; or the command is killed there. Afterwards it must have succeeded, or have failed with one line;
every file must be the old one or the new one; there may be no other file than the documentation tells; and the command
must succeed when it is run again. Cases are drawn by `--seed` from all that there are.
"""

import argparse
import errno
import itertools
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from children import FAIL, FAIL_ON, KILL_AMID, KILL_BEFORE, SHORT, Ended, Fault, begin_with_shim, run
from cones2.pipeline import Cones2Pipeline
from loaders import silence, small_model
from stage import Command, commands, make_stage, snapshot

_READS, _ALL = ("EIO", "EACCES"), ("EIO", "EACCES", "EROFS")
_CODES: dict[str, tuple[str, ...]] = {
    "read": ("EIO",),
    "close": ("EIO",),
    "lock": ("EIO",),
    "FSYNC": ("EIO",),
    "WRITE": ("EIO",),
}
_CODES |= {"open": _READS, "stat": _READS, "list": _READS}
# What may stay besides old and new files: locks, what an interrupted learning goes on from, and of a batch what holds a
# random name or a time, and what it goes on from.
_KEPT = re.compile(
    r"(library/)?\.lock|.*\.learning/(lock|step-\d+\.\w+)|state/(lock|step-\d+\.\w+)|old/\w+-previews/.*|"
    r"many/((data|commit|checkpoints|engines|\.spool)/.*|subjects/\w+\.json|probe-\w+)"
)
_REPORT = re.compile(r"\d+ pictures? sound, ")
"""How `batch verify` begins: where it can't read a picture, it lists that, and ends with 1."""
_PART = re.compile(r"(.*/)?\.\w+\.part")


class Case(NamedTuple):
    """One fault: at which operation, what happens, and what that operation does."""

    at: int
    mode: int
    code: str
    kind: str
    name: str


class Undisturbed(NamedTuple):
    """What a command does when nothing fails."""

    before: dict[str, str]
    after: dict[str, str]
    cases: list[Case]


def undisturbed(command: Command, stage: Path, work: Path) -> Undisturbed:
    """Run a command without faults, and return what can be done to it."""
    folder = fresh(stage, work)
    ended = run(command.work(folder), Fault(folder))
    if ended.code:
        sys.exit(f"{command.name} fails by itself: {ended.err or ended.out}")
    cases = []
    for number, (kind, name) in enumerate(ended.operations, start=1):
        cases += [Case(number, FAIL, code, kind, name) for code in _CODES.get(kind, _ALL)]
        if kind in ("WRITE", "CREATE", "MKDIR", "RENAME", "FSYNC"):
            cases.append(Case(number, FAIL_ON, "ENOSPC", kind, name))
        if kind.isupper():
            cases.append(Case(number, KILL_BEFORE, "kill", kind, name))
        if kind == "WRITE":
            cases.append(Case(number, KILL_AMID, "kill", kind, name))
        if kind in ("WRITE", "read"):
            cases.append(Case(number, SHORT, "short", kind, name))
    return Undisturbed(snapshot(stage), snapshot(folder), cases)


def fresh(stage: Path, work: Path) -> Path:
    """Return a new copy of the stage, always of one name, since names are printed and hashed."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(stage, work)
    return work


def harm(command: Command, case: Case, usual: Undisturbed, stage: Path, work: Path) -> tuple[str, list[str]]:
    """Run a command with a fault; return how it ended, and what is wrong with that."""
    folder = fresh(stage, work)
    ended = run(command.work(folder), Fault(folder, case.mode, case.at, getattr(errno, case.code, 0)))
    wrong = [*(() if case.code == "kill" else _wrong_end(ended)), *_wrong_files(ended, usual, snapshot(folder), case)]
    rerun = run((command.again or command.work)(folder))
    if rerun.code and not _holds(snapshot(folder), usual):
        rerun = run(command.work(folder)) if ended.code == 0 else rerun
    if rerun.code and not _holds(snapshot(folder), usual):
        wrong.append(f"running it again ends with {rerun.code}: {(rerun.err or rerun.out)[-300:]}")
    return {0: "succeeded", -signal.SIGKILL: "killed"}.get(ended.code, "one line"), wrong


def _wrong_end(ended: Ended) -> Iterator[str]:
    if ended.code not in (0, 1):
        yield f"exit code {ended.code}: {ended.err[-1500:]}"
    elif "Traceback" in ended.err + ended.out:
        yield f"a traceback: {ended.err[-600:]}"
    elif ended.code and not _REPORT.match(ended.out):
        errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        if len(errors) != 1:
            yield f"no single line of error: {ended.err[-600:]}{ended.out[-300:]}"


def _wrong_files(ended: Ended, usual: Undisturbed, found: dict[str, str], case: Case) -> Iterator[str]:
    for path, content in found.items():
        if content in (usual.before.get(path), usual.after.get(path)) or _KEPT.fullmatch(path):
            continue
        if _PART.fullmatch(path) and "kill" in (case.code, case.kind.replace("UNLINK", "kill")):
            continue  # nobody could delete it
        yield f"left behind or changed: {path}"
    for path in usual.before:
        if path not in found and path in usual.after:
            yield f"lost: {path}"
    if ended.code == 0 and not _holds(found, usual):
        missing = [
            path for path, content in usual.after.items() if found.get(path) != content and not _KEPT.fullmatch(path)
        ]
        yield f"success without {missing}"


def _holds(found: dict[str, str], usual: Undisturbed) -> bool:
    """Whether all is there that an undisturbed run leaves."""
    return all(found.get(path) == content or _KEPT.fullmatch(path) for path, content in usual.after.items())


def main() -> None:
    """Run the cases, print a table, and end with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300, help="of all commands together; 0 is all that there are")
    parser.add_argument("--each", action="store_true", help="instead, one of the cases of each operation")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", default="", help="commands whose name begins so, or with one of these, joined by a vertical bar"
    )
    parser.add_argument("--kind", default="", help="only these, such as ENOSPC or kill")
    parser.add_argument("--at", type=int, help="the operation, to repeat a case of one command")
    asked = parser.parse_args()
    begin_with_shim()
    silence()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        model, work = small_model(Path(folder) / "model"), Path(folder) / "work"
        pipe = Cones2Pipeline.from_pretrained(model, device="cpu")
        pipe.set_progress_bar_config(disable=True)
        stage = make_stage(Path(folder) / "stage", pipe)
        chosen = [each for each in commands(model, pipe) if each.name.startswith(tuple(asked.only.split("|")))]
        print("| command | operations | faults | succeeded all the same | failed in one line | killed | wrong |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        every: Counter[str] = Counter()
        for command in chosen:
            counts = _attack(command, asked, len(chosen), stage, work)
            _print_row(command.name, counts)
            every.update(counts)
            failed |= bool(counts["wrong"])
        _print_row("all", every)
    sys.exit(failed)


def _attack(command: Command, asked: argparse.Namespace, share: int, stage: Path, work: Path) -> Counter[str]:
    usual = undisturbed(command, stage, work)
    drawn = [case for case in usual.cases if asked.kind in ("", case.code)]
    draw = random.Random(f"{asked.seed}/{command.name}")
    if asked.at:
        drawn = [case for case in drawn if case.at == asked.at]
    elif asked.each:
        drawn = [draw.choice([*cases]) for _, cases in itertools.groupby(drawn, lambda case: case.at)]
    elif asked.cases:
        drawn = draw.sample(drawn, min(len(drawn), max(1, asked.cases // share)))
    counts = Counter({"operations": len({case.at for case in usual.cases})})
    for case in drawn:
        outcome, wrong = harm(command, case, usual, stage, work)
        counts.update(["faults", "wrong" if wrong else outcome])
        if wrong:
            told = f"{command.name}: {case.kind} {case.name} (operation {case.at}) {case.code}"
            print(told, *wrong, sep="\n  ", file=sys.stderr, flush=True)
    return counts


def _print_row(name: str, counts: Counter[str]) -> None:
    columns = ("operations", "faults", "succeeded", "one line", "killed", "wrong")
    print(f"| {name} |", " | ".join(f"{counts[column]:,}" for column in columns), "|", flush=True)


if __name__ == "__main__":
    main()
