"""Subjects and layouts in diffusers' own pipelines, on real, tiny models."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from cones2.conditioning import LayoutSettings, conditioned
from cones2.errors import (
    Cones2Error,
    Cones2Warning,
    LayoutError,
    ModelError,
    PromptError,
    ResidualMismatchError,
    SettingsError,
)
from cones2.models import open_pipeline
from cones2.residual import EncoderId, Residual, ResidualPart
from cones2.subjects import Subject
from subjects_for_tests import LAYOUT, PROMPT, TEXT, residual_for, subjects_for, with_own_scheduler

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SIZE = {"height": 64, "width": 64, "num_inference_steps": 3}
PHOTO = Image.effect_noise((64, 64), 60).convert("RGB")
MASK = Image.new("L", (64, 64), 255)
PLAIN = {"rex": "cat", "cup": "teapot"}


def controlnet(pipeline: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = diffusers.ControlNetModel.from_unet(pipeline.unet)
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(block.weight, std=0.1)  # as made they are zero, and do nothing
        torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=10)  # what is before it is small, too
    return net.eval()


# Each kind of pipeline, with the arguments that it takes beside the text


def text_to_image(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    return with_own_scheduler(pipeline), SIZE


def image_to_image(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    components = with_own_scheduler(pipeline).components
    kind = diffusers.StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    return kind, {"image": PHOTO, "strength": 0.7, "num_inference_steps": 5}


def inpainting(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    components = with_own_scheduler(pipeline).components
    kind = diffusers.StableDiffusionInpaintPipeline(**components, requires_safety_checker=False)
    return kind, {"image": PHOTO, "mask_image": MASK, **SIZE}


def with_controlnet(pipeline: Any) -> tuple[Any, dict[str, Any]]:
    components = {**with_own_scheduler(pipeline).components, "controlnet": controlnet(pipeline)}
    kind = diffusers.StableDiffusionControlNetPipeline(**components, requires_safety_checker=False)
    return kind, {"image": PHOTO, **SIZE}


KINDS = [text_to_image, image_to_image, inpainting, with_controlnet]
Kind = Callable[[Any], tuple[Any, dict[str, Any]]]


def pictures(pipeline: Any, **arguments: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    count = arguments.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    images: np.ndarray = pipeline(**arguments, generator=generators, output_type="np").images
    return images


def drawn(pipeline: Any, call: dict[str, Any], prompt: str = PROMPT, **options: Any) -> np.ndarray:
    with conditioned(pipeline, prompt, **options) as inputs:
        return pictures(pipeline, **inputs, **call)


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one - other).max() > 1e-3)


def assert_untouched(pipeline: Any, processors: dict[str, Any]) -> None:
    after = pipeline.unet.attn_processors
    assert all(after[name] is processors[name] for name in processors)
    assert "forward" not in vars(pipeline.unet)
    assert not pipeline.unet._forward_pre_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_added_is_the_pipelines_own_picture(tiny: Any, kind: Kind) -> None:
    pipeline, call = kind(tiny)
    for options in ({"guidance_scale": 5.0, "negative_prompt": "fog"}, {"guidance_scale": 1.0}):
        own = pictures(pipeline, prompt=TEXT, **options, **call)
        assert np.array_equal(drawn(pipeline, call, TEXT, **options), own)
    two = {**call, "num_images_per_prompt": 2}
    own = pictures(pipeline, prompt=TEXT, guidance_scale=7.5, **two)
    assert np.array_equal(drawn(pipeline, two, subjects=PLAIN, layout={}), own)


@pytest.mark.parametrize("kind", KINDS)
def test_subjects_and_layout_act_and_leave_nothing_behind(tiny: Any, kind: Kind) -> None:
    pipeline, call = kind(tiny)
    processors, plain = tiny.unet.attn_processors, pictures(pipeline, prompt=TEXT, **call)
    subjects = subjects_for(tiny)
    taught = drawn(pipeline, call, subjects=subjects)
    placed = drawn(pipeline, call, subjects=subjects, layout=LAYOUT)
    assert differ(taught, plain)
    assert differ(placed, taught)
    assert np.isfinite(placed).all()
    assert_untouched(tiny, processors)
    assert np.array_equal(pictures(pipeline, prompt=TEXT, **call), plain)


@pytest.mark.parametrize(
    "acting",
    [
        {"layout_effect": "weaken"},
        {"layout_effect": "strengthen"},
        {"layout_levels": (0,)},
        {"layout_scale": 0.5},
        {"guided_steps": 1},
        {"preset": "cones_v2"},
        {"preset": "cones_v2", "weight_negative": -1.0},
    ],
)
def test_each_setting_of_a_layout_acts(tiny: Any, acting: dict[str, Any]) -> None:
    pipeline, call = text_to_image(tiny)
    placed = drawn(pipeline, call, subjects=PLAIN, layout=LAYOUT)
    found = drawn(pipeline, call, subjects=PLAIN, layout=LAYOUT, layout_settings=LayoutSettings(**acting))
    assert np.isfinite(found).all()
    assert differ(found, placed)
    if "weight_negative" in acting:
        usual = LayoutSettings(preset="cones_v2")
        assert differ(found, drawn(pipeline, call, subjects=PLAIN, layout=LAYOUT, layout_settings=usual))


def test_no_guided_step_and_no_scale_are_no_layout(tiny: Any) -> None:
    pipeline, call = text_to_image(tiny)
    plain = drawn(pipeline, call, subjects=PLAIN)
    for settings in (LayoutSettings(guided_steps=0), LayoutSettings(layout_scale=0.0)):
        found = drawn(pipeline, call, subjects=PLAIN, layout=LAYOUT, layout_settings=settings)
        np.testing.assert_allclose(found, plain, atol=1e-5)


@pytest.mark.parametrize(("scheduler", "calls"), [("DDIMScheduler", 4), ("HeunDiscreteScheduler", 7)])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_guided_steps_count_from_the_first_call_of_each_run(
    tiny: Any, scheduler: str, calls: int, strength: float
) -> None:
    pipeline = with_own_scheduler(tiny)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(tiny.scheduler.config)
    kind = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    call = {"image": PHOTO, "strength": strength, "num_inference_steps": 4}
    settings = LayoutSettings(guided_steps=1)
    with conditioned(kind, PROMPT, subjects=PLAIN, layout=LAYOUT, layout_settings=settings) as inputs:
        acting: list[bool] = []
        begin = inputs.run.begin

        def watched(*given: Any) -> Any:
            read = begin(*given)
            acting.append(inputs.run._call.strength is not None)
            return read

        vars(inputs.run)["begin"] = watched
        for _ in range(2):
            pictures(kind, **inputs, **call)
    made = calls if strength == 1 else calls - (calls // 2)
    assert len(acting) == 2 * len(acting[: len(acting) // 2])
    half = len(acting) // 2
    assert half <= made
    assert acting[:half] == acting[half:]
    assert acting[0]
    assert sum(acting[:half]) == -(-calls // 4)


def test_stable_diffusion_xl(opened: dict[str, Any]) -> None:
    xl = opened["sdxl"]
    processors = xl.unet.attn_processors
    pipeline, call = text_to_image(xl)
    own = pictures(pipeline, prompt=TEXT, guidance_scale=7.5, **call)
    assert np.array_equal(drawn(pipeline, call, subjects=PLAIN), own)
    subjects = subjects_for(xl)
    residual = subjects["rex"].residual
    assert residual is not None
    embeds = inputs_of(pipeline, PROMPT, subjects=subjects)["prompt_embeds"]
    moved = (embeds - inputs_of(pipeline, TEXT)["prompt_embeds"])[0]
    row = int(moved.abs().sum(1).nonzero())
    expected = torch.cat([part.vector[0] for part in residual.parts])
    torch.testing.assert_close(moved[row], expected)
    placed = drawn(pipeline, call, subjects=subjects, layout=LAYOUT)
    assert differ(placed, drawn(pipeline, call, subjects=subjects))
    components = {**pipeline.components, "controlnet": controlnet(xl)}
    for kind, more in (
        (diffusers.StableDiffusionXLImg2ImgPipeline, {"image": PHOTO, "strength": 0.8, "num_inference_steps": 4}),
        (diffusers.StableDiffusionXLInpaintPipeline, {"image": PHOTO, "mask_image": MASK, **SIZE}),
        (diffusers.StableDiffusionXLControlNetPipeline, {"image": PHOTO, **SIZE}),
    ):
        parts = components if kind is diffusers.StableDiffusionXLControlNetPipeline else pipeline.components
        other = kind(**parts, add_watermarker=False)
        own = pictures(other, prompt=TEXT, guidance_scale=7.5, **more)
        assert np.array_equal(drawn(other, more, TEXT), own)
        assert differ(drawn(other, more, subjects=subjects, layout=LAYOUT), own)
    assert_untouched(xl, processors)


def test_flux(opened: dict[str, Any]) -> None:
    flux = opened["flux1"]
    pipeline, call = text_to_image(flux)
    own = pictures(pipeline, prompt=TEXT, **call)
    assert np.array_equal(drawn(pipeline, call, subjects=PLAIN), own)
    taught = drawn(pipeline, call, subjects=subjects_for(flux))
    placed = drawn(pipeline, call, subjects=subjects_for(flux), layout=LAYOUT)
    assert differ(taught, own)
    assert np.abs(placed - taught).max() > 1e-5
    assert np.isfinite(placed).all()
    assert "forward" not in vars(flux.transformer)
    assert np.array_equal(pictures(pipeline, prompt=TEXT, **call), own)


WITHOUT_NOISE = {"EDMEulerScheduler"}


@pytest.mark.filterwarnings("ignore:Should have tb<=t1:UserWarning")  # torchsde, when a float is rounded
@pytest.mark.parametrize("name", [each.name for each in KarrasDiffusionSchedulers if each.name not in WITHOUT_NOISE])
def test_every_scheduler_of_diffusers_that_tells_its_noise(tiny: Any, name: str) -> None:
    pipeline = with_own_scheduler(tiny)
    pipeline.scheduler = getattr(diffusers, name).from_config({**tiny.scheduler.config, "clip_sample": False})
    processors = tiny.unet.attn_processors
    call = {**SIZE, "num_inference_steps": 4}  # the least that PNDM can make
    plain = drawn(pipeline, call, subjects=PLAIN)
    placed = drawn(pipeline, call, subjects=PLAIN, layout=LAYOUT)
    assert np.isfinite(placed).all()
    assert differ(placed, plain)
    assert_untouched(tiny, processors)


def test_a_scheduler_without_is_refused(tiny: Any) -> None:
    for name in WITHOUT_NOISE:
        pipeline = with_own_scheduler(tiny)
        pipeline.scheduler = getattr(diffusers, name)()
        refused(SettingsError, name, pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT)


def test_a_controlnets_attention_is_not_edited(tiny: Any) -> None:
    pipeline, call = with_controlnet(tiny)
    before, seen = pipeline.controlnet.attn_processors, []
    pipeline.controlnet.register_forward_hook(lambda net, *_: seen.append(net.attn_processors))
    drawn(pipeline, call, subjects=subjects_for(tiny), layout=LAYOUT)
    assert seen
    assert all(each[name] is before[name] for each in seen for name in before)


def test_attention_is_measured(tiny: Any) -> None:
    pipeline, call = text_to_image(tiny)
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT, meter=True) as inputs:
        pictures(pipeline, **inputs, **call)
    (readings,) = inputs.attention()
    assert [reading.subject for reading in readings] == ["rex", "cup"]
    for reading in readings:
        assert reading.own is not None
        assert reading.own + sum(reading.others.values()) + reading.outside == pytest.approx(1, abs=1e-3)


# What else a pipeline may have


@pytest.fixture
def own(tiny_folder: Path) -> Any:
    """A tiny model to change."""
    return open_pipeline(str(tiny_folder), device="cpu")


@pytest.fixture(params=[*(("sd1", kind) for kind in KINDS), ("sdxl", text_to_image)])
def own_kind(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Any, Kind]:
    """A model to change, and a kind of pipeline for it."""
    family, kind = request.param
    return open_pipeline(str(folders[family]), device="cpu"), kind


def test_lora_stays_loaded(own_kind: tuple[Any, Kind], tmp_path: Path) -> None:
    own, kind = own_kind
    (pipeline, call), subjects = kind(own), subjects_for(own)
    without = drawn(pipeline, call, subjects=subjects, layout=LAYOUT)
    save_lora(own, tmp_path)
    pipeline.load_lora_weights(tmp_path)
    assert any(".lora_" in name for name, _ in own.text_encoder.named_parameters())
    assert np.array_equal(drawn(pipeline, call, TEXT), pictures(pipeline, prompt=TEXT, guidance_scale=7.5, **call))
    scaled = {**call, "cross_attention_kwargs": {"scale": 0.5}}
    with_it = drawn(pipeline, call, subjects=subjects, layout=LAYOUT)
    assert differ(with_it, without)
    assert differ(with_it, drawn(pipeline, scaled, subjects=subjects, layout=LAYOUT))
    pipeline.unload_lora_weights()
    assert np.array_equal(drawn(pipeline, call, subjects=subjects, layout=LAYOUT), without)


def save_lora(pipeline: Any, folder: Path) -> None:
    """A LoRA of random numbers for UNet and text encoders, in diffusers' file."""
    layers = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for part in ("unet", "text_encoder", "text_encoder_2"):
            if getattr(pipeline, part, None) is None:
                continue
            targets = ["to_q", "to_k", "to_v", "to_out.0"] if part == "unet" else ["q_proj", "v_proj"]
            model = copy.deepcopy(getattr(pipeline, part))
            model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
            layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model, save_embedding_layers=False)
    type(pipeline).save_lora_weights(folder, **layers)


def test_textual_inversions_of_several_tokens_keep_their_place(own: Any) -> None:
    pipeline = with_own_scheduler(own)
    pipeline.load_textual_inversion({"<style>": torch.randn(3, 32)})
    text = "in <style>, a cat and a teapot"
    assert np.array_equal(drawn(pipeline, SIZE, text), pictures(pipeline, prompt=text, guidance_scale=7.5, **SIZE))
    part = ResidualPart(EncoderId("text_encoder", "", 32, "0" * 64, (9.0,)), ("cat</w>",), torch.full((1, 32), 9.0))
    subjects = {"rex": Subject("cat", Residual("cat", (part,), {}, (), "0"))}
    with pytest.warns(Cones2Warning):
        inputs = inputs_of(pipeline, "in <style>, a {rex} and a teapot", subjects=subjects, force=True)
    plain = pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0]
    moved = (inputs["prompt_embeds"] - plain)[0].abs().amax(1).nonzero().flatten().tolist()
    tokens = pipeline.tokenizer.tokenize(pipeline.maybe_convert_prompt(text, pipeline.tokenizer))
    assert [tokens[index - 1] for index in moved] == ["cat</w>"]


def test_a_textual_inversion_makes_no_residual_foreign(own: Any) -> None:
    pipeline, subjects = with_own_scheduler(own), subjects_for(own)
    before = inputs_of(pipeline, PROMPT, subjects=subjects)["prompt_embeds"]
    pipeline.load_textual_inversion({"<style>": torch.randn(3, 32)})
    after = inputs_of(pipeline, PROMPT, subjects=subjects)["prompt_embeds"]  # without force; warnings are errors
    assert torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipelines_in_half_precision_draw_numbers(own: Any, dtype: torch.dtype) -> None:
    pipeline = with_own_scheduler(own).to(dtype)
    options: dict[str, Any] = {"subjects": subjects_for(own, during=(0.3, 1.0), negative="fog"), "layout": LAYOUT}
    found = drawn(pipeline, SIZE, **options)
    assert np.isfinite(found).all()
    assert found.std() > 0.01  # NaN would be decoded to one colour


def test_offloaded_models_are_offloaded_again(own: Any) -> None:
    pipeline = with_own_scheduler(own)
    options: dict[str, Any] = {"subjects": subjects_for(own), "layout": LAYOUT}
    expected = drawn(pipeline, SIZE, **options)
    pipeline.enable_model_cpu_offload(device="cpu")  # moves nothing, but hooks every model as on a GPU
    assert np.array_equal(drawn(pipeline, SIZE, **options), expected)
    hooks = [pipeline.unet._hf_hook, pipeline.text_encoder._hf_hook]
    assert all(type(hook).__name__ == "CpuOffload" for hook in hooks)


# What is refused


def inputs_of(pipeline: Any, prompt: str, **options: Any) -> dict[str, Any]:
    with conditioned(pipeline, prompt, **options) as inputs:
        return inputs


def refused(error: type[Cones2Error], match: str, pipeline: Any, prompt: Any = TEXT, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        inputs_of(pipeline, prompt, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_an_error_within_the_block_leaves_nothing_behind(tiny: Any) -> None:
    processors, pipeline = tiny.unet.attn_processors, with_own_scheduler(tiny)
    subjects = subjects_for(tiny, during=(0.0, 0.5), negative="fog")
    with pytest.raises(ZeroDivisionError), conditioned(pipeline, PROMPT, subjects=subjects, layout=LAYOUT):
        _ = 1 / 0
    assert_untouched(tiny, processors)
    inputs_of(pipeline, PROMPT, subjects=subjects, layout=LAYOUT)  # and another block may begin


def test_one_block_at_a_time_on_a_pipeline_and_on_its_models(tiny: Any) -> None:
    pipeline, other = with_own_scheduler(tiny), with_own_scheduler(tiny)
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT):
        refused(ModelError, "conditioned", pipeline)
        refused(ModelError, "already", other, PROMPT, subjects=PLAIN, layout=LAYOUT)
        inputs_of(other, TEXT)


def test_an_ip_adapter_is_named(own: Any) -> None:
    foreign = {
        name: IPAdapterAttnProcessor2_0(8, 32) if "attn2" in name else processor
        for name, processor in own.unet.attn_processors.items()
    }
    own.unet.set_attn_processor(foreign)
    refused(ModelError, "IPAdapterAttnProcessor2_0", own, PROMPT, subjects=PLAIN, layout=LAYOUT)


def test_guidance_with_three_parts_acts_on_its_conditional_rows(tiny: Any) -> None:
    processors, components = tiny.unet.attn_processors, with_own_scheduler(tiny).components
    pag = diffusers.StableDiffusionPAGPipeline(**components, requires_safety_checker=False, pag_applied_layers="mid")
    own = pictures(pag, prompt=TEXT, guidance_scale=7.5, **SIZE)
    assert np.array_equal(drawn(pag, SIZE, subjects=PLAIN), own)
    assert differ(drawn(pag, SIZE, subjects=PLAIN, layout=LAYOUT), own)
    assert_untouched(tiny, processors)


def test_another_text_within_the_block_is_refused(tiny: Any) -> None:
    pipeline = with_own_scheduler(tiny)
    block = conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT)
    with pytest.raises(SettingsError, match="2 rows"), block:
        pipeline("a dog", **SIZE)


def test_pipelines_of_other_kinds_are_refused(opened: dict[str, Any]) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    refused(ModelError, "DDPMPipeline", diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()))
    components = {**opened["sdxl"].components, "text_encoder": None, "tokenizer": None}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**components, add_watermarker=False)
    refused(ModelError, "StableDiffusionXLImg2ImgPipeline", refiner)


def test_no_negative_prompt_may_be_none(tiny: Any) -> None:
    none, empty = (inputs_of(with_own_scheduler(tiny), TEXT, negative_prompt=text) for text in (None, ""))
    assert torch.equal(none["negative_prompt_embeds"], empty["negative_prompt_embeds"])


def test_a_negative_prompt_that_says_the_same_is_not_conditional(tiny: Any) -> None:
    pipeline, call = text_to_image(tiny)
    same = drawn(pipeline, call, subjects=PLAIN, layout=LAYOUT, negative_prompt=TEXT)
    assert differ(same, drawn(pipeline, call, subjects=PLAIN, negative_prompt=TEXT))


def test_brackets_after_a_backslash_are_text(tiny: Any) -> None:
    pipeline = with_own_scheduler(tiny)
    escaped = inputs_of(pipeline, r"a {rex} \(old\)", subjects={"rex": "cat"}, negative_prompt=r"\(fog\)")
    plain = inputs_of(pipeline, "a cat (old)", negative_prompt="(fog)")
    assert all(torch.equal(escaped[name], plain[name]) for name in ("prompt_embeds", "negative_prompt_embeds"))


@pytest.mark.usefixtures("unchecked_types")
def test_several_texts_are_refused(tiny: Any) -> None:
    pipeline, texts = with_own_scheduler(tiny), ["a cat", "a dog"]
    refused(PromptError, "^prompt is a list", pipeline, texts)
    refused(PromptError, "^negative_prompt is a list", pipeline, negative_prompt=texts)


def test_a_text_encoder_without_its_weights_is_refused(own: Any) -> None:
    subjects = subjects_for(own)
    own.text_encoder.to("meta")  # as sequential offloading leaves it
    refused(ModelError, "enable_sequential_cpu_offload", own, PROMPT, subjects=subjects)


def test_what_can_not_be_drawn(tiny: Any) -> None:
    pipeline = with_own_scheduler(tiny)
    negative: dict[str, Any] = {"prompt": PROMPT, "subjects": {"rex": Subject("cat", negative="fog"), "cup": "mug"}}
    refused(SettingsError, "'rex'", pipeline, **negative)
    refused(SettingsError, "scale 1.0", pipeline, **negative, layout=LAYOUT, guidance_scale=1.0)
    refused(SettingsError, "level 7", pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT,
            layout_settings=LayoutSettings(layout_levels=(7,)))  # fmt: skip
    refused(LayoutError, "'cup'", pipeline, "a {rex}", subjects=PLAIN, layout=LAYOUT)
    hidden = {"rex": (0.2, 0.2, 0.4, 0.4), "cup": {"shapes": [[0.1, 0.1, 0.9, 0.9]], "z": 1}}
    refused(LayoutError, "'rex'", pipeline, PROMPT, subjects=PLAIN, layout=hidden)
    refused(PromptError, "fog:1.2", pipeline, negative_prompt="(fog:1.2)")
    refused(PromptError, "'rex'", pipeline, PROMPT)
    refused(SettingsError, "no_such", pipeline, no_such=1)
    refused(SettingsError, "'rex' is 3", pipeline, "a {rex}", subjects={"rex": 3})
    part = ResidualPart(EncoderId("text_encoder", "sd", 32, "0" * 64, (1.0,)), ("cat</w>",), torch.zeros(1, 32))
    stranger = Subject("cat", Residual("cat", (part,), {}, (), "0"))
    refused(ResidualMismatchError, "sd", pipeline, "{rex}", subjects={"rex": stranger})
    longer = residual_for(tiny, "teddy bear")
    two = Residual("cat", longer.parts, {}, (), "0")
    refused(ResidualMismatchError, "this model makes 1", pipeline, "{rex}", subjects={"rex": Subject("cat", two)})


def test_a_residual_is_added_at_every_mention_and_nowhere_else(tiny: Any) -> None:
    residual = residual_for(tiny, "teddy bear")
    pipeline = with_own_scheduler(tiny)
    subjects = {"ted": Subject("teddy bear", residual, strength=0.5)}
    moved = inputs_of(pipeline, "a {ted} by a {ted}", subjects=subjects)["prompt_embeds"]
    difference = (moved - inputs_of(pipeline, "a teddy bear by a teddy bear")["prompt_embeds"])[0]
    vector = residual.parts[0].vector
    rows = difference.abs().amax(1).nonzero().flatten().tolist()
    assert len(rows) == 2 * len(vector)
    for start in (rows[0], rows[len(vector)]):
        torch.testing.assert_close(difference[start : start + len(vector)], 0.5 * vector, atol=1e-6, rtol=0)


def test_two_subjects_of_one_class_get_their_own_residuals(tiny: Any) -> None:
    rex, fido = residual_for(tiny), residual_for(tiny, size=-3.0)
    subjects = {"rex": Subject("cat", rex), "fido": Subject("cat", fido)}
    pipeline = with_own_scheduler(tiny)
    moved = inputs_of(pipeline, "{fido} {rex}", subjects=subjects)["prompt_embeds"]
    difference = (moved - inputs_of(pipeline, "cat cat")["prompt_embeds"])[0]
    for row, residual in ((1, fido), (2, rex)):
        torch.testing.assert_close(difference[row], residual.parts[0].vector[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("other", ["sd1", "sdxl", "flux1"])
def test_a_residual_of_one_family_is_refused_by_another(tiny: Any, opened: dict[str, Any], other: str) -> None:
    subjects = {"rex": Subject("cat", residual_for(tiny))}
    refused(ResidualMismatchError, "cat", with_own_scheduler(opened[other]), "a {rex}", subjects=subjects)
