"""The journal against a small model, what a killed server leaves, fairness, and clocks that jump."""

import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from cones2.studio import album as album_module
from cones2.studio import database as database_module
from cones2.studio import journal as journal_module
from cones2.studio.album import Album
from cones2.studio.database import Event
from cones2.studio.journal import LISTED, MOST_ATTEMPTS, QUEUED_PER_CLIENT, Journal, NewJob
from cones2.studio.problems import KeyReusedError, NameTakenError, QueueFullError
from cones2.studio.turns import fair_order


def new_job(number: int, client: str = "a", **more: Any) -> NewJob:
    return NewJob(id=f"job{number}", client=client, kind="draw", request={"n": number}, steps=3, **more)


def picture(job: str, index: int) -> dict[str, Any]:
    sizes = {"width": 8, "height": 8, "attention": [], "prompt": "a dog", "subjects": ["rex"], "layout": None}
    return {"id": f"{job}-{index}", "job": job, "seed": index, **sizes}


class Model(RuleBasedStateMachine):
    """The journal does what a dict of states does, also when it is closed and opened again at any point."""

    jobs: Bundle[str] = Bundle("jobs")

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.sqlite3"
        self.journal = Journal(self.path)
        self.states: dict[str, str] = {}
        self.attempts: Counter[str] = Counter()
        self.clients: dict[str, str] = {}
        self.wishes: set[str] = set()
        self.pictures: list[str] = []
        self.deleted: set[str] = set()
        self.starred: set[str] = set()
        self.gone: set[str] = set()
        self.numbers = itertools.count()
        self.heard: list[Event] = []
        self.journal.heard = self.heard.append

    @rule(target=jobs, client=st.sampled_from("abc"))
    def add(self, client: str) -> Any:
        job = new_job(next(self.numbers), client)
        waiting = sum(self.states[each] == "queued" and self.clients[each] == client for each in self.states)
        try:
            self.journal.add(job)
        except QueueFullError:
            assert waiting >= QUEUED_PER_CLIENT
            return multiple()
        self.states[job.id], self.clients[job.id], self.attempts[job.id] = "queued", client, 1
        return job.id

    @rule()
    def claim(self) -> None:
        row = self.journal.claim()
        if row is None:
            assert "queued" not in self.states.values()
        else:
            assert self.states[row["id"]] == "queued"
            self.states[row["id"]] = "running"

    @rule(job=jobs, state=st.sampled_from(["succeeded", "failed", "cancelled"]))
    def finish(self, job: str, state: str) -> None:
        assert self.journal.finish(job, state) == (self.states[job] == "running")
        if self.states[job] == "running":
            self.states[job] = state
            self.wishes.discard(job)

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        self.journal.wish(job, "cancel")
        if self.states[job] == "queued":
            self.states[job] = "cancelled"
        elif self.states[job] == "running":
            self.wishes.add(job)

    @rule(job=jobs)
    def retry(self, job: str) -> None:
        try:
            self.journal.retry(job)
        except QueueFullError:
            return
        if self.states[job] in ("failed", "cancelled"):
            self.states[job], self.attempts[job] = "queued", 1

    @rule(job=jobs, index=st.integers(0, 2))
    def draw(self, job: str, index: int) -> None:
        drawn = picture(job, index)
        added = Album(self.journal).add(drawn, {"seeds": [index]})
        assert added == (self.states[job] == "running" and drawn["id"] not in self.pictures)
        if added:
            self.pictures.append(drawn["id"])
            self.gone.discard(drawn["id"])

    @rule(chance=st.integers(0, 100), to=st.sampled_from(["delete", "restore", "star"]))
    def sort(self, chance: int, to: str) -> None:
        if not self.pictures:
            return
        chosen = self.pictures[chance % len(self.pictures)]
        change = {"delete": {"deleted": True}, "restore": {"deleted": False}, "star": {"starred": True}}[to]
        assert Album(self.journal).change(chosen, **change)
        if to == "star":
            self.starred.add(chosen)
        else:
            (self.deleted.add if to == "delete" else self.deleted.discard)(chosen)

    @rule()
    def empty(self) -> None:
        unfinished = {job for job, state in self.states.items() if state in ("queued", "running")}
        kept = {each for each in self.pictures if each.rpartition("-")[0] in unfinished} | self.starred
        gone = self.deleted - kept
        assert Album(self.journal).forget_deleted(timedelta(days=1)) == []
        assert set(Album(self.journal).forget_deleted()) == gone
        self.pictures = [each for each in self.pictures if each not in gone]
        self.deleted -= gone
        self.gone |= gone

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = Journal(self.path)
        self.journal.heard = self.heard.append
        self.journal.requeue()
        for job, state in self.states.items():
            if state == "running" and job in self.wishes:
                self.states[job] = "cancelled"
            elif state == "running" and self.attempts[job] >= MOST_ATTEMPTS:
                self.states[job] = "failed"
            elif state == "running":
                self.states[job], self.attempts[job] = "queued", self.attempts[job] + 1
        self.wishes.clear()

    @invariant()
    def says_the_same(self) -> None:
        if not hasattr(self, "journal"):
            return
        assert {row["id"]: row["state"] for row in self.journal.jobs(limit=10_000)} == self.states
        for in_bin in (False, True):
            listed = [row["id"] for row in reversed(Album(self.journal).pictures(limit=10_000, deleted=in_bin))]
            assert listed == [each for each in self.pictures if (each in self.deleted) is in_bin]
        numbers = [event.number for event in self.heard]
        assert numbers == sorted(set(numbers))
        newest = {event[1:]: event for event in self.heard if event.picture not in self.gone}
        assert self.journal.events_after(0, limit=10_000) == sorted(newest.values())

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            self.folder.cleanup()


Model.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestModel = Model.TestCase


def test_clients_take_turns_whoever_came_first_with_many() -> None:
    waiting = [{"client": client, "number": number} for number, client in enumerate("aaaabbc")]
    assert "".join(row["client"] for row in fair_order(waiting, {})) == "abcabaa"
    assert "".join(row["client"] for row in fair_order(waiting, {"a": 2, "b": 1})) == "cbabaaa"


def test_a_key_gives_the_same_job_and_refuses_another_body(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    first, is_new = journal.add(new_job(1, key="k", body_hash="x"))
    again, is_new_again = journal.add(new_job(2, key="k", body_hash="x"))
    other, _ = journal.add(new_job(3, "b", key="k", body_hash="y"))
    assert (is_new, is_new_again, again["id"], other["id"]) == (True, False, first["id"], "job3")
    with pytest.raises(KeyReusedError):
        journal.add(new_job(4, key="k", body_hash="y"))


def test_a_job_begun_three_times_fails(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.add(new_job(1))
    for _ in range(MOST_ATTEMPTS):
        assert journal.claim()
        journal.requeue()
    row = journal.job("job1")
    assert row is not None
    assert row["state"] == "failed"
    assert row["error"]["type"] == "/problems/given_up"


def test_a_clock_that_jumps_changes_no_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal")
    times = iter(["2030-01-01", "1999-01-01", "2040-01-01", "1970-01-01", "2000-01-01"] * 4)
    monkeypatch.setattr(journal_module, "now", lambda: next(times))
    for number in range(4):
        journal.add(new_job(number))
    claimed = [journal.claim() for _ in range(4)]
    assert [row["id"] for row in claimed if row] == ["job0", "job1", "job2", "job3"]


def test_a_locked_journal_is_an_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_WAIT", 0.1)
    journal = Journal(tmp_path / "journal")
    journal.add(new_job(1))
    other = sqlite3.connect(tmp_path / "journal", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        journal.claim()
    assert [row["state"] for row in journal.jobs()] == ["queued"]
    other.execute("ROLLBACK")
    other.close()
    assert journal.claim()


def test_what_is_told_is_in_the_journal_already(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    states = []
    journal.heard = lambda event: states.append((journal.job(event.job) or {})["state"])
    journal.add(new_job(1))
    journal.claim()
    journal.finish("job1", "succeeded")
    assert states == ["queued", "running", "succeeded"]


def test_a_server_that_is_ended_takes_no_attempt(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite3")
    journal.add(new_job(1))
    for _ in range(2 * MOST_ATTEMPTS):
        assert journal.claim() is not None
        journal.requeue(is_counted=False)
    row = journal.job("job1")
    assert row is not None
    assert (row["state"], row["attempt"]) == ("queued", 1)


def test_two_who_teach_one_name_at_once_do_not_learn_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite3")
    first, second = (
        NewJob(id=name, client=name, kind="learn", request={}, steps=3, subject="rex") for name in ("first", "second")
    )
    journal.add(first)
    with pytest.raises(NameTakenError, match="'rex' is being taught already"):
        journal.add(second)
    journal.wish("first", "cancel")
    journal.add(second)
    with pytest.raises(NameTakenError):
        journal.retry("first")


def test_who_fails_to_hear_an_event_harms_no_change(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite3")

    def fail(_: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    journal.heard = fail
    journal.add(new_job(1))
    row = journal.claim()
    assert row is not None
    assert row["state"] == "running"


def test_the_newest_of_each_job_and_picture_is_told_again_however_many_there_were(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite3")
    journal.add(new_job(1))
    journal.claim()
    Album(journal).add(picture("job1", 0), {})
    for _ in range(3):
        journal.requeue(is_counted=False)
        journal.claim()
    assert [(event.number, event.kind) for event in journal.events_after(0)] == [(3, "result"), (9, "state")]
    assert [event.number for event in journal.events_after(0, limit=1)] == [9]
    assert journal.events_after(9) == []


def test_a_file_of_an_earlier_version_is_brought_up_to_this_one(tmp_path: Path) -> None:
    new = sqlite3.connect(tmp_path / "new")
    new.executescript(database_module._TABLES)
    old = sqlite3.connect(tmp_path / "old")
    older = {"id": "old-0", "job": "old", "created": "", "seed": 0, "data": "{}", "request": "{}", "deleted": 1}
    before = "likenesses TEXT NOT NULL DEFAULT '[]', kept INTEGER,"
    assert before in database_module._TABLES
    old.executescript(f"{database_module._TABLES.replace(before, '')}PRAGMA user_version=1;")
    marks = database_module.marks(len(older))
    old.execute(f"INSERT INTO pictures ({', '.join(older)}) VALUES ({marks})", tuple(older.values()))
    old.commit()
    old.close()
    journal = Journal(tmp_path / "old")
    journal.add(new_job(1))
    row = journal.job("job1")
    assert row is not None
    assert (row["likenesses"], row["kept"]) == ([], None)
    assert Album(journal).forget_deleted(timedelta(days=1)) == []  # its days begin now
    columns = [
        set(each.execute("SELECT name FROM pragma_table_info('jobs')"))
        for each in (new, sqlite3.connect(tmp_path / "old"))
    ]
    assert columns[0] == columns[1]
    new.close()


@pytest.fixture
def long_ago(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Everything happens 40 days ago, until this is undone."""
    past = datetime.now(UTC) - timedelta(days=40)
    with monkeypatch.context() as patched:
        for module in (journal_module, album_module):
            patched.setattr(module, "now", lambda: past.isoformat(timespec="milliseconds"))
        patched.setattr("cones2.studio.album.time.time", past.timestamp)
        yield patched


def test_old_jobs_go_when_nothing_has_them_any_more(tmp_path: Path, long_ago: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.sqlite3")
    album = Album(journal)
    for number, state in enumerate(["succeeded", "succeeded", "failed", "cancelled", "succeeded"]):
        journal.add(new_job(number, key=str(number)))
        journal.claim()
        if number in (0, 4):
            album.add(picture(f"job{number}", 0), {})
        journal.finish(f"job{number}", state)
    album.change("job4-0", deleted=True)
    journal.add(new_job(5))  # it still waits
    long_ago.undo()
    journal.forget()
    assert len(journal.jobs()) == 6  # all are listed
    for number in range(LISTED):
        journal.add(new_job(10 + number, client=str(number)))
        journal.wish(f"job{10 + number}", "cancel")
    journal.forget()
    assert [row["id"] for row in journal.jobs(limit=1000)][LISTED:] == ["job5", "job4", "job0"]
    told = {event.job for event in journal.events_after(0, limit=10**6)}
    assert told >= {"job0", "job4", "job5"}
    assert not told & {"job1", "job2", "job3"}
    assert album.forget_deleted() == ["job4-0"]
    journal.forget()
    assert journal.job("job4") is None


def test_what_lies_in_the_bin_for_long_goes_but_for_what_is_starred(
    tmp_path: Path, long_ago: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal.sqlite3")
    album = Album(journal)
    journal.add(new_job(1))
    journal.claim()
    for index in range(5):
        album.add(picture("job1", index), {})
    journal.finish("job1", "succeeded")
    for index in (0, 1, 2):
        album.change(f"job1-{index}", deleted=True)
    album.change("job1-1", starred=True)
    album.put_into_bin("old", "rex", "dog")
    long_ago.undo()
    album.change("job1-2", deleted=True)  # it was already
    album.change("job1-3", deleted=True)
    album.put_into_bin("new", "rex", "dog")
    month = timedelta(days=30)
    assert album.forget_deleted(month) == ["job1-0", "job1-2"]
    assert album.forget_binned(month) == ["old"]
    assert album.forget_deleted() == ["job1-3"]
    assert album.forget_binned() == ["new"]
    assert [row["id"] for row in album.pictures()] == ["job1-4"]
    assert [row["id"] for row in album.pictures(deleted=True)] == ["job1-1"]
