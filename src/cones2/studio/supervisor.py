"""The supervisor: one thread that feeds the worker, enters what it did into the journal, and tells the streams.

A worker that dies is started again, and its job goes back into the queue. A job that is to be cancelled and does not
stop within ten seconds takes its worker with it.
"""

import base64
import contextlib
import itertools
import logging
import queue
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cones2.errors import Cones2Error
from cones2.studio.album import Album
from cones2.studio.child import Child
from cones2.studio.database import Event, Row
from cones2.studio.events import Broker, change
from cones2.studio.journal import Journal
from cones2.studio.problems import NotReadyError
from cones2.studio.schema import FINAL, WorkerState

PATIENCE = 10.0
"""Seconds that a worker has to stop a job."""
_SILENT = 120.0  # seconds without a beat, after which a worker is taken for hung
_BACKOFF = 5.0  # seconds before the next start of a worker that died while it opened the model
_MOST_LOSSES = 200
_KEPT_PREVIEWS = 64
_KEEP_PROGRESS = 5.0  # seconds between two entries of a job's progress
_log = logging.getLogger(__name__)


class Preview(NamedTuple):
    """The latest look of a job: its number, and a WebP."""

    number: int
    content: bytes


class Running:
    """The job that the worker does, and how far it is."""

    def __init__(self, row: Row, request: Mapping[str, Any]) -> None:
        self.id, self.kind, self.client, self.request = row["id"], row["kind"], row["client"], request
        self.step, self.steps = int(row["step"]) if row["kind"] == "learn" else 0, int(row["steps"])
        self.losses: list[tuple[int, float]] = [(step, loss) for step, loss in row["losses"]]
        self.likenesses: list[tuple[int, float]] = [(step, likeness) for step, likeness in row["likenesses"]]
        self.kept: int | None = row["kept"]
        self.warnings: list[str] = list(row["warnings"])
        self.stop_at: float | None = None
        self.kept_at = self.stepped_at = time.monotonic()

    def take_step(self, step: int, steps: int, *, loss: float | None = None, likeness: float | None = None) -> float:
        """Note a step, and return the seconds that it took."""
        taken, self.stepped_at = time.monotonic() - self.stepped_at, time.monotonic()
        self.step, self.steps = step, steps
        if loss is not None:
            self.losses = [each for each in self.losses if each[0] < step] + [(step, round(loss, 6))]
            if len(self.losses) > _MOST_LOSSES:
                self.losses = self.losses[:-1:2] + self.losses[-1:]
        if likeness is not None:
            self.likenesses = [each for each in self.likenesses if each[0] < step] + [(step, round(likeness, 4))]
        return taken


class Supervisor:
    """Runs jobs on one worker.

    Args:
        journal: of the jobs; `album` has their pictures.
        broker: to tell streams.
        folder: the studio's data; `library` is the subjects' folder, and `model` what the worker opens.
        brief: makes of a job's row the message that the worker gets; a Cones2Error fails the job.
        show: makes of a picture's row what clients see.
    """

    def __init__(
        self,
        journal: Journal,
        album: Album,
        broker: Broker,
        *,
        folder: Path,
        library: Path,
        model: Mapping[str, Any],
        brief: Callable[[Row], dict[str, Any]],
        show: Callable[[Row], dict[str, Any]],
    ) -> None:
        self._journal, self._album, self._broker, self._folder = journal, album, broker, folder
        self._brief, self._show = brief, show
        self.worker = Child({"data": str(folder), "library": str(library), "model": model})
        self.state: WorkerState = "starting"
        self.info: dict[str, Any] | None = None
        self.unusable: str | None = None
        self.ended = threading.Event()
        self.speeds = {"draw": 0.2, "learn": 0.5, "push": 5.0}  # seconds a step, until they are measured
        self.previews: dict[str, Preview] = {}
        self.running: Running | None = None
        self._numbers = itertools.count(1)
        self._stopping = False
        self._start_at = self._heard_at = 0.0
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        journal.heard = self._heard

    def start(self) -> None:
        """Put jobs that were running when the last server died back into the queue, and begin."""
        self._journal.requeue()
        self._journal.forget()
        self._thread.start()

    def stop(self) -> None:
        """End the worker; a job that runs goes on with the next server."""
        self._stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join(timeout=5)
        self.worker.kill()
        with contextlib.suppress(sqlite3.Error):  # then the next server does it
            self._journal.requeue(is_counted=False)

    def wake(self) -> None:
        """Look at the queue now."""
        self.worker.inbox.put((0, {"is": "wake"}))

    def ask(self, what: str, *, seconds: float = 5.0, **values: Any) -> Any:
        """Ask the worker something short; NotReadyError where there is none, or no answer in time."""
        if self.state != "ready":
            raise NotReadyError("the model is still opening: ask again in some seconds.")
        return self.worker.ask(what, seconds=seconds, **values)

    def wish(self, job: str, wish: str) -> Row | None:
        """Cancel a job, or let it finish early, and return its row; None where there is no such job."""
        row = self._journal.wish(job, wish)
        self._pass_on(row)
        return row

    def _pass_on(self, row: Row | None) -> None:
        """Tell the worker what is wished of its job."""
        running = self.running
        if row is not None and row["wish"] and running is not None and running.id == row["id"]:
            with contextlib.suppress(OSError):  # a worker that is gone stops it as well
                self.worker.send({"do": row["wish"], "job": row["id"]})
            if row["wish"] == "cancel":
                running.stop_at = running.stop_at or time.monotonic() + PATIENCE

    def seconds_left(self) -> float:
        """Return how long the running job will take, by the speed measured so far."""
        running = self.running
        return 0.0 if running is None else (running.steps - running.step) * self.speeds[running.kind]

    # What clients see

    def views(self, rows: list[Row]) -> list[dict[str, Any]]:
        """Return jobs as clients see them, `mine` false, in the order given."""
        places, before = {}, self.seconds_left()
        for place, row in enumerate(self._journal.waiting() if any(r["state"] == "queued" for r in rows) else (), 1):
            before += row["steps"] * self.speeds[row["kind"]]
            places[row["id"]] = (place, before)
        results = self._album.of_jobs([row["id"] for row in rows])
        return [self._view(row, places.get(row["id"]), results[row["id"]]) for row in rows]

    def _view(self, row: Row, place: tuple[int, float] | None, results: list[str]) -> dict[str, Any]:
        live = self.running if self.running is not None and self.running.id == row["id"] else None
        preview = self.previews.get(row["id"])
        ended = row["state"] in FINAL
        eta = place[1] if place else self.seconds_left() if live and row["state"] == "running" else None
        return {
            **{name: row[name] for name in ("id", "kind", "state", "attempt", "created", "started", "finished")},
            **{name: row[name] for name in ("request", "subject", "error")},
            "position": place[0] if place else None,
            "eta_s": None if eta is None else round(eta, 1),
            "step": row["steps"]
            if row["state"] == "succeeded" and row["kind"] != "learn"
            else live.step
            if live
            else row["step"],
            "steps": live.steps if live else row["steps"],
            "mine": False,
            "results": results,
            "losses": live.losses if live and not ended else row["losses"],
            "likenesses": live.likenesses if live and not ended else row["likenesses"],
            "kept": row["kept"],
            "preview": f"/v1/jobs/{row['id']}/preview?n={preview.number}" if preview else None,
            "warnings": live.warnings if live and not ended else row["warnings"],
        }

    def _heard(self, event: Event) -> None:
        """Tell the streams of an event of the journal."""
        if event.kind == "result":
            row = self._album.picture(event.picture or "")
            if row is not None:
                data = {"job": event.job, "picture": self._show(row)}
                self._broker.publish(change("result", data, number=event.number, job=event.job), row["id"])
            return
        row = self._journal.job(event.job)
        if row is not None:
            self._tell_state(row, event.number)
            if row["state"] != "queued":
                self._tell_places(but=row["id"])

    def _tell_state(self, row: Row, number: int | None) -> None:
        view = self.views([row])[0]
        last = row["state"] in FINAL
        told = change("state", view, client=row["client"], number=number, job=row["id"], is_last=last)
        self._broker.publish(told, row["id"])

    def _tell_places(self, *, but: str) -> None:
        """Tell the jobs that wait of their new places in the queue."""
        rows = [row for row in self._journal.waiting() if row["id"] != but]
        for row, view in zip(rows, self.views(rows), strict=True):
            told = change("state", view, client=row["client"], job=row["id"])
            self._broker.publish(told, row["id"])

    def tell_subjects(self) -> None:
        """Tell the streams that the list of subjects changed."""
        self._broker.publish(change("subjects", {}), "")

    def _tell_worker(self, state: WorkerState) -> None:
        self.state = state
        self._broker.publish(change("worker", {"state": state}), "")

    # The thread

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except sqlite3.Error as error:  # the disk is full, or another program holds the journal
                _log.error("the journal can't be written: %s. Make room; it is tried again.", error)
                self.worker.kill()  # what it did is not in the journal, so its job begins again
                time.sleep(1)
            except Exception:
                _log.exception("the supervisor met something unexpected and goes on")
                self.worker.kill()  # what it did is not in the journal, so its job begins again
                time.sleep(1)

    def _turn(self) -> None:
        """Start what is missing, hand out a job, and take one message."""
        if self.worker.process is None and self.running is not None:
            self._journal.requeue(self.running.id)
            self.running = None
        if self.worker.process is None and time.monotonic() >= self._start_at and self.unusable is None:
            self._heard_at = time.monotonic()
            self.worker.start()
        if self.state == "ready" and self.running is None:
            self._hand_out()
        with contextlib.suppress(queue.Empty):
            number, message = self.worker.inbox.get(timeout=0.5)
            if number == self.worker.number:
                self._take(message)
        self._watch()

    def _hand_out(self) -> None:
        row = self._journal.claim()
        if row is None:
            return
        self.running = Running(row, row["request"])
        try:
            message = self._brief(row)
        except Cones2Error as error:
            detail = {"type": "/problems/missing", "title": "missing", "detail": str(error)}
            self._journal.finish(row["id"], "failed", error=detail)
            self.running = None
            return
        with contextlib.suppress(OSError):  # its end is noticed by its reader
            self.worker.send({**message, "do": row["kind"], "job": row["id"], "request": row["request"]})
        self._pass_on(self._journal.job(row["id"]))  # wished of an earlier attempt, or before the worker had it

    def _take(self, message: dict[str, Any]) -> None:
        """Take a message of the worker."""
        self._heard_at = time.monotonic()
        kind, running = message["is"], self.running
        if kind == "ready":
            self.info = message["info"]
            self._tell_worker("ready")
        elif kind == "unusable" and self.info is not None:  # it could be opened before: it is tried again
            _log.error("the model can't be opened again: %s", message["text"])
        elif kind == "unusable":
            self.unusable = message["text"]
            self.ended.set()
        elif kind == "gone":
            self._lose_worker()
        elif running is not None and message.get("job") == running.id:
            self._take_of_job(kind, message, running)

    def _take_of_job(self, kind: str, message: dict[str, Any], running: Running) -> None:
        if kind == "step":
            self._take_step(message, running)
        elif kind == "preview":
            number = next(self._numbers)
            self.previews.pop(running.id, None)
            self.previews[running.id] = Preview(number, base64.b64decode(message["webp"]))
            while len(self.previews) > _KEPT_PREVIEWS:
                self.previews.pop(next(iter(self.previews)))
            data = {"job": running.id, "url": f"/v1/jobs/{running.id}/preview?n={number}"}
            self._broker.publish(change("preview", data, job=running.id), running.id)
        elif kind == "warning" and message["text"] not in running.warnings:
            running.warnings.append(message["text"])
        elif kind == "picture":
            request = running.request
            names = [each["name"] for each in request["subjects"]]
            facts = {"job": running.id, "prompt": request["prompt"], "layout": request["layout"], "subjects": names}
            self._album.add(message | facts, {**request, "seeds": [message["seed"]]})
        elif kind == "learned":
            running.kept = message["kept"]
            self.tell_subjects()
        elif kind == "ended":
            self._keep_progress(running)
            self._journal.finish(running.id, message["state"], error=message.get("error"))
            self.running = None
            if running.kind == "learn" and message["state"] == "succeeded":
                shutil.rmtree(self._folder / "learning" / running.id, ignore_errors=True)

    def _take_step(self, message: dict[str, Any], running: Running) -> None:
        measured = {name: message[name] for name in ("loss", "likeness") if name in message}
        taken = running.take_step(message["step"], message["steps"], **measured)
        self.speeds[running.kind] += 0.2 * (min(taken, 60.0) - self.speeds[running.kind])
        data = {"job": running.id, "step": running.step, "steps": running.steps, "eta_s": round(self.seconds_left(), 1)}
        self._broker.publish(change("progress", data | measured, job=running.id), running.id)
        # A learning that goes on from a checkpoint tells no step before it again.
        due = message.get("checkpoint") or time.monotonic() - running.kept_at > _KEEP_PROGRESS
        if due and running.kind == "learn":
            self._keep_progress(running)

    def _keep_progress(self, running: Running) -> None:
        running.kept_at = time.monotonic()
        found = {name: getattr(running, name) for name in ("step", "losses", "likenesses", "kept", "warnings")}
        self._journal.progress(running.id, **found)

    def _watch(self) -> None:
        """Kill a worker that does not stop in time, or that is not heard of."""
        now, running = time.monotonic(), self.running
        too_late = running is not None and running.stop_at is not None and now > running.stop_at
        hung = self.worker.process is not None and now - self._heard_at > _SILENT
        if too_late or hung:
            self.worker.kill()

    def _lose_worker(self) -> None:
        """Note that the worker died; its job then goes back into the queue."""
        was_ready = self.state == "ready"
        self.worker.reap()
        if self._stopping or self.unusable is not None:
            return
        self._start_at = time.monotonic() + (0.0 if was_ready else _BACKOFF)
        self._tell_worker("restarting")
