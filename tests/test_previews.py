"""Previews while learning: the same residual, pictures when asked for, and an end where identity rises no more."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cones2.errors import LearningError, SettingsError
from cones2.learning.learner import learn_steps
from cones2.learning.previews import PreviewedStep, with_previews
from cones2.learning.recipe import Recipe
from cones2.pipeline import Cones2Pipeline
from learning import PHOTOS, finish, learn, residual_of

RECIPE = Recipe(steps=4, batch_size=1, learning_rate=1e-3, captions_per_step=2, caption_count=6)
QUICK: dict[str, Any] = {"seed": (3, 4), "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> Cones2Pipeline:
    return Cones2Pipeline.from_pretrained(str(small_folder), device="cpu")


def previewed(pipe: Cones2Pipeline, *, steps: int = 4, every: int = 2, **options: Any) -> list[PreviewedStep]:
    learning = learn_steps(pipe.pipeline, PHOTOS, "dog", dataclasses.replace(RECIPE, steps=steps))
    return list(with_previews(learning, pipe, every=every, drawing=QUICK, **options))


def after(pipe: Cones2Pipeline, steps: int) -> bytes:
    """The vector that so many steps come to."""
    vector = residual_of(learn(pipe.pipeline, dataclasses.replace(RECIPE, steps=steps))).parts[0].vector
    return vector.numpy().tobytes()


def kept(step: PreviewedStep) -> bytes:
    return step.residual.parts[0].vector.numpy().tobytes()


def scripted(*values: float) -> Any:
    """A measure that gives these values in turn, whatever the pictures are."""
    left = iter(values)
    return lambda _: next(left)


def test_previews_change_nothing(pipe: Cones2Pipeline) -> None:
    last = previewed(pipe, identity=scripted(0.1, 0.2))[-1]
    assert last.residual.sha256 == residual_of(learn(pipe.pipeline, RECIPE)).sha256


def test_every_few_steps_and_the_last_are_drawn(pipe: Cones2Pipeline) -> None:
    steps = previewed(pipe, steps=5, identity=scripted(0.1, 0.2, 0.3))
    assert [(step.step, len(step.images), step.identity) for step in steps] == [
        (1, 0, None),
        (2, 2, 0.1),
        (3, 0, None),
        (4, 2, 0.2),
        (5, 2, 0.3),
    ]
    assert {step.steps for step in steps} == {5}


def test_a_picture_is_what_the_pipeline_draws(pipe: Cones2Pipeline) -> None:
    step = previewed(pipe)[-1]
    expected = pipe("a photo of a {rex}", subjects={"rex": step.residual}, **QUICK).images
    assert [image.tobytes() for image in step.images] == [image.tobytes() for image in expected]
    other = previewed(pipe, prompt="a {subject} on the beach")[-1]
    assert other.images[0].tobytes() != step.images[0].tobytes()


def test_it_stops_when_identity_rises_no_more_and_keeps_the_best(pipe: Cones2Pipeline) -> None:
    steps = previewed(pipe, steps=9, every=1, patience=2, identity=scripted(0.1, 0.5, 0.5, 0.4, 0.9))
    assert [step.stopped for step in steps] == [False, False, False, True]
    assert kept(steps[-1]) == after(pipe, 2)
    best = steps[-1].best
    assert best is not None
    assert (best.step, best.identity, best.loss) == (2, 0.5, steps[1].learned.loss)


def test_a_rise_is_waited_for_again(pipe: Cones2Pipeline) -> None:
    steps = previewed(pipe, steps=6, every=1, patience=2, identity=scripted(0.1, 0.0, 0.2, 0.1, 0.3, 0.2))
    assert [step.stopped for step in steps] == [False] * 6
    assert kept(steps[-1]) == after(pipe, 5)


def test_without_patience_the_last_is_kept(pipe: Cones2Pipeline) -> None:
    last = previewed(pipe, identity=scripted(0.9, 0.1))[-1]
    assert last.best is None
    assert kept(last) == after(pipe, 4)


def test_stopping_closes_learning_and_writes_no_checkpoint(pipe: Cones2Pipeline, tmp_path: Path) -> None:
    steps = learn_steps(pipe.pipeline, PHOTOS, "dog", RECIPE, checkpoint=tmp_path)
    *_, last = with_previews(steps, pipe, every=1, drawing=QUICK, identity=scripted(0.2, 0.1), patience=1)
    assert (last.step, last.stopped) == (2, True)
    assert list(tmp_path.glob("step-*")) == []
    assert list(steps) == []


# Patience and interruptions

IDENTITIES = (0.1, 0.5, 0.4, 0.3)


def patient(
    pipe: Cones2Pipeline, folder: Path, *identities: float, every: int = 50, resume: bool = True
) -> Iterator[PreviewedStep]:
    """Take nine steps at most, and measure each; a measure that runs out of values fails."""
    recipe = dataclasses.replace(RECIPE, steps=9)
    options: dict[str, Any] = {"checkpoint": folder, "checkpoint_every": every, "resume": resume}
    steps = learn_steps(pipe.pipeline, PHOTOS, "dog", recipe, **options)
    measure = scripted(*identities)
    return with_previews(steps, pipe, every=1, drawing=QUICK, identity=measure, patience=2, checkpoint=folder)


def stop_after(steps: Iterator[PreviewedStep], number: int) -> None:
    for step in steps:
        if step.step == number:
            step.save_checkpoint()
            return


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interrupted_learning_stops_where_an_undisturbed_one_does(
    pipe: Cones2Pipeline, tmp_path: Path, step: int
) -> None:
    *_, undisturbed = patient(pipe, tmp_path / "undisturbed", *IDENTITIES)
    stop_after(patient(pipe, tmp_path / "begun", *IDENTITIES[:step]), step)
    first, *rest = patient(pipe, tmp_path / "begun", *IDENTITIES[step:])
    last = rest[-1] if rest else first
    assert first.step == step + 1
    assert (undisturbed.step, last.step, last.stopped) == (4, 4, True)
    assert last.residual.to_bytes() == undisturbed.residual.to_bytes()


def test_previews_behind_the_last_checkpoint_are_forgotten(pipe: Cones2Pipeline, tmp_path: Path) -> None:
    begun = patient(pipe, tmp_path / "begun", 0.1, 0.5, 0.9, every=2)
    for _ in range(3):
        next(begun)
    shutil.copytree(tmp_path / "begun", tmp_path / "killed")  # as it is where the learner is killed at step 3
    *_, last = patient(pipe, tmp_path / "killed", 0.4, 0.3)
    assert last.best is not None
    assert (last.step, last.best.step) == (4, 2)


def test_interrupted_at_a_preview_it_draws_it_again(pipe: Cones2Pipeline, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):  # the third measure fails
        list(patient(pipe, tmp_path, 0.1, 0.5, every=1))
    first, last = patient(pipe, tmp_path, 0.4, 0.3)
    assert last.best is not None
    assert (first.step, last.step, last.best.step) == (3, 4, 2)


@pytest.mark.parametrize("patience", [None, 2])
def test_previews_of_another_measure_are_not_compared(
    pipe: Cones2Pipeline, tmp_path: Path, patience: int | None
) -> None:
    def measured(identity: Any) -> Iterator[PreviewedStep]:
        recipe = dataclasses.replace(RECIPE, steps=9)
        steps = learn_steps(pipe.pipeline, PHOTOS, "dog", recipe, checkpoint=tmp_path, resume=True)
        options: dict[str, Any] = {"identity": identity, "patience": patience, "checkpoint": tmp_path}
        return with_previews(steps, pipe, every=1, drawing=QUICK, **options)

    stop_after(measured(scripted(0.9)), 1)
    with pytest.raises(LearningError, match=r"previews\.json"):
        next(measured(len))
    begun = next(measured(scripted(0.8)))
    assert (begun.step, begun.identity) == (2, 0.8)
    assert (begun.best is None) == (patience is None)


def test_begun_again_it_forgets_all_previews(pipe: Cones2Pipeline, tmp_path: Path) -> None:
    stop_after(patient(pipe, tmp_path, 0.9), 1)
    last = finish(patient(pipe, tmp_path, *IDENTITIES, resume=False))  # type: ignore[arg-type]
    assert last.step == 4


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"drawn": "", "previews": [{"step": 1, "residual": "dear"}]}'])
def test_previews_that_are_damaged(pipe: Cones2Pipeline, tmp_path: Path, content: str) -> None:
    stop_after(patient(pipe, tmp_path, 0.9), 1)
    (tmp_path / "previews.json").write_text(content)
    with pytest.raises(LearningError, match=r"previews\.json"):
        next(patient(pipe, tmp_path, 0.1))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"every": 0}, "every is 0"),
        ({"every": 1, "patience": 0, "identity": max}, "patience is 0"),
        ({"every": 1, "patience": 1}, "identity"),
    ],
)
def test_settings_that_make_no_sense(pipe: Cones2Pipeline, options: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        with_previews(learn_steps(pipe.pipeline, PHOTOS, "dog", RECIPE), pipe, **options)
