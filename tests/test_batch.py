"""A batch with real workers: killed at any moment, two engines at once, cases that fail, jobs that change."""

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

import cones2
from batch_hands import BEGUN, sleeping_spec
from cones2.batch import engine as engines
from cones2.batch import read, read_status, verify
from cones2.batch.engine import Batch, Inline, Outcome
from cones2.batch.gallery import make_sheet, varied, write_gallery
from cones2.batch.job import Job, Photographed, Pictures
from cones2.batch.lease import Bench, learn_lease
from cones2.batch.on_ray import RayActors
from cones2.batch.plan import Plan
from cones2.batch.processes import Processes, share_of_threads
from cones2.batch.results import read_subjects
from cones2.batch.store import LocalStore, check_store, open_store
from cones2.batch.worker import MODEL, Worker
from cones2.errors import Cones2Warning, ModelError, OutputError, SettingsError
from cones2.examples import EXAMPLES
from cones2.files import write_atomically
from cones2.png import write_picture
from faulty_store import PICTURE, MemoryStore, StillHands, content_of

pytestmark = pytest.mark.timeout(120)

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True)
def found_by_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find this folder, and the package as it is here."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, sys.path)]))


def plan_of(*pictures: Pictures, lease: int = 2, **subjects: Any) -> Plan:
    return Plan.of(Job(subjects, pictures, lease=lease))


def photographed(name: str = "rex") -> Photographed:
    return Photographed(tuple(photo.path for photo in EXAMPLES[name].photos), "dog")


def crew(out: Path, count: int) -> Processes:
    return Processes(count, sleeping_spec(out))


def done_inline(plan: Plan, out: Path, hands: Any = None) -> Batch:
    batch = Batch(plan, open_store(out))
    bench = Bench(batch.store, out / ".spool", lambda: batch.driver.draining)
    for _ in batch.outcomes(Inline(bench, lambda: hands or StillHands())):
        pass
    return batch


def expected(plan: Plan) -> dict[str, bytes]:
    return {case.id: content_of(case.made) for lease in plan.leases for case in plan.cases(lease)}


def drawn(out: Path) -> dict[str, bytes]:
    return {result.id: result.content for result in read(out)}


def test_what_a_batch_made_is_read_in_its_order_with_its_labels(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt=["a dog", "a cat"], seed="0-2"))
    batch = done_inline(plan, tmp_path)
    assert (batch.pictures.done, batch.pictures.left) == (6, 0)
    results = list(read(tmp_path))
    assert [(each.labels["prompt"], each.labels["seed"]) for each in results] == [
        (prompt, seed) for prompt in ("a dog", "a cat") for seed in range(3)
    ]
    assert drawn(tmp_path) == expected(plan)
    assert verify(tmp_path).sound == 6


def test_its_tars_are_those_of_webdataset(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt="a dog", seed="0-1"))
    done_inline(plan, tmp_path)
    (path,) = (tmp_path / "data").iterdir()
    with tarfile.open(path) as tar:
        names = tar.getnames()
        picture = tar.extractfile(names[0])
        assert picture is not None
        assert picture.read() == expected(plan)[names[0].removesuffix(".png")]
    assert [name.partition(".")[2] for name in names] == ["png", "json", "png", "json"]
    assert [name.partition(".")[0] for name in names[::2]] == [name.partition(".")[0] for name in names[1::2]]


def test_a_second_run_does_nothing_and_a_changed_job_only_what_changed(tmp_path: Path) -> None:
    done_inline(plan_of(Pictures(prompt="a dog", seed="0-3")), tmp_path)
    for seeds, more in (("0-3", 0), ("0-6", 3), ("1-7", 1), ("0-3", 0)):
        hands = StillHands()
        batch = done_inline(plan_of(Pictures(prompt="a dog", seed=seeds)), tmp_path, hands)
        assert hands.drawn.total() == more
        assert batch.pictures.left == 0
    assert not verify(tmp_path).doubled


def test_a_case_that_fails_is_set_aside_told_and_tried_again_by_the_next_run(tmp_path: Path) -> None:
    plan, hands = plan_of(Pictures(prompt="a dog", seed="0-4"), lease=3), StillHands({1})
    batch = done_inline(plan, tmp_path, hands)
    assert (batch.pictures.done, batch.pictures.failed) == (4, 1)
    assert hands.drawn == {0: 1, 1: 3, 2: 1, 3: 1, 4: 1}  # what was drawn is not drawn again
    status = read_status(tmp_path)
    assert (status.pictures.done, status.pictures.failed, status.pictures.left) == (4, 1, 0)
    assert "seed 1 is broken" in status.failures[0].error
    again = done_inline(plan, tmp_path, StillHands({1}))
    assert (again.pictures.done, again.pictures.failed) == (4, 1)
    mended = done_inline(plan, tmp_path)
    assert (mended.pictures.done, mended.pictures.failed) == (5, 0)
    assert drawn(tmp_path) == expected(plan)
    assert read_status(tmp_path).pictures.failed == 0
    assert done_inline(plan, tmp_path, StillHands({1})).pictures.failed == 0


def test_workers_in_processes_make_the_bytes_of_one(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt="a dog", seed="0-9"), Pictures(prompt="a {rex}", seed="10-11"), rex=photographed())
    done_inline(plan, tmp_path / "one")
    batch = Batch(plan, open_store(tmp_path / "two"))
    workers = {outcome.worker for outcome in batch.outcomes(crew(tmp_path / "two", 2)) if outcome is not None}
    assert workers <= {"worker 1", "worker 2"}
    assert drawn(tmp_path / "two") == drawn(tmp_path / "one") == expected(plan)
    (one,), (two,) = read_subjects(tmp_path / "one"), read_subjects(tmp_path / "two")
    assert one[1] is not None
    assert two[1] is not None
    assert one[1].sha256 == two[1].sha256


@pytest.mark.slow
def test_a_case_that_kills_its_worker_is_set_aside_and_the_others_done(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt=["a dog", "a kill", "a fail", "a cat"]), lease=4)
    batch = Batch(plan, open_store(tmp_path))
    states = Counter(outcome.state for outcome in batch.outcomes(crew(tmp_path, 1)) if outcome is not None)
    assert states == {"done": 2, "failed": 2}
    errors = sorted(failure.error for failure in read_status(tmp_path).failures)
    assert "it was asked to fail" in errors[0]
    assert "signal 9" in errors[1]


def kill_some(processes: Processes, kills: int, luck: random.Random) -> None:
    for _ in range(kills):
        time.sleep(luck.uniform(0.05, 0.6))
        with contextlib.suppress(ProcessLookupError, IndexError, RuntimeError):
            os.kill(luck.choice(list(processes.pids.values())), signal.SIGKILL)


@pytest.mark.slow
def test_workers_killed_at_many_moments_lose_and_double_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONES2_TEST_SECONDS", "0.15")
    monkeypatch.setenv(BEGUN, str(tmp_path / "begun"))
    plan = plan_of(Pictures(prompt="a dog", seed="0-79"), lease=4)
    batch, processes = Batch(plan, open_store(tmp_path)), crew(tmp_path, 2)
    killer = threading.Thread(target=kill_some, args=(processes, 30, random.Random(0)))
    killer.start()
    for _ in batch.outcomes(processes):
        pass
    killer.join()
    begun = Counter((tmp_path / "begun").read_text().split())
    assert begun.total() <= 80 + 30  # one that is killed loses what it draws, and nothing that it has drawn
    done_inline(plan, tmp_path)  # what was killed three times by chance
    assert drawn(tmp_path) == expected(plan)
    assert not verify(tmp_path).doubled


ENGINE = """
import sys
from pathlib import Path
from test_batch import crew, plan_of
from cones2.batch.engine import Batch
from cones2.batch.job import Pictures
from cones2.batch.store import open_store
out, plan = Path(sys.argv[1]), plan_of(Pictures(prompt="a dog", seed="0-39"), lease=2)
for outcome in Batch(plan, open_store(out)).outcomes(crew(out, int(sys.argv[2]))):
    pass
"""


@pytest.mark.slow
def test_engines_killed_at_any_moment_and_two_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONES2_TEST_SECONDS", "0.1")
    command = [sys.executable, "-c", ENGINE, str(tmp_path), "1"]
    luck, plan = random.Random(1), plan_of(Pictures(prompt="a dog", seed="0-39"), lease=2)
    for _ in range(3):
        at_once = [subprocess.Popen(command) for _ in range(2)]
        time.sleep(luck.uniform(6, 9))
        for process in at_once:
            process.kill()
            process.wait()
    at_once = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in at_once] == [0, 0]
    assert drawn(tmp_path) == expected(plan)
    found = verify(tmp_path, sweep=True)
    assert (found.sound, found.problems, found.doubled) == (40, [], [])
    assert verify(tmp_path).orphans == []


@pytest.mark.slow
def test_a_worker_that_sleeps_is_overtaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("processes can't be stopped here")
    monkeypatch.setattr("cones2.batch.driver._LEAST", 0.5)
    monkeypatch.setenv("CONES2_TEST_SECONDS", "0.05")
    plan = plan_of(Pictures(prompt="a dog", seed="0-19"), lease=1)
    batch, processes, stopped = Batch(plan, open_store(tmp_path)), crew(tmp_path, 2), ""
    for outcome in batch.outcomes(processes):
        if outcome is not None and not stopped:
            stopped = outcome.worker
            os.kill(processes.pids[stopped], signal.SIGSTOP)
    assert stopped
    assert drawn(tmp_path) == expected(plan)


def test_an_engine_of_one_machine_that_another_overtakes_in_a_lease_ends_well(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt="a dog", seed="0-9"), lease=4)
    faster: list[Batch] = []

    class OvertakenHands(StillHands):
        def draw(self, made: dict[str, Any], path: Path) -> None:
            if self.drawn.total() == 1:
                faster.append(done_inline(plan, tmp_path))  # it commits this lease too, and deletes its folder
            self.drawn[made["seed"]] += 1
            write_atomically(path, content_of(made))

    slower = done_inline(plan, tmp_path, OvertakenHands())
    assert [(batch.pictures.done, batch.pictures.left) for batch in (slower, *faster)] == [(10, 0), (10, 0)]
    assert drawn(tmp_path) == expected(plan)
    found = verify(tmp_path)
    assert (found.sound, found.problems, found.doubled, found.orphans) == (10, [], [], [])


def test_ctrl_c_ends_what_has_begun(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt="a dog", seed="0-9"), lease=3)
    batch, hands = Batch(plan, open_store(tmp_path)), StillHands()
    seen: list[Outcome] = []
    for outcome in batch.outcomes(Inline(Bench(batch.store, tmp_path / ".spool"), lambda: hands)):
        if outcome is not None:
            seen.append(outcome)
            batch.drain()
    assert len(seen) == 3
    assert (batch.pictures.done, batch.pictures.left) == (3, 7)
    assert done_inline(plan, tmp_path).pictures.left == 0


def test_shards_do_everything_once_between_them(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt="a dog", seed="0-9"), Pictures(prompt="a {rex}", seed=[10, 11]), rex=photographed())
    all_drawn: Counter[int] = Counter()
    for number in (0, 1, 2):
        hands = StillHands()
        batch = Batch(plan, open_store(tmp_path), shard=(number, 3))
        for _ in batch.outcomes(Inline(Bench(batch.store, tmp_path / ".spool"), lambda hands=hands: hands)):  # type: ignore[misc]
            pass
        all_drawn += hands.drawn
    assert all_drawn == dict.fromkeys(range(12), 1)
    assert drawn(tmp_path) == expected(plan)


def test_a_shard_learns_what_another_one_has_abandoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_ABANDONED", 0.2)
    monkeypatch.setattr(engines, "_BEAT", 0.1)
    plan = plan_of(Pictures(prompt="a {rex}", seed=[0, 1]), lease=2, rex=photographed())
    batch = Batch(plan, open_store(tmp_path), shard=(1, 2))  # the subject is shard 0's
    for _ in batch.outcomes(Inline(Bench(batch.store, tmp_path / ".spool"), StillHands)):
        pass
    assert drawn(tmp_path) == expected(plan)


def test_a_full_disk_is_one_error_and_loses_nothing(tmp_path: Path) -> None:
    plan, out = plan_of(Pictures(prompt="a dog", seed="0-5"), lease=3), tmp_path / "out"

    class FullDisk(LocalStore):
        def create(self, name: str, content: bytes) -> bool:
            if name.startswith("commit/") and super().names("commit"):
                raise OutputError(f"can't write {name}: No space left on device.")
            return super().create(name, content)

    batch = Batch(plan, FullDisk(out))
    hands = StillHands()
    with pytest.raises(OutputError, match="No space left"):
        for _ in batch.outcomes(Inline(Bench(batch.store, out / ".spool"), lambda: hands)):
            pass
    again = StillHands()
    assert done_inline(plan, out, again).pictures.left == 0
    assert hands.drawn.total() == 6
    assert again.drawn.total() == 0  # they were all kept on this machine
    assert drawn(out) == expected(plan)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """No file of a folder can be changed for a while, not even by the root user, who is nobody meanwhile."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions are others here")
    folders = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]
    user = os.geteuid()
    for path in folders:
        path.chmod(0o555)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for path in folders:
            path.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_folder_that_can_only_be_read_is_one_error_and_loses_nothing(open_folder: Path) -> None:
    out = open_folder / "out"
    plan = plan_of(Pictures(prompt="a dog", seed="0-5"), lease=3)
    with read_only(open_folder), pytest.raises(OutputError, match=r"out.*Permission denied"):
        check_store(open_store(out))
    hands, batch = StillHands(), Batch(plan, open_store(out))
    running = filter(None, batch.outcomes(Inline(Bench(batch.store, out / ".spool"), lambda: hands)))
    assert [outcome.state for outcome in itertools.islice(running, 3)] == ["done"] * 3
    with read_only(out), pytest.raises(OutputError, match="Permission denied"):
        next(running)
    assert done_inline(plan, out, hands).pictures.left == 0
    assert drawn(out) == expected(plan)


@pytest.mark.slow
def test_workers_whose_disk_is_full_end_the_batch_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONES2_TEST_LARGEST", "1000")  # bytes of a file: a picture is smaller, a tar is not
    plan, out = plan_of(Pictures(prompt="a dog", seed="0-5"), lease=2), tmp_path / "out"
    with (
        pytest.warns(Cones2Warning, match="worker . can't go on: .*Make room there") as said,
        pytest.raises(OutputError, match=r"4 workers in a row could not go on, .*Make room there"),
    ):
        list(Batch(plan, open_store(out)).outcomes(crew(out, 2)))
    assert len(said) == 1
    monkeypatch.delenv("CONES2_TEST_LARGEST")
    kept, hands = len(list((out / ".spool").rglob("*.png"))), StillHands()
    assert done_inline(plan, out, hands).pictures.left == 0
    assert hands.drawn.total() == 6 - kept < 6
    assert drawn(out) == expected(plan)


def test_learning_that_is_stopped_goes_on_elsewhere_from_the_storage(tmp_path: Path) -> None:
    plan, store, hands = plan_of(rex=photographed()), MemoryStore(), StillHands()
    (lesson,) = plan.lessons.values()
    events = list(learn_lease(Bench(store, tmp_path / "one", lambda: True), hands, lesson))
    assert [event["event"] for event in events] == ["began", "step", "ended"]
    assert not events[-1]["committed"]
    assert store.names(f"checkpoints/{lesson.id}") == ["step-00000001.json", "step-00000001.safetensors"]
    events = list(learn_lease(Bench(store, tmp_path / "two"), hands, lesson))
    assert [event.get("step") for event in events] == [None, 2, 3, None]
    assert events[-1]["committed"]
    assert not store.names(f"checkpoints/{lesson.id}")


def test_of_two_engines_at_one_subject_neither_deletes_newer_checkpoints_or_needs_those_that_vanish(
    tmp_path: Path,
) -> None:
    class Vanishing(LocalStore):
        def get(self, name: str, path: Path) -> None:
            self.delete(name)  # by the other engine, between list and get
            super().get(name, path)

    plan, store = plan_of(rex=photographed()), Vanishing(tmp_path / "out")
    (lesson,) = plan.lessons.values()
    store.write(f"checkpoints/{lesson.id}/step-00000001.json", b"{}")

    def stopped() -> bool:
        for step in (0, 9):  # written by the other engine, which is faster
            store.write(f"checkpoints/{lesson.id}/step-{step:08d}.json", b"{}")
        return True

    events = list(learn_lease(Bench(store, tmp_path / "spool", stopped), StillHands(), lesson))
    assert [event.get("step") for event in events] == [None, 1, None]
    left = store.names(f"checkpoints/{lesson.id}")
    assert left == ["step-00000001.json", "step-00000001.safetensors", "step-00000009.json"]


@pytest.mark.slow
def test_workers_that_can_not_begin_are_one_error(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt="a dog", seed="0-5"))
    spec = {"out": str(tmp_path), "hands": MODEL, "model": {**plan.model, "weights": "0" * 64}, "device": "cpu"}
    workers = Processes(2, spec | {"save_memory": False})
    with pytest.raises(ModelError, match="0000"):
        list(Batch(plan, open_store(tmp_path)).outcomes(workers))


@pytest.mark.parametrize(
    ("change", "told"),
    [({"engine": "00"}, "is another place than the engine's"), ({"version": "0.0.0"}, r"was planned by 0\.0\.0")],
)
def test_a_worker_whose_work_would_count_for_nothing_does_none(
    tmp_path: Path, change: dict[str, str], told: str
) -> None:
    batch = Batch(plan_of(Pictures(prompt="a dog", seed="0-1")), open_store(tmp_path))
    running = batch.outcomes(Inline(Bench(batch.store, tmp_path / ".spool"), StillHands))
    next(running)
    with warnings.catch_warnings():  # a worker keeps them
        for spec in ({"engine": batch.name, "version": cones2.__version__}, change):
            event = next(Worker({**sleeping_spec(tmp_path), "threads": 1, **spec}).open())
            assert event["event"] == ("gave up" if spec is change else "ready")
    assert re.search(told, event["why"])
    list(running)


@pytest.mark.slow
def test_workers_that_have_another_folder_of_that_name_are_one_error(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt="a dog", seed="0-5"))
    done_inline(plan, tmp_path / "theirs")  # by an earlier batch
    batch = Batch(plan, open_store(tmp_path / "ours"))
    workers = Processes(2, sleeping_spec(tmp_path / "theirs") | {"engine": batch.name})
    with pytest.raises(ModelError, match=r"theirs on .* is another place than the engine's"):
        list(batch.outcomes(workers))


def test_a_batch_in_memory(tmp_path: Path) -> None:
    MemoryFileSystem.store.clear()
    out = "memory://bucket/out"
    plan = plan_of(Pictures(prompt="a dog", seed="0-4"), Pictures(prompt="a {rex}", seed=[5, 6]), rex=photographed())
    for broken, left in (({1}, 1), (set[int](), 0)):
        batch, hands = Batch(plan, open_store(out)), StillHands(broken)
        for _ in batch.outcomes(Inline(Bench(batch.store, tmp_path), lambda hands=hands: hands)):  # type: ignore[misc]
            pass
        assert (batch.pictures.done, batch.pictures.failed) == (7 - left, left)
        assert read_status(out).pictures == batch.pictures
    assert {result.id: result.content for result in read(out)} == expected(plan)
    assert (verify(out).sound, verify(out).problems, len(list(read_subjects(out)))) == (7, [], 1)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("asked", "workers", "share"),
    [
        ({}, 1, 8),
        ({}, 3, 2),
        ({}, 20, 1),
        ({"OMP_NUM_THREADS": "1"}, 2, 1),
        ({"OMP_NUM_THREADS": "16"}, 2, 4),
        ({"OMP_NUM_THREADS": "3,2", "MKL_NUM_THREADS": "2"}, 1, 2),
        ({"OMP_NUM_THREADS": "many"}, 4, 2),
    ],
)
def test_a_worker_gets_its_share_of_threads_and_no_more_than_was_asked_for(
    asked: dict[str, str], workers: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cones2.batch.processes.processors", lambda: 8)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    assert share_of_threads(workers) == share


@pytest.mark.slow
def test_each_process_has_its_threads_and_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cones2.batch.processes.processors", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b")
    monkeypatch.setenv("CONES2_TEST_SECONDS", "0.2")
    plan, spec = plan_of(Pictures(prompt="a dog", seed="0-999"), lease=1), sleeping_spec(tmp_path)
    processes = Processes(3, spec | {"hands": "batch_hands:telling"})
    told: list[dict[str, Any]] = []
    for _ in Batch(plan, open_store(tmp_path)).outcomes(processes):
        told = [json.loads(path.read_text()) for path in (tmp_path / "told").glob("*.json")]
        if len(told) == 3:
            break
    processes.close()
    assert sorted(each["CUDA_VISIBLE_DEVICES"] for each in told) == ["GPU-a", "GPU-a", "GPU-b"]
    threads = {(each["OMP_NUM_THREADS"], each["MKL_NUM_THREADS"], each["threads"]) for each in told}
    assert threads == {("2", "2", 2)}


def test_results_that_were_damaged_are_told(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt="a dog", seed="0-5"))
    done_inline(plan, tmp_path)
    first, second, _ = sorted((tmp_path / "data").iterdir())
    first.write_bytes(first.read_bytes().replace(b"PNG", b"PNX"))
    second.unlink()
    (tmp_path / "data" / "orphan.tar").write_bytes(b"")
    found = verify(tmp_path)
    assert (found.sound, len(found.problems), found.orphans) == (2, 4, ["data/orphan.tar"])
    with pytest.raises(OutputError, match=r"damaged|missing"):
        list(read(tmp_path))


def test_nothing_is_swept_where_a_commit_can_not_be_read(tmp_path: Path) -> None:
    done_inline(plan_of(Pictures(prompt="a dog", seed="0-5")), tmp_path)
    data = sorted(path.name for path in (tmp_path / "data").iterdir())
    (tmp_path / "data" / "orphan.tar").write_bytes(b"")
    commit = min((tmp_path / "commit").iterdir())
    content = commit.read_bytes()
    commit.write_bytes(content[:-9])
    found = verify(tmp_path, sweep=True)
    assert (len(found.problems), found.orphans) == (1, [])
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted([*data, "orphan.tar"])
    commit.write_bytes(content)
    assert verify(tmp_path, sweep=True).orphans == ["data/orphan.tar"]
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == data


def test_what_is_no_batch_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no results"):
        read_status(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format":1,"data":"../../etc/passwd","cases":{}}', '{"format":2}'])
def test_a_strangers_commit_is_refused(tmp_path: Path, text: str) -> None:
    done_inline(plan_of(Pictures(prompt="a dog")), tmp_path)
    (tmp_path / "commit" / f"{'0' * 64}.json").write_text(text)
    with pytest.raises(OutputError, match="0000"):
        list(read(tmp_path))
    assert len(verify(tmp_path).problems) == 1


class RecordHands(StillHands):
    """Writes pictures that carry a record."""

    def draw(self, made: dict[str, Any], path: Path) -> None:
        from PIL import Image

        with Image.open(io.BytesIO(PICTURE.getvalue())) as image:
            write_picture(path, image, {"prompt": made["prompt"], "seed": made["seed"], "model": {"name": "xl"}})


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (("/models/xl.safetensors", "sdxl"), " --model /models/xl.safetensors --model-config sdxl"),
        (("/models/xl", None), " --model /models/xl"),
        (("/models/other", None), ""),
        (("a\0b", None), ""),  # from a stranger's plan.json
    ],
)
def test_the_line_that_draws_again_names_the_model_that_drew(
    tmp_path: Path, model: tuple[str, str | None], named: str
) -> None:
    done_inline(plan_of(Pictures(prompt="a dog")), tmp_path, RecordHands())
    ((picture, _),) = expected(plan_of(Pictures(prompt="a dog"))).items()
    write_gallery(read(tmp_path), tmp_path / "gallery", title="", model=model[0], config=model[1])
    line = f"<code>cones2 compose --from pictures/{picture[:16]}.png{named} --out again.png</code>"
    assert line in (tmp_path / "gallery" / "index.html").read_text()


@pytest.mark.parametrize("address", ["ray://head", "ray://192.0.2.1:10001", "192.0.2.1:6379", "auto", "[head"])
def test_a_cluster_elsewhere_that_may_ask_for_no_token_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    with pytest.raises(SettingsError, match="is remote, and nothing says that it asks for a token"):
        RayActors(address, 1, {})


def test_a_sheet_has_seeds_across_and_what_else_differs_down(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt=["a dog", "a cat"], num_inference_steps=[1, 2], seed="0-2"))
    done_inline(plan, tmp_path)
    results = list(read(tmp_path))
    assert varied(results) == ["prompt", "num_inference_steps", "seed"]
    wide, narrow = make_sheet(results, cell=64), make_sheet(results[:6], cell=64)
    assert wide.width == narrow.width > 3 * 64
    assert wide.height > 1.5 * narrow.height
    with pytest.raises(SettingsError, match="colour"):
        make_sheet(results, across="colour")
    with pytest.raises(SettingsError, match="no pictures"):
        make_sheet([])


def test_a_gallery_is_a_page_that_runs_nothing_and_shows_text_as_text(tmp_path: Path) -> None:
    plan = plan_of(Pictures(prompt=["a <script>alert(1)</script> dog", "a cat"], seed=[0]))
    done_inline(plan, tmp_path, RecordHands())
    assert write_gallery(read(tmp_path), tmp_path / "gallery", title="mine & yours") == (2, 1)
    page = (tmp_path / "gallery" / "index.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "mine &amp; yours" in page
    assert "cones2 compose --from pictures/" in page
    assert len(list((tmp_path / "gallery" / "pictures").iterdir())) == 2
    content = next((tmp_path / "gallery" / "pictures").iterdir()).read_bytes()
    assert hashlib.sha256(content).hexdigest() in "".join(
        json.dumps(json.loads(path.read_text())) for path in (tmp_path / "commit").iterdir()
    )
