"""What lets a network attend to a text: cross-attention, Stable Diffusion's block around it, a text as one vector.

h += attention(norm(h));  h += cross(norm(h), context);  h += geglu(norm(h))        (Rombach et al. 2022, app. E)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.networks.layers import attend
from kuosan.networks.norm import GroupNorm


class Context(NamedTuple):
    """What a network attends to: features of L pieces of text, and which of them are there."""

    features: Tensor  # (B, L, W)
    mask: Tensor | None = None  # (B, L) bool, False where a row is shorter; at least one True a row

    def heard(self) -> Tensor | None:
        """The mask as attention takes it: (B, 1, 1, L)."""
        return None if self.mask is None else self.mask[:, None, None, :]

    def mean(self) -> Tensor:
        """The mean over the pieces that are there: (B, W) float32."""
        features = self.features.float()
        if self.mask is None:
            return features.mean(1)
        there = self.mask.to(features)[..., None]
        return (features * there).sum(1) / there.sum(1)


class CrossAttention(nn.Module):
    """Attention of tokens (B, N, C) to a context of width W, or to themselves: (B, N, C), to be added."""

    def __init__(self, channels: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(context_width or channels, channels, bias=False)
        self.v = nn.Linear(context_width or channels, channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor, context: Context | None = None) -> Tensor:
        told = h if context is None else context.features.to(h.dtype)
        q, k, v = (self._heads(part) for part in (self.q(h), self.k(told), self.v(told)))
        mixed = attend(q, k, v, None if context is None else context.heard())
        return cast(Tensor, self.out(mixed.transpose(1, 2).reshape(h.shape)))

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class GEGLU(nn.Module):
    """A perceptron a * gelu(b) on each token (Shazeer 2020): (B, N, C) -> (B, N, C), to be added."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(channels, 2 * hidden)
        self.down = nn.Linear(hidden, channels)

    def forward(self, h: Tensor) -> Tensor:
        a, gate = self.up(h).chunk(2, dim=-1)
        return cast(Tensor, self.down(a * F.gelu(gate)))


class Block(nn.Module):
    """Self-attention, attention to the context, perceptron: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, heads: int, context_width: int, mlp: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.itself = CrossAttention(channels, heads)
        self.cross = CrossAttention(channels, heads, context_width)
        self.norm3 = nn.LayerNorm(channels) if mlp else None
        self.perceptron = GEGLU(channels, mlp * channels) if mlp else None

    def forward(self, h: Tensor, context: Context) -> Tensor:
        h = h + self.itself(normed(self.norm1, h))
        h = h + self.cross(normed(self.norm2, h), context)
        if self.norm3 is None or self.perceptron is None:
            return h
        return h + cast(Tensor, self.perceptron(normed(self.norm3, h)))


class Transformer(nn.Module):
    """Stable Diffusion's spatial transformer: all pixels (B, C, H, W) attend to each other and to the context.

    It begins as the identity: its last layer is zero.
    """

    def __init__(
        self, channels: int, *, head_channels: int | None, context_width: int, depth: int, mlp: int, groups: int
    ) -> None:
        super().__init__()
        heads = channels // (head_channels or channels)
        self.norm = GroupNorm(groups, channels, 1e-6)  # SD's, whatever the other norms have
        self.entrance = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(Block(channels, heads, context_width, mlp) for _ in range(depth))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        B, C, H, W = x.shape
        h = self.entrance(self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C))
        for block in cast(Iterable[Block], self.blocks):
            h = block(h, context)
        return cast(Tensor, x + self.out(h).view(B, H, W, C).permute(0, 3, 1, 2))


class Pooled(nn.Linear):
    """A context as one vector, added to the time embedding: (B, W) -> (B, time_width). It begins as zero."""

    def embed(self, context: Context) -> Tensor:
        """Each row by itself in sampling, so that its bits do not depend on how many are beside it."""
        with torch.autocast(context.features.device.type, enabled=False):
            rows = context.mean().to(self.weight.dtype)
            if torch.is_grad_enabled() or rows.device.type != "cpu":
                return cast(Tensor, self(rows))
            return torch.cat([self(rows[i : i + 1]) for i in range(len(rows))])


def normed(norm: nn.LayerNorm, h: Tensor) -> Tensor:
    """A layer norm in the dtype of the tokens, whatever its weights have."""
    return F.layer_norm(h, norm.normalized_shape, norm.weight.to(h.dtype), norm.bias.to(h.dtype), norm.eps)
