"""Every case is committed exactly once, whatever fails and whoever dies: the driver over a storage that fails."""

import json
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cones2.batch.driver import TRIES, Driver
from cones2.batch.engine import Batch, Outcome, Task, do_task
from cones2.batch.job import Job, Photographed, Pictures
from cones2.batch.lease import Bench, Event, read_commit
from cones2.batch.plan import Lease, Plan
from cones2.batch.results import read
from cones2.batch.resume import stems, still_failed
from cones2.errors import OutputError
from cones2.examples import EXAMPLES
from faulty_store import Death, MemoryStore, StillHands, content_of

BROKEN = 5


def small_plan() -> Plan:
    """Twelve pictures in leases of four, the last of a subject that is to be learned."""
    rex = Photographed(tuple(photo.path for photo in EXAMPLES["rex"].photos), "dog")
    pictures = (Pictures(prompt="a dog", seed="0-7"), Pictures(prompt="a {rex}", seed="8-11"))
    return Plan.of(Job({"rex": rex}, pictures, lease=4))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan()


class Chaos:
    """Workers whose steps are taken in any order, of which any may be killed, on a storage that may fail."""

    workers = ("one", "two", "three")

    def __init__(self, store: MemoryStore, hands: StillHands, spool: Path, luck: random.Random) -> None:
        self.hands, self.luck = hands, luck
        self.bench = Bench(store, spool)
        self.at: dict[str, Iterator[Event]] = {}
        self.now = 0.0

    def start(self, worker: str) -> None:
        self.at[worker] = iter([{"event": "ready"}])

    def give(self, worker: str, task: Task) -> None:
        self.at[worker] = do_task(self.bench, self.hands, task)

    def hear(self, timeout: float) -> tuple[str, Event] | None:
        self.now += timeout
        worker = self.luck.choice(sorted(self.at)) if self.at else ""
        if not worker:
            return None
        try:
            event = next(self.at[worker], None)
        except Death:
            del self.at[worker]
            return worker, {"event": "died", "why": "killed"}
        except OutputError as error:
            del self.at[worker]
            return worker, {"event": "gave up", "why": str(error)}
        return None if event is None else (worker, event)

    def drain(self) -> None:
        pass

    def close(self) -> None:
        self.at.clear()


def unlucky(luck: random.Random, faults: dict[str, float]) -> Any:
    """A storage's fault: it fails, or whoever asked is killed, before it writes or after."""

    def fault(when: str, name: str) -> None:
        if name.startswith(("commit/", "data/", "subjects/", "checkpoints/")) and luck.random() < faults[when]:
            raise luck.choice([OutputError("the storage fails."), Death()])

    return fault


def run_engines(plan: Plan, store: MemoryStore, spool: Path, luck: random.Random, engines: int) -> list[StillHands]:
    """Run engines, each killed at any moment, until one has come to its end; two of them at the same time."""
    calm, hands = store.fault, []
    for number in range(engines):
        last = number == engines - 1
        at_once: list[Iterator[Outcome | None]] = []
        for _ in range(1 if last else 2):
            hands.append(StillHands({BROKEN}))
            crew = Chaos(store, hands[-1], spool, luck)
            at_once.append(Batch(plan, store, clock=lambda crew=crew: crew.now).outcomes(crew))  # type: ignore[misc]
        until = 10**6 if last else luck.randrange(1, 120)
        store.fault = (lambda *_: None) if last else calm
        for _ in range(until):
            if not at_once:
                break
            running = luck.choice(at_once)
            try:
                next(running)
            except (StopIteration, OutputError, Death):
                at_once.remove(running)
    return hands


@pytest.mark.filterwarnings("ignore:.*can't go on")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**64), before=st.floats(0, 0.4), after=st.floats(0, 0.4), engines=st.integers(1, 4))
def test_each_case_is_committed_once_whatever_fails(
    plan: Plan, seed: int, before: float, after: float, engines: int
) -> None:
    check_schedule(plan, seed, {"before": before, "after": after}, engines)


def check_schedule(plan: Plan, seed: int, faults: dict[str, float], engines: int) -> None:
    """Run one schedule, and check that nothing is lost or doubled and that all bytes are those of a serial run."""
    luck = random.Random(seed)
    store = MemoryStore(unlucky(luck, faults))
    with tempfile.TemporaryDirectory() as spool:
        run_engines(plan, store, Path(spool), luck, engines)
    expected = {case.id: content_of(case.made) for lease in plan.leases for case in plan.cases(lease)}
    broken = {case.id for lease in plan.leases for case in plan.cases(lease) if case.made["seed"] == BROKEN}
    commits = [read_commit(store, lease) for lease in stems(store, "commit")]
    committed = [case for commit in commits if commit is not None for case in commit.cases]
    assert len(committed) == len(set(committed))
    failed = {failure.case for failure in still_failed(store, stems(store, "commit"), set())}
    assert set(committed) | failed == set(expected)
    assert not set(committed) & failed
    assert broken <= failed
    assert {result.id: result.content for result in read(store)} == {case: expected[case] for case in committed}
    assert all(times == 1 for times in store.created.values())
    assert stems(store, "subjects", ".safetensors") == plan.lessons.keys()
    assert not store.names(f"checkpoints/{next(iter(plan.lessons))}")


def lease(name: str, *numbers: int, needs: str = "") -> Lease:
    return Lease(name, numbers, frozenset(needs.split()))


def test_subjects_come_before_their_pictures() -> None:
    driver = Driver([lease("rex"), lease("of rex", 0, needs="rex"), lease("other", 1)])
    assert driver.take("a", 0.0).id == "rex"  # type: ignore[union-attr]
    assert driver.take("b", 0.0).id == "other"  # type: ignore[union-attr]
    assert driver.take("c", 0.0) is None
    driver.ended("a", lease("rex"), committed=True, now=1.0)
    assert driver.take("a", 1.0).id == "of rex"  # type: ignore[union-attr]


def test_a_subject_of_another_engine_comes_after_ones_own() -> None:
    driver = Driver([lease("own"), lease("of both", 0, needs="own theirs")], foreign={"theirs"})
    assert driver.waits_for == {"theirs"}
    driver.add(lease("theirs"))
    assert [driver.take(worker, 0.0).id for worker in "ab"] == ["own", "theirs"]  # type: ignore[union-attr]
    assert (driver.take("c", 0.0), driver.waits_for) == (None, set())


@pytest.mark.parametrize("end", ["it ended", "it set it aside", "it is stuck", "it has another job"])
def test_a_subject_is_left_to_its_engine_as_long_as_that_may_still_begin_it(tmp_path: Path, end: str) -> None:
    photos = {name: tuple(photo.path for photo in EXAMPLES[name].photos) for name in ("rex", "luna")}
    pictures = (Pictures(prompt="a {rex} and a {luna}", seed=[0, 1]),)
    plan = Plan.of(Job({name: Photographed(each, "dog") for name, each in photos.items()}, pictures, lease=1))
    store, (theirs, own, *_) = MemoryStore(), plan.leases
    note = Batch(plan, store, shard=(0, 2)).describe()
    store.note("engines/theirs.json", json.dumps(note).encode())
    crew = Chaos(store, StillHands(), tmp_path, random.Random(0))
    running = Batch(plan, store, shard=(1, 2), clock=lambda: crew.now).outcomes(crew)
    while crew.now < 500:
        next(running)
    assert stems(store, "subjects", ".safetensors") == {own.id}
    if end == "it ended":
        store.delete("engines/theirs.json")
    elif end == "it set it aside":
        store.write(f"failed/{theirs.id}.json", b"{}")
    else:
        note["workers"] = {"worker 1": theirs.id[:12]} if end == "it is stuck" else {}
        note["shard"] = note["shard"] | ({} if end == "it is stuck" else {"plan": "0" * 64})
        store.note("engines/theirs.json", json.dumps(note).encode())
    list(running)
    assert 610 < crew.now < 650
    assert stems(store, "subjects", ".safetensors") == {theirs.id, own.id}


def test_pictures_of_a_subject_that_fails_are_blocked_and_the_others_done() -> None:
    rex, other = lease("rex"), lease("other", 2)
    driver = Driver([rex, lease("of rex", 0, 1, needs="rex"), other])
    for number in range(TRIES):
        driver.take("a", 0.0)
        assert driver.failed("a", "rex", "no photos") is (number == TRIES - 1)
        driver.ended("a", rex, committed=False, now=0.0)
    assert driver.take("a", 0.0) == other
    assert not driver.is_over
    driver.ended("a", other, committed=True, now=0.0)
    assert driver.is_over
    assert (driver.blocked, driver.aside) == (2, {"rex": "no photos"})


def test_a_case_that_ends_its_worker_three_times_is_set_aside() -> None:
    driver = Driver([lease("one", 0, 1)])
    for number in range(TRIES):
        assert driver.take("a", 0.0) is not None
        driver.began("a", "case")
        blamed, _ = driver.died("a", "out of memory")
        assert blamed == ("case" if number == TRIES - 1 else None)
    assert driver.take("a", 0.0) is not None
    driver.began("a", "other case")
    driver.progressed("a", "other case")
    assert driver.died("a", "between cases") == (None, 1.0)
    assert driver.aside == {"case": "out of memory"}


def test_learning_that_goes_on_is_not_to_blame_for_its_workers_ends() -> None:
    driver = Driver([lease("rex")])
    for _ in range(5 * TRIES):
        driver.take("a", 0.0)
        driver.began("a", "rex")
        driver.progressed("a", "rex")
        assert driver.died("a", "preempted") == (None, 0.0)
    assert not driver.aside


def test_pictures_that_were_there_are_no_progress_of_a_lease_that_can_not_be_committed() -> None:
    driver = Driver([lease("a", 0)])
    for number in range(1, 4):
        assert driver.take("worker", 0.0) is not None
        driver.progressed("worker", "a picture that was drawn before")
        driver.gave_up("worker")
        assert driver.troubles == number


def test_a_worker_that_is_stuck_is_overtaken_and_its_late_end_is_ignored() -> None:
    leases = [lease(name, number) for number, name in enumerate("xyz")]
    driver = Driver(leases)
    assert driver.take("stuck", 0.0) == leases[0]
    for each in leases[1:]:
        assert driver.take("b", 0.0) == each
        assert driver.ended("b", each, committed=True, now=10.0)
    assert driver.take("b", 59.0) is None
    assert driver.take("b", 61.0) == leases[0]
    assert driver.take("c", 1000.0) is None  # two are at it already
    assert driver.ended("b", leases[0], committed=True, now=62.0)
    assert driver.is_over
    assert not any(driver.failed("stuck", "case", "late") for _ in range(TRIES))
    assert not driver.ended("stuck", leases[0], committed=True, now=99.0)


def test_a_drained_driver_gives_nothing_and_waits_for_what_runs() -> None:
    one, two = lease("one", 0), lease("two", 1)
    driver = Driver([one, two])
    driver.take("a", 0.0)
    driver.draining = True
    assert driver.take("b", 0.0) is None
    assert not driver.is_over
    driver.ended("a", one, committed=True, now=0.0)
    assert driver.is_over
