"""A batch on a server of this machine that stands for S3 and is often busy; left out without moto and s3fs."""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batch_hands import sleeping_spec
from cones2.batch import read, verify
from cones2.batch.engine import Batch, Inline
from cones2.batch.job import Pictures
from cones2.batch.lease import Bench
from cones2.batch.processes import Processes
from cones2.batch.store import check_store, open_store
from cones2.errors import OutputError
from faulty_store import StillHands
from test_batch import expected, plan_of

s3fs, moto, serving = (pytest.importorskip(name) for name in ("s3fs", "moto.server", "werkzeug.serving"))
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Busy:
    """Answers a share of the requests with 503, takes its time for the others, and counts what is put at once."""

    def __init__(self, app: Any) -> None:
        self.app, self.share, self.seconds = app, 0.0, 0.0
        self.answers: Counter[str] = Counter()
        self.putting = self.most_at_once = 0
        self._lock, self._luck = threading.Lock(), random.Random(0)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        is_tar = environ["REQUEST_METHOD"] == "PUT" and "/data/" in environ["PATH_INFO"]
        if self._luck.random() < self.share:
            self.answers["503"] += 1
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))])
            return [SLOW_DOWN]
        with self._lock:
            self.putting += is_tar
            self.most_at_once = max(self.most_at_once, self.putting)
        time.sleep(self.seconds * is_tar)
        self.answers["other"] += 1
        try:
            return list(self.app(environ, start))
        finally:
            with self._lock:
                self.putting -= is_tar


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Busy]:
    """A server with the bucket `shelf`."""
    app = Busy(moto.DomainDispatcherApplication(moto.create_backend_app))
    server = serving.make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the client's own tries come before ours
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().makedirs("shelf", exist_ok=True)
    yield app
    server.shutdown()


def drawn(out: str) -> dict[str, bytes]:
    return {result.id: result.content for result in read(out)}


@pytest.mark.usefixtures("busy")
def test_of_sixteen_that_create_a_thing_at_once_one_wins() -> None:
    out, won = "s3://shelf/once", []
    check_store(open_store(out))

    def create(number: int) -> None:
        if open_store(out).create("commit/a.json", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert open_store(out).read("commit/a.json") == b"%d" % won[0]


def test_a_storage_that_is_often_busy_loses_nothing_and_gets_one_tar_of_each_worker(
    busy: Busy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(Path(__file__).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan, out = plan_of(Pictures(prompt="a dog", seed="0-39"), lease=2), "s3://shelf/busy"
    batch = Batch(plan, open_store(out))
    busy.share, busy.seconds = 0.3, 0.5
    crew = Processes(3, {**sleeping_spec(tmp_path), "out": out})
    for _ in batch.outcomes(crew):
        pass
    busy.share = 0.0
    assert busy.answers["503"] > 20
    assert 1 <= busy.most_at_once <= 3
    assert (batch.pictures.done, batch.pictures.left) == (40, 0)
    assert drawn(out) == expected(plan)
    found = verify(out)
    assert (found.sound, found.doubled, found.problems) == (40, [], [])


def test_a_storage_that_stays_busy_is_one_line_and_what_was_drawn_is_kept(
    busy: Busy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = plan_of(Pictures(prompt="a dog", seed="0-5"), lease=3), "s3://shelf/stuck"

    class Hands(StillHands):
        def draw(self, made: dict[str, Any], path: Path) -> None:
            super().draw(made, path)
            busy.share = share

    hands, share, batch = Hands(), 1.0, Batch(plan, open_store(out))
    monkeypatch.setattr("cones2.batch.store._LONGEST_PAUSE", 0.01)
    monkeypatch.setattr("cones2.batch.store._PAUSE", 0.01)
    bench = Bench(batch.store, tmp_path / "spool")
    with pytest.raises(OutputError, match=r"commit/.* It is busy: .*fewer workers"):
        list(batch.outcomes(Inline(bench, lambda: hands)))
    busy.share = share = 0.0
    list(Batch(plan, open_store(out)).outcomes(Inline(bench, lambda: hands)))
    assert hands.drawn == dict.fromkeys(range(6), 1)
    assert drawn(out) == expected(plan)
