"""The parts of a U-Net: time embedding, group norm, residual block, attention, resampling.

Tensors stay channels_last from the entrance to the exit, so attention's tokens (B, H*W, C) are a view.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.networks.norm import GroupNorm


def time_features(t: Tensor, width: int, *, cos_first: bool, freq_shift: float, dtype: torch.dtype) -> Tensor:
    """Sines and cosines of t at geometric frequencies from 1 to 1/10000 (Ho et al. 2020): (B,) -> (B, width)."""
    half = width // 2
    steps = torch.arange(half, dtype=dtype, device=t.device)
    angles = t.to(dtype)[:, None] * torch.exp(-math.log(10000) / (half - freq_shift) * steps)
    waves = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.cat(waves, dim=1)


def downsample(x: Tensor) -> Tensor:
    """Average of each 2 x 2: (B, C, H, W) -> (B, C, H/2, W/2)."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """Each pixel four times: (B, C, H, W) -> (B, C, 2H, 2W)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DownConv(nn.Conv2d):
    """A stride-2 3x3 convolution; `asymmetric` pads right and below only, as DDPM's TensorFlow did."""

    def __init__(self, channels: int, *, asymmetric: bool) -> None:
        super().__init__(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)
        self.asymmetric = asymmetric

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class UpConv(nn.Conv2d):
    """Nearest neighbour, then a 3x3 convolution.

    Enlarged, a 3x3 kernel sees only 2x2 different pixels, so large pictures take four 2x2 convolutions before the
    enlargement instead: four ninths of the multiplications.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] < 256:  # below, summing the kernels costs more than it saves
            return super().forward(upsample(x))
        assert self.bias is not None
        kernels = _halves(_halves(self.weight, 2), 4)  # (out, in, 2, 2, 2, 2): row phase, row, column phase, column
        kernels = kernels.permute(2, 4, 0, 1, 3, 5).reshape(4 * self.out_channels, self.in_channels, 2, 2)
        kernels = kernels.contiguous(memory_format=torch.channels_last)
        y = F.conv2d(x, kernels, self.bias.repeat(4), padding=1)
        return cast(Tensor, _Interleave.apply(y))  # type: ignore[no-untyped-call]


def _halves(kernel: Tensor, dim: int) -> Tensor:
    """Replace a dimension of 3 taps by (phase, tap): the taps of an even output pixel, then of an odd one."""
    a, b, c = kernel.unbind(dim)
    return torch.stack([torch.stack([a, b + c], dim), torch.stack([a + b, c], dim)], dim)


class _Interleave(torch.autograd.Function):
    """(B, 4C, H+1, W+1), the four phases each shifted by its own half pixel -> (B, C, 2H, 2W), channels_last."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        y = y.permute(0, 2, 3, 1)
        B, H, W, C = y.shape[0], y.shape[1] - 1, y.shape[2] - 1, y.shape[3] // 4
        phases, out = y.reshape(B, H + 1, W + 1, 2, 2, C), y.new_empty(B, H, 2, W, 2, C)
        for p, q in ((0, 0), (0, 1), (1, 0), (1, 1)):
            out[:, :, p, :, q] = phases[:, p : p + H, q : q + W, p, q]
        return out.view(B, 2 * H, 2 * W, C).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].permute(0, 2, 3, 1)
        B, H, W, C = grad.shape[0], grad.shape[1] // 2, grad.shape[2] // 2, grad.shape[3]
        grad, phases = grad.reshape(B, H, 2, W, 2, C), grad.new_zeros(B, H + 1, W + 1, 2, 2, C)
        for p, q in ((0, 0), (0, 1), (1, 0), (1, 1)):
            phases[:, p : p + H, q : q + W, p, q] = grad[:, :, p, :, q]
        return phases.view(B, H + 1, W + 1, 4 * C).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv2(act(norm2(conv1(act(norm1(x)))))), told the time between (Ho et al. 2020; ADM's resampling inside).

    `time` is this block's share of the time conditioning: (B, out) to add, or (B, 2*out) to scale and shift with; None
    in an autoencoder, which knows no time.
    """

    def __init__(
        self,
        channels: int,
        out: int,
        *,
        groups: int,
        eps: float,
        scale_shift: bool,
        dropout: float = 0.0,
        resample: str = "",  # "down", "up" or neither
    ) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, channels, eps)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = GroupNorm(groups, out, eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
        self.resample = {"down": downsample, "up": upsample, "": None}[resample]
        self.scale_shift = scale_shift
        self.time_width = 2 * out if scale_shift else out
        self.dropout = dropout

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.norm1(x, act=True)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        if self.scale_shift and time is not None:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h, act=True, scale=scale, shift=shift)
        else:
            h = self.norm2(h, act=True, bias=time)
        if self.dropout and self.training:
            h = F.dropout(h, self.dropout)
        return cast(Tensor, self.shortcut(x) + self.conv2(h))


class Attention(nn.Module):
    """x + out(attention(norm(x))) between all pixels (B, C, H, W), in heads of `head_channels`."""

    def __init__(self, channels: int, *, head_channels: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.heads = channels // (head_channels or channels)
        self.norm = GroupNorm(groups, channels, eps)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)
        q, k, v = self.qkv(tokens).view(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        h = attend(q, k, v).transpose(1, 2).reshape(B, H * W, C)
        return cast(Tensor, x + self.out(h).view(B, H, W, C).permute(0, 3, 1, 2))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: (B, heads, L, d), k and v of any length -> (B, heads, L, d).

    mask: bool, broadcast to (B, heads, L, length of k), False where a query does not look.

    Plain matmuls in low precision on a CPU where they are quicker: in training (the fused kernel's backward is slow),
    and wherever there are no tile instructions (AMX).
    """
    low = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type == "cpu" and low and q.shape[-2] <= 1024 and (q.requires_grad or not _has_tiles()):
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        weights = torch.softmax(logits if mask is None else logits.masked_fill(~mask, -math.inf), dim=-1)
        return weights.to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, mask)


@cache
def _has_tiles() -> bool:
    return torch.cpu._is_amx_tile_supported()
