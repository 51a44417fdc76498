"""`Cones2Pipeline`: the front door, on real, tiny models."""

import inspect
import threading
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from PIL import Image

from cones2.call import Cones2Output, warn_of_little_attention
from cones2.conditioning import conditioned
from cones2.errors import (
    Cancelled,
    Cones2Error,
    Cones2Warning,
    LayoutError,
    LibraryError,
    ModelError,
    PromptError,
    ResidualError,
    SettingsError,
)
from cones2.examples import EXAMPLES
from cones2.layout import Box, Layout
from cones2.library import Library
from cones2.monitor import AttentionReading
from cones2.pipeline import Cones2Pipeline
from cones2.schedulers import SCHEDULERS, make_scheduler
from cones2.subjects import Subject
from subjects_for_tests import LAYOUT, PROMPT, TEXT, residual_for, with_own_scheduler

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 3}
PLAIN = {"rex": "cat", "cup": "teapot"}


@pytest.fixture
def pipe(tiny: Any) -> Cones2Pipeline:
    """A pipeline around the shared models."""
    return Cones2Pipeline(with_own_scheduler(tiny))


def drawn(pipe: Cones2Pipeline, prompt: str = PROMPT, *layout: Any, **options: Any) -> np.ndarray:
    result = pipe(prompt, *layout, **{"seed": 0, **SMALL, "output_type": "np", **options})
    return np.asarray(result.images)


def diffusers_own(pipe: Cones2Pipeline, seeds: tuple[int, ...] = (0,), **options: Any) -> np.ndarray:
    own = with_own_scheduler(pipe.pipeline)
    if hasattr(own.scheduler, "noise_sampler_seed"):  # diffusers' generators do not reach its noise
        own.scheduler.noise_sampler_seed = list(seeds)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    own.enable_vae_slicing() if hasattr(own, "enable_vae_slicing") else own.vae.enable_slicing()
    try:
        call = {"prompt": TEXT, **SMALL, **options, "num_images_per_prompt": len(seeds)}
        return np.asarray(own(**call, generator=generators, output_type="np").images)
    finally:
        own.vae.disable_slicing()


# Without subjects: diffusers' own picture, bit for bit


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde's, in diffusers' pipeline
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws_diffusers_own_picture(pipe: Cones2Pipeline, scheduler: str) -> None:
    pipe.scheduler = make_scheduler(scheduler, pipe.scheduler)
    own = diffusers_own(pipe, (5,), num_inference_steps=4)
    assert np.array_equal(drawn(pipe, TEXT, seed=5, num_inference_steps=4), own)
    placed = drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN, seed=5, num_inference_steps=4)
    assert np.isfinite(placed).all()
    assert np.abs(placed - own).max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"guidance_rescale": 0.7},
        {"negative_prompt": "a dog"},
        {"height": 72, "width": 136},
        {"eta": 0.5},
        {"cross_attention_kwargs": {}},
        {"latents": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9))},
    ],
)
def test_arguments_act_as_in_diffusers(pipe: Cones2Pipeline, options: dict[str, Any]) -> None:
    assert np.array_equal(drawn(pipe, TEXT, **options), diffusers_own(pipe, **options))


ACTING = {
    *("prompt", "height", "width", "num_inference_steps", "timesteps", "guidance_scale", "negative_prompt", "eta"),
    *("num_images_per_prompt", "generator", "latents", "output_type", "cross_attention_kwargs", "guidance_rescale"),
    *("clip_skip", "callback_on_step_end", "callback_on_step_end_tensor_inputs"),
}
PASSED_ON_AS_THEY_ARE = {"sigmas", "ip_adapter_image", "ip_adapter_image_embeds"}
REFUSED = {"prompt_embeds", "negative_prompt_embeds", "return_dict"}


def test_each_argument_of_diffusers_is_known_here() -> None:
    taken = set(inspect.signature(diffusers.StableDiffusionPipeline.__call__).parameters) - {"self", "kwargs"}
    assert taken == ACTING | PASSED_ON_AS_THEY_ARE | REFUSED


@pytest.mark.parametrize("name", [*sorted(REFUSED), "callback", "no_such_argument"])
def test_other_arguments_are_refused_by_name(pipe: Cones2Pipeline, name: str) -> None:
    with pytest.raises(SettingsError, match=name[:100]):
        drawn(pipe, TEXT, **{name: None})


def test_output_types(pipe: Cones2Pipeline) -> None:
    assert isinstance(pipe(TEXT, seed=0, **SMALL).images[0], Image.Image)
    assert pipe(TEXT, seed=0, **SMALL, output_type="latent").images.shape == (1, 4, 8, 8)


# Seeds and batches


def test_seeds_count_up_and_lists_name_each(pipe: Cones2Pipeline) -> None:
    four = pipe(TEXT, seed=7, num_images_per_prompt=4, **SMALL)
    named = pipe(TEXT, seed=[7, 8, 9, 10], **SMALL)
    assert [record["seed"] for record in four.records] == [7, 8, 9, 10]
    assert all(map(same, four.images, named.images))
    assert not same(four.images[0], four.images[1])
    assert np.array_equal(drawn(pipe, TEXT, seed=[3, 1]), diffusers_own(pipe, (3, 1)))


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


def test_a_seed_by_chance_is_told(pipe: Cones2Pipeline) -> None:
    first, second = (pipe(TEXT, **SMALL) for _ in range(2))
    assert first.records[0]["seed"] != second.records[0]["seed"]
    assert same(pipe(TEXT, seed=first.records[0]["seed"], **SMALL).images[0], first.images[0])


def test_a_generator_means_what_it_means_in_diffusers(pipe: Cones2Pipeline) -> None:
    own, both = with_own_scheduler(pipe.pipeline), {"num_images_per_prompt": 2, "output_type": "latent", **SMALL}
    expected = own(TEXT, **both, generator=torch.Generator().manual_seed(4)).images
    assert torch.equal(pipe(TEXT, **both, generator=torch.Generator().manual_seed(4)).images, expected)


def test_timesteps_of_one_s_own(pipe: Cones2Pipeline) -> None:
    pipe.scheduler = make_scheduler("ddpm", pipe.scheduler)
    options: dict[str, Any] = {"timesteps": [900, 500, 100], "num_inference_steps": 3}
    assert np.array_equal(drawn(pipe, TEXT, **options), diffusers_own(pipe, **options))
    placed = drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN, guided_steps=1, **options)
    assert np.abs(placed - drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN, **options)).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"seed": -1}, "-1"),
        ({"seed": True}, "True"),
        ({"seed": 2**63}, str(2**63)),
        ({"seed": [0, 2**70]}, str(2**70)),
        ({"seed": 2**63 - 1, "num_images_per_prompt": 2}, str(2**63)),
        ({"num_images_per_prompt": 10**9}, "from 1 to 10000"),
        ({"seed": [1] * 10_001}, "10001 seeds"),
        ({"seed": []}, "no seed"),
        ({"seed": [1, 2], "num_images_per_prompt": 3}, "2 seeds"),
        ({"num_images_per_prompt": 0}, "0"),
        ({"seed": 1, "generator": torch.Generator()}, "generator"),
    ],
)
def test_seeds_that_make_no_sense(pipe: Cones2Pipeline, options: dict[str, Any], value: str) -> None:
    with pytest.raises(SettingsError, match=value):
        pipe(TEXT, **SMALL, **options)


@pytest.mark.parametrize("steps", [0, -1, 1001, 10**10, True])
def test_steps_that_make_no_sense(pipe: Cones2Pipeline, steps: Any) -> None:
    with pytest.raises(SettingsError, match=f"num_inference_steps {steps} can't be used"):
        pipe(TEXT, **{**SMALL, "num_inference_steps": steps})


@pytest.mark.parametrize("scheduler", ["ddim", "euler-a", "dpm++", "dpm++-sde"])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_a_picture_does_not_depend_on_its_batch_mates(
    pipe: Cones2Pipeline, scheduler: str, guidance_scale: float
) -> None:
    pipe.scheduler = make_scheduler(scheduler, pipe.scheduler)
    pipe.load_subject("rex", residual_for(pipe.pipeline))
    options = {"subjects": {"cup": "teapot"}, "guidance_scale": guidance_scale, "output_type": "latent"}
    batch = drawn(pipe, PROMPT, LAYOUT, seed=[4, 5, 6], **options)
    for row, seed in enumerate((4, 5, 6)):
        alone = drawn(pipe, PROMPT, LAYOUT, seed=seed, **options)[0]
        assert np.linalg.norm(batch[row] - alone) <= 1e-4 * np.linalg.norm(alone)
    assert not np.allclose(batch[0], batch[1], atol=0.1)


def test_global_state_is_left_alone(pipe: Cones2Pipeline) -> None:
    before, scheduler = torch.random.get_rng_state(), pipe.scheduler
    steps = scheduler.num_inference_steps
    drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert pipe.scheduler is scheduler
    assert scheduler.num_inference_steps == steps
    assert pipe.pipeline.vae.use_slicing is False


# Subjects


def test_a_subject_is_loaded_from_anything_that_holds_one(pipe: Cones2Pipeline, tmp_path: Path) -> None:
    residual = residual_for(pipe.pipeline)
    residual.save(tmp_path / "rex.safetensors")
    Library.open().add("fido", residual)
    for source in (residual, Subject("cat", residual), tmp_path / "rex.safetensors", str(tmp_path / "rex.safetensors")):
        pipe.load_subject("rex", source)
        assert pipe.subjects["rex"].residual.sha256 == residual.sha256  # type: ignore[union-attr]
    pipe.load_subject("dog", "fido", strength=0.5, during=(0.0, 0.5))
    assert pipe.subjects["dog"].strength == 0.5
    pipe.load_subject("momo", EXAMPLES["momo"])
    pipe.load_subject("kiki", "kiki")  # an example's name
    assert set(pipe.subjects) == {"rex", "dog", "momo", "kiki"}
    pipe.unload_subject("momo")
    assert "momo" not in pipe.subjects
    with pytest.raises(SettingsError, match="'momo'"):
        pipe.unload_subject("momo")
    with pytest.raises(LibraryError, match="nobody"):
        pipe.load_subject("rex", "nobody")
    with pytest.raises(ResidualError, match=r"none\.safetensors"):
        pipe.load_subject("rex", tmp_path / "none.safetensors")
    with pytest.raises(SettingsError, match="'rex' is 3"):
        pipe.load_subject("rex", 3)


def test_loaded_subjects_take_part_where_they_are_mentioned(pipe: Cones2Pipeline) -> None:
    plain = drawn(pipe, TEXT)
    pipe.load_subject("rex", residual_for(pipe.pipeline))
    assert np.array_equal(drawn(pipe, TEXT), plain)
    taught = drawn(pipe, PROMPT, subjects={"cup": "teapot"})
    assert np.abs(taught - plain).max() > 1e-3
    assert np.array_equal(drawn(pipe, PROMPT, subjects=PLAIN), plain)  # this call's own goes first
    with pytest.raises(PromptError, match="cup"):
        drawn(pipe, "a {rex}", subjects={"cup": "teapot"})
    with pytest.raises(PromptError, match="'cup'"):
        drawn(pipe, PROMPT)


def test_timed_residuals_and_negative_texts(pipe: Cones2Pipeline) -> None:
    residual = residual_for(pipe.pipeline)
    found = {}
    changes: dict[str, dict[str, Any]] = {
        "always": {},
        "first": {"during": (0.0, 0.5)},
        "negative": {"negative": "fog"},
    }
    for name, more in changes.items():
        pipe.load_subject("rex", residual, **more)
        found[name] = drawn(pipe, PROMPT, LAYOUT, subjects={"cup": "teapot"})
    assert np.abs(found["first"] - found["always"]).max() > 1e-3
    assert np.abs(found["negative"] - found["always"]).max() > 1e-3


# Layouts


def test_a_layout_is_given_in_any_form(pipe: Cones2Pipeline, tmp_path: Path) -> None:
    boxes = {"rex": (0.0, 0.25, 0.5, 1.0), "cup": (0.5, 0.5, 1.0, 1.0)}
    LAYOUT.save(tmp_path / "layout.json")
    expected = drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN)
    for layout in (boxes, {"rex": [boxes["rex"]], "cup": Box(*boxes["cup"])}, tmp_path / "layout.json"):
        assert np.array_equal(drawn(pipe, PROMPT, layout, subjects=PLAIN), expected)
    for words in ("auto", {"rex": "left", "cup": "right"}):
        result = pipe(PROMPT, words, subjects=PLAIN, seed=0, **SMALL)
        assert result.layout is not None
        assert set(result.layout.names) == {"rex", "cup"}
    with pytest.raises(LayoutError, match="'ball'"):
        drawn(pipe, PROMPT, {"ball": "left"}, subjects=PLAIN)
    with pytest.raises(LayoutError, match="nowhere"):
        drawn(pipe, PROMPT, {"rex": "nowhere"}, subjects=PLAIN)


def test_the_order_of_subjects_is_nothing(pipe: Cones2Pipeline) -> None:
    one = drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN)
    turned = Layout(dict(reversed(list(LAYOUT.regions.items()))))
    assert np.array_equal(drawn(pipe, PROMPT, turned, subjects=dict(reversed(PLAIN.items()))), one)


def test_attention_is_measured_for_each_picture(pipe: Cones2Pipeline) -> None:
    result = pipe(PROMPT, LAYOUT, subjects=PLAIN, seed=[0, 1], measure_attention=True, **SMALL)
    assert [[reading.subject for reading in readings] for readings in result.attention] == [["rex", "cup"]] * 2
    with pytest.raises(SettingsError):
        pipe(PROMPT, subjects=PLAIN, seed=0, measure_attention=True, **SMALL)


# Steps


def test_the_callback_is_diffusers_own(pipe: Cones2Pipeline) -> None:
    seen: list[tuple[int, set[str]]] = []

    def watch(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, set(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    names = ["latents", "prompt_embeds"]
    images = drawn(pipe, TEXT, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert seen == [(step, set(names)) for step in range(3)]
    assert np.abs(images - drawn(pipe, TEXT)).max() > 1e-3


def test_diffusers_callback_that_ends_guidance(pipe: Cones2Pipeline) -> None:
    def end() -> Any:
        return SDCFGCutoffCallback(cutoff_step_ratio=0.4)

    steps: dict[str, Any] = {"num_inference_steps": 5}
    assert np.array_equal(
        drawn(pipe, TEXT, callback_on_step_end=end(), **steps),
        diffusers_own(pipe, callback_on_step_end=end(), **steps),
    )
    placed = drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN, callback_on_step_end=end(), **steps)
    assert np.abs(placed - drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN, **steps)).max() > 1e-3


def test_cancelling_leaves_no_picture(pipe: Cones2Pipeline) -> None:
    def cancel(*_: Any) -> dict[str, Any]:
        pipe.cancel()
        return {}

    def interrupt(pipeline: Any, *_: Any) -> dict[str, Any]:
        pipeline._interrupt = True
        return {}

    def fail(*_: Any) -> dict[str, Any]:
        return {"none": 1 / 0}

    for callback in (cancel, interrupt, fail):
        with pytest.raises(Cancelled):
            drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN, callback_on_step_end=callback)
    assert "forward" not in vars(pipe.pipeline.unet)
    drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN)  # and the next one is drawn
    with pytest.raises(KeyboardInterrupt):
        drawn(pipe, TEXT, callback_on_step_end=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))


def test_numbers_that_overflow_are_an_error(pipe: Cones2Pipeline) -> None:
    def spoil(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * float("nan")} if step == 0 else {}

    with pytest.raises(SettingsError, match="NaN"):
        drawn(pipe, TEXT, callback_on_step_end=spoil)


def test_one_call_of_the_denoiser_a_step(pipe: Cones2Pipeline) -> None:
    rows: list[int] = []
    hook = pipe.pipeline.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN, seed=[0, 1])
        drawn(pipe, PROMPT, LAYOUT, subjects=PLAIN, seed=[0, 1], guidance_scale=1.0)
    finally:
        hook.remove()
    assert rows == [4] * 3 + [2] * 3


def test_two_threads_draw_with_one_pipeline(pipe: Cones2Pipeline) -> None:
    layouts = [LAYOUT, {"rex": (0.5, 0.0, 1.0, 0.5)}, None]
    expected = [drawn(pipe, PROMPT, layout, subjects=PLAIN) for layout in layouts]
    found: list[list[np.ndarray]] = [[] for _ in layouts]

    def work(index: int) -> None:
        for _ in range(3):
            found[index].append(drawn(pipe, PROMPT, layouts[index], subjects=PLAIN))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for results, right in zip(found, expected, strict=True):
        assert len(results) == 3
        assert all(np.allclose(result, right, atol=1e-5) for result in results)


# Wrapping


PASSED_ON = set(dir(diffusers.StableDiffusionPipeline)) - set(Cones2Pipeline.__dict__)


@pytest.mark.parametrize("name", sorted(name for name in PASSED_ON if not name.startswith("_")))
def test_public_names_of_diffusers_are_passed_on_or_refused(pipe: Cones2Pipeline, name: str) -> None:
    refused = {"from_pipe", "from_single_file", "from_config", "download", "load_config", "extract_init_dict"}
    if name in refused:
        with pytest.raises(AttributeError, match=name[:100]):
            getattr(pipe, name)
    elif hasattr(pipe.pipeline, name):
        getattr(pipe, name)
        assert name in dir(pipe)


def test_methods_that_return_the_pipeline_return_the_wrapper(pipe: Cones2Pipeline) -> None:
    assert pipe.to("cpu") is pipe
    assert pipe.components.keys() == pipe.pipeline.components.keys()
    pipe.scheduler = scheduler = make_scheduler("euler", pipe.scheduler)
    assert pipe.pipeline.scheduler is scheduler
    with pytest.raises(AttributeError, match="no_such_thing"):
        pipe.no_such_thing  # noqa: B018
    with pytest.raises(AttributeError, match="no_such_thing"):
        pipe.no_such_thing = 1
    assert Cones2Pipeline(pipe).pipeline is pipe.pipeline
    assert len(repr(pipe)) < 200
    with pytest.raises(ModelError, match="str"):
        Cones2Pipeline("mini")


def test_img2img_and_inpainting_by_the_same_call(pipe: Cones2Pipeline) -> None:
    photo, mask = Image.effect_noise((64, 64), 60).convert("RGB"), Image.new("L", (64, 64), 255)
    for kind, more in (
        (diffusers.StableDiffusionImg2ImgPipeline, {"image": photo, "strength": 0.7}),
        (diffusers.StableDiffusionInpaintPipeline, {"image": photo, "mask_image": mask, "height": 64, "width": 64}),
    ):
        wrapped = Cones2Pipeline(kind(**pipe.pipeline.components, requires_safety_checker=False))
        wrapped.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {"subjects": PLAIN, "seed": 1, "output_type": "np", "num_inference_steps": 4, **more}
        plain, placed = (wrapped(PROMPT, layout, **options).images for layout in (None, LAYOUT))
        assert np.abs(plain - placed).max() > 1e-3


def test_stable_diffusion_xl_and_flux(opened: dict[str, Any]) -> None:
    for family in ("sdxl", "flux1"):
        pipe = Cones2Pipeline(with_own_scheduler(opened[family]))
        pipe.load_subject("rex", residual_for(pipe.pipeline))
        plain = drawn(pipe, TEXT)
        usual: dict[str, Any] = {"guidance_scale": 7.5} if family == "sdxl" else {}
        assert np.array_equal(plain, diffusers_own(pipe, **usual))
        taught = drawn(pipe, PROMPT, subjects={"cup": "teapot"})
        placed = drawn(pipe, PROMPT, LAYOUT, subjects={"cup": "teapot"})
        assert np.abs(taught - plain).max() > 1e-3
        assert np.abs(placed - taught).max() > 1e-5
    xl = Cones2Pipeline(with_own_scheduler(opened["sdxl"]))
    options: dict[str, Any] = {"prompt_2": "a dog", "negative_prompt": "fog", "negative_prompt_2": "rain"}
    assert np.array_equal(drawn(xl, TEXT, **options), diffusers_own(xl, guidance_scale=7.5, **options))
    clipped: dict[str, Any] = {"clip_skip": 1}  # diffusers 0.42 can't do it on SD 1.x under transformers 5
    assert np.array_equal(drawn(xl, TEXT, **clipped), diffusers_own(xl, guidance_scale=7.5, **clipped))
    assert np.abs(drawn(xl, TEXT, **clipped) - drawn(xl, TEXT)).max() > 1e-3
    with pytest.raises(SettingsError, match="prompt_2"):
        drawn(xl, PROMPT, subjects=PLAIN, prompt_2="a dog")
    with pytest.raises(SettingsError, match="prompt_2"), conditioned(xl, PROMPT, subjects=PLAIN, prompt_2="a dog"):
        pass


@pytest.mark.parametrize("name", ["prompt_2", "negative_prompt_2", "prompt_3", "negative_prompt_3"])
def test_texts_for_single_encoders_are_checked_as_prompts(opened: dict[str, Any], name: str) -> None:
    pipe = Cones2Pipeline(with_own_scheduler(opened["sd3"]))
    for text, said in (("half \ud83d", "half a character"), ("a (dog:1.2)", "weight"), (["a", "b"], "one text")):
        with pytest.raises(PromptError, match=said):
            drawn(pipe, TEXT, **{name: text})


def test_a_block_takes_a_wrapped_pipeline_too(tiny: Any) -> None:
    own = with_own_scheduler(tiny)
    with (
        conditioned(Cones2Pipeline(own), PROMPT, subjects=PLAIN) as wrapped,
        conditioned(with_own_scheduler(tiny), PROMPT, subjects=PLAIN) as inner,
    ):
        assert torch.equal(wrapped["prompt_embeds"], inner["prompt_embeds"])


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, "4"])
def test_numbers_of_steps_that_make_no_sense(tiny: Any, steps: Any) -> None:
    with pytest.raises(SettingsError, match=rf"num_inference_steps {steps!r}"):
        Cones2Pipeline(with_own_scheduler(tiny))("a cat", num_inference_steps=steps)


def test_what_a_model_is_made_for(small_folder: Path) -> None:
    mini = Cones2Pipeline.from_pretrained("mini", device="cpu")
    assert mini.facts.guidance_scale == 4.0
    assert mini.facts.recipe == "direct"
    with pytest.warns(Cones2Warning, match="'zeppelin'"):
        result = mini("a zeppelin", seed=0, num_inference_steps=1)
    assert result.images[0].size == (128, 128)
    assert result.records[0]["guidance_scale"] == 4.0
    plain = Cones2Pipeline.from_pretrained(small_folder, device="cpu")
    assert plain.facts.lexicon is None
    assert plain(TEXT, seed=0, num_inference_steps=1).records[0]["guidance_scale"] == 7.5


def test_pictures_far_too_large_and_great_strengths_are_told(pipe: Cones2Pipeline, small_folder: Path) -> None:
    small = Cones2Pipeline.from_pretrained(small_folder, device="cpu")
    with pytest.warns(Cones2Warning, match="learned on 64x64 pixels: at 128x96 ") as caught:
        small("a dog", height=96, width=128, num_inference_steps=1)
    assert len(caught) == 1
    small("a dog", height=96, width=96, num_inference_steps=1)  # warnings are errors
    changing = Cones2Pipeline(diffusers.StableDiffusionImg2ImgPipeline.from_pipe(with_own_scheduler(small.pipeline)))
    with pytest.warns(Cones2Warning, match="learned on 64x64 pixels: at 128x128 "):
        changing("a dog", image=Image.new("RGB", (128, 128)), num_inference_steps=2)
    with pytest.warns(Cones2Warning, match=r"strength 2\.5 of rex") as caught:
        pipe(
            "a {rex} and a {ted}",
            subjects={"rex": Subject("dog", strength=2.5), "ted": Subject("cat", strength=2.0)},
            **SMALL,
        )
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("box", "is_told"), [((0, 0, 0.4, 1), True), ((0, 0.4, 1, 0.8), True), ((0, 0, 0.4, 0.4), False)]
)
def test_a_place_of_another_shape_than_its_subject_is_told(box: Any, is_told: bool, recwarn: Any) -> None:
    mini = Cones2Pipeline.from_pretrained("mini", device="cpu")
    mini("a {rex}", {"rex": box}, subjects={"rex": "dog"}, seed=0, num_inference_steps=1, output_type="latent")
    assert ["'rex', a dog" in str(each.message) for each in recwarn] == [True] * is_told


@pytest.mark.parametrize("side", [{"height": 64}, {"width": 64}])
def test_of_a_side_alone_the_other_is_the_models_own_also_for_places(side: dict[str, Any], recwarn: Any) -> None:
    mini = Cones2Pipeline.from_pretrained("mini", device="cpu")
    call: dict[str, Any] = {"subjects": {"rex": "dog"}, "seed": 0, "num_inference_steps": 1, "output_type": "latent"}
    wide, high = (128, 64) if "height" in side else (64, 128)
    given = mini("a {rex}", {"rex": "left"}, **call, **side)
    assert given.layout == mini("a {rex}", {"rex": "left"}, **call, width=wide, height=high).layout
    assert not recwarn.list  # no word of a place of another shape


def test_places_in_words_have_the_shape_of_the_image_that_is_changed() -> None:
    mini = Cones2Pipeline.from_pretrained("mini", device="cpu")
    changing = diffusers.StableDiffusionImg2ImgPipeline(**mini.components, requires_safety_checker=False)
    call: dict[str, Any] = {"subjects": {"rex": "dog"}, "seed": 0, "num_inference_steps": 2, "output_type": "latent"}
    changed = Cones2Pipeline(changing)("a {rex}", {"rex": "left"}, image=Image.new("RGB", (256, 128)), **call)
    assert changed.images.shape[2:] == (16, 32)
    assert changed.layout == mini("a {rex}", {"rex": "left"}, **call, width=256, height=128).layout


def test_a_subject_that_got_little_attention_is_told_once() -> None:
    layout = Layout.of({"rex": (0, 0, 0.5, 1), "ted": (0.5, 0, 1, 1)})
    heat = torch.full((4, 4), 1 / 16)
    readings = [[AttentionReading("rex", 0.3, {}, 0.7, heat), AttentionReading("ted", 0.4, {}, 0.6, heat)]] * 2
    with pytest.warns(Cones2Warning, match="region of rex: ") as caught:
        warn_of_little_attention(readings, layout)
    assert len(caught) == 1


def test_outputs_tell_what_they_are(pipe: Cones2Pipeline, tmp_path: Path) -> None:
    result = pipe(TEXT, seed=0, **SMALL)
    assert isinstance(result, Cones2Output)
    assert len(repr(result)) < 200
    result.save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").is_file()


def test_a_name_that_no_disk_takes_is_our_error(pipe: Cones2Pipeline) -> None:
    name = "x" * 1000
    with pytest.raises(Cones2Error, match=name[:100]):
        pipe.load_subject("rex", Path(name))
    with pytest.raises(Cones2Error, match=name[:100]):
        pipe.learn(name, "dog", progress=False)
    with pytest.raises(Cones2Error, match=name[:100]):
        pipe(PROMPT, name, subjects=PLAIN, seed=0, **SMALL)
    with pytest.raises(Cones2Error, match=name[:100]):
        Cones2Pipeline.from_pretrained(name)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_types_are_our_errors(pipe: Cones2Pipeline) -> None:
    with pytest.raises(PromptError, match="prompt is a list"):
        pipe([TEXT], seed=0, **SMALL)  # type: ignore[arg-type]
    with pytest.raises(LayoutError):
        pipe(PROMPT, 3, subjects=PLAIN, seed=0, **SMALL)
    with pytest.raises(SettingsError, match="'x'"):
        pipe(TEXT, seed="x", **SMALL)  # type: ignore[arg-type]
