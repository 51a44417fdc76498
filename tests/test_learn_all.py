"""Many subjects in one call: isolated, skipped when finished, resumed, summed up."""

import copy
import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cones2.errors import SettingsError
from cones2.learn_all import Assignment, Outcome, learn_all, read_manifest
from cones2.learning.learner import learn_steps
from cones2.learning.recipe import RECIPES, Recipe
from cones2.library import Library
from cones2.photos import load_photos
from cones2.pipeline import Cones2Pipeline
from learning import residual_of, with_parts

RECIPE = Recipe(steps=3, learning_rate=1e-3, caption_count=4, captions_per_step=2)


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Cones2Pipeline:
    return Cones2Pipeline.from_pretrained(str(small_folder), device="cpu")


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


def states(pipe: Cones2Pipeline, library: Library, *assignments: Assignment) -> dict[str, str]:
    return {outcome.name: outcome.state for outcome in outcomes(pipe, library, *assignments)}


def outcomes(pipe: Cones2Pipeline, library: Library, *assignments: Assignment) -> tuple[Outcome, ...]:
    *_, last = learn_all(pipe, assignments, library)
    return last.outcomes


def test_one_that_fails_harms_no_other(small: Cones2Pipeline, photos: Path, library: Library) -> None:
    rex, luna = Assignment("rex", photos, "dog", RECIPE), Assignment("luna", photos, "cat", RECIPE)
    gone, wordless = Assignment("gone", photos / "none", "dog", RECIPE), Assignment("wordless", photos, "...", RECIPE)
    told = outcomes(small, library, gone, rex, wordless, luna)
    assert {each.name: each.state for each in told} == {
        "gone": "failed",
        "rex": "learned",
        "wordless": "failed",
        "luna": "learned",
    }
    assert "none" in told[0].problem
    assert "'...'" in told[2].problem
    assert told[1].loss is not None
    assert told[1].findings
    assert told[1].displacement is not None
    assert 0 < told[1].displacement < 1
    assert (told[1].preservation or 0) > 0
    assert [entry.name for entry in library.entries()] == ["luna", "rex"]
    alone = residual_of(learn_steps(small.pipeline, load_photos(photos), "dog", RECIPE))
    assert library.load("rex").sha256 == alone.sha256


def test_a_bug_in_one_is_told_and_harms_no_other(small: Cones2Pipeline, photos: Path, library: Library) -> None:
    bad, rex = Assignment("bad", photos, "dog", RECIPE), Assignment("rex", photos, "dog", RECIPE)
    handles: list[Any] = []

    def fail(*_: object) -> None:
        handles[0].remove()
        _ = [][0]

    handles.append(small.pipeline.unet.register_forward_pre_hook(fail))
    told = outcomes(small, library, bad, rex)
    assert [(each.state, each.problem) for each in told] == [
        ("failed", "IndexError: list index out of range"),
        ("learned", ""),
    ]


def test_what_is_finished_is_not_learned_again_until_something_changes(
    small: Cones2Pipeline, photos: Path, library: Library
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


def test_what_is_half_learned_is_not_finished(small: Cones2Pipeline, photos: Path, library: Library) -> None:
    half = next(learn_steps(small.pipeline, load_photos(photos), "dog", RECIPE)).residual
    library.add("rex", half)
    assert states(small, library, Assignment("rex", photos, "dog", RECIPE)) == {"rex": "learned"}
    assert library.load("rex").recipe["taken"] == RECIPE.steps


def test_masks_and_captions_of_ones_own(small: Cones2Pipeline, photos: Path, library: Library) -> None:
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
    alone = residual_of(learn_steps(small.pipeline, own, "dog", RECIPE, captions=["a dog", "my dog"]))
    assert library.load("rex").sha256 == alone.sha256


def test_another_encoder_learns_again(small: Cones2Pipeline, photos: Path, library: Library) -> None:
    rex = Assignment("rex", photos, "dog", RECIPE)
    outcomes(small, library, rex)
    learned = library.load("rex")
    (part,) = learned.parts
    stranger = replace(part.encoder, weights="0" * 64, probe=(1.0,) * len(part.encoder.probe))
    library.add("rex", replace(learned, parts=(replace(part, encoder=stranger),)), replace=True)
    assert states(small, library, rex) == {"rex": "learned"}


def test_a_file_that_is_broken_is_replaced(small: Cones2Pipeline, photos: Path, library: Library) -> None:
    rex = Assignment("rex", photos, "dog", RECIPE)
    outcomes(small, library, rex)
    content = library.path_of("rex").read_bytes()
    library.path_of("rex").write_bytes(content[:-5])
    assert states(small, library, rex) == {"rex": "learned"}
    assert library.path_of("rex").read_bytes() == content


def test_a_name_that_differs_only_in_case_is_told_before_learning(
    small: Cones2Pipeline, photos: Path, library: Library
) -> None:
    outcomes(small, library, Assignment("rex", photos, "dog", RECIPE))
    steps = list(learn_all(small, [Assignment("Rex", photos, "dog", RECIPE)], library))
    assert [step.learning for step in steps] == [None]
    assert "'Rex' differs from 'rex'" in steps[0].outcomes[0].problem


def test_memory_is_free_before_the_next_one_begins(small: Cones2Pipeline, photos: Path, library: Library) -> None:
    assignments = [Assignment(name, photos, "dog", RECIPE) for name in ("rex", "luna")]
    tuned: set[weakref.ref[object]] = set()
    alive = []
    for step in learn_all(small, assignments, library):
        if step.learning is not None:
            tuned.update(map(weakref.ref, step.learning.tuned_encoders))
        elif step.number == 1:
            gc.collect()
            alive.append([encoder() for encoder in tuned])
    assert alive == [[None]]
    assert len(tuned) == 2


def test_an_interrupted_one_goes_on_from_its_checkpoint(small: Cones2Pipeline, photos: Path, library: Library) -> None:
    rex = Assignment("rex", photos, "dog", RECIPE)
    whole = Library(library.folder / "whole")
    outcomes(small, whole, rex)
    steps = learn_all(small, [rex], library)
    first = next(steps)
    assert first.step == 1
    first.save_checkpoint()
    steps.close()
    (checkpoints,) = library.folder.glob(".rex-*.learning")
    assert next(learn_all(small, [rex], library)).step == 2
    other = replace(rex, seed=1)
    assert next(learn_all(small, [other], library)).step == 1  # and never from another's
    unet = copy.deepcopy(small.pipeline.unet)
    unet.conv_in.weight.data += 1e-3
    finetuned = Cones2Pipeline(with_parts(small.pipeline, unet=unet))
    assert next(learn_all(finetuned, [rex], library)).step == 1
    shutil.rmtree(checkpoints)
    assert states(small, library, rex) == {"rex": "learned"}
    assert library.load("rex").sha256 == whole.load("rex").sha256
    assert list(library.folder.glob(".rex-*")) == []


def test_checkpoints_that_a_killed_one_left_are_removed(small: Cones2Pipeline, photos: Path, library: Library) -> None:
    rex, left = Assignment("rex", photos, "dog", RECIPE), library.folder / ".rex-0123456789ab.learning"
    assert states(small, library, rex) == {"rex": "learned"}
    (library.folder / ".rexy-0123456789ab.learning").mkdir()  # another subject's
    left.mkdir()
    (left / "step-00000002.json").touch()
    assert states(small, library, rex) == {"rex": "finished"}
    assert not left.exists()
    assert (library.folder / ".rexy-0123456789ab.learning").exists()


def test_no_assignments(small: Cones2Pipeline, library: Library) -> None:
    with pytest.raises(SettingsError, match="no subjects"):
        learn_all(small, [], library)


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
        ("", "'subjects'"),
        ("[subjects]", "'subjects'"),
        ("[subjects.rex]\nphotos = 'rex'", r"'subjects\.rex\.class_word'"),
        ("[subjects.rex]\nphotos = 'rex'\nclass = 'dog'", r"'subjects\.rex\.c"),
        ("[subjects.rex]\nphotos = 3\nclass_word = 'dog'", r"'subjects\.rex\.photos'"),
        ("seed = -1\n[subjects.rex]\nphotos = 'rex'\nclass_word = 'dog'", "seed -1 can't be used"),
        (f"[subjects.rex]\nphotos = 'rex'\nclass_word = 'dog'\nseed = {2**63}", f"seed {2**63} can't be used"),
        ("recipe = 'best'\n[subjects.rex]\nphotos = 'rex'\nclass_word = 'dog'", "'best'"),
        (
            "[subjects.rex]\nphotos = 'a'\nclass_word = 'dog'\n[subjects.Rex]\nphotos = 'a'\nclass_word = 'dog'",
            "'rex' and 'Rex'",
        ),
        ("subjects = ", "as TOML"),
        ("\xff", "as TOML"),
    ],
)
def test_manifests_that_make_no_sense(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "subjects.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(SettingsError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_one_bad_name_stops_no_other(small: Cones2Pipeline, photos: Path, library: Library, tmp_path: Path) -> None:
    manifest = tmp_path / "subjects.toml"
    entry = f"photos = '{photos}'\nclass_word = 'dog'\n"
    manifest.write_text(f"[subjects.my-dog]\n{entry}[subjects.'../rex']\n{entry}[subjects.rex]\n{entry}")
    assignments = [replace(each, recipe=RECIPE) for each in read_manifest(manifest)]
    *_, last = learn_all(small, assignments, library)
    assert [outcome.state for outcome in last.outcomes] == ["failed", "failed", "learned"]
    assert "Take 'my_dog'" in last.outcomes[0].problem
    assert "'../rex' can't name a subject" in last.outcomes[1].problem
    assert library.names() == ["rex"]


def test_a_manifest_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml"):
        read_manifest(tmp_path / "none.toml")
