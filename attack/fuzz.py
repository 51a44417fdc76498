"""Feeds damaged and hostile files to everything that reads files: `python attack/fuzz.py --inputs 20000`.

Each input has to be refused by an error of ours, or to give a sound object: within 5 seconds of computing and 500 MB,
and with nothing executed, sent or written meanwhile. An input depends on `--seed`, its loader and its number alone, so
`--only LOADER --first N --inputs 1` repeats it. What is wrong is kept in `--keep`.
"""

import argparse
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from canary import Canary
from cones2.errors import Cones2Error
from loaders import Loader, loaders, silence

SECONDS, MEGABYTES = 5.0, 500
_LARGEST = 2**25  # bytes of an input
_HUNG = 60.0  # seconds by the clock, on a machine that may be busy
_WORST = 6 * 2**30  # bytes beyond what was there: the machine's other work must live


@dataclass
class Tally:
    """What became of one loader's inputs."""

    inputs: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    memory: float = 0.0
    wrong: list[dict[str, Any]] = field(default_factory=list)


def mutant(loader: Loader, seed: int, number: int) -> bytes:
    """Return the input of a number, the first ones sound, none much larger than what its loader takes."""
    if number < len(loader.sound):
        return loader.sound[number]
    draw = random.Random(f"{seed}/{loader.name}/{number}")
    content = draw.choice(loader.sound)
    try:
        return draw.choice(loader.changes)(content, draw)[:_LARGEST]
    except (RecursionError, MemoryError):  # it would change what an earlier change had nested too deep, or grown
        return content


def attack(loader: Loader, seed: int, numbers: range, keep: Path) -> Tally:
    """Feed inputs to a loader in a process of its own, which is begun anew after one that it does not survive."""
    tally, board = Tally(), mmap.mmap(-1, 4096)
    first = numbers.start
    while first < numbers.stop:
        board[:16] = struct.pack("<qd", first, time.monotonic())
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _feed(loader, seed, range(first, numbers.stop), board, writing)
        os.close(writing)
        status, told = _watch(child, reading, board)
        _take(tally, told)
        first = struct.unpack("<q", board[:8])[0] + 1
        if status:
            tally.inputs += 1
            ended = "took too long" if status == signal.SIGKILL else f"ended the process with status {status}"
            tally.wrong.append({"number": first - 1, "what": ended})
    for each in tally.wrong:
        keep.mkdir(parents=True, exist_ok=True)
        name = f"{loader.name.replace('/', '-')}-{seed}-{each['number']}"
        (keep / name).write_bytes(mutant(loader, seed, each["number"]))
    return tally


def _watch(child: int, reading: int, board: mmap.mmap) -> tuple[int, bytes]:
    told = b""
    os.set_blocking(reading, False)
    while True:
        with_pid, status = os.waitpid(child, os.WNOHANG)
        try:
            while part := os.read(reading, 65536):
                told += part
        except BlockingIOError:
            pass
        if with_pid:
            os.close(reading)
            return status, told
        if time.monotonic() - struct.unpack("<d", board[8:16])[0] > _HUNG:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)


def _take(tally: Tally, told: bytes) -> None:
    for line in told.splitlines():
        with_outcome = json.loads(line)
        tally.inputs += with_outcome["inputs"]
        tally.counts.update(with_outcome["counts"])
        tally.slowest = max(tally.slowest, with_outcome["slowest"])
        tally.memory = max(tally.memory, with_outcome["memory"])
        tally.wrong += with_outcome["wrong"]


def _feed(loader: Loader, seed: int, numbers: range, board: mmap.mmap, writing: int) -> None:
    """Run in the child: load one input after the other, and tell what came of every hundred."""
    try:
        silence()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        canary = Canary()
        with _bounded_memory():
            for number in range(len(loader.sound)):  # imports what it needs
                loader.file.write_bytes(loader.sound[number])
                with suppress(Cones2Error):  # of a format that is known, and not taken
                    loader.load()
            tally = Tally()
            for number in numbers:
                board[:16] = struct.pack("<qd", number, time.monotonic())
                content = mutant(loader, seed, number)
                before = _peak()  # making an input may take more than reading it
                _load(loader, content, number, canary, tally)
                tally.memory = max(tally.memory, (_peak() - before) / 2**20)
                if tally.memory > MEGABYTES and not any(each["what"] == "memory" for each in tally.wrong):
                    tally.wrong.append({"number": number, "what": "memory", "megabytes": tally.memory})
                if tally.inputs == 100 or number == numbers[-1]:
                    _tell(writing, tally)
                    tally = Tally()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.__stdout__)
        sys.__stdout__.flush()  # type: ignore[union-attr]
        os._exit(99)


def _tell(writing: int, tally: Tally) -> None:
    content = json.dumps(vars(tally)).encode() + b"\n"
    while content:
        content = content[os.write(writing, content) :]


@contextmanager
def _bounded_memory() -> Iterator[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    if pages:
        limit = pages * resource.getpagesize() + _WORST
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    yield


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _load(loader: Loader, content: bytes, number: int, canary: Canary, tally: Tally) -> None:
    loader.file.write_bytes(content)
    wrong: dict[str, Any] = {}
    began = time.process_time()
    with canary.watching() as seen:
        try:
            loader.load()
            outcome = "accepted"
        except Cones2Error as error:
            outcome = "refused"
            if "\n" in str(error).strip() or len(str(error)) > 1010:
                wrong = {"what": "message", "message": str(error)[:300]}
        except BaseException as error:
            outcome = "wrong"
            wrong = {"what": f"{type(error).__name__}: {error}"[:300], "traceback": traceback.format_exc()[-3000:]}
    seconds = time.process_time() - began
    tally.inputs += 1
    tally.counts[outcome] += 1
    tally.slowest = max(tally.slowest, seconds)
    if seconds > SECONDS:
        wrong = {"what": "time", "seconds": seconds}
    if seen:
        wrong = {"what": "executed", "events": seen[:5]}
    if wrong:
        tally.wrong.append({"number": number, **wrong})


def main() -> None:
    """Run, print the table, and end with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000, help="of all loaders together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="loaders whose name holds this")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each loader")
    parser.add_argument(
        "--keep", type=Path, default=Path(tempfile.gettempdir()) / "cones2-fuzz", help="for what is wrong"
    )
    asked = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        silence()
        chosen = [loader for loader in loaders(Path(folder)) if asked.only in loader.name]
        total = sum(loader.share for loader in chosen)
        print("| loader | inputs | refused | accepted | slowest, s | memory, MB | wrong |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        every = Tally()
        for loader in chosen:
            count = max(1, round(asked.inputs * loader.share / total))
            tally = attack(loader, asked.seed, range(asked.first, asked.first + count), asked.keep)
            loader.file.write_bytes(loader.sound[0])
            print(_row(loader.name, tally), flush=True)
            _add(every, tally)
            for each in tally.wrong[:20]:
                print(
                    f"  {loader.name}, seed {asked.seed}, number {each['number']}: {json.dumps(each)}", file=sys.stderr
                )
            failed |= bool(tally.wrong)
        print(_row("all", every))
    sys.exit(failed)


def _row(name: str, tally: Tally) -> str:
    counts = f"{tally.inputs:,} | {tally.counts['refused']:,} | {tally.counts['accepted']:,}"
    return f"| {name} | {counts} | {tally.slowest:.2f} | {tally.memory:.0f} | {len(tally.wrong)} |"


def _add(every: Tally, tally: Tally) -> None:
    every.inputs += tally.inputs
    every.counts.update(tally.counts)
    every.slowest, every.memory = max(every.slowest, tally.slowest), max(every.memory, tally.memory)
    every.wrong += tally.wrong


if __name__ == "__main__":
    main()
