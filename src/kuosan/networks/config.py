"""What the configurations of networks refuse, and the checks that several of them make. Torch-free.

What a U-Net is made of: `UNetConfig`, and the shape we give an image size by default. Torch-free.

One set of fields covers DDPM (Ho et al. 2020), ADM (Dhariwal & Nichol 2021) and, with the context input, Stable
Diffusion; docs/networks.md lists the settings of each.

What a diffusion transformer is made of: `DiTConfig`, and the shape we give an image size by default. Torch-free.

DiT-S, B, L and XL of Peebles & Xie 2023 (table 1) are rows of docs/networks.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from kuosan import limits
from kuosan.errors import Error, plural, shown, unknown


def refused(config: object, field: str, allowed: str, cure: str) -> Error:
    """An `Error` that names a field, its value, what is allowed, and the cure."""
    return Error(f"{type(config).__name__}.{field} is {shown(getattr(config, field))}; allowed: {allowed}. {cure}")


def is_whole(value: object, low: int) -> bool:
    """Whether a value is a whole number from `low`; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def check_counts(config: object, fields: Iterable[str]) -> None:
    """Refuse fields that are no whole numbers from 1. Raises: Error."""
    for name in fields:
        if not is_whole(getattr(config, name), 1):
            raise refused(config, name, "whole numbers from 1", f"Set {name} to 1 or more.")


def check_conditioning(config: UNetConfig | DiTConfig) -> None:
    """Refuse impossible conditioning inputs: label, context, concat. Raises: Error."""
    for name in ("classes", "concat_channels"):
        if not is_whole(getattr(config, name), 0):
            raise refused(config, name, "whole numbers from 0", f"Set {name} to 0 for a network without that input.")
    if config.concat_skip and config.concat_channels < config.out_channels:
        raise refused(config, "concat_skip", "false with fewer joined channels than are put out", "Leave it out.")
    if config.context_width is not None and not is_whole(config.context_width, 1):
        raise refused(config, "context_width", "whole numbers from 1, or None", "It follows from model.text.")
    if config.context_vector and config.context_width is None:
        raise refused(config, "context_vector", "false without context_width", "Leave it out.")


TimeConditioning = Literal["add", "scale_shift"]
Resample = Literal["conv", "conv_asymmetric", "block"]
ContextAttention = Literal["transformer", "cross"]
Size = Literal["tiny", "small", "medium", "large"]


@dataclass(frozen=True)
class _UNetShape:
    channels: int  # at the first level
    widest: int  # multipliers are 1, 2, 4, ... up to this
    blocks: int
    attends: int  # attention on levels of at most this many cells a side
    groups: int


_UNET_SIZES = {
    "tiny": _UNetShape(32, 2, 1, 16, 8),
    "small": _UNetShape(64, 2, 1, 16, 8),
    "medium": _UNetShape(128, 2, 2, 16, 16),
    "large": _UNetShape(256, 2, 2, 16, 32),
}
_UNET_SIZES_2 = {**_UNET_SIZES, "tiny": _UNetShape(32, 2, 1, 8, 8)}  # of version 2
_UNET_SIZES_1 = {  # of version 1, which entered in patches over 64 pixels only, with twice the channels
    "tiny": _UNetShape(32, 2, 1, 8, 8),
    "small": _UNetShape(32, 4, 1, 8, 8),
    "medium": _UNetShape(64, 4, 2, 16, 16),
    "large": _UNetShape(128, 4, 2, 16, 32),
}
_PATCHED = 16  # pixels a side from which images enter in patches
_FINEST = 64  # cells a side of the finest level, at most
_COARSEST = 8  # cells a side of the coarsest level, at most, where the sides can be halved so often
_LEAST = 4  # and at least
_DEFAULT_LEVELS = 3


_HIDDEN: Any = {"option": False}  # of networks that came from elsewhere
# options of another tool's configuration that change nothing here, kept so that a model goes back as it came
Origin = tuple[tuple[str, bool | int | float | tuple[int, ...] | None], ...]


@dataclass(frozen=True)
class UNetConfig:
    """The fields of `networks.unet.UNet`; every impossible value is refused when the config is made."""

    kind: Literal["unet"] = "unet"  # which network this configures
    in_channels: int = 3  # channels of x, without `concat_channels`
    out_channels: int = 3  # channels put out; twice in_channels for a learned variance
    channels: int = 128  # width at the first level
    multipliers: tuple[int, ...] = (1, 2, 2, 2)  # width of each level = channels * multiplier
    blocks: int = 2  # residual blocks a level going down; one more going up
    attention: tuple[bool, ...] = (False, True, False, False)  # self-attention after each block of the level
    middle_attention: bool = True  # self-attention at the coarsest level's middle
    head_channels: int | None = None  # width of one attention head; None = one head
    level_heads: tuple[int, ...] = ()  # attention heads at each level, in place of head_channels (SD 1: 8 at every one)
    middle_norm: bool = field(default=True, metadata=_HIDDEN)  # the middle's self-attention norms what it reads
    time_conditioning: TimeConditioning = "add"  # DDPM adds; ADM scales and shifts after the norm
    resample: Resample = "conv"  # stride-2 and nearest + 3x3 convs; DDPM's bottom-right padding; ADM's residual blocks
    dropout: float = 0.0  # in residual blocks; 0.1 is DDPM's on CIFAR-10
    groups: int = 32  # groups of every GroupNorm
    norm_eps: float = 1e-5  # of every GroupNorm; 1e-6 in DDPM
    cos_first: bool = True  # cos before sin in the time embedding (ADM); DDPM has sin first
    freq_shift: float = 0.0  # frequencies 10000^(-i / (half - freq_shift)); 1 in DDPM
    classes: int = 0  # label input; the table has one more row, the null label `classes`
    context_width: int | None = None  # context input (cross-attention to text): channels of a token's features
    context_vector: bool = False  # the mean of the context is added to the time embedding too
    transformer_depth: int = 1  # with a context: blocks of each attention (self, cross, perceptron); 1 in SD 1 and 2
    transformer_depths: tuple[int, ...] = ()  # those of each level, in place of transformer_depth (SDXL: 1, 2, 10)
    transformer_mlp: int = 4  # with a context: hidden width of their perceptron, in widths; 0: none
    context_attention: ContextAttention = "transformer"  # with a context: in place of attention, or (cross) behind it
    vector_width: int = field(default=0, metadata=_HIDDEN)  # vector input (SDXL): a pooled text and sizes; 0: none
    size_width: int = field(default=256, metadata=_HIDDEN)  # of the vector: sines and cosines of each size
    concat_channels: int = 0  # channels joined to x by the concat input
    concat_skip: bool = False  # the output is what is added to the first joined channels (for prediction x0)
    odd_sides: bool = field(default=False, metadata=_HIDDEN)  # sides are halved rounding up, and cut on the way back
    patch: int = 1  # pixel-unshuffle at the entrance, pixel-shuffle at the exit
    checkpointing: bool = False  # recompute each residual block in the backward pass: less memory, 1.3x the time
    origin: Origin = field(default=(), compare=False, metadata=_HIDDEN)  # what diffusers' config said beside

    def __post_init__(self) -> None:
        # YAML and JSON have no tuples
        object.__setattr__(self, "origin", tuple((name, value) for name, value in self.origin))
        for name in ("multipliers", "attention", "level_heads", "transformer_depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        limits.check(self)
        _check_numbers(self)
        _check_levels(self)
        _check_heads(self)
        if max(self.widths) > limits.WIDTH[1]:
            raise refused(self, "channels", f"at most {limits.WIDTH[1]:,} at a level", "Give smaller multipliers.")
        limits.check_layers(self, self.layers)

    @property
    def levels(self) -> int:
        """How many resolutions there are."""
        return len(self.multipliers)

    @property
    def layers(self) -> int:
        """Residual and transformer blocks, at least; each has several weights."""
        depths = [self.depth(level) if self.context_width is not None else 1 for level in range(self.levels)]
        levels = sum((2 * self.blocks + 1) * (1 + on * depth) for on, depth in zip(self.attention, depths))
        return levels + 2 + self.middle_attention * depths[-1]

    def depth(self, level: int) -> int:
        """Transformer blocks of each attention of a level; -1: the coarsest's, and the middle's."""
        return self.transformer_depths[level] if self.transformer_depths else self.transformer_depth

    def head_width(self, level: int) -> int | None:
        """Channels of an attention head at a level; -1: the coarsest, and the middle; None: one head."""
        return self.widths[level] // self.level_heads[level] if self.level_heads else self.head_channels

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level, the first the finest."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def time_width(self) -> int:
        """Width of the time embedding: 4 x channels in DDPM and ADM alike."""
        return 4 * self.channels

    @property
    def factor(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.patch if self.odd_sides else self.patch << (self.levels - 1)

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", or None for a network without a label input."""
        return self.classes or None


def _check_numbers(config: UNetConfig) -> None:
    check_counts(config, ("in_channels", "out_channels", "channels", "blocks", "groups", "patch"))
    check_conditioning(config)
    if not 0 <= config.dropout < 1:
        raise refused(config, "dropout", "0 <= dropout < 1", "0.1 is DDPM's on CIFAR-10.")
    if not (config.norm_eps > 0 and math.isfinite(config.norm_eps)):
        raise refused(config, "norm_eps", "small positive numbers", "1e-5 is ADM's, 1e-6 DDPM's.")
    if config.time_conditioning not in get_args(TimeConditioning):
        raise unknown("time_conditioning", config.time_conditioning, get_args(TimeConditioning))
    if config.resample not in get_args(Resample):
        raise unknown("resample", config.resample, get_args(Resample))
    if config.context_attention not in get_args(ContextAttention):
        raise unknown("context_attention", config.context_attention, get_args(ContextAttention))
    transformer = (config.transformer_depth, config.transformer_depths, config.transformer_mlp)
    if config.context_attention == "cross" and transformer != (1, (), 4):
        cure = "Leave transformer_depth, transformer_depths and transformer_mlp out: cross has no transformer."
        raise refused(config, "context_attention", "transformer with these", cure)
    if config.context_width is not None and not (
        config.context_vector or config.middle_attention or any(config.attention)
    ):
        cure = "Switch attention on somewhere, or context_vector."
        raise refused(config, "context_width", "None where nothing attends", cure)
    for name, low in (("transformer_depth", 1), ("transformer_mlp", 0), ("vector_width", 0), ("size_width", 2)):
        if not is_whole(getattr(config, name), low):
            raise refused(config, name, f"whole numbers from {low}", "SD has 1 and 4, SDXL a vector of 2816 and 256.")
    if not config.middle_norm and config.context_width is not None:
        raise refused(config, "middle_norm", "true with context_width", "Leave it out.")
    if config.odd_sides and config.resample != "conv":
        raise refused(config, "odd_sides", "false with this resample", "Only resample conv rounds sides up.")
    if config.channels % 2:
        raise refused(config, "channels", "even numbers (half sines, half cosines)", "Use a multiple of 32.")
    if not 0 <= config.freq_shift < config.channels // 2:
        raise refused(config, "freq_shift", f"0 <= freq_shift < channels/2 = {config.channels // 2}", "ADM 0, DDPM 1.")


def _check_levels(config: UNetConfig) -> None:
    if not config.multipliers or not all(is_whole(m, 1) for m in config.multipliers):
        raise refused(config, "multipliers", "whole numbers from 1, one a level", "Example: (1, 2, 2).")
    if not all(isinstance(on, bool) for on in config.attention):
        raise refused(config, "attention", "true or false, one a level", "Example: (False, True, True).")
    if len(config.attention) != config.levels:
        cure = f"Give one of true or false for each of the {config.levels} multipliers {config.multipliers}."
        raise refused(config, "attention", f"{config.levels} entries, not {len(config.attention)}", cure)
    for width in config.widths:
        if width % config.groups:
            near = math.gcd(*config.widths)
            cure = f"A level has {width} channels: choose groups that divide {near} (all levels), or other channels."
            raise refused(config, "groups", f"divisors of every level's channels {config.widths}", cure)


def _check_heads(config: UNetConfig) -> None:
    for name in ("level_heads", "transformer_depths"):
        own = getattr(config, name)
        if own and not (len(own) == config.levels and all(is_whole(each, 1) for each in own)):
            cure = f"Give one for each of the {config.levels} multipliers {config.multipliers}, or leave it out."
            raise refused(config, name, "whole numbers from 1, one a level, or none", cure)
    if config.level_heads and config.head_channels is not None:
        raise refused(config, "level_heads", "() with head_channels", "Give one of the two.")
    on = (*config.attention[:-1], config.attention[-1] or config.middle_attention)
    if any(each and width % heads for width, heads, each in zip(config.widths, config.level_heads, on, strict=False)):
        cure = "An attending level's heads cannot share its channels: choose divisors."
        raise refused(config, "level_heads", f"divisors of the levels' channels {config.widths}", cure)
    head = config.head_channels
    if head is None:
        return
    if not is_whole(head, 1):
        raise refused(config, "head_channels", "whole numbers from 1, or None", "None gives one head.")
    attending = [w for w, on in zip(config.widths, config.attention, strict=True) if on]
    attending += [config.widths[-1]] * config.middle_attention
    for width in attending:
        if width % head:
            cure = f"An attending level has {width} channels: choose a divisor of {math.gcd(*attending)}, or None."
            raise refused(config, "head_channels", f"divisors of {sorted(set(attending))}", cure)


def default_unet(
    shape: tuple[int, int, int],
    size: Size = "small",
    *,
    classes: int = 0,
    context_width: int | None = None,
    latent: bool = False,
    step: int = 0,
    version: int = 3,
) -> UNetConfig:
    """A U-Net for images of `shape` (C, H, W), or for latents of it: few and wide cells, attention where they are few.

    Images from 16 pixels a side enter in patches of 2 x 2, over 128 in larger ones, so that the finest level has at
    most 64 x 64 cells; latents are patches already. The coarsest level has 4 x 4 to 8 x 8. "small" has 4.5 M weights.

    Args:
        step: what all sides are multiples of, in images of several shapes of about this size (in cells of latents); 0:
            of this shape alone.
        version: of the defaults (train/config.py); 1 is what runs had that were begun before patches.

    Raises: `Error` for an unknown size, or a side that cannot be halved to 16 cells or fewer.
    """
    if size not in _UNET_SIZES:
        raise unknown("network size", size, _UNET_SIZES)
    count, height, width = shape
    side = max(height, width)
    if version == 1:
        plan = _UNET_SIZES_1[size]
        patch, levels = _cells_1(height, width)
        channels, fewest = plan.channels * (1 if patch == 1 else 2), 0
    else:
        plan, fewest = (_UNET_SIZES if version > 2 else _UNET_SIZES_2)[size], _LEAST
        patch, levels = _cells(height, width, latent, step)
        channels = plan.channels
    return UNetConfig(
        in_channels=count,
        out_channels=count,
        channels=channels,
        multipliers=tuple(min(2**i, plan.widest) for i in range(levels)),
        blocks=plan.blocks,
        attention=tuple(fewest < side / (patch << i) <= plan.attends for i in range(levels)),
        head_channels=32,
        groups=plan.groups,
        classes=classes,
        context_width=context_width,
        context_vector=context_width is not None,
        patch=patch,
    )


def _cells(height: int, width: int, latent: bool, step: int) -> tuple[int, int]:
    """The patch and the number of levels for sides in pixels, or in cells of a latent. Raises: Error."""
    side, sides = max(height, width), (height, width, step)
    patch = 1 if latent or side < _PATCHED or any(each % 2 for each in sides) else 2
    while side > _FINEST * patch:
        patch *= 2
    cells, levels = side / patch, 1
    while cells >= 2 * _LEAST and (levels < _DEFAULT_LEVELS or cells > _COARSEST):
        if any(each % (patch << levels) for each in sides):
            break
        cells, levels = cells / 2, levels + 1
    if cells > 16 or any(each % patch for each in sides):
        if step:  # no network takes them all: it is the shapes that will be refused
            return _cells(height, width, latent, 0)
        raise _indivisible(height, width, patch << math.ceil(math.log2(side / patch / 16)))
    return patch, levels


def _unhindered(side: int, latent: bool) -> tuple[int, int]:
    """The patch and the levels that `_cells` would give if every number of cells could be halved."""
    patch = 1 if latent or side < _PATCHED else 2
    while side > _FINEST * patch:
        patch *= 2
    cells, levels = side / patch, 1
    while cells >= 2 * _LEAST and (levels < _DEFAULT_LEVELS or cells > _COARSEST):
        cells, levels = cells / 2, levels + 1
    return patch, levels


def network_line(
    network: UNetConfig | DiTConfig, sides: tuple[int, int], *, latent: bool = False, step: int = 0
) -> str:
    """What images of `sides` (H, W) are cut into and halved to, in words; and what odd sides cost the usual network.

    Args:
        step: as of `default_unet`.
    """
    what, side = "cells" if latent else "pixels", max(sides)
    if isinstance(network, DiTConfig):
        shown = " x ".join(str(each // network.patch) for each in sides)
        usual = 1 << math.ceil(math.log2(max(1.0, side / _TOKENS_A_SIDE)))
        text = f"transformer, {shown} tokens of {network.patch} x {network.patch} {what}"
        if network.patch < usual and any(each % usual for each in sides) and not any(s % network.patch for s in sides):
            return f"{text}: {_odd(sides, step, usual)} would have patches of {usual}, a quarter of the tokens or less"
        return text
    cells = [tuple(each // (network.patch << level) for each in sides) for level in range(network.levels)]
    attending = [f"{h} x {w}" for (h, w), on in zip(cells, network.attention) if on]
    text = f"{plural(network.levels, 'level')} of {', '.join(f'{h} x {w}' for h, w in cells)} cells"
    text += f", in patches of {network.patch} x {network.patch} {what}" if network.patch > 1 else ""
    text += f", attention at {', '.join(attending)}" if attending else ""
    patch, levels = _unhindered(side, latent)
    given = (network.patch, network.levels)
    try:
        usual_here = _cells(*sides, latent, step)
    except Error:
        return text
    if given == usual_here and given != (patch, levels):
        more = f"would have {levels} levels or more, in patches of {patch} x {patch}"
        return f"{text}: {_odd(sides, step, patch << (levels - 1))} {more}"
    return text


def _odd(sides: tuple[int, int], step: int, wanted: int) -> str:
    """Why sides cannot be divided as usual, and the next that can."""
    up = "x".join(str(-(-each // wanted) * wanted) for each in dict.fromkeys(sides))
    odd = next((each for each in (*sides, step) if each % wanted), step)
    return f"{odd} is no multiple of {wanted}, and {up}"


def _cells_1(height: int, width: int) -> tuple[int, int]:
    """The same of version 1. Raises: Error."""
    side, patch = max(height, width), 1
    while side > _FINEST * patch:
        patch *= 2
    levels = max(1, math.ceil(math.log2(side / patch / _COARSEST)) + 1)
    while levels > 1 and (height % (patch << (levels - 1)) or width % (patch << (levels - 1))):
        levels -= 1
    if side / (patch << (levels - 1)) > 16 or height % patch or width % patch:
        raise _indivisible(height, width, patch << math.ceil(math.log2(side / patch / 16)))
    return patch, levels


def _indivisible(height: int, width: int, step: int) -> Error:
    low, high = (
        "x".join(str(step * max(1, rounded(side / step))) for side in (height, width))
        for rounded in (math.floor, math.ceil)
    )
    return Error(
        f"image size {height}x{width} cannot be halved often enough: allowed are sides that are multiples of "
        f"{step}. Resize or pad to {low} or {high}."
    )


class _DiTShape(NamedTuple):
    width: int
    depth: int
    heads: int


_DIT_SIZES = {  # about the parameters of the U-Net of that name
    "tiny": _DiTShape(96, 6, 3),
    "small": _DiTShape(160, 6, 5),
    "medium": _DiTShape(384, 6, 6),
    "large": _DiTShape(512, 13, 8),
}
_TOKENS_A_SIDE = 16  # by default at most, as DiT has for 256 pixels with /2 patches of latents
_MOST_A_SIDE = 32  # where the sides cannot be divided further; attention takes the square of the square of this


@dataclass(frozen=True)
class DiTConfig:
    """The fields of `networks.dit.DiT`; every impossible value is refused when the config is made."""

    kind: Literal["dit"] = "dit"  # a diffusion transformer (Peebles & Xie 2023)
    in_channels: int = 3  # channels of x, without `concat_channels`
    out_channels: int = 3  # channels put out; twice in_channels for a learned variance
    patch: int = 2  # dit: pixels a side of one token
    width: int = 384  # dit: channels of a token
    depth: int = 12  # dit: how many blocks
    heads: int = 6  # dit: attention heads; must divide width
    mlp: int = 4  # dit: hidden width of a block's perceptron, in widths
    grid: int = 0  # dit: tokens over which positions stretch along the longer side; 0: as many as there are
    classes: int = 0  # label input; the table has one more row, the null label `classes`
    context_width: int | None = None  # context input (cross-attention to text): channels of a token's features
    context_vector: bool = False  # the mean of the context is added to the time embedding too
    concat_channels: int = 0  # channels joined to x by the concat input
    concat_skip: bool = False  # the output is what is added to the first joined channels (for prediction x0)
    checkpointing: bool = False  # recompute each block in the backward pass: less memory, 1.3x the time

    def __post_init__(self) -> None:
        limits.check(self)
        check_counts(self, ("in_channels", "out_channels", "patch", "width", "depth", "heads", "mlp"))
        check_conditioning(self)
        if not is_whole(self.grid, 0):
            raise refused(self, "grid", "whole numbers from 0", "0 counts every token.")
        if self.width % 4:
            raise refused(self, "width", "multiples of 4 (sines, cosines of row, column)", "Use a multiple of 32.")
        if self.width % self.heads:
            raise refused(self, "heads", f"divisors of width {self.width}", "Heads of 32 to 72 channels are common.")

    @property
    def layers(self) -> int:
        """Blocks; each has several weights."""
        return self.depth

    @property
    def factor(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.patch

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", or None for a network without a label input."""
        return self.classes or None


def default_dit(
    shape: tuple[int, int, int], size: Size = "small", *, classes: int = 0, context_width: int | None = None
) -> DiTConfig:
    """A DiT for images of `shape` (C, H, W): at most 16 x 16 tokens where the sides allow it.

    "small" is 2.9 M parameters at 32 x 32.

    Raises: `Error` for an unknown size, or sides that cannot be cut into 32 x 32 tokens or fewer.
    """
    if size not in _DIT_SIZES:
        raise unknown("network size", size, _DIT_SIZES)
    count, height, width = shape
    side, plan = max(height, width), _DIT_SIZES[size]
    patch = wanted = 1 << math.ceil(math.log2(max(1.0, side / _TOKENS_A_SIDE)))
    while height % patch or width % patch:
        patch //= 2
    if side > _MOST_A_SIDE * patch:
        up = "x".join(str(-(-each // wanted) * wanted) for each in (height, width))
        raise Error(
            f"image size {height}x{width} cannot be cut into patches of {wanted} pixels: allowed are sides that are "
            f"multiples of {wanted}. Resize or pad to {up}."
        )
    return DiTConfig(
        in_channels=count,
        out_channels=count,
        patch=patch,
        width=plan.width,
        depth=plan.depth,
        heads=plan.heads,
        classes=classes,
        context_width=context_width,
        context_vector=context_width is not None,
    )
