"""Frozen transformers of 8 bits, as diffusers opens them with torchao: drawn with, and learned on.

Skipped where torchao is missing (`pip install cones2[quantized]`).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel

from cones2.learning.recipe import RECIPES
from cones2.pipeline import Cones2Pipeline
from learning import PHOTOS
from subjects_for_tests import LAYOUT, PROMPT, residual_for

pytestmark = [
    pytest.mark.joint_attention,
    pytest.mark.filterwarnings("default"),  # torchao's own
]

SIZE = {"height": 64, "width": 96, "num_inference_steps": 2, "seed": 0, "output_type": "np"}
RECIPE = dataclasses.replace(RECIPES["direct"], steps=3, batch_size=1, side=64)


@pytest.fixture(scope="module")
def flux1(folders: dict[str, Path]) -> dict[str, Any]:
    """The tiny FLUX.1 in bfloat16, and the same with its transformer's linear layers in 8 bits."""
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    from diffusers import TorchAoConfig

    folder, dtype = folders["flux1"], torch.bfloat16
    eight = FluxTransformer2DModel.from_pretrained(
        folder / "transformer",
        quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig()),
        dtype=dtype,
    )
    found = {}
    for name, parts in (("bfloat16", {}), ("int8", {"transformer": eight})):
        pipeline: Any = FluxPipeline.from_pretrained(folder, dtype=dtype, **parts)
        pipeline.set_progress_bar_config(disable=True)
        found[name] = Cones2Pipeline(pipeline)
    return found


def test_linear_layers_have_8_bits(flux1: dict[str, Any]) -> None:
    weights = [type(each).__name__ for each in flux1["int8"].transformer.parameters()]
    assert "Int8Tensor" in weights


def test_subjects_layouts_and_negative_texts_are_drawn(flux1: dict[str, Any]) -> None:
    drawn = {}
    for name, pipe in flux1.items():
        pipe.load_subject("rex", residual_for(pipe.pipeline), negative="fog")
        options: dict[str, Any] = {"subjects": {"cup": "teapot"}, "true_cfg_scale": 4.0, **SIZE}
        drawn[name] = pipe(PROMPT, LAYOUT, **options).images[0]
        again = pipe(PROMPT, LAYOUT, **options).images[0]
        assert np.array_equal(drawn[name], again)
        plain = pipe(PROMPT, None, subjects={"rex": "cat", "cup": "teapot"}, **SIZE).images[0]
        assert np.abs(drawn[name] - plain).max() > 1e-3
    assert 0 < np.abs(drawn["int8"] - drawn["bfloat16"]).mean() < 0.05


@pytest.mark.slow
def test_a_residual_is_learned(flux1: dict[str, Any]) -> None:
    """The step's gradient passes the 8-bit weights; the direction is that of the same model in bfloat16."""
    learned = {name: pipe.learn(PHOTOS, "dog", RECIPE, progress=False) for name, pipe in flux1.items()}
    saving = flux1["int8"].learn(PHOTOS, "dog", RECIPE, progress=False, save_memory=True)
    one, other = (learned[name].parts[0].vector for name in ("int8", "bfloat16"))
    assert torch.equal(saving.parts[0].vector, one)
    assert not torch.equal(one, other)
    assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.9
    assert all(weight.grad is None for weight in flux1["int8"].transformer.parameters())
