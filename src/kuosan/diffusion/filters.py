"""The matrices of one axis that reduce or blur a line of pixels: each row the weights of one output pixel, of sum 1.

Bicubic weights are Keys's cubic, a = -1/2, stretched by the scale and renormalised at the borders (Pillow's, and
torch's with antialias). A blur mirrors the picture at its borders, the edge pixel repeated, so that it is symmetric.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mean(scale: int, side: int) -> Tensor:
    """The mean of each `scale` pixels: (side/scale, side)."""
    return torch.eye(side // scale, dtype=torch.float64).repeat_interleave(scale, dim=1) / scale


def cubic(scale: int, side: int) -> Tensor:
    """Keys's cubic (Keys 1981) about the middle of each `scale` pixels: (side/scale, side)."""
    middle = scale * (torch.arange(side // scale, dtype=torch.float64) + 0.5)
    away = (torch.arange(side, dtype=torch.float64) + 0.5 - middle[:, None]).abs() / scale
    near = (1.5 * away - 2.5) * away**2 + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    weights = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
    return weights / weights.sum(dim=1, keepdim=True)


def bell(std: float, side: int, radius: int) -> Tensor:
    """A Gaussian cut at `radius` pixels, over the mirrored line: (side, side)."""
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.double() / std) ** 2)
    weights /= weights.sum()
    place = (torch.arange(side)[:, None] + offsets) % (2 * side)
    place = torch.where(place < side, place, 2 * side - 1 - place)
    return torch.zeros(side, side, dtype=torch.float64).scatter_add(1, place, weights.expand(side, -1))
