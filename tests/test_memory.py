"""Learning in less memory: the same numbers, the UNet as it was, and what it needs by count."""

import copy
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch._lazy.ts_backend
from PIL import Image

from cones2.backbones import Backbone
from cones2.backbones.single_files import CONFIGS
from cones2.learning.loop import learn
from cones2.learning.memory import idle_parts_offloaded, recomputed_activations
from cones2.learning.recipe import Recipe
from cones2.photos import Photo

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


@pytest.fixture(scope="module")
def lazy_device() -> str:
    """PyTorch's lazy device, which is another device than the CPU but needs no GPU; it starts once."""
    torch._lazy.ts_backend.init()
    return "lazy"


@pytest.fixture
def two_devices(tiny: Backbone, lazy_device: str) -> Backbone:
    """The tiny model with its idle parts on another device than the CPU."""
    idle = {name: copy.deepcopy(getattr(tiny, name)).to(lazy_device) for name in ("vae", "text_encoder")}
    return dataclasses.replace(tiny, **idle)


def places(backbone: Backbone) -> set[str]:
    parts = (backbone.vae, *backbone.text_encoders)
    return {weight.device.type for part in parts for weight in part.parameters()}


def test_idle_parts_leave_their_device_and_come_back_after_an_error(two_devices: Backbone) -> None:
    def fail() -> None:
        with idle_parts_offloaded(two_devices):
            assert places(two_devices) == {"cpu"}
            raise ZeroDivisionError

    assert places(two_devices) == {"lazy"}
    with pytest.raises(ZeroDivisionError):
        fail()
    assert places(two_devices) == {"lazy"}


def test_learning_in_less_memory_lasts_from_the_first_step_to_the_last(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    offloaded: list[Backbone] = []

    @contextmanager
    def watched(backbone: Backbone) -> Iterator[None]:
        with idle_parts_offloaded(backbone):
            offloaded.append(backbone)
            yield
        offloaded.remove(backbone)

    monkeypatch.setattr("cones2.learning.loop.idle_parts_offloaded", watched)
    photos = [Photo(Path("0.png"), "0" * 64, Image.radial_gradient("L").convert("RGB"))]
    steps = learn(tiny, photos, "dog", recipe=Recipe(steps=2, caption_count=2, tune="residual"), save_memory=True)
    next(steps)
    assert offloaded == [tiny]
    assert tiny.unet.is_gradient_checkpointing
    next(steps)
    assert next(steps, None) is None
    assert offloaded == []
    assert not tiny.unet.is_gradient_checkpointing


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
