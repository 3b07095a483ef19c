"""The parts of a U-Net: time embedding, group norm, residual block, attention, resampling.

Tensors stay channels_last from the entrance to the exit, so attention's tokens (B, H*W, C) are a view.

What lets a network attend to a text: cross-attention, Stable Diffusion's block around it, a text as one vector.

h += attention(norm(h));  h += cross(norm(h), context);  h += geglu(norm(h))        (Rombach et al. 2022, app. E)

Initial weights as a pure function of a seed and each weight's name; torch's global generator is not touched.

The inputs of a network: what x, t, label, context and concat may be, and the sentence for each that may not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan import seeds
from kuosan.errors import Error
from kuosan.networks.config import DiTConfig, UNetConfig
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

    Enlarged, a 3x3 kernel sees only 2x2 different pixels, so large images take four 2x2 convolutions before the
    enlargement instead: four ninths of the multiplications.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or of `size`, a row or a column less."""
        H, W = x.shape[2:]
        height, width = size or (2 * H, 2 * W)
        if (height, width) != (2 * H, 2 * W) or H * W < 256:  # below, summing the kernels costs more than it saves
            return super().forward(upsample(x)[:, :, :height, :width])
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
    """x + conv2(act(norm2(conv1(act(norm1(x)))))), conditioned on the time between (Ho et al. 2020; ADM's
    resampling inside).

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

    def __init__(self, channels: int, *, head_channels: int | None, groups: int | None, eps: float) -> None:
        super().__init__()
        self.heads = channels // (head_channels or channels)
        self.norm = nn.Identity() if groups is None else GroupNorm(groups, channels, eps)
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


class Context(NamedTuple):
    """What a network attends to: features of L tokens of text, and which of them are there."""

    features: Tensor  # (B, L, W)
    mask: Tensor | None = None  # (B, L) bool, False where a row is shorter; at least one True a row

    def attention_mask(self) -> Tensor | None:
        """The mask as attention takes it: (B, 1, 1, L)."""
        return None if self.mask is None else self.mask[:, None, None, :]

    def mean(self) -> Tensor:
        """The mean over the tokens that are there: (B, W) float32."""
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
        source = h if context is None else context.features.to(h.dtype)
        q, k, v = (self._heads(part) for part in (self.q(h), self.k(source), self.v(source)))
        mixed = attend(q, k, v, None if context is None else context.attention_mask())
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


class TransformerBlock(nn.Module):
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
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, context_width, mlp) for _ in range(depth))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        B, C, H, W = x.shape
        h = self.entrance(self.norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C))
        for block in cast(Iterable[TransformerBlock], self.blocks):
            h = block(h, context)
        return cast(Tensor, x + self.out(h).view(B, H, W, C).permute(0, 3, 1, 2))


class ContextAttention(Attention):
    """Attention between all pixels, and behind it attention to a context: h += out(attention(norm(h), context)).

    So an unconditional network takes captions later: its own layers stay, and what is added begins as zero.
    """

    def __init__(
        self, channels: int, *, head_channels: int | None, groups: int, eps: float, context_width: int
    ) -> None:
        super().__init__(channels, head_channels=head_channels, groups=groups, eps=eps)
        self.cross_norm = GroupNorm(groups, channels, eps)
        self.cross = CrossAttention(channels, self.heads, context_width)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        x = super().forward(x)
        B, C, H, W = x.shape
        tokens = self.cross_norm(x).permute(0, 2, 3, 1).reshape(B, H * W, C)
        return cast(Tensor, x + self.cross(tokens, context).view(B, H, W, C).permute(0, 3, 1, 2))


class Pooled(nn.Linear):
    """A context as one vector, added to the time embedding: (B, W) -> (B, time_width). It begins as zero."""

    def embed(self, context: Context) -> Tensor:
        """Each row by itself in sampling, so that its bits do not depend on how many are beside it."""
        with torch.autocast(context.features.device.type, enabled=False):
            rows = context.mean().to(self.weight.dtype)
            if torch.is_grad_enabled() or rows.device.type != "cpu":
                return cast(Tensor, self(rows))
            return torch.cat([self(rows[i : i + 1]) for i in range(len(rows))])


class VectorEmbedding(nn.Module):
    """A vector an image, added to the time embedding: (B, W) -> (B, time_width), each row by itself in sampling."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.up, self.out = nn.Linear(width, time_width), nn.Linear(time_width, time_width)

    def forward(self, vector: Tensor) -> Tensor:
        with torch.autocast(vector.device.type, enabled=False):
            rows = vector.to(self.up.weight.dtype)
            alone = not torch.is_grad_enabled() and rows.device.type == "cpu"
            parts = [rows[i : i + 1] for i in range(len(rows))] if alone else [rows]
            return torch.cat([self.out(F.silu(self.up(part))) for part in parts])


def size_vector(config: UNetConfig, pooled: Tensor, sizes: Tensor) -> Tensor:
    """The vector input of SDXL (Podell et al. 2023, 2.2): (B, P) and (B, n) -> (B, vector_width) float32.

    Args:
        pooled: a text as one vector.
        sizes: in pixels: original height and width, top and left of the crop, target height and width.

    Raises: `Error` for other widths or counts than the network has.
    """
    flat = sizes.reshape(-1).float()
    features = time_features(
        flat, config.size_width, cos_first=config.cos_first, freq_shift=config.freq_shift, dtype=torch.float32
    )
    vector = torch.cat([pooled.float(), features.reshape(len(sizes), -1).to(pooled.device)], dim=1)
    if vector.shape[1] != config.vector_width:
        raise Error(
            f"a pooled text of {pooled.shape[1]} channels with {sizes.shape[1]} sizes of {config.size_width} makes a "
            f"vector of {vector.shape[1]}; this network takes {config.vector_width}: give it its own text encoder's "
            f"text and as many sizes as it was trained with (6 in SDXL, 5 in its refiner)."
        )
    return vector


def normed(norm: nn.LayerNorm, h: Tensor) -> Tensor:
    """A layer norm in the dtype of the tokens, whatever its weights have."""
    return F.layer_norm(h, norm.normalized_shape, norm.weight.to(h.dtype), norm.bias.to(h.dtype), norm.eps)


@torch.no_grad()
def initialise(network: nn.Module, seed: int, rows_std: float = 1.0) -> None:
    """Draw every weight of a U-Net: uniform of variance 2 / (fan_in + fan_out), biases zero (Ho et al. 2020).

    Zero as well: the last layer of every residual branch and of the network, so that a block begins as its
    shortcut. One stream a weight: adding a layer leaves the draws of the others as they were.

    Args:
        rows_std: of the rows of tables, whose last (of labels: the null label's) is zero. Of a U-Net's labels 1, as in
            ADM: beside a time embedding that varies by 0.2, rows of 0.02 change nothing for hundreds of steps.
    """
    for name, module in network.named_modules():
        match module:
            case nn.GroupNorm() | nn.LayerNorm():
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            case nn.Conv2d() | nn.Linear():
                _fan_average(module.weight, seed, name)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case nn.Embedding():
                rows = seeds.rng(seed, f"init {name}").standard_normal(tuple(module.weight.shape), dtype="float32")
                module.weight.copy_(torch.from_numpy(rows_std * rows))
                module.weight[-1].zero_()
    for module in network.modules():
        match module:
            case ResidualBlock():
                nn.init.zeros_(module.conv2.weight)
            case Attention() | Transformer():
                nn.init.zeros_(module.out.weight)
            case Pooled():
                nn.init.zeros_(module.weight)
        if isinstance(module, ContextAttention):
            nn.init.zeros_(module.cross.out.weight)
    decoder = getattr(network, "decoder", None)
    if decoder is not None:
        nn.init.zeros_(decoder.exit.weight)


def _fan_average(weight: Tensor, seed: int, name: str) -> None:
    area = math.prod(weight.shape[2:])
    bound = math.sqrt(6 / (area * (weight.shape[0] + weight.shape[1])))  # uniform(-b, b) has variance b²/3
    draws = seeds.rng(seed, f"init {name}").random(tuple(weight.shape), dtype="float32")
    weight.copy_(torch.from_numpy((2 * draws - 1) * bound))


def check_context(config: UNetConfig | DiTConfig, x: Tensor, context: Tensor | None, mask: Tensor | None) -> None:
    """Refuse a context that this network cannot take, or has no input for."""
    width = config.context_width
    if width is None:
        if context is not None or mask is not None:
            raise Error("this network has no context input (context_width is None): leave context out.")
        return
    if context is None or context.ndim != 3 or len(context) != len(x) or context.shape[2] != width:
        got = "missing" if context is None else f"of shape {tuple(context.shape)}"
        raise Error(
            f"context is {got}; this network is conditioned on text: pass context of shape ({len(x)}, L, {width})."
        )
    if mask is not None and (mask.shape != context.shape[:2] or mask.dtype != torch.bool):
        raise Error(
            f"context_mask is {str(mask.dtype).removeprefix('torch.')} of shape {tuple(mask.shape)}; it must be bool "
            f"of shape {tuple(context.shape[:2])}."
        )


def check_vector(config: UNetConfig, x: Tensor, vector: Tensor | None) -> None:
    """Refuse a vector that this network cannot take, or has no input for. Raises: Error."""
    width = config.vector_width
    if not width and vector is not None:
        raise Error("this network has no vector input (vector_width is 0): leave vector out.")
    if width and (vector is None or vector.shape != (len(x), width)):
        got = "missing" if vector is None else f"of shape {tuple(vector.shape)}"
        raise Error(
            f"vector is {got}; this network is conditioned on a pooled text and sizes: pass vector of shape "
            f"({len(x)}, {width}), as networks.layers.size_vector makes it."
        )


def check(config: UNetConfig | DiTConfig, x: Tensor, t: Tensor, label: Tensor | None, concat: Tensor | None) -> None:
    """Refuse inputs this network cannot take; each sentence names the cure."""
    if x.ndim != 4 or x.shape[1] != config.in_channels:
        raise Error(f"x has shape {tuple(x.shape)}; this network takes (B, {config.in_channels}, H, W).")
    B, _, H, W = x.shape
    if H % config.factor or W % config.factor:
        up = tuple(-(-side // config.factor) * config.factor for side in (H, W))
        raise Error(
            f"image size {H}x{W}: this network takes sides that are multiples of {config.factor}. "
            f"Resize or pad to {up[0]}x{up[1]}."
        )
    if t.numel() not in (1, B) or t.ndim > 1:
        raise Error(f"t has shape {tuple(t.shape)}; allowed: (), (1,) or ({B},), one time an image.")
    if config.classes and (label is None or label.shape != (B,)):
        got = "missing" if label is None else f"of shape {tuple(label.shape)}"
        raise Error(
            f"label is {got}; this network has {config.classes} classes: pass int64 labels of shape ({B},), "
            f"{config.null_label} for none."
        )
    if label is not None and config.classes and label.device.type == "cpu":  # a GPU would have to be waited for
        wrong = [int(i) for i in label if not 0 <= i <= config.classes]
        if wrong:
            raise Error(
                f"label {wrong[0]}: this network takes 0 to {config.classes - 1}, or {config.classes} for none."
            )
    if not config.classes and label is not None:
        raise Error("this network has no label input (classes is 0): leave label out, or train with classes.")
    if config.concat_channels:
        wanted = (B, config.concat_channels, H, W)
        if concat is None or concat.shape != wanted:
            got = "missing" if concat is None else f"of shape {tuple(concat.shape)}"
            raise Error(f"concat is {got}; this network takes concat of shape {wanted}.")
    elif concat is not None:
        raise Error("this network has no concat input (concat_channels is 0): leave concat out.")
