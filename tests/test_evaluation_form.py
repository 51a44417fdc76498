"""The page for people, their answers, the rivals of rows, and the commands around all of it."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from command import refused, run
from cones2.baselines.base import Lesson
from cones2.errors import SettingsError
from cones2.evaluation.form import QUESTIONS, Question, questions_of, read_answers, write_form
from cones2.evaluation.lines import PictureLine
from cones2.evaluation.protocol import Protocol, Row, read_protocol
from cones2.evaluation.results import scorer_of
from cones2.evaluation.rows import find_rivals, make_rival, priors_of
from cones2.evaluation.run import keep_pictures, picture_hash
from cones2.evaluation.scores import Scorer
from cones2.evaluation.sheets import by_hash, key_of, lost, sheets, worst
from cones2.examples import EXAMPLES
from cones2.judge import Judge, open_judge
from evaluation_bench import write_protocol


@pytest.fixture(scope="module")
def judge() -> Judge:
    return open_judge()


@pytest.fixture(scope="module")
def protocol(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Protocol:
    return read_protocol(write_protocol(tmp_path_factory.mktemp("protocol"), tiny_folder))


@pytest.fixture(scope="module")
def scorer(protocol: Protocol, judge: Judge) -> Scorer:
    return scorer_of(protocol, judge)


@pytest.fixture(scope="module")
def lines(protocol: Protocol, judge: Judge) -> list[PictureLine]:
    """Of one row that draws Rex's photos, and one that draws Mimi's, whoever is asked for."""
    from cones2.evaluation.judging import judge_pictures

    found = []
    for row, name in (("plain", "rex"), ("joint", "mimi")):
        for number in range(2):
            image = EXAMPLES[name].photos[number].image
            about = {
                "protocol": protocol.sha256,
                "row": row,
                "case": f"{number}" * 64,
                "combination": "rex",
                "prompt": 0,
            }
            facts = {"number": number, "layout": True, "picture": picture_hash(image), "seconds": 1.0}
            found.append(PictureLine.model_validate({**about, **facts, "judged": judge_pictures(judge, [image])[0]}))
    return found


def answers(path: Path, said: dict[str, str]) -> Path:
    path.write_text("question,answer\n" + "".join(f"{name},{answer}\n" for name, answer in said.items()))
    return path


def test_questions_are_those_of_the_user_study(scorer: Scorer, lines: list[PictureLine]) -> None:
    asked = list(questions_of(scorer, lines))
    assert [(each.row, each.text, each.subject, each.judged) for each in asked if each.picture == lines[0].picture] == [
        ("plain", "Does the picture show this very dog?", "rex", True),
        ("plain", "Does the picture show a dog?", "", True),
    ]
    assert [each.judged for each in asked if each.row == "joint"] == [False] * 4


def test_the_page_tells_nothing_of_who_drew_what(scorer: Scorer, lines: list[PictureLine], tmp_path: Path) -> None:
    keep_pictures(tmp_path, [EXAMPLES[name].photos[number].image for name in ("rex", "mimi") for number in range(2)])
    page = write_form(scorer, lines, tmp_path)
    asked = {each.id: each for each in questions_of(scorer, lines)}
    shown = re.findall(r'data-question="(\w+)"', page)
    assert sorted(shown) == sorted(asked)
    rows = [asked[each].row for each in shown]
    assert any(one == other for one, other in itertools.pairwise(rows))  # not in turn, by which one could tell them
    assert not re.search(r"plain|joint|https?://|src=\"(?!data:)", page)
    assert page == write_form(scorer, lines, tmp_path)
    assert page != write_form(scorer, lines, tmp_path, seed=1)
    assert len(shown) <= QUESTIONS


def test_sheets_show_what_nobody_chose(scorer: Scorer, lines: list[PictureLine], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="keeps no pictures"):
        sheets(scorer, lines, tmp_path, "joint")
    keep_pictures(tmp_path, [EXAMPLES[name].photos[number].image for name in ("rex", "mimi") for number in range(2)])
    assert set(sheets(scorer, lines, tmp_path, "joint")) == {"drawn", "worst", "lost"}
    assert set(sheets(scorer, lines, tmp_path, "plain")) == {"drawn", "worst"}  # nobody else has anything right
    plain, joint = lines[:2], lines[2:]
    assert [key_of(line) for line in by_hash(plain)] == [key_of(line) for line in by_hash(joint[::-1])]
    assert {line.row for line in worst(scorer, lines)[:2]} == {"joint"}
    assert lost(scorer, lines, "joint") == {
        "plain has it right, and then joint": [plain[0], joint[0], plain[1], joint[1]]
    }


def test_without_pictures_there_is_no_page(scorer: Scorer, lines: list[PictureLine], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="keeps no pictures: run again with pictures kept"):
        write_form(scorer, lines, tmp_path)


def test_answers_are_scored_beside_the_judge(tmp_path: Path) -> None:
    asked = [
        Question(f"q{number}", "ours" if number < 2 else "plain", "", "", "", judged=number < 2) for number in range(4)
    ]
    one = answers(tmp_path / "one.csv", {"q0": "yes", "q1": "no", "q2": "no", "q3": "no"})
    other = answers(tmp_path / "other.csv", {"q0": "yes", "q1": "yes", "q2": "no", "q3": "no"})
    study = read_answers(asked, [one, other])
    assert study.yes == {"ours": 0.75, "plain": 0.0}
    assert (study.answers, study.people) == (8, 2)
    assert study.agreement == pytest.approx((7 / 8 - 0.5) / 0.5)  # people say yes to 3 of 8, the judge to 4


@pytest.mark.parametrize(
    "text", ["", "question,answer\n", "question,answer\nq9,yes\n", "question,answer\nq0,maybe\n", "\x00"]
)
def test_answers_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text(text)
    with pytest.raises(SettingsError, match="answers"):
        read_answers([Question("q0", "ours", "", "", "", judged=True)], [tmp_path / "answers.csv"])


def row(rival: str, settings: dict[str, Any] | None = None) -> Row:
    return Row.model_validate({"name": "a-row", "rival": rival, "settings": settings or {}})


def test_every_rival_can_be_a_row() -> None:
    rivals = find_rivals()
    assert {"Ours", "Plain", "DreamBooth", "CustomDiffusion", "TextualInversion", "LoRA"} <= set(rivals)
    for name, kind in rivals.items():
        if name not in ("AttendAndExcite", "Encoder", "ExemplarInpainting", "FreeFuse"):  # they need another thing
            assert isinstance(make_rival(row(name)), kind)


def test_settings_are_the_rivals_own_and_what_is_left_out_stays() -> None:
    made: Any = make_rival(row("DreamBooth", {"training": {"steps": 7}, "identifier": "rare"}))
    own: Any = make_rival(row("DreamBooth"))
    assert (made.training.steps, made.identifier) == (7, "rare")
    assert made.training.learning_rate == own.training.learning_rate
    beside: Any = make_rival(row("AttendAndExcite", {"base": {"rival": "Plain"}, "settings": {"altered": 3}}))
    assert (beside.base.name, beside.settings.altered) == ("plain", 3)


@pytest.mark.parametrize(
    ("rival", "settings", "told"),
    [
        ("dreambooth", {}, "no rival 'dreambooth': expected one of AttendAndExcite"),
        ("DreamBooth", {"surprise": 1}, r"DreamBooth has no \['surprise'\]: expected training"),
        ("DreamBooth", {"training": {"steps": "many"}}, "steps of a training is 'many'"),
        ("AttendAndExcite", {}, "missing"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_rows_that_make_no_sense(rival: str, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=f"row 'a-row': .*{told}"):
        make_rival(row(rival, settings))


def test_priors_are_drawn_once_and_for_those_that_want_them(protocol: Protocol, tiny: Any) -> None:
    import dataclasses

    from cones2.pipeline import Cones2Pipeline

    few = dataclasses.replace(protocol, document=protocol.document.model_copy(update={"priors": 2}))
    priors, pipe = priors_of(few), Cones2Pipeline(tiny)
    drawn = priors(make_rival(row("DreamBooth")), pipe, "dog")
    assert len(drawn) == 2
    assert priors(make_rival(row("DreamBooth")), pipe, "dog") is drawn
    assert list(priors(make_rival(row("Plain")), pipe, "dog")) == []
    beside = make_rival(row("AttendAndExcite", {"base": {"rival": "DreamBooth"}}))
    assert priors(beside, pipe, "dog") is drawn  # it learns as its base does
    assert Lesson(EXAMPLES["rex"].photos, "dog", drawn).priors == drawn


def test_power_on_the_command_line() -> None:
    said = run("evaluate", "power", "--combinations", "4,4,4", "--trials", 200, "--json").stdout
    assert json.loads(said)["power"] < 0.02
    assert "--combinations: 'many' is not a whole number" in refused("evaluate", "power", "--combinations", "many")


@pytest.mark.slow
def test_run_report_and_form_on_the_command_line(tmp_path: Path, tiny_folder: Path) -> None:
    def real(text: str) -> str:
        plain = text.replace('rival = "words"', 'rival = "Plain"')
        return plain.replace('rival = "joint words"\nsettings = {steps = 2}', 'rival = "Plain"')

    out = tmp_path / "out"
    common = (write_protocol(tmp_path, tiny_folder, change=real), "--out", out, "--tier", "m")
    hashes = json.loads(run("evaluate", "run", *common, "--pictures", "--json").stdout)["rows"]
    assert json.loads(run("evaluate", "run", *common, "--json").stdout)["rows"] == hashes
    said = run("evaluate", "report", *common, "--allow-dirty", "--pack").stdout
    assert said.startswith("plain first of 2, with layout: not shown.")
    assert (out / "report/evidence.md").is_file()
    assert sorted(each.name for each in (out / "rows").iterdir()) == ["joint.jsonl.gz", "plain.jsonl.gz"]
    assert (out / "sheets/worst.png") in map(Path, run("evaluate", "sheets", *common, "--ours", "plain").stdout.split())
    assert "--ours 'lora' is no row" in refused("evaluate", "sheets", *common, "--ours", "lora")
    page = tmp_path / "form.html"
    run("evaluate", "form", *common, "--page", page)
    asked = re.findall(r'data-question="(\w+)"', page.read_text(encoding="utf-8"))
    given = answers(tmp_path / "answers.csv", dict.fromkeys(asked, "no"))
    assert json.loads(run("evaluate", "form", *common, "--read", given, "--json").stdout)["answers"] == len(asked)


def test_a_protocol_that_is_missing(tmp_path: Path) -> None:
    assert "can't read" in refused("evaluate", "run", tmp_path / "protocol.toml", "--out", tmp_path / "out")
