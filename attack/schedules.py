"""Ten thousand schedules of the batch engine in a world where everything fails: `python attack/schedules.py`.

Each is drawn at random: engines and workers go on, die, sleep and wake up at any point, the storage fails in every way
that it may, and time passes; then all goes on without faults. A failure names its seed (`--first SEED --count 1`).
Ctrl-C ends it with what happened so far.
"""

import argparse
import collections
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from batch_world import EVER, FAULTS, POINTS, Setting, World, small_plan

ACTIONS = {"run": 20, "work": 24, "die": 8, "asleep": 6, "arm": 24, "wake": 5, "drive": 5, "sleep": 4, "begin": 4} | {
    "drop": 2,
    "drain": 1,
}
"""What happens, and how often."""


def schedule(world: World, luck: random.Random, length: int) -> None:
    """Let so much happen, then let all come to its end."""
    world.begin(luck.randrange(3), luck.randrange(1, 4))
    for _ in range(length):
        (action,) = luck.choices([*ACTIONS], [*ACTIONS.values()])
        match action:
            case "run":
                world.run(luck.randrange(1, 5))
            case "work" | "die" | "asleep":
                world.work(luck.randrange(6), luck.choice(POINTS), luck.randrange(1, 40), action)
            case "arm":
                world.arm(luck.randrange(len(FAULTS)))
            case "wake" | "drop" | "drain":
                getattr(world, action)(luck.randrange(2))
            case "drive":
                world.drive(luck.randrange(2), luck.randrange(1, 6))
            case "sleep":
                world.sleep(luck.choice([11.0, 35.0, 130.0, 1000.0]))
            case "begin":
                world.begin(luck.randrange(3), luck.randrange(1, 4))
        world.check()
    world.calm()


def ailments(luck: random.Random) -> dict[Any, tuple[str, int]]:
    """Choose what fails, or ends its worker, and how often before it heals."""
    keys = luck.sample([*range(11), "rex", "luna"], luck.randrange(5))
    return {key: (luck.choice(["fails", "kills"]), luck.choice([1, 2, 3, 4, EVER])) for key in keys}


def tell(done: int, happened: "collections.Counter[str]", seconds: float) -> None:
    """Say how often each thing has happened."""
    for what, times in sorted(happened.items()):
        print(f"{times:9,}  {what}")
    print(f"{done:,} schedules in {seconds:.0f} s: nothing lost, nothing doubled.", flush=True)


def main() -> None:
    """Run schedules, each of another seed, and say what happened in them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of workers that can't go on
    setting, began = Setting(small_plan()), time.monotonic()
    happened = collections.Counter[str]()
    done = 0
    for seed in range(options.first, options.first + options.count):
        luck = random.Random(seed)
        world = World(setting, ailments(luck))
        try:
            schedule(world, luck, luck.randrange(60))
        except KeyboardInterrupt:
            break
        except BaseException:
            print(f"seed {seed} fails", file=sys.stderr)
            raise
        finally:
            world.close()
        done += 1
        happened += world.happened
        if done % 1000 == 0:
            tell(done, happened, time.monotonic() - began)
    if done % 1000:
        tell(done, happened, time.monotonic() - began)


if __name__ == "__main__":
    main()
