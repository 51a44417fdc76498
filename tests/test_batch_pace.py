"""How long a batch takes: by hand, of what its workers tell, of its kinds of pictures, and of several engines."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command import run
from cones2.batch import engine as engines
from cones2.batch.engine import Batch, Inline
from cones2.batch.estimate import Pace, kinds_of
from cones2.batch.job import Job, Pictures
from cones2.batch.lease import Bench
from cones2.batch.plan import Plan
from cones2.batch.resume import Note, read_engines, time_left
from cones2.batch.store import open_store
from faulty_store import MemoryStore, StillHands


class Clock:
    """Moves when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def drawn(pace: Pace, clock: Clock, worker: str, pictures: int, seconds: float) -> None:
    for _ in range(pictures):
        pace.heard(worker, {"event": "began"})
        clock.now += seconds
        pace.heard(worker, {"event": "drawn"})


def learned(pace: Pace, clock: Clock, first: int, last: int, steps: int, seconds: float) -> None:
    for step in range(first, last + 1):
        clock.now += seconds
        pace.heard("worker 1", {"event": "step", "step": step, "steps": steps})


def test_what_is_left_takes_as_long_as_what_was_done_and_not_what_others_did_before() -> None:
    pace = Pace(clock := Clock())
    assert pace.left(100_000, 0, 1) is None  # nothing is drawn yet
    pace.given("worker 1", "")
    drawn(pace, clock, "worker 1", 100, 1.0)
    assert pace.left(100_000, 0, 1) == pytest.approx(99_900)  # a hundred of them are drawn, and not committed yet
    pace.heard("worker 1", {"event": "ended", "committed": True})
    assert pace.left(99_900, 0, 1) == pytest.approx(99_900)
    assert pace.left(99_900, 0, 2) == pytest.approx(49_950)
    assert pace.left(99_900, 0, 0) is None  # nobody is at work
    assert pace.left(0, 0, 0) == 0.0
    assert pace.workers["worker 1"].as_json() == {"pictures": 100, "subjects": 0, "at": ""}


def test_a_subject_is_no_picture_and_what_it_had_learned_before_took_no_time() -> None:
    pace = Pace(clock := Clock())
    pace.given("worker 1", "rex")
    pace.heard("worker 1", {"event": "began"})
    learned(pace, clock, 31, 45, 60, 2.0)
    assert pace.workers["worker 1"].at == "learning rex, step 45 of 60"
    assert pace.left(0, 1, 1) == pytest.approx(15 * 2.0)
    assert pace.left(0, 3, 1) == pytest.approx((15 + 2 * 60) * 2.0)
    assert pace.left(5, 1, 1) is None  # no picture is drawn yet
    learned(pace, clock, 46, 60, 60, 2.0)
    pace.heard("worker 1", {"event": "ended", "committed": True})
    pace.given("worker 1", "")
    drawn(pace, clock, "worker 1", 2, 3.0)
    assert pace.left(5, 1, 1) == pytest.approx(3 * 3.0 + 60 * 2.0)
    assert pace.workers["worker 1"].as_json() == {"pictures": 2, "subjects": 1, "at": "drawing"}


def test_pictures_that_a_dead_worker_has_left_on_the_machine_are_no_pace() -> None:
    pace = Pace(Clock())
    pace.given("worker 1", "")
    pace.heard("worker 1", {"event": "drawn"})
    assert pace.left(8, 0, 1) is None
    assert pace.workers["worker 1"].pictures == 0
    pace.over("worker 1")
    assert pace.open(subjects=False) == 0


def pictures_of(**given: Any) -> Pictures:
    return Pictures(prompt=["a dog", "a cat"], **given)


def test_pictures_are_of_one_kind_whose_time_is_the_same() -> None:
    pictures = pictures_of(num_inference_steps=[20, 50], guidance_scale=[1.0, 2.0, 4.0], seed="0-9")
    plan = Plan.of(Job(pictures=(pictures_of(num_inference_steps=20, guidance_scale=7.0, seed="10-12"), pictures)))
    found = {}
    for number, count in kinds_of(plan.job.pictures):
        made = plan.entries.case(number).made["arguments"]
        found[made["num_inference_steps"], made["guidance_scale"] > 1] = count
    assert found == {(20, False): 20, (20, True): 40 + 6, (50, False): 20, (50, True): 40}


@given(
    steps=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    heights=st.lists(st.sampled_from([64, 128]), min_size=1, max_size=3),
    scales=st.lists(st.floats(0.5, 9), min_size=1, max_size=3),
    seeds=st.integers(1, 9),
)
def test_kinds_hold_every_picture_once(steps: list[int], heights: list[int], scales: list[float], seeds: int) -> None:
    given = {"num_inference_steps": steps, "height": heights, "guidance_scale": scales, "seed": list(range(seeds))}
    found = kinds_of([pictures_of(**given)])
    assert sum(count for _, count in found) == 2 * len(steps) * len(heights) * len(scales) * seeds
    assert len(found) == len({(step, height, scale > 1) for step in steps for height in heights for scale in scales})


def test_a_plan_weighs_each_kind(small_folder: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, heights in {"one": "64", "other": "128", "both": "[64, 128]"}.items():
        pictures = f'prompt = "a dog"\nheight = {heights}\nseed = "0-2"\nnum_inference_steps = 1\n'
        (tmp_path / f"{name}.toml").write_text(f'model = "{small_folder.as_posix()}"\n[[pictures]]\n{pictures}')
        sizes[name] = json.loads(run("batch", "plan", tmp_path / f"{name}.toml", "--json").stdout)["bytes"]
    assert sizes["one"] < sizes["other"]
    assert sizes["both"] == pytest.approx(sizes["one"] + sizes["other"], abs=6)


def note(part: int, parts: int, seconds: float | None, plan: str = "a") -> Note:
    shard = {"plan": plan, "part": part, "parts": parts}
    told = {"time": time.time(), "host": "here", "rate": 1.0, "seconds_left": seconds, "shard": shard}
    return Note.model_validate(told | {"workers": {}, "by_worker": {}})


def test_engines_share_what_is_left_of_a_part_and_the_slowest_part_counts() -> None:
    assert time_left([]) is None
    assert time_left([note(0, 1, 30.0)]) == pytest.approx(30)
    assert time_left([note(0, 1, 30.0), note(0, 1, 60.0)]) == pytest.approx(20)
    assert time_left([note(0, 2, 30.0), note(1, 2, 60.0)]) == pytest.approx(60)
    whole_plan_of_a_stranger = [note(0, 10**15, 1.0)]  # costs no memory
    for unknown in (
        [note(0, 1, None)],
        [note(0, 2, 30.0)],
        [note(0, 1, 30.0), note(0, 1, 30.0, "another")],
        whole_plan_of_a_stranger,
    ):
        assert time_left(unknown) is None


@pytest.mark.parametrize(
    "change",
    [
        {"rate": float("inf")},
        {"rate": -1},
        {"workers": None},
        {"by_worker": {"a": 1}},
        {"shard": 3},
        {"time": 1e12},
    ],
)
def test_a_strangers_note_is_none(change: dict[str, Any]) -> None:
    store, sound = MemoryStore(), note(0, 1, 3.0).model_dump()
    store.write("engines/a.json", json.dumps(sound).encode())
    assert [each.seconds_left for each in read_engines(store)] == [3.0]
    store.write("engines/a.json", json.dumps(sound | change).encode())
    assert not list(read_engines(store))


def test_status_tells_what_workers_do_and_how_long_the_rest_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_BEAT", -1.0)  # a note after each event
    plan = Plan.of(Job(pictures=(Pictures(prompt="a dog", seed="0-9"),), lease=4))
    batch = Batch(plan, open_store(tmp_path))
    outcomes = filter(None, batch.outcomes(Inline(Bench(batch.store, tmp_path / ".spool"), StillHands)))
    for _ in range(5):  # the first of the second lease is told when that is committed
        next(outcomes)
    told = json.loads(run("batch", "status", tmp_path, "--json").stdout)
    assert told["seconds_left"] >= 0
    (engine,) = told["engines"]
    assert engine["by_worker"] == {"worker 1": {"pictures": 8, "subjects": 0, "at": "drawing"}}
    lines = run("batch", "status", tmp_path).stdout.splitlines()
    assert lines[0] == "pictures: 8 done, 2 left"
    assert lines[1].endswith(" pictures/s")
    assert ": 1 worker at work, " in lines[1]
    assert lines[2] == "  worker 1: 8 pictures, drawing"
    assert lines[3].startswith("about 0 s")
    list(outcomes)
    assert run("batch", "status", tmp_path).stdout == "pictures: 10 done\n"
