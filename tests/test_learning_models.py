"""Learning on every kind of model: families, dtypes, LoRA, offloading, other threads; and what it is refused on."""

import copy
import dataclasses
import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from cones2.conditioning import conditioned
from cones2.errors import LearningError, ModelError
from cones2.families import family_of
from cones2.learning.data import TextReader
from cones2.learning.recipe import Recipe
from cones2.models import open_pipeline
from learning import RECIPE, finish, learn, residual_of, stop_after, with_parts
from test_conditioning import save_lora

diffusers: Any = importlib.import_module("diffusers")  # which has few types

UNETS = ("sd1", "sd2-base", "sd2", "sdxl")
DIRECT = dataclasses.replace(RECIPE, tune="residual")
LAYOUT = {"cat": (0.0, 0.0, 0.5, 1.0)}


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Any:
    return open_pipeline(str(small_folder), device="cpu")


@pytest.fixture
def own(small_folder: Path) -> Any:
    """The same model, to change."""
    return open_pipeline(str(small_folder), device="cpu")


def difference(one: Any, other: Any) -> float:
    """Of two residuals, relative to their length."""
    first, second = (torch.cat([part.vector for part in each.parts], dim=1) for each in (one, other))
    return float((first - second).norm() / second.norm())


# Families


@pytest.mark.parametrize("name", UNETS)
def test_text_is_read_as_the_pipeline_reads_it(opened: dict[str, Any], name: str) -> None:
    pipeline = opened[name]
    reader = TextReader.copy_of(pipeline, family_of(pipeline))
    captions = reader.tokenize(["a teddy bear on the beach", "here is a teddy bear"], "teddy bear")
    found = reader.embed(captions)
    added = family_of(pipeline).added_conditions(reader.encoders, captions.input_ids, 64)
    for row, text in enumerate(captions.texts):
        encoded = pipeline.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        assert_close(found[row], encoded[0][0], rtol=1e-5, atol=1e-6)
        if name == "sdxl":
            assert_close(added["text_embeds"][row], encoded[2][0], rtol=1e-5, atol=1e-6)
            sizes = pipeline._get_add_time_ids((64, 64), (0, 0), (64, 64), torch.float32, 24)
            assert torch.equal(added["time_ids"][row], sizes[0])


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("recipe", [RECIPE, DIRECT], ids=["tuned", "direct"])
def test_a_residual_is_learned_on_each_family_and_fits_it(opened: dict[str, Any], name: str, recipe: Recipe) -> None:
    pipeline = opened[name]
    residual = residual_of(learn(pipeline, recipe))
    parts = family_of(pipeline).text_parts
    assert [part.encoder.role for part in residual.parts] == [part.encoder for part in parts]
    assert [part.vector.shape[1] for part in residual.parts] == ([32, 24] if name == "sdxl" else [32])
    assert all(part.vector.abs().max() > 0 for part in residual.parts)
    with conditioned(pipeline, "a {rex}", subjects={"rex": residual}) as inputs:
        plain = pipeline.encode_prompt(
            "a dog", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0]
        moved = (inputs["prompt_embeds"] - plain)[0].norm(dim=1).nonzero().flatten().tolist()
    words = pipeline.tokenizer.tokenize("a dog")
    assert moved == [1 + index for index, word in enumerate(words) if word != "a</w>"]


def test_the_paper_s_recipe_on_sdxl(opened: dict[str, Any]) -> None:
    """Both encoders are tuned, and the pooled text stays the untouched encoder's."""
    pipeline = opened["sdxl"]
    recipe = Recipe(steps=3, caption_count=5, learning_rate=1e-4)
    steps = list(learn(pipeline, recipe))
    assert steps[-1].preservation_loss > 0
    for role, tuned in zip(("text_encoder", "text_encoder_2"), steps[-1].tuned_encoders, strict=True):
        before, after = getattr(pipeline, role).state_dict(), tuned.state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["sd2-base", "sdxl"])
def test_other_pipelines_of_the_same_model_learn_the_same(opened: dict[str, Any], name: str) -> None:
    pipeline = opened[name]
    kind = getattr(diffusers, type(pipeline).__name__.replace("Pipeline", "Img2ImgPipeline"))
    options = {"add_watermarker": False} if name == "sdxl" else {"requires_safety_checker": False}
    other = kind(**pipeline.components, **options)
    assert torch.equal(*(residual_of(learn(each, DIRECT)).parts[0].vector for each in (pipeline, other)))


def test_a_model_that_predicts_noise(small: Any) -> None:
    scheduler = diffusers.DDIMScheduler.from_config(small.scheduler.config, prediction_type="epsilon")
    noise, velocity = (residual_of(learn(each)) for each in (with_parts(small, scheduler=scheduler), small))
    assert difference(noise, velocity) > 0.01


# Precision


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float16, 0.2), (torch.bfloat16, 0.5)])
@pytest.mark.parametrize("recipe", [RECIPE, DIRECT], ids=["tuned", "direct"])
def test_half_precision_learns_nearly_the_same(
    small: Any, own: Any, dtype: torch.dtype, allowed: float, recipe: Recipe
) -> None:
    half, full = finish(learn(own.to(dtype), recipe)), finish(learn(small, recipe))
    assert half.loss == pytest.approx(full.loss, rel=2e-2)
    assert difference(half.residual, full.residual) < allowed
    assert {(part.vector.dtype, part.vector.requires_grad) for part in half.residual.parts} == {(torch.float32, False)}


@pytest.mark.parametrize("tune", ["all", "residual"])
def test_small_gradients_do_not_vanish_in_float16(own: Any, tune: Any) -> None:
    """After one step without AdamW's 1e-8, the residual says which gradients were 0."""
    own.unet.conv_out.weight.data *= 2**-9  # so that unscaled gradients would be at the least that float16 can hold
    recipe = dataclasses.replace(RECIPE, tune=tune, preservation_weight=0.0, steps=1, learning_rate=1e-6)
    full = residual_of(learn(own, recipe))
    half = residual_of(learn(own.to(torch.float16), recipe))
    zeros = [float((each.parts[0].vector == 0).float().mean()) for each in (full, half)]
    assert zeros[1] <= zeros[0] + 0.1
    assert difference(half, full) < 0.5


def test_a_float16_learner_resumes_to_the_same_bytes(own: Any, tmp_path: Path) -> None:
    half = own.to(torch.float16)
    undisturbed = residual_of(learn(half))
    for number in (1, 2, 3):
        stop_after(learn(half, checkpoint=tmp_path, resume=True), number)
    assert residual_of(learn(half, checkpoint=tmp_path, resume=True)).to_bytes() == undisturbed.to_bytes()


def test_resuming_in_another_dtype(small: Any, own: Any, tmp_path: Path) -> None:
    stop_after(learn(small, checkpoint=tmp_path))
    unet = with_parts(small, unet=own.unet.to(torch.bfloat16))
    with pytest.raises(LearningError, match="UNet's dtype is bfloat16, but it began with float32"):
        learn(unet, checkpoint=tmp_path, resume=True)


def test_float16_that_overflows(own: Any) -> None:
    half = own.to(torch.float16)
    half.unet.conv_out.weight.data *= 1e4
    with pytest.raises(LearningError, match=r"at step 1 of 4.*dtype"):
        finish(learn(half))


# What else the pipeline has, and does meanwhile


def test_a_lora_is_recorded_and_stays_as_it_is(own: Any, tmp_path: Path) -> None:
    plain = residual_of(learn(own))
    save_lora(own, tmp_path)
    own.load_lora_weights(tmp_path, adapter_name="ink")
    weights = {name: each.clone() for name, each in own.unet.named_parameters() if ".lora_" in name}
    last = finish(learn(own))
    residual = last.residual
    assert "adapters" not in plain.recipe
    (name, adapter), *_ = residual.recipe["adapters"].items()  # type: ignore[attr-defined]
    assert name == "ink"
    assert len(adapter["sha256"]) == 64
    assert difference(residual, plain) > 0.01
    assert residual.parts[0].encoder.weights == plain.parts[0].encoder.weights
    for name, weight in own.unet.named_parameters():
        assert weight.grad is None
        assert name not in weights or torch.equal(weight, weights[name])
    originals = dict(own.text_encoder.named_parameters())
    for name, weight in last.tuned_encoders[0].named_parameters():
        assert ".lora_" not in name or torch.equal(weight, originals[name])
    own.set_adapters(["ink"], [0.5])
    assert residual_of(learn(own)).recipe["adapters"]["ink"]["scales"] != adapter["scales"]  # type: ignore[index]
    own.unload_lora_weights()
    assert residual_of(learn(own)).to_bytes() == plain.to_bytes()


def test_a_checkpoint_goes_on_only_with_the_same_lora(own: Any, tmp_path: Path) -> None:
    stop_after(learn(own, checkpoint=tmp_path / "state"))
    save_lora(own, tmp_path)
    own.load_lora_weights(tmp_path, adapter_name="ink")
    with pytest.raises(LearningError, match="ink"):
        learn(own, checkpoint=tmp_path / "state", resume=True)


@pytest.mark.parametrize("name", ["sd2-base", "sdxl"])
@pytest.mark.parametrize("recipe", [RECIPE, DIRECT], ids=["tuned", "direct"])
def test_offloaded_models_learn_the_same_and_are_offloaded_again(
    folders: dict[str, Path], opened: dict[str, Any], name: str, recipe: Recipe
) -> None:
    pipeline = open_pipeline(str(folders[name]), device="cpu")
    pipeline.enable_model_cpu_offload(device="cpu")  # moves nothing, but hooks every model as on a GPU
    last = finish(learn(pipeline, recipe, save_memory=True))
    assert last.residual.to_bytes() == residual_of(learn(opened[name], recipe)).to_bytes()
    hooked = [pipeline.unet, pipeline.vae, pipeline.text_encoder]
    assert all(type(each._hf_hook).__name__ == "CpuOffload" for each in hooked)
    assert not any(hasattr(each, "_hf_hook") for each in last.tuned_encoders)


@pytest.mark.parametrize("save_memory", [False, True])
def test_drawing_in_another_thread_changes_no_bit(small: Any, save_memory: bool) -> None:
    expected = residual_of(learn(small)).to_bytes()
    finished = threading.Event()
    errors: list[BaseException] = []
    inner = copy.copy(small)
    vars(inner)["scheduler"] = copy.deepcopy(small.scheduler)

    def draw() -> None:
        try:
            while not finished.is_set():
                with conditioned(inner, "a {cat}", subjects={"cat": "cat"}, layout=LAYOUT) as inputs:
                    inner(**inputs, num_inference_steps=3, height=64, width=64, output_type="np")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        found = [residual_of(learn(small, save_memory=save_memory)).to_bytes() for _ in range(3)]
    finally:
        finished.set()
        thread.join()
    assert errors == []
    assert found == [expected] * 3


def test_an_enclosing_block_changes_no_bit(small: Any) -> None:
    expected = residual_of(learn(small)).to_bytes()
    inner = copy.copy(small)
    vars(inner)["scheduler"] = copy.deepcopy(small.scheduler)
    with conditioned(inner, "a {cat}", subjects={"cat": "cat"}, layout=LAYOUT) as inputs:
        assert residual_of(learn(small)).to_bytes() == expected
        assert residual_of(learn(small, save_memory=True)).to_bytes() == expected
        inner(**inputs, num_inference_steps=2, height=64, width=64, output_type="np")
        steps = learn(small)
        next(steps)
    assert residual_of(steps).to_bytes() == expected


def test_a_caller_without_gradients_learns_the_same(small: Any) -> None:
    expected = residual_of(learn(small)).to_bytes()
    with torch.no_grad():
        assert residual_of(learn(small)).to_bytes() == expected


# What it is refused on, at the call


def compiled(pipeline: Any) -> Any:
    pipeline.unet.compile()
    return pipeline


def compiled_blocks(pipeline: Any) -> Any:
    pipeline.unet.mid_block.compile()
    return pipeline


def wrapped_by_the_compiler(pipeline: Any) -> Any:
    pipeline.unet = torch.compile(pipeline.unet)
    return pipeline


def distilled(pipeline: Any) -> Any:
    config = {**pipeline.unet.config, "time_cond_proj_dim": 8}
    return with_parts(pipeline, unet=diffusers.UNet2DConditionModel.from_config(config))


def inpainting(pipeline: Any) -> Any:
    unet = diffusers.UNet2DConditionModel.from_config({**pipeline.unet.config, "in_channels": 9})
    return diffusers.StableDiffusionInpaintPipeline(
        **{**pipeline.components, "unet": unet}, requires_safety_checker=False
    )


def flow_matching(pipeline: Any) -> Any:
    return with_parts(pipeline, scheduler=diffusers.FlowMatchEulerDiscreteScheduler())


def without_weights(pipeline: Any) -> Any:
    return with_parts(pipeline, text_encoder=copy.deepcopy(pipeline.text_encoder).to("meta"))


def padded_at_the_left(pipeline: Any) -> Any:
    tokenizer = copy.deepcopy(pipeline.tokenizer)
    tokenizer.padding_side = "left"
    return with_parts(pipeline, tokenizer=tokenizer)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (padded_at_the_left, "tokenizer pads at the left"),
        (compiled, "compiled"),
        (compiled_blocks, "compiled"),
        (wrapped_by_the_compiler, "compiled"),
        (distilled, "base model"),
        (inpainting, "9 channels.*text-to-image model"),
        (flow_matching, "FlowMatchEulerDiscreteScheduler"),
        (without_weights, "enable_model_cpu_offload"),
    ],
)
def test_models_that_can_not_be_learned_on(own: Any, change: Callable[[Any], Any], told: str) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        learn(change(own))
    assert len(str(caught.value).splitlines()) == 1


# In less memory


def test_activations_are_made_again_only_while_it_learns(own: Any) -> None:
    ran: list[int] = []
    own.unet.up_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: ran.append(1))
    recipe = dataclasses.replace(DIRECT, steps=2)
    usual, once = residual_of(learn(own, recipe)), len(ran)
    saving, both = residual_of(learn(own, recipe, save_memory=True)), len(ran)
    assert (once, both - once) == (2, 4)
    assert usual.to_bytes() == saving.to_bytes()
    assert not own.unet.is_gradient_checkpointing


def test_a_unet_that_makes_them_again_already_goes_on(own: Any) -> None:
    own.unet.enable_gradient_checkpointing()
    finish(learn(own, DIRECT, save_memory=True))
    assert own.unet.is_gradient_checkpointing


def test_the_unet_is_restored_after_an_error(own: Any) -> None:
    own.unet.conv_in.weight.data *= float("nan")
    own.unet.conv_in.requires_grad_()
    with pytest.raises(LearningError, match="loss nan"):
        finish(learn(own, DIRECT, save_memory=True))
    assert not own.unet.is_gradient_checkpointing
    assert own.unet.conv_in.weight.requires_grad
