"""Group norm and SiLU in one Triton kernel for channels-last features, forward and backward.

PyTorch's own group norm takes other memory layouts than its convolutions, so that features are copied back and forth;
with SiLU beside it, a third of a small UNet's step goes there.
"""

# ruff: noqa: N803, PLR0913, PLR0917
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls
# Triton compiles functions without types.
import types
from typing import Any

import torch
import triton  # type: ignore[import-not-found, unused-ignore]  # only beside a GPU
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from parts import UNet

TILE = 8192


@triton.jit
def _place(channels, HW: tl.constexpr, CPG: tl.constexpr, GB: tl.constexpr, CP: tl.constexpr):
    sample, part = tl.program_id(0), tl.program_id(1)
    groups = part * GB + tl.arange(0, GB)
    inner = tl.arange(0, CP)
    channel = groups[:, None] * CPG + inner[None, :]
    inside = (inner[None, :] < CPG) & (groups[:, None] >= 0)
    rows = tl.arange(0, HW)
    offset = sample * HW * channels + rows[:, None, None] * channels + channel[None, :, :]
    return sample, groups, channel, inside, offset


@triton.jit
def _forward(
    x, w, b, y, mean, rstd, channels, G: tl.constexpr, HW: tl.constexpr, CPG: tl.constexpr, GB: tl.constexpr,
    CP: tl.constexpr, SILU: tl.constexpr, eps,
):  # fmt: skip
    sample, groups, channel, inside, offset = _place(channels, HW, CPG, GB, CP)
    mask = inside[None, :, :] & (tl.arange(0, HW)[:, None, None] >= 0)
    value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    centre = tl.sum(tl.sum(value, 0), 1) / (HW * CPG)
    apart = tl.where(mask, value - centre[None, :, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(tl.sum(apart * apart, 0), 1) / (HW * CPG) + eps)
    tl.store(mean + sample * G + groups, centre)
    tl.store(rstd + sample * G + groups, scale)
    weight = tl.load(w + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(b + channel, mask=inside, other=0.0).to(tl.float32)
    out = apart * scale[None, :, None] * weight[None, :, :] + bias[None, :, :]
    if SILU:
        out = out / (1 + tl.exp(-out))
    tl.store(y + offset, out, mask=mask)


@triton.jit
def _backward(
    x, w, b, dy, mean, rstd, dx, dw, db, channels, G: tl.constexpr, HW: tl.constexpr, CPG: tl.constexpr,
    GB: tl.constexpr, CP: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    sample, groups, channel, inside, offset = _place(channels, HW, CPG, GB, CP)
    mask = inside[None, :, :] & (tl.arange(0, HW)[:, None, None] >= 0)
    value = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(dy + offset, mask=mask, other=0.0).to(tl.float32)
    centre, scale = tl.load(mean + sample * G + groups), tl.load(rstd + sample * G + groups)
    weight = tl.load(w + channel, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(b + channel, mask=inside, other=0.0).to(tl.float32)
    normed = tl.where(mask, (value - centre[None, :, None]) * scale[None, :, None], 0.0)
    if SILU:
        out = normed * weight[None, :, :] + bias[None, :, :]
        chance = 1 / (1 + tl.exp(-out))
        grad = grad * chance * (1 + out * (1 - chance))
    tl.store(dw + sample * channels + channel, tl.sum(grad * normed, 0), mask=inside)
    tl.store(db + sample * channels + channel, tl.sum(grad, 0), mask=inside)
    grad = grad * weight[None, :, :]
    first = tl.sum(tl.sum(grad, 0), 1) / (HW * CPG)
    second = tl.sum(tl.sum(grad * normed, 0), 1) / (HW * CPG)
    out = scale[None, :, None] * (grad - first[None, :, None] - normed * second[None, :, None])
    tl.store(dx + offset, out, mask=mask)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x.shape
        y = torch.empty_like(x)
        mean, rstd = (torch.empty(count, groups, dtype=torch.float32, device=x.device) for _ in range(2))
        sizes = _sizes(channels, groups, height * width)
        grid = (count, groups // sizes["GB"])
        _forward[grid](x, weight, bias, y, mean, rstd, channels, SILU=silu, eps=eps, num_warps=8, **sizes)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        count, channels, height, width = x.shape
        dx = torch.empty_like(x)
        dw, db = (torch.empty(count, channels, dtype=torch.float32, device=x.device) for _ in range(2))
        sizes = _sizes(channels, ctx.groups, height * width)
        grid = (count, ctx.groups // sizes["GB"])
        _backward[grid](
            x, weight, bias, dy, mean, rstd, dx, dw, db, channels, SILU=ctx.silu, num_warps=8, **sizes
        )  # fmt: skip
        return dx, dw.sum(0).to(weight.dtype), db.sum(0).to(bias.dtype), None, None, None


def _sizes(channels: int, groups: int, pixels: int) -> dict[str, int]:
    own = channels // groups
    padded = 1 << (own - 1).bit_length()
    together = max(1, min(groups, TILE // (pixels * padded)))
    return {"G": groups, "HW": pixels, "CPG": own, "GB": 1 << (together.bit_length() - 1), "CP": padded}


class FusedNorm(nn.Module):
    """A group norm's weights, with SiLU after it or without, in one kernel."""

    def __init__(self, norm: nn.GroupNorm, *, silu: bool) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.silu = norm.num_groups, norm.eps, silu

    def forward(self, features: Tensor) -> Tensor:
        """Norm `[batch, channels, height, width]`; height times width must be a power of two."""
        normed: Tensor = _Norm.apply(features, self.weight, self.bias, self.groups, self.eps, self.silu)
        return normed


def fuse_norms(unet: UNet) -> None:
    """Put fused norms into a UNet that computes in training; its parameters keep their order."""
    for module in [*unet.modules()]:
        if isinstance(module, ResnetBlock2D):
            block: Any = module
            block.norm1, block.norm2 = FusedNorm(block.norm1, silu=True), FusedNorm(block.norm2, silu=True)
            block.time_emb_proj = nn.Sequential(block.nonlinearity, block.time_emb_proj)
            block.nonlinearity = nn.Identity()
        elif isinstance(module, Transformer2DModel):
            module.norm = FusedNorm(module.norm, silu=False)
            module._get_output_for_continuous_inputs = types.MethodType(_add_attended, module)
    unet.conv_norm_out = FusedNorm(unet.conv_norm_out, silu=True)
    unet.conv_act = nn.Identity()


def _add_attended(
    block: Transformer2DModel, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int,
    inner_dim: int,
) -> Tensor:  # fmt: skip
    """Diffusers' own, but that features stay channels-last."""
    features = block.proj_out(hidden_states).reshape(batch_size, height, width, inner_dim)
    attended: Tensor = features.permute(0, 3, 1, 2) + residual
    return attended
