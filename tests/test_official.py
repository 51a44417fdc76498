"""Preset `official` whole: the latents of the authors' own runs, and what its sampler promises."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import cones2
from cones2.backbones import Backbone
from cones2.composing.loop import compose
from cones2.composing.official import EulerSampler
from cones2.composing.settings import ComposeSettings
from cones2.errors import SettingsError
from cones2.layout.regions import Layout
from cones2.subjects import Subject

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

GOLDEN = Path(__file__).parent / "data" / "golden"
SMALL = ComposeSettings(height=64, width=64, steps=4, preset="official")
LAYOUT = Layout.from_numbers({"rex": [(0.0, 0.25, 0.5, 1.0)], "cup": [(0.5, 0.5, 1.0, 1.0)]})
PROMPT = "a {rex} and a {cup} on the beach"
PLAIN = {"rex": Subject("cat"), "cup": Subject("teapot")}


def draw(backbone: Backbone, settings: ComposeSettings = SMALL, **options: Any) -> torch.Tensor:
    options = {"subjects": PLAIN, "layout": LAYOUT, **options}
    return cones2.finish(compose(backbone, PROMPT, settings=settings, **options)).latents


@pytest.mark.parametrize("run", ["sampler", "sampler_1of2"])
def test_it_ends_in_the_latents_of_the_authors_own_run(tiny: Backbone, run: str) -> None:
    with safe_open(GOLDEN / f"{run}.safetensors", "pt") as file:
        made, expected = file.metadata(), file.get_tensor("latents")
    boxes = json.loads(made["boxes"])
    subjects = {
        word: cones2.Subject(word, cones2.import_residual(tiny, GOLDEN / f"sampler_{word}.pt", word)) for word in boxes
    }
    settings = cones2.ComposeSettings(
        seeds=(int(made["seed"]),),
        steps=int(made["steps"]),
        guided_steps=int(made["gsteps"]),
        guidance_scale=float(made["cfg"]),
        preset="official",
    )
    layout = cones2.Layout.from_numbers({word: [box] for word, box in boxes.items()})
    prompt = made["prompt"].replace("cat", "{cat}").replace("teapot", "{teapot}")
    latents = cones2.finish(cones2.compose(tiny, prompt, subjects=subjects, layout=layout, settings=settings)).latents
    assert (latents - expected).norm() <= 1e-4 * expected.norm()


def test_guided_steps_are_run_twice_and_told_one_by_one(tiny: Backbone) -> None:
    rows: list[int] = []
    hook = tiny.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        steps = list(
            compose(tiny, PROMPT, subjects=PLAIN, layout=LAYOUT, settings=replace(SMALL, guided_steps=1, seeds=(0, 1)))
        )
    finally:
        hook.remove()
    assert rows == [4] * 5
    assert [(step.step, step.steps) for step in steps] == [(i, 5) for i in range(1, 6)]
    assert [len(step.pictures) for step in steps] == [0, 0, 0, 0, 2]


def test_the_unet_is_edited_in_guided_steps_only(tiny: Backbone) -> None:
    before = dict(tiny.unet.attn_processors)
    for preset, calls in (("official", 6), ("official-layout", 4), ("paper", 4)):
        settings = replace(SMALL, preset=preset, guided_steps=2)
        edited = [
            tiny.unet.attn_processors != before
            for _ in compose(tiny, PROMPT, subjects=PLAIN, layout=LAYOUT, settings=settings)
        ]
        assert edited == [True] * (calls - 2) + [False] * 2


def test_without_guided_steps_it_is_plain_euler(tiny: Backbone) -> None:
    plain = ComposeSettings(height=64, width=64, steps=4, scheduler="euler")
    expected = draw(tiny, plain, layout=None)
    unguided = draw(tiny, replace(SMALL, guided_steps=0))
    assert (unguided - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(draw(tiny, replace(plain, guided_steps=0)), expected)


def test_no_guided_steps_leave_negative_texts(tiny: Backbone) -> None:
    settings = replace(SMALL, preset="official-layout", guided_steps=0)
    foggy = {**PLAIN, "rex": replace(PLAIN["rex"], negative="fog")}
    assert not torch.equal(draw(tiny, settings, subjects=foggy), draw(tiny, settings))


def test_more_guided_steps_than_steps_are_all(tiny: Backbone) -> None:
    assert torch.equal(draw(tiny, replace(SMALL, guided_steps=50)), draw(tiny))


def test_recurrence_does_not_need_a_layout(tiny: Backbone) -> None:
    once = replace(SMALL, preset="official-layout", scheduler="euler")
    assert not torch.allclose(draw(tiny, layout=None), draw(tiny, once, layout=None), atol=1e-2)


def test_a_picture_does_not_depend_on_its_batch_mates(tiny: Backbone) -> None:
    batch = draw(tiny, replace(SMALL, seeds=(4, 5)))
    for row, seed in enumerate((4, 5)):
        alone = draw(tiny, replace(SMALL, seeds=(seed,)))[0]
        assert (batch[row] - alone).norm() <= 1e-4 * alone.norm()


def test_it_has_a_sampler_of_its_own() -> None:
    assert SMALL.sampler == replace(SMALL, scheduler="euler").sampler == "euler"
    assert ComposeSettings().sampler == ComposeSettings(preset="official-layout").sampler == "ddim"
    with pytest.raises(SettingsError, match=r"preset 'official' has a sampler of its own, euler; got scheduler 'ddim'"):
        replace(SMALL, scheduler="ddim")
    with pytest.raises(SettingsError, match="guided steps -1 can't be used: expected 0 to 1000"):
        replace(SMALL, guided_steps=-1)


@pytest.mark.parametrize("is_velocity", [False, True])
def test_a_perfect_model_is_followed_to_the_picture(is_velocity: bool) -> None:
    """A model that knows the picture takes Euler's steps straight to it, with or without noise put back between."""
    generator = torch.Generator().manual_seed(0)
    picture, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    sigmas = (5.0, 2.0, 0.5, 0.0)

    def predict(latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        sigma = sigmas[int(timestep)]
        alpha, beta = 1 / (sigma**2 + 1) ** 0.5, sigma / (sigma**2 + 1) ** 0.5
        known = (latents - alpha * picture) / beta
        return alpha * known - beta * picture if is_velocity else known

    sampler = EulerSampler(
        torch.arange(3.0), sigmas, is_velocity, predict, lambda: torch.randn(picture.shape, generator=generator)
    )
    for passes in (1, 2):
        seen = list(sampler.run(picture + sigmas[0] * noise, range(3), passes=passes))
        assert len(seen) == 3 * passes
        torch.testing.assert_close(seen[-1], picture, rtol=1e-4, atol=1e-5)


def test_as_much_noise_is_put_back_as_a_step_takes_away() -> None:
    zeros = torch.zeros(1, 1, 256, 256)
    sampler = EulerSampler(
        torch.zeros(1),
        (5.0, 3.0),
        is_velocity=False,
        predict=lambda latents, _: torch.zeros_like(latents),
        draw_noise=lambda: torch.randn(zeros.shape, generator=torch.Generator().manual_seed(0)),
    )
    first, second = sampler.run(zeros, range(1), passes=2)
    assert not first.any()
    assert second.std().item() == pytest.approx(4.0, rel=0.02)  # 3² + 4² = 5²
