"""What learning needs of memory, counted."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cones2.single_files import CONFIGS

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import joint_memory
import memory

ROOT = Path(__file__).parents[1]
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


@pytest.mark.slow
def test_a_large_transformers_weights_and_step_are_counted() -> None:
    """FLUX.1 has as many parameters as the released one, whose file in bfloat16 is of 23.8 GB."""
    model = joint_memory.MODELS["FLUX.1 dev"]
    transformer = joint_memory.made(model.transformer)
    assert sum(weight.numel() for weight in transformer.parameters()) == 11_901_408_320
    sizes = [joint_memory.weights(transformer, bits) for bits in joint_memory.BITS.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert round(sizes[0], 1) == 23.8
    step = joint_memory.learning(model, transformer, 256)
    call, placed = joint_memory.drawing(model, transformer, 256)
    mask, scores = 2 * (16 * 16 + 512) ** 2 / GB, 2 * 24 * 16 * 16 * 512 / GB
    assert call + mask < placed < call + 3 * mask + 2 * scores
    blocks = 19 + 38
    assert step > call + 0.5 * blocks * 2 * (16 * 16 + 512) * 3072 / GB  # it keeps what went into each block
    assert step < sizes[0] / 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "billions"),
    [  # as the models' pages and files have them
        ("Stable Diffusion 3 medium", 2.08),
        ("Stable Diffusion 3.5 medium", 2.47),
        ("Stable Diffusion 3.5 large, and Turbo", 8.15),
        ("FLUX.1 dev", 11.90),
        ("FLUX.1 schnell", 11.89),
        ("Z-Image, and Turbo", 6.15),
        ("FLUX.2 klein 4B, and base", 3.88),
    ],
)
def test_each_transformer_is_as_large_as_the_released_one(name: str, billions: float) -> None:
    model = joint_memory.MODELS[name]
    assert round(joint_memory.sizes(model, joint_memory.made(model.transformer))[0], 2) == billions


@pytest.mark.slow
def test_the_docs_have_the_scripts_rows() -> None:
    run = [sys.executable, str(ROOT / "benchmarks/joint_memory.py")]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(rows) == 3 + 5 * len(joint_memory.MODELS)
    bold = [row for row in rows if not row.startswith(("| billions", "| 1024 px", "| GB"))]
    assert [row for row in bold if row not in page] == []


def test_what_a_card_holds() -> None:
    assert joint_memory.cards(11.8) == " (12, 16, 24)"  # 12 * 2**30 bytes are 12.9 GB, of which 1 is for the system
    assert joint_memory.cards(11.9) == " (16, 24)"
    assert joint_memory.cards(30.0) == " (none)"
