"""The edit of attention and its way into a model: diffusers' own numbers, and a model that is put back."""

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

from cones2.attention import CrossAttention, edited_attention, unedited
from cones2.denoisers import JointSequence
from cones2.errors import ModelError
from cones2.families import FAMILIES
from runs import SPANS, call, in_dtype, random, run_of, texts

SD = FAMILIES[0]
UNet: Any = UNet2DConditionModel
DEFAULT: Any = AttnProcessor2_0


class Adds:
    """An edit that adds a given bias, or nothing."""

    sequence: JointSequence | None = None

    def __init__(self, bias: torch.Tensor | None = None) -> None:
        self._bias = bias

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, kwargs

    def bias(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:  # noqa: ARG002
        return self._bias


class Block(torch.nn.Module):
    """A cross-attention layer under the name that it has in a UNet."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.attn2 = layer


class Denoiser(torch.nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.block = Block(Attention(**({"query_dim": 16, "heads": 2, "dim_head": 8} | settings)))

    def forward(self, *args: Any, **options: Any) -> torch.Tensor:
        attended: torch.Tensor = self.block.attn2(*args, **options)
        return attended


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def pipeline(tiny: Any) -> Any:
    return in_dtype(tiny, torch.float32)


# Against diffusers' own


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
def test_without_a_bias_it_is_diffusers_bit_for_bit(settings: dict[str, Any], shape: tuple[int, ...]) -> None:
    denoiser = Denoiser(**settings).eval()
    text = random(3, 11, 32) if "cross_attention_dim" in settings else None
    own = denoiser(random(*shape), text)
    with edited_attention(denoiser, SD, Adds()):
        assert torch.equal(denoiser(random(*shape), text), own)
        with unedited():
            assert torch.equal(denoiser(random(*shape), text), own)


def test_masks_and_time_embeddings_pass_through() -> None:
    denoiser = Denoiser(query_dim=32, cross_attention_dim=32, spatial_norm_dim=8).eval()
    mask = torch.zeros(3, 1, 11)
    mask[:, :, 8:] = -1e4
    arguments = random(3, 32, 5, 7), random(3, 11, 32)
    own = denoiser(*arguments, attention_mask=mask, temb=random(3, 8, 5, 7))
    assert not torch.equal(own, denoiser(*arguments, temb=random(3, 8, 5, 7)))
    with edited_attention(denoiser, SD, Adds()):
        assert torch.equal(denoiser(*arguments, attention_mask=mask, temb=random(3, 8, 5, 7)), own)


def test_a_bias_is_added_to_the_scores_and_to_the_mask() -> None:
    denoiser = Denoiser(cross_attention_dim=32).eval()
    layer = denoiser.block.attn2
    pixels, text, bias, mask = random(2, 6, 16), random(2, 5, 32), random(2, 1, 6, 5, seed=4), random(2, 1, 5, seed=5)
    query, key, value = (
        p.unflatten(2, (2, 8)).transpose(1, 2) for p in (layer.to_q(pixels), layer.to_k(text), layer.to_v(text))
    )
    scores = query @ key.mT * 8**-0.5 + bias + mask[:, None]
    expected = layer.to_out[0]((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    with edited_attention(denoiser, SD, Adds(bias)):
        torch.testing.assert_close(denoiser(pixels, text, attention_mask=mask), expected)


def test_without_regions_the_unet_is_the_same_bit_for_bit(pipeline: Any) -> None:
    unet, plain = pipeline.unet, call(pipeline)
    with edited_attention(unet, SD, Adds()):
        assert any(isinstance(processor, CrossAttention) for processor in unet.attn_processors.values())
        assert torch.equal(unet(random(2, 4, 8, 8), 500, texts(2)).sample, plain)


# Texts


def test_a_text_that_stays_is_read_once(pipeline: Any) -> None:
    unet, text, other = pipeline.unet, texts(2), texts(2)
    other[0] += 1
    calls = [(random(2, 4, 8, 8, seed=seed), 900 - seed, text) for seed in range(3)]
    calls.append((random(2, 4, 8, 8), 100, other))  # a text that does not stay is read anew
    expected = [call(pipeline, run_of(pipeline), latents=each[0], timestep=each[1], text=each[2]) for each in calls]
    layer = next(module for name, module in unet.named_modules() if name.endswith("attn2"))
    reads: list[torch.Tensor] = []
    hook = layer.to_k.register_forward_hook(lambda _, arguments, __: reads.append(arguments[0]))
    try:
        with edited_attention(unet, SD, run_of(pipeline)):
            kept = [unet(*each).sample for each in calls]
    finally:
        hook.remove()
    assert all(map(torch.equal, kept, expected))
    assert [read is text for read in reads] == [True, False]


def test_a_text_or_a_layer_that_changes_is_read_anew(tiny: Any) -> None:
    pipeline = in_dtype(tiny, torch.float32)
    vars(pipeline)["unet"] = copy.deepcopy(tiny.unet)
    unet, text = pipeline.unet, texts(2)
    with edited_attention(unet, SD, Adds()):
        first = unet(random(2, 4, 8, 8), 500, text).sample
        text += 1
        second = unet(random(2, 4, 8, 8), 500, text).sample
        for name, layer in unet.named_modules():
            if name.endswith("attn2"):
                layer.to_v.weight *= 2
        third = unet(random(2, 4, 8, 8), 500, text).sample
    assert torch.equal(third, unet(random(2, 4, 8, 8), 500, text).sample)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, third)


def test_a_gradient_finds_its_way_back_through_all_layers(pipeline: Any) -> None:
    unet, latents, text = pipeline.unet, random(2, 4, 8, 8), texts(2)
    step = 1e-2 * random(2, 4, 8, 8, seed=2)
    with edited_attention(unet, SD, run_of(pipeline)):
        for _ in range(2):  # nothing of the first call is left over for the second
            latents.grad = None
            with torch.enable_grad():
                unet(latents.requires_grad_(), 500, text).sample.square().sum().backward()
        before, after = (unet(latents + sign * step, 500, text).sample.square().sum() for sign in (-1, 1))
    assert latents.grad is not None
    assert float((latents.grad * step).sum()) == pytest.approx(float(after - before) / 2, rel=0.02)


def test_calls_with_and_without_inference_mode_may_take_turns(pipeline: Any) -> None:
    unet, arguments = pipeline.unet, (random(2, 4, 8, 8), 500, texts(2))
    with edited_attention(unet, SD, run_of(pipeline)):
        with torch.inference_mode():
            first = unet(*arguments).sample
        assert torch.equal(unet(*arguments).sample, first)


# What the compiler calls


def test_the_compilers_way_to_the_bias(pipeline: Any) -> None:
    unet, query, key = pipeline.unet, random(2, 2, 6, 8), random(2, 2, 5, 8)
    assert not torch.ops.cones2.attention_bias(query, key, id(unet)).any()
    added = random(2, 1, 6, 5)
    with edited_attention(unet, SD, Adds(added)):
        assert torch.equal(torch.ops.cones2.attention_bias(query, key, id(unet)), added)
        assert torch.ops.cones2.attention_bias(query.to("meta"), key.to("meta"), id(unet)).shape == added.shape


# The `with` block


def test_the_unet_is_put_back(pipeline: Any) -> None:
    unet, plain = pipeline.unet, call(pipeline)
    before = unet.attn_processors
    for _ in range(2):
        with edited_attention(unet, SD, run_of(pipeline)):
            edited = unet.attn_processors
            assert all(isinstance(edited[name], CrossAttention) == name.endswith("attn2.processor") for name in edited)
            assert all(edited[name] is before[name] for name in edited if "attn1" in name)
        assert_untouched(unet, before)
        assert torch.equal(call(pipeline), plain)


def test_a_processor_that_is_not_diffusers_default_stays_in_self_attention(pipeline: Any) -> None:
    unet, own = pipeline.unet, AttnProcessor()
    before = unet.attn_processors
    unet.set_attn_processor({name: own if "attn1" in name else before[name] for name in before})
    with edited_attention(unet, SD, run_of(pipeline)):
        assert all(processor is own for name, processor in unet.attn_processors.items() if "attn1" in name)
    unet.set_attn_processor(before)


def test_the_unet_is_put_back_after_an_error(pipeline: Any) -> None:
    unet, before = pipeline.unet, pipeline.unet.attn_processors
    with pytest.raises(ZeroDivisionError), edited_attention(unet, SD, run_of(pipeline)):
        _ = 1 / 0
    assert_untouched(unet, before)
    with pytest.raises(RuntimeError), edited_attention(unet, SD, Adds()):
        unet(random(2, 4, 8, 8), 500, random(2, 9, 31))
    assert_untouched(unet, before)


def assert_untouched(unet: Any, before: dict[str, Any]) -> None:
    after = unet.attn_processors
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert "forward" not in vars(unet)
    assert not unet._forward_pre_hooks


def test_a_block_within_a_block_is_refused(pipeline: Any) -> None:
    unet = pipeline.unet
    with edited_attention(unet, SD, run_of(pipeline)):
        inside = unet.attn_processors
        with pytest.raises(ModelError), edited_attention(unet, SD, Adds()):
            pass
        assert unet.attn_processors == inside


def test_each_thread_has_its_own_edit(pipeline: Any) -> None:
    mirrored = {"rex": SPANS["cup"], "cup": SPANS["rex"]}
    runs = [run_of(pipeline), run_of(pipeline, spans=mirrored), None]
    expected = [call(pipeline, run) for run in runs]
    before = pipeline.unet.attn_processors
    barrier, found = threading.Barrier(len(runs)), {}

    def work(index: int) -> None:
        run = runs[index] and run_of(pipeline, spans=[SPANS, mirrored][index])
        barrier.wait()
        found[index] = [call(pipeline, run) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, expected[index]) for index, drawn in found.items() for each in drawn)
    assert len(found) == len(runs)
    assert_untouched(pipeline.unet, before)
    assert not torch.equal(expected[0], expected[1])


def test_other_peoples_processors_are_refused_by_name(pipeline: Any) -> None:
    unet, before = pipeline.unet, pipeline.unet.attn_processors
    unet.set_attn_processor({name: AttnProcessor() if "mid_block" in name else p for name, p in before.items()})
    try:
        with pytest.raises(ModelError, match=r"mid_block.*attn2 .* AttnProcessor,"), edited_attention(unet, SD, Adds()):
            pass
    finally:
        unet.set_attn_processor(dict(before))


def test_layers_whose_attention_is_computed_elsewhere(pipeline: Any) -> None:
    unet, before = pipeline.unet, pipeline.unet.attn_processors
    expected = sum(name.endswith("attn2.processor") for name in before)
    with edited_attention(unet, SD, Adds()):
        unet.set_attn_processor(DEFAULT())
        with pytest.raises(ModelError, match=f"0 of {expected} "):
            unet(random(2, 4, 8, 8), 500, texts(2))
    unet.set_attn_processor(dict(before))


def test_a_unet_without_cross_attention_is_refused() -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    plain = UNet(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **blocks)
    with pytest.raises(ModelError), edited_attention(plain, SD, Adds()):
        pass
