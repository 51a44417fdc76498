"""What learning needs of memory, counted."""

import sys
from pathlib import Path

import pytest
import torch

from cones2.single_files import CONFIGS

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import memory

GB = 10**9


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


@pytest.mark.slow
def test_stable_diffusion_2_learns_at_512_pixels_in_12_gb() -> None:
    usual, saving = (memory.count(CONFIGS / "sd2-base", size=512, save_memory=yes) for yes in (False, True))
    assert saving["UNet, frozen, bfloat16"] == 2 * 865_910_724
    assert saving["text encoder, tuned, float32"] == 4 * 340_387_840
    assert saving["AdamW's two moments"] == 8 * 340_387_840
    assert saving["what the frozen encoder makes of the captions"] == 4 * 1000 * 77 * 1024
    assert saving["gradients and activations"] > 4 * 340_387_840
    assert saving["gradients and activations"] < 0.6 * usual["gradients and activations"]
    assert saving["autoencoder, frozen, bfloat16"] == saving["text encoder, frozen, bfloat16"] == 0
    assert sum(saving.values()) < 8 * GB
    assert sum(usual.values()) < 12 * GB
