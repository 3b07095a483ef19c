"""What a diffusion transformer is made of: `DiTConfig`, and the shape we give a picture size by default. Torch-free.

DiT-S, B, L and XL of Peebles & Xie 2023 (table 1) are rows of docs/networks.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kuosan import limits
from kuosan.errors import Error, unknown
from kuosan.networks.checks import check_counts, check_doors, refused
from kuosan.networks.config import Size


class _Shape(NamedTuple):
    width: int
    depth: int
    heads: int


_SIZES = {  # about the parameters of the U-Net of that name
    "tiny": _Shape(96, 6, 3),
    "small": _Shape(160, 6, 5),
    "medium": _Shape(384, 6, 6),
    "large": _Shape(512, 13, 8),
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
    classes: int = 0  # label door; the table has one more row, the null label `classes`
    context_width: int | None = None  # context door (cross-attention to text): width of what is told a piece
    context_vector: bool = False  # the mean of what is told is added to the time embedding too
    concat_channels: int = 0  # channels joined to x by the concat door
    concat_skip: bool = False  # the output is what is added to the first joined channels (for prediction x0)
    checkpointing: bool = False  # recompute each block in the backward pass: less memory, 1.3x the time

    def __post_init__(self) -> None:
        limits.check(self)
        check_counts(self, ("in_channels", "out_channels", "patch", "width", "depth", "heads", "mlp"))
        check_doors(self)
        if self.width % 4:
            cure = "Use a multiple of 32."
            raise refused(self, "width", "multiples of 4 (sines and cosines of the row and of the column)", cure)
        if self.width % self.heads:
            raise refused(self, "heads", f"divisors of width {self.width}", "Heads of 32 to 72 channels are usual.")

    @property
    def layers(self) -> int:
        """Blocks; each has several weights."""
        return self.depth

    @property
    def factor(self) -> int:
        """Height and width of a picture must be multiples of this."""
        return self.patch

    @property
    def null_label(self) -> int | None:
        """The label that means "no class", or None for a network without a label door."""
        return self.classes or None


def default_dit(
    shape: tuple[int, int, int], size: Size = "small", *, classes: int = 0, context_width: int | None = None
) -> DiTConfig:
    """A DiT for pictures of `shape` (C, H, W): at most 16 x 16 tokens where the sides allow it.

    "small" is 2.9 M parameters at 32 x 32.

    Raises: `Error` for an unknown size, or sides that cannot be cut into 32 x 32 tokens or fewer.
    """
    if size not in _SIZES:
        raise unknown("network size", size, _SIZES)
    count, height, width = shape
    side, plan = max(height, width), _SIZES[size]
    patch = wanted = 1 << math.ceil(math.log2(max(1.0, side / _TOKENS_A_SIDE)))
    while height % patch or width % patch:
        patch //= 2
    if side > _MOST_A_SIDE * patch:
        up = "x".join(str(-(-each // wanted) * wanted) for each in (height, width))
        raise Error(
            f"picture size {height}x{width} cannot be cut into patches of {wanted} pixels: allowed are sides that are "
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
