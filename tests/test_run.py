"""A run: what a layout, negative texts and timed additions do to a UNet's calls, in every dtype."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode

from cones2.attention import edited_attention
from cones2.denoisers import NegativeText, TextEdit, TimedAddition
from cones2.errors import LayoutError, ModelError, SettingsError
from cones2.guidance import Spans, token_weights
from cones2.layout import Layout, Region
from cones2.pipeline import Cones2Pipeline
from cones2.presets import PRESETS
from cones2.rasterize import own_cells
from cones2.run import LayoutSettings
from cones2.schedulers import make_scheduler
from runs import HALVES, PROMPT, SPANS, TOKENS, call, in_dtype, layer_outputs, random, run_of, shown, texts
from subjects_for_tests import LAYOUT, subjects_for, with_own_scheduler
from subjects_for_tests import PROMPT as PROMPT_OF_TWO

CORNERS = Layout.of({"rex": (0.0, 0.0, 0.25, 0.25), "cup": (0.75, 0.75, 1.0, 1.0)})
ALL: Spans = {"rex": ((0, 4),), "cup": ((4, TOKENS),)}  # each cell outside both regions has no token left
UNet: Any = UNet2DConditionModel
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FINEST = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
NEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"

dtypes = pytest.mark.parametrize("dtype", DTYPES)
presets = pytest.mark.parametrize("preset", PRESETS)


@pytest.fixture(scope="module")
def pipelines(tiny: Any) -> dict[torch.dtype, Any]:
    return {dtype: in_dtype(tiny, dtype) for dtype in DTYPES}


@pytest.fixture(scope="module")
def pipeline(pipelines: dict[torch.dtype, Any]) -> Any:
    return pipelines[torch.float32]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


# η·M in a UNet


@pytest.mark.parametrize("dim", [8, 32])
@presets
def test_conditional_rows_get_eta_times_m_and_the_others_nothing(pipeline: Any, preset: str, dim: int) -> None:
    run = run_of(pipeline, preset=preset, layout_scale=0.5)
    run.begin((random(2, 4, 4, 4), 250, texts(2)), {})
    query, key = random(2, 3, 16, dim), random(2, 3, TOKENS, dim, seed=1)
    bias = run.bias(query, key)
    assert bias is not None
    gain, blocked = token_weights(PRESETS[preset].weigh(HALVES, 4, 4), SPANS, TOKENS)
    strength = 0.5 * (0.25**0.5 if preset == "paper" else 0.08 * math.log(1 + 14.6146**2))  # σ of the noisiest step
    eta = strength * (query[1] @ key[1].mT / dim**0.5).std()
    torch.testing.assert_close(bias[1, 0][~blocked], (eta * gain)[~blocked])
    assert (bias[1, 0][blocked] < -1e37).all()
    assert not bias[0].any()


def test_without_regions_the_unet_is_the_same_bit_for_bit(pipeline: Any) -> None:
    assert torch.equal(call(pipeline, run_of(pipeline, layout=Layout({}))), call(pipeline))
    assert not run_of(pipeline, layout=Layout({})).acts


def test_a_layout_scale_of_0_turns_the_hard_mask_off_too(pipeline: Any) -> None:
    assert torch.equal(call(pipeline, run_of(pipeline, layout_scale=0.0)), call(pipeline))
    assert not run_of(pipeline, layout_scale=0.0).acts


@presets
@pytest.mark.parametrize(("height", "width"), [(12, 20), (7, 13), (1, 5), (16, 8)])
def test_any_latents_have_grids(pipeline: Any, preset: str, height: int, width: int) -> None:
    latents = random(2, 4, height, width)
    plain = call(pipeline, latents=latents)
    edited = call(pipeline, run_of(pipeline, preset=preset), latents=latents)
    torch.testing.assert_close(edited[0], plain[0], rtol=1e-5, atol=1e-5)
    assert (edited[1] - plain[1]).abs().max() > 1e-3
    assert edited.isfinite().all()


@presets
def test_a_row_does_not_depend_on_its_batch_mates(pipeline: Any, preset: str) -> None:
    latents, text = random(4, 4, 12, 8), texts(4, conditional=2)
    latents[2] *= 30  # a loud neighbour
    together = call(pipeline, run_of(pipeline, preset=preset), latents=latents, text=text)
    alone = call(pipeline, run_of(pipeline, preset=preset), latents=latents[3:], text=text[3:])
    torch.testing.assert_close(together[3:], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        together[1:2], call(pipeline, latents=latents[1:2], text=text[1:2]), rtol=1e-4, atol=1e-4
    )


@dtypes
def test_rows_that_are_neighbours_or_not_give_the_same(pipelines: dict[torch.dtype, Any], dtype: torch.dtype) -> None:
    pipeline, latents = pipelines[dtype], random(1, 4, 8, 8).expand(3, -1, -1, -1)
    unconditional, prompt = texts(2)
    apart = call(pipeline, run_of(pipeline), latents=latents, text=torch.stack([prompt, unconditional, prompt]))
    beside = call(pipeline, run_of(pipeline), latents=latents, text=torch.stack([prompt, prompt, unconditional]))
    tolerance: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(apart[[0, 2]], beside[[0, 1]], **tolerance)
    torch.testing.assert_close(apart[1], beside[2], **tolerance)
    assert not torch.allclose(apart[0], call(pipeline, latents=latents[:1], text=prompt[None])[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("timestep", [torch.tensor(500), torch.tensor([500, 500]), torch.tensor(500.0), 500.0])
def test_timesteps_and_arguments_come_in_many_forms(pipeline: Any, timestep: Any) -> None:
    expected = call(pipeline, run_of(pipeline))
    torch.testing.assert_close(call(pipeline, run_of(pipeline), timestep=timestep), expected)
    run = run_of(pipeline)
    with edited_attention(pipeline.unet, run.family, run):
        named = pipeline.unet(sample=random(2, 4, 8, 8), timestep=timestep, encoder_hidden_states=texts(2)).sample
    torch.testing.assert_close(named, expected)


def test_each_row_has_its_own_time(pipeline: Any) -> None:
    latents, text = random(1, 4, 8, 8).expand(2, -1, -1, -1), PROMPT.expand(2, -1, -1)
    mixed, early, late = (
        call(pipeline, run_of(pipeline), latents=latents, text=text, timestep=timestep)
        for timestep in (torch.tensor([900, 100]), 900, 100)
    )
    torch.testing.assert_close(mixed[0], early[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1], late[1], rtol=1e-4, atol=1e-5)


@dtypes
def test_blocked_tokens_get_no_attention(tiny: Any, dtype: torch.dtype) -> None:
    # One head, one-hot texts, values and output as they come: the layer returns its attention. `rex` has the left half.
    pipeline = in_dtype(tiny, torch.float32)
    vars(pipeline)["unet"] = unet = UNet(
        sample_size=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=1,
    ).eval()  # fmt: skip
    layer = unet.get_submodule(FINEST)
    layer.load_state_dict(
        {"to_v.weight": torch.eye(8), "to_out.0.weight": torch.eye(8), "to_out.0.bias": torch.zeros(8)}, strict=False
    )
    unet.to(dtype)
    prompt = torch.eye(8, dtype=dtype)[None]
    arguments = {"latents": random(1, 4, 4, 4), "text": prompt}
    plain, edited = (
        layer_outputs(pipeline, run, **arguments)[FINEST].float().view(4, 4, 8)
        for run in (None, run_of(pipeline, prompt=prompt))
    )
    assert (plain > 0).all()
    assert (edited[:, :2, 5:7] == 0).all()  # `cup` is irrelevant in the left half
    assert (edited[:, 2:, 2] == 0).all()
    assert (edited[:, :2, 2] > plain[:, :2, 2]).all()
    torch.testing.assert_close(edited.sum(-1), torch.ones(4, 4), rtol=0.02, atol=0)


# One thing at a time


@presets
def test_strengthening_and_weakening_add_up_to_both(pipeline: Any, preset: str) -> None:
    query, key = random(1, 2, 12, 8), random(1, 2, TOKENS, 8, seed=1)

    def bias(effect: str) -> torch.Tensor:
        run = run_of(pipeline, preset=preset, layout_effect=effect)
        run.begin((random(1, 4, 3, 4), 500, PROMPT), {})
        found = run.bias(query, key)
        assert found is not None
        return found

    both, strong, weak = bias("both"), bias("strengthen"), bias("weaken")
    assert torch.equal(strong + weak, both)
    assert strong.min() == weak.max() == 0
    assert strong.max() > 0
    assert weak.min() < -1e6
    assert torch.equal(strong > 0, both > 0)


def test_a_regions_weight_strengthens_it_alone(pipeline: Any) -> None:
    double = Layout({**HALVES.regions, "rex": Region(HALVES.regions["rex"].shapes, weight=2.0)})
    query, key = random(1, 2, 16, 8), random(1, 2, TOKENS, 8, seed=1)
    found = []
    for layout in (HALVES, double):
        run = run_of(pipeline, layout=layout)
        run.begin((random(1, 4, 4, 4), 500, PROMPT), {})
        bias = run.bias(query, key)
        assert bias is not None
        found.append(bias.clone())
    plain, weighed = (each[0, 0] for each in found)
    torch.testing.assert_close(weighed[:, 2][plain[:, 2] > 0], 2 * plain[:, 2][plain[:, 2] > 0])
    assert torch.equal(weighed[:, 2][plain[:, 2] <= 0], plain[:, 2][plain[:, 2] <= 0])
    assert torch.equal(weighed[:, 3:], plain[:, 3:])


def test_only_layers_of_the_levels_asked_for_are_edited(pipeline: Any) -> None:
    plain = layer_outputs(pipeline, None)
    second = layer_outputs(pipeline, run_of(pipeline, layout_levels=(1,)))
    torch.testing.assert_close(second[FINEST], plain[FINEST], rtol=1e-5, atol=1e-5)
    assert (second[NEXT] - plain[NEXT]).abs().max() > 1e-4
    first = layer_outputs(pipeline, run_of(pipeline, layout_levels=(0,)))
    assert (first[FINEST] - plain[FINEST]).abs().max() > 1e-4
    everything = layer_outputs(pipeline, run_of(pipeline, layout_levels=(0, 1, 2, 3)))
    assert torch.equal(everything[NEXT], layer_outputs(pipeline, run_of(pipeline))[NEXT])


def test_a_level_that_the_unet_lacks(pipeline: Any) -> None:
    with pytest.raises(SettingsError, match="7"):
        run_of(pipeline, layout_levels=(0, 7)).check_levels(pipeline.unet)
    with pytest.raises(SettingsError, match="a UNet has none"):
        run_of(pipeline, layout_blocks=(0,)).check_levels(pipeline.unet)


def test_settings_outside_their_range() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"layout_scale": -1.0}, "-1.0"),
        ({"layout_scale": float("nan")}, "nan"),
        ({"layout_scale": float("inf")}, "inf"),
        ({"layout_effect": "strong"}, "'strong'"),
        ({"layout_levels": ()}, r"\(\)"),
        ({"layout_levels": (0, -1)}, "layout_levels.1 of .* -1"),
        ({"layout_blocks": (-3,)}, "layout_blocks.0 of .* -3"),
        ({"guided_steps": -1}, "-1"),
        ({"weight_negative": 1.0}, "1.0"),
    ]
    for settings, value in cases:
        with pytest.raises(SettingsError, match=value):
            LayoutSettings(**settings)


def test_a_region_of_which_nothing_can_be_seen(pipeline: Any) -> None:
    hidden = Layout({"rex": HALVES.regions["rex"], "cup": Region(HALVES.regions["rex"].shapes, z=-1)})
    with pytest.raises(LayoutError, match="'cup'"):
        run_of(pipeline, layout=hidden)


# Steps


@presets
def test_a_layout_acts_in_guided_steps_alone(pipeline: Any, preset: str) -> None:
    plain, run = call(pipeline), run_of(pipeline, preset=preset, guided_steps=3)
    with edited_attention(pipeline.unet, run.family, run):
        found = [pipeline.unet(random(2, 4, 8, 8), 500, texts(2)).sample for _ in pipeline.scheduler.timesteps]
    assert [torch.equal(each, plain) for each in found] == [False] * 3 + [True] * 7
    assert torch.equal(call(pipeline, run_of(pipeline, preset=preset, guided_steps=0)), plain)


def test_a_loop_may_say_which_step_it_is_in(pipeline: Any) -> None:
    run = run_of(pipeline, preset="cones_v2", guided_steps=4)
    found = []
    with edited_attention(pipeline.unet, run.family, run):
        for step in (2, 2, 0, 2, 4):
            run.step = step
            found.append(pipeline.unet(random(2, 4, 8, 8), 500, texts(2)).sample)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(found[4], call(pipeline))


# Texts


def test_what_is_added_acts_on_conditional_rows_in_its_time() -> None:
    vector, text = random(5, 4), random(3, 5, 4, seed=1)
    edit = TextEdit((TimedAddition((0.0, 0.5), vector),), {})
    read = edit.apply(text, torch.tensor([0.9, 0.9, 0.1]), slice(1, 3))
    torch.testing.assert_close(read, torch.stack([text[0], text[1] + vector, text[2]]))


@pytest.mark.parametrize(
    ("during", "expected"),
    [
        ((0.0, 1.0), [True] * 6),
        ((0.0, 0.3), [True, True, False, False, False, False]),
        ((0.3, 0.7), [False, False, True, True, False, False]),
        ((0.7, 1.0), [False, False, False, False, True, True]),
    ],
)
def test_time_goes_from_noise_to_picture(during: tuple[float, float], expected: list[bool]) -> None:
    times = torch.tensor([0.999, 0.7005, 0.7, 0.3005, 0.3, 0.0])
    edit = TextEdit((TimedAddition(during, torch.ones(1, 1)),), {})
    edited = edit.apply(torch.zeros(6, 1, 1), times, slice(0, 6))
    assert [bool(row) for row in edited] == expected


def test_the_unet_reads_an_addition_in_its_time(pipeline: Any) -> None:
    vector = torch.zeros(TOKENS, 32)
    vector[2] = random(32, seed=5)
    run = run_of(pipeline, layout=Layout({}), edit=TextEdit((TimedAddition((0.5, 1.0), vector),), {}))
    assert torch.equal(call(pipeline, run, timestep=900), call(pipeline, timestep=900))
    moved = texts(2)
    moved[1] += vector
    torch.testing.assert_close(call(pipeline, run, timestep=400), call(pipeline, text=moved, timestep=400))


@pytest.mark.parametrize("settings", [{}, {"layout_scale": 0.0}, {"guided_steps": 0}])
@pytest.mark.parametrize("conditional", [(False, True), (True, False, True)])
def test_a_negative_is_seen_by_unconditional_rows_from_its_region_alone(
    pipeline: Any, settings: dict[str, Any], conditional: tuple[bool, ...]
) -> None:
    layout = Layout.of({"rex": (0.0, 0.0, 0.5, 1.0), "cup": (0.5, 0.5, 1.0, 1.0)})
    unconditional, prompt = texts(2)
    arguments: dict[str, Any] = {
        "latents": random(1, 4, 8, 8).expand(len(conditional), -1, -1, -1),
        "text": torch.stack([prompt if each else unconditional for each in conditional]),
    }

    def first_layer(negatives: dict[str, NegativeText]) -> torch.Tensor:
        run = run_of(pipeline, layout=layout, edit=TextEdit((), negatives), **settings)
        return layer_outputs(pipeline, run, **arguments)[FINEST].view(len(conditional), 8, 8, -1)

    plain, one = first_layer({}), first_layer({"cup": shown(random(3, 32, seed=2))})
    both = first_layer({"cup": shown(random(3, 32, seed=2)), "rex": shown(random(2, 32, seed=3))})
    rows = torch.tensor(conditional)
    torch.testing.assert_close(both[rows], plain[rows], rtol=1e-5, atol=1e-6)
    cup, rex = (torch.from_numpy(own_cells(layout, 8, 8)[name]) for name in ("cup", "rex"))
    moved = (both - plain)[~rows][0].abs().amax(-1) > 1e-5
    assert torch.equal(moved, cup | rex)
    torch.testing.assert_close(one[~rows][0][~cup], plain[~rows][0][~cup], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one[~rows][0][cup], both[~rows][0][cup], rtol=1e-5, atol=1e-6)


# In no dtype is there NaN


@dtypes
@presets
@pytest.mark.parametrize("timestep", [0, 500, 999])
@pytest.mark.parametrize("spans", [SPANS, ALL])
def test_rows_that_are_hidden_whole_at_any_noise(
    pipelines: dict[torch.dtype, Any], dtype: torch.dtype, preset: str, timestep: int, spans: Spans
) -> None:
    run = run_of(pipelines[dtype], layout=CORNERS, spans=spans, preset=preset)
    assert call(pipelines[dtype], run, timestep=timestep).isfinite().all()


@dtypes
@presets
def test_the_smallest_and_largest_weights(pipelines: dict[torch.dtype, Any], dtype: torch.dtype, preset: str) -> None:
    nothing = Layout({name: Region(region.shapes, weight=0.0) for name, region in CORNERS.regions.items()})
    for spans in (SPANS, ALL):
        run = run_of(pipelines[dtype], layout=nothing, spans=spans, preset=preset)
        assert call(pipelines[dtype], run).isfinite().all()
        for text in (30 * texts(2), 0 * texts(2)):  # loud ones, and scores that are all equal
            prompt = text[1:].to(dtype)
            run = run_of(
                pipelines[dtype], layout=CORNERS, spans=spans, prompt=prompt, preset=preset, layout_scale=1000.0
            )
            assert call(pipelines[dtype], run, text=text, timestep=999).isfinite().all()


@dtypes
@presets
def test_a_negative_text_that_few_cells_see(pipelines: dict[torch.dtype, Any], dtype: torch.dtype, preset: str) -> None:
    pipeline, edit = pipelines[dtype], TextEdit((), {"rex": shown(torch.full((3, 32), 30.0))})
    foggy, plain = (
        call(pipeline, run_of(pipeline, layout=CORNERS, spans=ALL, preset=preset, edit=each)) for each in (edit, None)
    )
    assert foggy.isfinite().all()
    assert not torch.equal(foggy[0], plain[0])


# What is refused


def test_another_text_than_the_prompt(pipeline: Any) -> None:
    with pytest.raises(SettingsError, match="2 rows"):
        call(pipeline, run_of(pipeline), text=random(2, TOKENS, 32, seed=9))


class NumbersRead(TorchDispatchMode):
    """Counts what makes Python wait for a GPU: numbers read from tensors, and tests of what they hold."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), options: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero", "allclose")
        return function(*args, **(options or {}))


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers' code
def test_no_step_after_the_first_waits_for_a_number(tiny: Any) -> None:
    pipe = Cones2Pipeline(with_own_scheduler(tiny))
    pipe.scheduler = make_scheduler("dpm++", pipe.scheduler)  # diffusers' own that reads none
    numbers, counts = NumbersRead(), list[int]()
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 5, "seed": 0}
    subjects = subjects_for(tiny, during=(0.0, 0.5), negative="grey")
    with ExitStack() as stack:

        def at_step_end(_: Any, step: int, *__: Any) -> dict[str, Any]:
            if step == 0:
                stack.enter_context(numbers)
            counts.append(numbers.count)
            return {}

        pipe(PROMPT_OF_TWO, LAYOUT, subjects=subjects, callback_on_step_end=at_step_end, **options)
    assert counts == [0] * 5
    assert numbers.count > 0  # when the pictures are done


def test_an_unknown_grid(pipeline: Any) -> None:
    run = run_of(pipeline)
    run.begin((random(2, 4, 8, 8), 500, texts(2)), {})
    with pytest.raises(ModelError, match=r"5 pixels.* 8x8, 4x4"):
        run.bias(random(2, 2, 5, 8), random(2, 2, TOKENS, 8))
