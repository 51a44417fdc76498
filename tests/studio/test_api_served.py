"""The whole server with its worker on `mini`: drawing, teaching, cancelling, kills and full disks."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from cones2.png import read_record
from cones2.redraw import PictureRecord
from studio_server import TOKEN, Served, photos, request, wait_for_job

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("studio")).start().wait_until_ready()
    yield server
    server.stop()


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.wait_until_ready().client() as found:
        yield found


def events(lines: Iterator[str], until: str) -> list[tuple[str, Any, str]]:
    """Return events, their data and ids, up to the first of a job in a state."""
    found, event, number = [], "", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            number = value
        elif name == "event":
            event = value
        elif name == "data":
            found.append((event, json.loads(value), number))
            if event == "state" and found[-1][1]["state"] == until:
                break
    return found


def test_a_picture_forms_before_ones_eyes(client: httpx.Client) -> None:
    asked = request(seeds=[3, 4], num_inference_steps=12, measure_attention=True)
    with client.stream("GET", "/v1/events") as stream:
        lines = stream.iter_lines()
        assert events(iter([next(lines), next(lines), next(lines)]), "")[0][0] == "snapshot"
        job = client.post("/v1/pictures", json=asked).json()
        seen = events(lines, "succeeded")
    kinds = [kind for kind, _, _ in seen]
    assert kinds.count("result") == 2
    assert "preview" in kinds
    steps = [data["step"] for kind, data, _ in seen if kind == "progress"]
    assert steps == sorted(steps)
    preview = client.get(f"/v1/jobs/{job['id']}/preview")
    assert Image.open(io.BytesIO(preview.content)).format == "WEBP"
    pictures = client.get("/v1/pictures").json()["pictures"]
    assert [each["seed"] for each in pictures[:2]] == [4, 3]
    ours = pictures[0]
    assert 0 < ours["attention"][0]["inside"] <= 1
    heat = client.get(f"/v1/pictures/{ours['id']}/attention/rex").content
    assert Image.open(io.BytesIO(heat)).mode == "RGBA"


def test_what_was_missed_is_told_again(client: httpx.Client) -> None:
    job = client.post("/v1/pictures", json=request(), headers={"Prefer": "wait=60"}).json()
    with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
        (first,) = events(stream.iter_lines(), "")
    assert first[1]["jobs"][0]["state"] == "succeeded"
    before = str(int(first[2]) - 3)  # of its running, its picture and its end, which is its newest state
    with client.stream("GET", f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": before}) as stream:
        told = events(stream.iter_lines(), "")
    assert [kind for kind, _, _ in told] == ["snapshot", "result", "state"]


def test_the_same_request_gives_the_same_bytes(client: httpx.Client, served: Served) -> None:
    answer = client.post("/v1/pictures", json=request(seeds=[9]), headers={"Prefer": "wait=60"})
    assert answer.status_code == 200
    (picture,) = answer.json()["results"]
    asked = client.get(f"/v1/pictures/{picture}/request").json()
    again = client.post("/v1/pictures", json=asked, headers={"Prefer": "wait=60"}).json()["results"][0]
    files = [client.get(f"/v1/pictures/{each}/file").content for each in (picture, again)]
    assert files[0] == files[1]
    record = PictureRecord.load(read_record(served.folder / "data" / "pictures" / f"{picture}.png"))
    assert record.prompt == asked["prompt"]
    dropped = client.post("/v1/requests/read", files={"file": ("x.png", files[0])}).json()
    assert dropped["missing"] == []
    assert client.post("/v1/pictures", json=dropped["request"]).status_code == 202


def test_a_cancelled_job_stops_within_a_step_and_keeps_nothing(client: httpx.Client) -> None:
    job = client.post("/v1/pictures", json=request(num_inference_steps=1000)).json()["id"]
    while client.get(f"/v1/jobs/{job}").json()["step"] < 2:
        time.sleep(0.05)
    client.post(f"/v1/jobs/{job}/cancel")
    ended = wait_for_job(client, job, 15)
    assert (ended["state"], ended["results"]) == ("cancelled", [])
    assert client.post("/v1/pictures", json=request(), headers={"Prefer": "wait=60"}).status_code == 200


def test_a_subject_is_taught_shown_and_drawn(client: httpx.Client, served: Served) -> None:
    data = {"name": "bello", "class_word": "dog", "steps": "12"}
    job = client.post("/v1/subjects", data=data, files=photos()).json()["id"]
    ended = wait_for_job(client, job)
    assert ended["state"] == "succeeded", ended
    assert [step for step, _ in ended["losses"]] == list(range(1, 13))
    assert client.get("/v1/subjects/bello").json()["thumb"] == "/v1/subjects/bello/thumb"
    assert not (served.folder / "data" / "learning" / job / "photos").exists()
    asked = request(prompt="a {bello}", subjects=[{"name": "bello", "source": "library"}], layout=None)
    assert client.post("/v1/pictures", json=asked, headers={"Prefer": "wait=60"}).json()["state"] == "succeeded"


def test_a_learning_is_finished_early_and_kept(client: httpx.Client) -> None:
    data = {"name": "early", "class_word": "dog", "steps": "5000"}
    job = client.post("/v1/subjects", data=data, files=photos()).json()["id"]
    while client.get(f"/v1/jobs/{job}").json()["step"] < 2:
        time.sleep(0.1)
    assert client.post(f"/v1/jobs/{job}/finish").status_code == 200
    ended = wait_for_job(client, job)
    assert ended["state"] == "succeeded"
    assert ended["step"] < 5000
    assert ended["kept"] == ended["step"]  # nothing was drawn yet that could be measured
    assert client.get("/v1/subjects/early").json()["fits"]


def test_killed_amid_learning_it_goes_on_from_its_checkpoint(served: Served, client: httpx.Client) -> None:
    data = {"name": "tough", "class_word": "dog", "steps": "60"}
    job = client.post("/v1/subjects", data=data, files=photos()).json()["id"]
    for steps in (12, 24):
        while client.get(f"/v1/jobs/{job}").json()["step"] < steps:
            time.sleep(0.05)
        if steps == 12:
            os.kill(served.worker() or 0, signal.SIGKILL)
        else:
            served.kill()
            served.start()
    ended = wait_for_job(client, job)
    assert (ended["state"], ended["attempt"]) == ("succeeded", 3)
    assert [step for step, _ in ended["losses"]] == list(range(1, 61))


def test_killed_amid_drawing_nothing_is_lost_or_doubled(served: Served, client: httpx.Client) -> None:
    jobs = [
        client.post("/v1/pictures", json=request(seeds=[1, 2], num_inference_steps=8)).json()["id"] for _ in range(3)
    ]
    time.sleep(2)
    served.kill()
    served.start()
    for job in jobs:
        ended = wait_for_job(client, job)
        assert ended["state"] == "succeeded"
        assert ended["results"] == [f"{job}-0", f"{job}-1"]


def test_a_client_that_never_reads_disturbs_nobody(served: Served, client: httpx.Client) -> None:
    import socket

    deaf = socket.create_connection(("127.0.0.1", served.port))
    head = f"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    deaf.sendall(head.encode())
    began = time.monotonic()
    for _ in range(200):
        assert client.get("/v1/jobs").status_code == 200
    assert time.monotonic() - began < 60
    deaf.close()


def test_the_client_of_the_documentation_works(served: Served, client: httpx.Client, tmp_path: Path) -> None:
    assert client.get("/healthz").status_code == 200
    command = [sys.executable, str(ROOT / "examples" / "studio_client.py"), served.url, TOKEN, str(tmp_path / "x.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert Image.open(io.BytesIO((tmp_path / "x.png").read_bytes())).size == (128, 128)


def test_a_disk_that_is_full_is_one_clear_answer(tmp_path: Path) -> None:
    server = Served(tmp_path, limit=150_000).start()  # no file may be larger, the journal's neither
    try:
        answers = []
        for number in range(60):
            with server.client(f"client-{number}") as client:
                answers.append(client.post("/v1/pictures", json=request()))
                if answers[-1].status_code != 202:
                    break
                assert client.get("/v1/jobs").status_code == 200
        assert (answers[-1].status_code, answers[-1].json()["type"]) == (507, "/problems/disk_full")
        with server.client() as client:
            taken = [answer.json()["id"] for answer in answers[:-1]]
            assert {job["id"] for job in client.get("/v1/jobs").json()["jobs"]} == set(taken)
    finally:
        server.kill()
