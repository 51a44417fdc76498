"""Jobs as people write them, and what they come to: every combination once, known by all that makes it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cones2.batch.job import Photographed, read_job
from cones2.batch.plan import Plan, weights_of
from cones2.errors import Cones2Error, LayoutError, ModelError, SettingsError
from cones2.examples import EXAMPLES

SUBJECTS = """
[subjects.rex]
photos = "photos"
class_word = "dog"
[subjects.luna]
residual = "luna"
[subjects.ball]
class_word = "ball"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(EXAMPLES["rex"].folder / "photos", tmp_path / "photos")
    return tmp_path


def planned(folder: Path, text: str, name: str = "job.toml") -> Plan:
    path = folder / name
    path.write_text(text)
    return Plan.of(read_job(path))


def cases(plan: Plan) -> list[dict[str, Any]]:
    return [case.labels for lease in plan.leases for case in plan.cases(lease)]


def ids(plan: Plan) -> set[str]:
    return {case.id for lease in plan.leases for case in plan.cases(lease)}


def test_every_combination_is_a_case_seeds_fastest(folder: Path) -> None:
    text = """
    [[pictures]]
    prompt = ["a {pet}", "the {pet}"]
    subject.pet = ["rex", "luna"]
    strength.pet = [0.5, 1]
    layout = [{pet = "left"}, "none"]
    scheduler = ["ddim", "euler"]
    seed = "3-4"
    """
    plan = planned(folder, SUBJECTS + text)
    found = cases(plan)
    assert len(found) == plan.total == 2**6
    assert [each["seed"] for each in found[:3]] == [3, 4, 3]
    assert found[0] == {
        "prompt": "a {pet}",
        "subject.pet": "rex",
        "strength.pet": 0.5,
        "layout": "1",
        "scheduler": "ddim",
        "num_inference_steps": 50,
        "seed": 3,
    }
    assert found[-1]["prompt"] == "the {pet}"
    assert len(ids(plan)) == 2**6


def test_a_case_is_made_of_what_its_names_stand_for(folder: Path) -> None:
    plan = planned(folder, SUBJECTS + '[[pictures]]\nprompt = "a {luna} and a {ball}"\nlayout.luna = [0, 0, 0.5, 1]')
    (case,) = plan.cases(plan.leases[1])
    luna = EXAMPLES["luna"]
    assert case.made["subjects"] == {
        "luna": {"class_word": luna.class_word, "residual": luna.residual.sha256, "strength": 1.0},
        "ball": {"class_word": "ball", "residual": None, "strength": 1.0},
    }
    assert case.made["layout"] == {"version": 1, "regions": {"luna": [[0.0, 0.0, 0.5, 1.0]]}}
    assert plan.residuals.keys() == {luna.residual.sha256}


def test_names_that_are_no_subjects_are_those_of_the_library(folder: Path) -> None:
    plan = planned(folder, '[[pictures]]\nprompt = "a {pet}"\nsubject.pet = ["rex", "momo"]')
    assert plan.residuals.keys() == {EXAMPLES[name].residual.sha256 for name in ("rex", "momo")}


def test_equal_cases_are_one(folder: Path) -> None:
    text = '[[pictures]]\nprompt = ["a {rex}", "a cat"]\nstrength.rex = [0.5, 1.0]\nseed = [1, 1]'
    plan = planned(folder, SUBJECTS + text)
    assert plan.total == 3


def test_whatever_makes_a_picture_changes_its_case_and_no_other(folder: Path) -> None:
    text = '[[pictures]]\nprompt = "a {rex}"\nseed = [0, 1]\n[[pictures]]\nprompt = "a {luna}"\n'
    before = planned(folder, SUBJECTS + text)
    assert ids(planned(folder, SUBJECTS + text)) == ids(before)
    assert ids(planned(folder, SUBJECTS.replace("rex", "max") + text.replace("rex", "max"))) & ids(before)  # luna's
    assert len(ids(planned(folder, SUBJECTS + text.replace("[0, 1]", "[0, 1, 2]"))) - ids(before)) == 1
    photo = next((folder / "photos").iterdir())
    photo.write_bytes(photo.read_bytes() + b"\0")
    after = planned(folder, SUBJECTS + text)
    assert len(ids(after) & ids(before)) == 1
    assert not after.lessons.keys() & before.lessons.keys()


def test_another_model_of_one_name_is_another(tiny_copy: Path, tmp_path: Path) -> None:
    text = f'model = "{tiny_copy.as_posix()}"\n[[pictures]]\nprompt = "a dog"'
    before = planned(tmp_path, text)
    other = tmp_path / "other"
    shutil.copytree(tiny_copy, other)
    (other / "unet" / "config.json").write_text((other / "unet" / "config.json").read_text() + "\n")
    after = planned(tmp_path, text.replace(tiny_copy.as_posix(), other.as_posix()))
    assert before.model["weights"] != after.model["weights"]
    assert not ids(before) & ids(after)
    moved = tmp_path / "moved"
    shutil.copytree(tiny_copy, moved)
    assert ids(planned(tmp_path, text.replace(tiny_copy.as_posix(), moved.as_posix()))) == ids(before)


def test_subjects_to_learn_come_first_and_their_pictures_need_them(folder: Path) -> None:
    plan = planned(folder, SUBJECTS + '[[pictures]]\nprompt = ["a {rex}", "a {luna}"]')
    (rex,) = plan.lessons.values()
    assert (rex.name, rex.photographed["class_word"]) == ("rex", "dog")
    assert plan.leases[0].id == rex.id
    assert [lease.needs for lease in plan.leases] == [frozenset(), frozenset({rex.id}), frozenset()]


def test_leases_are_of_a_size_that_gives_every_worker_some(folder: Path) -> None:
    def sizes(count: int, more: str = "") -> list[int]:
        plan = planned(folder, f'{more}\n[[pictures]]\nprompt = "a dog"\nseed = "0-{count - 1}"')
        return [len(lease.numbers) for lease in plan.leases]

    assert sizes(5) == [1] * 5
    assert sizes(300) == [3] * 100
    assert sizes(8192 + 1)[-2:] == [64, 1]
    assert sizes(10, "lease = 4") == [4, 4, 2]


def test_lines_of_json_are_pictures_too(folder: Path) -> None:
    lines = [{"prompt": "a dog", "seed": 1}, {"prompt": "a {rex}", "layout": {"rex": [0, 0, 1, 1]}, "seed": [2, 3]}]
    text = "\n".join(map(json.dumps, lines)) + "\n\n"
    plan = planned(folder, text, "cases.jsonl")
    assert [each["seed"] for each in cases(plan)] == [1, 2, 3]
    assert planned(folder, 'cases = "cases.jsonl"\n' + SUBJECTS).lessons


LONG = "x" * 1000
"""A name that no disk takes."""
_FILES = ("masks", "captions")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "nothing"),
        ("colour = 1", "colour"),
        ("[subjects.rex]\nphotos = 'photos'", "class_word"),
        ("[subjects.rex]\nphotos = 'none'\nclass_word = 'dog'", "none"),
        ("[subjects.rex]\nresidual = 'none'", "none"),
        ("[subjects.rex]\nphotos = 'photos'\nclass_word = 'dog'\nmasks = 'none'", "none"),
        *((f"[subjects.rex]\nphotos = 'photos'\nclass_word = 'dog'\n{key} = '{LONG}'", LONG[:100]) for key in _FILES),
        (f"[subjects.rex]\nphotos = '{LONG}'\nclass_word = 'dog'", LONG[:100]),
        (f"[subjects.rex]\nresidual = '{LONG}'", "name a subject"),
        (f"model = '{LONG}'\n{SUBJECTS}", LONG[:100]),
        ("[subjects.'a b']\nclass_word = 'dog'", "a b"),
        ("[subjects.a]\nclass_word = 'dog'\n[subjects.A]\nclass_word = 'dog'", "case"),
        ("[[pictures]]\nprompt = 'a {nobody}'", "nobody"),
        ("[[pictures]]\nprompt = 'a dog'\nsubject.pet = 'rex'", "pet"),
        ("[[pictures]]\nprompt = 'a dog'\nseed = []", "seed"),
        ("[[pictures]]\nprompt = 'a dog'\nseed = -1", "seed"),
        ("[[pictures]]\nprompt = 'a dog'\nseed = '9-0'", "9-0"),
        ("[[pictures]]\nprompt = 'a dog'\nscheduler = 'eulr'", "eulr"),
        ("[[pictures]]\nprompt = 'a dog'\npreset = 'mine'", "mine"),
        ("[[pictures]]\nprompt = 'a dog'\nlayout = 'mine'", "mine"),
        ("[[pictures]]\nprompt = 'a dog'\nlayout.rex = 'left'", "rex"),
        ("[[pictures]]\nprompt = 'a {ball}'\nstrength.ball = 0.5\n[subjects.ball]\nclass_word = 'ball'", "ball"),
        ("[[pictures]]\nprompt = 'a dog'\nseed = '0-9999999'\nnum_inference_steps = [1, 2]", "20,000,000"),
        ("lease = 65\n[[pictures]]\nprompt = 'a dog'", "lease"),
    ],
)
def test_jobs_that_make_no_sense_are_refused_before_anything_is_done(folder: Path, text: str, told: str) -> None:
    with pytest.raises(Cones2Error, match=told):
        planned(folder, text)


@pytest.mark.usefixtures("unchecked_types")  # a line is read when it is asked for
def test_lines_that_make_no_sense(folder: Path) -> None:
    for text, told in (("", "empty"), ('{"prompt": "a dog"}\n{"prompt": 1}', "picture 2"), ("x" * 70_000, "65,536")):
        with pytest.raises(SettingsError, match=told):
            planned(folder, text, "cases.jsonl")


def test_a_layout_of_the_jobs_own(folder: Path) -> None:
    text = (
        '[layouts.low]\nrex = [0, 0.5, 1, 1]\n[[pictures]]\nprompt = ["a {rex}", "a cat"]\nlayout = ["low", "auto"]\n'
    )
    plan = planned(folder, text)
    made = [case.made["layout"] for lease in plan.leases for case in plan.cases(lease)]
    assert made[0]["regions"] == {"rex": [[0.0, 0.5, 1.0, 1.0]]}
    assert made[2] is None  # a prompt without subjects
    assert [each["layout"] for each in cases(plan)] == ["low", "auto", "low"]
    with pytest.raises(LayoutError, match="cat"):
        planned(folder, text.replace("rex = [0", "cat = [0"))


def test_how_a_subject_is_learned_is_its_own_or_the_jobs(folder: Path) -> None:
    (folder / "mine.toml").write_text("steps = 7")
    text = 'recipe = "mine.toml"\nseed = 5\n' + SUBJECTS + '[subjects.max]\nphotos = "photos"\nclass_word = "cat"\n'
    (folder / "job.toml").write_text(text + 'recipe = "direct"\nseed = 6\n')
    subjects = read_job(folder / "job.toml").subjects
    rex, maxx = subjects["rex"], subjects["max"]
    assert isinstance(rex, Photographed)
    assert isinstance(maxx, Photographed)
    assert rex.recipe is not None
    assert maxx.recipe is not None
    assert (rex.recipe.steps, rex.seed, maxx.recipe.steps, maxx.seed) == (7, 5, 300, 6)


def test_a_tokenizer_of_sentencepiece_is_part_of_what_identifies_a_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    hashes = set()
    for content in (b"one", b"two"):
        (tmp_path / "tokenizer" / "spiece.model").write_bytes(content)
        hashes.add(weights_of(str(tmp_path)))
    assert len(hashes) == 2


def test_a_model_of_which_a_folder_can_not_be_listed_is_no_other_model(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, listed = weights_of(str(small_folder)), Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder.name == "vae":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", iterdir)
        with pytest.raises(ModelError, match=r"vae: Permission denied\. Make it readable"):
            weights_of(str(small_folder))
    assert weights_of(str(small_folder)) == whole
