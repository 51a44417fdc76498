"""Hands for workers in processes of their own: they sleep, fail, or end their process, as a case's prompt says."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cones2.batch.store import Store
from faulty_store import StillHands, content_of

SECONDS = "CONES2_TEST_SECONDS"


class SleepingHands(StillHands):
    """Takes a moment for each picture; "a kill" ends the process, and "a fail" raises."""

    def draw(self, made: dict[str, Any], path: Path) -> None:
        time.sleep(float(os.environ.get(SECONDS, "0.01")))
        if "kill" in made["prompt"]:
            os.kill(os.getpid(), 9)
        if "fail" in made["prompt"]:
            raise ValueError("it was asked to fail")
        path.write_bytes(content_of(made))


def sleeping(_spec: Mapping[str, Any], _store: Store) -> SleepingHands:
    """Make them; the name that a worker's spec gives."""
    return SleepingHands()


def sleeping_spec(out: Path) -> dict[str, Any]:
    """What a worker with these hands needs to know, but for its threads."""
    return {"out": str(out), "hands": "batch_hands:sleeping", "model": {}, "device": None, "save_memory": False}
