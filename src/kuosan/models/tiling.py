"""A network of one image size made to take larger ones: tiles that overlap, blended.

out = sum_i w_i out_i / sum_i w_i, the window w flat inside, falling along a raised cosine over the overlap. What a
denoiser makes of the network's output is a x + b out, pixel by pixel, a and b of the level alone: so blending outputs
is blending the predicted x0 (before any clamp), whatever the network predicts.

An autoencoder for images of any size: encoded and decoded in tiles that overlap, blended, in a tile's memory.

    z = sum_i w_i encode(tile_i of x) / sum_i w_i        x = sum_i w_i decode(tile_i of z) / sum_i w_i

The windows w are those of `Tiled`. A convolution sees zeros beyond a tile where the image goes on, and a
norm the tile's own mean and spread; blending hides both, and what is left of them docs/reconstruct.md measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import pi
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kuosan.errors import Error
from kuosan.networks.autoencoder import Autoencoder, Moments


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
        raise Error(f"{length} pixels are less than a tile of {side}: enlarge the image, or take smaller tiles.")
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
    """`network`, which takes images of `side` pixels (one number, or height and width), for larger ones.

    Tiles overlap by `overlap` pixels, the last row and column by what is left, and at most `batch` of them go through
    the network at once. Images of a tile's size go through it as they are: the answer is the network's, bit for bit.
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
        """Where the tiles of an image start: rows, columns.

        Raises:
            Error: the image is smaller than a tile.
        """
        if height < self.side[0] or width < self.side[1]:
            raise Error(
                f"an image of {height}x{width} is smaller than a tile of {self.side[0]}x{self.side[1]}, the size this "
                "network takes: enlarge or pad the image."
            )
        return tiles(height, self.side[0], self.overlap), tiles(width, self.side[1], self.overlap)

    def tile_count(self, height: int, width: int) -> int:
        """How many tiles cover an image.

        Raises:
            Error: the image is smaller than a tile.
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
        **others: Any,  # a tensor of B rows has one for each image; all else is handed on as it is
    ) -> Tensor:  # (B, C_out, H, W)
        if x.ndim != 4:
            raise Error(f"x has shape {tuple(x.shape)}; tiles are cut from (B, C, H, W).")
        B, _, H, W = x.shape
        if concat is not None and (concat.ndim != 4 or (len(concat), *concat.shape[2:]) != (B, H, W)):
            raise Error(f"concat is of shape {tuple(concat.shape)}; it must be ({B}, channels, {H}, {W}), as x.")
        cond = {"label": label, "concat": concat, **others}
        cond = {name: value for name, value in cond.items() if value is not None}
        if self.side == (H, W):
            return cast(Tensor, self.network(x, t, **cond))
        rows, columns = self.starts(H, W)
        outs = torch.cat(list(self._ask({"x": x, "t": t, **cond}, rows, columns)))
        parts = outs.view(B, len(rows), len(columns), *outs.shape[1:]).permute(1, 2, 0, 3, 4, 5)
        strips = blend(parts.transpose(0, 1), columns, self.overlap)  # (rows, B, C_out, side, W)
        return blend(strips.mT, rows, self.overlap).mT.contiguous()

    def _ask(self, inputs: dict[str, Any], rows: list[int], columns: list[int]) -> Iterator[Tensor]:
        """The network's answers for all tiles, `batch` at a time, each image's tiles together."""
        B, count = len(inputs["x"]), len(rows) * len(columns)
        cut: dict[str, Tensor] = {}
        for name, value in inputs.items():
            if name in ("x", "concat"):
                cut[name] = self._cut(value, rows, columns)
            elif isinstance(value, Tensor) and value.ndim and len(value) == B:
                cut[name] = value.repeat_interleave(count, 0)
        for i in range(0, B * count, self.batch):
            part = inputs | {name: value[i : i + self.batch] for name, value in cut.items()}
            x = part.pop("x")
            t = part.pop("t")
            if torch.is_grad_enabled() and x.requires_grad:  # else the graphs of all tiles would be held at once
                out = checkpoint(self.network, x, t, use_reentrant=False, **part)
            else:
                out = self.network(x, t, **part)
            if out.ndim != 4 or out.shape[2:] != x.shape[2:]:
                raise Error(
                    f"the network put out {tuple(out.shape)} for tiles of shape {tuple(x.shape)}; tiles are joined "
                    "only where the output is an image of the same size."
                )
            yield out

    def _cut(self, x: Tensor, rows: list[int], columns: list[int]) -> Tensor:
        """(B, C, H, W) -> (B * rows * columns, C, height, width)."""
        height, width = self.side
        parts = [x[:, :, top : top + height, left : left + width] for top in rows for left in columns]
        return torch.stack(parts, 1).flatten(0, 1)


SIDE = 256  # pixels a side of a tile if nobody says
Places = list[tuple[int, int]]  # upper left corners, in latents


class TiledAutoencoder(nn.Module):
    """`network` on images (B, C, H, W) of any size, in tiles of `side` pixels that overlap by `overlap`.

    An image that fits into one tile goes through the network as it is: the answer is the network's, bit for bit. Sides
    that are no multiples of the network's factor are extended by their last pixels; `decode` cuts them again.
    Raises: Error for tiles or overlaps that are no multiples of the factor, or an overlap beyond half a tile.
    """

    def __init__(self, network: Autoencoder, side: int, overlap: int | None = None, batch: int = 1) -> None:
        super().__init__()
        factor = network.config.factor
        overlap = side // 4 // factor * factor if overlap is None else overlap
        if side < factor or side % factor:
            raise Error(f"tiles of {side} pixels do not fit this autoencoder: a multiple of {factor} is needed.")
        if not 0 <= overlap <= side // 2 or overlap % factor:
            raise Error(
                f"overlap = {overlap} is not allowed with tiles of {side}: a multiple of {factor} from 0 to "
                f"{side // 2}, half a tile."
            )
        if batch < 1:
            raise Error(f"batch = {batch} is not allowed: at least 1 tile goes through the network at once.")
        self.network, self.factor, self.side, self.overlap, self.batch = network, factor, side, overlap, batch

    def extra_repr(self) -> str:
        return f"side={self.side}, overlap={self.overlap}, batch={self.batch}"

    def tile_count(self, height: int, width: int) -> int:
        """How many tiles cover an image."""
        rows, columns = (self._starts(-(-length // self.factor))[0] for length in (height, width))
        return len(rows) * len(columns)

    def encode(self, x: Tensor) -> Moments:
        """x (B, C, H, W) -> mean and log variance (B, c, ceil(H / factor), ceil(W / factor)).

        Raises:
            Error: no images.
        """
        if x.ndim != 4 or min(x.shape) < 1:
            raise Error(f"an autoencoder encodes images (B, C, H, W); got {tuple(x.shape)}.")
        x = extended(x, self.factor)
        latent_size = (x.shape[2] // self.factor, x.shape[3] // self.factor)

        def both(part: Tensor) -> Tensor:
            return torch.cat(list(self.network.encode(part)), 1)

        return Moments(*self._blended(both, x, latent_size, self.factor, 1).chunk(2, 1))

    def decode(self, z: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """z (B, c, h, w) -> (B, C, *size), `size` (height, width) the image's own; all that z holds if None.

        Raises:
            Error: no latents, or a size that they are not of.
        """
        if z.ndim != 4 or min(z.shape) < 1:
            raise Error(f"an autoencoder decodes latents (B, c, h, w); got {tuple(z.shape)}.")
        height, width = size or (z.shape[2] * self.factor, z.shape[3] * self.factor)
        if (-(-height // self.factor), -(-width // self.factor)) != tuple(z.shape[2:]):
            raise Error(
                f"latents of {z.shape[2]}x{z.shape[3]} are no image of {height}x{width}: each side of an image is "
                f"{self.factor} times its latents', or up to {self.factor - 1} pixels less."
            )
        x = self._blended(self.network.decode, z, (z.shape[2], z.shape[3]), 1, self.factor)
        return x[:, :, :height, :width]

    def _blended(
        self, network: Callable[[Tensor], Tensor], x: Tensor, latent_size: tuple[int, int], into: int, out: int
    ) -> Tensor:
        """`network` on tiles of x, joined; tiles lie on latents, each of `into` pixels of x and `out` of the result."""
        (rows, high), (columns, wide) = (self._starts(length) for length in latent_size)
        if len(rows) * len(columns) == 1:
            return network(x)
        overlap = self.overlap // self.factor * out
        share_y, share_x = (
            shares([out * start for start in starts], out * side, min(overlap, out * side // 2)).float().to(x.device)
            for starts, side in ((rows, high), (columns, wide))
        )
        whole = None
        for places, part in self._answers(network, x, (rows, columns), (into * high, into * wide), into):
            if whole is None:
                size = (out * latent_size[0], out * latent_size[1])
                whole, kind = torch.zeros(len(x), part.shape[1], *size, device=x.device), part.dtype
            for (row, column), piece in zip(places, torch.split(part, len(x))):
                weight = share_y[row][:, None] * share_x[column]
                top, left = out * rows[row], out * columns[column]
                whole[:, :, top : top + out * high, left : left + out * wide] += piece.float() * weight
        assert whole is not None
        return whole.to(kind)

    def _answers(
        self,
        network: Callable[[Tensor], Tensor],
        x: Tensor,
        starts: tuple[list[int], list[int]],
        side: tuple[int, int],
        into: int,
    ) -> Iterator[tuple[Places, Tensor]]:
        """The places (row, column) of some tiles, and the network's answers: each tile's images together."""
        rows, columns = starts
        places = list(product(range(len(rows)), range(len(columns))))
        for first in range(0, len(places), self.batch):
            some = places[first : first + self.batch]
            corners = [(into * rows[row], into * columns[column]) for row, column in some]
            part = torch.cat([x[:, :, top : top + side[0], left : left + side[1]] for top, left in corners])
            if torch.is_grad_enabled() and part.requires_grad:  # else the graphs of all tiles would be held at once
                yield some, checkpoint(network, part, use_reentrant=False)
            else:
                yield some, network(part)

    def _starts(self, length: int) -> tuple[list[int], int]:
        """Where tiles start along an axis of so many latents, and how many of them each has."""
        side = min(self.side // self.factor, length)
        return tiles(length, side, min(self.overlap // self.factor, side // 2)), side


def extended(x: Tensor, factor: int) -> Tensor:
    """x (B, C, H, W) with its last row and column repeated until both sides are multiples of `factor`."""
    down, right = -x.shape[2] % factor, -x.shape[3] % factor
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x
