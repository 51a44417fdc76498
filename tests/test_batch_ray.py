"""A batch on a real, local Ray cluster; left out where the extra `ray` is not installed."""

import os
import threading
from pathlib import Path

import pytest

from batch_hands import sleeping_spec
from cones2.batch.engine import Batch
from cones2.batch.job import Pictures
from cones2.batch.on_ray import RayActors
from cones2.batch.results import verify
from cones2.batch.store import open_store
from cones2.errors import SettingsError
from test_batch import drawn, expected, plan_of

os.environ["RAY_AUTH_MODE"] = "token"  # Ray reads it when it is imported
ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.timeout(300),
]


@pytest.fixture(autouse=True)
def found_by_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(Path(__file__).parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def crew(out: Path, address: str = "local") -> RayActors:
    return RayActors(address, 2, {**sleeping_spec(out), "threads": 1})


def test_actors_do_a_batch_and_one_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONES2_TEST_SECONDS", "0.3")
    plan = plan_of(Pictures(prompt=["a dog", "a fail"], seed="0-9"), lease=2)
    batch, actors = Batch(plan, open_store(tmp_path)), crew(tmp_path)
    killed = threading.Event()
    for outcome in batch.outcomes(actors):
        if outcome is not None and outcome.state == "done" and not killed.is_set():
            ray.kill(actors._actors[outcome.worker])
            killed.set()
    assert (batch.pictures.done, batch.pictures.failed) == (10, 10)
    fails = {case.id for lease in plan.leases for case in plan.cases(lease) if case.made["prompt"] == "a fail"}
    assert drawn(tmp_path) == {case: content for case, content in expected(plan).items() if case not in fails}
    assert verify(tmp_path).sound == 10


def test_a_remote_cluster_that_asks_for_no_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(SettingsError, match="token"):
        crew(tmp_path, "ray://192.0.2.1:10001")
