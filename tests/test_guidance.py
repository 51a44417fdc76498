"""Eq. 7 in numbers: the std of scores, M laid out over tokens, and layers that equal the authors' own."""

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

import cones2.guidance
from cones2.attention import edited_attention
from cones2.denoisers import JointSequence
from cones2.errors import PromptError
from cones2.families import FAMILIES
from cones2.guidance import (
    RegionWeights,
    floor_of,
    layout_bias,
    level_grids,
    product_std,
    token_weights,
)
from cones2.layout import Layout
from cones2.presets import ConesV2Preset
from runs import random

GOLDEN = Path(__file__).parent / "data" / "golden"
COLOURS = {"cat": (0, 128, 255), "teapot": (0, 200, 0)}


def test_the_worked_example() -> None:
    assert doctest.testmod(cones2.guidance).attempted >= 5
    assert doctest.testmod(cones2.guidance).failed == 0


# The std of scores


@settings(max_examples=60)
@given(
    *[st.integers(1, 6) for _ in range(3)],
    st.integers(1, 40) | st.integers(2000, 2100),  # few scores, which are built, and many
    st.integers(2, 40),
    st.floats(0, 30),
    st.integers(0, 99),
)
def test_std_is_that_of_the_products(
    rows: int, heads: int, dim: int, pixels: int, tokens: int, outlier: float, seed: int
) -> None:
    query, key = random(rows, heads, pixels, dim, seed=seed), random(rows, heads, tokens, dim, seed=seed + 1)
    key[:, :, 0] += outlier  # as the first token of CLIP's texts is
    query += outlier / 10
    products = query.double() @ key.double().mT
    rounding = 1e-6 * float(products.abs().max())  # of float32 products that may be nearly equal
    torch.testing.assert_close(product_std(query, key).double(), products.flatten(1).std(1), rtol=1e-6, atol=rounding)


def test_std_worked_by_hand() -> None:
    query, key = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1), torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    # products 1, 2, 3, 6: mean 3, squared distances 4 + 1 + 0 + 9, over 3
    assert product_std(query, key).item() == pytest.approx((14 / 3) ** 0.5)
    assert product_std(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 4)).item() == 0


def test_std_of_half_precision_is_as_exact_as_the_mask_that_it_scales() -> None:
    query, key = random(2, 3, 40, 8), random(2, 3, 9, 8, seed=1)
    expected = product_std(query, key)
    torch.testing.assert_close(product_std(query.bfloat16(), key.bfloat16()).float(), expected, rtol=2**-7, atol=0)
    large = product_std(100 * query.half(), 100 * key.half())  # these products pass float16's largest number
    torch.testing.assert_close(large, 1e4 * expected, rtol=1e-3, atol=0)


# η·M


@settings(max_examples=20)
@given(st.floats(0.01, 100), st.integers(0, 99))
def test_scaling_all_scores_scales_what_is_added(factor: float, seed: int) -> None:
    query, key = random(2, 2, 7, 3, seed=seed), random(2, 2, 5, 3, seed=seed + 1)
    gain, floor = random(7, 5, seed=seed + 2), torch.zeros(7, 5)
    strength = torch.tensor([0.5, 0.0])
    added, scaled = (layout_bias(each, key, gain, floor, strength) for each in (query, query * factor))
    torch.testing.assert_close(scaled, added * factor)
    assert not added[1].any()


def test_each_row_has_its_own_spread_and_strength() -> None:
    query, key = random(3, 2, 6, 4), random(3, 2, 5, 4, seed=1)
    query[0] *= 30  # a loud neighbour
    strength = torch.tensor([0.1, 0.2, 0.7])
    together = layout_bias(query, key, torch.ones(6, 5), torch.zeros(6, 5), strength)
    assert together.shape == (3, 1, 6, 5)
    for row in range(3):
        std = (query[row] @ key[row].mT / 2).std()
        torch.testing.assert_close(together[row, 0], (strength[row] * std).expand(6, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_hides_a_token_stays_finite(dtype: torch.dtype) -> None:
    hidden = torch.full((3,), floor_of(dtype), dtype=dtype) + torch.tensor([-100.0, 0.0, 100.0], dtype=dtype)
    assert hidden.isfinite().all()
    assert hidden.softmax(0).isfinite().all()
    gain, floor = torch.tensor([[1e38, -1e38, 0.0]]), floor_of(dtype) * torch.tensor([[0.0, 1.0, 1.0]])
    query, key = random(1, 1, 1, 4).to(dtype), random(1, 1, 3, 4, seed=1).to(dtype)
    added = layout_bias(query, key, gain, floor, torch.tensor([1000.0])).to(dtype)
    assert added[0, 0, 0].tolist() == [-floor_of(dtype), floor_of(dtype), floor_of(dtype)]


# M for tokens


def test_tokens_get_their_subjects_weights() -> None:
    left = torch.tensor([[1.0, 1, 0, 0]] * 2)
    regions = {"rex": RegionWeights(2.5 * left, left == 0), "cup": RegionWeights(2.5 - 2.5 * left, left == 1)}
    gain, blocked = token_weights(regions, {"rex": ((2, 3),), "cup": ((5, 7),)}, 9)
    assert gain.shape == blocked.shape == (8, 9)
    left = left.flatten()
    for token in range(9):
        own = {2: left, 5: 1 - left, 6: 1 - left}.get(token, torch.zeros(8))
        assert gain[:, token].tolist() == (2.5 * own).tolist()
        others = {2: 1 - left, 5: left, 6: left}.get(token, torch.zeros(8))
        assert blocked[:, token].float().tolist() == others.tolist()


def test_every_mention_is_placed_and_the_unplaced_are_left_alone() -> None:
    region = RegionWeights(torch.tensor([[2.5, 2.5], [0, 0]]), torch.zeros(2, 2, dtype=torch.bool))
    gain, blocked = token_weights({"rex": region}, {"rex": ((1, 2), (6, 7)), "moon": ((4, 5),)}, 8)
    assert gain[0].tolist() == [0, 2.5, 0, 0, 0, 0, 2.5, 0]
    assert not gain[2].any()
    assert not blocked.any()


def test_tokens_beyond_the_last_one() -> None:
    region = RegionWeights(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    for span in ((5, 7), (-1, 2), (3, 3)):
        with pytest.raises(PromptError, match="'cup' are not among 6"):
            token_weights({"cup": region}, {"cup": (span,)}, 6)


def test_levels_halve_and_round_up() -> None:
    assert list(level_grids(7, 13, 4)) == [(7, 13), (4, 7), (2, 4), (1, 2)]


# A layer, against the authors' numbers


class Block(torch.nn.Module):
    """A cross-attention layer under the name that it has in a UNet."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.attn2 = layer

    def forward(self, pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = self.attn2(pixels, text)
        return attended


class Denoiser(torch.nn.Module):
    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.block = Block(layer)

    def forward(self, pixels: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        attended: torch.Tensor = self.block(pixels, text)
        return attended


class GoldenEdit:
    """Eq. 7 with a given M and strength."""

    sequence: JointSequence | None = None

    def __init__(self, gain: torch.Tensor, strength: torch.Tensor) -> None:
        self.gain, self.strength = gain, strength

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    def bias(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return layout_bias(query, key, self.gain, torch.zeros_like(self.gain), self.strength)


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with safe_open(GOLDEN / "layer.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()} | dict(file.metadata())  # noqa: SIM118


@pytest.fixture(scope="module")
def denoiser(golden: dict[str, Any]) -> Denoiser:
    layer = Attention(query_dim=16, cross_attention_dim=32, heads=2, dim_head=8).eval()
    layer.load_state_dict({name[6:]: value for name, value in golden.items() if name.startswith("layer.")})
    return Denoiser(layer).requires_grad_(False)


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (found - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("side", [12, 24])
@pytest.mark.parametrize("sigma", ["0.3", "2.5", "14.6"])
@pytest.mark.parametrize("source", ["boxes", "colours", "authors"])
def test_an_edited_layer_is_the_authors(
    golden: dict[str, Any], denoiser: Denoiser, side: int, sigma: str, source: str
) -> None:
    gain = golden_gain(golden, side, source)
    strength = 0.08 * torch.tensor([float(sigma)]).square().log1p()
    with edited_attention(denoiser, FAMILIES[0], GoldenEdit(gain, strength)):
        found = denoiser(golden[f"pixels.{side}"], golden["text"])
    assert_near(found, golden[f"edited.{side}.sigma{sigma}"])
    assert_near(denoiser(golden[f"pixels.{side}"], golden["text"]), golden[f"plain.{side}"])


def golden_gain(golden: dict[str, Any], side: int, source: str) -> torch.Tensor:
    if source == "authors":
        authors: torch.Tensor = golden[f"map.{side}"]
        return authors
    spans = {name: ((token, token + 1),) for name, token in json.loads(golden["subjects"]).items()}
    preset, layout = ConesV2Preset(), Layout.of(json.loads(golden["boxes"]))
    regions = preset.weigh(layout, side, side)
    if source == "colours":
        regions = {
            name: region._replace(gain=preset.shrink(coloured(name), side, side)) for name, region in regions.items()
        }
    return token_weights(regions, spans, 77).gain


def coloured(name: str) -> torch.Tensor:
    picture = torch.from_numpy(np.asarray(Image.open(GOLDEN / "layer_layout.png").convert("RGB")).copy())
    return (picture == torch.tensor(COLOURS[name])).all(-1)
