from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from torch.testing import assert_close

from cones2.learning.losses import add_noise, displacement, mean_shift, preservation_loss, subject_loss


def full(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, float(value))


@pytest.mark.parametrize(
    ("prediction_type", "target"), [("epsilon", 2.0), ("sample", 1.0), ("v_prediction", 0.8 * 2 - 0.6 * 1)]
)
def test_noise_worked_by_hand(prediction_type: str, target: float) -> None:
    noised = add_noise(full(1, 1, 2, 3, 5), full(2, 1, 2, 3, 5), torch.tensor([0.64]), prediction_type)
    assert_close(noised.latents, full(0.8 * 1 + 0.6 * 2, 1, 2, 3, 5))
    assert_close(noised.target, full(target, 1, 2, 3, 5))


def test_noise_agrees_with_diffusers() -> None:
    scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, noise = torch.randn(2, 3, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 500, 999])
    noised = add_noise(latents, noise, scheduler.alphas_cumprod[timesteps], "v_prediction")
    assert_close(noised.latents, scheduler.add_noise(latents, noise, timesteps))
    assert_close(noised.target, scheduler.get_velocity(latents, noise, timesteps))


def test_subject_loss_is_a_mean_square_in_float32() -> None:
    loss = subject_loss(full(1, 2, 3, 5, 7).bfloat16(), full(4, 2, 3, 5, 7))
    assert loss.dtype == torch.float32
    assert_close(loss, torch.tensor(9.0))


def test_subject_loss_on_the_subject_alone_worked_by_hand() -> None:
    # Two photos of two cells and two channels. In the first, one cell is the subject's and a quarter of the other:
    # (1 * (1 + 9) / 2 + 0.25 * (4 + 0) / 2) / 1.25 = 4.4; in the second, only the cell with error 2.
    prediction = torch.tensor([[[[1.0, 2]], [[3, 0]]], [[[7, 2]], [[7, 2]]]])
    weights = torch.tensor([[[[1.0, 0.25]]], [[[0, 1]]]])
    assert_close(subject_loss(prediction, torch.zeros(2, 2, 1, 2), weights), torch.tensor((4.4 + 4) / 2))


def test_even_weights_are_no_weights() -> None:
    prediction, target = torch.randn(2, 2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert_close(subject_loss(prediction, target, full(0.3, 2, 1, 5, 7)), subject_loss(prediction, target))


def test_preservation_loss_worked_by_hand() -> None:
    # Two captions of three positions, width 2. The first moved by (3, 4) at its own position, by (1, 2) at the last;
    # the second by (2, 0) at its first: ((1 + 4) + 4) / 2.
    moved = torch.tensor([[[0.0, 0], [3, 4], [1, 2]], [[2, 0], [0, 0], [9, 9]]])
    own = torch.tensor([[False, True, False], [False, False, True]])
    original = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    assert_close(preservation_loss(original + moved, original, own), torch.tensor(4.5))


def test_mean_shift_worked_by_hand() -> None:
    # A class word of two tokens, at positions 1-2 in one caption and 0-1 in the other.
    own = torch.tensor([[False, True, True], [True, True, False]])
    shift = torch.tensor([[[9.0, 9], [1, 2], [3, 4]], [[3, 6], [5, 0], [9, 9]]])
    residual = mean_shift([(shift, torch.zeros(2, 3, 2), own)], 2)
    assert residual.dtype == torch.float32
    assert_close(residual, torch.tensor([[2.0, 4], [4, 2]]))


@given(st.integers(1, 7), st.integers(1, 3), st.integers(0, 2**31))
def test_mean_shift_does_not_depend_on_chunks(size: int, class_tokens: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    tuned, original = torch.randn(2, 7, 5, 3, generator=draw)
    own = torch.zeros(7, 5, dtype=torch.bool)
    for row, start in enumerate(torch.randint(6 - class_tokens, (7,), generator=draw).tolist()):
        own[row, start : start + class_tokens] = True
    chunks = zip(*(torch.split(each, size) for each in (tuned, original, own)), strict=True)
    assert_close(
        mean_shift(chunks, class_tokens), mean_shift([(tuned, original, own)], class_tokens), rtol=1e-6, atol=0
    )


@given(st.floats(-10, 10, width=32))
def test_only_the_class_words_shift_counts_as_residual_and_the_rest_as_loss(shift: float) -> None:
    own = torch.tensor([[False, True, False, False]])
    original = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    moved = original + torch.where(own[..., None], shift, 0.0)
    assert preservation_loss(moved, original, own) == 0
    assert_close(mean_shift([(moved, original, own)], 1), full(shift, 1, 3), rtol=1e-5, atol=1e-5)


def test_displacement_worked_by_hand() -> None:
    # Every embedding is half as long again: other words moved by a quarter of their squared length, half their length.
    original = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(0))
    own = torch.zeros(5, 7, dtype=torch.bool)
    own[:, 2:4] = True
    chunks = zip(*(torch.split(each, 2) for each in (1.5 * original, original, own)), strict=True)
    moved = displacement(chunks)
    lengths = original.square().sum(-1).masked_fill(own, 0).sum(-1)
    assert moved.preservation == pytest.approx(0.25 * float(lengths.mean()), rel=1e-5)
    assert moved.relative == pytest.approx(0.5, rel=1e-5)
