"""What commands cost each other: `python benchmarks/side_by_side.py` draws mini's pictures alone, and twice at once.

Idle threads of OpenMP spin for a while, so that two commands with a thread for each core take each other's time. Each
row is one setting of the environment; rounds of all settings follow each other, and medians are printed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS: dict[str, dict[str, str]] = {
    "nothing": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}


def draw(folder: Path, commands: int, changes: dict[str, str]) -> float:
    """Run so many commands at once; return the seconds until the last has ended."""
    command = [sys.executable, "-m", "cones2", "compose", "a dog", "--count", "4", "--quiet", "--replace"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | changes
    began = time.monotonic()
    running = [
        subprocess.Popen([*command, "--out", str(folder / str(number))], env=environment, stdout=subprocess.DEVNULL)
        for number in range(commands)
    ]
    codes = [each.wait() for each in running]
    if any(codes):
        sys.exit(f"a command failed: {codes}")
    return time.monotonic() - began


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    taken: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(asked.rounds):
            for name, changes in SETTINGS.items():
                for commands in (1, 2):
                    taken.setdefault((name, commands), []).append(draw(Path(folder), commands, changes))
    print(f"{os.cpu_count()} processors, medians of {asked.rounds}, seconds until all have ended")
    print("| set | one command | two at once |\n| --- | ---: | ---: |")
    for name in SETTINGS:
        print(f"| {name} | {statistics.median(taken[name, 1]):.1f} | {statistics.median(taken[name, 2]):.1f} |")


if __name__ == "__main__":
    main()
