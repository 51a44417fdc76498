"""Streams of events, which generated requests leave out: whatever is asked of them has a clear answer, none hangs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio_server import app_alone, client_of, request

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with app_alone(tmp_path_factory.mktemp("studio")) as (found, _):
        yield found


@pytest.fixture(scope="module")
def ended(client: TestClient) -> str:
    """A job whose stream ends, since it was cancelled."""
    job = str(client.post("/v1/pictures", json=request()).json()["id"])
    client.post(f"/v1/jobs/{job}/cancel")
    return job


@pytest.mark.parametrize(
    "last", ["1" * 19, "9" * 5000, "-1", "+1", "1.0", "1e3", "abc", "0x1", "1 2", "1;DROP", "\xb2"]
)
def test_an_event_that_can_not_be_is_refused(client: TestClient, ended: str, last: str) -> None:
    for path in ("/v1/events", f"/v1/jobs/{ended}/events"):
        answer = client.get(path, headers=[(b"Last-Event-ID", last.encode("latin-1"))])
        assert answer.status_code == 422, path
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["errors"][0]["path"] == "header.last-event-id"
        assert len(answer.text) < 1000


@pytest.mark.parametrize(("last", "told"), [("", 0), ("0", 1), ("999999999999999999", 0), (None, 0)])
def test_the_stream_of_a_job_that_ended_tells_it_and_ends(
    client: TestClient, ended: str, last: str | None, told: int
) -> None:
    answer = client.get(f"/v1/jobs/{ended}/events", headers={} if last is None else {"Last-Event-ID": last})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.count("event: snapshot\n") == 1
    assert answer.text.count("event: state\n") == told


@pytest.mark.parametrize("job", ["nothing", "0" * 16, "%00", "..%2f..", "\u202e", "'; DROP TABLE jobs; --", "x" * 4000])
def test_the_stream_of_no_job_is_not_found(client: TestClient, job: str) -> None:
    answer = client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "1"})
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


def test_any_client_reads_a_stream_but_the_job_is_not_its_own(client: TestClient, ended: str) -> None:
    own = client.get(f"/v1/jobs/{ended}/events").text
    others = client_of(client.app, client="b").get(f"/v1/jobs/{ended}/events").text
    assert ('"mine": true' in own, '"mine": true' in others) == (True, False)


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_a_stream_is_only_read(client: TestClient, ended: str, method: str) -> None:
    for path in ("/v1/events", f"/v1/jobs/{ended}/events", "/v1/jobs/nothing/events"):
        answer = client.request(method, path, headers={"Last-Event-ID": "1"})
        assert answer.status_code == 405, path
        assert answer.headers["content-type"] == "application/problem+json"


def test_those_who_were_told_all_leave_no_stream_behind(tmp_path: Path) -> None:
    with app_alone(tmp_path) as (alone, studio):
        job = alone.post("/v1/pictures", json=request()).json()["id"]
        alone.post(f"/v1/jobs/{job}/cancel")
        for _ in range(20):
            assert alone.get(f"/v1/jobs/{job}/events").status_code == 200
        assert studio.broker._streams == set()
