"""Opening single checkpoints without a network: each family at tiny size, the shipped configurations at full size."""

# mypy: allow-untyped-calls

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from cones2.errors import Cones2Error, ModelError, SettingsError
from cones2.models import open_pipeline
from cones2.single_files import CONFIG_NAMES, CONFIGS, clip_tokenizer
from families import UNETS
from first_layout import first_layout, save_single_file


@pytest.fixture(scope="module")
def files(opened: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    return {family: save_single_file(opened[family], folder / f"my-{family}.safetensors") for family in UNETS}


@pytest.fixture(scope="module")
def configs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The families' folders, without weights."""
    root = tmp_path_factory.mktemp("configs")
    ignored = shutil.ignore_patterns("*.safetensors")
    return {family: Path(shutil.copytree(folders[family], root / family, ignore=ignored)) for family in UNETS}


# At tiny size, with a configuration of that size


@pytest.mark.parametrize("family", UNETS)
def test_a_single_file_is_the_folder(
    opened: dict[str, Any], files: dict[str, Path], configs: dict[str, Path], family: str
) -> None:
    folder, file = opened[family], open_pipeline(files[family], device="cpu", config=configs[family])
    assert file.name_or_path == f"my-{family}"
    assert type(file) is type(folder)
    for part in ("text_encoder", "text_encoder_2", "unet", "vae"):
        mine: Any = getattr(file, part, None)
        theirs: Any = getattr(folder, part, None)
        assert type(mine) is type(theirs)
        if mine is not None:
            weights = theirs.state_dict()
            assert mine.state_dict().keys() == weights.keys()
            assert all(torch.equal(weight, weights[name]) for name, weight in mine.state_dict().items())
            assert not mine.training
    assert file.scheduler.config == folder.scheduler.config
    shown = ("_class_name", "_diffusers_version")  # diffusers adds these when a pipeline is shown
    mine, theirs = ({k: v for k, v in each.config.items() if k not in shown} for each in (file, folder))
    assert mine | {"_name_or_path": family} == theirs
    texts = [
        pipeline.encode_prompt("a teddy bear", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
        for pipeline in (file, folder)
    ]
    torch.testing.assert_close(*texts)


def test_a_single_file_in_half_precision(files: dict[str, Path], configs: dict[str, Path], tmp_path: Path) -> None:
    halves = {name: weight.half() for name, weight in load_file(files["sdxl"]).items()}
    save_file(halves, tmp_path / "half.safetensors")
    config = str(configs["sdxl"])
    pipeline = open_pipeline(tmp_path / "half.safetensors", device="cpu", dtype="bfloat16", config=config)
    parts = (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae, pipeline.unet)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.bfloat16}


def test_opening_a_single_file_is_silent(
    files: dict[str, Path], configs: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    open_pipeline(files["sd1"], device="cpu", config=configs["sd1"])
    assert capfd.readouterr() == ("", "")


# The shipped configurations, at full size but without numbers


def on_meta(kind: type, folder: Path, part: str) -> torch.nn.Module:
    path = folder / part / "config.json"
    with torch.device("meta"):
        if issubclass(kind, CLIPTextModel | CLIPTextModelWithProjection):
            return kind(CLIPTextConfig.from_json_file(path))
        return kind.from_config(json.loads(path.read_text()))  # type: ignore[attr-defined, no-any-return]


PARTS = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
PARAMETERS = {  # as counted of the released models
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sd2-base": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
WEIGHTS = {"sd1": "v1", "sd2": "v2", "sd2-base": "v2", "sdxl": "xl_base"}


@pytest.mark.parametrize("name", CONFIG_NAMES)
def test_the_shipped_configurations_are_the_released_models(name: str) -> None:
    parts = {part: on_meta(PARTS[part], CONFIGS / name, part) for part in PARAMETERS[name]}
    counted = {part: sum(weight.numel() for weight in model.parameters()) for part, model in parts.items()}
    assert counted == PARAMETERS[name]
    layout = first_layout(SimpleNamespace(**parts))
    assert single_file_utils.CHECKPOINT_KEY_NAMES[WEIGHTS[name]] in layout
    unet, vae = parts["unet"], parts["vae"]
    for model, converted in (
        (unet, single_file_utils.convert_ldm_unet_checkpoint(layout, config=unet.config)),
        (vae, single_file_utils.convert_ldm_vae_checkpoint(layout, config=vae.config)),
    ):
        shapes = {key: weight.shape for key, weight in model.state_dict().items()}
        assert {key: weight.shape for key, weight in converted.items()} == shapes


def test_the_shipped_schedulers() -> None:
    from diffusers import DDIMScheduler

    schedulers = {name: DDIMScheduler.from_pretrained(CONFIGS / name, subfolder="scheduler") for name in CONFIG_NAMES}
    assert {name: s.config.prediction_type for name, s in schedulers.items()} == {
        "sd1": "epsilon",
        "sd2": "v_prediction",
        "sd2-base": "epsilon",
        "sdxl": "epsilon",
    }
    for scheduler in schedulers.values():
        assert float(scheduler.alphas_cumprod[-1]) == pytest.approx(0.00466, rel=1e-3)  # Stable Diffusion's betas
        assert (scheduler.config.steps_offset, scheduler.config.set_alpha_to_one) == (1, False)
        assert scheduler.config.clip_sample is False


def test_the_shipped_tokenizer_is_clips() -> None:
    tokenizer = clip_tokenizer()
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    # The ids that CLIP's own documentation and Stable Diffusion's issue threads show for these texts.
    assert tokenizer("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("A photo of a dog!")["input_ids"] == [49406, 320, 1125, 539, 320, 1929, 256, 49407]
    assert tokenizer.tokenize("teddy bear") == ["teddy</w>", "bear</w>"]
    assert tokenizer.convert_tokens_to_ids("!") == 0
    second = clip_tokenizer(pad_token="!")
    assert second("cat", padding="max_length")["input_ids"] == [49406, 2368, 49407] + [0] * 74


def test_the_shipped_files_are_small() -> None:
    assert sum(path.stat().st_size for path in CONFIGS.rglob("*")) < 1_000_000


# What is refused


def refused(error: type[Cones2Error], value: str, file: Path, config: str | Path | None = None) -> None:
    with pytest.raises(error, match=value) as caught:
        open_pipeline(file, device="cpu", config=config)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "pth", "bin", "CKPT"])
def test_pickles(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"model.{suffix}"
    file.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    refused(ModelError, f"model.{suffix} is a pickle", file)


def test_a_pickle_in_disguise(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    torch.save({"weight": torch.zeros(1)}, file)
    refused(ModelError, "model.safetensors", file)


@pytest.mark.parametrize("length", [0, 7, 1000, 100_000])
def test_truncated_files(files: dict[str, Path], tmp_path: Path, length: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(files["sd1"].read_bytes()[:length])
    refused(ModelError, "model.safetensors", file)


def test_a_lora(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2, 2)}, file)
    refused(ModelError, "lora.safetensors", file)


def test_the_refiner_of_xl(files: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(files["sdxl"])
    old, new = "conditioner.embedders.1.", "conditioner.embedders.0."
    first = {name.replace(old, new): w for name, w in weights.items() if not name.startswith(new)}
    save_file(first, tmp_path / "refiner.safetensors")
    refused(ModelError, "refiner.safetensors", tmp_path / "refiner.safetensors")


def test_stable_diffusion_2_must_be_named(files: dict[str, Path]) -> None:
    refused(SettingsError, "my-sd2.safetensors", files["sd2"])


def test_an_unknown_config(files: dict[str, Path]) -> None:
    refused(SettingsError, "'sd3'", files["sd1"], "sd3")


def test_a_config_that_is_no_model(files: dict[str, Path], tmp_path: Path) -> None:
    refused(ModelError, str(tmp_path), files["sd1"], tmp_path)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_weights_of_another_size(files: dict[str, Path], family: str) -> None:
    refused(ModelError, f"my-{family}.safetensors as {family}", files[family])


def test_weights_of_another_family(files: dict[str, Path], configs: dict[str, Path]) -> None:
    refused(ModelError, "my-sd1.safetensors as sdxl", files["sd1"], configs["sdxl"])


@pytest.mark.parametrize(
    "name",
    [
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
        "model.diffusion_model.middle_block.0.in_layers.0.weight",
        "first_stage_model.decoder.conv_in.bias",
    ],
)
def test_missing_weights(files: dict[str, Path], configs: dict[str, Path], tmp_path: Path, name: str) -> None:
    weights = load_file(files["sd1"])
    del weights[name]
    save_file(weights, tmp_path / "holed.safetensors")
    refused(ModelError, "holed.safetensors", tmp_path / "holed.safetensors", configs["sd1"])


def test_a_config_for_what_is_no_file(tiny_folder: Path) -> None:
    refused(SettingsError, str(tiny_folder), tiny_folder, "sd1")
