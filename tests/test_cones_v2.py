"""The authors' own loop and configs: they end in the latents of the authors' own runs."""

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from cones2.cones_v2.config import ConesV2Config, read_colours
from cones2.cones_v2.loop import recurrent_euler
from cones2.cones_v2.tensor import import_residual
from cones2.errors import (
    Cancelled,
    Cones2Error,
    Cones2Warning,
    LayoutError,
    ModelError,
    PromptError,
    ResidualError,
    SettingsError,
)
from cones2.layout import Layout, Region
from cones2.models import open_pipeline
from cones2.pipeline import Cones2Pipeline
from cones2.presets import PRESETS
from cones2.schedulers import make_scheduler
from cones2.subjects import Subject
from runs import in_dtype

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

GOLDEN = Path(__file__).parent / "data" / "golden"
CONFIG = GOLDEN / "official.json"
CAT, TEAPOT = (0, 128, 255), (0, 200, 0)
LAYOUT = Layout.of({"rex": (0.0, 0.25, 0.5, 1.0), "cup": (0.5, 0.5, 1.0, 1.0)})
PROMPT = "a {rex} and a {cup} on the beach"
PLAIN = {"rex": "cat", "cup": "teapot"}
SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 4, "seed": 0}
AUTHORS: dict[str, Any] = {"sampler": "cones_v2", "preset": "cones_v2", "guidance_scale": 7.5}


@pytest.fixture(scope="module")
def pipe(tiny: Any) -> Cones2Pipeline:
    own = in_dtype(tiny, torch.float32)
    own.set_progress_bar_config(disable=True)
    return Cones2Pipeline(own)


def latents_of(pipe: Cones2Pipeline, prompt: str = PROMPT, **options: Any) -> torch.Tensor:
    """The latents after the last run of a step."""
    last: list[torch.Tensor] = []

    def keep(_: Any, __: int, ___: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        last[:] = [tensors["latents"]]
        return {}

    options = {**SMALL, "subjects": PLAIN, "layout": LAYOUT, "callback_on_step_end": keep, **options}
    assert all(isinstance(image, Image.Image) for image in draw(pipe, prompt, **options).images)
    return last[0]


def draw(pipe: Cones2Pipeline, prompt: str, **options: Any) -> Any:
    return pipe(prompt, **{**AUTHORS, **options})


def assert_near(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert (found - expected).norm() <= tolerance * expected.norm()


# The loop, against the authors' own runs


@pytest.mark.parametrize("run", ["sampler", pytest.param("sampler_1of2", marks=pytest.mark.slow)])
def test_it_ends_in_the_latents_of_the_authors_own_run(pipe: Cones2Pipeline, run: str) -> None:
    with safe_open(GOLDEN / f"{run}.safetensors", "pt") as file:
        made, expected = file.metadata(), file.get_tensor("latents")
    boxes = json.loads(made["boxes"])
    found = latents_of(
        pipe,
        made["prompt"].replace("cat", "{cat}").replace("teapot", "{teapot}"),
        subjects={word: import_residual(pipe, GOLDEN / f"sampler_{word}.pt", word) for word in boxes},
        layout=boxes,
        seed=[int(made["seed"])],
        num_inference_steps=int(made["steps"]),
        guidance_scale=float(made["cfg"]),
        guided_steps=int(made["gsteps"]),
        height=None,
        width=None,
    )
    assert_near(found, expected)


@pytest.mark.slow  # the test of the command draws one of them
@pytest.mark.parametrize(("guided", "golden"), [(2, "sampler"), (1, "sampler_1of2")])
def test_a_config_runs_as_it_is(pipe: Cones2Pipeline, guided: int, golden: str, tmp_path: Path) -> None:
    request = requested(pipe, tmp_path, guidance_steps=guided)
    with safe_open(GOLDEN / f"{golden}.safetensors", "pt") as file:
        expected = file.get_tensor("latents")
    assert_near(latents_of(pipe, num_inference_steps=2, **{**request, "seed": 11}), expected)


def test_guided_steps_are_run_twice_in_one_batch(pipe: Cones2Pipeline) -> None:
    rows: list[int] = []
    told: list[tuple[int, int]] = []

    def tell(inner: Any, index: int, _: Any, __: Any) -> dict[str, Any]:
        told.append((index, inner.num_timesteps))
        return {}

    hook = pipe.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    options: dict[str, Any] = {**SMALL, "seed": (0, 1), "guided_steps": 1, "callback_on_step_end": tell}
    try:
        output = draw(pipe, PROMPT, subjects=PLAIN, layout=LAYOUT, **options)
    finally:
        hook.remove()
    assert rows == [4] * 5
    assert told == [(index, 5) for index in range(5)]
    assert [record["seed"] for record in output.records] == [0, 1]
    assert [image.size for image in output.images] == [(64, 64)] * 2


def test_without_guided_steps_it_is_plain_euler(pipe: Cones2Pipeline, tiny: Any) -> None:
    inner = in_dtype(tiny, torch.float32)
    vars(inner)["scheduler"] = make_scheduler("euler", tiny.scheduler)
    inner.set_progress_bar_config(disable=True)
    expected = inner(
        "a cat and a teapot on the beach",
        height=64,
        width=64,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    assert_near(latents_of(pipe, guided_steps=0), expected, 1e-5)
    assert_near(latents_of(pipe, guided_steps=0, layout=None), expected, 1e-5)


def test_more_guided_steps_than_steps_are_all(pipe: Cones2Pipeline) -> None:
    assert torch.equal(latents_of(pipe, guided_steps=50), latents_of(pipe))


def test_recurrence_does_not_need_a_layout(pipe: Cones2Pipeline) -> None:
    found, plain = (latents_of(pipe, layout=None, guided_steps=each) for each in (None, 0))
    assert not torch.allclose(found, plain, atol=1e-2)


def test_a_picture_does_not_depend_on_its_batch_mates(pipe: Cones2Pipeline) -> None:
    batch = latents_of(pipe, seed=(4, 5))
    for row, seed in enumerate((4, 5)):
        assert_near(batch[row], latents_of(pipe, seed=seed)[0])


def test_a_negative_text_is_left_without_guided_steps(pipe: Cones2Pipeline) -> None:
    foggy = {**PLAIN, "rex": Subject("cat", negative="fog")}
    found, plain = (latents_of(pipe, guided_steps=0, subjects=each) for each in (foggy, PLAIN))
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_other_unets_are_drawn_with(opened: dict[str, Any], family: str) -> None:
    inner = in_dtype(opened[family], torch.float32)
    inner.set_progress_bar_config(disable=True)
    own = Cones2Pipeline(inner)
    plain = latents_of(own, subjects={}, layout=None, prompt="a cat", guided_steps=0, negative_prompt="fog")
    vars(inner)["scheduler"] = make_scheduler("euler", inner.scheduler)
    expected = inner(
        "a cat",
        negative_prompt="fog",
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).images
    assert_near(plain, expected)
    assert not torch.allclose(latents_of(own), latents_of(own, guided_steps=0), atol=1e-2)


def test_nothing_is_left_behind(pipe: Cones2Pipeline) -> None:
    scheduler, processors = pipe.scheduler, pipe.unet.attn_processors
    latents_of(pipe, guidance_scale=1.0)
    assert pipe.scheduler is scheduler
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in processors.items())
    assert "forward" not in vars(pipe.unet)


def test_a_picture_is_drawn_again_from_its_record(pipe: Cones2Pipeline) -> None:
    output = draw(
        pipe,
        PROMPT,
        subjects=PLAIN,
        layout=LAYOUT,
        negative_prompt="fog",
        guided_steps=1,
        layout_scale=0.5,
        **{**SMALL, "seed": (3, 9)},
    )
    other = Cones2Pipeline(in_dtype(pipe.pipeline, torch.float32))
    other.scheduler = make_scheduler("euler-karras", pipe.scheduler)  # the record's is what counts
    again = other.redraw(output.records[1])
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(output.images[1]))
    assert again.records[0] == output.records[1]


def test_the_meter_measures(pipe: Cones2Pipeline) -> None:
    output = draw(pipe, PROMPT, subjects=PLAIN, layout=LAYOUT, measure_attention=True, **SMALL)
    (readings,) = output.attention
    assert {reading.subject for reading in readings} == {"rex", "cup"}


def test_cancelling_leaves_no_picture(pipe: Cones2Pipeline) -> None:
    def cancel(_: Any, step: int, *__: Any) -> dict[str, Any]:
        if step == 1:
            pipe.cancel()
        return {}

    def stop(inner: Any, *_: Any) -> dict[str, Any]:
        inner._interrupt = True
        return {}

    def fail(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    for callback in (cancel, stop, fail):
        with pytest.raises(Cancelled):
            latents_of(pipe, callback_on_step_end=callback)
    latents_of(pipe)


def test_a_callback_may_change_the_latents(pipe: Cones2Pipeline) -> None:
    def clear(_: Any, __: int, ___: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {"latents": torch.zeros_like(tensors["latents"])}

    grey = draw(pipe, "a cat", callback_on_step_end=clear, **SMALL)
    again = draw(pipe, "a dog", callback_on_step_end=clear, **{**SMALL, "seed": 5})
    assert np.array_equal(np.asarray(grey.images[0]), np.asarray(again.images[0]))


def test_nan_is_an_error(pipe: Cones2Pipeline) -> None:
    def spoil(_: Any, step: int, ___: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {"latents": tensors["latents"] * (float("nan") if step == 2 else 1)}

    with pytest.raises(SettingsError, match="NaN"):
        draw(pipe, "a cat", callback_on_step_end=spoil, **SMALL)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"height": 68}, "68"),
        ({"width": 8}, "8"),
        ({"num_inference_steps": 0}, "0"),
        ({"num_inference_steps": 1001}, "1001"),
        ({"seed": -1}, "-1"),
        ({"seed": ()}, "seed"),
        ({"eta": 0.5}, "eta"),
        ({"sampler": "euler"}, "'euler'"),
    ],
)
def test_arguments_that_make_no_sense(pipe: Cones2Pipeline, options: dict[str, Any], value: str) -> None:
    with pytest.raises(SettingsError, match=value):
        draw(pipe, "a cat", **{**SMALL, **options})


def test_models_of_another_family(opened: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="FluxPipeline"):
        draw(Cones2Pipeline(opened["flux1"]), "a cat", **SMALL)


# Euler's method


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guided", [0, 2, 3])
def test_a_perfect_model_is_followed_to_the_picture(prediction_type: str, guided: int) -> None:
    """A model that knows the picture takes Euler's steps straight to it, with or without noise put back between."""
    generator = torch.Generator().manual_seed(0)
    picture, noise = torch.randn(2, 1, 4, 8, 8, generator=generator)
    sigmas: tuple[float, ...] = (5.0, 2.0, 0.5, 0.0)
    seen: list[int] = []

    def predict(latents: torch.Tensor, step: int) -> torch.Tensor:
        sigma = sigmas[step]
        alpha, beta = 1 / math.hypot(sigma, 1), sigma / math.hypot(sigma, 1)
        known: torch.Tensor = (latents - alpha * picture) / beta
        velocity: torch.Tensor = alpha * known - beta * picture
        return velocity if prediction_type == "v_prediction" else known

    def after(step: int, latents: torch.Tensor) -> torch.Tensor:
        seen.append(step)
        return latents

    found = recurrent_euler(
        picture + sigmas[0] * noise,
        sigmas,
        guided=guided,
        prediction_type=prediction_type,
        predict=predict,
        draw_noise=lambda: torch.randn(picture.shape, generator=generator),
        after=after,
    )
    assert seen == sorted([*range(3), *range(guided)])
    torch.testing.assert_close(found, picture, rtol=1e-4, atol=1e-5)


def test_as_much_noise_is_put_back_as_a_step_takes_away() -> None:
    zeros = torch.zeros(1, 1, 256, 256)
    found = recurrent_euler(
        zeros,
        (5.0, 3.0),
        guided=1,
        prediction_type="epsilon",
        predict=lambda latents, _: torch.zeros_like(latents),
        draw_noise=lambda: torch.randn(zeros.shape, generator=torch.Generator().manual_seed(0)),
        after=lambda _, latents: latents,
    )
    assert found.std().item() == pytest.approx(4.0, rel=0.02)  # 3² + 4² = 5²


# Configs


def written(folder: Path, *others: object, **changes: Any) -> Path:
    """A config beside its files, with some of its values changed."""
    for file in ("sampler_cat.pt", "sampler_teapot.pt", "sampler_layout.png"):
        if not (folder / file).exists():
            (folder / file).symlink_to(GOLDEN / file)
    entry = json.loads(CONFIG.read_text())[0] | changes
    path = folder / "config.json"
    path.write_text(json.dumps([{key: value for key, value in entry.items() if value is not None}, *others]))
    return path


def requested(pipe: Any, folder: Path, **changes: Any) -> dict[str, Any]:
    return ConesV2Config.load(written(folder, **changes)).arguments(pipe)


def test_a_config_is_a_request_like_any_other(tiny: Any) -> None:
    found = ConesV2Config.load(CONFIG).arguments(tiny)
    subjects, layout = found.pop("subjects"), found.pop("layout")
    assert found.pop("prompt") == "a {cat} and a {teapot} on the snow"
    assert {name: subject.class_word for name, subject in subjects.items()} == {"cat": "cat", "teapot": "teapot"}
    with safe_open(GOLDEN / "sampler.safetensors", "pt") as file:
        for name, subject in subjects.items():
            assert subject.residual is not None
            assert torch.equal(subject.residual.parts[0].vector, file.get_tensor(f"residual.{name}"))
        boxes = Layout.of(json.loads(file.metadata()["boxes"]))
    acting = {**AUTHORS, "guided_steps": 1, "layout_scale": 1.0, "weight_negative": -1e8}
    assert found == {**acting, "seed": [0, 1, 2, 3], "height": 768, "width": 768}
    for side in (96, 48, 24, 12):
        for name, region in PRESETS["cones_v2"].weigh(boxes, side, side).items():
            assert torch.equal(PRESETS["cones_v2"].weigh(layout, side, side)[name].gain, region.gain)


def test_its_numbers_are_ours(tiny: Any, tmp_path: Path) -> None:
    colours = {"0,128,255": ["cat", 5], "0,200,0,255": ["teapot", 2.5]}
    found = requested(tiny, tmp_path, guidance_weight=0.05, weight_negative=-1e4, color_context=colours)
    assert found["layout_scale"] == pytest.approx(0.05 / 0.08)
    assert found["weight_negative"] == -1e4
    assert {name: region.weight for name, region in found["layout"].regions.items()} == {"cat": 2.0, "teapot": 1.0}


def test_what_it_leaves_out_is_as_their_readme_says(tiny: Any, tmp_path: Path) -> None:
    found = requested(tiny, tmp_path, guidance_steps=None, guidance_weight=None, weight_negative=None)
    assert (found["layout_scale"], found["guided_steps"], found["weight_negative"]) == (1.0, 50, -1e8)


def test_only_residuals_in_use_are_read(tiny: Any, tmp_path: Path) -> None:
    residuals = {"cat": "sampler_cat.pt", "teapot": "missing.pt", "barn": "/dev/zero"}
    found = requested(tiny, tmp_path, residual_dict=residuals, subject_list=[["cat", 2]])
    assert found["subjects"]["cat"].residual is not None
    assert found["subjects"]["teapot"].residual is None
    with pytest.raises(ResidualError, match=r"missing\.pt"):
        requested(tiny, tmp_path, residual_dict=residuals)


def test_paths_are_from_the_config_or_else_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    config = written(tmp_path / "there", layout="map.png", color_context={"0,128,255": ["cat", 2.5]})
    Image.new("RGB", (8, 8)).save(tmp_path / "here" / "map.png")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.warns(Cones2Warning, match=r"map\.png is 0,128,255"):
        assert not ConesV2Config.load(config).masks
    (tmp_path / "there" / "map.png").symlink_to(GOLDEN / "sampler_layout.png")
    assert list(ConesV2Config.load(config).masks) == [CAT]


@pytest.mark.parametrize("changes", [{"layout": "x" * 1000}, {"residual_dict": {"cat": "x" * 1000}}])
def test_a_name_that_no_disk_takes(tiny: Any, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(Cones2Error, match="x" * 100):
        requested(tiny, tmp_path, subject_list=[["cat", 2]], **changes)


def test_a_residual_may_have_a_name_of_its_own(tiny: Any, tmp_path: Path) -> None:
    found = requested(tiny, tmp_path, residual_dict={"my pet": "sampler_cat.pt"}, subject_list=[["my pet", 2]])
    residual = found["subjects"]["cat"].residual
    assert residual is not None
    assert residual.class_word == "cat"


@pytest.mark.parametrize(
    ("subject_list", "value"),
    [
        ([["cat", 3]], "token 3, which is 'and'; 'cat' is token 2"),
        ([["cat", 70]], "token 70"),
        ([["cat", 2], ["cat", 2]], "token 2"),
    ],
)
def test_tokens_counted_wrongly(tiny: Any, tmp_path: Path, subject_list: list[Any], value: str) -> None:
    with pytest.raises(PromptError, match=value):
        requested(tiny, tmp_path, subject_list=subject_list)


def test_mentions_without_a_residual_are_subjects_of_their_own(tiny: Any, tmp_path: Path) -> None:
    found = requested(tiny, tmp_path, prompt="a cat and a teapot and a cat")
    assert found["prompt"] == "a {cat} and a {teapot} and a {cat_2}"
    assert found["subjects"]["cat_2"].residual is None
    assert found["layout"].regions["cat"] == found["layout"].regions["cat_2"]


def test_two_colours_of_one_word_are_for_its_mentions_in_order(tiny: Any, tmp_path: Path) -> None:
    two = {"0,128,255": ["cat", 2.5], "0,200,0": ["cat", 2.5]}
    changes = {"prompt": "a cat and a cat", "color_context": two, "subject_list": [["cat", 2], ["cat", 5]]}
    found = requested(tiny, tmp_path, **changes)
    assert found["prompt"] == "a {cat} and a {cat_2}"
    masks = read_colours(GOLDEN / "sampler_layout.png", (CAT, TEAPOT))
    assert dict(found["layout"].regions) == {"cat": Region((masks[CAT],)), "cat_2": Region((masks[TEAPOT],))}
    with pytest.raises(LayoutError, match="'cat'"):
        requested(tiny, tmp_path, **{**changes, "prompt": "a cat and a dog", "subject_list": []})


def test_words_that_the_prompt_does_not_mention_are_left_out(tiny: Any, tmp_path: Path) -> None:
    with pytest.warns(Cones2Warning, match="'teapot'"):
        found = requested(tiny, tmp_path, prompt="a cat on the snow", subject_list=[["cat", 2]])
    assert found["layout"].names == ("cat",)


def test_residual_and_colour_of_different_words(tiny: Any, tmp_path: Path) -> None:
    colours = {"0,128,255": ["cat and", 2.5], "0,200,0": ["teapot", 2.5]}
    with pytest.raises(PromptError, match="'cat and'"):
        requested(tiny, tmp_path, color_context=colours)


def test_what_their_script_ignores_makes_a_warning(tiny: Any, tmp_path: Path) -> None:
    plain = requested(tiny, tmp_path)
    path = written(tmp_path, json.loads(CONFIG.read_text())[0])
    with pytest.warns(Cones2Warning, match="2 entries"):
        ConesV2Config.load(path)
    with pytest.warns(Cones2Warning, match="'seed'"):
        found = requested(tiny, tmp_path, seed=1)
    assert found["layout"] == plain["layout"]
    with pytest.warns(Cones2Warning, match=r"1,2,3, so 'teapot'"):
        found = requested(tiny, tmp_path, color_context={"0,128,255": ["cat", 2.5], "1,2,3": ["teapot", 2.5]})
    assert (found["layout"].names, "teapot" in found["subjects"]) == (("cat",), True)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"{}", "array"),
        (b"[]", "empty"),
        (b"[1]", "'0'"),
        (b"[{}]", "0.prompt"),
        (b" " * 2**20 + b"[]", "1,048,576"),
    ],
)
def test_files_that_are_no_config(content: bytes, value: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=value) as caught:
        ConesV2Config.load(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"prompt": 5}, "'0.prompt'"),
        ({"guidance_weight": float("nan")}, "'0.guidance_weight'"),
        ({"guidance_weight": -0.08}, "'0.guidance_weight'"),
        ({"weight_negative": 1.0}, "'0.weight_negative'"),
        ({"guidance_steps": 2.5}, "'0.guidance_steps'"),
        ({"guidance_steps": True}, "'0.guidance_steps'"),
        ({"subject_list": [["cat"]]}, "'0.subject_list.0"),
        ({"subject_list": [["cat", 0]]}, "'0.subject_list.0.1'"),
        ({"subject_list": [["cat", 2]] * 65}, "'0.subject_list'"),
        ({"subject_list": [["dog", 2]]}, "'dog'"),
        ({"color_context": {}}, "'0.color_context'"),
        ({"color_context": {"0,0": ["cat", 2.5]}}, "'0,0'"),
        ({"color_context": {"0,0,256": ["cat", 2.5]}}, "'0,0,256'"),
        ({"color_context": {"0,1,2": ["cat", 1], "0,1,2,9": ["mug", 1]}}, "twice"),
        ({"color_context": {"0,128,255": ["cat", 0]}}, "'0.color_context.0,128,255.1'"),
        ({"layout": "missing.png"}, r"missing\.png"),
        ({"layout": "."}, "can't read"),
        ({"layout": "sampler_cat.pt"}, r"sampler_cat\.pt"),
        ({"residual_dict": {"cat": "sampler_layout.png", "teapot": "sampler_teapot.pt"}}, r"sampler_layout\.png"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, Any], value: str, tmp_path: Path) -> None:
    with pytest.raises(Cones2Error, match=value) as caught:
        ConesV2Config.load(written(tmp_path, **changes))
    assert len(str(caught.value).splitlines()) == 1


# Colour maps


def test_a_colour_map_is_a_layout_pixel_by_pixel(tmp_path: Path) -> None:
    numbers = np.zeros((768, 768), np.uint8)
    numbers[300:364] = np.random.default_rng(0).integers(0, 3, (64, 768))
    palette = np.array([(0, 0, 0), CAT, (255, 0, 0)], np.uint8)
    Image.fromarray(palette[numbers]).save(tmp_path / "map.png")
    layout = Layout({"cat": Region((read_colours(tmp_path / "map.png", [CAT])[CAT],))})
    expected = torch.from_numpy(np.where(numbers == 1, 2.5, -1e8)).float()
    assert torch.equal(PRESETS["cones_v2"].weigh(layout, 768, 768)["cat"].gain, expected)
    assert Layout.from_json(layout.to_json()) == layout


def test_pictures_of_other_sizes_and_modes(tmp_path: Path) -> None:
    half = Image.new("RGB", (400, 200))
    half.paste(CAT, (0, 0, 100, 100))
    half.convert("RGBA").save(tmp_path / "rgba.png")
    half.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    for name in ("rgba.png", "palette.png"):
        grey = read_colours(tmp_path / name, [CAT, TEAPOT])[CAT].grey
        assert (grey[:384, :192] == 255).mean() > 0.95
        assert not grey[384:].any()
        assert not grey[:, 192:].any()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a GIF": lambda: b"GIF89a" + bytes(100),
    "cut short": lambda: (GOLDEN / "sampler_layout.png").read_bytes()[:1000],
    "too large for Pillow": lambda: bomb(14_000),
    "too large for us": lambda: bomb(8_000),
}


def bomb(side: int) -> bytes:
    content = io.BytesIO()
    Image.new("1", (side, side)).save(content, format="PNG", compress_level=1)
    return content.getvalue()


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pictures(content: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "map.png").write_bytes(content())
    with pytest.raises(LayoutError, match=r"map\.png") as caught:
        read_colours(tmp_path / "map.png", [CAT])
    assert len(str(caught.value).splitlines()) == 1


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "map.png")
    with pytest.raises(LayoutError, match=r"map\.png"):
        read_colours(tmp_path / "map.png", [CAT])


def test_a_small_model_draws_a_config(small_folder: Path, tmp_path: Path) -> None:
    pipe = Cones2Pipeline(open_pipeline(small_folder, device="cpu"))
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**{**requested(pipe, tmp_path), "height": 64, "width": 96, "num_inference_steps": 1})
    assert [image.size for image in output.images] == [(96, 64)] * 4
