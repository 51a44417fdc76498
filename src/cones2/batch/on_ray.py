"""Workers as actors of a Ray cluster (extra `ray`). Ray only runs them: what failed is counted by the driver.

An actor may be restarted anywhere, so it keeps nothing; Ray's own retries are off, since they would hide a bad node.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from cones2.batch.engine import Task
from cones2.batch.lease import Event
from cones2.batch.worker import Spec, Worker
from cones2.errors import OutputError, SettingsError, first_line

_LOOPBACK = (None, "127.0.0.1", "localhost", "::1")


class Actor:
    """A worker that tells one event whenever it is asked: Ray Client, for clusters elsewhere, has no streams."""

    def __init__(self, spec: Spec) -> None:
        self._worker = Worker(spec)
        self._events: Iterator[Event] = self._worker.open()

    def next(self, task: Task | None = None) -> Event:
        """Return the next event, of a task that is given now, of the running one, or of opening the model."""
        if task is not None:
            self._events = self._worker.do(task)
        return next(self._events)

    def stop(self) -> None:
        """End a learning at the end of its running step."""
        self._worker.stop()


class RayActors:
    """Workers as Ray's actors, each with a GPU where the cluster has any; see `cones2.batch.engine.Crew`.

    Where this process has joined a cluster already, that is used, and left alone in the end.

    Attributes:
        joined: whether it is this that has joined the cluster, or begun it.

    Raises:
        SettingsError: Ray is not installed, there is no such cluster or it has no processors, or it is remote and
            nothing says that it asks for a token.
        OutputError: the connection to the cluster was lost.
    """

    def __init__(self, address: str, count: int | None, spec: Spec) -> None:
        _check_tokens(address)
        try:
            import ray
        except ImportError as error:
            raise SettingsError("ray is not installed: pip install 'cones2[ray]'.") from error
        self.joined = not ray.is_initialized()
        if self.joined:
            _join(ray, address)
        self._ray, self._spec = ray, spec
        self._actors: dict[str, Any] = {}
        self._asked: dict[Any, str] = {}
        with _connection():
            resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU") else "CPU"
        count = count or int(resources.get(kind, 0))
        if not count:
            self.close()
            told = f"the Ray cluster {address!r} has no processors yet"
            raise SettingsError(f"{told}: expected some, or the number of workers that it will have.")
        self.workers = tuple(f"worker {number}" for number in range(1, count + 1))
        self._options: dict[str, Any] = {
            "num_gpus" if kind == "GPU" else "num_cpus": 1,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 2,  # so that it can be told to stop
            "scheduling_strategy": "SPREAD",
        }

    def start(self, worker: str) -> None:
        """See `Crew`."""
        with _connection():
            self._actors[worker] = self._ray.remote(Actor).options(**self._options).remote(self._spec)
        self._ask(worker)

    def give(self, worker: str, task: Task) -> None:
        """See `Crew`."""
        self._ask(worker, task)

    def _ask(self, worker: str, task: Task | None = None) -> None:
        with _connection():
            self._asked[self._actors[worker].next.remote(task)] = worker

    def hear(self, timeout: float) -> tuple[str, Event] | None:
        """See `Crew`."""
        if not self._asked:
            threading.Event().wait(timeout)
            return None
        with _connection():
            told, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=timeout)
            if not told:
                return None
            worker = self._asked.pop(told[0])
            try:
                event: Event = self._ray.get(told[0])
            except self._ray.exceptions.RayError as error:
                return worker, {"event": "died", "why": f"its actor ended: {first_line(error)[:500]}"}
        if event["event"] not in ("ready", "ended", "gave up"):  # after these it waits for a task
            self._ask(worker)
        return worker, event

    def drain(self) -> None:
        """See `Crew`."""
        with _connection():
            for actor in self._actors.values():
                actor.stop.remote()

    def close(self) -> None:
        """See `Crew`."""
        for actor in self._actors.values():
            with contextlib.suppress(ConnectionError):
                self._ray.kill(actor)
        if self.joined:
            with contextlib.suppress(ConnectionError):
                self._ray.shutdown()


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Turn a connection that is lost into an error of ours."""
    try:
        yield
    except ConnectionError as error:
        raise OutputError(f"lost the Ray cluster: {first_line(error)} Run it again to go on.") from error


def _check_tokens(address: str) -> None:
    """Let a cluster of our own ask for a token and listen to this machine alone; refuse a remote one that may not ask.

    Whoever reaches the ports of a cluster without one can run anything on it. Ray reads these when it is imported.
    """
    if address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on any system: stay on the loopback address
        return
    meant = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address  # as Ray reads it first
    try:
        host = None if meant in ("auto", "local") else urlsplit(f"//{meant.rpartition('://')[2]}").hostname
    except ValueError:  # a host that is none
        host = meant
    if host not in _LOOPBACK and os.environ.get("RAY_AUTH_MODE") != "token":
        advice = "set RAY_AUTH_MODE=token here and on its nodes"
        raise SettingsError(f"the cluster {meant} is remote, and nothing says that it asks for a token: {advice}.")


def _join(ray: Any, address: str) -> None:
    """Join a cluster, or begin one of this machine's own."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        advice = "Begin one with 'ray start --head', or ask for 'local'." if address == "auto" else "Check its address."
        raise SettingsError(f"can't join the Ray cluster {address!r}: {first_line(error)} {advice}") from error
