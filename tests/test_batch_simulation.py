"""The simulation of many workers: its clock is that of a hand-worked batch, and the engine's work stays flat in it."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from cones2.batch.driver import Driver
from cones2.batch.plan import Lease

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package
simulation = importlib.import_module("batch_simulation")

EVEN = simulation.Conditions(picture=1.0, uneven=0.0, load=(3.0, 3.0), commit=0.5, slow=0.0, hearing=0.0)


@pytest.mark.parametrize(
    ("workers", "seconds"),
    [(1, 3 + 4 * 2.5), (2, 3 + 2 * 2.5), (3, 3 + 2 * 2.5), (4, 3 + 2.5), (9, 3 + 2.5)],  # four leases of two pictures
)
def test_its_clock_is_that_of_a_batch_worked_out_by_hand(workers: int, seconds: float) -> None:
    found = simulation.simulate(simulation.plan_of(8, 2), workers, EVEN)
    assert found.seconds == pytest.approx(seconds + found.driving, abs=0.05)
    assert found.drawn == 8


def test_machines_that_are_taken_away_cost_pictures_and_lose_none() -> None:
    calm, stormy = (
        simulation.simulate(simulation.plan_of(400, 4), 8, simulation.Conditions(picture=1.0, deaths=deaths))
        for deaths in (0.0, 30.0)
    )
    assert stormy.seconds > calm.seconds
    assert stormy.drawn > calm.drawn >= 400


def test_idle_workers_cost_the_engine_nothing_at_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, slow = [0], Driver._slow

    def counted(self: Driver, worker: str, now: float) -> Lease | None:
        looks[0] += 1
        return slow(self, worker, now)

    monkeypatch.setattr(Driver, "_slow", counted)
    given: dict[str, Any] = {"picture": 0.5, "slow": 0.0}
    found = simulation.simulate(simulation.plan_of(640, 32), 200, simulation.Conditions(**given))  # 20 leases
    assert looks[0] < 2 * found.seconds + 20  # not once for each of 180 idle workers and 1,300 events
