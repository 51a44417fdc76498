"""M and η(t), as the paper has them and as the authors' code has them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LMSDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from cones2.errors import SettingsError
from cones2.guidance import Spans, token_weights
from cones2.layout import Layout
from cones2.presets import PRESETS, ConesV2Preset, NoiseLevel, PaperPreset, cones_v2_sigmas, find_preset
from cones2.rasterize import own_cells, pixel_maps
from runs import HALVES

DDIM: Any = DDIMScheduler
LMS: Any = LMSDiscreteScheduler
GOLDEN = Path(__file__).parent / "data" / "golden"
COLOURS = {"cat": (0, 128, 255), "teapot": (0, 200, 0)}


def strength(preset: Any, time: float, step: int = 0, steps: int = 50) -> float:
    return float(preset.strength(NoiseLevel(torch.tensor([time]), step, steps)))


# M, preset `paper`


def test_regions_on_a_4x4_grid_by_hand() -> None:
    # `rex` has the left half and, of column 2, a part under one half; `cup` only a speck in the cell (3, 3); both want
    # the cell (0, 0), so there nobody is irrelevant.
    layout = Layout.of({"rex": (0.0, 0.0, 0.6, 1.0), "cup": [(0.0, 0.0, 0.25, 0.25), (0.8, 0.8, 0.9, 0.9)]})
    rex, cup = PaperPreset().weigh(layout, 4, 4).values()
    assert rex.gain.tolist() == [[2.5, 2.5, 0, 0]] * 4
    assert cup.gain.tolist() == [[2.5, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert rex.blocked.int().tolist() == [[0] * 4] * 4
    assert cup.blocked.int().tolist() == [[0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


def test_a_small_region_keeps_its_best_cell() -> None:
    layout = Layout.of({"cup": (0.3, 0.55, 0.45, 0.7), "rex": (0.0, 0.0, 1.0, 1.0)})
    assert np.argwhere(own_cells(layout, 4, 4)["cup"]).tolist() == [[2, 1]]
    cup, rex = PaperPreset().weigh(layout, 4, 4).values()
    assert rex.blocked.sum() == 0  # it owns every cell, so none is irrelevant to it
    assert cup.blocked.sum() == 15


def test_of_equally_covered_cells_the_first_is_own() -> None:
    corner = Layout.of({"cup": (0.4, 0.4, 0.6, 0.6)})  # a sixth of each of the four cells
    assert own_cells(corner, 2, 2)["cup"].astype(int).tolist() == [[1, 0], [0, 0]]


sides = st.tuples(*[st.integers(0, 16)] * 4).filter(lambda s: s[0] != s[2] and s[1] != s[3])
boxes = sides.map(lambda s: tuple(v / 16 for v in (min(s[::2]), min(s[1::2]), max(s[::2]), max(s[1::2]))))


@settings(max_examples=50)
@given(st.lists(boxes, min_size=3, max_size=3), st.integers(1, 9), st.integers(1, 9), st.sampled_from(list(PRESETS)))
def test_only_spans_are_edited_and_order_does_not_matter(
    boxes: list[tuple[float, ...]], height: int, width: int, preset: str
) -> None:
    spans: Spans = {"a": ((1, 2),), "b": ((3, 5),), "c": ((5, 6), (7, 8))}
    named = dict(zip("abc", boxes, strict=True))
    gain, blocked = token_weights(PRESETS[preset].weigh(Layout.of(named), height, width), spans, 9)
    free = [0, 2, 6, 8]
    assert not gain[:, free].any()
    assert not blocked[:, free].any()
    assert not (blocked & (gain > 0)).any()
    reordered = Layout.of(dict(reversed(named.items())))
    again = token_weights(PRESETS[preset].weigh(reordered, height, width), spans, 9)
    assert torch.equal(gain, again.gain)
    assert torch.equal(blocked, again.blocked)
    if preset == "paper":
        assert all((gain[:, token] == 2.5).any() for token in (1, 3, 4, 5, 7))  # nobody vanishes


# M, preset `cones_v2`, against the authors' numbers


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with safe_open(GOLDEN / "layer.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in ("map.12", "map.24")} | dict(file.metadata())


@pytest.mark.parametrize("side", [12, 24])
def test_weights_are_the_authors(golden: dict[str, Any], side: int) -> None:
    spans = {name: ((token, token + 1),) for name, token in json.loads(golden["subjects"]).items()}
    regions = ConesV2Preset().weigh(Layout.of(json.loads(golden["boxes"])), side, side)
    gain, blocked = token_weights(regions, spans, 77)
    torch.testing.assert_close(gain, golden[f"map.{side}"], rtol=1e-5, atol=1e-6)
    assert not blocked.any()


def test_boxes_become_the_authors_colour_map(golden: dict[str, Any]) -> None:
    picture = np.asarray(Image.open(GOLDEN / "layer_layout.png").convert("RGB"))
    maps = pixel_maps(Layout.of(json.loads(golden["boxes"])))
    for name, colour in COLOURS.items():
        assert np.array_equal(maps[name], (picture == colour).all(-1))


def test_weights_on_a_grid_that_is_not_square() -> None:
    rex, cup = ConesV2Preset().weigh(HALVES, 3, 4).values()
    assert rex.gain.tolist() == [[2.5, 2.5, -1e8, -1e8]] * 3
    assert cup.gain.tolist() == [[-1e8, -1e8, 2.5, 2.5]] * 3
    assert (
        find_preset("cones_v2", weight_negative=-7.0).weigh(HALVES, 3, 4)["cup"].gain.tolist()
        == [[-7, -7, 2.5, 2.5]] * 3
    )


# η


def test_the_papers_strength_is_concave_in_time() -> None:
    for time in (0, 0.001, 0.25, 0.999, 1):
        assert strength(PaperPreset(scale=3.0), time) == pytest.approx(3 * math.sqrt(time), rel=1e-6)
    mixed = PaperPreset().strength(NoiseLevel(torch.tensor([1.0, 0.25]), 3, 7))
    assert mixed.tolist() == [1.0, 0.5]


def test_the_authors_strength_is_the_log_of_the_noise() -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    alphas_cumprod = DDIM(**betas).alphas_cumprod
    for step in (0, 499, 998, 999):  # in a table of all timesteps
        variance = 1 / alphas_cumprod[999 - step] - 1  # σ²
        expected = 0.08 * math.log(1 + variance)
        assert strength(ConesV2Preset(), 0.5, step, 1000) == pytest.approx(expected, rel=1e-4)
    assert strength(ConesV2Preset(), 0.5, 12, 10) == strength(ConesV2Preset(), 0.1, 9, 10)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_the_authors_table_is_that_of_their_scheduler(steps: int) -> None:
    scheduler = LMS(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.set_timesteps(steps)
    found = torch.tensor([strength(ConesV2Preset(), 0.5, step, steps) for step in range(steps)])
    torch.testing.assert_close(found, 0.08 * (1 + scheduler.sigmas[:-1] ** 2).log(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(cones_v2_sigmas(steps), scheduler.sigmas[:-1], rtol=2e-5, atol=0)


# By name


def test_presets_go_by_name() -> None:
    assert find_preset("paper") is PRESETS["paper"]
    with pytest.raises(SettingsError, match="'papper'"):
        find_preset("papper")
    with pytest.raises(SettingsError, match="'paper'"):
        find_preset("paper", weight_negative=-1.0)
