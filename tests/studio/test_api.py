"""The API without a model: what it takes, what it refuses, and how it says so."""

import base64
import io
import json
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient

from cones2.studio.journal import QUEUED_PER_CLIENT
from cones2.studio.studio import Studio
from studio_server import REX, app_alone, client_of, photos, request

JSON = {"Content-Type": "application/json"}
Room = tuple[TestClient, Studio]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with app_alone(tmp_path) as found:
        yield found


def test_the_server_imports_no_pytorch() -> None:
    import subprocess
    import sys

    code = "import sys, cones2.studio.app, cones2.studio.uploads, cones2.photos; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_request_is_kept_with_its_subjects_by_hash(room: Room) -> None:
    client, studio = room
    answer = client.post("/v1/pictures", json=request())
    assert answer.status_code == 202
    job = client.get(answer.headers["Location"]).json()
    assert job["state"] == "queued"
    assert (job["position"], job["steps"], job["mine"]) == (1, 3, True)
    rex = job["request"]["subjects"][0]
    assert rex["class_word"] == "dog"
    assert studio.shelf.stored(rex["sha256"]).read_bytes() == (REX / "rex.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"prompt": "a {rex}"}, "prompt"),
        ({"prompt": "a {rex} and a {ball} and a {cat}"}, "prompt"),
        ({"prompt": "(rex:1.2) {rex} {ball}"}, "prompt"),
        ({"prompt": "\ud800 {rex} {ball}"}, "prompt"),
        ({"layout": {"version": 1, "regions": {"rex": [[0.5, 0, 0.4, 1]]}}}, "layout"),
        ({"layout": {"version": 1, "regions": {"cat": [[0.1, 0, 0.4, 1]]}}}, "layout"),
        ({"layout": {"version": 1, "regions": {"rex": {"mask": "/etc/passwd"}}}}, "layout"),
        ({"layout": {"version": 1, "regions": {"rex": {"mask": {"png": "A" * 90_000}}}}}, "layout"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1] * 9}, "seeds"),
        ({"seeds": ["1"]}, "seeds.0"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"scheduler": "http://example.com"}, "scheduler"),
        ({"unknown": 1}, "unknown"),
        ({"subjects": [{"name": "nobody", "source": "library"}]}, "subjects.0"),
        ({"subjects": [{"name": "../rex", "source": "word", "class_word": "dog"}]}, "subjects.0.name"),
        ({"subjects": [{"name": "rex", "source": "library", "sha256": "0" * 64}]}, "subjects.0"),
    ],
)
def test_what_can_not_be_drawn_is_refused_and_says_where(room: Room, changes: dict[str, Any], path: str) -> None:
    client, studio = room
    answer = client.post("/v1/pictures", content=json.dumps(request(**changes)), headers=JSON)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [each["path"] for each in answer.json()["errors"]] == [path]
    assert studio.journal.jobs() == []


def test_a_key_makes_one_job(room: Room) -> None:
    client, _ = room
    headers = {"Idempotency-Key": "one"}
    jobs = {client.post("/v1/pictures", json=request(), headers=headers).json()["id"] for _ in range(3)}
    assert len(jobs) == 1
    other = client.post("/v1/pictures", json=request(seeds=[5]), headers=headers)
    assert (other.status_code, other.json()["type"]) == (422, "/problems/key_reused")


def test_a_full_queue_says_when_to_come_again(room: Room) -> None:
    client, _ = room
    answers = [client.post("/v1/pictures", json=request()) for _ in range(QUEUED_PER_CLIENT + 1)]
    assert {answer.status_code for answer in answers[:-1]} == {202}
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["Retry-After"]) >= 1
    assert client_of(client.app, client="b").post("/v1/pictures", json=request()).status_code == 202


def test_only_who_queued_a_job_changes_it(room: Room) -> None:
    client, _ = room
    job = client.post("/v1/pictures", json=request()).json()["id"]
    other = client_of(client.app, client="b")
    assert other.get(f"/v1/jobs/{job}").json()["mine"] is False
    for action in ("cancel", "retry", "finish"):
        answer = other.post(f"/v1/jobs/{job}/{action}")
        assert (answer.status_code, answer.json()["type"]) == (403, "/problems/not_yours")
    assert client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{job}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{job}/retry").json()["state"] == "queued"


def test_a_full_disk_takes_no_job(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = room
    monkeypatch.setattr("cones2.studio.studio.LEAST_FREE", 2**62)
    for answer in (
        client.post("/v1/pictures", json=request()),
        client.post("/v1/subjects", data={"name": "a", "class_word": "dog"}, files=photos()),
    ):
        assert (answer.status_code, answer.json()["type"]) == (507, "/problems/disk_full")


def test_subjects_go_into_the_bin_and_come_back(room: Room) -> None:
    client, _ = room
    file = {"file": ("x", (REX / "rex.safetensors").read_bytes())}
    added = client.post("/v1/subjects/import", data={"name": "max"}, files=file)
    assert (added.status_code, added.json()["class_word"]) == (201, "dog")
    taken = client.post("/v1/subjects/import", data={"name": "max"}, files=file)
    assert (taken.status_code, taken.json()["type"]) == (409, "/problems/name_taken")
    assert client.patch("/v1/subjects/max", json={"name": "moritz"}).json()["name"] == "moritz"
    assert client.delete("/v1/subjects/moritz").status_code == 204
    assert client.get("/v1/subjects/moritz").status_code == 404
    (binned,) = client.get("/v1/subjects/bin").json()["subjects"]
    assert client.post(f"/v1/subjects/bin/{binned['id']}/restore").json()["name"] == "moritz"
    assert client.get("/v1/subjects/bin").json()["subjects"] == []
    assert client.get("/v1/subjects/moritz/file").content == file["file"][1]


def test_the_bin_is_emptied_and_what_was_in_it_is_not_found(room: Room) -> None:
    client, _ = room
    file = {"file": ("x", (REX / "rex.safetensors").read_bytes())}
    client.post("/v1/subjects/import", data={"name": "max"}, files=file)
    client.delete("/v1/subjects/max")
    (binned,) = client.get("/v1/subjects/bin").json()["subjects"]
    assert client.delete("/v1/bin").json() == {"pictures": 0, "subjects": 1}
    assert client.get("/v1/subjects/bin").json()["subjects"] == []
    assert client.post(f"/v1/subjects/bin/{binned['id']}/restore").status_code == 404
    for answer in (client.post("/v1/pictures/x/restore"), client.patch("/v1/pictures/x", json={"starred": True})):
        assert (answer.status_code, answer.json()["detail"]) == (404, "there is no such picture.")


def test_examples_can_not_be_changed(room: Room) -> None:
    client, _ = room
    assert client.get("/v1/subjects/rex/thumb").headers["content-type"] == "image/webp"
    assert client.delete("/v1/subjects/rex").status_code == 404
    assert client.patch("/v1/subjects/rex", json={"name": "max"}).status_code == 404


def test_a_prompt_is_checked_without_the_model(room: Room) -> None:
    client, _ = room
    asked = {"prompt": "a {rex} and a {cup}", "subjects": {"rex": "dog", "max": "cat"}, "layout": {"regions": {}}}
    checked = client.post("/v1/prompts/check", json=asked).json()
    assert checked["text"] == "a dog and a thing"
    assert checked["spans"][0] == {"name": "rex", "start": 2, "end": 5}
    assert checked["tokens"] is None
    kinds = {(each["kind"], each["name"]) for each in checked["problems"]}
    assert kinds == {("unknown_name", "cup"), ("no_place", "rex"), ("no_mention", "max")}


def test_places_are_suggested(room: Room) -> None:
    client, _ = room
    subjects = [{"name": "rex", "class_word": "dog"}, {"name": "car", "class_word": "car"}]
    answer = client.post("/v1/layouts/suggest", json={"subjects": subjects, "width": 128, "height": 128})
    assert answer.json()["layout"]["regions"]["rex"] == [[0.04, 0.4888, 0.48, 0.9]]


def read(client: TestClient, content: bytes) -> Any:
    return client.post("/v1/requests/read", files={"file": ("x", content)})


def test_a_table_of_boxes_is_read(room: Room) -> None:
    client, _ = room
    rows = [{"id": "<dog_1>", "bbox": [450, 40, 910, 500], "desc": "dog"}, {"id": "sky", "bbox": [0, 0, 300, 1000]}]
    found = read(client, json.dumps(rows).encode()).json()["request"]
    assert found["layout"]["regions"] == {"dog_1": [[0.04, 0.45, 0.5, 0.91]], "sky": [[0.0, 0.0, 1.0, 0.3]]}
    assert [(each["name"], each["class_word"]) for each in found["subjects"]] == [("dog_1", "dog"), ("sky", "sky")]


def test_layout_files_are_read(room: Room) -> None:
    client, _ = room
    written = {"version": 1, "regions": {"rex": [[0.1, 0.2, 0.3, 0.4]]}}
    assert read(client, json.dumps(written).encode()).json()["request"] == {"layout": written}
    toml = b"[regions]\nrex = [[0.1, 0.2, 0.3, 0.4]]\n"
    assert read(client, toml).json()["request"] == {"layout": written}


def png(**texts: Any) -> bytes:
    info, content = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(content, "PNG", pnginfo=info)
    return content.getvalue()


def test_the_text_of_another_tool_is_read(room: Room) -> None:
    client, _ = room
    text = "a dog, (red:1.2)\nNegative prompt: blur\n"
    text += "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 9, Size: 64x96"
    found = read(client, png(parameters=text)).json()
    assert found["request"] == {
        "prompt": "a dog, (red:1.2)",
        "negative_prompt": "blur",
        "num_inference_steps": 20,
        "guidance_scale": 7.5,
        "seeds": [9],
        "width": 64,
        "height": 96,
        "scheduler": "dpm++-karras",
    }
    assert len(found["notes"]) == 2


def test_a_subject_that_comes_in_a_picture_can_be_drawn(room: Room) -> None:
    client, studio = room
    content = (REX.parent / "fido" / "fido.safetensors").read_bytes()
    import cones2

    mixed = cones2.Residual.from_bytes(content).mix(cones2.Residual.load(REX / "rex.safetensors"), 0.5)
    subject = {"class_word": "dog", "residual": mixed.sha256, "strength": 0.5, "during": [0, 1], "negative": ""}
    gone = {**subject, "residual": "0" * 64}
    embedded = {mixed.sha256: base64.b64encode(mixed.to_bytes()).decode()}
    record = {
        "prompt": "a {pup} and a {gone}",
        "subjects": {"pup": subject, "gone": gone},
        "residuals": embedded,
        "seed": 7,
    }
    found = read(client, png(cones2=PngImagePlugin.iTXt(json.dumps(record)))).json()
    assert found["missing"] == [{"name": "gone", "sha256": "0" * 64, "class_word": "dog"}]
    pup = found["request"]["subjects"][0]
    assert (pup["sha256"], pup["strength"]) == (mixed.sha256, 0.5)
    drawn = client.post("/v1/pictures", json={"prompt": "a {pup}", "subjects": [pup], "seeds": [1]})
    assert drawn.status_code == 202
    assert studio.shelf.stored(mixed.sha256).read_bytes() == mixed.to_bytes()


def test_settings_of_another_tool_are_read_in_linear_time(room: Room) -> None:
    client, _ = room
    for tail in (" " * 90_000 + "!", ', x: "' + "\\a" * 40_000, ',x: "' * 20_000):
        began = time.monotonic()
        assert read(client, png(parameters=f"a dog\nSteps: 20,{tail}")).json()["request"]["num_inference_steps"] == 20
        assert time.monotonic() - began < 5  # the square of its length took an hour


@pytest.mark.parametrize("side", ["1" + "0" * 400, "1e999", "true"])
def test_numbers_of_any_size_in_a_table_are_cut_to_the_picture(room: Room, side: str) -> None:
    client, _ = room
    table = f'[{{"id": "dog", "bbox": [0, 0, 500, {side}], "desc": "\\ud800\\u001b[31m"}}]'
    answer = read(client, table.encode())
    assert answer.status_code == 200
    assert "\x1b" not in answer.json()["request"]["subjects"][0]["class_word"]


def test_a_record_with_a_number_that_is_too_large_is_refused(room: Room) -> None:
    client, _ = room
    subject = {"class_word": "dog", "residual": "0" * 64, "strength": 10**400}
    record = {"prompt": "a {rex}", "subjects": {"rex": subject}}
    assert read(client, png(cones2=PngImagePlugin.iTXt(json.dumps(record)))).status_code == 422


@pytest.mark.parametrize("regions", [5, "rex", [[1]], None])
def test_a_prompt_is_checked_whatever_its_layout_is(room: Room, regions: Any) -> None:
    client, _ = room
    asked = {"prompt": "a {rex}", "subjects": {"rex": "dog"}, "layout": {"regions": regions}}
    (found,) = client.post("/v1/prompts/check", json=asked).json()["problems"]
    assert found["kind"] == "no_place"


def test_a_layout_larger_than_any_request_is_not_parsed(room: Room) -> None:
    client, _ = room
    answer = read(client, b"[" + b"1," * 1_000_000 + b"1]")
    assert (answer.status_code, "2,000,000 bytes" in answer.text) == (422, True)


def bomb() -> bytes:
    """Return a PNG that says it has 900 million pixels."""
    head = (30_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    chunks = b""
    for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100_000)), (b"IEND", b"")):
        chunks += len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunks


HOSTILE = {
    "bomb": bomb(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "empty": b"",
    "html polyglot": b"\xff\xd8\xff<html><script>alert(1)</script>",
    "cut off": (REX / "photos" / "0.png").read_bytes()[:200],
    "pickle": b"\x80\x04\x95",
    "zip": b"PK\x03\x04" + b"\0" * 100,
}


def test_hostile_photos_are_named_and_the_others_are_kept(room: Room) -> None:
    client, studio = room
    hostile = [("photos", (f"<img onerror=x>{name}", content, "image/png")) for name, content in HOSTILE.items()]
    checked = client.post("/v1/photos/check", files=[*photos(1), *hostile])
    assert checked.status_code == 200
    assert [each["ok"] for each in checked.json()["photos"]] == [True] + [False] * len(HOSTILE)
    assert checked.json()["photos"][0]["preview"].startswith("data:image/webp;base64,")
    refused = client.post("/v1/subjects", data={"name": "a", "class_word": "dog"}, files=[*photos(2), hostile[0]])
    assert (refused.status_code, refused.json()["type"]) == (415, "/problems/not_a_picture")
    assert list((studio.folder / "learning").iterdir()) == []
    assert studio.journal.jobs() == []


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_in_one_line(room: Room, content: bytes) -> None:
    client, _ = room
    for answer in (
        read(client, content),
        client.post("/v1/subjects/import", data={"name": "a"}, files={"file": ("x", content)}),
    ):
        assert 400 <= answer.status_code < 500
        assert answer.headers["content-type"] == "application/problem+json"


def test_too_many_and_too_large_files_are_refused(room: Room) -> None:
    client, _ = room
    many = [("photos", (str(number), b"x", "image/png")) for number in range(200)]
    assert client.post("/v1/photos/check", files=many).status_code == 413
    large = client.post("/v1/requests/read", files={"file": ("x", b"x" * 25_000_001)})
    assert large.status_code == 413
    assert client.post("/v1/pictures", content=b" " * 2_000_001).status_code == 413
    assert client.post("/v1/pictures", content=iter([b" " * 500_000] * 5)).status_code == 413


def test_crops_and_photos_become_what_is_learned_from(room: Room) -> None:
    client, studio = room
    data = {"name": "max", "class_word": "dog", "crops": json.dumps([None, [0, 0, 0.5, 0.25]])}
    answer = client.post("/v1/subjects", data=data, files=photos(2))
    assert answer.status_code == 202
    folder = studio.folder / "learning" / answer.json()["id"] / "photos"
    sizes = [Image.open(io.BytesIO((folder / f"{number}.png").read_bytes())).size for number in range(2)]
    assert sizes == [(128, 128), (64, 32)]
    taken = client.post("/v1/subjects", data=data, files=photos(2))
    assert taken.status_code == 409


@pytest.mark.parametrize(
    "crops",
    [f"[[0,0,1{'0' * 400},1]]", "[[0,0,2,1]]", "[[0.5,0,0.5,1]]", '["x"]', "[[0,0,1,NaN]]", "x", "[1]", "[" * 5000],
)
def test_crops_that_make_no_sense_are_refused(room: Room, crops: str) -> None:
    client, _ = room
    data = {"name": "max", "class_word": "dog", "crops": crops}
    assert client.post("/v1/subjects", data=data, files=photos(1)).status_code == 422
