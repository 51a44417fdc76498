"""Compiled calls of a UNet draw what the plain ones draw, whatever changes between them, and compile a shape once."""

# mypy: allow-untyped-calls

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.testing import assert_close

from cones2.compiled import CompiledDenoiser
from cones2.conditioning import conditioned
from cones2.errors import ModelError, SettingsError
from cones2.pipeline import Cones2Pipeline
from cones2.schedulers import make_scheduler
from cones2.shared import COMPILED
from sample_photos import save_photos
from subjects_for_tests import LAYOUT, PROMPT, subjects_for

SWAPPED = {"rex": (0.5, 0.5, 1.0, 1.0), "cup": (0.0, 0.25, 0.5, 1.0)}


def open_small(folder: Path) -> Cones2Pipeline:
    """A model of this test's own, without a bar."""
    pipe = Cones2Pipeline.from_pretrained(folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Cones2Pipeline, layout: Any = LAYOUT, prompt: str = PROMPT, **more: Any) -> Tensor:
    """What is drawn, before it is decoded."""
    options = {"subjects": subjects_for(pipe.pipeline), "seed": 0, "num_inference_steps": 3, "output_type": "latent"}
    drawn: Tensor = pipe(prompt, layout, **{**options, **more}).images
    return drawn


def pictures(pipe: Cones2Pipeline) -> list[Tensor]:
    """Pictures that differ in all that may change without compiling anew, and in what may not."""
    negative = subjects_for(pipe.pipeline, negative="grey")
    return [
        latents(pipe),
        latents(pipe, None),
        latents(pipe, SWAPPED, seed=3),
        latents(pipe, prompt="a {cup} at night, a {rex} and snow", layout_scale=2.0),
        latents(pipe, guided_steps=1),
        latents(pipe, subjects=subjects_for(pipe.pipeline, during=(0.0, 0.5))),
        latents(pipe, layout_levels=(1,), preset="cones_v2"),
        latents(pipe, seed=[5, 6]),
        latents(pipe, subjects=negative),
        latents(pipe, measure_attention=True),
        latents(pipe, guidance_scale=1.0),
    ]


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers' code
@pytest.mark.usefixtures("unchecked_types")  # the compiler can't look into these checks
@pytest.mark.parametrize(
    ("scope", "backend"), [("nothing", "inductor"), pytest.param("whole", "aot_eager", marks=pytest.mark.slow)]
)
def test_compiled_pictures_are_the_plain_ones(small_folder: Path, scope: str, backend: str) -> None:
    pipe = open_small(small_folder)
    expected = pictures(pipe)
    compiled = CompiledDenoiser(pipe.pipeline, pipe.family, scope, backend)
    for drawn, right in zip(pictures(pipe), expected, strict=True):
        assert_close(drawn, right, atol=1e-5, rtol=1e-4)
    pipe.scheduler = make_scheduler("dpm++", pipe.scheduler)
    assert not torch.equal(latents(pipe), expected[0])
    assert_close(latents(pipe), latents(pipe, measure_attention=True))
    del compiled
    gc.collect()
    assert id(pipe.unet) not in COMPILED


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "scope", ["blocks", *(pytest.param(n, marks=pytest.mark.slow) for n in ("all_blocks", "whole"))]
)
def test_each_shape_is_compiled_once_without_a_break(small_folder: Path, scope: str) -> None:
    pipe = open_small(small_folder)
    torch._dynamo.reset()
    compiled = CompiledDenoiser(pipe.pipeline, pipe.family, scope, "eager")
    latents(pipe)
    latents(pipe, None)
    assert counters["stats"]["unique_graphs"] > 0
    counters.clear()
    for index in range(5):
        layout = {"rex": (0.0, 0.1 * index, 0.5, 1.0), "cup": (0.5, 0.0, 1.0, 0.5 + 0.1 * index)}
        latents(pipe, layout, ("a {rex} and a {cup}", "a {cup}, a {rex}", PROMPT)[index % 3], seed=index)
    latents(pipe, None, seed=9)
    assert not counters["graph_break"]
    assert not counters["stats"].get("unique_graphs", 0)
    assert COMPILED[id(pipe.unet)] is compiled
    torch._dynamo.reset()


def test_calls_made_of_other_weights_are_forgotten(small_folder: Path) -> None:
    pipe = open_small(small_folder)
    compiled = CompiledDenoiser(pipe.pipeline, pipe.family, "nothing")
    before = latents(pipe)
    pipe.unet.conv_out.weight = torch.nn.Parameter(pipe.unet.conv_out.weight.detach() / 2, requires_grad=False)
    plain = open_small(small_folder)
    plain.unet.conv_out.weight.data.div_(2)  # not more: twice the prediction is twice its rounding, step by step
    assert not torch.equal(latents(pipe), before)
    assert_close(latents(pipe), latents(plain))
    del compiled


def test_inference_mode_may_come_and_go(small_folder: Path) -> None:
    pipe = open_small(small_folder)
    expected = latents(pipe)
    compiled = CompiledDenoiser(pipe.pipeline, pipe.family, "nothing")
    with torch.inference_mode():
        assert_close(latents(pipe), expected)
    assert_close(latents(pipe, seed=1), latents(pipe, seed=1, measure_attention=True))
    with torch.inference_mode():
        assert_close(latents(pipe), expected)
    del compiled


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers' code
@pytest.mark.usefixtures("unchecked_types")
def test_the_authors_loop_is_compiled_too(small_folder: Path) -> None:
    pipe = open_small(small_folder)

    def picture() -> Tensor:
        options: dict[str, Any] = {"seed": 0, "num_inference_steps": 3, "sampler": "cones_v2"}
        drawn = pipe(PROMPT, LAYOUT, subjects=subjects_for(pipe.pipeline), **options)
        return torch.from_numpy(np.array(drawn.images[0])).float()

    expected = picture()
    compiled = CompiledDenoiser(pipe.pipeline, pipe.family, "nothing")
    assert_close(picture(), expected, atol=1, rtol=0)
    del compiled


@pytest.mark.filterwarnings("ignore:little attention")
@pytest.mark.usefixtures("unchecked_types")
def test_another_threads_picture_amid_a_compiled_call_is_its_own(small_folder: Path) -> None:
    pipe = open_small(small_folder)
    expected = latents(pipe, SWAPPED, measure_attention=True)
    found: list[Tensor] = []

    def draw_beside(*_: object) -> None:
        if threading.current_thread() is threading.main_thread() and not found:
            other = threading.Thread(target=lambda: found.append(latents(pipe, SWAPPED, measure_attention=True)))
            other.start()
            other.join()

    compiled = CompiledDenoiser(pipe.pipeline, pipe.family, "nothing")
    handle = pipe.unet.down_blocks[0].register_forward_hook(draw_beside)
    latents(pipe)
    handle.remove()
    assert_close(found[0], expected)
    del compiled


@pytest.mark.parametrize("more", [{}, {"return_dict": True}, {"return_dict": False}])
def test_a_loop_of_ones_own_gets_what_diffusers_unet_returns(small_folder: Path, more: dict[str, bool]) -> None:
    pipe = open_small(small_folder)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with conditioned(pipe, PROMPT, subjects=subjects_for(pipe.pipeline)) as inputs, torch.no_grad():
        texts = inputs["prompt_embeds"]
        expected = pipe.unet(noise, torch.tensor(1), texts, **more)
    compiled = CompiledDenoiser(pipe.pipeline, pipe.family, "nothing")
    with conditioned(pipe, PROMPT, subjects=subjects_for(pipe.pipeline)):
        returned = pipe.unet(noise, torch.tensor(1), texts, **more)
    assert type(returned) is type(expected)
    assert_close(returned[0], expected[0])
    del compiled


def test_what_cannot_be_compiled(small_folder: Path, opened: dict[str, Any]) -> None:
    pipe = open_small(small_folder)
    with pytest.raises(ModelError, match=r"FLUX\.1"):
        Cones2Pipeline(opened["flux1"]).compile()
    compiled = CompiledDenoiser(pipe.pipeline, pipe.family, "nothing")
    pipe.unet.mid_block.compile(backend="eager")
    with pytest.raises(ModelError, match="compiled already"):
        latents(pipe)
    del compiled


def test_learning_is_captured_on_a_gpu_alone(small_folder: Path, tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 64)
    with pytest.raises(SettingsError, match="CUDA GPU"):
        open_small(small_folder).learn(photos, "dog", progress=False, compile=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu(small_folder: Path) -> None:
    pipe = Cones2Pipeline.from_pretrained(small_folder, device="cuda", dtype="float32")
    expected = pictures(pipe)
    pipe.compile()
    for drawn, right in zip(pictures(pipe), expected, strict=True):
        assert_close(drawn, right, atol=1e-2, rtol=1e-2)
