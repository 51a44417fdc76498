"""The run: what a protocol says, which pictures that comes to, and that nothing is done twice or lost."""

import gzip
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cones2.baselines.attend_and_excite import AttendAndExcite
from cones2.baselines.lora import LoRA
from cones2.errors import OutputError, SettingsError
from cones2.evaluation import identifiers
from cones2.evaluation.cases import cases, phrase, picture_seed
from cones2.evaluation.identifiers import Identifiers, code_hash
from cones2.evaluation.judging import MOST_SEEN, NOTHING, Judged, packed
from cones2.evaluation.lines import LearnedLine, PictureLine, RowLines
from cones2.evaluation.protocol import Protocol, read_protocol
from cones2.evaluation.run import Bench, open_bench, run
from cones2.evaluation.second_judge import DIMENSIONS
from cones2.files import locked
from cones2.judge import Judge, open_judge
from cones2.photos import load_photos
from evaluation_bench import maker, write_protocol


@pytest.fixture(scope="module")
def judge() -> Judge:
    return open_judge()


@pytest.fixture
def protocol(tmp_path: Path, tiny_folder: Path) -> Protocol:
    return read_protocol(write_protocol(tmp_path, tiny_folder))


@pytest.fixture
def bench(protocol: Protocol, judge: Judge, tmp_path: Path) -> Callable[..., Bench]:
    def make(tier: Any = "s", out: str = "out", lessons: list[tuple[str, ...]] | None = None, **options: Any) -> Bench:
        return open_bench(protocol, tier, tmp_path / out, judge, maker([] if lessons is None else lessons, **options))

    return make


def pictures(folder: Path, row: str) -> list[PictureLine]:
    return [line for line in RowLines(folder / "rows", row) if isinstance(line, PictureLine)]


def test_tiers_hold_one_another(protocol: Protocol) -> None:
    row, numbers = protocol.rows("l")[0], []
    for smaller, larger in itertools.pairwise(("s", "m", "l")):
        for combination in protocol.combinations(smaller):  # type: ignore[arg-type]
            some, more = (list(cases(protocol, row, combination, tier)) for tier in (smaller, larger))  # type: ignore[arg-type]
            assert all(case in more for case in some)
            numbers.append((len(some), len(more)))
    assert numbers[0] == (4, 8)  # with and without layout, 1 prompt and 2, 2 seeds


def test_every_row_begins_from_the_same_noise_and_no_two_pictures_do(protocol: Protocol) -> None:
    plain, joint = protocol.rows("l")
    every = [case for each in protocol.combinations("l") for case in cases(protocol, plain, each, "l") if case.layout]
    seeds = [seed for case in every for seed in case.seeds]
    assert len(set(seeds)) == len(seeds) == 3 * 2 * 4
    other = [case for each in protocol.combinations("l") for case in cases(protocol, joint, each, "l")]
    assert [case.seeds for case in other] == [case.seeds for case in every]
    assert 0 <= picture_seed(protocol, protocol.combinations("s")[0], 0, 0) < 2**63


def test_subjects_are_named_as_one_says_them(tmp_path: Path, tiny_folder: Path) -> None:
    def with_owl(text: str) -> str:
        return text.replace('photos", class_word = "cat"', 'photos", class_word = "owl"').replace(
            '["fido", "mimi"]', '["fido", "mimi", "rex"]'
        )

    protocol = read_protocol(write_protocol(tmp_path, tiny_folder, change=with_owl))
    assert phrase(protocol, protocol.combinations("m")[-1]) == "a {fido}, an {mimi} and a {rex}"


def test_without_boxes_subjects_stand_in_columns(protocol: Protocol) -> None:
    _, two, other = protocol.combinations("m")
    assert two.places == {"rex": (0.0, 0.2, 0.5, 1.0), "mimi": (0.52, 0.15, 0.98, 0.95)}
    assert other.places["fido"] == (0.02, 0.15, 0.48, 0.95)


def test_comments_do_not_change_a_protocol_and_anything_else_does(tmp_path: Path, tiny_folder: Path) -> None:
    def sha256(change: Callable[[str], str]) -> str:
        return read_protocol(write_protocol(tmp_path, tiny_folder, change=change)).sha256

    assert sha256(str) == sha256(lambda text: f"# a remark\n{text}")
    assert sha256(str) != sha256(lambda text: text.replace("both know only words", "I guess"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("version = 1", "version = 2", "version"),
        ("version = 1", "version = 1\nsurprise = 1", "surprise"),
        ('subjects = ["rex"]', 'subjects = ["max"]', "combination 'max'"),
        ('subjects = ["rex"]', 'subjects = ["rex", "rex"]', "combination 'rex[+]rex'"),
        ('subjects = ["rex"]', 'subjects = ["rex", "mimi"]', "two combinations have the same name"),
        ("boxes.rex = [0.0, 0.2, 0.5, 1.0]", "boxes.rex = [0.5, 0.2, 0.4, 1.0]", "combination 'rex[+]mimi'"),
        ("boxes.rex", "boxes.fido", "combination 'rex[+]mimi'"),
        ("{subjects} on the beach", "on the beach", "expected {subjects} once"),
        ('rivals = ["joint"]', 'rivals = ["lora"]', r"name \['lora'\]"),
        ("m = {prompts = 2, seeds = 2}", "m = {prompts = 1, seeds = 1}", "tiers shrink"),
        ("l = {prompts = 2, seeds = 4}", "l = {prompts = 3, seeds = 4}", "expected at most 2"),
        ("batch = 1", "batch = 4", "multiples of the batch, 4"),
        ('class_word = "cat"', 'class_word = ""', "subject 'mimi'"),
        ("subjects.mimi", "subjects.mi-mi", "can't name a subject"),
        ('name = "joint"', 'name = "../joint"', "rows.1.name"),
    ],
)
def test_a_protocol_that_contradicts_itself(old: str, new: str, told: str, tmp_path: Path, tiny_folder: Path) -> None:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    with pytest.raises(SettingsError, match=told):
        read_protocol(write_protocol(tmp_path, tiny_folder, change=change))


@pytest.mark.slow
def test_a_second_run_gives_the_same_hashes(bench: Callable[..., Bench], tmp_path: Path) -> None:
    counts = [(one.row, one.done, one.total) for one in run(bench())]
    assert counts == [("plain", number, 8) for number in range(1, 9)] + [("joint", number, 4) for number in range(1, 5)]
    list(run(bench(out="again")))
    for row in ("plain", "joint"):
        first, second = (RowLines(tmp_path / out / "rows", row).sha256() for out in ("out", "again"))
        assert first == second
    assert all(len(line.picture) == 64 for line in pictures(tmp_path / "out", "plain"))


@pytest.mark.slow
def test_what_is_written_is_not_done_again(bench: Callable[..., Bench], tmp_path: Path) -> None:
    whole = RowLines(tmp_path / "whole/rows", "plain")
    lessons: list[tuple[str, ...]] = []
    list(run(bench(out="whole", lessons=lessons), only=["plain"]))
    assert lessons == [("rex",), ("mimi",)]  # rex was learned once for both of its combinations
    begun: list[tuple[str, ...]] = []
    for _ in itertools.islice(run(bench(lessons=begun), only=["plain"]), 3):
        pass
    assert len(pictures(tmp_path / "out", "plain")) == 3
    assert [one.done for one in run(bench(lessons=begun), only=["plain"])] == [4, 5, 6, 7, 8]
    assert begun == lessons
    assert RowLines(tmp_path / "out/rows", "plain").sha256() == whole.sha256()
    assert list(run(bench(), only=["plain"])) == []


@pytest.mark.slow
def test_what_learning_cost_is_told_again_where_its_line_was_lost(bench: Callable[..., Bench], tmp_path: Path) -> None:
    list(run(bench(), only=["plain"]))
    lines, path = RowLines(tmp_path / "out/rows", "plain"), tmp_path / "out/rows/plain.jsonl"
    whole = lines.sha256()
    first = path.read_bytes().splitlines(keepends=True)[0]
    assert b'"learned"' in first
    path.unlink()  # and the learned file stays, as after a kill between the two
    list(run(bench(), only=["plain"]))
    assert RowLines(path.parent, "plain").sha256() == whole


@pytest.mark.slow
def test_a_larger_tier_adds_to_a_smaller_one(bench: Callable[..., Bench], tmp_path: Path) -> None:
    list(run(bench("s"), only=["joint"]))
    before = {line.case for line in pictures(tmp_path / "out", "joint")}
    list(run(bench("m"), only=["joint"]))
    after = [line.case for line in pictures(tmp_path / "out", "joint")]
    assert before < set(after)
    assert len(after) == len(set(after)) == 3 * 2 * 2


def test_a_torn_line_is_cut_off(bench: Callable[..., Bench], tmp_path: Path) -> None:
    list(run(bench(), only=["joint"]))
    path = tmp_path / "out/rows/joint.jsonl"
    whole = RowLines(path.parent, "joint").sha256()
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    assert [one.done for one in run(bench(), only=["joint"])] == [4]
    assert RowLines(path.parent, "joint").sha256() == whole
    path.write_bytes(content[:50])  # torn within the first line
    assert list(RowLines(path.parent, "joint")) == []
    assert path.read_bytes() == content[:50]  # a run may be writing it


def test_reading_makes_and_cuts_nothing(tmp_path: Path) -> None:
    assert list(RowLines(tmp_path / "rows", "plain")) == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_packed_while_a_run_writes(tmp_path: Path) -> None:
    line = {"protocol": "0" * 64, "row": "plain", "id": "1" * 64, "subjects": ["rex"], "bytes": 1, "steps": 1}
    lines = RowLines(tmp_path / "rows", "plain")
    lines.append(LearnedLine.model_validate({**line, "seconds": 1.0}))
    with locked(tmp_path / ".lock", wait=False), pytest.raises(OutputError, match="is at work in"):
        lines.pack()
    assert lines.pack() > 0


def test_a_joint_rival_learns_each_set_and_keeps_none(bench: Callable[..., Bench], tmp_path: Path) -> None:
    lessons: list[tuple[str, ...]] = []
    list(run(bench(lessons=lessons), only=["joint"]))
    assert lessons == [("rex",), ("rex", "mimi")]
    assert list((tmp_path / "out/learned").iterdir()) == []
    told = [line for line in RowLines(tmp_path / "out/rows", "joint") if isinstance(line, LearnedLine)]
    assert [(line.subjects, line.bytes, line.steps) for line in told] == [
        (["rex"], len('{"rex": "dog"}'), 2),
        (["rex", "mimi"], len('{"rex": "dog", "mimi": "cat"}'), 2),
    ]


def test_what_can_not_be_learned_counts_as_nothing(bench: Callable[..., Bench], tmp_path: Path) -> None:
    assert [one.done for one in run(bench(fails="joint"), only=["joint"])] == [1, 2, 3, 4]
    lines = list(RowLines(tmp_path / "out/rows", "joint"))
    assert [line.failed for line in lines if isinstance(line, LearnedLine)] == ["the loss is nan"] * 2
    assert all(line.picture == "" and line.judged.classes == [] for line in lines if isinstance(line, PictureLine))


@pytest.mark.slow
def test_packed_lines_are_the_same_lines(bench: Callable[..., Bench], tmp_path: Path) -> None:
    list(run(bench("s"), only=["joint"]))
    lines = RowLines(tmp_path / "out/rows", "joint")
    before, size = lines.sha256(), lines.pack()
    assert [path.name for path in (tmp_path / "out/rows").iterdir()] == ["joint.jsonl.gz"]
    assert (tmp_path / "out/rows/joint.jsonl.gz").stat().st_size == size
    assert lines.sha256() == before
    assert list(run(bench("s"), only=["joint"])) == []
    list(run(bench("m"), only=["joint"]))  # what comes after is beside it, until it is packed again
    assert len(pictures(tmp_path / "out", "joint")) == 12


def test_results_of_another_protocol_are_refused(bench: Callable[..., Bench], tmp_path: Path) -> None:
    about = {"protocol": "0" * 64, "row": "plain", "id": "1" * 64, "subjects": ["rex"]}
    line = LearnedLine.model_validate({**about, "bytes": 1, "steps": 1, "seconds": 1.0})
    RowLines(tmp_path / "out/rows", "plain").append(line)
    with pytest.raises(SettingsError, match="results of another protocol: take another folder"):
        list(run(bench()))


def test_two_at_once_are_refused(bench: Callable[..., Bench], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out/.lock", wait=False), pytest.raises(OutputError, match="is at work in"):
        list(run(bench()))


@pytest.mark.parametrize("module", ["cones2.baselines.stored", "cones2.pipeline", "cones2.learning.losses"])
def test_the_code_of_a_rival_is_all_of_cones2_that_it_leads_to(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = code_hash("cones2.baselines.lora"), identifiers._source
    monkeypatch.setattr(identifiers, "_source", lambda name: "# changed" if name == module else read(name))
    assert code_hash("cones2.baselines.lora") != before


def test_the_code_of_evaluations_is_no_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    before, read = code_hash("evaluation_bench"), identifiers._source
    monkeypatch.setattr(identifiers, "_source", lambda name: "#" if "evaluation." in name else read(name))
    assert code_hash("evaluation_bench") == before


def test_the_code_of_what_a_rival_learns_as_is_its_own(protocol: Protocol, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = AttendAndExcite(base=AttendAndExcite(base=LoRA()))
    photos = {name: load_photos(protocol.photos(name)) for name in protocol.document.subjects}

    def learning() -> str:
        found = Identifiers(protocol, protocol.rows("s")[0], rival, photos, "weights")
        return found.learning(protocol.combinations("s")[0])["rex",]

    before, read = learning(), identifiers._source
    assert learning() == before
    monkeypatch.setattr(identifiers, "_source", lambda name: "#" if name == "cones2.baselines.lora" else read(name))
    assert learning() != before


def test_an_unknown_row(bench: Callable[..., Bench]) -> None:
    with pytest.raises(SettingsError, match=r"no rows \['lora'\]: expected some of plain, joint"):
        list(run(bench(), only=["lora"]))


def damaged(content: bytes) -> dict[str, bytes]:
    line = json.loads(content.splitlines()[-1])
    unequal = {**line, "judged": {**line["judged"], "scores": [0.5] * 99}}
    one = {"classes": [0], "scores": [0.5], "boxes": [[0, 0, 1, 1]]}
    looks = {"identities": packed([np.ones(64)]), "plain_looks": packed([np.ones(DIMENSIONS)])}
    no_number = {**one, **looks, "identities": packed([np.full(64, np.nan)])}

    def judged(**changes: Any) -> bytes:
        return json.dumps({**line, "judged": {**line["judged"], **one, **looks, **changes}}).encode() + b"\n"

    assert PictureLine.model_validate_json(judged())
    return {
        "other keys": json.dumps({**line, "surprise": 1}).encode() + b"\n",
        "another kind": b'{"kind": "novel"}\n',
        "no JSON": b"hello\n",
        "too long": b" " * 2**17 + b"\n",
        "a path": json.dumps({**line, "picture": "../../etc/passwd"}).encode() + b"\n",
        "no time": json.dumps({**line, "seconds": float("nan")}).encode() + b"\n",
        "not judged": json.dumps({**line, "judged": NOTHING.model_dump()}).encode() + b"\n",
        "not finite": judged(**no_number),
        "too few looks": judged(identities=""),
        "no class": judged(classes=[-1]),
        "too sure": judged(scores=[2]),
        "no box": judged(boxes=[[0, 0, float("inf"), 1]]),
        "unequal": json.dumps(unequal).encode() + b"\n",
        "half": b"[" * 60_000 + b"\n",
    }


def test_a_picture_full_of_objects_can_be_written() -> None:
    many = np.ones((MOST_SEEN, DIMENSIONS))
    facts = {"classes": [0] * MOST_SEEN, "scores": [0.5] * MOST_SEEN, "boxes": [(0.0, 0.0, 1.0, 1.0)] * MOST_SEEN}
    looks = {"identities": packed(list(many[:, :64])), "plain_looks": packed(list(many)), "words": [], "whole": ""}
    assert len(Judged.model_validate({**facts, **looks, "scene": ""}).seen(plainly=True).classes) == MOST_SEEN


def test_damaged_lines_are_told(bench: Callable[..., Bench], tmp_path: Path) -> None:
    list(run(bench(), only=["joint"]))
    path = tmp_path / "out/rows/joint.jsonl"
    for content in damaged(path.read_bytes()).values():
        path.write_bytes(content)
        with pytest.raises(SettingsError, match="line 1"):
            list(RowLines(path.parent, "joint"))
    path.unlink()
    whole = gzip.compress(random.Random(0).randbytes(1000))
    for content in (b"no gzip", gzip.compress(b"{}\n")[:-4], whole[:20] + b"\xff" * 40 + whole[60:]):
        path.with_suffix(".jsonl.gz").write_bytes(content)
        with pytest.raises(SettingsError, match="Take the row's results away"):
            list(RowLines(path.parent, "joint"))
