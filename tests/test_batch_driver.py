"""Every case is committed exactly once, whatever fails and whoever dies: the driver in a world that fails."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from batch_world import EVER, FAULTS, POINTS, Setting, World, photographed, small_plan
from cones2.batch.driver import TRIES, Driver
from cones2.batch.engine import Batch
from cones2.batch.job import Job, Pictures
from cones2.batch.plan import Lease, Plan

KNOWN: list[Setting] = []
"""What all worlds here are about, once it is made."""

ONE_OF_TWO, ONE_OF_SIX = st.integers(0, 1), st.integers(0, 5)
TROUBLE = st.tuples(st.sampled_from(["fails", "kills"]), st.sampled_from([1, 2, 3, 4, EVER]))


def known() -> Setting:
    if not KNOWN:
        KNOWN.append(Setting(small_plan()))
    return KNOWN[0]


class Schedules(RuleBasedStateMachine):
    """What can happen to a batch. In the end all goes on without faults, and `World.calm` says what must be so then."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(known())

    @initialize(
        ailments=st.dictionaries(st.sampled_from([*range(11), "rex", "luna"]), TROUBLE, max_size=4),
        shard=st.integers(0, 2),
        workers=st.integers(1, 3),
    )
    def begin_first(self, ailments: dict[Any, tuple[str, int]], shard: int, workers: int) -> None:
        """Some cases and subjects fail, or end their workers, a few times or for good."""
        self.world.ailments = ailments
        self.world.begin(shard, workers)

    @rule(shard=st.integers(0, 2), workers=st.integers(1, 3))
    def begin(self, shard: int, workers: int) -> None:
        """An engine begins, where fewer than two are at work."""
        self.world.begin(shard, workers)

    @rule(rounds=st.integers(1, 10))
    def run_all(self, rounds: int) -> None:
        """All who are awake go on."""
        self.world.run(rounds)

    @rule(number=ONE_OF_TWO, points=st.integers(1, 6))
    def drive(self, number: int, points: int) -> None:
        """An engine goes on, and may stop amid an operation."""
        self.world.drive(number, points)

    @rule(
        number=ONE_OF_SIX,
        until=st.sampled_from(POINTS),
        points=st.integers(1, 40),
        then=st.sampled_from(["", "die", "asleep"]),
    )
    def work(self, number: int, until: str, points: int, then: str) -> None:
        """A worker goes on to some point, and may die or be stopped there."""
        self.world.work(number, until, points, then)

    @rule(number=ONE_OF_SIX)
    def wake(self, number: int) -> None:
        """A worker that was stopped goes on."""
        self.world.wake(number)

    @rule(number=ONE_OF_TWO)
    def drop(self, number: int) -> None:
        """An engine is killed, and those of its workers that are awake end with it."""
        self.world.drop(number)

    @rule(number=ONE_OF_TWO)
    def drain(self, number: int) -> None:
        """Ctrl-C."""
        self.world.drain(number)

    @rule(fault=st.integers(0, len(FAULTS) - 1))
    def arm(self, fault: int) -> None:
        """The next operation of some kind goes wrong."""
        self.world.arm(fault)

    @rule(seconds=st.sampled_from([11.0, 35.0, 130.0, 1000.0]))
    def sleep(self, seconds: float) -> None:
        """Time passes."""
        self.world.sleep(seconds)

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        """What is committed is that of a serial run, and stays."""
        self.world.check()

    def teardown(self) -> None:
        """All goes on without faults."""
        try:
            self.world.calm()
            for what in self.world.happened:
                event(what)
        finally:
            self.world.close()


TestSchedules = pytest.mark.filterwarnings("ignore:.*can't go on")(Schedules.TestCase)
TestSchedules.settings = settings(max_examples=40, stateful_step_count=40)


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


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    """Worlds that end with the test."""
    made: list[World] = []
    yield made
    for world in made:
        world.close()


@pytest.mark.parametrize("end", ["it ended", "it set it aside", "it is stuck", "it has another job"])
def test_a_subject_is_left_to_its_engine_as_long_as_that_may_still_begin_it(worlds: list[World], end: str) -> None:
    subjects = {name: photographed(name) for name in ("rex", "luna")}
    pictures = (Pictures(prompt="a {rex} and a {luna}", seed=[0, 1]),)
    world = World(Setting(Plan.of(Job(subjects, pictures, lease=1))))
    worlds.append(world)
    theirs, own, *_ = world.plan.leases
    note = Batch(world.plan, world.store, shard=(0, 2)).describe()

    def go_on(until: float, *, tells: bool) -> None:
        """Let the engine go on while another tells that it is at work."""
        while world.now < until and world.running():
            if tells:
                world.store.note("engines/theirs.json", json.dumps(note | {"time": world.now}).encode())
            world.run()

    go_on(world.now + 1.0, tells=True)
    world.begin(shard=2, workers=1)
    go_on(1500.0, tells=True)
    assert world.learned() == {own.id}
    if end == "it ended":
        world.store.delete("engines/theirs.json")
    elif end == "it set it aside":
        world.store.write(f"failed/{theirs.id}.json", b"{}")
    else:
        note["workers"] = {"worker 1": theirs.id[:12]} if end == "it is stuck" else {}
        note["shard"] = note["shard"] | ({} if end == "it is stuck" else {"plan": "0" * 64})
    go_on(1615.0, tells=end != "it ended")
    assert world.learned() == {own.id}
    go_on(2000.0, tells=end != "it ended")
    assert world.engines[0].end == "done"
    assert world.learned() == {theirs.id, own.id}


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
        driver.began("a", "case", 0.0)
        blamed, _ = driver.died("a", "out of memory")
        assert blamed == ("case" if number == TRIES - 1 else None)
    assert driver.take("a", 0.0) is not None
    driver.began("a", "other case", 0.0)
    driver.progressed("a", "other case", 0.0)
    assert driver.died("a", "between cases") == (None, 1.0)
    assert driver.aside == {"case": "out of memory"}


def test_learning_that_gets_further_is_not_to_blame_for_its_workers_ends() -> None:
    driver = Driver([lease("rex")])
    for step in range(1, 5 * TRIES):
        driver.take("a", 0.0)
        driver.began("a", "rex", 0.0)
        driver.progressed("a", "rex", 0.0, step)
        assert driver.died("a", "preempted") == (None, 0.0)
    assert not driver.aside


def test_a_subject_that_never_gets_beyond_a_step_is_set_aside() -> None:
    driver = Driver([lease("rex")])
    blamed = []
    for _ in range(TRIES + 1):
        assert driver.take("a", 0.0) is not None
        driver.began("a", "rex", 0.0)
        for step in (1, 2):  # before the first checkpoint
            driver.progressed("a", "rex", 0.0, step)
        blamed.append(driver.died("a", "out of memory")[0])
        if blamed[-1]:
            break
    assert blamed == [*[None] * (TRIES - 1), "rex"]
    assert driver.is_over


def test_a_subject_that_can_not_be_checkpointed_ends_as_troubles() -> None:
    driver = Driver([lease("rex")])
    for troubles in range(1, 9):
        driver.take("a", 0.0)
        driver.began("a", "rex", 0.0)
        driver.progressed("a", "rex", 0.0, 1)
        driver.gave_up("a")
        assert driver.troubles == troubles


def test_pictures_that_were_there_are_no_progress_of_a_lease_that_can_not_be_committed() -> None:
    driver = Driver([lease("a", 0)])
    for number in range(1, 4):
        assert driver.take("worker", 0.0) is not None
        driver.progressed("worker", "a picture that was drawn before", 0.0)
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
    assert driver.take("c", 180.0) is None  # the second has twice as long
    assert driver.take("c", 182.0) == leases[0]
    assert driver.ended("b", leases[0], committed=True, now=183.0)
    assert driver.is_over
    assert driver.take("b", 999.0) is None  # it is done, whoever else is at it
    assert not any(driver.failed("stuck", "case", "late") for _ in range(TRIES))
    assert not driver.ended("stuck", leases[0], committed=True, now=99.0)


@pytest.mark.parametrize(
    ("seconds", "silence"),
    [(1.0, 120.0), (10.0, 300.0), (60.0, 900.0), (400.0, 1200.0)],  # 30 usual steps; three, where these take long
)
def test_a_subject_of_which_nothing_is_heard_is_given_to_another_worker(seconds: float, silence: float) -> None:
    driver = Driver([lease("rex")])
    assert driver.take("stuck", 0.0) == lease("rex")
    driver.began("stuck", "rex", 0.0)
    for step in range(1, 6):
        driver.progressed("stuck", "rex", step * seconds, step)
    last = 5 * seconds
    assert driver.take("b", last + silence) is None
    assert driver.take("b", last + silence + 1.5) == lease("rex")
    driver.began("b", "rex", last + silence + 2.0)
    driver.progressed("stuck", "rex", last + silence + 3.0, 6)  # it wakes up, and both go on
    assert driver.take("c", last + 2 * silence) is None
    assert driver.ended("b", lease("rex"), committed=True, now=last + 2 * silence)
    assert driver.is_over
    assert not driver.ended("stuck", lease("rex"), committed=True, now=last + 3 * silence)


def test_a_lease_that_hangs_always_does_not_take_all_workers() -> None:
    driver = Driver([lease("one", 0)])
    taken = [driver.take(worker, 10_000.0 * number) for number, worker in enumerate("abcdef")]
    assert [each is not None for each in taken] == [True, True, True, False, False, False]


def test_a_subject_that_fails_for_one_worker_and_ends_at_a_slower_one_is_learned() -> None:
    rex, of_rex = lease("rex"), lease("of rex", 0, needs="rex")
    driver = Driver([rex, of_rex])
    driver.take("slow", 0.0)
    for now in (1000.0, 3000.0, 7000.0):
        assert driver.take("a", now) == rex
        is_aside = driver.failed("a", "rex", "no photos")
        driver.ended("a", rex, committed=False, now=now)
    assert is_aside
    assert driver.take("a", 9000.0) is None
    assert driver.blocked == 1
    assert driver.ended("slow", rex, committed=True, now=9001.0)
    assert (driver.blocked, driver.aside, driver.take("a", 9002.0)) == (0, {}, of_rex)


@pytest.mark.parametrize("given", [lease("rex"), lease("one", 0)])
def test_what_never_began_is_given_to_another_worker_after_a_quarter_of_an_hour(given: Lease) -> None:
    driver = Driver([given])
    assert driver.take("stuck", 0.0) == given
    assert driver.take("b", 900.0) is None
    assert driver.take("b", 902.0) == given


def test_a_learning_that_is_stopped_goes_on_elsewhere_from_its_checkpoint_and_comes_too_late(
    worlds: list[World],
) -> None:
    world = World(known())
    worlds.append(world)
    world.begin(workers=3)
    world.run(2)
    stuck, *_ = world.workers()
    world.work(0, "after put")  # of the first file of a checkpoint
    world.work(0, "event step", then="asleep")
    while world.running():
        world.run()
        world.now += 5.0
    assert world.engines[0].end == "done"
    assert world.happened["a subject of a straggler given to another worker"] == 1
    assert world.happened["a subject gone on with from a checkpoint"] == 1
    world.wake(0)
    while not stuck.is_over:
        world.run()
    assert world.happened["too late with: subjects"] == 0  # it looks before its next checkpoint
    world.calm()


def test_a_drained_driver_gives_nothing_and_waits_for_what_runs() -> None:
    one, two = lease("one", 0), lease("two", 1)
    driver = Driver([one, two])
    driver.take("a", 0.0)
    driver.draining = True
    assert driver.take("b", 0.0) is None
    assert not driver.is_over
    driver.ended("a", one, committed=True, now=0.0)
    assert driver.is_over
