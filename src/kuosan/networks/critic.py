"""The critic of patches that trains an autoencoder (Isola et al. 2017; Esser et al. 2021), and its hinge losses.

It says of every patch how real it looks: high for photographs, low for reconstructions. Its norms are GroupNorm where
the papers have BatchNorm: then each picture's score is its own, whatever batch, micro-batch or number of processes it
stands in, real and made pictures need not share statistics, and there are no running averages to keep for a resume.
"""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.networks.norm import GroupNorm

_WIDEST = 8  # times the first layer's channels, as in the papers
_SLOPE = 0.2  # of LeakyReLU, as in the papers


class Critic(nn.Module):
    """4x4 convolutions, `layers` of them halving, then two that do not: (B, C, H, W) -> scores (B, 1, h, w) float32."""

    def __init__(self, in_channels: int, channels: int, layers: int) -> None:
        super().__init__()
        widths = [channels * min(2**i, _WIDEST) for i in range(layers + 1)]
        self.entrance = nn.Conv2d(in_channels, channels, 4, stride=2, padding=1)
        self.convs = nn.ModuleList(
            nn.Conv2d(into, out, 4, stride=2 if i < layers - 1 else 1, padding=1, bias=False)
            for i, (into, out) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(GroupNorm(max(1, out // 16), out, 1e-6) for out in widths[1:])
        self.exit = nn.Conv2d(widths[-1], 1, 4, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.entrance(x.to(self.entrance.weight.dtype, memory_format=torch.channels_last))
        h = F.leaky_relu(h, _SLOPE)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), _SLOPE)
        return cast(Tensor, self.exit(h)).float()


def generator_loss(made: Tensor) -> Tensor:
    """What the autoencoder lowers of the scores of its reconstructions: (B, 1, h, w) -> (B,)."""
    return -made.mean((1, 2, 3))


def hinge_loss(real: Tensor, made: Tensor) -> Tensor:
    """What the critic lowers (Lim & Ye 2017): scores (B, 1, h, w) twice -> (B,), 1 where it cannot tell."""
    return 0.5 * (F.relu(1 - real).mean((1, 2, 3)) + F.relu(1 + made).mean((1, 2, 3)))
