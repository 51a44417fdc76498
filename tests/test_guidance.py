import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LMSDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from cones2.errors import LayoutError, PromptError, SettingsError
from cones2.guidance.cells import own_cells, pixel_maps
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.presets import PRESETS, OfficialPreset, PaperPreset, find_preset, floor_of
from cones2.layout.regions import Layout

GOLDEN = Path(__file__).parent / "data" / "golden"
COLOURS = {"cat": (0, 128, 255), "teapot": (0, 200, 0)}
SPANS = {"rex": ((2, 3),), "cup": ((5, 7),)}
HALVES = Layout.from_numbers({"rex": [(0.0, 0.0, 0.5, 1.0)], "cup": [(0.5, 0.0, 1.0, 1.0)]})


def noise_schedule(**settings) -> torch.Tensor:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, **settings).alphas_cumprod


def guide(layout: Layout, spans=SPANS, **settings) -> LayoutGuidance:
    return LayoutGuidance(layout, spans, noise_schedule(), **settings)


def strength(guidance: LayoutGuidance, timestep: float) -> float:
    return guidance.strengths.at(torch.tensor(float(timestep))).item()


# --- M, preset `paper` ---


def test_regions_on_a_4x4_grid_by_hand() -> None:
    # `rex` has the left half and, of column 2, a part under one half; `cup` only a speck in the cell (3, 3); both want
    # the cell (0, 0), so there nobody is irrelevant.
    layout = Layout.from_numbers({"rex": [(0.0, 0.0, 0.6, 1.0)], "cup": [(0.0, 0.0, 0.25, 0.25), (0.8, 0.8, 0.9, 0.9)]})
    rex, cup = PaperPreset().weigh(layout, 4, 4).values()
    assert rex.gain.tolist() == [[2.5, 2.5, 0, 0]] * 4
    assert cup.gain.tolist() == [[2.5, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert rex.blocked.int().tolist() == [[0] * 4] * 4
    assert cup.blocked.int().tolist() == [[0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_a_small_region_keeps_its_best_cell() -> None:
    layout = Layout.from_numbers({"cup": [(0.3, 0.55, 0.45, 0.7)], "rex": [(0.0, 0.0, 1.0, 1.0)]})
    assert own_cells(layout, "cup", 4, 4).nonzero().tolist() == [[2, 1]]
    cup, rex = PaperPreset().weigh(layout, 4, 4).values()
    assert rex.blocked.sum() == 0  # it owns every cell, so none is irrelevant to it
    assert cup.blocked.sum() == 15


def test_of_equally_covered_cells_the_first_is_own() -> None:
    corner = Layout.from_numbers({"cup": [(0.4, 0.4, 0.6, 0.6)]})  # a sixth of each of the four cells
    assert own_cells(corner, "cup", 2, 2).int().tolist() == [[1, 0], [0, 0]]


def test_tokens_get_their_subjects_weights() -> None:
    gain, blocked = guide(HALVES).weights(2, 4, 9)
    assert gain.shape == blocked.shape == (8, 9)
    left = torch.tensor([[1, 1, 0, 0]] * 2).flatten().float()
    for token in range(9):
        own = {2: left, 5: 1 - left, 6: 1 - left}.get(token, torch.zeros(8))
        assert gain[:, token].tolist() == (2.5 * own).tolist()
        others = {2: 1 - left, 5: left, 6: left}.get(token, torch.zeros(8))
        assert blocked[:, token].float().tolist() == others.tolist()


def test_every_mention_is_placed_and_the_unplaced_are_left_alone() -> None:
    spans = {"rex": ((1, 2), (6, 7)), "moon": ((4, 5),)}
    gain, blocked = guide(Layout.from_numbers({"rex": [(0.0, 0.0, 1.0, 0.5)]}), spans).weights(2, 2, 8)
    assert gain[0].tolist() == [0, 2.5, 0, 0, 0, 0, 2.5, 0]
    assert gain[2].sum() == 0
    assert blocked.sum() == 0


boxes = st.tuples(*[st.integers(0, 16)] * 4).filter(lambda s: s[0] != s[2] and s[1] != s[3])
numbers = boxes.map(lambda s: tuple(v / 16 for v in (min(s[::2]), min(s[1::2]), max(s[::2]), max(s[1::2]))))


@settings(max_examples=50)
@given(
    st.lists(numbers, min_size=3, max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["paper", "official"]),
)
def test_only_spans_are_edited_and_order_does_not_matter(numbers, height, width, preset) -> None:
    spans = {"a": ((1, 2),), "b": ((3, 5),), "c": ((5, 6), (7, 8))}
    named = dict(zip("abc", ([box] for box in numbers), strict=True))
    gain, blocked = guide(Layout.from_numbers(named), spans, preset=PRESETS[preset]).weights(height, width, 9)
    free = [0, 2, 6, 8]
    assert gain[:, free].abs().sum() == 0
    assert blocked[:, free].sum() == 0
    assert not (blocked & (gain > 0)).any()
    reordered = Layout.from_numbers(dict(reversed(named.items())))
    again = guide(reordered, spans, preset=PRESETS[preset]).weights(height, width, 9)
    assert torch.equal(gain, again.gain)
    assert torch.equal(blocked, again.blocked)
    if preset == "paper":
        assert all((gain[:, token] == 2.5).any() for token in (1, 3, 4, 5, 7))  # nobody vanishes


def test_layout_scale_0_turns_the_hard_mask_off_too() -> None:
    assert guide(HALVES).weights(2, 2, 9).blocked.any()
    guidance = guide(HALVES, layout_scale=0.0)
    assert not guidance.weights(2, 2, 9).blocked.any()
    assert strength(guidance, 500) == 0


def test_a_floor_stays_finite() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        hidden = torch.full((3,), floor_of(dtype), dtype=dtype) + torch.tensor([-100.0, 0.0, 100.0], dtype=dtype)
        assert hidden.isfinite().all()
        assert hidden.softmax(0).isfinite().all()


# --- M, preset `official`, against the authors' numbers ---


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN / "layer.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()} | dict(file.metadata())  # noqa: SIM118


@pytest.fixture(scope="module")
def golden_guidance(golden) -> LayoutGuidance:
    layout = Layout.from_numbers({name: [box] for name, box in json.loads(golden["boxes"]).items()})
    spans = {name: ((token, token + 1),) for name, token in json.loads(golden["subjects"]).items()}
    return guide(layout, spans, preset=PRESETS["official"])


@pytest.mark.parametrize("side", [12, 24])
def test_official_weights_are_the_authors(golden, golden_guidance, side) -> None:
    gain, blocked = golden_guidance.weights(side, side, 77)
    torch.testing.assert_close(gain, golden[f"map.{side}"], rtol=1e-5, atol=1e-6)
    assert not blocked.any()


def test_boxes_become_the_authors_colour_map(golden_guidance) -> None:
    picture = np.asarray(Image.open(GOLDEN / "layer_layout.png").convert("RGB"))
    for name, colour in COLOURS.items():
        drawn = torch.from_numpy((picture == colour).all(-1))
        assert torch.equal(pixel_maps(golden_guidance.layout)[name], drawn)


def test_official_weights_on_a_grid_that_is_not_square() -> None:
    rex, cup = OfficialPreset().weigh(HALVES, 3, 4).values()
    assert rex.gain.tolist() == [[2.5, 2.5, -1e8, -1e8]] * 3
    assert cup.gain.tolist() == [[-1e8, -1e8, 2.5, 2.5]] * 3


# --- η ---


def test_paper_strength_is_concave_in_time() -> None:
    guidance = guide(HALVES, preset=PaperPreset(scale=3.0), layout_scale=0.5)
    for timestep in (0, 1, 250, 999):
        assert strength(guidance, timestep) == pytest.approx(1.5 * math.sqrt(timestep / 1000), rel=1e-6)
    assert strength(guidance, 500.5) == pytest.approx(1.5 * math.sqrt(500.5 / 1000), rel=1e-6)


def test_paper_strength_knows_shorter_schedules() -> None:
    guidance = LayoutGuidance(HALVES, SPANS, noise_schedule(num_train_timesteps=100))
    assert strength(guidance, 25) == pytest.approx(PaperPreset().scale * 0.5)


def test_official_strength_is_the_log_of_the_noise() -> None:
    alphas_cumprod = noise_schedule()
    guidance = guide(HALVES, preset=PRESETS["official"])
    for timestep in (0, 1, 500, 999):
        variance = (1 - alphas_cumprod[timestep]) / alphas_cumprod[timestep]  # σ²
        assert strength(guidance, timestep) == pytest.approx(0.08 * math.log(1 + variance), rel=1e-4)
    assert strength(guidance, 500) < strength(guidance, 500.25) < strength(guidance, 501)


def test_official_strength_is_bounded_at_pure_noise() -> None:
    alphas_cumprod = noise_schedule(rescale_betas_zero_snr=True)
    assert alphas_cumprod[-1] < 1e-6
    guidance = LayoutGuidance(HALVES, SPANS, alphas_cumprod, preset=PRESETS["official"])
    assert strength(guidance, 999) == pytest.approx(0.08 * math.log(250), rel=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_official_strength_by_step_is_that_of_the_authors_scheduler(steps) -> None:
    scheduler = LMSDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    sampler = torch.linspace(980.5, 3, steps)  # the sampler's own times do not matter, only their order
    guidance = guide(HALVES, preset=PRESETS["official"], timesteps=sampler.tolist())
    found = guidance.strengths.at(sampler)
    torch.testing.assert_close(found, 0.08 * (1 + scheduler.sigmas[:-1] ** 2).log(), rtol=1e-5, atol=1e-8)


def test_strengths_of_a_batch_of_times() -> None:
    guidance = guide(HALVES)
    times = torch.tensor([0.0, 10.0, 999.0, 5000.0])
    together = guidance.strengths.at(times).tolist()
    assert together == [strength(guidance, time) for time in times.tolist()]
    assert together[2] == together[3]


# --- errors ---


def test_guidance_refuses_what_does_not_fit() -> None:
    with pytest.raises(LayoutError, match=r"region 'cup' is for no subject of the prompt. Write \{cup\} there"):
        guide(HALVES, {"rex": ((1, 2),)})
    with pytest.raises(LayoutError, match="region 'cup' is for no subject"):
        guide(HALVES, {"rex": ((1, 2),), "cup": ()})
    with pytest.raises(PromptError, match=r"tokens 5..7 of 'cup' are not among 6. Shorten the prompt"):
        guide(HALVES).weights(2, 2, 6)
    for scale in (-1.0, math.nan, math.inf):
        with pytest.raises(SettingsError, match=r"layout scale .* can't be used: expected 0 \(no layout\) or more"):
            guide(HALVES, layout_scale=scale)


# --- one thing at a time ---


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_strengthening_and_weakening_add_up_to_both(preset) -> None:
    both, strong, weak = (
        guide(HALVES, preset=PRESETS[preset], layout_effect=effect).weights(3, 4, 9)
        for effect in ("both", "strengthen", "weaken")
    )
    assert torch.equal(strong.gain + weak.gain, both.gain)
    assert (strong.gain.max(), strong.gain.min()) == (2.5, 0)
    assert weak.gain.max() == 0
    assert not strong.blocked.any()
    assert torch.equal(weak.blocked, both.blocked)


def test_a_layout_acts_on_the_levels_asked_for() -> None:
    guidance = guide(HALVES, layout_levels=(0, 2))
    assert guidance.weights(2, 2, 9, level=2).gain.any()
    gain, blocked = guidance.weights(2, 2, 9, level=1)
    assert not gain.any()
    assert not blocked.any()


def test_effects_and_levels_that_are_none() -> None:
    with pytest.raises(SettingsError, match="unknown layout effect 'strong': expected one of both, strengthen, weaken"):
        guide(HALVES, layout_effect="strong")
    for levels, got in (((), "none"), ((0, -1), "0, -1")):
        with pytest.raises(SettingsError, match=f"layout levels {got} can't be used: expected at least one, from 0"):
            guide(HALVES, layout_levels=levels)


def test_presets_go_by_name() -> None:
    assert find_preset("paper") is PRESETS["paper"]
    with pytest.raises(
        SettingsError, match="unknown layout preset 'papper': expected one of paper, official, official-layout"
    ):
        find_preset("papper")
