"""A network of one picture size made to take larger ones: tiles that overlap, blended.

out = sum_i w_i out_i / sum_i w_i, the window w flat inside, falling along a raised cosine over the overlap. What a
denoiser makes of the network's output is a x + b out, pixel by pixel, a and b of the level alone: so blending outputs
is blending the predicted x0 (before any clamp), whatever the network predicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import pi
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kuosan.errors import Error


def window(side: int, overlap: int) -> Tensor:
    """A tile's weight along one axis: (side,) float64 in (0, 1], sin² over the overlap at either end, 1 between.

    Two windows that overlap by `overlap` add up to 1.
    """
    ramp = torch.sin((torch.arange(overlap, dtype=torch.float64) + 0.5) * (pi / 2 / max(overlap, 1))) ** 2
    return torch.cat([ramp, torch.ones(side - 2 * overlap, dtype=torch.float64), ramp.flip(0)])


def tiles(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles start along an axis: every side - overlap pixels, the last one flush with the end.

    Raises:
        Error: the axis is shorter than a tile.
    """
    if length < side:
        raise Error(f"{length} pixels are less than a tile of {side}: enlarge the picture, or take smaller tiles.")
    return [*range(0, length - side, side - overlap), length - side]


def shares(starts: Sequence[int], side: int, overlap: int) -> Tensor:
    """Each tile's share in each of its pixels along an axis: (n, side) float64, adding up to 1 at every pixel."""
    weight = window(side, overlap)
    total = torch.zeros(starts[-1] + side, dtype=weight.dtype)
    for start in starts:
        total[start : start + side] += weight
    return torch.stack([weight / total[start : start + side] for start in starts])


def blend(parts: Tensor, starts: Sequence[int], overlap: int) -> Tensor:
    """Tiles along the last axis made one, each pixel by the tiles' shares: (n, ..., side) -> (..., length)."""
    side = parts.shape[-1]
    whole = parts.new_zeros(*parts.shape[1:-1], starts[-1] + side)
    for start, part, share in zip(starts, parts, shares(starts, side, overlap).to(parts)):
        whole[..., start : start + side] += part * share
    return whole


class Tiled(nn.Module):
    """`network`, which takes pictures of `side` pixels (one number, or height and width), for larger ones.

    Tiles overlap by `overlap` pixels, the last row and column by what is left, and at most `batch` of them go through
    the network at once. Pictures of a tile's size go through it as they are: the answer is the network's, bit for bit.
    Raises: Error for an overlap beyond half a tile, or sizes below 1.
    """

    def __init__(self, network: nn.Module, side: int | tuple[int, int], overlap: int, batch: int = 16) -> None:
        super().__init__()
        height, width = (side, side) if isinstance(side, int) else side
        if min(height, width) < 1:
            raise Error(f"tiles of {height}x{width} pixels are not allowed: each side is at least 1.")
        most = min(height, width) // 2
        if not 0 <= overlap <= most:
            raise Error(f"overlap = {overlap} is not allowed with tiles of {height}x{width}: 0 to {most}, half a tile.")
        if batch < 1:
            raise Error(f"batch = {batch} is not allowed: at least 1 tile goes through the network at once.")
        self.network, self.side, self.overlap, self.batch = network, (height, width), overlap, batch

    def extra_repr(self) -> str:
        return f"side={self.side}, overlap={self.overlap}, batch={self.batch}"

    def starts(self, height: int, width: int) -> tuple[list[int], list[int]]:
        """Where the tiles of a picture start: rows, columns.

        Raises:
            Error: the picture is smaller than a tile.
        """
        if height < self.side[0] or width < self.side[1]:
            raise Error(
                f"a picture of {height}x{width} is smaller than a tile of {self.side[0]}x{self.side[1]}, the size this "
                "network takes: enlarge or pad the picture."
            )
        return tiles(height, self.side[0], self.overlap), tiles(width, self.side[1], self.overlap)

    def tile_count(self, height: int, width: int) -> int:
        """How many tiles cover a picture.

        Raises:
            Error: the picture is smaller than a tile.
        """
        rows, columns = self.starts(height, width)
        return len(rows) * len(columns)

    def forward(
        self,
        x: Tensor,  # (B, C, H, W)
        t: Tensor,  # () | (1,) | (B,)
        *,
        label: Tensor | None = None,  # (B,)
        concat: Tensor | None = None,  # (B, K, H, W), cut as x is
        **others: Any,  # a tensor of B rows has one for each picture; all else is handed on as it is
    ) -> Tensor:  # (B, C_out, H, W)
        if x.ndim != 4:
            raise Error(f"x has shape {tuple(x.shape)}; tiles are cut from (B, C, H, W).")
        B, _, H, W = x.shape
        if concat is not None and (concat.ndim != 4 or (len(concat), *concat.shape[2:]) != (B, H, W)):
            raise Error(f"concat is of shape {tuple(concat.shape)}; it must be ({B}, channels, {H}, {W}), as x.")
        told = {"label": label, "concat": concat, **others}
        told = {name: value for name, value in told.items() if value is not None}
        if self.side == (H, W):
            return cast(Tensor, self.network(x, t, **told))
        rows, columns = self.starts(H, W)
        outs = torch.cat(list(self._ask({"x": x, "t": t, **told}, rows, columns)))
        parts = outs.view(B, len(rows), len(columns), *outs.shape[1:]).permute(1, 2, 0, 3, 4, 5)
        strips = blend(parts.transpose(0, 1), columns, self.overlap)  # (rows, B, C_out, side, W)
        return blend(strips.mT, rows, self.overlap).mT.contiguous()

    def _ask(self, told: dict[str, Any], rows: list[int], columns: list[int]) -> Iterator[Tensor]:
        """The network's answers for all tiles, `batch` at a time, each picture's tiles together."""
        B, count = len(told["x"]), len(rows) * len(columns)
        cut: dict[str, Tensor] = {}
        for name, value in told.items():
            if name in ("x", "concat"):
                cut[name] = self._cut(value, rows, columns)
            elif isinstance(value, Tensor) and value.ndim and len(value) == B:
                cut[name] = value.repeat_interleave(count, 0)
        for i in range(0, B * count, self.batch):
            part = told | {name: value[i : i + self.batch] for name, value in cut.items()}
            x = part.pop("x")
            t = part.pop("t")
            if torch.is_grad_enabled() and x.requires_grad:  # else the graphs of all tiles would be held at once
                out = checkpoint(self.network, x, t, use_reentrant=False, **part)
            else:
                out = self.network(x, t, **part)
            if out.ndim != 4 or out.shape[2:] != x.shape[2:]:
                raise Error(
                    f"the network put out {tuple(out.shape)} for tiles of shape {tuple(x.shape)}; tiles are joined "
                    "only where the output is a picture of the same size."
                )
            yield out

    def _cut(self, x: Tensor, rows: list[int], columns: list[int]) -> Tensor:
        """(B, C, H, W) -> (B * rows * columns, C, height, width)."""
        height, width = self.side
        parts = [x[:, :, top : top + height, left : left + width] for top in rows for left in columns]
        return torch.stack(parts, 1).flatten(0, 1)
