"""The fingerprint of a text encoder: the same through dtypes, renamed keys, saving again and a LoRA."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from cones2.errors import ModelError
from cones2.fingerprint import fingerprint

CLIP = CLIPTextConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, projection_dim=24
)
T5 = T5Config(vocab_size=300, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
KINDS: dict[type[Any], Any] = {CLIPTextModel: CLIP, CLIPTextModelWithProjection: CLIP, T5EncoderModel: T5}


def make(kind: type[Any], seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(KINDS[kind]).eval()


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_it_survives_saving_again(kind: type[Any], tmp_path: Path) -> None:
    encoder = make(kind)
    before = fingerprint(encoder, "text_encoder", "tiny")
    encoder.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert fingerprint(again, "text_encoder", "tiny") == before
    assert (before.role, before.name, before.width) == ("text_encoder", "tiny", 24 if kind is T5EncoderModel else 32)
    assert len(before.probe) == 16
    assert len(set(before.probe)) > 8


def test_it_survives_renamed_keys(tmp_path: Path) -> None:
    encoder = make(CLIPTextModel)
    encoder.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {f"text_model.{key.removeprefix('text_model.')}": weight for key, weight in load_file(file).items()}
    renamed["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(renamed, file, metadata={"format": "pt"})
    kind: Any = CLIPTextModel
    again = kind.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert fingerprint(again, "a", "b") == fingerprint(encoder, "a", "b")


@every_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_copy_fits(kind: type[Any], dtype: torch.dtype) -> None:
    mine = fingerprint(make(kind), "a", "tiny")
    rounded = fingerprint(make(kind).to(dtype).float(), "a", "tiny")
    running_in_half = fingerprint(make(kind).to(dtype), "a", "tiny")
    assert rounded.weights != mine.weights
    assert rounded.fits(mine)
    assert mine.fits(rounded)
    assert running_in_half.fits(mine)
    assert not running_in_half.fits(replace(mine, width=mine.width + 1))


@every_kind
def test_another_encoder_of_the_same_width_does_not_fit(kind: type[Any]) -> None:
    mine, other = fingerprint(make(kind), "a", "tiny"), fingerprint(make(kind, seed=5), "a", "tiny")
    assert not other.fits(mine)
    assert math.dist(other.probe, mine.probe) > 0.5 * math.hypot(*mine.probe)


@every_kind
def test_without_its_weights_hashed_it_is_known_by_its_probe(kind: type[Any]) -> None:
    probed = fingerprint(make(kind), "a", "tiny", hash_weights=False)
    assert probed.fits(fingerprint(make(kind), "a", "tiny"))
    assert not probed.fits(fingerprint(make(kind, seed=5), "a", "tiny", hash_weights=True))


@every_kind
def test_a_lora_that_is_not_fused_is_no_part_of_it(kind: type[Any]) -> None:
    encoder = make(kind)
    before = fingerprint(encoder, "a", "tiny")
    names = ["q", "v"] if kind is T5EncoderModel else ["q_proj", "v_proj"]
    encoder.add_adapter(peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False))
    ids = torch.arange(5)[None]
    with_lora = encoder(ids).last_hidden_state
    assert fingerprint(encoder, "a", "tiny") == before
    assert torch.equal(encoder(ids).last_hidden_state, with_lora)
    assert not torch.equal(make(kind)(ids).last_hidden_state, with_lora)
    encoder.disable_adapters()
    assert fingerprint(encoder, "a", "tiny") == before
    assert_close(encoder(ids).last_hidden_state, make(kind)(ids).last_hidden_state)  # still turned off


@every_kind
def test_it_is_probed_once_until_its_weights_change(kind: type[Any]) -> None:
    encoder = make(kind)
    probed: list[object] = []
    encoder.register_forward_pre_hook(lambda *_: probed.append(None))

    def probe() -> tuple[float, ...]:
        return fingerprint(encoder, "a", "tiny", hash_weights=False).probe

    first = probe()
    assert (probe(), len(probed)) == (first, 1)
    weight = encoder.get_input_embeddings().weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[3] *= 2  # a word of the probe
    second = probe()
    weight.data += before.flip(0)  # as peft merges a LoRA: PyTorch does not count it
    third = probe()
    weight.data = before
    assert (probe(), len(probed)) == (first, 4)
    assert len({first, second, third}) == 3
    encoder.to(torch.bfloat16)
    probe()
    assert len(probed) == 5


@every_kind
def test_more_words_leave_it_what_it_was(kind: type[Any]) -> None:
    encoder = make(kind)
    before = fingerprint(encoder, "a", "tiny")
    encoder.resize_token_embeddings(303)  # what a textual inversion of three tokens does
    after = fingerprint(encoder, "a", "tiny")
    assert after.probe == before.probe
    assert after.fits(before)


def test_an_encoder_that_gives_nan() -> None:
    encoder = copy.deepcopy(make(CLIPTextModel))
    with torch.no_grad():
        next(encoder.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="text_encoder of tiny"):
        fingerprint(encoder, "text_encoder", "tiny")
