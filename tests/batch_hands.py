"""Hands for workers in processes of their own: they sleep, fail, or end their process, as a case's prompt says."""

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cones2.batch.store import Store
from faulty_store import StillHands, content_of

SECONDS = "CONES2_TEST_SECONDS"
LARGEST = "CONES2_TEST_LARGEST"
BEGUN = "CONES2_TEST_BEGUN"


class SleepingHands(StillHands):
    """Takes a moment for each picture; "a kill" ends the process, and "a fail" raises."""

    def draw(self, made: dict[str, Any], path: Path) -> None:
        if begun := os.environ.get(BEGUN):
            with Path(begun).open("ab", buffering=0) as file:
                file.write(b"%d\n" % made["seed"])
        time.sleep(float(os.environ.get(SECONDS, "0.01")))
        if "kill" in made["prompt"]:
            os.kill(os.getpid(), 9)
        if "fail" in made["prompt"]:
            raise ValueError("it was asked to fail")
        path.write_bytes(content_of(made))


def sleeping(_spec: Mapping[str, Any], _store: Store) -> SleepingHands:
    """Make them; the name that a worker's spec gives. No file of the process may be larger than it is told to be."""
    if largest := os.environ.get(LARGEST):
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails then, as on a disk that is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
    return SleepingHands()


def telling(spec: Mapping[str, Any], store: Store) -> SleepingHands:
    """Make them, and write down what their process was given of this machine."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    told = {**{name: os.environ.get(name) for name in names}, "threads": spec["threads"]}
    store.write(f"told/{os.getpid()}.json", json.dumps(told).encode())
    return SleepingHands()


def sleeping_spec(out: Path) -> dict[str, Any]:
    """What a worker with these hands needs to know, but for its threads."""
    return {"out": str(out), "hands": "batch_hands:sleeping", "model": {}, "device": None, "save_memory": False}
