"""A small pyramid of fixed random convolutions: features for a perceptual loss that need no download.

Random features see edges and textures, not things; trained ones (lite0) judge better where they are installed. The
weights are a function of a constant seed, the same everywhere: N(0, 2 / fan_in), each kernel's mean taken out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kuosan import seeds

_SEED = 2016  # of all runs: a loss that changed with the run's seed would be another loss
_WIDTHS = (32, 64, 128)  # channels at full, half and a quarter of the resolution


class RandomPyramid(nn.Module):
    """3x3 convolutions with ReLU, the resolution halved between: pictures (B, 3, H, W) in [-1, 1] -> three layers."""

    def __init__(self) -> None:
        super().__init__()
        entering = (3, *_WIDTHS[:-1])
        with torch.device("meta"):
            self.convs = nn.ModuleList(
                nn.Conv2d(into, out, 3, padding=1, bias=False) for into, out in zip(entering, _WIDTHS, strict=True)
            )
        self.to_empty(device="cpu")
        for i, conv in enumerate(cast(Iterable[nn.Conv2d], self.convs)):
            shape = (_WIDTHS[i], entering[i], 3, 3)
            drawn = seeds.normal([(_SEED, f"random pyramid {i}", 0, 0)], shape)[0] * math.sqrt(2 / (9 * entering[i]))
            kernel = drawn - drawn.mean((1, 2, 3), keepdim=True)
            conv.weight = nn.Parameter(kernel.contiguous(memory_format=torch.channels_last))
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        h, found = x.contiguous(memory_format=torch.channels_last), []
        for i, conv in enumerate(self.convs):
            if i and min(h.shape[-2:]) >= 2:
                h = F.avg_pool2d(h, 2)
            h = F.relu(conv(h))
            found.append(h)
        return found
