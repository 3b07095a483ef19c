"""The U-Net (Ronneberger et al. 2015; Ho et al. 2020; Dhariwal & Nichol 2021): out = decoder(encoder(x, t)).

It knows no noise: x, a timestep t and the conditioning (label, context, concat) go in, `out_channels` come out.
The encoder stands alone, for it is also the body of the noisy classifier.

A classifier of noisy or clean images: a U-Net's first half, averaged over the image (Dhariwal & Nichol 2021, 4).

logits = head(mean(silu(norm(encoder(x, t).h))))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kuosan.errors import Error
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.config import DiTConfig, UNetConfig
from kuosan.networks.layers import (
    Attention,
    Context,
    ContextAttention,
    DownConv,
    Pooled,
    ResidualBlock,
    Transformer,
    UpConv,
    VectorEmbedding,
    attend,
    check,
    check_context,
    check_vector,
    initialise,
    time_features,
)
from kuosan.networks.norm import GroupNorm


class UNetEncoding(NamedTuple):
    """What the encoder hands on: the coarsest features, every skip (finest first), and the time embedding."""

    h: Tensor  # (B, C_last, H/2^k, W/2^k)
    skips: list[Tensor]
    emb: Tensor  # (B, time_width), or (1, time_width) where all images have one time


def residual_block(config: UNetConfig, channels: int, out: int, resample: str = "") -> ResidualBlock:
    """A residual block with the config's norm, conditioning and dropout."""
    return ResidualBlock(
        channels,
        out,
        groups=config.groups,
        eps=config.norm_eps,
        scale_shift=config.time_conditioning == "scale_shift",
        dropout=config.dropout,
        resample=resample,
    )


def attention(config: UNetConfig, level: int) -> nn.Module:
    """A level's attention, self-attention or with attention to the context; the identity where it has none.

    Level -1 is the middle's, with the coarsest level's width, heads and depth.
    """
    middle, channels, head_channels = level < 0, config.widths[level], config.head_width(level)
    if not (config.middle_attention if middle else config.attention[level]):
        return nn.Identity()
    if config.context_width is not None and config.context_attention == "cross":
        return ContextAttention(
            channels,
            head_channels=head_channels,
            groups=config.groups,
            eps=config.norm_eps,
            context_width=config.context_width,
        )
    if config.context_width is not None:
        return Transformer(
            channels,
            head_channels=head_channels,
            context_width=config.context_width,
            depth=config.depth(level),
            mlp=config.transformer_mlp,
            groups=config.groups,
        )
    groups = config.groups if config.middle_norm or not middle else None
    return Attention(channels, head_channels=head_channels, groups=groups, eps=config.norm_eps)


class Conditioning(nn.Linear):
    """One matmul that makes every block's share of the time conditioning, handed out in order."""

    def __init__(self, time_width: int, blocks: Iterable[nn.Module]) -> None:
        self.widths = [cast(int, block.time_width) for block in blocks]
        super().__init__(time_width, sum(self.widths))

    def shares(self, emb: Tensor, batch: int) -> Iterator[Tensor]:
        """The shares of the embedding (B or 1, time_width), one (B, block.time_width) a block.

        In sampling each image's product is its own: one of many rows is rounded otherwise than one of few, and in
        bf16 that moves an image by what stands beside it.
        """
        with full_precision(emb):
            rows = F.silu(emb)
            alone = not torch.is_grad_enabled() and emb.device.type == "cpu"
            made = torch.cat([self(rows[i : i + 1]) for i in range(len(rows))]) if alone else self(rows)
            return iter(made.expand(batch, -1).split(self.widths, dim=1))


class UNetLevel(nn.Module):
    """The blocks of one resolution, each followed by its attention, then the way to the next resolution."""

    def __init__(self, blocks: list[ResidualBlock], attentions: list[nn.Module], exit: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.exit = exit  # Identity, a convolution, or a resampling residual block


def residual_blocks(modules: Iterable[nn.Module]) -> list[ResidualBlock]:
    """All residual blocks inside `modules`, in the order they run."""
    return [m for module in modules for m in module.modules() if isinstance(m, ResidualBlock)]


class UNetEncoder(nn.Module):
    """The first half: entrance, levels going down, middle. `forward` gives an `Encoding`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        entering = (config.in_channels + config.concat_channels) * config.patch**2
        self.entrance = nn.Conv2d(entering, config.channels, 3, padding=1)
        self.time = nn.Sequential(
            nn.Linear(config.channels, config.time_width), nn.SiLU(), nn.Linear(config.time_width, config.time_width)
        )
        self.label = nn.Embedding(config.classes + 1, config.time_width) if config.classes else None
        pooled = config.context_width if config.context_vector else None
        self.pooled = None if pooled is None else Pooled(pooled, config.time_width)
        self.vector = VectorEmbedding(config.vector_width, config.time_width) if config.vector_width else None
        levels, channels = [], config.channels
        for i, width in enumerate(config.widths):
            blocks = [residual_block(config, width if j else channels, width) for j in range(config.blocks)]
            attentions = [attention(config, i) for _ in blocks]
            levels.append(UNetLevel(blocks, attentions, self._down(width, last=i == config.levels - 1)))
            channels = width
        self.levels = nn.ModuleList(levels)
        self.middle = nn.ModuleList(
            [
                residual_block(config, channels, channels),
                attention(config, -1),
                residual_block(config, channels, channels),
            ]
        )
        self.conditioning = Conditioning(config.time_width, residual_blocks([self.levels, self.middle]))

    def _down(self, width: int, *, last: bool) -> nn.Module:
        if last:
            return nn.Identity()
        if self.config.resample == "block":
            return residual_block(self.config, width, width, "down")
        return DownConv(width, asymmetric=self.config.resample == "conv_asymmetric")

    def embed(
        self, t: Tensor, label: Tensor | None, context: Context | None = None, vector: Tensor | None = None
    ) -> Tensor:
        """The time embedding, with the label's row, the context's mean and the vector added: (B or 1, time_width)."""
        cos_first, freq_shift = self.config.cos_first, self.config.freq_shift
        width = self.config.channels
        emb = embed(self.time, self.label, t, label, width=width, cos_first=cos_first, freq_shift=freq_shift)
        if self.vector is not None and vector is not None:
            emb = emb + self.vector(vector)
        return emb if self.pooled is None or context is None else emb + self.pooled.embed(context)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        *,
        label: Tensor | None = None,
        concat: Tensor | None = None,
        context: Context | None = None,
        vector: Tensor | None = None,
    ) -> UNetEncoding:
        check(self.config, x, t, label, concat)
        emb = self.embed(t, label, context, vector)
        shares = self.conditioning.shares(emb, len(x))
        if concat is not None:
            x = torch.cat([x, concat.to(x.dtype)], dim=1)
        if self.config.patch > 1:
            x = F.pixel_unshuffle(x, self.config.patch)
        h = self.entrance(x.to(self.entrance.weight.dtype, memory_format=torch.channels_last))
        skips = [h]
        for level in cast(Iterable[UNetLevel], self.levels):
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = attending(attention, self._run(block, h, next(shares)), context)
                skips.append(h)
            if not isinstance(level.exit, nn.Identity):
                is_block = isinstance(level.exit, ResidualBlock)
                h = self._run(level.exit, h, next(shares)) if is_block else level.exit(h)
                skips.append(h)
        h = self._run(self.middle[0], h, next(shares))
        h = self._run(self.middle[2], attending(self.middle[1], h, context), next(shares))
        return UNetEncoding(h, skips, emb)

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        return run(block, *inputs, recompute=self.config.checkpointing)


class UNetDecoder(nn.Module):
    """The second half: levels going up, each block joined with its skip, then norm and the exit convolution."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        skips = _skip_widths(config)
        levels, channels = [], config.widths[-1]
        for i in reversed(range(config.levels)):
            width, blocks = config.widths[i], []
            for _ in range(config.blocks + 1):
                blocks.append(residual_block(config, channels + skips.pop(), width))
                channels = width
            attentions = [attention(config, i) for _ in blocks]
            levels.append(UNetLevel(blocks, attentions, self._up(width, last=i == 0)))
        self.levels = nn.ModuleList(levels)
        self.conditioning = Conditioning(config.time_width, residual_blocks([self.levels]))
        self.norm = GroupNorm(config.groups, channels, config.norm_eps)
        self.exit = nn.Conv2d(channels, config.out_channels * config.patch**2, 3, padding=1)

    def _up(self, width: int, *, last: bool) -> nn.Module:
        if last:
            return nn.Identity()
        return residual_block(self.config, width, width, "up") if self.config.resample == "block" else UpConv(width)

    def forward(self, encoding: UNetEncoding, context: Context | None = None) -> Tensor:
        h, skips, emb = encoding
        skips, shares = list(skips), self.conditioning.shares(emb, len(h))
        recompute = self.config.checkpointing
        for level in cast(Iterable[UNetLevel], self.levels):
            for block, attention in zip(level.blocks, level.attentions, strict=True):
                h = run(block, torch.cat([h, skips.pop()], dim=1), next(shares), recompute=recompute)
                h = attending(attention, h, context)
            is_block = isinstance(level.exit, ResidualBlock)
            if isinstance(level.exit, UpConv):
                h = level.exit(h, skips[-1].shape[2:])
            elif is_block:
                h = run(level.exit, h, next(shares), recompute=recompute)
        out = self.exit(self.norm(h, act=True))
        return F.pixel_shuffle(out, self.config.patch) if self.config.patch > 1 else cast(Tensor, out)


class UNet(nn.Module):
    """The whole network; its weights are a pure function of (config, seed)."""

    def __init__(self, config: UNetConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):  # torch's own initialisation would draw from its global generator
            self.encoder = UNetEncoder(config)
            self.decoder = UNetDecoder(config)
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, seed)

    def forward(
        self,
        x: Tensor,  # (B, in_channels, H, W)
        t: Tensor,  # () | (1,) | (B,), whole or fractional
        *,
        label: Tensor | None = None,  # (B,) int64, `config.null_label` = no class
        context: Tensor | None = None,  # (B, L, context_width): a text's features, token by token
        context_mask: Tensor | None = None,  # (B, L) bool: False where a row's text is shorter
        vector: Tensor | None = None,  # (B, vector_width): a pooled text and sizes, as `layers.size_vector` makes it
        concat: Tensor | None = None,  # (B, concat_channels, H, W)
    ) -> Tensor:  # (B, out_channels, H, W) in x's dtype
        check_context(self.config, x, context, context_mask)
        check_vector(self.config, x, vector)
        text = None if context is None else Context(context, context_mask)
        encoding = self.encoder(x, t, label=label, concat=concat, context=text, vector=vector)
        out = cast(Tensor, self.decoder(encoding, text)).to(x.dtype)
        return with_skip(self.config, out, concat)


def attending(attention: nn.Module, h: Tensor, context: Context | None) -> Tensor:
    """An attention as it is called: one with a context takes that as well."""
    takes_context = isinstance(attention, Transformer | ContextAttention)
    return cast(Tensor, attention(h, context) if takes_context else attention(h))


def with_skip(config: UNetConfig | DiTConfig, out: Tensor, concat: Tensor | None) -> Tensor:
    """The output (B, C, H, W), added to the first joined channels where the config says so."""
    if not config.concat_skip or concat is None:
        return out
    return out + concat[:, : out.shape[1]].to(out.dtype)


def parameter_count(config: UNetConfig) -> int:
    """How many weights a `UNet(config)` has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(config).parameters())


def embed(
    time: nn.Sequential,  # of linear maps; what makes the time embedding of its sines and cosines
    table: nn.Embedding | None,  # a row a label
    t: Tensor,  # () | (1,) | (B,)
    label: Tensor | None,  # (B,)
    *,
    width: int,  # of the sines and cosines
    cos_first: bool,
    freq_shift: float,
) -> Tensor:  # (B or 1, width of the embedding) in the weights' dtype
    """The time embedding, with the label's row added.

    In sampling all images have one time: it is embedded once, as one row, which also keeps an image's bits from
    depending on how many are beside it (a product of one row is rounded otherwise than one of many).
    """
    weight = cast(nn.Linear, time[0]).weight
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    t = t.to(weight.device).reshape(-1)
    if not torch.is_grad_enabled() and t.device.type == "cpu" and bool((t == t[0]).all()):
        t = t[:1]
    with full_precision(t):  # bf16 rounds t = 999 to 1000
        features = time_features(t, width, cos_first=cos_first, freq_shift=freq_shift, dtype=dtype)
        emb = cast(Tensor, time(features.to(weight.dtype)))
        return emb if table is None or label is None else emb + table(label)


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Autocast switched off where `x` is; the meta device knows none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def run(block: Callable[..., Tensor], *inputs: Any, recompute: bool) -> Tensor:
    """block(*inputs), its inside recomputed in the backward pass if asked (Chen et al. 2016)."""
    if recompute and torch.is_grad_enabled():
        return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
    return block(*inputs)


def _skip_widths(config: UNetConfig) -> list[int]:
    skips = [config.channels]
    for i, width in enumerate(config.widths):
        skips += [width] * (config.blocks + (i < config.levels - 1))
    return skips


class AttentionPool(nn.Module):
    """The mean over the image, attending to itself and to every cell (Radford et al. 2021): (B, C, S, S) -> (B, C)."""

    def __init__(self, channels: int, side: int, heads: int) -> None:
        super().__init__()
        self.side, self.heads = side, heads
        self.positions = nn.Embedding(side**2 + 1, channels)
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, h: Tensor) -> Tensor:
        """Raises: `Error` for another number of cells than it has positions for."""
        B, C, H, W = h.shape
        if (self.side, self.side) != (H, W):
            raise Error(
                f"this classifier ends in {H}x{W} cells and attends over {self.side}x{self.side} (pool_side): give it "
                "images of the size it was trained with."
            )
        cells = h.flatten(2).transpose(1, 2)
        cells = torch.cat([cells.mean(1, keepdim=True), cells], 1) + self.positions.weight.to(h.dtype)
        q, k, v = self.qkv(cells).view(B, -1, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        return attend(q[:, :, :1], k, v).reshape(B, C)


class Classifier(nn.Module):
    """`network(x, t)` -> logits (B, classes) float32; a judge of clean images (`noisy=False`) takes no t.

    Weights are a function of `config` and `seed` alone; on the meta device none are made.
    """

    def __init__(self, config: ClassifierConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):
            self.encoder = UNetEncoder(config.encoder)
            width = config.encoder.widths[-1]
            self.norm = GroupNorm(config.groups, width, config.norm_eps)
            heads = width // (config.head_channels or width)
            self.pool = AttentionPool(width, config.pool_side, heads) if config.pool_side else None
            self.head = nn.Linear(width, config.classes)
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, seed, rows_std=0.02)

    def forward(
        self,
        x: Tensor,  # (B, in_channels, H, W)
        t: Tensor | None = None,  # () | (1,) | (B,), whole or fractional
    ) -> Tensor:  # (B, classes) float32, float64 where the weights are
        if (t is None) == self.config.noisy:
            raise Error(
                "this classifier knows noisy images: it needs their time t."
                if self.config.noisy
                else "this classifier is a judge of clean images (noisy is false): it takes no time t."
            )
        h = self.encoder(x, x.new_zeros(1) if t is None else t).h
        h = self.norm(h, act=True)
        exact = torch.promote_types(h.dtype, torch.float32)
        with full_precision(h):
            pooled = h.to(exact).mean((2, 3)) if self.pool is None else self.pool(h).to(exact)
            return F.linear(pooled, self.head.weight.to(exact), self.head.bias.to(exact))


def classifier_parameter_count(config: ClassifierConfig) -> int:
    """How many weights a `Classifier(config)` has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in Classifier(config).parameters())
