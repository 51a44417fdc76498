"""The supervisor without a worker: what it tells the worker, and when."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cones2.studio.journal import NewJob
from cones2.studio.studio import Studio
from cones2.studio.supervisor import Running
from studio_server import MODEL

ECHO = "import sys; [print(line, end='', flush=True) for line in sys.stdin]"


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A studio whose worker is a process that says what it is told."""
    found = Studio(tmp_path / "data", tmp_path / "library", MODEL)
    with subprocess.Popen([sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        found.supervisor.worker.process = process
        yield found
        found.stop()


def told(studio: Studio, count: int) -> list[str]:
    """Return what the worker was told to do, in its order."""
    process = studio.supervisor.worker.process
    assert process is not None
    assert process.stdout is not None
    return [json.loads(process.stdout.readline())["do"] for _ in range(count)]


def add(studio: Studio, kind: str = "learn") -> None:
    studio.journal.add(NewJob(id="job", client="a", kind=kind, request={"subjects": []}, steps=3, subject="max"))


@pytest.mark.parametrize("wish", ["cancel", "finish"])
def test_a_wish_reaches_the_worker_however_early_it_comes(studio: Studio, wish: str) -> None:
    add(studio)
    brief = studio.supervisor._brief

    def brief_late(row: dict[str, Any]) -> dict[str, Any]:
        studio.supervisor.wish("job", wish)  # the job is claimed, and the worker has not heard of it
        return brief(row)

    studio.supervisor._brief = brief_late
    studio.supervisor._hand_out()
    assert told(studio, 3) == [wish, "learn", wish]


def test_what_was_wished_of_an_attempt_is_told_to_the_next(studio: Studio) -> None:
    add(studio)
    studio.journal.claim()
    studio.journal.wish("job", "finish")
    studio.journal.requeue()
    studio.supervisor._hand_out()
    assert told(studio, 2) == ["learn", "finish"]


def test_a_worker_whose_pipe_is_closed_is_not_there(studio: Studio) -> None:
    process = studio.supervisor.worker.process
    assert process is not None
    assert process.stdin is not None
    process.stdin.close()
    with pytest.raises(OSError, match="has just ended"):
        studio.supervisor.worker.send({"do": "ask"})


def test_the_files_of_a_learning_stay_until_its_row_says_that_it_is_done(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(studio)
    row = studio.journal.claim()
    assert row is not None
    folder = studio.folder / "learning" / "job"
    folder.mkdir()
    states: list[Any] = []
    remove = shutil.rmtree

    def remove_late(path: Path, **options: Any) -> None:
        states.append((studio.journal.job("job") or {})["state"])
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_late)
    studio.supervisor.running = Running(row, row["request"])
    studio.supervisor._take({"is": "ended", "job": "job", "state": "succeeded"})
    assert states == ["succeeded"]
    assert not folder.exists()


def test_the_curves_and_the_step_that_was_kept_are_shown_and_stay(studio: Studio) -> None:
    add(studio)
    row = studio.journal.claim()
    assert row is not None
    studio.supervisor.running = Running(row, row["request"])
    for step, likeness in ((1, None), (2, 0.5), (3, 0.25)):
        measured = {} if likeness is None else {"likeness": likeness}
        message = {"is": "step", "job": "job", "step": step, "steps": 3, "loss": 1 / step, **measured}
        studio.supervisor._take(message)
    studio.supervisor._take({"is": "learned", "job": "job", "sha256": "0" * 64, "kept": 2})
    studio.supervisor._take({"is": "ended", "job": "job", "state": "succeeded"})
    ended = studio.journal.job("job")
    assert ended is not None
    (view,) = studio.supervisor.views([ended])
    assert view["losses"] == [[1, 1.0], [2, 0.5], [3, 0.333333]]
    assert view["likenesses"] == [[2, 0.5], [3, 0.25]]
    assert (view["step"], view["kept"]) == (3, 2)


def test_a_model_that_was_open_before_is_tried_again(studio: Studio) -> None:
    studio.supervisor.info = {"name": "mini"}
    studio.supervisor._take({"is": "unusable", "text": "CUDA out of memory"})
    assert not studio.supervisor.ended.is_set()
    studio.supervisor.info = None
    studio.supervisor._take({"is": "unusable", "text": "there is no such model"})
    assert studio.supervisor.ended.is_set()


def test_a_studio_that_is_ended_gives_its_job_back(studio: Studio) -> None:
    add(studio)
    studio.journal.claim()
    studio.supervisor.stop()
    row = studio.journal.job("job")
    assert row is not None
    assert (row["state"], row["attempt"]) == ("queued", 1)
