"""One line of diffusers and one of transformers is supported; this says what to look at when they move."""

import importlib.metadata
import inspect
import re
import tomllib
from pathlib import Path

import pytest
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ROOT = Path(__file__).parents[1]
LINES = {"diffusers": "0.42", "transformers": "5.23"}
TINY = CLIPTextConfig(
    vocab_size=8, hidden_size=4, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1, projection_dim=4
)


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


@pytest.mark.parametrize("library", LINES)
def test_one_line_is_pinned_everywhere(library: str) -> None:
    line = LINES[library]
    major, minor = line.split(".")
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"{library}>={line},<{major}.{int(minor) + 1}" in required
    locked = re.search(rf"^{library}==(.*)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    installed = importlib.metadata.version(library)
    assert installed.startswith(f"{line}.")
    assert locked[1] == installed, f"requirements.lock names {library} {locked[1]}: install what it names"


def test_readme_says_which() -> None:
    readme = (ROOT / "README.md").read_text()
    for library, line in LINES.items():
        assert f"{library} {line}" in readme


def test_the_attention_that_is_edited() -> None:
    """`guidance.attention.CrossAttention` stands in for this call, and must change with it."""
    assert parameters(AttnProcessor2_0.__call__)[:6] == [
        "self",
        "attn",
        "hidden_states",
        "encoder_hidden_states",
        "attention_mask",
        "temb",
    ]
    assert {"spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "to_out"} <= vars(
        Attention(query_dim=4, heads=1, dim_head=4)
    ).keys() | Attention(query_dim=4, heads=1, dim_head=4)._modules.keys()
    assert isinstance(UNet2DConditionModel.attn_processors, property)
    assert parameters(UNet2DConditionModel.set_attn_processor)[:2] == ["self", "processor"]


def test_how_the_unet_is_called() -> None:
    """`Backbone.predict` and the hook of `guidance.attention` know these."""
    called = parameters(UNet2DConditionModel.forward)
    assert called[1:4] == ["sample", "timestep", "encoder_hidden_states"]
    assert {"added_cond_kwargs", "return_dict"} <= set(called)


def test_how_the_scheduler_is_called() -> None:
    """`composing.loop` passes these where a scheduler takes them."""
    assert {"generator", "eta", "return_dict"} <= set(parameters(DDIMScheduler.step))
    assert DDIMScheduler().alphas_cumprod.shape == (1000,)


def test_the_names_of_clips_weights() -> None:
    """The fingerprint takes these names, less `text_model.`: other names are another residual file's encoder."""
    flat = {name.removeprefix("text_model.") for name in CLIPTextModel(TINY).state_dict()}
    projected = {name.removeprefix("text_model.") for name in CLIPTextModelWithProjection(TINY).state_dict()}
    assert {"embeddings.token_embedding.weight", "encoder.layers.1.mlp.fc2.bias", "final_layer_norm.weight"} <= flat
    assert projected == flat | {"text_projection.weight"}


def test_how_the_tokenizer_is_made() -> None:
    """`backbones.clip_tokenizer` makes it from its vocabulary and merges."""
    assert {"vocab", "merges", "pad_token"} <= set(parameters(CLIPTokenizer.__init__))


def test_how_single_files_are_read() -> None:
    """`backbones.single_files` calls these, with `config`, `local_files_only` and parts that are loaded already."""
    for kind in (StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel, AutoencoderKL):
        assert callable(kind.from_single_file)
