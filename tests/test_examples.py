"""The embedded model and the example subjects: it is a plain diffusers model, and they are what their photos teach."""

import warnings

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch.nn.functional import cosine_similarity

from cones2.backbones import Backbone, open_backbone
from cones2.backbones.opening import MINI
from cones2.composing.loop import compose
from cones2.composing.settings import ComposeSettings
from cones2.examples import EXAMPLES
from cones2.layout.regions import Layout
from cones2.learning.loop import learn
from cones2.learning.recipe import find_recipe
from cones2.residual.residual import Residual
from cones2.steps import finish
from cones2.subjects import Subject
from cones2.watching.judge import JUDGE_WEIGHTS, judged_likeness, open_judge

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SETTINGS = ComposeSettings(seeds=(0, 1, 2, 3), steps=20, scheduler="dpm++", guidance_scale=4.0)


@pytest.fixture(scope="module")
def mini() -> Backbone:
    return open_backbone("mini", device="cpu")


def test_mini_is_a_plain_diffusers_pipeline(mini: Backbone) -> None:
    with warnings.catch_warnings(action="ignore"):
        pipeline = StableDiffusionPipeline.from_pretrained(MINI)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    picture = pipeline("a dog on the beach", num_inference_steps=4, generator=generator).images[0]
    ours = finish(compose(mini, "a dog on the beach", settings=ComposeSettings(steps=4))).pictures[0]
    assert np.array_equal(np.asarray(picture), np.asarray(ours))


def test_the_models_weights_are_small() -> None:
    """At most 40 MB with the judge's, and no file too large for a repository."""
    sizes = [path.stat().st_size for folder in (MINI, JUDGE_WEIGHTS) for path in folder.rglob("*.safetensors")]
    assert len(sizes) >= 4
    assert max(sizes) < 15e6
    assert sum(sizes) <= 40e6


def test_a_subject_learned_again_is_itself(mini: Backbone) -> None:
    """Bits differ from machine to machine; who it is does not: a residual is a direction and a length."""
    rex = EXAMPLES["rex"]
    steps = learn(mini, rex.photos, rex.class_word, recipe=find_recipe(mini.learn_preset))
    again, shipped = finish(steps).residual, rex.residual
    assert cosine_similarity(again.vector, shipped.vector).item() > 0.98
    assert abs(again.vector.norm() / shipped.vector.norm() - 1) < 0.05
    assert cosine_similarity(again.vector, EXAMPLES["fido"].residual.vector).item() < 0.9
    assert (again.photos, again.recipe) == (shipped.photos, shipped.recipe)

    measure = judged_likeness(rex.photos, "dog", open_judge())
    as_learned, as_shipped, as_any_dog = (likeness(mini, residual, measure) for residual in (again, shipped, None))
    assert as_learned > as_shipped - 0.05
    assert min(as_learned, as_shipped) > as_any_dog + 0.1


def likeness(backbone: Backbone, residual: Residual | None, measure) -> float:  # type: ignore[no-untyped-def]
    """How like rex the judge finds four pictures of a dog in a box."""
    layout = Layout.from_numbers({"rex": [(0.15, 0.15, 0.85, 0.85)]})
    subjects = {"rex": Subject("dog", residual)}
    steps = compose(backbone, "a {rex} on the beach", subjects=subjects, layout=layout, settings=SETTINGS)
    return float(measure(finish(steps).pictures))
