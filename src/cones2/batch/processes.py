"""Workers as processes of this machine, each with its share of the threads and a GPU where there are any."""

import collections
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from typing import Any

from cones2.batch.engine import Task
from cones2.batch.lease import Event
from cones2.batch.worker import Spec
from cones2.shared import processors

_START = "from cones2.batch.worker import main; main()"
_PATIENCE = 5.0
"""Seconds that a worker has to end by itself."""
_LINES = 20
_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


class Processes:
    """Workers as processes; see `cones2.batch.engine.Crew`."""

    def __init__(self, count: int, spec: Spec) -> None:
        self.workers = tuple(f"worker {number}" for number in range(1, count + 1))
        self._spec = {**spec, "threads": share_of_threads(count)}
        self._gpus = visible_gpus()
        self._processes: dict[str, Any] = {}
        self._listeners: dict[str, threading.Thread] = {}
        self._heard: queue.Queue[tuple[str, Event]] = queue.Queue()

    def start(self, worker: str) -> None:
        """See `Crew`."""
        threads = str(self._spec["threads"])
        environment = {**os.environ, **dict.fromkeys(_LIMITS, threads)}
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[self.workers.index(worker) % len(self._gpus)]
        options: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is for whoever began it
        if os.name == "nt":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}  # type: ignore[attr-defined,unused-ignore]
        process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
            env=environment,
            **options,
        )
        self._processes[worker] = process
        self._listeners[worker] = threading.Thread(target=self._listen, args=(worker, process), daemon=True)
        self._listeners[worker].start()
        self.give(worker, self._spec)

    def give(self, worker: str, task: Task) -> None:
        """See `Crew`."""
        pipe = self._processes[worker].stdin
        with contextlib.suppress(OSError, ValueError):  # it ended: that is heard
            print(json.dumps(task), file=pipe, flush=True)

    def hear(self, timeout: float) -> tuple[str, Event] | None:
        """See `Crew`."""
        try:
            return self._heard.get(timeout=timeout)
        except queue.Empty:
            return None

    def drain(self) -> None:
        """See `Crew`."""
        for worker in self._processes:
            self.give(worker, {"stop": True})

    def close(self) -> None:
        """See `Crew`."""
        for process in self._processes.values():
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self._processes.values():
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        for listener in self._listeners.values():
            listener.join()
        self._processes.clear()

    @property
    def pids(self) -> dict[str, int]:
        """The process of each worker."""
        return {worker: process.pid for worker, process in self._processes.items()}

    def _listen(self, worker: str, process: Any) -> None:
        """Pass on what a worker tells until it ends, and then how."""
        last: collections.deque[str] = collections.deque(maxlen=_LINES)
        reader = threading.Thread(target=lambda: last.extend(process.stderr), daemon=True)
        reader.start()
        gave_up = False
        for line in process.stdout:
            with contextlib.suppress(ValueError):  # cut off in the middle
                event = json.loads(line)
                gave_up |= event["event"] == "gave up"
                self._heard.put((worker, event))
        code = process.wait()
        reader.join(_PATIENCE)
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):  # what it was sent and did not read
                pipe.close()
        if not gave_up:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            said = next((line.strip() for line in reversed(last) if line.strip()), "")
            self._heard.put((worker, {"event": "died", "why": f"its worker {how}{said and f': {said[:500]}'}."}))


def share_of_threads(count: int) -> int:
    """Return how many threads each of so many workers gets: one at least, and no more than the user has asked for.

    Idle ones of too many would spin. What a container may use of its processors' time, no system tells.
    """
    asked = [os.environ.get(name, "").partition(",")[0] for name in _LIMITS]
    return max(1, min([processors() // count, *(int(text) for text in asked if text.isdecimal())]))


def visible_gpus() -> list[str]:
    """Return the names of the CUDA devices that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
