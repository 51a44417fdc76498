import copy
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from cones2.errors import BackboneError, SettingsError
from cones2.guidance.attention import CrossAttention, edited_cross_attention, unedited_cross_attention
from cones2.guidance.edits import LayoutEdit, product_std
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.presets import PRESETS, OfficialPreset
from cones2.layout.regions import Layout

GOLDEN = Path(__file__).parent / "data" / "golden"
HALVES = Layout.from_numbers({"rex": [(0.0, 0.0, 0.5, 1.0)], "cup": [(0.5, 0.0, 1.0, 1.0)]})
SPANS = {"rex": ((2, 3),), "cup": ((5, 7),)}
ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 1000)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(GOLDEN / "tiny" / "unet").eval()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def guide(layout=HALVES, spans=SPANS, preset="paper", **settings) -> LayoutGuidance:
    return LayoutGuidance(layout, spans, ALPHAS_CUMPROD, preset=PRESETS[preset], **settings)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def call(unet, batch: int = 2, height: int = 8, width: int = 8, timestep=500) -> torch.Tensor:
    latents, text = random(batch, 4, height, width), random(batch, 9, 32, seed=1)
    return unet(latents.to(unet.dtype), timestep, text.to(unet.dtype)).sample


# --- std ---


@settings(max_examples=60)
@given(
    *[st.integers(1, 6) for _ in range(3)],
    st.integers(1, 40) | st.integers(2000, 2100),  # few scores, which are built, and many
    st.integers(2, 40),
    st.floats(0, 30),
    st.integers(0, 99),
)
def test_std_is_that_of_the_products(batch, heads, dim, pixels, tokens, outlier, seed) -> None:
    query, key = random(batch, heads, pixels, dim, seed=seed), random(batch, heads, tokens, dim, seed=seed + 1)
    key[:, :, 0] += outlier  # as the first token of CLIP's texts is
    query += outlier / 10
    products = query.double() @ key.double().mT
    torch.testing.assert_close(product_std(query, key).double(), products.flatten(1).std(1), rtol=1e-6, atol=1e-9)


def test_std_worked_by_hand() -> None:
    query, key = torch.tensor([1.0, 3.0]).view(1, 1, 2, 1), torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    # products 1, 2, 3, 6: mean 3, squared distances 4 + 1 + 0 + 9, over 3
    assert product_std(query, key).item() == pytest.approx((14 / 3) ** 0.5)
    assert product_std(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 5, 4)).item() == 0


@settings(max_examples=20)
@given(st.floats(0.01, 100))
def test_std_grows_with_the_products(factor) -> None:
    query, key = random(1, 2, 7, 3), random(1, 2, 5, 3, seed=1)
    torch.testing.assert_close(product_std(query * factor, key), product_std(query, key) * factor)


def test_std_of_half_precision_is_as_exact_as_the_mask_that_it_scales() -> None:
    query, key = random(2, 3, 40, 8), random(2, 3, 9, 8, seed=1)
    expected = product_std(query, key)
    torch.testing.assert_close(product_std(query.bfloat16(), key.bfloat16()).float(), expected, rtol=2**-7, atol=0)
    large = product_std(100 * query.half(), 100 * key.half())  # these products pass float16's largest number
    torch.testing.assert_close(large, 1e4 * expected, rtol=1e-3, atol=0)


# --- the processor against diffusers' own ---


def attention(query_dim: int = 16, **settings) -> Attention:
    return Attention(query_dim=query_dim, heads=2, dim_head=8, **settings).eval()


def both(layer: Attention, *args, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(processor(layer, *args, **settings) for processor in (AttnProcessor2_0(), CrossAttention(None)))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 3.0, "bias": True},
        {"cross_attention_norm": "layer_norm", "cross_attention_dim": 32},
        {"cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 4, "cross_attention_dim": 32},
        {"qk_norm": "layer_norm", "cross_attention_dim": 32},
    ],
)
@pytest.mark.parametrize("shape", [(3, 35, 16), (3, 16, 5, 7)])
def test_without_a_bias_it_is_diffusers_bit_for_bit(settings, shape) -> None:
    layer = attention(**settings)
    text = random(3, 11, 32) if "cross_attention_dim" in settings else None
    theirs, ours = both(layer, random(*shape), text)
    assert torch.equal(theirs, ours)


def test_masks_and_time_embeddings_pass_through() -> None:
    layer = attention(query_dim=32, cross_attention_dim=32, spatial_norm_dim=8)
    mask = torch.zeros(3, 1, 11)
    mask[:, :, 8:] = -1e4
    theirs, ours = both(layer, random(3, 32, 5, 7), random(3, 11, 32), attention_mask=mask, temb=random(3, 8, 5, 7))
    assert torch.equal(theirs, ours)
    unmasked = layer(random(3, 32, 5, 7), random(3, 11, 32), temb=random(3, 8, 5, 7))
    assert not torch.equal(theirs, unmasked)


def test_a_bias_is_added_to_the_scores_and_to_the_mask() -> None:
    layer = attention(cross_attention_dim=32)
    pixels, text, bias, mask = random(2, 6, 16), random(2, 5, 32), random(2, 1, 6, 5, seed=4), random(2, 1, 5, seed=5)
    query, key, value = (
        p.unflatten(2, (2, 8)).transpose(1, 2) for p in (layer.to_q(pixels), layer.to_k(text), layer.to_v(text))
    )
    scores = query @ key.mT * 8**-0.5 + bias + mask[:, None]
    expected = layer.to_out[0]((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    found = CrossAttention(lambda *_: bias)(layer, pixels, text, attention_mask=mask)
    torch.testing.assert_close(found, expected)


# --- against the authors' numbers ---


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN / "layer.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()} | dict(file.metadata())  # noqa: SIM118


@pytest.fixture(scope="module")
def golden_layer(golden) -> Attention:
    layer = Attention(query_dim=16, cross_attention_dim=32, heads=2, dim_head=8).eval()
    layer.load_state_dict({name[6:]: value for name, value in golden.items() if name.startswith("layer.")})
    return layer


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (found - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("side", [12, 24])
@pytest.mark.parametrize("sigma", ["0.3", "2.5", "14.6"])
@pytest.mark.parametrize("source", ["boxes", "colours", "authors"])
def test_the_official_edit_is_the_authors(golden, golden_layer, side, sigma, source) -> None:
    gain = golden_gain(golden, side, source) / 8**0.5  # of 8 numbers a head: M / √d multiplies the std of QKᵀ
    strength = 0.08 * torch.tensor(float(sigma)).square().log1p()
    edit = CrossAttention(lambda query, key: strength * product_std(query, key)[:, None, None, None] * gain)
    found = edit(golden_layer, golden[f"pixels.{side}"], golden["text"])
    assert_near(found, golden[f"edited.{side}.sigma{sigma}"])


def golden_gain(golden, side: int, source: str) -> torch.Tensor:
    spans = {name: ((token, token + 1),) for name, token in json.loads(golden["subjects"]).items()}
    layout = Layout.from_numbers({name: [box] for name, box in json.loads(golden["boxes"]).items()})
    if source == "boxes":
        return guide(layout, spans, "official").weights(side, side, 77).gain
    if source == "authors":
        return golden[f"map.{side}"]
    gain = torch.zeros(side * side, 77)
    for name, ((start, stop),) in spans.items():
        gain[:, start:stop] = OfficialPreset().shrink(coloured(name), side, side).reshape(-1, 1)
    return gain


def coloured(name: str) -> torch.Tensor:
    picture = torch.from_numpy(np.asarray(Image.open(GOLDEN / "layer_layout.png").convert("RGB")).copy())
    return (picture == torch.tensor({"cat": (0, 128, 255), "teapot": (0, 200, 0)}[name])).all(-1)


@pytest.mark.parametrize("side", [12, 24])
def test_the_plain_layer_is_the_authors(golden, golden_layer, side) -> None:
    assert_near(CrossAttention(None)(golden_layer, golden[f"pixels.{side}"], golden["text"]), golden[f"plain.{side}"])


# --- in a UNet ---


def test_without_regions_the_unet_is_the_same_bit_for_bit(unet) -> None:
    plain = call(unet)
    for guidance in (None, guide(Layout({}), {})):
        with edited_cross_attention(unet, guidance, conditional=[False, True]):
            assert any(isinstance(processor, CrossAttention) for processor in unet.attn_processors.values())
            assert torch.equal(call(unet), plain)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_a_zero_bias_changes_nothing_to_speak_of(unet, preset) -> None:
    plain = call(unet)
    with edited_cross_attention(unet, guide(preset=preset, layout_scale=0.0), conditional=[True, True]):
        torch.testing.assert_close(call(unet), plain, rtol=1e-5, atol=1e-5)


def test_only_layers_of_the_levels_asked_for_are_edited(unet) -> None:
    seen: dict[str, torch.Tensor] = {}
    layers = [unet.down_blocks[level].attentions[0].transformer_blocks[0].attn2 for level in (0, 1)]
    hooks = [
        layer.register_forward_hook(lambda *call, name=name: seen.update({name: call[-1][1]}))
        for name, layer in zip(("finest", "next"), layers, strict=True)
    ]
    try:
        call(unet)
        plain = dict(seen)
        with edited_cross_attention(unet, guide(layout_levels=(1,)), conditional=[False, True]):
            call(unet)
        torch.testing.assert_close(seen["finest"], plain["finest"], rtol=1e-5, atol=1e-5)
        assert (seen["next"] - plain["next"]).abs().max() > 1e-4
        with edited_cross_attention(unet, guide(layout_levels=(0,)), conditional=[False, True]):
            call(unet)
        assert (seen["finest"] - plain["finest"]).abs().max() > 1e-4
    finally:
        for hook in hooks:
            hook.remove()


def test_a_level_that_the_unet_lacks(unet) -> None:
    with pytest.raises(SettingsError, match="layout level 7 is none of this UNet's: expected 0 to 3"):  # noqa: SIM117
        with edited_cross_attention(unet, guide(layout_levels=(0, 7)), conditional=[True]):
            pass


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize(("height", "width"), [(12, 20), (7, 13), (1, 5), (16, 8)])
def test_any_latents_have_grids(unet, preset, height, width) -> None:
    plain = call(unet, height=height, width=width)
    with edited_cross_attention(unet, guide(preset=preset), conditional=[False, True]):
        edited = call(unet, height=height, width=width)
    torch.testing.assert_close(edited[0], plain[0], rtol=1e-5, atol=1e-5)
    assert (edited[1] - plain[1]).abs().max() > 1e-3
    assert edited.isfinite().all()


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_a_sample_does_not_depend_on_its_batch_mates(unet, preset) -> None:
    latents, text = random(4, 4, 12, 8), random(4, 9, 32, seed=1)
    latents[0] *= 30  # a loud neighbour
    with edited_cross_attention(unet, guide(preset=preset), conditional=[False, True, False, True]):
        together = unet(latents, 500, text).sample
    with edited_cross_attention(unet, guide(preset=preset), conditional=[True]):
        alone = unet(latents[3:], 500, text[3:]).sample
    with edited_cross_attention(unet, None, conditional=[False]):
        unconditional = unet(latents[2:3], 500, text[2:3]).sample
    torch.testing.assert_close(together[3:], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together[2:3], unconditional, rtol=1e-4, atol=1e-4)


def test_rows_that_are_neighbours_or_not_give_the_same(unet) -> None:
    latents, text = random(1, 4, 8, 8).expand(3, -1, -1, -1), random(1, 9, 32, seed=1).expand(3, -1, -1)
    with edited_cross_attention(unet, guide(), conditional=[True, False, True]):
        apart = unet(latents, 500, text).sample
    with edited_cross_attention(unet, guide(), conditional=[True, True, False]):
        beside = unet(latents, 500, text).sample
    torch.testing.assert_close(apart[[0, 2]], beside[[0, 1]])


@pytest.mark.parametrize("timestep", [torch.tensor(500), torch.tensor([500, 500]), torch.tensor(500.0), 500.0])
def test_timesteps_come_in_many_forms(unet, timestep) -> None:
    with edited_cross_attention(unet, guide(), conditional=[False, True]):
        expected = call(unet)
        torch.testing.assert_close(call(unet, timestep=timestep), expected)
        by_name = unet(sample=random(2, 4, 8, 8), timestep=timestep, encoder_hidden_states=random(2, 9, 32, seed=1))
        torch.testing.assert_close(by_name.sample, expected)


def test_a_text_that_stays_is_read_once(unet) -> None:
    text, other = random(2, 9, 32, seed=1), random(2, 9, 32, seed=2)
    calls = [(random(2, 4, 8, 8, seed=seed), 900 - seed, text) for seed in range(3)]
    calls.append((random(2, 4, 8, 8), 100, other))  # a text that does not stay is read anew
    with edited_cross_attention(unet, guide(), conditional=[False, True]):
        expected = [unet(*each).sample for each in calls]
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn2"))
    reads: list[torch.Tensor] = []
    hook = layer.to_k.register_forward_hook(lambda _, arguments, __: reads.append(arguments[0]))
    try:
        with edited_cross_attention(unet, guide(), conditional=[False, True], keep_text=True):
            kept = [unet(*each).sample for each in calls]
    finally:
        hook.remove()
    assert all(map(torch.equal, kept, expected))
    assert [read is text for read in reads] == [True, False]


def test_a_gradient_finds_its_way_back_through_all_layers(unet) -> None:
    latents, text, step = random(2, 4, 8, 8), random(2, 9, 32, seed=1), 1e-2 * random(2, 4, 8, 8, seed=2)
    with edited_cross_attention(unet, guide(), conditional=[False, True]):
        for _ in range(2):  # nothing of the first call is left over for the second
            latents.grad = None
            with torch.enable_grad():
                unet(latents.requires_grad_(), 500, text).sample.square().sum().backward()
        before, after = (unet(latents + sign * step, 500, text).sample.square().sum() for sign in (-1, 1))
    assert float((latents.grad * step).sum()) == pytest.approx(float(after - before) / 2, rel=0.02)


def test_calls_with_and_without_inference_mode_may_take_turns(unet) -> None:
    with edited_cross_attention(unet, guide(), conditional=[False, True]):
        with torch.inference_mode():
            first = call(unet)
        assert torch.equal(call(unet), first)


def test_each_row_has_its_own_time(unet) -> None:
    latents, text = random(1, 4, 8, 8).expand(2, -1, -1, -1), random(1, 9, 32, seed=1).expand(2, -1, -1)
    with edited_cross_attention(unet, guide(), conditional=[True, True]):
        mixed = unet(latents, torch.tensor([900, 100]), text).sample
        early, late = unet(latents, 900, text).sample, unet(latents, 100, text).sample
    torch.testing.assert_close(mixed[0], early[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], late[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_half_precision_has_no_nan(unet, dtype, preset) -> None:
    half = copy.deepcopy(unet).to(dtype)
    everything = {"rex": ((0, 5),), "cup": ((5, 9),)}  # leaves no token free: `official` blocks whole rows
    speck = Layout.from_numbers({"rex": [(0.1, 0.1, 0.3, 0.3)], "cup": [(0.6, 0.1, 0.9, 0.3)]})
    for timestep in (0, 999):
        with edited_cross_attention(half, guide(speck, everything, preset), conditional=[False, True]):
            assert call(half, timestep=timestep).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_blocked_tokens_get_no_attention(dtype) -> None:
    # One head, one-hot texts, values and output as they come: the layer returns its attention. `rex` has the left half.
    unet = UNet2DConditionModel(
        sample_size=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=1,
    )  # fmt: skip
    layer = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    layer.load_state_dict(
        {"to_v.weight": torch.eye(8), "to_out.0.weight": torch.eye(8), "to_out.0.bias": torch.zeros(8)}, strict=False
    )
    seen = []
    layer.register_forward_hook(lambda *call: seen.append(call[-1].float()))
    with edited_cross_attention(unet.to(dtype), guide(), conditional=[False, True]):
        unet(random(2, 4, 4, 4).to(dtype), 500, torch.eye(8, dtype=dtype).expand(2, -1, -1))
    plain, edited = seen[0].view(2, 4, 4, 8)
    assert (plain > 0).all()
    assert (edited[:, :2, 5:7] == 0).all()  # `cup` is irrelevant in the left half
    assert (edited[:, 2:, 2] == 0).all()
    assert (edited[:, :2, 2] > plain[:, :2, 2]).all()
    torch.testing.assert_close(edited.sum(-1), torch.ones(4, 4), rtol=0.02, atol=0)


def test_layers_of_one_grid_and_other_widths_have_masks_of_their_own(unet) -> None:
    guidance = guide()
    edit = LayoutEdit(unet, guidance, [False, True], None)
    edit.watch(unet, (random(2, 4, 2, 2), 500), {})
    strength, gain = guidance.strengths.at(torch.tensor(500.0)), guidance.weights(2, 2, 9).gain
    for dim in (8, 32, 8):
        query, key = random(2, 3, 4, dim), random(2, 3, 9, dim, seed=1)
        scores = query[1] @ key[1].mT / dim**0.5
        with torch.no_grad():
            bias = edit(query, key)
        seen = ~guidance.weights(2, 2, 9).blocked
        torch.testing.assert_close(bias[1, 0][seen], (strength * scores.std() * gain)[seen])
        assert not bias[0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conditional_rows_need_not_be_neighbours_in_half_precision(unet, dtype) -> None:
    half = copy.deepcopy(unet).to(dtype)
    with torch.no_grad():
        with edited_cross_attention(half, guide(), conditional=[True, False, True]):
            scattered = call(half, batch=3)
        with edited_cross_attention(half, guide(), conditional=[False, True, True]):
            neighbours = call(half, batch=3)
    torch.testing.assert_close(scattered[2], neighbours[2], rtol=0.02, atol=0.02)
    assert not torch.allclose(scattered[0], neighbours[0], rtol=0.02, atol=0.02)


# --- the `with` block ---


def test_the_unet_is_put_back(unet) -> None:
    before, plain = unet.attn_processors, call(unet)
    for _ in range(2):
        with edited_cross_attention(unet, guide(), conditional=[False, True]):
            edited = unet.attn_processors
            assert all(isinstance(edited[name], CrossAttention) == name.endswith("attn2.processor") for name in edited)
            assert all(isinstance(edited[name], AttnProcessor2_0) for name in edited if "attn1" in name)
        assert_untouched(unet, before)
        assert torch.equal(call(unet), plain)


def test_self_attention_computes_what_it_did_and_is_diffusers_own(unet) -> None:
    own = AttnProcessor2_0()
    with edited_cross_attention(unet, None, conditional=[False, True]):
        quick = next(processor for name, processor in unet.attn_processors.items() if "attn1" in name)
        assert inspect.signature(quick.__call__) == inspect.signature(own.__call__)
        assert hasattr(type(quick).__call__, "__signature__")
        assert not hasattr(AttnProcessor2_0.__call__, "__signature__")  # what is diffusers' own stays as it is
    layer, pixels = attention(), random(3, 35, 16)
    mask = torch.zeros(3, 1, 35)
    mask[:, :, 30:] = -1e4
    for options in ({}, {"attention_mask": mask}):
        assert torch.equal(quick(layer, pixels, **options), own(layer, pixels, **options))


def test_a_processor_that_is_not_diffusers_default_stays_in_self_attention(unet) -> None:
    before = unet.attn_processors
    own = AttnProcessor()
    unet.set_attn_processor({name: own if "attn1" in name else before[name] for name in before})
    with edited_cross_attention(unet, guide(), conditional=[False, True]):
        assert all(processor is own for name, processor in unet.attn_processors.items() if "attn1" in name)
    unet.set_attn_processor(before)


def test_the_unet_is_put_back_after_an_error(unet) -> None:
    before = unet.attn_processors
    with pytest.raises(ZeroDivisionError), edited_cross_attention(unet, guide(), conditional=[False, True]):
        _ = 1 / 0
    assert_untouched(unet, before)


def assert_untouched(unet, before) -> None:
    after = unet.attn_processors
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert not unet._forward_pre_hooks


def test_a_layout_within_a_layout_is_refused(unet) -> None:
    with edited_cross_attention(unet, guide(), conditional=[True, True]):
        inside = unet.attn_processors
        message = "a layout already edits this UNet's cross-attention. Leave that `with` block first"
        with pytest.raises(BackboneError, match=message), edited_cross_attention(unet, None, conditional=[True]):
            pass
        message = "at work with a layout and without one at the same time: finish or close one"
        with pytest.raises(BackboneError, match=message), unedited_cross_attention(unet):
            call(unet)
        assert unet.attn_processors == inside


def test_a_unet_that_is_not_to_be_edited_is_left_alone(unet) -> None:
    before, plain = unet.attn_processors, call(unet)
    with unedited_cross_attention(unet):
        assert unet.attn_processors == before
        assert torch.equal(call(unet), plain)
    assert_untouched(unet, before)


def test_other_peoples_processors_are_refused_by_name(unet) -> None:
    before = unet.attn_processors
    unet.set_attn_processor({name: AttnProcessor() if "mid_block" in name else p for name, p in before.items()})
    try:
        message = r"mid_block.*attn2 has the processor AttnProcessor; expected .*AttnProcessor2_0. Unload the adapter"
        with pytest.raises(BackboneError, match=message), edited_cross_attention(unet, None, conditional=[True]):
            pass
    finally:
        unet.set_attn_processor(dict(before))


def test_a_unet_without_cross_attention_is_refused() -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    plain = UNet2DConditionModel(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **blocks)
    message = "this UNet has no cross-attention layers"
    with pytest.raises(BackboneError, match=message), edited_cross_attention(plain, None, conditional=[True]):
        pass


def test_conditional_rows_must_fit_the_batch(unet) -> None:
    with pytest.raises(SettingsError, match="`conditional` names no row; expected at least one"):  # noqa: SIM117
        with edited_cross_attention(unet, guide(), conditional=[False, False]):
            pass
    with pytest.raises(SettingsError, match="`conditional` is for batches of 2, the UNet got 3 rows"):  # noqa: SIM117
        with edited_cross_attention(unet, guide(), conditional=[False, True]):
            call(unet, batch=3)


def test_an_unknown_grid_is_refused(unet) -> None:
    with edited_cross_attention(unet, guide(), conditional=[False, True]):
        call(unet, height=8, width=8)
        layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2
        with pytest.raises(
            BackboneError, match="a cross-attention layer has 5 pixels; expected one of the grids 8x8, 4x4"
        ):
            layer(random(2, 5, 32), random(2, 9, 32))
