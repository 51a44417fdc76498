"""Schedulers by the names that people type."""

# mypy: allow-untyped-calls

from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler

from cones2.errors import SettingsError
from cones2.schedulers import SCHEDULERS, make_scheduler, scheduler_name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_keeps_the_models_noise(tiny: Any, name: str) -> None:
    scheduler = make_scheduler(name, tiny.scheduler)
    assert type(scheduler).__name__ == SCHEDULERS[name]
    assert torch.allclose(scheduler.alphas_cumprod, tiny.scheduler.alphas_cumprod)
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.get("steps_offset", 1) == 1
    assert not scheduler.config.get("clip_sample", False)


@pytest.mark.parametrize("said", [{"clip_sample": True}, {}])  # unsaid, diffusers' classes clip as well
@pytest.mark.parametrize("name", ["ddim", "ddpm", "heun", "lcm", "tcd"])
def test_latents_are_never_clipped(name: str, said: dict[str, bool]) -> None:
    assert make_scheduler(name, DDPMScheduler(**said)).config.clip_sample is False


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers' code
def test_karras_and_sde_are_said_by_name(tiny: Any) -> None:
    karras, plain = (make_scheduler(f"dpm++{end}", tiny.scheduler) for end in ("-karras", ""))
    assert (karras.config.use_karras_sigmas, plain.config.use_karras_sigmas) == (True, False)
    karras.set_timesteps(5)
    trained = (1 / tiny.scheduler.alphas_cumprod - 1).sqrt()
    ramp = torch.linspace(trained[-1] ** (1 / 7), trained[0] ** (1 / 7), 5) ** 7  # arXiv:2206.00364, Eq. 5, ρ = 7
    torch.testing.assert_close(karras.sigmas[:5], ramp, rtol=1e-3, atol=0)
    kinds = {end: make_scheduler(f"dpm++{end}", tiny.scheduler).config.algorithm_type for end in ("", "-2m-sde-karras")}
    assert kinds == {"": "dpmsolver++", "-2m-sde-karras": "sde-dpmsolver++"}


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("euler_a", "euler-a"),
        ("Euler a", "euler-a"),
        ("euler_ancestral", "euler-a"),
        ("EulerAncestralDiscreteScheduler", "euler-a"),
        ("DPM++ 2M", "dpm++"),
        ("DPM++ 2M Karras", "dpm++-karras"),
        ("dpmpp_2m", "dpm++"),
        ("DPM++ 2M SDE Karras", "dpm++-2m-sde-karras"),
        ("dpmpp_2m_sde", "dpm++-2m-sde"),
        ("DPM++ SDE Karras", "dpm++-sde-karras"),
        ("DPMSolverMultistepScheduler", "dpm++"),
        ("DPM2 a Karras", "dpm2-a-karras"),
        ("dpm_2_ancestral", "dpm2-a"),
        ("uni_pc", "unipc"),
        ("PLMS", "pndm"),
        (" ddim ", "ddim"),
    ],
)
def test_names_as_people_type_them(typed: str, name: str) -> None:
    assert scheduler_name(typed) == name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_name_and_class_finds_itself(name: str) -> None:
    assert scheduler_name(name) == scheduler_name(name.replace("-", "_").upper()) == name
    assert SCHEDULERS[scheduler_name(SCHEDULERS[name])] == SCHEDULERS[name]
    assert not scheduler_name(SCHEDULERS[name]).endswith("karras")


@pytest.mark.parametrize(
    ("typed", "meant"), [("eular", "'euler'"), ("DPM++ 2M Karas", "'dpm++-karras'"), ("unpic", "'unipc'")]
)
def test_typos_get_a_suggestion(typed: str, meant: str) -> None:
    with pytest.raises(SettingsError) as caught:
        scheduler_name(typed)
    assert f"did you mean {meant}" in str(caught.value)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "DiffusionPipeline", "", "7"])
def test_other_schedulers_are_refused_by_name(tiny: Any, name: str) -> None:
    with pytest.raises(SettingsError, match=f"'{name}'"):
        make_scheduler(name, tiny.scheduler)


def test_a_scheduler_object_is_taken_as_it_is(opened: dict[str, Any]) -> None:
    mine = EulerDiscreteScheduler()
    assert make_scheduler(mine, opened["sd1"].scheduler) is mine
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    assert make_scheduler(flow, opened["flux1"].scheduler) is flow


@pytest.mark.parametrize("given", [None, 3, EulerDiscreteScheduler])
def test_what_is_no_scheduler(tiny: Any, given: object) -> None:
    with pytest.raises(SettingsError, match=type(given).__name__):
        make_scheduler(given, tiny.scheduler)


def test_flow_models_keep_their_own(opened: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="FlowMatchEulerDiscreteScheduler"):
        make_scheduler("ddim", opened["flux1"].scheduler)
