"""`cones2 batch` on the real, tiny model: from a job to a gallery."""

import contextlib
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec  # type: ignore[import-untyped]
import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from PIL import Image

from command import refused, run
from cones2.batch import Job, Photographed, Pictures, read, read_job
from cones2.batch import engine as engines
from cones2.batch.engine import Batch, Inline
from cones2.batch.lease import Bench, learn_lease
from cones2.batch.plan import Plan
from cones2.batch.resume import carry_files
from cones2.batch.store import open_store
from cones2.batch.work import ModelHands
from cones2.cli import batch, console
from cones2.examples import EXAMPLES
from cones2.learning.recipe import Recipe
from cones2.library import Library
from cones2.png import record_in
from faulty_store import StillHands

pytestmark = pytest.mark.timeout(300)

QUICK = "steps = 3\nlearning_rate = 1e-3\ncaption_count = 4\ncaptions_per_step = 2\n"


@pytest.fixture
def job(small_folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "quick.toml").write_text(QUICK)
    path = tmp_path / "job.toml"
    path.write_text(f"""
model = "{small_folder.as_posix()}"
recipe = "quick.toml"
[subjects.rex]
photos = "{(EXAMPLES["rex"].folder / "photos").as_posix()}"
class_word = "dog"
[subjects.ball]
class_word = "ball"
[[pictures]]
prompt = "a {{rex}} and a {{ball}}"
layout = {{rex = "left", ball = [0.5, 0.5, 1, 1]}}
strength.rex = [0.5, 1.0]
seed = "0-1"
num_inference_steps = 2
""")
    return path


def test_from_a_job_to_a_gallery(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = json.loads(run("batch", job, "--out", out, "--json").stdout)
    assert (report["pictures"]["done"], report["subjects"]["done"]) == (4, 1)
    again = json.loads(run("batch", "run", job, "--out", out, "--json").stdout)
    assert (again["pictures"]["done"], again["pictures"]["left"]) == (4, 0)
    status = json.loads(run("batch", "status", out, "--json").stdout)
    assert status["pictures"] == {"total": 4, "done": 4, "failed": 0, "blocked": 0, "left": 0}
    assert "4 pictures sound" in run("batch", "verify", out).stdout
    run("batch", "sheet", out, "--sheet", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > sheet.width / 2
    run("batch", "gallery", out)
    assert (out / "gallery" / "index.html").exists()
    assert "rex" in run("batch", "subjects", out, "--add").stdout
    residual = Library.open().load("rex")
    records = [record_in(result.content, result.id) for result in read(out)]
    assert {record["subjects"]["rex"]["residual"] for record in records} == {residual.sha256}
    assert [record["seed"] for record in records] == [0, 1, 0, 1]
    assert [record["subjects"]["rex"]["strength"] for record in records] == [0.5, 0.5, 1.0, 1.0]
    assert {frozenset(record["layout"]["regions"]) for record in records} == {frozenset({"rex", "ball"})}


def test_a_picture_of_a_batch_is_drawn_again_by_the_line_of_the_gallery_as_it_stands(
    job: Path, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = os.path.relpath(small_folder, tmp_path)
    job.write_text(job.read_text().replace(small_folder.as_posix(), Path(beside).as_posix()))
    monkeypatch.chdir(tmp_path)
    run("batch", job.name, "--out", "out")
    run("batch", "gallery", "out")
    monkeypatch.chdir(tmp_path / "out" / "gallery")
    lines = re.findall("<code>(.*?)</code>", Path("index.html").read_text())
    words = shlex.split(html.unescape(lines[2]))
    assert words[0] == "cones2"
    run(*words[1:])
    with Image.open(words[words.index("--from") + 1]) as one, Image.open("again.png") as again:
        assert one.tobytes() == again.tobytes()


def test_progress_without_a_terminal_tells_done_left_pace_and_workers(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "_SHOWN", -1.0)
    monkeypatch.setattr(console, "_EVERY", -1.0)
    job.write_text(job.read_text() + 'negative_prompt = ["", "grey"]\n')
    first = run("batch", job, "--out", tmp_path / "out").stderr.splitlines()
    shown = [line for line in first if line.startswith("batch: ")]
    number = r"\d+\.\d\d pictures/s"
    begun = "batch: pictures: 0 done, 8 left; subjects: 1 done; 0.00 pictures/s; worker 1: 1 subject"
    assert any(line.startswith(begun) for line in shown)
    steady = rf"batch: pictures: 5 done, 3 left; subjects: 1 done; {number}, about \d+ s to go; worker 1: 5 pict.*"
    assert any(re.fullmatch(steady, line) for line in shown)
    ended = rf"batch: pictures: 8 done; subjects: 1 done; {number}, about 0 s to go; worker 1: 8 pictures, 1 subject"
    assert re.fullmatch(ended, shown[-1])


def test_pictures_that_fail_count_on_the_way(tmp_path: Path) -> None:
    plan = Plan.of(Job(pictures=(Pictures(prompt="a dog", seed="0-9"),), lease=1))
    shown: list[tuple[int, int, str]] = []
    running = Batch(plan, open_store(tmp_path))
    crew = Inline(Bench(running.store, tmp_path / ".spool"), lambda: StillHands({3, 4}))
    for outcome in running.outcomes(crew):
        if outcome is not None and outcome.state == "failed":
            batch._show(running, lambda step, steps, text: shown.append((step, steps, text)))
    assert [(step, steps) for step, steps, _ in shown] == [(4, 10), (5, 10)]
    assert shown[1][2].splitlines()[0] == "pictures: 3 done, 2 failed, 5 left"


def test_how_far_it_is_is_told_within_a_lease_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_PATIENCE", -1.0)
    running = Batch(Plan.of(Job(pictures=(Pictures(prompt="a dog", seed="0-9"),), lease=10)), open_store(tmp_path))
    crew, shown = Inline(Bench(running.store, tmp_path / ".spool"), StillHands), set[str]()
    for _ in running.outcomes(crew):
        batch._show(running, lambda _step, _steps, text: shown.add(text.splitlines()[-1]))
    assert {"worker 1: none yet, drawing", "worker 1: 1 picture, drawing", "worker 1: 9 pictures, drawing"} <= shown


class Vault(MemoryFileSystem):  # type: ignore[misc]
    """A storage whose URL holds a password and a signature, which its errors repeat."""

    protocol = "vault"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    closed = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.rpartition("@")[2].partition("?")[0].strip("/")

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if Vault.closed:
            raise PermissionError(f"403 for vault://key:s3cr3t@{path}?sig=s3cr3t")
        super().pipe_file(path, value, mode, **options)


def test_no_credentials_are_printed_or_written(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("vault", Vault, clobber=True)
    out = "vault://key:s3cr3t@bucket/out?sig=s3cr3t"
    said = [run("batch", job, "--out", out), run("batch", job, "--out", out, "--json")]
    said += [run("batch", name, out, *more) for name in ("status", "verify", "subjects") for more in ((), ("--json",))]
    said.append(run("batch", "gallery", out, "--pages", tmp_path / "pages"))
    assert "Look at them: cones2 batch gallery vault://bucket/out" in said[0].stdout
    assert json.loads(said[1].stdout)["out"] == "vault://bucket/out"
    for each in said:
        assert "s3cr3t" not in each.output
    monkeypatch.setattr(Vault, "closed", True)
    told = refused("batch", job, "--out", out)
    assert "vault://bucket/out" in told
    assert "s3cr3t" not in told + refused("batch", "status", out.replace("bucket", "nothing"))
    files = {path: bytes(file.getbuffer()) for path, file in Vault.store.items()}
    files |= {str(path): path.read_bytes() for path in (tmp_path / "pages").rglob("*") if path.is_file()}
    assert len(files) > 12
    assert not [path for path, content in files.items() if b"s3cr3t" in content or "s3cr3t" in path]


def test_memory_is_for_this_process_alone(job: Path) -> None:
    assert "memory://" in refused("batch", job, "--out", "memory://bucket/out", "--workers", "2")


@pytest.mark.parametrize(("name", "total"), [("smoke", 6), ("settings", 16), ("subjects", 24), ("cases", 3)])
def test_the_examples_are_jobs_of_as_many_pictures_as_they_say(name: str, total: int) -> None:
    (path,) = (Path(__file__).parents[1] / "examples" / "batch").glob(f"{name}.*")
    plan = Plan.of(read_job(path))
    assert plan.total == len({case.id for lease in plan.leases for case in plan.cases(lease)}) == total


def test_a_plan_tells_what_it_comes_to(job: Path, tmp_path: Path) -> None:
    report = json.loads(run("batch", "plan", job, "--json").stdout)
    assert (report["pictures"]["left"], report["subjects"]["left"]) == (4, 1)
    assert report["seconds_a_picture"] > 0
    assert report["seconds_a_subject"] > 0
    assert report["bytes"] > 4 * 100
    assert not (tmp_path / "out").exists()
    assert "4 pictures to do" in run("batch", "plan", job).stdout


def test_photos_that_can_not_be_used_fail_alone_and_the_exit_code_tells(job: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.png").write_bytes(b"no picture")
    job.write_text(job.read_text() + f'[subjects.bad]\nphotos = "{photos.as_posix()}"\nclass_word = "cat"\n')
    text = job.read_text().replace('prompt = "a {rex} and a {ball}"', 'prompt = ["a {rex} and a {ball}", "a {bad}"]')
    job.write_text(text)
    report = json.loads(run("batch", job, "--out", tmp_path / "out", "--json", code=1).stdout)
    assert (report["pictures"]["done"], report["pictures"]["blocked"], report["subjects"]["failed"]) == (4, 2, 1)
    status = json.loads(run("batch", "status", tmp_path / "out", "--json").stdout)
    assert status["pictures"] == report["pictures"] == {"total": 6, "done": 4, "failed": 0, "blocked": 2, "left": 0}
    (failure,) = status["failures"]
    assert (failure["name"], "a.png" in failure["error"]) == ("bad", True)


def test_photos_that_a_machine_lacks_come_through_the_storage(small_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES["rex"].folder / "photos", tmp_path / "photos")
    photos = tuple(sorted((tmp_path / "photos").iterdir()))[:2]
    for photo in photos:
        (tmp_path / "masks").mkdir(exist_ok=True)
        with Image.open(photo) as image:
            Image.new("L", image.size, 255).save(tmp_path / "masks" / f"{photo.stem}.png")
    (tmp_path / "captions.txt").write_text("a dog in the snow\na dog on grass\n")
    recipe = Recipe(steps=2, batch_size=1, learning_rate=1e-3, captions_per_step=1, caption_count=2, views_per_photo=1)
    rex = Photographed(photos, "dog", recipe, masks=tmp_path / "masks", captions=tmp_path / "captions.txt")
    plan = Plan.of(Job({"rex": rex}, model=str(small_folder)))
    (lesson,), found = plan.lessons.values(), {}
    for name in ("here", "away", "nowhere"):
        store = open_store(tmp_path / name)
        if name == "away":
            carry_files(plan, store, ())
            carry_files(plan, store, ())  # it is there
            for place in ("photos", "masks", "captions.txt"):
                (tmp_path / place).rename(tmp_path / f"away {place}")
        *_, last = told = list(
            learn_lease(Bench(store, tmp_path / "spool"), ModelHands(plan.model, store, device="cpu"), lesson)
        )
        found[name] = store.read(f"subjects/{lesson.id}.safetensors")
        assert last["committed"] == (name != "nowhere")
    assert found["here"] == found["away"] is not None
    assert "is not on" in next(event["error"] for event in told if event["event"] == "failed")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("none.toml", "--out", "out"), "none.toml"),
        (("status", "nothing"), "nothing"),
        (("gallery", "s3://nothing"), "--pages"),
    ],
)
def test_what_goes_wrong_is_one_line(
    arguments: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused("batch", *arguments)


def test_shards_are_told_as_they_are_wrong(job: Path, tmp_path: Path) -> None:
    for shard in ("3", "a/b", "2/2", "-1/2"):
        assert "shard" in refused("batch", job, "--out", tmp_path / "out", "--shard", shard)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_waits_for_the_end_of_a_lease_and_a_second_one_does_not(
    kind: signal.Signals, times: int, tmp_path: Path
) -> None:
    class Interrupted(StillHands):
        def draw(self, made: dict[str, Any], path: Path) -> None:
            for _ in range(times if made["seed"] == 1 else 0):
                os.kill(os.getpid(), kind)
            super().draw(made, path)

    before = signal.signal(kind, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    plan = Plan.of(Job(pictures=(Pictures(prompt="a dog", seed="0-9"),), lease=3))
    running, hands = Batch(plan, open_store(tmp_path)), Interrupted()
    try:
        with contextlib.ExitStack() as stack:
            if times == 2:
                stack.enter_context(pytest.raises(KeyboardInterrupt))
            batch._follow(running, Inline(Bench(running.store, tmp_path / ".spool"), lambda: hands))
        assert signal.getsignal(kind) is signal.default_int_handler
    finally:
        signal.signal(kind, before)
    assert running.driver.draining
    assert (running.pictures.done, hands.drawn.total()) == ((3, 3) if times == 1 else (0, 1))
    assert len(list((tmp_path / ".spool").rglob("*.png"))) == (0 if times == 1 else 1)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are others there")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_drains_and_a_second_run_goes_on(kind: signal.Signals, job: Path, tmp_path: Path) -> None:
    job.write_text("lease = 2\n" + job.read_text().replace('seed = "0-1"', 'seed = "0-39"'))
    command = [sys.executable, "-m", "cones2", "batch", str(job), "--out", str(tmp_path / "out"), "--workers", "1"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would a batch that this test starts from one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "out" / "commit").glob("*.json")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(kind)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "ending what has begun" in said
    done = json.loads(run("batch", "status", tmp_path / "out", "--json").stdout)["pictures"]["done"]
    assert 0 < done < 80
    run("batch", job, "--out", tmp_path / "out")
    assert len(list(read(tmp_path / "out"))) == 80
