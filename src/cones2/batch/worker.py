"""A worker, and how it lives in a process of its own: tasks come in as lines of JSON, events go out as such."""

import importlib
import importlib.metadata
import json
import os
import platform
import queue
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from cones2.batch.engine import Task, do_task, spool_of
from cones2.batch.lease import Bench, Event, Hands
from cones2.batch.store import Store, open_store, without_secrets
from cones2.errors import Cones2Error, Cones2Warning, ModelError, OutputError

Spec = dict[str, Any]
"""What a worker needs to know, as JSON values: `out`, `hands`, `model`, `device`, `threads`, `save_memory`; and, to be
compared with what is so where it works, `engine`, whose note stands in `out`, and `version`, of cones2."""

MODEL = "cones2.batch.worker:model_hands"
"""The function that makes a worker's hands of its spec and the storage."""


def model_hands(spec: Mapping[str, Any], store: Store) -> Hands:
    """Open the model of a spec; Cones2Error where it can't be opened."""
    import torch

    from cones2.batch.work import ModelHands

    if spec["threads"] is not None:
        torch.set_num_threads(spec["threads"])
    return ModelHands(spec["model"], store, device=spec["device"], save_memory=spec["save_memory"])


def make_hands(spec: Mapping[str, Any], store: Store) -> Hands:
    """Make the hands that a spec names."""
    module, _, name = spec["hands"].partition(":")
    made: Hands = getattr(importlib.import_module(module), name)(spec, store)
    return made


def _check_place(spec: Spec, store: Store) -> None:
    """Refuse to work where what is done would count for nothing: it would be missing, or have other ids."""
    own, asked = importlib.metadata.version("cones2"), spec.get("version")
    if asked not in (None, own):
        raise ModelError(f"cones2 on {platform.node()} is {own}, the batch was planned by {asked}: install that there.")
    if "engine" in spec and store.read(f"engines/{spec['engine']}.json", 0, 1) is None:
        place = without_secrets(spec["out"])
        advice = "choose a folder that all machines share, or a URL such as s3://bucket/name"
        raise OutputError(f"{place} on {platform.node()} is another place than the engine's of that name: {advice}.")


class Worker:
    """What does the tasks of a batch, alone in its process, whose warnings it keeps for whoever gives them."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._stopped = threading.Event()
        self._warned: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._hands: Hands | None = None

    def open(self) -> Iterator[Event]:
        """Open the model, and tell that it is ready, or why it can't be."""

        def keep(message: Warning | str, *_args: object, **_options: object) -> None:
            self._warned.put(str(message))

        warnings.showwarning = keep
        warnings.simplefilter("ignore")  # other libraries' remarks
        warnings.simplefilter("always", Cones2Warning)
        try:
            store = open_store(self._spec["out"])
            _check_place(self._spec, store)
            self._bench = Bench(store, spool_of(store, self._spec["out"]), self._stopped.is_set)
            self._hands = make_hands(self._spec, store)
        except Cones2Error as error:
            yield {"event": "gave up", "why": str(error)}
        else:
            yield {"event": "ready"}

    def do(self, task: Task) -> Iterator[Event]:
        """Do a task, and tell of it; in the end, if it can't be done for no case's fault, that."""
        assert self._hands is not None  # it told that it is ready
        try:
            for event in do_task(self._bench, self._hands, task):
                while not self._warned.empty():
                    yield {"event": "warning", "text": self._warned.get()}
                yield event
        except Cones2Error as error:
            yield {"event": "gave up", "why": str(error)}

    def stop(self) -> None:
        """End a learning at the end of its running step."""
        self._stopped.set()


def main() -> None:
    """Work for whoever began this process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever began it decides
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no event
    worker, tasks = Worker(json.loads(sys.stdin.readline())), queue.SimpleQueue[Task]()
    threading.Thread(target=_listen, args=(sys.stdin, tasks, worker), daemon=True).start()
    events = worker.open()
    while True:
        for event in events:
            print(json.dumps(event), file=told, flush=True)
            if event["event"] == "gave up":
                return
        events = worker.do(tasks.get())


def _listen(lines: TextIO, tasks: "queue.SimpleQueue[Task]", worker: Worker) -> None:
    for line in lines:
        task = json.loads(line)
        if "stop" in task:
            worker.stop()
        else:
            tasks.put(task)
    os._exit(0)  # whoever began this has ended: what is done is kept, and what is not is done again
