"""Whole pictures damaged, the same for all who restore them: y = A x + noise, rounded to 8 bits as a file would be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.data.images import as_written
from kuosan.diffusion.operators import Operator
from kuosan.errors import Error
from kuosan.evaluate.comparison import masked
from kuosan.sample.known import operator_of
from kuosan.sample.restored import operator_rows
from kuosan.tasks.masks import SMALLEST, draw_mask

if TYPE_CHECKING:
    from kuosan.evaluate.comparison import ComparisonConfig
    from kuosan.sample.restoration import Restoration


@dataclass(frozen=True)
class Damaged:
    """N pictures and what is left of them, float32 in [-1, 1], each as 8 bits hold it."""

    asked: Restoration
    truth: Tensor  # (N, C, H, W)
    brought: Tensor  # (N, C, h, w): small, blurred, grey in all channels, or 0 where cut out
    hole: Tensor | None  # (N, 1, H, W), 1 where cut out
    operator: Operator  # A, of these N pictures

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def measured(self) -> Tensor:
        """y: (N, c, h, w), one channel of a grey picture whose colours were taken."""
        return self.brought[:, :1] if self.asked.colorise else self.brought

    def rows(self, first: int, last: int) -> Damaged:
        """The pictures `first` to `last` - 1."""
        part = slice(first, last)
        hole = None if self.hole is None else self.hole[part]
        operator = operator_rows(self.operator, range(*part.indices(len(self))))
        return replace(self, truth=self.truth[part], brought=self.brought[part], hole=hole, operator=operator)


def damage(config: ComparisonConfig, truth: Tensor) -> Damaged:
    """Damage whole pictures (N, C, H, W); masks and noise are keyed by each picture's place.

    Raises:
        Error: a size that cannot be shrunk so or holds no such mask, colours taken from grey pictures.
    """
    asked, size = config.restoration(), (truth.shape[-2], truth.shape[-1])
    if asked.colorise and truth.shape[1] != 3:
        raise Error("colorise: these models make grey pictures, which have no colours to take; use models of colour.")
    if asked.upscale is not None and any(side % asked.upscale for side in size):
        raise Error(f"upscale = {asked.upscale} of pictures {size[1]}x{size[0]}: it must divide both sides.")
    hole = _holes(config, len(truth), size)
    operator = operator_of(asked, size, hole)
    y = operator.apply(truth)
    if asked.noise:
        keys = [(config.seed, "compare/noise", 0, i) for i in range(len(y))]
        y = y + asked.noise / 127.5 * seeds.normal(keys, tuple(y.shape[1:]))
    y = as_written(y)
    if hole is not None:
        y = y * (1 - hole)
    return Damaged(asked, truth, y.expand(-1, truth.shape[1], -1, -1).contiguous(), hole, operator)


def _holes(config: ComparisonConfig, n: int, size: tuple[int, int]) -> Tensor | None:
    """(N, 1, H, W), 1 where a picture is cut out. Raises: Error for a box outside the picture, or all of it."""
    asked = masked(config.mask)
    height, width = size
    if asked is None:
        return None
    if isinstance(asked[0], int):
        left, top, wide, high = (int(part) for part in asked)
        if left + wide > width or top + high > height or (wide, high) == (width, height):
            raise Error(f"mask {config.mask} is no part of the pictures, {width}x{height}: give a smaller x,y,w,h.")
        hole = torch.zeros(n, 1, height, width)
        hole[..., top : top + high, left : left + wide] = 1
        return hole
    if min(size) < SMALLEST:
        raise Error(f"mask {config.mask} of pictures {width}x{height}: each side must be at least {SMALLEST}.")
    kinds = [str(kind) for kind in asked]
    drawn = [draw_mask(seeds.rng(config.seed, "compare/mask", 0, i), height, width, kinds) for i in range(n)]
    return torch.from_numpy(np.stack(drawn).astype(np.float32))[:, None]
