"""The embedded model and the example subjects: it is a plain diffusers model, and they are what their photos teach."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch.nn.functional import cosine_similarity

from cones2.examples import EXAMPLES
from cones2.judge import JUDGE_WEIGHTS, Measure, judged_likeness, open_judge
from cones2.models import MINI
from cones2.pipeline import Cones2Pipeline
from cones2.residual import Residual
from cones2.schedulers import make_scheduler

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.fixture(scope="module")
def mini() -> Cones2Pipeline:
    pipe = Cones2Pipeline.from_pretrained("mini", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_mini_is_a_plain_diffusers_pipeline(mini: Cones2Pipeline) -> None:
    with warnings.catch_warnings(action="ignore"):
        kind: Any = StableDiffusionPipeline
        plain = kind.from_pretrained(MINI)
    plain.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 4.0}
    picture = plain("a dog on the beach", generator=torch.Generator().manual_seed(0), **call).images[0]
    ours = mini("a dog on the beach", seed=0, **call).images[0]
    assert np.array_equal(np.asarray(picture), np.asarray(ours))


def test_the_models_weights_are_small() -> None:
    """At most 40 MB with the judge's, and no file too large for a repository."""
    sizes = [path.stat().st_size for folder in (MINI, JUDGE_WEIGHTS) for path in folder.rglob("*.safetensors")]
    assert len(sizes) >= 4
    assert max(sizes) < 15e6
    assert sum(sizes) <= 40e6


def test_every_example_fits_mini(mini: Cones2Pipeline) -> None:
    for name in EXAMPLES:
        mini.load_subject(name, name)
    names = [*EXAMPLES]
    for first in range(0, len(names), 4):
        prompt = ", ".join(f"a {{{name}}}" for name in names[first : first + 4])
        assert mini(prompt, seed=0, num_inference_steps=1, output_type="np").images.shape == (1, 128, 128, 3)
    for name in names:
        mini.unload_subject(name)


@pytest.mark.docs
def test_a_subject_learned_again_is_itself(mini: Cones2Pipeline) -> None:
    """Bits differ from machine to machine; who it is does not: a residual is a direction and a length."""
    rex = EXAMPLES["rex"]
    again, shipped = mini.learn(rex.photos, rex.class_word, progress=False), rex.residual
    ours, theirs = (residual.part("text_encoder").vector for residual in (again, shipped))
    assert cosine_similarity(ours, theirs).item() > 0.98
    assert abs(float(ours.norm() / theirs.norm()) - 1) < 0.05
    other = EXAMPLES["fido"].residual.part("text_encoder").vector
    assert cosine_similarity(ours, other).item() < 0.9
    assert (again.photos, dict(again.recipe)) == (shipped.photos, dict(shipped.recipe))

    measure = judged_likeness(rex.photos, "dog", open_judge())
    as_learned, as_shipped, as_any_dog = (likeness(mini, source, measure) for source in (again, shipped, "dog"))
    assert as_learned > as_shipped - 0.05
    assert min(as_learned, as_shipped) > as_any_dog + 0.1


def likeness(pipe: Cones2Pipeline, rex: Residual | str, measure: Measure) -> float:
    """How like rex the judge finds four pictures of a dog in a box."""
    own, pipe.scheduler = pipe.scheduler, make_scheduler("dpm++", pipe.scheduler)
    try:
        output = pipe(
            "a {rex} on the beach",
            {"rex": (0.15, 0.15, 0.85, 0.85)},
            subjects={"rex": rex},
            seed=[0, 1, 2, 3],
            num_inference_steps=20,
        )
    finally:
        pipe.scheduler = own
    return float(measure(output.images))
