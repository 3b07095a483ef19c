"""The diffusion transformer (DiT, Peebles & Xie 2023): out = exit(blocks(patches(x) + positions, time + label)).

It knows no noise, and has the U-Net's inputs: x, a timestep t and the conditioning (label, context, concat);
`out_channels` come out. A block is h += gate·f(shift + (1 + scale)·norm(h)), for f attention and then a perceptron;
shift, scale and gate are linear in silu(time + label) and begin as zero (adaLN-Zero), so every block begins as the
identity. Conditioned on text, each block attends to it between the two, ungated and beginning as zero (PixArt, Chen et
al. 2023).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan import seeds
from kuosan.networks.config import DiTConfig
from kuosan.networks.layers import (
    Context,
    CrossAttention,
    Pooled,
    attend,
    check,
    check_context,
    initialise,
    time_features,
)
from kuosan.networks.unet import Conditioning, embed, run, with_skip

TIME_WIDTH = 256  # width of the time's sines and cosines, in DiTs of every size
EPS = 1e-6  # of every layer norm


class DiTBlock(nn.Module):
    """Attention between all tokens and a perceptron on each, both gated: (B, L, D) -> (B, L, D).

    The tokens' sum stays in float32 (float64 in a float64 network), the two branches are in the weights' precision.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.heads, self.time_width = config.heads, 6 * config.width
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.up = nn.Linear(config.width, config.mlp * config.width)
        self.down = nn.Linear(config.mlp * config.width, config.width)
        width = config.context_width
        self.cross = None if width is None else CrossAttention(config.width, config.heads, width)

    def forward(self, h: Tensor, time: Tensor, context: Context | None = None) -> Tensor:  # time: (B, 6D)
        shift, scale, gate, shift2, scale2, gate2 = time[:, None].chunk(6, dim=2)
        h = torch.addcmul(h, gate, self._attention(modulated(h, shift, scale)).to(h.dtype))
        if self.cross is not None:
            h = h + self.cross(h.to(self.cross.q.weight.dtype), context).to(h.dtype)
        return torch.addcmul(h, gate2, self._perceptron(modulated(h, shift2, scale2)).to(h.dtype))

    def _attention(self, h: Tensor) -> Tensor:
        B, L, D = h.shape
        h = self.qkv(h.to(self.qkv.weight.dtype))
        q, k, v = h.view(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return cast(Tensor, self.out(attend(q, k, v).transpose(1, 2).reshape(B, L, D)))

    def _perceptron(self, h: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.gelu(self.up(h.to(self.up.weight.dtype)), approximate="tanh")))


class Exit(nn.Module):
    """The last norm, and one linear map from a token to its patch's numbers: (B, L, D) -> (B, L, patch² out)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.time_width = 2 * config.width
        self.out = nn.Linear(config.width, config.patch**2 * config.out_channels)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:  # time: (B, 2D)
        shift, scale = time[:, None].chunk(2, dim=2)
        return cast(Tensor, self.out(modulated(h, shift, scale).to(self.out.weight.dtype)))


class DiT(nn.Module):
    """The whole network; its weights are a pure function of (config, seed)."""

    def __init__(self, config: DiTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # torch's own initialisation would draw from its global generator
            entering = (config.in_channels + config.concat_channels) * config.patch**2
            self.entrance = nn.Linear(entering, config.width)
            self.time = nn.Sequential(
                nn.Linear(TIME_WIDTH, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
            )
            self.label = nn.Embedding(config.classes + 1, config.width) if config.classes else None
            pooled = config.context_width if config.context_vector else None
            self.pooled = None if pooled is None else Pooled(pooled, config.width)
            self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
            self.exit = Exit(config)
            self.conditioning = Conditioning(config.width, [*self.blocks, self.exit])
        if device.type != "meta":
            self.to_empty(device=device)
            _initialise(self, seed)

    def forward(
        self,
        x: Tensor,  # (B, in_channels, H, W)
        t: Tensor,  # () | (1,) | (B,), whole or fractional
        *,
        label: Tensor | None = None,  # (B,) int64, `config.null_label` = no class
        context: Tensor | None = None,  # (B, L, context_width): a text's features, token by token
        context_mask: Tensor | None = None,  # (B, L) bool: False where a row's text is shorter
        concat: Tensor | None = None,  # (B, concat_channels, H, W)
    ) -> Tensor:  # (B, out_channels, H, W) in x's dtype
        check_context(self.config, x, context, context_mask)
        check(self.config, x, t, label, concat)
        text = None if context is None else Context(context, context_mask)
        emb = embed(self.time, self.label, t, label, width=TIME_WIDTH, cos_first=True, freq_shift=0.0)
        if self.pooled is not None and text is not None:
            emb = emb + self.pooled.embed(text)
        shares = self.conditioning.shares(emb, len(x))
        pixels = x if concat is None else torch.cat([x, concat.to(x.dtype)], dim=1)
        patch, weight = self.config.patch, self.entrance.weight
        h = self.entrance(to_patches(pixels, patch).to(weight.dtype))
        rows, columns = x.shape[2] // patch, x.shape[3] // patch
        kept = torch.promote_types(weight.dtype, torch.float32)
        h = h.to(kept) + positions(rows, columns, h.shape[2], x.device, kept, self.config.grid)
        for block in cast(Iterable[DiTBlock], self.blocks):
            h = run(block, h, next(shares), text, recompute=self.config.checkpointing)
        out = from_patches(self.exit(h, next(shares)), rows, columns, patch).to(x.dtype)
        return with_skip(self.config, out, concat)


def modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """shift + (1 + scale)·norm(h), the norm over each token's channels: (B, L, D) with (B, 1, D) twice."""
    return torch.addcmul(shift, 1 + scale, F.layer_norm(h, h.shape[-1:], eps=EPS))


def to_patches(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> tokens (B, H/patch · W/patch, C·patch²), channel first, then row and column within."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def from_patches(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The inverse of `to_patches`: (B, rows·columns, C·patch²) -> (B, C, rows·patch, columns·patch)."""
    B, _, C = tokens.shape
    return F.pixel_shuffle(tokens.transpose(1, 2).reshape(B, C, rows, columns), patch)


def positions(rows: int, columns: int, width: int, device: torch.device, dtype: torch.dtype, grid: int = 0) -> Tensor:
    """Fixed sines and cosines of each token's column, then of its row: (rows·columns, width).

    grid: tokens over which the longer side stretches, i -> i·grid/max(rows, columns): a larger image then has the
    positions of a smaller one, and those between; 0: as many as there are.
    """
    step = grid / max(rows, columns) if grid else 1.0
    across, down = (
        time_features(
            torch.arange(n, device=device, dtype=dtype) * step, width // 2, cos_first=False, freq_shift=0.0, dtype=dtype
        )
        for n in (columns, rows)
    )
    return torch.cat([across.expand(rows, -1, -1), down[:, None].expand(-1, columns, -1)], dim=2).flatten(0, 1)


@torch.no_grad()
def _initialise(network: DiT, seed: int) -> None:
    """The paper's: Xavier's uniform, the time embedding N(0, 0.02²), adaLN and the exit zero; one stream a weight."""
    initialise(network, seed, rows_std=0.02)
    for i in (0, 2):
        weight = cast(nn.Linear, network.time[i]).weight
        draws = seeds.rng(seed, f"init time.{i}").standard_normal(tuple(weight.shape), dtype="float32")
        weight.copy_(torch.from_numpy(0.02 * draws))
    for block in network.blocks:
        if block.cross is not None:
            nn.init.zeros_(cast(CrossAttention, block.cross).out.weight)
    nn.init.zeros_(network.conditioning.weight)
    nn.init.zeros_(network.exit.out.weight)


def parameter_count(config: DiTConfig) -> int:
    """How many weights a `DiT(config)` has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in DiT(config).parameters())
