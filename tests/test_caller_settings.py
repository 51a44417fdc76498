"""Whatever the caller set of PyTorch, residuals and pictures are the same: web servers and other tools set a lot."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from cones2.conditioning import conditioned
from cones2.errors import ModelError
from cones2.examples import EXAMPLES
from cones2.judge import open_judge
from cones2.layout import Layout
from cones2.photos import load_photos, stack_pixels
from cones2.pipeline import Cones2Pipeline
from cones2.subjects import Subject
from learning import RECIPE, learn, residual_of, with_parts
from subjects_for_tests import LAYOUT, PROMPT, subjects_for, with_own_scheduler

RECIPES = (dataclasses.replace(RECIPE, steps=2), dataclasses.replace(RECIPE, steps=2, tune="residual"))
WEIGHTED = Layout({**LAYOUT.regions, "rex": dataclasses.replace(LAYOUT.regions["rex"], weight=0.7)})
SIZE: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "np"}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CALLERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "a device where nothing can be computed": lambda: torch.device("meta"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic algorithms": deterministic,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
every_caller = pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS.keys())


def opened(folder: Path) -> Cones2Pipeline:
    pipe = Cones2Pipeline.from_pretrained(str(folder), device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def results(pipe: Cones2Pipeline, subjects: dict[str, Subject]) -> tuple[list[Any], list[np.ndarray]]:
    """What is learned, by both ways, and what is drawn, by both presets."""
    learned: list[Any] = []
    for recipe in RECIPES:
        *_, last = learn(pipe.pipeline, recipe)
        learned += [last.residual.sha256, last.loss, last.displacement()]
    pictures = [
        pipe(PROMPT, layout, subjects=subjects, seed=3, preset=preset, measure_attention=True, **SIZE)
        for layout, preset in ((WEIGHTED, "paper"), (LAYOUT, "cones_v2"))
    ]
    learned += [[str(reading) for reading in picture.attention[0]] for picture in pictures]
    return learned, [picture.images for picture in pictures]


@pytest.fixture(scope="module")
def subjects(small_folder: Path) -> dict[str, Subject]:
    return subjects_for(opened(small_folder).pipeline, during=(0.2, 1.0), negative="red")


@pytest.fixture(scope="module")
def expected(small_folder: Path, subjects: dict[str, Subject]) -> tuple[list[Any], list[np.ndarray]]:
    return results(opened(small_folder), subjects)


@every_caller
def test_residuals_and_pictures_are_the_same(
    small_folder: Path,
    subjects: dict[str, Subject],
    expected: tuple[list[Any], list[np.ndarray]],
    caller: Callable[[], AbstractContextManager[Any]],
) -> None:
    pipe = opened(small_folder)
    with caller():
        within = results(pipe, subjects)
        pipe = opened(small_folder)
    for learned, pictures in (within, results(pipe, subjects)):
        assert learned == expected[0]
        for picture, right in zip(pictures, expected[1], strict=True):
            np.testing.assert_array_equal(picture, right)


@pytest.mark.parametrize("name", [name for name in CALLERS if "device" not in name])  # diffusers' own loop needs one
def test_a_block_of_ones_own(tiny: Any, name: str) -> None:
    subjects = subjects_for(tiny)

    def draw() -> np.ndarray:
        pipeline = with_own_scheduler(tiny)
        with conditioned(pipeline, PROMPT, subjects=subjects, layout=LAYOUT) as inputs:
            images: np.ndarray = pipeline(**inputs, **SIZE, generator=torch.Generator().manual_seed(3)).images
        return images

    right = draw()
    with CALLERS[name]():
        drawn = draw()
    np.testing.assert_allclose(drawn, right, atol=0.15 if name == "autocast" else 0)  # which this loop obeys


def test_settings_are_the_callers_again(small_folder: Path) -> None:
    pipe = opened(small_folder)
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        for step in learn(pipe.pipeline, RECIPES[0]):
            assert torch.empty(1).is_meta
            assert torch.empty(1).is_inference()
            assert torch.is_autocast_enabled("cpu")
            assert np.isfinite(step.loss)


def test_a_denoiser_without_gradients_is_named(small_folder: Path) -> None:
    pipe = opened(small_folder)
    with torch.inference_mode():
        foreign = StableDiffusionPipeline.from_pretrained(small_folder)
    with pytest.raises(ModelError, match="inference_mode"):
        learn(foreign)
    residual_of(learn(with_parts(foreign, unet=pipe.pipeline.unet), RECIPES[0]))  # of the other parts there are copies


@every_caller
def test_the_judge_sees_the_same(caller: Callable[[], AbstractContextManager[Any]]) -> None:
    photo = load_photos(EXAMPLES["rex"].folder / "photos")[0].image.resize((128, 128))
    pictures = (stack_pixels([photo]) / 255).contiguous(memory_format=torch.channels_last)
    judge = open_judge()
    right = judge.look(pictures)
    assert right[0]
    with caller():
        assert str(open_judge().look(pictures)) == str(right)
