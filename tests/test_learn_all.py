"""Many subjects in one call: isolated, skipped when finished, resumed, summed up."""

import copy
import gc
import json
import shutil
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from command import refused, run
from cones2.backbones import Backbone, open_backbone
from cones2.errors import LibraryError, SettingsError
from cones2.learning.loop import learn
from cones2.learning.manifest import Assignment, read_manifest
from cones2.learning.many import Outcome, learn_all
from cones2.learning.recipe import RECIPES, Recipe
from cones2.library import Library
from cones2.photos import load_photos
from cones2.steps import finish

RECIPE = Recipe(steps=3, learning_rate=1e-3, caption_count=4, captions_per_step=2)


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Backbone:
    return open_backbone(str(small_folder), device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.radial_gradient("L").convert("RGB").save(folder / f"{name}.png")
    return folder


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "library")


def states(backbone: Backbone, library: Library, *assignments: Assignment) -> dict[str, str]:
    return {outcome.name: outcome.state for outcome in outcomes(backbone, library, *assignments)}


def outcomes(backbone: Backbone, library: Library, *assignments: Assignment) -> tuple[Outcome, ...]:
    return finish(learn_all(backbone, assignments, library)).outcomes


def test_one_that_fails_harms_no_other(small: Backbone, photos: Path, library: Library) -> None:
    rex, luna = Assignment("rex", photos, "dog", RECIPE), Assignment("luna", photos, "cat", RECIPE)
    gone, wordless = Assignment("gone", photos / "none", "dog", RECIPE), Assignment("wordless", photos, "...", RECIPE)
    told = outcomes(small, library, gone, rex, wordless, luna)
    assert {each.name: each.state for each in told} == {
        "gone": "failed",
        "rex": "learned",
        "wordless": "failed",
        "luna": "learned",
    }
    assert "No such file" in told[0].problem
    assert "has no letters" in told[2].problem
    assert told[1].loss is not None
    assert "nearly the same picture" in " ".join(told[1].findings)
    assert told[1].displacement is not None
    assert 0 < told[1].displacement < 1
    assert (told[1].preservation or 0) > 0
    assert [entry.name for entry in library.entries()] == ["luna", "rex"]
    alone = finish(learn(small, load_photos(photos), "dog", recipe=RECIPE)).residual
    assert alone is not None
    assert library.load("rex").sha256 == alone.sha256


def test_a_bug_in_one_is_told_and_harms_no_other(
    small: Backbone, photos: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, **options: Any) -> Any:
        if folder.name == "bad":
            raise ZeroDivisionError("a bug")
        return load_photos(folder, **options)

    monkeypatch.setattr("cones2.learning.many.load_photos", fail)
    bad, rex = Assignment("bad", photos / "bad", "dog", RECIPE), Assignment("rex", photos, "dog", RECIPE)
    told = outcomes(small, library, bad, rex)
    assert [(each.state, each.problem) for each in told] == [("failed", "ZeroDivisionError: a bug"), ("learned", "")]


def test_what_is_finished_is_not_learned_again_until_something_changes(
    small: Backbone, photos: Path, library: Library
) -> None:
    rex = Assignment("rex", photos, "dog", RECIPE)
    assert states(small, library, rex) == {"rex": "learned"}
    assert states(small, library, rex) == {"rex": "finished"}
    for changed in (
        replace(rex, class_word="cat"),
        replace(rex, seed=1),
        replace(rex, recipe=replace(RECIPE, steps=2)),
    ):
        assert states(small, library, changed) == {"rex": "learned"}
        assert states(small, library, changed) == {"rex": "finished"}
    assert states(small, library, rex) == {"rex": "learned"}
    Image.linear_gradient("L").convert("RGB").save(photos / "c.png")
    assert states(small, library, rex) == {"rex": "learned"}
    assert states(small, library, rex) == {"rex": "finished"}


def test_what_is_half_learned_is_not_finished(small: Backbone, photos: Path, library: Library) -> None:
    half = next(learn(small, load_photos(photos), "dog", recipe=RECIPE)).residual
    library.add("rex", half)
    assert states(small, library, Assignment("rex", photos, "dog", RECIPE)) == {"rex": "learned"}
    assert library.load("rex").recipe["taken"] == RECIPE.steps


def test_masks_and_captions_of_ones_own(small: Backbone, photos: Path, library: Library) -> None:
    masks, captions = photos.parent / "masks", photos.parent / "captions.txt"
    masks.mkdir()
    for name in "abc":
        Image.new("L", (256, 256), "white").save(masks / f"{name}.png")
    captions.write_text("a dog\nthe dog\n")
    rex = Assignment("rex", photos, "dog", RECIPE, masks=masks, captions=captions)
    plain = replace(rex, masks=None, captions=None)
    assert states(small, library, plain) == {"rex": "learned"}
    for changed in (rex, replace(rex, masks=None), replace(rex, captions=None)):
        assert states(small, library, changed) == {"rex": "learned"}
        assert states(small, library, changed) == {"rex": "finished"}
    captions.write_text("a dog\nmy dog\n")
    assert states(small, library, rex) == {"rex": "learned"}
    Image.new("L", (256, 256), 128).save(masks / "a.png")
    assert states(small, library, rex) == {"rex": "learned"}
    own = load_photos(photos, masks=masks)
    alone = finish(learn(small, own, "dog", recipe=RECIPE, captions=["a dog", "my dog"])).residual
    assert library.load("rex").sha256 == alone.sha256


def test_another_encoder_learns_again(small: Backbone, photos: Path, library: Library) -> None:
    rex = Assignment("rex", photos, "dog", RECIPE)
    outcomes(small, library, rex)
    learned = library.load("rex")
    stranger = replace(learned.encoder, weights="0" * 64, probe=(1.0,) * len(learned.encoder.probe))
    library.add("rex", replace(learned, encoder=stranger), replace=True)
    assert states(small, library, rex) == {"rex": "learned"}


def test_a_file_that_is_broken_is_replaced(small: Backbone, photos: Path, library: Library) -> None:
    rex = Assignment("rex", photos, "dog", RECIPE)
    outcomes(small, library, rex)
    content = library.path_of("rex").read_bytes()
    library.path_of("rex").write_bytes(content[:-5])
    assert states(small, library, rex) == {"rex": "learned"}
    assert library.path_of("rex").read_bytes() == content


def test_a_name_that_differs_only_in_case_is_told_before_learning(
    small: Backbone, photos: Path, library: Library
) -> None:
    outcomes(small, library, Assignment("rex", photos, "dog", RECIPE))
    steps = list(learn_all(small, [Assignment("Rex", photos, "dog", RECIPE)], library))
    assert [step.learning for step in steps] == [None]
    assert "'Rex' differs from 'rex' only in case" in steps[0].outcomes[0].problem


def test_memory_is_free_before_the_next_one_begins(small: Backbone, photos: Path, library: Library) -> None:
    assignments = [Assignment(name, photos, "dog", RECIPE) for name in ("rex", "luna")]
    optimizers: set[weakref.ref[object]] = set()
    alive = []
    for step in learn_all(small, assignments, library):
        if step.learning is not None:
            optimizers.add(weakref.ref(step.learning.study.optimizer))
        elif step.number == 1:
            gc.collect()
            alive.append([optimizer() for optimizer in optimizers])
    assert alive == [[None]]
    assert len(optimizers) == 2


def test_an_interrupted_one_goes_on_from_its_checkpoint(small: Backbone, photos: Path, library: Library) -> None:
    rex = Assignment("rex", photos, "dog", RECIPE)
    whole = Library(library.folder / "whole")
    outcomes(small, whole, rex)
    steps = learn_all(small, [rex], library)
    assert next(steps).step == 1
    steps.close()
    (checkpoints,) = library.folder.glob(".rex-*.learning")
    assert next(learn_all(small, [rex], library)).step == 2
    other = replace(rex, seed=1)
    assert next(learn_all(small, [other], library)).step == 1  # and never from another's
    unet = copy.deepcopy(small.unet)
    unet.conv_in.weight.data += 1e-3
    assert next(learn_all(replace(small, unet=unet), [rex], library)).step == 1
    shutil.rmtree(checkpoints)
    assert states(small, library, rex) == {"rex": "learned"}
    assert library.load("rex").sha256 == whole.load("rex").sha256
    assert list(library.folder.glob(".rex-*")) == []


def test_no_assignments(small: Backbone, library: Library) -> None:
    with pytest.raises(SettingsError, match="there are no subjects to learn: give at least one"):
        learn_all(small, [], library)
    with pytest.raises(LibraryError, match="'my dog' can't name a subject"):
        Assignment("my dog", Path("photos"), "dog")


# Manifests


def test_a_manifest_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "subjects.toml"
    (tmp_path / "quick.toml").write_text("steps = 7")
    path.write_text(
        'recipe = "mini"\nseed = 4\n'
        '[subjects.rex]\nphotos = "rex"\nclass_word = "dog"\n'
        '[subjects.luna]\nphotos = "/luna"\nclass_word = "cat"\nrecipe = "quick.toml"\nseed = 0\n'
        'masks = "masks"\ncaptions = "dogs.txt"\n'
    )
    assert read_manifest(path) == (
        Assignment("rex", tmp_path / "rex", "dog", RECIPES["mini"], 4),
        Assignment(
            "luna", Path("/luna"), "cat", Recipe(steps=7), 0, masks=tmp_path / "masks", captions=tmp_path / "dogs.txt"
        ),
    )


def test_a_manifest_with_a_byte_order_mark_and_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = tmp_path / "subjects.toml"
    path.write_text('\ufeff[subjects.rex]\nphotos = "~/rex"\nclass_word = "dog"\n', encoding="utf-8")
    assert read_manifest(path) == (Assignment("rex", tmp_path / "home" / "rex", "dog"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "wrong at 'subjects': Field required. Expected"),
        ("[subjects]", "wrong at 'subjects': Dictionary should have at least 1 item"),
        ("[subjects.rex]\nphotos = 'rex'", "wrong at 'subjects.rex.class_word': Field required"),
        ("[subjects.rex]\nphotos = 'rex'\nclass = 'dog'", "wrong at 'subjects.rex.c"),
        ("[subjects.rex]\nphotos = 3\nclass_word = 'dog'", "wrong at 'subjects.rex.photos'"),
        ("[subjects.'../rex']\nphotos = 'rex'\nclass_word = 'dog'", "'../rex' can't name a subject"),
        ("recipe = 'best'\n[subjects.rex]\nphotos = 'rex'\nclass_word = 'dog'", "there is no recipe 'best'"),
        (
            "[subjects.rex]\nphotos = 'a'\nclass_word = 'dog'\n[subjects.Rex]\nphotos = 'a'\nclass_word = 'dog'",
            "subjects 'rex' and 'Rex' differ only in case: rename one",
        ),
        ("subjects = ", "is no TOML"),
        ("\xff", "is no TOML"),
    ],
)
def test_manifests_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "subjects.toml"
    path.write_text(text, encoding="latin-1")
    error = refused("learn-all", path, "--model", tmp_path / "none")
    assert f"{path}" in error
    assert message in error


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    assert "can't read" in refused("learn-all", tmp_path / "none.toml")


# The command


@pytest.mark.usefixtures("photos")
def test_the_command_sums_up_and_fails_when_any_failed(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "quick.toml").write_text(
        "".join(f"{key} = {json.dumps(asdict(RECIPE)[key])}\n" for key in asdict(RECIPE))
    )
    manifest, shelf = tmp_path / "subjects.toml", tmp_path / "shelf"
    good = 'recipe = "quick.toml"\n[subjects.rex]\nphotos = "photos"\nclass_word = "dog"\n'
    manifest.write_text(good)
    command = ("learn-all", manifest, "--model", small_folder, "--library", shelf)
    told = run(*command)
    assert [line.split("│")[1:4] for line in told.stdout.splitlines() if "rex" in line] == [
        [" rex     ", " dog        ", " learned "]
    ]
    assert told.stderr == ""
    manifest.write_text(f'{good}[subjects.gone]\nphotos = "none"\nclass_word = "dog"\n')
    result = run(*command, "--json", code=1)
    report = json.loads(result.stdout)
    assert report["library"] == str(shelf)
    assert [(each["name"], each["state"]) for each in report["subjects"]] == [("rex", "finished"), ("gone", "failed")]
    assert "No such file" in report["subjects"][1]["problem"]
    assert "failed" in run(*command, code=1).stdout
