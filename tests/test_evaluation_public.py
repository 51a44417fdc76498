"""Public lists, in tiny folders of the same form; and encoders of photographs, tiny and with random weights."""

# mypy: allow-untyped-calls

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cones2.errors import ModelError, SettingsError
from cones2.evaluation.alignment import image_alignment, text_alignment
from cones2.evaluation.encoders import open_clip, open_dino
from cones2.evaluation.public import (
    HALVES,
    PublicPrompt,
    read_custom_concept,
    read_dreambench,
    read_ms_bench,
    read_multi_dreambench,
)
from cones2.judge import clip_similarity
from cones2.photos import Photo

DREAMBENCH = """Classes

subject_name,class
backpack,backpack
bear_plushie,stuffed animal
dog2,dog
dog3,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a santa hat'.format(unique_token, class_token)
]
"""

MS_BENCH = """
data_class_dict = {"dog2": "dog", "cat": "cat", "t-shirt": "t-shirt"}
two_subject_combinations = ["living_living", "living_midwearing"]
subject_combination_boxes = {
    "living_living": [[0., 0.25, 0.5, 0.75], [0.5, 0.25, 1., 0.75]],
    "living_midwearing": [[0.25, 0.25, 0.75, 0.75], [0.25, 0.25, 0.75, 0.75]],
}
normal = ["a {0} and a {1} in a room"]
subject_combination_prompts = {"living_living": normal, "living_midwearing": ["a {0} wearing a {1} in a room"]}
"""


def dreambench(folder: Path) -> Path:
    (folder / "prompts_and_classes.txt").write_text(DREAMBENCH, encoding="utf-8")
    return folder


def test_dreambench(tmp_path: Path) -> None:
    found = read_dreambench(dreambench(tmp_path))
    assert found.licence.startswith("CC BY 4.0")
    assert found.subjects["bear_plushie"].class_word == "stuffed animal"
    assert found.subjects["dog2"].photos == tmp_path / "dog2"
    assert [prompt.text for prompt in found.prompts] == [
        "a {backpack} in the jungle",
        "a red {backpack}",
        "a {bear_plushie} in the jungle",
        "a red {bear_plushie}",
        "a {dog2} wearing a santa hat",
        "a {dog3} wearing a santa hat",
    ]


def test_multi_dreambench_where_the_second_dog_is_the_second_photo(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a dog and a dog in the snow", "image_paths": ["./x/dog3/00.jpg", "./x/dog2/01.jpg"]},
        {"prompt": "a stuffed animal and a dog", "image_paths": ["x/bear_plushie/00.jpg", "x/dog2/01.jpg"]},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    found = read_multi_dreambench(tmp_path / "list.json", dreambench(tmp_path))
    assert [prompt.text for prompt in found.prompts] == [
        "a {dog3} and a {dog2} in the snow",
        "a {bear_plushie} and a {dog2}",
    ]
    assert found.prompts[0].boxes == {"dog3": HALVES[0], "dog2": HALVES[1]}


def custom_concept(folder: Path) -> Path:
    def entry(number: int, word: str, photos: str) -> dict[str, str]:
        about = {"instance_prompt": f"photo of a <new{number}> {word}", "class_prompt": word}
        return {**about, "instance_data_dir": f"./benchmark_dataset/{photos}", "prompt_filename": f"prompts/{word}.txt"}

    sofa, dog = entry(1, "sofa", "furniture_sofa1"), entry(2, "dog", "pet_dog1")
    (folder / "dataset.json").write_text(json.dumps([sofa, dog]))
    compose = {"prompt_filename_compose": "prompts/pair.txt"}
    (folder / "dataset_multiconcept.json").write_text(json.dumps([[sofa, dog, compose]]))
    (folder / "prompts").mkdir()
    (folder / "prompts/sofa.txt").write_text("photo of a {} \n\na {} in a museum")
    (folder / "prompts/dog.txt").write_text("a {} on a boat\n")
    (folder / "prompts/pair.txt").write_text("{1} lounging on the {0}\n")
    return folder


def test_custom_concept(tmp_path: Path) -> None:
    found = read_custom_concept(custom_concept(tmp_path))
    assert found.licence == "Adobe Research, non-commercial"
    assert found.subjects["pet_dog1"].photos == tmp_path / "benchmark_dataset/pet_dog1"
    assert [prompt.text for prompt in found.prompts] == [
        "photo of a {furniture_sofa1}",
        "a {furniture_sofa1} in a museum",
        "a {pet_dog1} on a boat",
        "{pet_dog1} lounging on the {furniture_sofa1}",  # the second subject comes first
    ]
    assert found.prompts[-1].subjects == ("furniture_sofa1", "pet_dog1")


def ms_bench(folder: Path, text: str = MS_BENCH) -> tuple[Path, Path]:
    (folder / "msbench.py").write_text(text, encoding="utf-8")
    for name in ("living/dog2.jpg", "living/cat.jpg", "living/unknown.jpg", "midwearing/t-shirt.png"):
        (folder / "msbench" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "msbench" / name).touch()
    return folder / "msbench.py", folder / "msbench"


def test_ms_bench(tmp_path: Path) -> None:
    found = read_ms_bench(*ms_bench(tmp_path))
    whole = (0.25, 0.25, 0.75, 0.75)
    assert found.subjects["t_shirt"].photos == tmp_path / "msbench/midwearing/t-shirt.png"
    assert found.prompts == (
        PublicPrompt("a {cat} and a {dog2} in a room", ("cat", "dog2"), {"cat": HALVES[0], "dog2": HALVES[1]}),
        PublicPrompt("a {cat} wearing a {t_shirt} in a room", ("cat", "t_shirt"), {"cat": whole, "t_shirt": whole}),
        PublicPrompt("a {dog2} wearing a {t_shirt} in a room", ("dog2", "t_shirt"), {"dog2": whole, "t_shirt": whole}),
    )


def test_nothing_of_a_list_is_executed(tmp_path: Path) -> None:
    evil = f"open({str(tmp_path / 'written')!r}, 'w')\n{MS_BENCH}x = open({str(tmp_path / 'written')!r}, 'w')\n"
    with pytest.raises(SettingsError, match="as lists of Python"):
        read_ms_bench(*ms_bench(tmp_path, evil))
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("text", ["(" * 5000, "x = {**{}}", "def", "data_class_dict = y", "data_class_dict = {}"])
def test_a_damaged_ms_bench(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        read_ms_bench(*ms_bench(tmp_path, text))


@pytest.mark.parametrize("place", ["/etc", "../../etc"])
def test_no_list_leads_out_of_its_folder(place: str, tmp_path: Path) -> None:
    path = custom_concept(tmp_path) / "dataset.json"
    path.write_text(path.read_text().replace("./benchmark_dataset/pet_dog1", place))
    with pytest.raises(SettingsError, match="leads out of the folder"):
        read_custom_concept(tmp_path)


@pytest.mark.parametrize("content", ["[1]", "{", "[{}]", "[]", "[" * 10_000])
def test_a_damaged_list(content: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(SettingsError):
        read_multi_dreambench(tmp_path / "list.json", dreambench(tmp_path))
    (custom_concept(tmp_path) / "dataset.json").write_text(content)
    if content != "[]":  # the pairs are left
        with pytest.raises(SettingsError):
            read_custom_concept(tmp_path)


def test_a_damaged_dreambench(tmp_path: Path) -> None:
    for content in ("", DREAMBENCH.partition("Live")[0], DREAMBENCH.partition("Prompts")[2]):
        (tmp_path / "prompts_and_classes.txt").write_text(content)
        with pytest.raises(SettingsError, match="expected DreamBench's file as it is"):
            read_dreambench(tmp_path)


def pictures(count: int = 2) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 255, (40, 60, 3), dtype=np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    vocabulary = json.loads((tiny_folder / "text_encoder/config.json").read_text())["vocab_size"]
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = common | {"image_size": 32, "patch_size": 8}
    text = common | {"vocab_size": vocabulary, "eos_token_id": vocabulary - 1, "bos_token_id": vocabulary - 2}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    for path in (tiny_folder / "tokenizer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_clips_pictures_and_texts_are_transformers_own(clip_folder: Path) -> None:
    encoder = open_clip(clip_folder)
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPImageProcessorPil.from_pretrained(clip_folder)
    tokens = encoder.tokenizer(["a dog", "a cat on the beach"], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted: Any = model(**tokens, pixel_values=processor(pictures(), return_tensors="pt").pixel_values)
    found, texts = encoder.pictures(pictures()), encoder.texts(["a dog", "a cat on the beach"])
    np.testing.assert_allclose(
        text_alignment(found, texts),
        torch.diag(wanted.logits_per_image).numpy() / float(model.logit_scale.detach().exp()),
        atol=1e-4,
    )
    assert found.shape == texts.shape == (2, 16)


def test_dino_is_the_first_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    preparation = {
        "image_mean": [0.5] * 3,
        "image_std": [0.25] * 3,
        "size": 36,
        "crop_size": {"height": 32, "width": 32},
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preparation))
    encoder = open_dino(tmp_path)
    # By hand: 60 x 40 becomes 54 x 36, of which the middle 32 x 32 stays.
    squares = [each.resize((54, 36), Image.Resampling.BICUBIC).crop((11, 2, 43, 34)) for each in pictures()]
    pixels = (torch.stack([torch.from_numpy(np.asarray(each).copy()) for each in squares]) / 255 - 0.5) / 0.25
    with torch.no_grad():
        wanted = model(pixel_values=pixels.permute(0, 3, 1, 2)).last_hidden_state[:, 0].numpy()
    found = encoder.pictures(pictures())
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert image_alignment(found[:1], found[:1])[0] == pytest.approx(1)
    with pytest.raises(ModelError, match="reads no texts"):
        encoder.texts(["a dog"])


@pytest.mark.parametrize("opened", [open_clip, open_dino])
def test_a_folder_that_is_no_encoder(opened: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="as an encoder"):
        opened(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "size": 8}')
    with pytest.raises(ModelError, match="as an encoder"):
        opened(tmp_path)


def similarity(folder: Path) -> object:
    return clip_similarity([Photo(Path("a.png"), "a" * 64, Image.radial_gradient("L").convert("RGB"))], folder)


@pytest.fixture(params=[open_clip, open_dino, similarity])
def door(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    """Whatever opens an encoder of pictures from a folder of a stranger's."""
    opened: Callable[[Path], object] = request.param
    return opened


@pytest.mark.parametrize("shard", ["a.bin", "../outside.safetensors", "/a.safetensors"])
def test_an_encoders_shards_are_safetensors_of_its_folder(
    door: Callable[[Path], object], clip_folder: Path, tmp_path: Path, shard: str
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "outside.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").rename(folder / "a.bin")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"logit_scale": shard}}))
    with pytest.raises(ModelError, match=f"{index} names the weights"):
        door(folder)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, "could fetch or run code"),
        ("_attn_implementation", "kernels-community/flash-attn3", "could fetch or run code"),
        ("trust_remote_code", True, "could fetch or run code"),
        ("vision_config", {"image_size": 10**6}, "expected whole numbers from 1 to 4096"),
        ("text_config", {"num_hidden_layers": 10**6}, "expected whole numbers from 1 to 128"),
    ],
)
def test_what_an_encoders_configuration_may_not_say(
    door: Callable[[Path], object], clip_folder: Path, tmp_path: Path, setting: str, value: object, said: str
) -> None:
    path = shutil.copytree(clip_folder, tmp_path / "clip") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    with pytest.raises(ModelError, match=f"{path}: .*{said}"):
        door(path.parent)


def test_an_encoders_adapters_and_pipes(door: Callable[[Path], object], clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/model", "peft_type": "LORA"}')
    with pytest.raises(ModelError, match=r"adapter_config\.json would add an adapter"):
        door(folder)
    (folder / "adapter_config.json").unlink()
    (folder / "preprocessor_config.json").unlink()
    os.mkfifo(folder / "preprocessor_config.json")
    with pytest.raises(ModelError, match="it is a pipe or device"):
        door(folder)


@pytest.mark.parametrize("kind", ["timm_wrapper", "clip_vision_model", None, ["vit"]])
def test_other_types_of_encoders(clip_folder: Path, tmp_path: Path, kind: object) -> None:
    path = shutil.copytree(clip_folder, tmp_path / "clip") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": kind}))
    for opened, expected in ((open_clip, "expected clip"), (open_dino, "expected vit or dinov2")):
        with pytest.raises(ModelError, match=expected):
            opened(path.parent)


@pytest.mark.parametrize("size", [10**9, -1, {"shortest_edge": 10**9}, {"height": 10**6, "width": 1}])
def test_sizes_of_an_encoders_pictures(clip_folder: Path, tmp_path: Path, size: object) -> None:
    path = shutil.copytree(clip_folder, tmp_path / "clip") / "preprocessor_config.json"
    for name in ("size", "crop_size"):
        path.write_text(json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "size": 8, name: size}))
        with pytest.raises(ModelError, match="as an encoder"):
            open_clip(path.parent)
