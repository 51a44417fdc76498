"""From lines to results.json to pages: what is measured is what is in the pictures, and nothing else is told."""

import csv
import io
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from cones2.errors import SettingsError
from cones2.evaluation.alignment import text_alignment
from cones2.evaluation.cases import cases
from cones2.evaluation.identifiers import Identifiers, identifiers_of
from cones2.evaluation.judging import NOTHING, Judged, judge_pictures, packed, prompt_words, unpacked
from cones2.evaluation.lines import LearnedLine, PictureLine, RowLines
from cones2.evaluation.protocol import Protocol, read_protocol
from cones2.evaluation.questions import Reliability
from cones2.evaluation.report import as_csv, markdown, plots, write_report
from cones2.evaluation.results import (
    bound,
    collect,
    commit_of_code,
    read_calibration,
    read_results,
    references_of,
    scorer_of,
    write_results,
)
from cones2.evaluation.scores import Scorer
from cones2.examples import EXAMPLES
from cones2.judge import Judge, open_judge
from evaluation_bench import maker, write_protocol


@pytest.fixture(scope="module")
def judge() -> Judge:
    return open_judge()


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Protocol:
    return read_protocol(write_protocol(tmp_path_factory.mktemp("protocol"), tiny_folder))


@pytest.fixture(scope="module")
def scorer(protocol: Protocol, judge: Judge) -> Scorer:
    return scorer_of(protocol, judge)


def collage(protocol: Protocol, subjects: list[str], *, shown: list[str], prompt: int, number: int) -> Image.Image:
    """Photos of `shown` where `subjects` are asked for: a picture of which everything is known."""
    del prompt
    places = next(each.places for each in protocol.document.combinations if each.subjects == subjects)
    picture = Image.new("RGB", (256, 256), (120, 160, 120))
    for place, name in zip(places.values(), shown, strict=True):
        left, top, right, bottom = (round(256 * side) for side in place)
        side = min(right - left, bottom - top)
        photo = EXAMPLES[name].photos[number % 5].image
        edge = round(0.12 * photo.width)
        photo = photo.crop((edge, edge, photo.width - edge, photo.height - edge)).resize((side, side))
        picture.paste(photo, ((left + right - side) // 2, (top + bottom - side) // 2))
    return picture


SEEN: dict[bytes, Judged] = {}


def look(judge: Judge, image: Image.Image) -> Judged:
    """What the judge sees, each picture once."""
    if image.tobytes() not in SEEN:
        SEEN[image.tobytes()] = judge_pictures(judge, [image])[0]
    return SEEN[image.tobytes()]


Draw = Callable[[list[str], int, int], Image.Image | None]


def write_row(
    protocol: Protocol,
    judge: Judge,
    folder: Path,
    row: str,
    draw: Draw,
    tier: Any = "m",
    identifiers: Identifiers | None = None,
) -> None:
    """Write the lines of a row as if it had drawn these pictures."""
    lines, entry = RowLines(folder / "rows", row), next(each for each in protocol.document.rows if each.name == row)
    about = {"protocol": protocol.sha256, "row": row}
    for count in (1, 2):
        facts = {"id": f"{count}" * 64, "subjects": ["rex", "mimi"][:count], "bytes": 100 * count, "steps": 1}
        lines.append(LearnedLine.model_validate({**about, **facts, "seconds": 2.0 * count}))
    for combination in protocol.combinations(tier):
        for case in cases(protocol, entry, combination, tier):
            image = draw(combination.subjects, case.prompt, case.numbers[0])
            facts = {"case": identifiers.pictures(case)[0] if identifiers else "0" * 64, "seconds": 1.0}
            facts |= {"combination": combination.name, "prompt": case.prompt}
            facts |= {"number": case.numbers[0], "layout": case.layout, "picture": "" if image is None else "f" * 64}
            judged = NOTHING if image is None else look(judge, image)
            lines.append(PictureLine.model_validate({**about, **facts, "judged": judged}))


@pytest.fixture(scope="module")
def folder(protocol: Protocol, judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a row that draws everybody, and one that draws nothing."""
    out = tmp_path_factory.mktemp("run")
    everybody = lambda names, prompt, number: collage(protocol, names, shown=names, prompt=prompt, number=number)  # noqa: E731
    write_row(protocol, judge, out, "plain", everybody)
    write_row(protocol, judge, out, "joint", lambda *_: Image.new("RGB", (64, 64), (120, 160, 120)))
    return out


@pytest.fixture(scope="module")
def results(scorer: Scorer, folder: Path) -> dict[str, Any]:
    return collect(scorer, "m", folder, commit="abc")


def estimate(results: dict[str, Any], row: str, cell: str, measure: str) -> float:
    value: float = results["rows"][row]["cells"][cell]["measures"][measure]["estimate"]
    return value


def test_true_pictures_score_high_and_empty_ones_low(results: dict[str, Any]) -> None:
    for measure in ("present", "identity", "yes_image", "right_box", "all_right"):
        assert estimate(results, "plain", "with/2", measure) > 0.7, measure
        assert estimate(results, "joint", "with/2", measure) == 0, measure
    assert estimate(results, "plain", "with/1", "image") > 0.4 > estimate(results, "joint", "with/1", "image")
    assert estimate(results, "plain", "with/2", "text") > estimate(results, "joint", "with/2", "text")
    assert estimate(results, "joint", "with/2", "missing") == estimate(results, "joint", "with/2", "collapsed") == 1
    assert results["rows"]["joint"]["cells"]["with/2"]["ap50"] == 0


def test_an_image_alignment_lies_between_the_plain_models_and_the_photos(results: dict[str, Any]) -> None:
    rows = {name: {**row, "rival": "Plain" if name == "joint" else "Ours"} for name, row in results["rows"].items()}
    bound(rows, 0.9)
    low, high = (estimate(results, row, "with/2", "image") for row in ("joint", "plain"))
    places = {name: row["cells"]["with/2"]["measures"]["image"].pop("between") for name, row in rows.items()}
    assert places == {"joint": 0.0, "plain": pytest.approx((high - low) / (0.9 - low), abs=1e-3)}


def test_swapped_subjects_are_seen(protocol: Protocol, judge: Judge, scorer: Scorer, tmp_path: Path) -> None:
    def cats_for_dogs(names: list[str], prompt: int, number: int) -> Image.Image:
        return collage(protocol, names, shown=names[::-1], prompt=prompt, number=number)

    write_row(protocol, judge, tmp_path, "joint", cats_for_dogs)
    found = collect(scorer, "m", tmp_path)
    assert estimate(found, "joint", "with/2", "all_right") > 0.7  # both are there, and themselves
    assert estimate(found, "joint", "with/2", "right_box") < 0.1  # but each in the other's box


@pytest.mark.parametrize("change", [{"combination": "tom+mimi"}, {"prompt": 99}, {"words": [0.5]}])
def test_lines_that_the_protocol_and_the_judge_do_not_have(
    change: dict[str, Any], scorer: Scorer, folder: Path
) -> None:
    line = next(line for line in RowLines(folder / "rows", "plain") if isinstance(line, PictureLine)).model_dump()
    changed = {**line, **change} if "words" not in change else {**line, "judged": {**line["judged"], **change}}
    with pytest.raises(SettingsError, match="as this protocol and this judge have none"):
        scorer.measure(PictureLine.model_validate(changed))


def test_a_failure_to_learn_scores_as_nothing(protocol: Protocol, judge: Judge, scorer: Scorer, tmp_path: Path) -> None:
    write_row(protocol, judge, tmp_path, "joint", lambda *_: None)
    found = collect(scorer, "m", tmp_path)
    assert estimate(found, "joint", "with/2", "image") == -1
    for measure in ("text", "present", "all_right", "followed", "all_yes"):
        assert estimate(found, "joint", "with/2", measure) == 0, measure


def test_identity_of_subjects_without_lookalikes_is_told_as_nothing(scorer: Scorer, folder: Path) -> None:
    alone = {
        name: replace(each, lookalikes=each.lookalikes[:0], plain_lookalikes=each.plain_lookalikes[:0])
        for name, each in scorer.references.items()
    }
    found = collect(replace(scorer, references=alone), "m", folder)
    measures = found["rows"]["plain"]["cells"]["with/2"]["measures"]
    assert not {"all_right", "all_yes"} & measures.keys()  # of mimi, the only cat
    assert estimate(found, "plain", "with/2", "identity") > 0.7  # of rex and fido, who are two dogs
    assert "Identity and all right are n/a of subjects" in markdown(found)


def test_a_claim_is_shown_only_where_every_difference_is_above_0(results: dict[str, Any]) -> None:
    (claim,) = results["claims"]
    lows = [each["difference"]["low"] for each in claim["comparisons"]]
    assert claim["verdict"] == ("shown" if min(lows) > 0 else "not shown")
    assert [each["measure"] for each in claim["comparisons"]] == ["text", "image"]
    for each in claim["comparisons"]:
        own, other = (estimate(results, row, "with/2", each["measure"]) for row in ("plain", "joint"))
        assert each["difference"]["estimate"] == pytest.approx(own - other, abs=1e-3)
        assert each["difference"]["p"] == 0.5  # two combinations can say no more


def test_what_was_predicted_and_what_came(results: dict[str, Any]) -> None:
    (prediction,) = results["predictions"]
    assert prediction["expected"] == "no difference"
    difference = prediction["difference"]
    came = "higher" if difference["low"] > 0 else "lower" if difference["high"] < 0 else "no difference"
    assert prediction["came"] == came
    assert difference["p_corrected"] == difference["p"]


def test_incomplete_rows_are_labelled_and_compared_with_none(scorer: Scorer, folder: Path, tmp_path: Path) -> None:
    lines = list(RowLines(folder / "rows", "joint"))
    RowLines(tmp_path / "rows", "plain").append(*RowLines(folder / "rows", "plain"))
    RowLines(tmp_path / "rows", "joint").append(*lines[:-1])
    found = collect(scorer, "m", tmp_path)
    assert found["rows"]["plain"]["complete"]
    assert not found["rows"]["joint"]["complete"]
    assert found["claims"][0]["verdict"] == "incomplete"
    assert found["predictions"][0]["came"] == "incomplete"
    page = markdown(found)
    assert "| joint (incomplete: 7 of 8) | 2 |" in page
    assert "Not complete are joint: of them, only complete cells are compared." in page


def test_lines_of_other_code_weights_or_settings_are_left_out(
    protocol: Protocol, judge: Judge, scorer: Scorer, tmp_path: Path
) -> None:
    identify = identifiers_of(protocol, maker([]))
    entry = next(each for each in protocol.document.rows if each.name == "joint")
    drawn_by = replace(identify(entry), threads=3)  # of a machine with another number of threads
    write_row(protocol, judge, tmp_path, "joint", lambda *_: None, identifiers=drawn_by)
    found = collect(scorer, "m", tmp_path, identify=identify)["rows"]["joint"]
    assert (found["complete"], found["left_out"]) == (True, 2)  # two lines of learning that name no true learning
    other = collect(scorer, "m", tmp_path, identify=lambda row: replace(identify(row), weights="others"))
    assert (other["rows"]["joint"]["complete"], other["rows"]["joint"]["pictures"]) == (False, 0)
    assert other["rows"]["joint"]["left_out"] == 12 + 2
    assert "Lines of other code, weights or settings are left out: 14 of joint." in markdown(other)


def test_the_commit_of_a_repository_that_does_not_track_the_code_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *words], check=True)

    git("init", "-q")
    (tmp_path / "results.py").write_text("")
    git("commit", "-q", "--allow-empty", "-m", "of somebody else")
    monkeypatch.setattr("cones2.evaluation.results.__file__", str(tmp_path / "results.py"))
    assert commit_of_code() == (None, False)
    git("add", "results.py")
    assert commit_of_code()[0] is not None


def test_a_smaller_tier_reads_its_part_alone(scorer: Scorer, folder: Path) -> None:
    found = collect(scorer, "s", folder)
    assert found["rows"]["plain"]["complete"]
    assert found["rows"]["plain"]["cells"]["with/2"]["pictures"] == 2
    assert found["claims"][0]["verdict"] == "incomplete"  # of one combination there is no interval


def test_cost_of_a_library(results: dict[str, Any]) -> None:
    learned = {"1": {"bytes": 100, "seconds": 2.0}, "2": {"bytes": 200, "seconds": 4.0}}
    assert results["rows"]["joint"]["learned"] == learned
    assert results["rows"]["joint"]["library"] == {"2": {"bytes": 120 * 200, "seconds": 480.0}}  # C(16, 2) pairs


def test_results_are_read_as_written_and_pages_are_made_of_them_alone(results: dict[str, Any], tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", results)
    again = read_results(tmp_path / "results.json")
    assert again == json.loads(json.dumps(results))
    paths = write_report(results, tmp_path / "one")
    for path, other in zip(paths, write_report(again, tmp_path / "two"), strict=True):
        assert path.read_bytes() == other.read_bytes()
    page = (tmp_path / "one/evidence.md").read_text(encoding="utf-8")
    for name in plots(results):
        assert f"]({name})" in page
        assert (tmp_path / "one" / name).is_file()
        ElementTree.fromstring(plots(results)[name])


def test_the_page_of_evidence_is_made_of_its_results_alone() -> None:
    """After a run: `cones2 evaluate report evidence/protocol.toml --out evidence --to docs --pack`."""
    root = Path(__file__).parents[1]
    results = read_results(root / "evidence/results.json")
    assert read_protocol(root / "evidence/protocol.toml").sha256 == results["protocol"]
    contents = {"evidence.md": markdown(results), "evidence.csv": as_csv(results), **plots(results)}
    for name, content in contents.items():
        assert (root / "docs" / name).read_text(encoding="utf-8") == content, name


def test_csv_holds_every_estimate(results: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    expected = sum(len(cell["measures"]) for row in results["rows"].values() for cell in row["cells"].values())
    assert len(rows) == expected
    (one,) = [each for each in rows if (each["row"], each["layout"], each["subjects"], each["measure"]) == (
        "plain", "with", "2", "identity"
    )]  # fmt: skip
    assert float(one["estimate"]) == estimate(results, "plain", "with/2", "identity")


def test_a_page_can_not_be_broken_by_a_reason(results: dict[str, Any]) -> None:
    changed = {**results, "predictions": [{**results["predictions"][0], "why": "a | b\n# c"}]}
    assert "| a \\| b # c |" in markdown(changed)


def test_a_page_tells_the_settings_of_each_row(results: dict[str, Any]) -> None:
    assert '| joint | joint words | {"steps": 2} |' in markdown(results)


def test_corrected_rates_need_a_calibration(scorer: Scorer, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text('{"image": {"dog": [9, 10, 18, 20], "cat": [9, 10, 18, 20]}}')
    calibration = read_calibration(path)
    assert calibration == {"image": Reliability(18, 20, 36, 40)}
    found = collect(scorer, "m", folder, calibration=calibration)
    raw = estimate(found, "plain", "with/2", "yes_image")
    wanted = min(max((raw + 0.9 - 1) / 0.8, 0), 1)
    assert estimate(found, "plain", "with/2", "yes_image_corrected") == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"image": {}}', '{"image": {"dog": [1]}}', '{"smell": {"dog": [1,1,1,1]}}']
)
def test_a_calibration_that_is_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match="as a calibration"):
        read_calibration(path)


@pytest.mark.parametrize("content", ["[]", "{", '{"version": 2}', "[" * 10_000])
def test_results_that_are_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match="Make them again"):
        read_results(path)


def test_half_floats_keep_cosines() -> None:
    vectors = np.random.default_rng(0).normal(size=(8, 64))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    again = unpacked(packed(list(vectors)), 8, 64)
    np.testing.assert_allclose(again @ again.T, vectors @ vectors.T, atol=1e-3)
    for text, count in (("!", 1), (packed(list(vectors)), 7)):
        with pytest.raises(SettingsError, match="the results are damaged"):
            unpacked(text, count, 64)


def test_a_prompt_among_the_words_that_the_judge_knows(judge: Judge) -> None:
    words = prompt_words(judge, [0, 1], "beach")
    assert words.sum() == 3
    judged = judge_pictures(judge, [EXAMPLES["rex"].photos[0].image])[0]
    own, other = (prompt_words(judge, [kind], judged.scene) for kind in (0, 1))
    assert text_alignment(np.array([judged.words]), own)[0] > text_alignment(np.array([judged.words]), other)[0]
    with pytest.raises(SettingsError, match="knows no scene 'moon'"):
        prompt_words(judge, [0], "moon")


def test_nothing_seen_is_nothing() -> None:
    seen = Judged.model_validate(NOTHING.model_dump()).seen()
    assert seen.classes.shape == (0,)
    assert seen.identities.shape == (0, 64)


def test_subjects_that_the_judge_does_not_know(judge: Judge, tmp_path: Path, tiny_folder: Path) -> None:
    def of_another(text: str) -> str:
        return text.replace('class_word = "cat"', 'class_word = "whale"')

    protocol = read_protocol(write_protocol(tmp_path, tiny_folder, change=of_another))
    with pytest.raises(SettingsError, match="the judge knows no 'whale': expected one of dog"):
        references_of(protocol, judge)
