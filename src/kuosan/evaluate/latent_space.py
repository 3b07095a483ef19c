"""What an autoencoder's latents look like over many pictures, and whether a diffusion model can learn them.

    bits = mean of log2(std of the channel / std of the posterior)

the KL of the posteriors to the channel's own N(mean, std^2): what a value tells of its picture, at most. A channel
that tells nothing was given up to the KL term, and the decoder has learned to do without it. For stage two each
channel is shifted by its mean and scaled by 1/std.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log2
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kuosan.codec.latents import Measured

if TYPE_CHECKING:
    from kuosan.networks.autoencoder import Moments

SILENT = 0.05  # bits a value: below, the posterior's noise drowns all that is said
WILD = (0.01, 100.0)  # std of a channel: Stable Diffusion's is about 5
FAR = 20.0  # std: a value so far out lies where noise never hides it, and a network sees it rarely


@dataclass(frozen=True)
class Channel:
    """One latent channel over all values that were seen."""

    mean: float
    std: float  # of draws from the posterior: what stage two is trained on
    noise: float  # the posterior's std, its geometric mean
    farthest: float  # the largest |mean of a posterior - mean|, in std

    @property
    def scale(self) -> float:
        """What stage two multiplies by, after the mean is taken away."""
        return 1 / self.std if self.std > 0 else inf

    @property
    def bits(self) -> float:
        """What a value tells of its picture, at most."""
        return max(0.0, log2(self.std / self.noise)) if self.std > 0 else 0.0


class Gathered:
    """Sums over the posteriors of many latents, part by part; float64."""

    def __init__(self) -> None:
        self.measured = Measured()
        self.log_vars, self.low, self.high = (torch.zeros(0, dtype=torch.float64) for _ in range(3))

    def add(self, moments: Moments) -> None:
        """Count posteriors (B, c, h, w)."""
        mean, log_var = moments.mean.double(), moments.log_var.double()
        self.measured.add(mean, (log_var / 2).exp())
        dims = (0, 2, 3)
        log_vars, low, high = log_var.sum(dims).cpu(), mean.amin(dims).cpu(), mean.amax(dims).cpu()
        if not len(self.low):
            self.log_vars, self.low, self.high = log_vars, low, high
            return
        self.log_vars = self.log_vars + log_vars
        self.low, self.high = torch.minimum(self.low, low), torch.maximum(self.high, high)

    def channels(self) -> tuple[Channel, ...]:
        """What was found of each channel."""
        count = self.measured.count
        mean = self.measured.total / count
        std = (self.measured.squares / count - mean.square()).clamp(min=0).sqrt()
        farthest = torch.maximum(self.high - mean, mean - self.low) / std.clamp(min=1e-300)
        rows: list[Tensor] = [mean, std, (self.log_vars / count / 2).exp(), farthest]
        return tuple(Channel(*(float(row[i]) for row in rows)) for i in range(len(mean)))


def warnings(channels: Sequence[Channel]) -> list[str]:
    """What stage two would stumble over, in sentences; empty where nothing is wrong."""
    found = []
    silent = [i for i, one in enumerate(channels) if one.bits < SILENT]
    if silent:
        every = len(silent) == len(channels)
        what = "every latent channel" if every else f"latent channel {', '.join(map(str, silent))}"
        found.append(
            f"{what} tells next to nothing of its picture (below {SILENT} bits a value): the KL has collapsed; train "
            f"with a smaller weight of it, or fewer latent channels"
        )
    for i, one in enumerate(channels):
        if i not in silent and not WILD[0] <= one.std <= WILD[1]:
            found.append(
                f"latent channel {i} has std {one.std:.3g}, beyond {WILD[0]:g} to {WILD[1]:g}: train with another "
                f"weight of the KL"
            )
        if i not in silent and one.farthest > FAR:
            found.append(
                f"latent channel {i} has a value {one.farthest:.0f} std from its mean: stage two sees it rarely"
            )
    return found
