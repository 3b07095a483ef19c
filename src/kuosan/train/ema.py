"""The average of the weights over the run's tail, whose width grows with the run (Karras et al. 2024, eq. 123-127).

    ema_n = d_n · ema_{n-1} + (1 - d_n) · w_n,    d_n = (1 - 1/n)^(gamma + 1)

The first update copies the weights, so there is no warm-up to wait for. Kept in float64: at n = 10^5 an update weighs
1e-4, which float32 would round away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CACHED = 1 << 16  # weights whose float64 copies fit a processor's cache: half the time of all at once


def gamma_of(width: float) -> float:
    """The power `gamma` whose average has relative standard deviation `width` (Karras et al. 2024, eq. 126)."""
    assert width > 0
    # width² = (gamma + 1) / ((gamma + 2)² (gamma + 3)); decreasing in gamma, so bisect
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        if (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2:
            low = middle
        else:
            high = middle
    return low


def exact(values: Tensor) -> Tensor:
    """The values in float64, on their device or, where that knows no float64 (Apple's GPUs), on the CPU."""
    return (values.cpu() if values.device.type == "mps" else values).double()


class EMA:
    """The average of one flat buffer of weights."""

    def __init__(self, values: Tensor, width: float) -> None:
        self.gamma = gamma_of(width) if width else math.inf
        self.values = exact(values)
        self.updates = 0

    def decay(self, n: int) -> float:
        """How much of the average the n-th update keeps (n = 1 keeps nothing)."""
        return 0.0 if math.isinf(self.gamma) else (1 - 1 / n) ** (self.gamma + 1)

    @torch.no_grad()
    def update(self, values: Tensor) -> None:
        """Take in the weights after one optimiser step that was really taken."""
        self.updates += 1
        new = 1 - self.decay(self.updates)
        values = values.to(self.values.device)
        size = CACHED if values.device.type == "cpu" else max(1, values.numel())
        for kept, part in zip(torch.split(self.values, size), torch.split(values, size), strict=True):
            kept.lerp_(part.double(), new)
