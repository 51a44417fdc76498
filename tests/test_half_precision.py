"""In no dtype does a layout's mask give NaN: rows that are masked whole, noise of 0, weights of 0 and far too large."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from cones2.guidance.attention import edited_cross_attention
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.presets import PRESETS
from cones2.guidance.text import TextEdit
from cones2.layout.region import Region
from cones2.layout.regions import Layout

TOKENS = 9
CORNERS = Layout.from_numbers({"rex": [(0.0, 0.0, 0.25, 0.25)], "cup": [(0.75, 0.75, 1.0, 1.0)]})
ALPHAS_CUMPROD = torch.linspace(1.0, 0.0, 1000)  # from no noise at all to nothing but noise
SOME = {"rex": ((2, 3),), "cup": ((5, 7),)}
ALL = {"rex": ((0, 4),), "cup": ((4, TOKENS),)}  # each cell outside both regions has no token left

UNets = dict[torch.dtype, UNet2DConditionModel]

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
presets = pytest.mark.parametrize("preset", PRESETS)


@pytest.fixture(scope="module")
def unets(tiny_folder: Path) -> UNets:
    unet = UNet2DConditionModel.from_pretrained(tiny_folder / "unet").eval()
    return {dtype: copy.deepcopy(unet).to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}


@torch.no_grad()
def call(
    unet: UNet2DConditionModel,
    guidance: LayoutGuidance,
    *,
    timestep: float,
    text_scale: float = 1.0,
    edit: TextEdit | None = None,
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator).to(unet.dtype)
    text = (text_scale * torch.randn(2, TOKENS, 32, generator=generator)).to(unet.dtype)
    with edited_cross_attention(unet, guidance, conditional=[False, True], text=edit):
        prediction: torch.Tensor = unet(latents, timestep, text).sample
    return prediction


def guide(preset: str, spans: dict[str, tuple[tuple[int, int], ...]], layout_scale: float = 1.0) -> LayoutGuidance:
    return LayoutGuidance(CORNERS, spans, ALPHAS_CUMPROD, preset=PRESETS[preset], layout_scale=layout_scale)


@dtypes
@presets
def test_rows_that_are_masked_whole(unets: UNets, dtype: torch.dtype, preset: str) -> None:
    guidance = guide(preset, ALL)
    if preset == "official":
        assert (guidance.weights(8, 8, TOKENS).gain == -1e8).all(dim=-1).any()
    assert call(unets[dtype], guidance, timestep=500).isfinite().all()


@dtypes
@presets
@pytest.mark.parametrize("timestep", [0, 999])
def test_no_noise_and_nothing_but_noise(unets: UNets, dtype: torch.dtype, preset: str, timestep: int) -> None:
    for spans in (SOME, ALL):
        assert call(unets[dtype], guide(preset, spans), timestep=timestep).isfinite().all()


@dtypes
@presets
def test_a_layout_scale_of_zero(unets: UNets, dtype: torch.dtype, preset: str) -> None:
    for spans in (SOME, ALL):
        assert call(unets[dtype], guide(preset, spans, 0.0), timestep=500).isfinite().all()


@dtypes
@presets
def test_regions_of_weight_zero(unets: UNets, dtype: torch.dtype, preset: str) -> None:
    layout = Layout({name: Region(region.shapes, weight=0.0) for name, region in CORNERS.regions.items()})
    for spans in (SOME, ALL):
        guidance = LayoutGuidance(layout, spans, ALPHAS_CUMPROD, preset=PRESETS[preset])
        assert guidance.weights(8, 8, TOKENS).gain.max() == 0
        assert call(unets[dtype], guidance, timestep=500).isfinite().all()


@dtypes
@presets
def test_a_negative_text_that_few_cells_see(unets: UNets, dtype: torch.dtype, preset: str) -> None:
    edit = TextEdit(1000, (), {"rex": torch.full((3, 32), 30.0)})
    guidance, unet = guide(preset, ALL), unets[dtype]
    prediction = call(unet, guidance, timestep=500, edit=edit)
    assert prediction.isfinite().all()
    assert not torch.equal(prediction[0], call(unet, guidance, timestep=500)[0])


@dtypes
@presets
def test_the_largest_weight(unets: UNets, dtype: torch.dtype, preset: str) -> None:
    for spans in (SOME, ALL):
        assert call(unets[dtype], guide(preset, spans, 1000.0), timestep=999, text_scale=30.0).isfinite().all()


@dtypes
@presets
def test_scores_that_are_all_equal(unets: UNets, dtype: torch.dtype, preset: str) -> None:
    assert call(unets[dtype], guide(preset, ALL), timestep=500, text_scale=0.0).isfinite().all()
