"""Strangers' model folders: what their files may be and say, checked before a library reads them."""

# mypy: allow-untyped-calls

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import CLIPTextModel

from cones2.errors import ModelError, PromptError
from cones2.model_folders import check_folder
from cones2.models import open_pipeline
from cones2.prompts import Mention, ParsedPrompt, in_chat
from cones2.single_files import CONFIGS
from families import qwen_tokenizer

CONFIG = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}


def change(folder: Path, part: str, **settings: object) -> Path:
    """Change settings of a component, and return their file."""
    path = folder / part / CONFIG.get(part, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return path


def refused(folder: Path, value: str) -> None:
    """Check that a folder is refused before anything is opened, in one line that says `value`."""
    with pytest.raises(ModelError, match=value) as caught:
        check_folder(folder, {}, PARTS, weights=True)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ModelError, match=value):
        open_pipeline(folder, device="cpu")


PARTS = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")


# What files say


@pytest.mark.parametrize(
    ("part", "setting", "values"),
    [
        ("unet", "sample_size", [0, -96, 10**5, 96.5, "96", [96, 0], [], True, {}]),
        ("unet", "layers_per_block", [0, 10**6, [1, 1, 1, 10**6]]),
        ("unet", "transformer_layers_per_block", [10**6, -1, [[1, 10**6]]]),
        ("unet", "block_out_channels", [[16] * 17, [16, 16, 32, 10**9]]),
        ("unet", "down_block_types", [["DownBlock2D"] * 10_000]),
        ("unet", "attention_head_dim", [0, 10**9]),
        ("unet", "norm_num_groups", [0]),
        ("unet", "norm_eps", [0, -1, 5, None, float("nan")]),
        ("unet", "freq_shift", [float("nan"), float("inf"), 1e9]),
        ("vae", "scaling_factor", [0, -1, 1e9, None, "0.18", float("nan")]),
        ("vae", "latents_std", [[0, 0, 0, 0]]),
        ("vae", "shift_factor", [float("inf")]),
        ("text_encoder", "num_hidden_layers", [0, 10**6]),
        ("text_encoder", "num_attention_heads", [0, 10**6]),
        ("text_encoder", "max_position_embeddings", [10**9]),
        ("text_encoder", "layer_norm_eps", [0, float("nan")]),
        ("text_encoder", "text_config", [{"num_hidden_layers": 10**6}]),
        ("scheduler", "num_train_timesteps", [0, 10**9, 1000.5]),
        ("scheduler", "beta_end", [0, 2, float("nan")]),
        ("scheduler", "steps_offset", [-1, 10**6]),
        ("tokenizer", "model_max_length", [0, -77, 2, None, "77"]),
        ("tokenizer", "extra_ids", [10**9]),
    ],
)
def test_numbers_that_weights_do_not_prove(tiny_copy: Path, part: str, setting: str, values: list[object]) -> None:
    path = tiny_copy / part / CONFIG.get(part, "config.json")
    before = path.read_text()
    for value in values:
        path.write_text(before)
        change(tiny_copy, part, **{setting: value})
        name = next(iter(value)) if isinstance(value, dict) and value else setting
        refused(tiny_copy, f"{path}: {name} is .* expected")


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "unet"])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("attn_implementation", "kernels-community/flash-attn3"),
        ("_attn_implementation", "someone/kernel:attention"),
        ("_attn_implementation", {"": "someone/kernel"}),
        ("_attn_implementation_internal", "flash_attention_2"),
        ("experts_implementation", "someone/kernel"),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("transformers_weights", "../../weights.safetensors"),
        ("trust_remote_code", True),
        ("vocab_file", "/dev/zero"),
        ("tokenizer_file", "../other/tokenizer.json"),
        ("fast_tokenizer_files", ["../tokenizer.json"]),
    ],
)
def test_what_could_fetch_or_run_more_than_the_folder(tiny_copy: Path, part: str, setting: str, value: object) -> None:
    path = change(tiny_copy, part, **{setting: value})
    refused(tiny_copy, f"{path}: {setting} is")
    path = change(tiny_copy, part, **{setting: None}, text_config={setting: value})
    refused(tiny_copy, f"{path}: {setting} is")


def test_what_old_models_say(tiny_copy: Path) -> None:
    """Odd settings of folders that many people have."""
    change(tiny_copy, "tokenizer", special_tokens_map_file="./special_tokens_map.json", name_or_path="openai/clip")
    change(tiny_copy, "tokenizer", model_max_length=10**30, tokenizer_file=None, clean_up_tokenization_spaces=True)
    change(tiny_copy, "text_encoder", _attn_implementation_autoset=True, attn_implementation="eager", _commit_hash=None)
    change(tiny_copy, "scheduler", lambda_min_clipped=-float("inf"), skip_prk_steps=True, steps_offset=0)
    change(tiny_copy, "unet", reverse_transformer_layers_per_block=None, sample_size=[96, 64], num_attention_heads=None)
    change(tiny_copy, "vae", scaling_factor=1, latents_std=None)
    pipeline = open_pipeline(tiny_copy, device="cpu")
    assert isinstance(pipeline.text_encoder, CLIPTextModel)
    assert pipeline.text_encoder.config._attn_implementation == "sdpa"
    assert pipeline.tokenizer.model_max_length == pipeline.text_encoder.config.max_position_embeddings


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.iterdir() if path.is_dir()))
def test_what_released_models_say(name: str) -> None:
    parts = [path.name for path in (CONFIGS / name).iterdir() if path.is_dir()]
    assert {"unet", "vae", "text_encoder", "scheduler"} <= set(parts)
    check_folder(CONFIGS / name, {}, parts, weights=True)


def test_a_second_tokenizer_is_no_longer_than_its_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = copied(folders["sdxl"], tmp_path)
    path = copy / "tokenizer_2" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10**30}))
    pipeline = open_pipeline(copy, device="cpu")
    assert pipeline.tokenizer_2.model_max_length == pipeline.text_encoder_2.config.max_position_embeddings


def test_a_tokenizer_whose_vocabulary_is_missing(tiny_copy: Path) -> None:
    (tiny_copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer knows no letters"):
        open_pipeline(tiny_copy, device="cpu")


def test_a_tokenizer_without_a_pad_token(tiny_copy: Path) -> None:
    change(tiny_copy, "tokenizer", pad_token=None)
    with pytest.raises(ModelError, match="tokenizer has no pad token"):
        open_pipeline(tiny_copy, device="cpu")


# Chat templates

MARKS = "{# <|im_start|> <|im_end|> <think> add_generation_prompt enable_thinking #}"
PROGRAMS = [
    MARKS + "{{ 1 // 0 }}",
    MARKS + "{{ raise_exception('no') }}",
    MARKS + "{% for",
    MARKS + "".join(f"{{% for {name} in range(99999) %}}" for name in "abcdef") + "{% endfor %}" * 6,
    MARKS + "{% set a = 'a' %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("family", ["z_image", "klein"])
def test_a_chat_template_is_never_run(folders: dict[str, Path], tmp_path: Path, family: str, program: str) -> None:
    copy = copied(folders[family], tmp_path)
    (copy / "tokenizer" / "chat_template.jinja").write_text(program)
    pipeline = open_pipeline(copy, device="cpu")
    own = open_pipeline(folders[family], device="cpu")
    assert pipeline.tokenizer.chat_template == own.tokenizer.chat_template
    mention = Mention("rex", 2, 5)
    shown = in_chat(ParsedPrompt("a dog", (mention,)), pipeline.tokenizer, thinking=family == "z_image")
    thought = "" if family == "z_image" else "<think>\n\n</think>\n\n"
    assert shown.text == f"<|im_start|>user\na dog<|im_end|>\n<|im_start|>assistant\n{thought}"
    assert shown.mentions == (Mention("rex", 19, 22),)


@pytest.mark.parametrize("template", ["{% for a in range(9) %}{% endfor %}", "<|im_start|>{{ messages }}", "[INST]"])
def test_other_chat_templates_than_qwen3s(folders: dict[str, Path], tmp_path: Path, template: str) -> None:
    copy = copied(folders["klein"], tmp_path)
    (copy / "tokenizer" / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="its tokenizer has another chat template than Qwen3's"):
        open_pipeline(copy, device="cpu")


@pytest.mark.parametrize("program", PROGRAMS[:3])
def test_a_callers_chat_template_that_fails_is_one_line(program: str) -> None:
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = program
    with pytest.raises(PromptError, match="chat template fails"):
        in_chat(ParsedPrompt("a dog", ()), tokenizer, thinking=True)


# Which files there are


def copied(folder: Path, where: Path) -> Path:
    copy = where / folder.name
    for path in folder.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize("shard", ["a.bin", "a.pt", "../a.safetensors", "/a.safetensors", "b/a.safetensors", 3, None])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_shards_are_safetensors_of_the_folder(tiny_copy: Path, part: str, shard: object) -> None:
    stem = "diffusion_pytorch_model" if part == "unet" else "model"
    index = tiny_copy / part / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": shard}}))
    refused(tiny_copy, f"{index} names the weights")


def test_an_index_without_shards(tiny_copy: Path) -> None:
    index = tiny_copy / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    for content in ("{}", "[]", "{", '{"weight_map": "a.safetensors/../b.bin"}', "[" * 100_000):
        index.write_text(content)
        refused(tiny_copy, str(index))


def test_an_adapter_in_the_folder(tiny_copy: Path) -> None:
    adapter = tiny_copy / "text_encoder" / "adapter_config.json"
    adapter.write_text('{"base_model_name_or_path": "someone/model", "peft_type": "LORA"}')
    refused(tiny_copy, f"{adapter} would add an adapter")


FILES = [
    "text_encoder/config.json",
    "text_encoder/generation_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/added_tokens.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/spiece.model",
    "tokenizer/chat_template.jinja",
    "tokenizer/additional_chat_templates/more.jinja",
]


@pytest.mark.parametrize("name", [*FILES, "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_pipes_and_devices(tiny_copy: Path, name: str) -> None:
    path = tiny_copy / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    refused(tiny_copy, f"{path}: it is a pipe or device")
    path.unlink()
    path.symlink_to("/dev/zero")
    refused(tiny_copy, f"{path}: it is a pipe or device")


@pytest.mark.parametrize("name", FILES)
def test_enormous_files(tiny_copy: Path, name: str) -> None:
    path = tiny_copy / name
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(300_000_000)
    refused(tiny_copy, f"{path} is too large")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae"])
def test_pickles_only(tiny_copy: Path, part: str) -> None:
    file = next((tiny_copy / part).glob("*.safetensors"))
    file.rename(file.with_suffix(".bin"))
    with pytest.raises(ModelError, match=rf"weights in its folder {part}, got none: a \.bin is a pickle"):
        open_pipeline(tiny_copy, device="cpu")


# The network

OPENED_WITHOUT_NETWORK = """
import sys
tried = []
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        tried.append(arguments)
        raise OSError("no network")
sys.addaudithook(refuse)
from cones2.models import open_pipeline
from cones2.errors import ModelError
for folder in sys.argv[1:]:
    try:
        open_pipeline(folder, device="cpu")
        print("opened")
    except ModelError as error:
        print("refused")
print(len(tried))
import socket
try:
    socket.create_connection(("localhost", 1))
except OSError:
    print(len(tried))
"""


@pytest.mark.slow
def test_no_local_folder_opens_a_connection(tiny_folder: Path, tmp_path: Path) -> None:
    folders = {name: copied(tiny_folder, tmp_path / name) for name in ("plain", "map", "bin", "adapter", "kernel")}
    for part in ("text_encoder", "tokenizer", "unet", "scheduler"):
        change(folders["map"], part, auto_map={"AutoModel": "someone/model--mine.Model", "AutoTokenizer": ["a/b--c.D"]})
        change(folders["map"], part, _name_or_path="someone/model", custom_pipelines={"a": "b"})
    (folders["bin"] / "text_encoder" / "model.safetensors").rename(folders["bin"] / "text_encoder/pytorch_model.bin")
    (folders["adapter"] / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    change(folders["kernel"], "text_encoder", _attn_implementation="kernels-community/flash-attn3")
    environment: dict[str, Any] = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPENED_WITHOUT_NETWORK, *map(str, folders.values())],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.split() == ["opened", "opened", "refused", "refused", "refused", "0", "1"]
