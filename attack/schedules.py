"""Ten thousand schedules of the batch engine over a storage that fails, with workers and engines that are killed.

`python attack/schedules.py [--count N] [--first SEED]`; a failure names its seed. Nothing here takes time on purpose.
"""

import argparse
import random
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_batch_driver import check_schedule, small_plan


def main() -> None:
    """Run schedules, each of another seed, and say how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of workers that can't go on
    plan, began = small_plan(), time.monotonic()
    for seed in range(options.first, options.first + options.count):
        luck = random.Random(seed)
        faults = {"before": luck.choice([0.0, 0.05, 0.2, 0.4]), "after": luck.choice([0.0, 0.05, 0.2, 0.4])}
        try:
            check_schedule(plan, seed, faults, luck.randrange(1, 5))
        except BaseException:
            print(f"seed {seed} fails: {faults}", file=sys.stderr)
            raise
    print(f"{options.count:,} schedules in {time.monotonic() - began:.0f} s: nothing lost, nothing doubled.")


if __name__ == "__main__":
    main()
