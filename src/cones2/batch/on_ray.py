"""Workers as actors of a Ray cluster (extra `ray`). Ray only runs them: what failed is counted by the driver.

An actor may be restarted anywhere, so it keeps nothing; Ray's own retries are off, since they would hide a bad node.
"""

import os
import threading
from typing import Any

from cones2.batch.engine import Task
from cones2.batch.lease import Event
from cones2.batch.worker import Spec, Worker
from cones2.errors import SettingsError, first_line

_HERE = ("auto", "local")


class RayActors:
    """Workers as Ray's actors, each with a GPU where the cluster has any; see `cones2.batch.engine.Crew`.

    Raises:
        SettingsError: Ray is not installed, there is no such cluster, or it is remote and does not ask for a token.
    """

    def __init__(self, address: str, count: int | None, spec: Spec) -> None:
        _check_tokens(address)
        try:
            import ray
        except ImportError as error:
            raise SettingsError("ray is not installed: pip install 'cones2[ray]'.") from error
        _connect(ray, address)
        self._ray, self._spec = ray, spec
        resources = ray.cluster_resources()
        kind = "GPU" if resources.get("GPU") else "CPU"
        self.workers = tuple(f"worker {number}" for number in range(1, (count or int(resources[kind])) + 1))
        self._options: dict[str, Any] = {
            "num_gpus" if kind == "GPU" else "num_cpus": 1,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 2,  # so that it can be told to stop
            "scheduling_strategy": "SPREAD",
        }
        self._actors: dict[str, Any] = {}
        self._streams: dict[Any, str] = {}

    def start(self, worker: str) -> None:
        """See `Crew`."""
        actor = self._ray.remote(Worker).options(**self._options).remote(self._spec)
        self._actors[worker] = actor
        self._streams[actor.open.options(num_returns="streaming").remote()] = worker

    def give(self, worker: str, task: Task) -> None:
        """See `Crew`."""
        self._streams[self._actors[worker].do.options(num_returns="streaming").remote(task)] = worker

    def hear(self, timeout: float) -> tuple[str, Event] | None:
        """See `Crew`."""
        if not self._streams:
            threading.Event().wait(timeout)
            return None
        streams, _ = self._ray.wait(list(self._streams), num_returns=1, timeout=timeout)
        for stream in streams:
            worker = self._streams[stream]
            try:
                event: Event = self._ray.get(next(stream))
            except StopIteration:
                del self._streams[stream]
                continue
            except self._ray.exceptions.RayError as error:
                del self._streams[stream]
                return worker, {"event": "died", "why": f"its actor ended: {first_line(error)[:500]}"}
            return worker, event
        return None

    def drain(self) -> None:
        """See `Crew`."""
        for actor in self._actors.values():
            actor.stop.remote()

    def close(self) -> None:
        """See `Crew`."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()


def _check_tokens(address: str) -> None:
    """Let a cluster of our own ask for a token, and refuse a remote one that may not.

    Whoever reaches the ports of a cluster without one can run anything on it. Ray reads this when it is imported.
    """
    if address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address not in _HERE and os.environ.get("RAY_AUTH_MODE") != "token":
        advice = "set RAY_AUTH_MODE=token here and on its nodes"
        raise SettingsError(f"the cluster {address} is remote, and nothing says that it asks for a token: {advice}.")


def _connect(ray: Any, address: str) -> None:
    """Join a cluster, or begin one of this machine's own."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        options["include_dashboard"] = False
    try:
        if not ray.is_initialized():
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        advice = "Begin one with 'ray start --head', or ask for 'local'." if address == "auto" else "Check its address."
        raise SettingsError(f"can't join the Ray cluster {address!r}: {first_line(error)} {advice}") from error
