"""What learning takes on the GPU at hand, on a model of real size: `python benchmarks/gpu_memory.py`.

`memory.py` counts the same from the configurations alone.
"""

import argparse
import dataclasses
import itertools
import statistics
import time

import torch

from cones2.learning.recipe import RECIPES
from cones2.photos import load_photos
from ladder import PHOTOS
from random_models import MODELS, open_model


def measure(model: str, *, save_memory: bool, steps: int = 12) -> dict[str, float]:
    """Learn for a few steps by the paper's recipe, the model opened before: its gigabytes, and seconds a step."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    pipe = open_model(model, device="cuda")
    recipe = dataclasses.replace(RECIPES["paper"], steps=steps)
    ends = []
    for _ in pipe.learn_steps(load_photos(PHOTOS), "dog", recipe, save_memory=save_memory):
        torch.cuda.synchronize()
        ends.append(time.perf_counter())
    free, total = torch.cuda.mem_get_info()
    return {
        "GB in tensors, at most": torch.cuda.max_memory_allocated() / 1e9,
        "GB that PyTorch took for them": torch.cuda.max_memory_reserved() / 1e9,
        "GB of the GPU in use": (total - free) / 1e9,
        "seconds a step": statistics.median(after - before for before, after in itertools.pairwise(ends)),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sd2-base", help=MODELS)
    model = parser.parse_args().model
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU: `python benchmarks/memory.py` counts without one.")
    saved, kept = (measure(model, save_memory=yes) for yes in (True, False))
    print(f"| learning on {model}, {torch.cuda.get_device_name()} | as usual | with `--save-memory` |")
    print("| --- | --- | --- |")
    for name in saved:
        print(f"| {name} | {kept[name]:.2f} | {saved[name]:.2f} |")


if __name__ == "__main__":
    main()
