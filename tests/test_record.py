"""A picture's record draws the same picture again, and asks for nothing that it should not."""

import base64
import contextlib
import copy
import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from PIL import Image

from cones2.call import Cones2Output
from cones2.errors import Cancelled, Cones2Error, Cones2Warning, PictureError, ResidualError
from cones2.library import Library
from cones2.models import open_pipeline
from cones2.pipeline import Cones2Pipeline
from cones2.png import strip_residuals
from cones2.prompts import unknown_words
from cones2.record import (
    DrawCall,
    content_hash,
    describe,
    describe_adapters,
    describe_options,
    describe_scheduler,
    restored,
)
from cones2.redraw import PictureRecord, check_pipeline, make_scheduler
from cones2.run import LayoutSettings
from cones2.schedulers import FLOW_SCHEDULERS
from cones2.schedulers import make_scheduler as scheduler_named
from cones2.shared import threads
from cones2.subjects import Subject
from subjects_for_tests import LAYOUT, PROMPT, TEXT, residual_for, subjects_for

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

PHOTO = Image.effect_noise((64, 64), 60).convert("RGB")
CALL: dict[str, Any] = {"num_inference_steps": 2, "negative_prompt": "fog", "guided_steps": 1, "preset": "cones_v2"}


def wrapped(pipeline: Any, kind: type[Any] | None = None) -> Cones2Pipeline:
    """The same models in a pipeline of their own, with a scheduler of its own."""
    components = {**pipeline.components, "scheduler": copy.deepcopy(pipeline.scheduler)}
    extra = {"requires_safety_checker": False} if "safety_checker" in components else {}
    own = (kind or type(pipeline))(**components, **extra)
    own.register_to_config(_name_or_path=pipeline.config["_name_or_path"])
    own.set_progress_bar_config(disable=True)
    return Cones2Pipeline(own)


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Any:
    return open_pipeline(str(small_folder), device="cpu")


@pytest.fixture
def pipe(small: Any) -> Cones2Pipeline:
    return wrapped(small)


@pytest.fixture(scope="module")
def drawn(small: Any) -> Cones2Output:
    """Three pictures of subjects."""
    subjects = subjects_for(small, strength=0.5, negative="snow")
    return wrapped(small)(PROMPT, LAYOUT, subjects=subjects, seed=4, num_images_per_prompt=3, **CALL)


@pytest.fixture(scope="module")
def record(drawn: Cones2Output) -> dict[str, Any]:
    return drawn.records[1]


@pytest.fixture
def strict() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Cones2Warning)
        yield


def pixels(output: Cones2Output) -> list[bytes]:
    return [np.asarray(image).tobytes() for image in output.images]


def changed(record: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Copy a record with one value of it changed."""
    copied: dict[str, Any] = json.loads(json.dumps(record))
    *parents, last = path.split("/")
    inner = copied
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return copied


# Reading back


def test_what_is_recorded_is_read_back(record: dict[str, Any], small: Any) -> None:
    assert json.loads(json.dumps(record)) == record
    made = PictureRecord.load(record)
    assert (made.prompt, made.text, made.seed, made.seeds, made.index) == (PROMPT, TEXT, 5, (4, 5, 6), 1)
    assert made.layout is not None
    assert made.layout.to_json() == LAYOUT.to_json()
    assert made.subjects["rex"].residual == residual_for(small).sha256
    assert (made.subjects["rex"].strength, made.subjects["cup"].residual) == (0.5, None)
    assert (made.layout_settings.guided_steps, made.negative_prompt, made.num_inference_steps) == (1, "fog", 2)
    assert (made.device, made.dtype, made.threads) == ("cpu", "float32", torch.get_num_threads())
    assert (made.scheduler.class_name, made.pipeline) == ("DDIMScheduler", "StableDiffusionPipeline")
    assert (made.model.name, made.options, made.inputs, made.unrecorded, made.adapters) == ("small", {}, {}, (), {})


def test_no_path_of_this_machine_is_recorded(record: dict[str, Any], small_folder: Path) -> None:
    text = json.dumps(record)
    assert str(Path.home()) + "/" not in text
    assert str(small_folder.parent) not in text


def test_a_residual_is_embedded_with_all_its_bytes(record: dict[str, Any], small: Any) -> None:
    residual = residual_for(small)
    assert base64.b64decode(record["residuals"][residual.sha256]) == residual.to_bytes()
    assert PictureRecord.load(record).residuals[residual.sha256].sha256 == residual.sha256


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
))  # fmt: skip
def test_any_plain_option_comes_back(value: Any) -> None:
    described = describe_options({"it": value})
    assert (described["inputs"], described["unrecorded"]) == ({}, [])
    assert restored(json.loads(json.dumps(described["options"]["it"]))) == value


def test_options_are_values_or_hashes_or_names() -> None:
    noise = torch.randn(1, 4, 8, 8, dtype=torch.bfloat16)
    described = describe_options({
        "eta": np.float64(0.5), "image": PHOTO, "latents": noise, "mask_image": [np.eye(2), np.eye(2)],
        "callback": print, "sigma": float("inf"), "long": "x" * 2**17, "timesteps": [3, 2],
    })  # fmt: skip
    assert described["options"] == {"eta": 0.5, "timesteps": [3, 2]}
    assert list(described["inputs"]) == ["image", "latents", "mask_image"]
    assert described["unrecorded"] == ["callback", "sigma", "long"]


def test_a_hash_is_of_content_kind_and_shape(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as again:
        assert content_hash(again) == content_hash(PHOTO)
    grid = np.arange(6)
    values = [PHOTO, PHOTO.convert("L"), PHOTO.resize((32, 32)), grid, grid.reshape(2, 3), torch.tensor(grid), [grid]]
    values += [[grid, grid], torch.tensor(1.0), torch.tensor(True)]
    hashes = [content_hash(value) for value in values]
    assert len(set(hashes)) == len(values)
    assert None not in hashes
    assert content_hash([]) is content_hash([grid, "a"]) is content_hash("a") is None


def test_words_that_a_lexicon_lacks() -> None:
    assert unknown_words("A dog, 2 Élan's dogs; élan!", {"a", "dog"}) == ["élan", "s", "dogs"]


# Drawing again


@pytest.mark.usefixtures("strict")
def test_the_same_picture_with_its_batch_and_its_threads(
    pipe: Cones2Pipeline, drawn: Cones2Output, tmp_path: Path
) -> None:
    drawn.save(tmp_path / "a.png", 1)
    before = torch.get_num_threads()
    seen: list[int] = []

    def count(*_: Any) -> dict[str, Any]:
        seen.append(torch.get_num_threads())
        return {}

    record = changed(drawn.records[1], "threads", 1)
    again = pipe.redraw(record, callback_on_step_end=count)
    assert seen == [1, 1]
    assert torch.get_num_threads() == before
    assert len(again.images) == 1
    if before == 1:
        assert pixels(again) == pixels(drawn)[1:2]
        assert again.records == drawn.records[1:2]
    assert pixels(pipe.redraw(tmp_path / "a.png")) == pixels(drawn)[1:2]
    assert pixels(pipe.redraw(PictureRecord.load(tmp_path / "a.png"))) == pixels(drawn)[1:2]


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("name", ["dpm++-karras", "euler-a", "heun"])
def test_the_records_scheduler_draws_and_the_pipelines_stays(pipe: Cones2Pipeline, small: Any, name: str) -> None:
    own = pipe.scheduler
    other = wrapped(small)
    other.scheduler = scheduler_named(name, own)
    drawn = other("a cat", seed=1, num_inference_steps=3)
    assert pixels(pipe.redraw(drawn.records[0])) == pixels(drawn)
    assert pipe.scheduler is own
    assert pixels(pipe("a cat", seed=1, num_inference_steps=3)) != pixels(drawn)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("sdxl", {"original_size": (96, 64), "clip_skip": 1}),
        *((name, {"width": 128}) for name in ("flux1", "sd3", "z_image", "klein")),
    ],
)
def test_other_families_and_their_own_arguments(opened: dict[str, Any], family: str, options: dict[str, Any]) -> None:
    pipe = wrapped(opened[family])
    subjects = {"rex": Subject("cat", residual_for(pipe.pipeline))}
    layout = {"rex": (0.0, 0.0, 0.5, 1.0)}
    drawn = pipe("a {rex}", layout, subjects=subjects, seed=[3, 9], num_inference_steps=2, height=64, **options)
    assert pixels(pipe.redraw(drawn.records[1])) == pixels(drawn)[1:]
    assert len(drawn.records[0]["model"]["encoders"]) == len(subjects["rex"].residual.parts)  # type: ignore[union-attr]


@pytest.mark.usefixtures("strict")
def test_the_authors_own_loop(pipe: Cones2Pipeline, small: Any) -> None:
    drawn = pipe(
        PROMPT, LAYOUT, subjects=subjects_for(small), seed=(1, 2), num_inference_steps=2, sampler="cones_v2",
        negative_prompt="fog", height=64, width=64,
    )  # fmt: skip
    again = pipe.redraw(drawn.records[1])
    assert pixels(again) == pixels(drawn)[1:]
    assert again.records == drawn.records[1:]


@pytest.mark.usefixtures("strict")
def test_an_input_is_given_again_and_checked(small: Any) -> None:
    pipe = wrapped(small, StableDiffusionImg2ImgPipeline)
    drawn = pipe("a cat", image=PHOTO, strength=0.6, seed=1, num_inference_steps=4)
    (record,) = drawn.records
    assert record["inputs"] == {"image": content_hash(PHOTO)}
    assert record["options"] == {"strength": 0.6}
    assert pixels(pipe.redraw(record, image=PHOTO.copy())) == pixels(drawn)
    with pytest.raises(PictureError, match="'image'"):
        pipe.redraw(record)
    with pytest.raises(PictureError, match="'image'"):
        pipe.redraw(record, image=PHOTO.rotate(90))
    with pytest.raises(PictureError, match="'strength'"):
        pipe.redraw(record, image=PHOTO, strength=0.5)
    with pytest.raises(PictureError, match="StableDiffusionImg2ImgPipeline"):
        wrapped(small).redraw(record, image=PHOTO)


def test_what_has_no_hash_is_asked_for_by_name(pipe: Cones2Pipeline, record: dict[str, Any]) -> None:
    record = changed(record, "unrecorded", ["cross_attention_kwargs"])
    with pytest.raises(PictureError, match="'cross_attention_kwargs'"):
        pipe.redraw(record)
    assert len(pipe.redraw(record, cross_attention_kwargs={}).images) == 1


@pytest.mark.usefixtures("strict")
def test_fresh_generators_are_recorded_by_their_seeds(pipe: Cones2Pipeline) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (2, 1)]
    for generator, seeds in ((generators, [2, 1]), (torch.Generator().manual_seed(3), [3])):
        drawn = pipe("a cat", generator=generator, num_images_per_prompt=len(seeds), num_inference_steps=2)
        assert drawn.records[0]["seeds"] == seeds
        assert pixels(pipe.redraw(drawn.records[-1])) == pixels(drawn)[-1:]


def test_generators_that_are_not_fresh_or_shared_are_not_drawn_again(pipe: Cones2Pipeline) -> None:
    used = torch.Generator()
    torch.randn(7, generator=used)
    for generator, count in ((used, 1), (torch.Generator(), 2)):
        drawn = pipe("a cat", generator=generator, num_images_per_prompt=count, num_inference_steps=1)
        assert (drawn.records[0]["seed"], drawn.records[0]["seeds"]) == (None, None)
        with pytest.raises(PictureError, match="generators"):
            pipe.redraw(drawn.records[0])


def test_what_can_not_be_drawn_again_says_so(small: Any) -> None:
    pipe = wrapped(small)
    pipe.scheduler = scheduler_named("dpm++-sde", pipe.scheduler)
    (record,) = pipe("a cat", generator=torch.Generator(), num_inference_steps=1).records
    with pytest.raises(PictureError, match="DPMSolverSDEScheduler"):
        pipe.redraw(record)
    drawn = pipe("a cat", seed=3, num_inference_steps=2)
    assert pixels(pipe.redraw(drawn.records[0])) == pixels(drawn)


@pytest.mark.usefixtures("strict")
def test_a_lora_is_recorded_and_asked_for(small: Any) -> None:
    pipe = wrapped(copy.deepcopy(small))
    plain = pipe("a cat", seed=1, num_inference_steps=2)
    add_lora(pipe, "blue", seed=1)
    drawn = pipe("a cat", seed=1, num_inference_steps=2)
    (record,) = drawn.records
    assert record["adapters"]["blue"]["scales"] == {"unet": [1.0]}
    assert pixels(drawn) != pixels(plain)
    assert pixels(pipe.redraw(record)) == pixels(drawn)
    with pytest.raises(PictureError, match="'blue'"):
        pipe.redraw(plain.records[0])
    with pytest.raises(PictureError, match="'blue'"):
        wrapped(small).redraw(record)
    pipe.set_adapters("blue", 0.5)
    with pytest.raises(PictureError, match=r"\[0\.5\]"):
        pipe.redraw(record)
    other = wrapped(copy.deepcopy(small))
    add_lora(other, "blue", seed=2)
    with pytest.raises(PictureError, match="'blue'"):
        other.redraw(record)
    pipe.disable_lora()
    assert pixels(pipe.redraw(plain.records[0])) == pixels(plain)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_a_lora_that_changes_has_another_hash(small: Any) -> None:
    pipe = wrapped(copy.deepcopy(small))
    add_lora(pipe, "blue", seed=1)
    add_lora(pipe, "red", seed=2)
    pipe.set_adapters(["blue", "red"])

    def hashes() -> tuple[str, str]:
        found = describe_adapters(pipe.pipeline)
        return found["blue"]["sha256"], found["red"]["sha256"]

    blue, red = hashes()
    assert hashes() == (blue, red)
    layers = [layer.lora_A["blue"] for layer in pipe.unet.modules() if hasattr(layer, "lora_A")]
    before = layers[-1].weight.detach().clone()
    with torch.no_grad():
        layers[-1].weight[0, 0] += 1
    (one, same), former = hashes(), before.clone()
    former[0, 0] += 1
    assert (one != blue, same) == (True, red)
    layers[-1].weight.data.copy_(before + 2)  # as peft swaps one for another in a compiled model
    assert hashes()[0] not in (one, blue)
    layers[-1].weight.data.copy_(former)
    assert hashes() == (one, red)
    pipe.unet.to(torch.bfloat16)
    assert hashes()[1] != red
    pipe.set_adapters("red")
    assert list(describe_adapters(pipe.pipeline)) == ["red"]


def add_lora(pipe: Cones2Pipeline, name: str, *, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipe.unet.add_adapter(config, adapter_name=name)


@pytest.mark.usefixtures("strict")
def test_residuals_are_found_where_the_record_has_none(
    pipe: Cones2Pipeline, small: Any, drawn: Cones2Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONES2_LIBRARY", str(tmp_path))
    record = strip_residuals(drawn.records[1])
    with pytest.raises(ResidualError, match=record["subjects"]["rex"]["residual"][:12]):
        pipe.redraw(record)
    pipe.load_subject("hugo", residual_for(small))
    assert pixels(pipe.redraw(record)) == pixels(drawn)[1:2]
    pipe.unload_subject("hugo")
    Library.open().add("any_name", residual_for(small))
    assert pixels(pipe.redraw(record)) == pixels(drawn)[1:2]


def test_what_differs_is_said_in_one_warning(pipe: Cones2Pipeline, record: dict[str, Any]) -> None:
    older = changed(changed(record, "versions/torch", "2.12.0"), "dtype", "bfloat16")
    with pytest.warns(Cones2Warning, match=r"dtype bfloat16 .* float32 .*; torch 2\.12\.0") as seen:
        pipe.redraw(changed(older, "device", "cuda:0"))
    assert len(seen) == 1


def test_another_text_encoder_is_refused(pipe: Cones2Pipeline, record: dict[str, Any]) -> None:
    probe = record["model"]["encoders"][0]["probe"]
    for path, value in (("probe", [-number for number in probe]), ("width", 64), ("role", "text_encoder_2")):
        with pytest.raises(PictureError, match="'small'"):
            pipe.redraw(changed(record, "model", {"name": "small", "encoders": [
                {**record["model"]["encoders"][0], path: value}
            ]}))  # fmt: skip


def test_a_redrawing_can_be_cancelled(pipe: Cones2Pipeline, record: dict[str, Any]) -> None:
    def cancel(*_: Any) -> dict[str, Any]:
        pipe.cancel()
        return {}

    with pytest.raises(Cancelled):
        pipe.redraw(record, callback_on_step_end=cancel)


def test_threads_are_put_back_and_never_more_than_the_machine_has() -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(KeyboardInterrupt), threads(1):
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before
    with threads(1024):
        assert torch.get_num_threads() < 1024
    assert torch.get_num_threads() == before


def test_two_thread_counts_wait_for_one_another() -> None:
    entered = threading.Event()

    def other() -> None:
        with threads(1):
            entered.set()

    with threads(1):
        waiting = threading.Thread(target=other)
        waiting.start()
        assert not entered.wait(0.1)
    waiting.join(10)
    assert entered.is_set()


# Anyone's records


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("prompt", 3, "prompt"),
        ("prompt", "x" * 10_001, "prompt"),
        ("prompt", "\udcff", "record"),
        ("extra", 3, "extra"),
        ("seed", "5", "seed"),
        ("seed", 9, "9"),
        ("index", 3, "3"),
        ("index", 0, "5"),
        ("seeds", [], "seeds"),
        ("seeds", list(range(65)), "seeds"),
        ("seeds", [True, 5, 6], "seeds.0"),
        ("seeds", None, "no seed"),
        ("num_images", 65, "num_images"),
        ("num_inference_steps", 100_000, "num_inference_steps"),
        ("num_inference_steps", 2.5, "num_inference_steps"),
        ("guidance_scale", float("nan"), "record"),
        ("threads", 10**9, "threads"),
        ("device", "cuda; rm", "device"),
        ("dtype", "../x", "dtype"),
        ("versions", {"os": "1"}, "versions"),
        ("layout/regions/rex", [[0, 0, 9, 9]], "layout"),
        ("layout/regions/rex", {"mask": "/etc/passwd"}, "layout"),
        ("layout_settings/preset", 3, "layout_settings"),
        ("layout_settings/layout_effect", "magic", "layout_effect"),
        ("layout_settings/colour", "red", "layout_settings"),
        ("subjects/rex/residual", "../rex", "subjects.rex.residual"),
        ("subjects/rex/strength", "1", "subjects.rex.strength"),
        ("subjects/rex/path", "/etc/passwd", "subjects.rex.path"),
        ("subjects", {f"s{i}": {} for i in range(65)}, "subjects"),
        ("model/name", "x" * 1001, "model.name"),
        ("model/encoders", [{}], "model.encoders"),
        ("options", {"height": 2**26}, "pixels"),
        ("options", {"height": 4096, "width": 8192}, "100,663,296"),
        ("options", {"width": "64"}, "64"),
        ("options", {"width": -64}, "-64"),
        ("options", {"timesteps": list(range(2000))}, "1000"),
        ("scheduler/class_name", "os.system", "scheduler"),
        ("scheduler/config/num_train_timesteps", 10**9, "num_train_timesteps"),
        ("scheduler/config/solver", {"a": {}}, "solver"),
        ("residuals", {"0" * 64: ""}, "residuals"),
        ("residuals", {"0" * 64: "%"}, "base64"),
        ("residuals", {"rex": ""}, "residuals"),
        ("residuals", {f"{i:064}": "" for i in range(65)}, "65"),
    ],
)
def test_records_that_are_not_as_ours(record: dict[str, Any], path: str, value: object, expected: str) -> None:
    with pytest.raises(PictureError, match=expected):
        PictureRecord.load(changed(record, path, value))


MANY = {"num_images": 64, "seeds": list(range(64))}


def test_more_at_once_than_is_drawn_again_is_recorded_so(small: Any) -> None:
    small = wrapped(small)
    drawn: dict[str, Any] = {"prompt": "a cat", "subjects": {}, "layout": None, "num_inference_steps": 1}
    drawn |= {"guidance_scale": 1.0, "negative_prompt": "", "layout_settings": LayoutSettings()}
    drawn |= {"options": {"height": 1024, "width": 1024}}
    few, many = (
        describe(small.pipeline, small.facts, DrawCall(seeds=tuple(range(count)), num_images=count, **drawn))[0]
        for count in (16, 17)
    )
    assert few["not_repeatable"] == ""
    assert "more than 16,777,216 pixels" in many["not_repeatable"]
    with pytest.raises(PictureError, match="draw fewer"):
        PictureRecord.load(many).arguments({})


def test_how_much_is_drawn_at_once(opened: dict[str, Any], small: Any) -> None:
    """64 pictures of 1024 x 1024 take any memory; on a model of a smaller size they may be 64."""
    sides = {"height": 1024, "width": 1024}
    with pytest.raises(PictureError, match="asks for 67,108,864 pixels at once, expected at most 16,777,216"):
        PictureRecord.load({**BARE, **MANY, "options": sides})
    assert PictureRecord.load({**BARE, "num_images": 16, "seeds": list(range(16)), "options": sides})
    with pytest.raises(PictureError, match="another text encoder"):  # of these records, which comes after
        check_pipeline(PictureRecord.load({**BARE, **MANY}), wrapped(small))
    large = PictureRecord.load({**BARE, **MANY, "pipeline": "ZImagePipeline"})  # whose own size is 1024
    with pytest.raises(PictureError, match="asks for 67,108,864 pixels"):
        check_pipeline(large, wrapped(opened["z_image"]))


def test_an_embedded_residual_is_checked_against_its_hash(record: dict[str, Any], small: Any) -> None:
    other = residual_for(small, size=2.0)
    key = record["subjects"]["rex"]["residual"]
    with pytest.raises(PictureError, match=key[:12]):
        PictureRecord.load(changed(record, f"residuals/{key}", base64.b64encode(other.to_bytes()).decode()))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("scheduler/class_name", "Cones2Pipeline", "Cones2Pipeline"),
        ("scheduler/class_name", "EulerDiscreteScheduler", "EulerDiscreteScheduler"),
        ("scheduler/config/beta_schedule", "magic", "DDIMScheduler"),
        ("scheduler/config/path", "/etc/passwd", "DDIMScheduler"),
    ],
)
def test_schedulers_that_can_not_be_made(
    small: Any, record: dict[str, Any], path: str, value: object, expected: str
) -> None:
    made = PictureRecord.load(changed(record, path, value))
    with pytest.raises(PictureError, match=expected):
        make_scheduler(made.scheduler, small.scheduler)


@pytest.mark.parametrize("own", FLOW_SCHEDULERS)
@pytest.mark.parametrize("recorded", FLOW_SCHEDULERS)
def test_schedulers_of_flow_matching_are_made_for_one_another(record: dict[str, Any], own: str, recorded: str) -> None:
    own_one, other = (getattr(diffusers, name)() for name in (own, recorded))
    made = PictureRecord.load({**record, "scheduler": describe_scheduler(other)})
    assert describe_scheduler(make_scheduler(made.scheduler, own_one)) == describe_scheduler(other)


@pytest.mark.parametrize("name", ["prompt_embeds", "callback", "colour"])
def test_options_that_no_call_takes_are_refused(pipe: Cones2Pipeline, record: dict[str, Any], name: str) -> None:
    with pytest.raises(Cones2Error, match=name):
        pipe.redraw(changed(record, "options", {name: 3}))


def test_options_can_not_stand_in_for_what_was_checked(pipe: Cones2Pipeline, record: dict[str, Any]) -> None:
    options = {
        "prompt": "a {hugo}",
        "num_inference_steps": 900,
        "num_images_per_prompt": 1000,
        "force": True,
        "generator": 3,
    }
    again = pipe.redraw(changed(record, "options", options))
    assert again.records[0]["num_inference_steps"] == 2


def test_a_picture_names_itself_in_what_is_wrong_with_it(drawn: Cones2Output, tmp_path: Path) -> None:
    drawn.save(tmp_path / "cat.png")
    assert PictureRecord.load(tmp_path / "cat.png").prompt == PROMPT
    Cones2Output(drawn.images, None, (), ({"layout": None},)).save(tmp_path / "cat.png")
    with pytest.raises(PictureError, match=r"cat\.png.*'prompt'"):
        PictureRecord.load(tmp_path / "cat.png")


@given(st.data())
def test_any_json_in_a_record_is_read_or_refused(data: st.DataObject) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )
    key = data.draw(st.sampled_from(list(BARE)))
    with contextlib.suppress(PictureError):
        PictureRecord.load({**BARE, key: data.draw(values)})


def test_the_least_record_is_sound() -> None:
    assert PictureRecord.load(BARE).layout is None
    with pytest.raises(PictureError, match="JSON"):
        PictureRecord.load({**BARE, "prompt": object()})


BARE: dict[str, Any] = {
    "prompt": "a dog", "text": "a dog", "subjects": {}, "layout": None, "seed": 0, "seeds": [0],
    "not_repeatable": "", "index": 0, "num_images": 1, "num_inference_steps": 2, "guidance_scale": 7.5,
    "negative_prompt": "", "layout_settings": {}, "force": False, "options": {}, "inputs": {}, "unrecorded": [],
    "scheduler": {"class_name": "DDIMScheduler", "config": {}}, "pipeline": "StableDiffusionPipeline",
    "model": {"name": "mini", "encoders": []}, "adapters": {}, "device": "cpu", "dtype": "float32", "threads": 1,
    "versions": {},
}  # fmt: skip
