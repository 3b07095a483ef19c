"""Group norm, with what stands around it in a U-Net: y = act((1 + scale) * norm(x + bias) + shift).

torch's own kernel is poor on a CPU for channels_last tensors, its backward pass worst (up to 10x what follows). Here
the images are taken a few at a time, so that every pass over them but the first finds them in the cache, and the
arithmetic is float32 whatever the tensors are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CACHED = 1 << 19  # elements worked on at once, by experiment: 2 MB in float32


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018) that can add a bias before, scale and shift after, and end in SiLU.

    `bias`, `scale` and `shift` are (B, C).
    """

    def forward(
        self,
        x: Tensor,  # (B, C, H, W)
        *,
        act: bool = False,
        bias: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        if x.device.type == "cpu" and x.dtype != torch.float64:
            return self._cached(x, act, bias, scale, shift)
        if bias is not None:
            x = x + bias.to(x.dtype)[:, :, None, None]
        y = F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        if scale is not None and shift is not None:
            y = y * (1 + scale.to(x.dtype)[:, :, None, None]) + shift.to(x.dtype)[:, :, None, None]
        return F.silu(y) if act else y

    def _cached(self, x: Tensor, act: bool, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        B, C = x.shape[:2]
        gain, offset = self.weight.float().expand(B, C), self.bias.float().expand(B, C)
        if scale is not None and shift is not None:
            gain, offset = gain * (1 + scale.float()), torch.addcmul(offset + shift.float(), offset, scale.float())
        before = None if bias is None else bias.float()
        y = _CachedNorm.apply(x, before, gain, offset, self.num_groups, self.eps, act)  # type: ignore[no-untyped-call]
        return cast(Tensor, y)


class _CachedNorm(torch.autograd.Function):
    """y = act(gain * norm(x + before) + offset) = act(k (x + lag) + offset), the coefficients float32 (B, C)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, before: Tensor | None, gain: Tensor, offset: Tensor, groups: int, eps: float, act: bool
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y = torch.empty_like(x)
        mean, lag, std_inverse = torch.empty(3, *gain.shape)
        for part in _parts(x):
            h = _tokens(x[part]).float()
            mean[part], moved, square = h.mean(1), mean[part], (h * h).mean(1)
            if before is not None:  # E (x + b)² = E x² + b (2 E x + b): no pass over the pixels
                square += before[part] * (2 * moved + before[part])
                moved = moved + before[part]
            centre = _over_groups(moved, groups)
            lag[part] = moved - mean[part] - centre
            std_inverse[part] = ((_over_groups(square, groups) - centre**2).clamp_(min=0) + eps).rsqrt_()
            k = std_inverse[part] * gain[part]
            z = torch.addcmul(torch.addcmul(offset[part], k, lag[part])[:, None], h, k[:, None])
            _tokens(y[part]).copy_(F.silu(z, inplace=True) if act else z)
        ctx.save_for_backward(x, gain, offset, mean, lag, std_inverse)
        ctx.groups, ctx.act, ctx.biased = groups, act, before is not None
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, offset, mean, lag, std_inverse = ctx.saved_tensors
        dy = grads[0].contiguous(memory_format=torch.channels_last)
        dx, pixels = torch.empty_like(x), x.shape[2] * x.shape[3]
        d_before, d_gain, d_offset = (torch.empty_like(gain) for _ in range(3))
        for part in _parts(x):
            h, g = _tokens(x[part]).float(), _tokens(dy[part]).float()
            r, k = std_inverse[part], std_inverse[part] * gain[part]
            if ctx.act:
                z = torch.addcmul(torch.addcmul(offset[part], k, lag[part])[:, None], h, k[:, None])
                g = torch.ops.aten.silu_backward(g, z)
            mean_g = g.mean(1)
            mean_gh = torch.addcmul((g * h).mean(1), lag[part], mean_g)
            # d(x + before) = k g - mean_group(k g) - r² (x + lag) mean_group(k g (x + lag))
            slope = r**2 * _over_groups(k * mean_gh, ctx.groups)
            flat = torch.addcmul(_over_groups(k * mean_g, ctx.groups), slope, lag[part])
            if ctx.biased:
                d_before[part] = pixels * (k * mean_g - flat - slope * mean[part])
            d_gain[part], d_offset[part] = pixels * r * mean_gh, pixels * mean_g
            d = torch.addcmul(-flat[:, None], g, k[:, None]).addcmul_(h, -slope[:, None])
            _tokens(dx[part]).copy_(d)
        return dx, d_before if ctx.biased else None, d_gain, d_offset, None, None, None


def _parts(x: Tensor) -> Iterator[slice]:
    """Slices of the batch small enough for the cache."""
    step = max(1, _CACHED // x[0].numel())
    return (slice(i, i + step) for i in range(0, len(x), step))


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) channels_last -> (B, H*W, C), the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _over_groups(x: Tensor, groups: int) -> Tensor:
    """The mean over each group's channels, repeated for each of them: (B, C) -> (B, C)."""
    return x.view(len(x), groups, -1).mean(2, keepdim=True).expand(-1, -1, x.shape[1] // groups).reshape(x.shape)
