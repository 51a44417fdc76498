"""The adapter in diffusers' own pipelines, on the real, tiny model."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.schedulers import KarrasDiffusionSchedulers
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

import cones2
from cones2.backbones import Backbone, make_scheduler, open_backbone
from cones2.errors import BackboneError, Cones2Error, PromptError, ResidualMismatchError, SettingsError
from cones2.layout.regions import Layout
from cones2.residual.residual import Residual
from cones2.subjects import Subject
from families import make_family

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

LAYOUT = Layout.from_numbers({"rex": [(0.0, 0.25, 0.5, 1.0)], "cup": [(0.5, 0.5, 1.0, 1.0)]})
PROMPT, TEXT = "a {rex} and a {cup} on the beach", "a cat and a teapot on the beach"
SIZE = {"height": 64, "width": 64, "num_inference_steps": 3}
PHOTO = Image.effect_noise((64, 64), 60).convert("RGB")
MASK = Image.new("L", (64, 64), 255)


def residual_for(backbone: Backbone) -> Residual:
    tokens = tuple(backbone.tokenizer.tokenize("cat"))
    vector = 3 * torch.randn(len(tokens), backbone.width, generator=torch.Generator().manual_seed(1))
    return Residual("cat", vector, tokens, backbone.encoder_id, {}, (), "0")


def subjects_for(backbone: Backbone, **changes: Any) -> dict[str, Subject]:
    return {"rex": Subject("cat", residual_for(backbone), **changes), "cup": Subject("teapot")}


def pipeline_of(backbone: Backbone) -> Any:
    """Its pipeline, with a scheduler of its own: drawing changes it."""
    pipeline = backbone.pipeline()
    pipeline.scheduler = copy.deepcopy(backbone.scheduler)
    return pipeline


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def controlnet(backbone: Backbone) -> diffusers.ControlNetModel:
    torch.manual_seed(0)
    net = diffusers.ControlNetModel.from_unet(backbone.unet)
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        torch.nn.init.normal_(block.weight, std=0.1)  # as made they are zero, and do nothing
    torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=10)  # what is before it is small, too
    return net.eval()


# Each kind of pipeline, with the arguments that it takes beside the text


def text_to_image(backbone: Backbone) -> tuple[Any, dict[str, Any]]:
    return pipeline_of(backbone), SIZE


def image_to_image(backbone: Backbone) -> tuple[Any, dict[str, Any]]:
    components = pipeline_of(backbone).components
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**components, requires_safety_checker=False)
    return pipeline, {"image": PHOTO, "strength": 0.7, "num_inference_steps": 5}


def inpainting(backbone: Backbone) -> tuple[Any, dict[str, Any]]:
    components = pipeline_of(backbone).components
    pipeline = diffusers.StableDiffusionInpaintPipeline(**components, requires_safety_checker=False)
    return pipeline, {"image": PHOTO, "mask_image": MASK, **SIZE}


def with_controlnet(backbone: Backbone) -> tuple[Any, dict[str, Any]]:
    components = {**pipeline_of(backbone).components, "controlnet": controlnet(backbone)}
    pipeline = diffusers.StableDiffusionControlNetPipeline(**components, requires_safety_checker=False)
    return pipeline, {"image": PHOTO, **SIZE}


KINDS = [text_to_image, image_to_image, inpainting, with_controlnet]
Kind = Callable[[Backbone], tuple[Any, dict[str, Any]]]


def pictures(pipeline: Any, **arguments: Any) -> np.ndarray:
    count = arguments.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    images: np.ndarray = quiet(pipeline)(**arguments, generator=generators, output_type="np").images
    return images


def adapted(pipeline: Any, call: dict[str, Any], prompt: str = PROMPT, **options: Any) -> np.ndarray:
    with cones2.adapt(pipeline, prompt, **options) as inputs:
        return pictures(pipeline, **inputs, **call)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_added_is_the_pipelines_own_picture(tiny: Backbone, kind: Kind) -> None:
    pipeline, call = kind(tiny)
    for options in (
        {"guidance_scale": 5.0, "negative_prompt": "fog"},
        {"guidance_scale": 1.0},
        {"num_images_per_prompt": 2},
    ):
        own = pictures(pipeline, prompt=TEXT, **{"guidance_scale": 7.5, **options}, **call)
        assert np.array_equal(adapted(pipeline, call, TEXT, **options), own)


@pytest.mark.parametrize("kind", KINDS)
def test_subjects_and_layout_work_and_leave_nothing_behind(tiny: Backbone, kind: Kind) -> None:
    pipeline, call = kind(tiny)
    processors, plain = tiny.unet.attn_processors, pictures(pipeline, prompt=TEXT, **call)
    subjects = subjects_for(tiny)
    taught = adapted(pipeline, call, subjects=subjects)
    placed = adapted(pipeline, call, subjects=subjects, layout=LAYOUT)
    assert np.abs(taught - plain).max() > 1e-3
    assert np.abs(placed - taught).max() > 1e-3
    assert np.isfinite(placed).all()
    assert_untouched(tiny, processors)
    assert np.array_equal(pictures(pipeline, prompt=TEXT, **call), plain)


def assert_untouched(backbone: Backbone, processors: dict[str, Any]) -> None:
    after = backbone.unet.attn_processors
    assert all(after[name] is processors[name] for name in processors)
    assert not backbone.unet._forward_pre_hooks


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_it_draws_what_compose_draws(tiny: Backbone, guidance_scale: float) -> None:
    fog, dog = ("fog", "a dog") if guidance_scale > 1 else ("", "")
    subjects = subjects_for(tiny, during=(0.3, 1.0), negative=fog)
    options: dict[str, Any] = {"subjects": subjects, "layout": LAYOUT}
    settings = cones2.ComposeSettings(
        seeds=(0, 1), steps=3, height=64, width=64, negative_prompt=dog, guidance_scale=guidance_scale
    )
    ours = cones2.finish(cones2.compose(tiny, PROMPT, **options, settings=settings)).pictures
    pipeline = pipeline_of(tiny)
    pipeline.scheduler = make_scheduler("ddim", tiny.scheduler)
    options |= {"negative_prompt": dog, "guidance_scale": guidance_scale, "num_images_per_prompt": 2}
    pipeline.vae.enable_slicing()  # decodes one by one, as `compose` does; the autoencoder is the backbone's own
    found = adapted(pipeline, SIZE, **options)
    pipeline.vae.disable_slicing()
    assert np.array_equal((found * 255).round().astype("uint8"), np.stack([np.asarray(each) for each in ours]))


@pytest.mark.parametrize("acting", [{"layout_effect": "weaken"}, {"layout_levels": (0,)}, {"layout_scale": 0.5}])
def test_a_layout_acts_as_in_compose(tiny: Backbone, acting: dict[str, Any]) -> None:
    subjects = subjects_for(tiny)
    settings = cones2.ComposeSettings(steps=3, height=64, width=64, **acting)
    steps = cones2.compose(tiny, PROMPT, subjects=subjects, layout=LAYOUT, settings=settings)
    pipeline = pipeline_of(tiny)
    pipeline.scheduler = make_scheduler("ddim", tiny.scheduler)
    found = adapted(pipeline, SIZE, subjects=subjects, layout=LAYOUT, **acting)
    assert np.array_equal((found * 255).round().astype("uint8")[0], np.asarray(cones2.finish(steps).pictures[0]))
    assert np.abs(found - adapted(pipeline, SIZE, subjects=subjects, layout=LAYOUT)).max() > 1e-3


@pytest.fixture(scope="module")
def xl(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return open_backbone(str(make_family("sdxl", tiny.tokenizer, tmp_path_factory.mktemp("models"))), device="cpu")


def test_it_draws_what_compose_draws_on_stable_diffusion_xl(xl: Backbone) -> None:
    subjects = subjects_for(xl, during=(0.0, 0.5), negative="fog")
    settings = cones2.ComposeSettings(steps=3, height=64, width=64, scheduler="euler")
    steps = cones2.compose(xl, PROMPT, subjects=subjects, layout=LAYOUT, settings=settings)
    pipeline = pipeline_of(xl)
    pipeline.scheduler = make_scheduler("euler", xl.scheduler)
    found = adapted(pipeline, SIZE, subjects=subjects, layout=LAYOUT)
    assert np.array_equal((found * 255).round().astype("uint8")[0], np.asarray(cones2.finish(steps).pictures[0]))


def test_image_to_image_and_inpainting_on_stable_diffusion_xl(xl: Backbone) -> None:
    processors, components = xl.unet.attn_processors, pipeline_of(xl).components
    for kind, masks in (
        (diffusers.StableDiffusionXLImg2ImgPipeline, {}),
        (diffusers.StableDiffusionXLInpaintPipeline, {"mask_image": MASK, "height": 64, "width": 64}),
    ):
        pipeline = kind(**components, add_watermarker=False)
        call = {"image": PHOTO, "num_inference_steps": 4, "strength": 0.8, **masks}
        own = pictures(pipeline, prompt=TEXT, guidance_scale=7.5, **call)
        assert np.array_equal(adapted(pipeline, call, TEXT), own)
        placed = adapted(pipeline, call, subjects=subjects_for(xl), layout=LAYOUT)
        assert np.abs(placed - own).max() > 1e-3
    assert_untouched(xl, processors)


def test_a_controlnet_on_stable_diffusion_xl(xl: Backbone) -> None:
    processors = xl.unet.attn_processors
    components = {**pipeline_of(xl).components, "controlnet": controlnet(xl)}
    pipeline = diffusers.StableDiffusionXLControlNetPipeline(**components, add_watermarker=False)
    call, steered = {"image": PHOTO, **SIZE}, {"image": Image.new("RGB", (64, 64)), **SIZE}
    own = pictures(pipeline, prompt=TEXT, guidance_scale=7.5, **call)
    assert np.array_equal(adapted(pipeline, call, TEXT), own)
    placed = adapted(pipeline, call, subjects=subjects_for(xl), layout=LAYOUT)
    assert np.abs(placed - own).max() > 1e-3
    assert np.abs(placed - adapted(pipeline, steered, subjects=subjects_for(xl), layout=LAYOUT)).max() > 1e-3
    assert_untouched(xl, processors)


KNOWN_WITHOUT = {"EDMEulerScheduler"}


@pytest.mark.filterwarnings("ignore:Should have tb<=t1:UserWarning")  # torchsde, when a float is rounded
@pytest.mark.parametrize("name", [each.name for each in KarrasDiffusionSchedulers if each.name not in KNOWN_WITHOUT])
def test_every_scheduler_of_diffusers_that_tells_its_noise(tiny: Backbone, name: str) -> None:
    pipeline = pipeline_of(tiny)
    pipeline.scheduler = getattr(diffusers, name).from_config({**tiny.scheduler.config, "clip_sample": False})
    processors = tiny.unet.attn_processors
    subjects = {"rex": Subject("cat"), "cup": Subject("teapot")}
    call = {**SIZE, "num_inference_steps": 4}  # the least that PNDM can make
    plain = adapted(pipeline, call, subjects=subjects)
    placed = adapted(pipeline, call, subjects=subjects, layout=LAYOUT)
    assert np.isfinite(placed).all()
    assert np.abs(placed - plain).max() > 1e-3
    assert_untouched(tiny, processors)


def test_a_scheduler_without_is_refused(tiny: Backbone) -> None:
    for name in KNOWN_WITHOUT:
        pipeline = pipeline_of(tiny)
        pipeline.scheduler = getattr(diffusers, name)()
        refused(SettingsError, f"{name} has no alphas_cumprod.*: set another scheduler, such as DDIM", pipeline)


def test_a_controlnets_attention_is_not_edited(tiny: Backbone) -> None:
    pipeline, call = with_controlnet(tiny)
    before, seen = pipeline.controlnet.attn_processors, []
    pipeline.controlnet.register_forward_hook(lambda net, *_: seen.append(net.attn_processors))
    adapted(pipeline, call, subjects=subjects_for(tiny), layout=LAYOUT)
    assert seen
    assert all(each[name] is before[name] for each in seen for name in before)


# What else a pipeline may have


@pytest.fixture
def own(tiny_folder: Path) -> Backbone:
    """A tiny model to change."""
    return open_backbone(str(tiny_folder), device="cpu")


@pytest.fixture(params=[*(("sd1", kind) for kind in KINDS), ("sdxl", text_to_image)])
def own_kind(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Backbone, Kind]:
    """A model to change, and a kind of pipeline for it."""
    family, kind = request.param
    return open_backbone(str(folders[family]), device="cpu"), kind


def test_lora_stays_loaded(own_kind: tuple[Backbone, Kind], tmp_path: Path) -> None:
    own, kind = own_kind
    (pipeline, call), subjects = kind(own), subjects_for(own)
    without = adapted(pipeline, call, subjects=subjects, layout=LAYOUT)
    save_lora(own, tmp_path)
    pipeline.load_lora_weights(tmp_path)
    for encoder in own.text_encoders:
        assert any(".lora_" in name for name, _ in encoder.named_parameters())
    assert np.array_equal(adapted(pipeline, call, TEXT), pictures(pipeline, prompt=TEXT, guidance_scale=7.5, **call))
    scaled = {**call, "cross_attention_kwargs": {"scale": 0.5}}
    with_it = adapted(pipeline, call, subjects=subjects, layout=LAYOUT)
    assert np.abs(with_it - without).max() > 1e-3
    assert np.abs(with_it - adapted(pipeline, scaled, subjects=subjects, layout=LAYOUT)).max() > 1e-3
    pipeline.unload_lora_weights()
    assert np.array_equal(adapted(pipeline, call, subjects=subjects, layout=LAYOUT), without)


def save_lora(backbone: Backbone, folder: Path) -> None:
    """A LoRA of random numbers for UNet and text encoders, in diffusers' file."""
    torch.manual_seed(0)
    layers = {}
    encoders = ["text_encoder", "text_encoder_2"][: len(backbone.text_encoders)]
    for part in ("unet", *encoders):
        targets = ["to_q", "to_k", "to_v", "to_out.0"] if part == "unet" else ["q_proj", "v_proj"]
        model = copy.deepcopy(getattr(backbone, part))
        model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model, save_embedding_layers=False)
    type(backbone.pipeline()).save_lora_weights(folder, **layers)


def test_textual_inversions_of_several_tokens_keep_their_place(own: Backbone) -> None:
    pipeline = pipeline_of(own)
    pipeline.load_textual_inversion({"<style>": torch.randn(3, own.width)})
    text = "in <style>, a cat and a teapot"
    assert np.array_equal(adapted(pipeline, SIZE, text), pictures(pipeline, prompt=text, **SIZE))
    marked = Residual(
        "cat", torch.full((1, own.width), 9.0), ("cat</w>",), cones2.EncoderId("", 32, "", ()), {}, (), "0"
    )
    template, subjects = "in <style>, a {rex} and a teapot", {"rex": Subject("cat", marked)}
    with pytest.warns(cones2.Cones2Warning, match="as forced"):
        inputs = inputs_of(pipeline, template, subjects=subjects, force=True)
    plain = pipeline.encode_prompt(text, "cpu", 1, do_classifier_free_guidance=False)[0]
    moved = (inputs["prompt_embeds"] - plain)[0].abs().amax(1).nonzero().flatten().tolist()
    tokens = pipeline.tokenizer.tokenize(pipeline.maybe_convert_prompt(text, pipeline.tokenizer))
    assert [tokens[place - 1] for place in moved] == ["cat</w>"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pipelines_in_half_precision_draw_numbers(own: Backbone, dtype: torch.dtype) -> None:
    pipeline = pipeline_of(own).to(dtype)
    options = {"subjects": subjects_for(own, during=(0.3, 1.0), negative="fog"), "layout": LAYOUT}
    found = adapted(pipeline, SIZE, **options)
    assert (own.unet.dtype, own.text_encoder.dtype) == (dtype, dtype)
    assert np.isfinite(found).all()
    assert found.std() > 0.01  # NaN would be decoded to one colour


def test_offloaded_models_are_offloaded_again(own: Backbone) -> None:
    pipeline, options = pipeline_of(own), {"subjects": subjects_for(own), "layout": LAYOUT}
    expected = adapted(pipeline, SIZE, **options)
    pipeline.enable_model_cpu_offload(device="cpu")  # moves nothing, but hooks every model as on a GPU
    assert np.array_equal(adapted(pipeline, SIZE, **options), expected)
    hooks = [pipeline.unet._hf_hook, pipeline.text_encoder._hf_hook]
    assert all(type(hook).__name__ == "CpuOffload" for hook in hooks)


# What is refused


def inputs_of(pipeline: Any, prompt: str, **options: Any) -> dict[str, Any]:
    with cones2.adapt(pipeline, prompt, **options) as inputs:
        return inputs


def refused(error: type[Cones2Error], match: str, pipeline: Any, prompt: str = TEXT, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        inputs_of(pipeline, prompt, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_an_error_within_the_block_leaves_nothing_behind(tiny: Backbone) -> None:
    processors, pipeline = tiny.unet.attn_processors, pipeline_of(tiny)
    subjects = subjects_for(tiny, during=(0.0, 0.5), negative="fog")
    with pytest.raises(ZeroDivisionError), cones2.adapt(pipeline, PROMPT, subjects=subjects, layout=LAYOUT):
        _ = 1 / 0
    assert_untouched(tiny, processors)


def test_one_edit_at_a_time(tiny: Backbone) -> None:
    pipeline = pipeline_of(tiny)
    with cones2.adapt(pipeline, TEXT):
        refused(BackboneError, "a layout already edits this UNet's cross-attention. Leave that", pipeline)


def test_an_ip_adapter_is_named(own: Backbone) -> None:
    foreign = {
        name: IPAdapterAttnProcessor2_0(8, 32) if "attn2" in name else processor
        for name, processor in own.unet.attn_processors.items()
    }
    own.unet.set_attn_processor(foreign)
    refused(BackboneError, r"IPAdapterAttnProcessor2_0; .* pipeline.unload_ip_adapter\(\)", pipeline_of(own))


def test_guidance_with_three_parts_is_refused(tiny: Backbone) -> None:
    processors, components = tiny.unet.attn_processors, pipeline_of(tiny).components
    pag = diffusers.StableDiffusionPAGPipeline(**components, requires_safety_checker=False, pag_applied_layers="mid")
    message = "the UNet got 3 rows; expected 2, of which the last 1 are conditional. .* can't be adapted"
    with pytest.raises(SettingsError, match=message):
        adapted(pag, SIZE, TEXT)
    assert_untouched(tiny, processors)
    edit = diffusers.StableDiffusionInstructPix2PixPipeline(**components, requires_safety_checker=False)
    refused(BackboneError, "StableDiffusionInstructPix2PixPipeline has no encode_prompt", edit)


def test_another_text_within_the_block_is_refused(tiny: Backbone) -> None:
    pipeline = quiet(pipeline_of(tiny))
    message = r"the last 1 of the UNet's 2 rows read another text .*: call the pipeline with \*\*inputs"
    with pytest.raises(SettingsError, match=message), cones2.adapt(pipeline, TEXT):
        pipeline("a dog", **SIZE)


def test_pipelines_of_other_kinds_are_refused() -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    refused(BackboneError, "DDPMPipeline has no UNet2DConditionModel, but UNet2DModel", pipeline)


def test_no_negative_prompt_may_be_none(tiny: Backbone) -> None:
    pipeline = pipeline_of(tiny)
    none, empty = (inputs_of(pipeline, TEXT, negative_prompt=text) for text in (None, ""))
    assert torch.equal(none["negative_prompt_embeds"], empty["negative_prompt_embeds"])


def test_brackets_after_a_backslash_are_text(tiny: Backbone) -> None:
    pipeline = pipeline_of(tiny)
    escaped = inputs_of(pipeline, r"a {rex} \(old\)", subjects={"rex": Subject("cat")}, negative_prompt=r"\(fog\)")
    plain = inputs_of(pipeline, "a cat (old)", negative_prompt="(fog)")
    assert all(torch.equal(escaped[name], plain[name]) for name in ("prompt_embeds", "negative_prompt_embeds"))


@pytest.mark.usefixtures("unchecked_types")
def test_several_texts_are_refused(tiny: Backbone) -> None:
    pipeline, texts = pipeline_of(tiny), ["a cat", "a dog"]
    message = "is a list: expected one text. For several pictures of it say num_images_per_prompt; for other texts"
    refused(PromptError, f"^prompt {message}", pipeline, texts)  # type: ignore[arg-type]
    refused(PromptError, f"^negative_prompt {message}", pipeline, negative_prompt=texts)


def test_a_refiner_is_refused(xl: Backbone) -> None:
    components = {**pipeline_of(xl).components, "text_encoder": None, "tokenizer": None}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**components, add_watermarker=False)
    refused(BackboneError, "StableDiffusionXLImg2ImgPipeline has no tokenizer, .* but no refiner", refiner)
    components["tokenizer"] = xl.tokenizer
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**components, add_watermarker=False)
    refused(BackboneError, "StableDiffusionXLImg2ImgPipeline has no text_encoder, .* but no refiner", refiner)
    half = diffusers.StableDiffusionXLPipeline(
        **{**pipeline_of(xl).components, "text_encoder_2": None}, add_watermarker=False
    )
    refused(BackboneError, "StableDiffusionXLPipeline has no text_encoder_2, .* but no refiner", half)


def test_a_text_encoder_without_its_weights_is_refused(own: Backbone) -> None:
    pipeline, subjects = pipeline_of(own), subjects_for(own)
    pipeline.text_encoder.to("meta")  # as sequential offloading leaves it
    message = "a text encoder without its weights, .*: instead of enable_sequential_cpu_offload use enable_model_cpu"
    refused(BackboneError, message, pipeline, PROMPT, subjects=subjects)


def test_a_layout_that_contradicts_the_prompt_is_told(tiny: Backbone) -> None:
    with pytest.warns(cones2.Cones2Warning, match="the prompt has 'cup' left of 'rex', but its region is to the right"):
        inputs_of(pipeline_of(tiny), "a {cup} left of a {rex}", subjects=subjects_for(tiny), layout=LAYOUT)


def test_what_can_not_be_drawn(tiny: Backbone) -> None:
    pipeline = pipeline_of(tiny)
    options: dict[str, Any] = {
        "prompt": PROMPT,
        "subjects": {"rex": Subject("cat", negative="fog"), "cup": Subject("mug")},
    }
    refused(SettingsError, "'rex' has a negative text and no region", pipeline, **options)
    options["layout"] = LAYOUT
    refused(SettingsError, "'rex' has no effect at guidance scale 1.0", pipeline, **options, guidance_scale=1.0)
    refused(
        SettingsError,
        "preset 'official' has a sampler of its own, .* take 'official-layout'",
        pipeline,
        preset="official",
    )
    refused(SettingsError, "num_images_per_prompt 0 can't be used", pipeline, num_images_per_prompt=0)
    refused(PromptError, "looks like a weight", pipeline, negative_prompt="(fog:1.2)")
    refused(PromptError, "no subject is called 'rex'", pipeline, PROMPT)
    stranger = Residual("cat", torch.zeros(1, 32), ("cat</w>",), cones2.EncoderId("sd", 32, "0", (1.0,)), {}, (), "0")
    refused(ResidualMismatchError, "learned on sd", pipeline, "{rex}", subjects={"rex": Subject("cat", stranger)})
