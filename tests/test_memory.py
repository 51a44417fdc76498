"""Learning in less memory: the same numbers, the UNet as it was, and what it needs by count."""

import copy
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cones2.backbones import Backbone, open_backbone
from cones2.backbones.single_files import CONFIGS
from cones2.learning.memory import idle_parts_offloaded, recomputed_activations

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import memory

GB = 10**9


@pytest.fixture
def backbone(opened: dict[str, Backbone]) -> Iterator[Backbone]:
    yield opened["sdxl"]
    assert not opened["sdxl"].unet.is_gradient_checkpointing


def gradient(backbone: Backbone) -> tuple[torch.Tensor, int]:
    """Give the gradient that reaches the text, and how often a resnet behind the text ran."""
    calls: list[int] = []
    hook = backbone.unet.up_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: calls.append(1))
    ids = torch.zeros(1, 77, dtype=torch.long)
    text = backbone.embed(ids).requires_grad_()
    added = backbone.added_conditions(ids, height=64, width=64)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    try:
        (found,) = torch.autograd.grad(backbone.predict(noise, torch.tensor([7]), text, added).square().sum(), text)
    finally:
        hook.remove()
    return found, len(calls)


def test_activations_are_made_again_and_gradients_are_the_same(backbone: Backbone) -> None:
    usual, once = gradient(backbone)
    with recomputed_activations(backbone.unet):
        saving, twice = gradient(backbone)
    assert torch.equal(usual, saving)
    assert (once, twice) == (1, 2)
    assert gradient(backbone)[1] == 1


def test_the_unet_is_restored_after_an_error(backbone: Backbone) -> None:
    def fail() -> None:
        with recomputed_activations(backbone.unet):
            assert backbone.unet.is_gradient_checkpointing
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def test_a_unet_that_does_so_already_goes_on(backbone: Backbone) -> None:
    unet = copy.deepcopy(backbone.unet)
    unet.enable_gradient_checkpointing()
    with recomputed_activations(unet):
        pass
    assert unet.is_gradient_checkpointing


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_parts_elsewhere_work_there_and_give_where_the_unet_is(opened: dict[str, Backbone], family: str) -> None:
    backbone = dataclasses.replace(opened[family], unet=copy.deepcopy(opened[family].unet).to("meta"))
    ids = torch.zeros(2, 77, dtype=torch.long)
    given = [
        backbone.embed(ids),
        *backbone.encode_images(torch.zeros(1, 3, 64, 64)),
        *backbone.added_conditions(ids, height=64, width=64).values(),
    ]
    assert {tensor.device.type for tensor in given} == {"meta"}
    assert len(backbone.decode(torch.zeros(1, 4, 8, 8))) == 1


def test_idle_parts_are_put_back_after_an_error(backbone: Backbone) -> None:
    parts = (backbone.vae, *backbone.text_encoders)
    before = [weight.clone() for part in parts for weight in part.parameters()]

    def fail() -> None:
        with idle_parts_offloaded(backbone):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    after = [weight for part in parts for weight in part.parameters()]
    assert all(map(torch.equal, before, after))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="moves nothing without a GPU")
def test_idle_parts_leave_the_gpu_and_come_back(folders: dict[str, Path]) -> None:
    backbone = open_backbone(str(folders["sdxl"]), device="cuda")
    parts = (backbone.vae, *backbone.text_encoders)
    with idle_parts_offloaded(backbone):
        assert {weight.device.type for part in parts for weight in part.parameters()} == {"cpu"}
        assert backbone.embed(torch.zeros(1, 77, dtype=torch.long)).is_cuda
    assert {weight.device.type for part in parts for weight in part.parameters()} == {"cuda"}


# The count


def test_bytes_are_counted_while_they_live() -> None:
    start = torch.zeros(1000, device="meta")
    with memory.LiveBytes([start]) as live:
        one = start + 1
        view = one[10:]
        assert live.most == 4000
        del one, view
        two = start.double()
        assert live.most == 8000
        three = two + 1
        assert live.most == 16000
        del two, three
        _ = start + 1
    assert live.most == 16000


def test_stable_diffusion_2_learns_at_512_pixels_in_12_gb() -> None:
    usual, saving = (memory.count(CONFIGS / "sd2-base", size=512, save_memory=yes) for yes in (False, True))
    assert saving["UNet, frozen, bfloat16"] == 2 * 865_910_724
    assert saving["text encoder, tuned, float32"] == 4 * 340_387_840
    assert saving["AdamW's two moments"] == 8 * 340_387_840
    assert saving["what the frozen encoder makes of the captions"] == 4 * 1000 * 77 * 1024
    assert saving["gradients and activations"] > 4 * 340_387_840
    assert saving["gradients and activations"] < 0.6 * usual["gradients and activations"]
    assert saving["autoencoder, frozen, float32"] == saving["text encoder, frozen, float32"] == 0
    assert sum(saving.values()) < 8 * GB
    assert sum(usual.values()) < 12 * GB
