"""Which t are drawn how often, by how large their losses were (Nichol & Dhariwal 2021, section 3.3).

    p_t ~ sqrt(mean of the last 10 squared losses at t),      a loss drawn so counts 1/(T·p_t)

The mean over draws stays what it is under uniform t, with less noise where few t make up most of it. Uniform until
every t has ten losses, and always a thousandth so. A history is a part of the run's state; u alone is drawn ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from kuosan.train.distributed import World

KEPT = 10  # losses of each t
UNIFORM = 0.001  # share of draws that are uniform whatever the losses


class History:
    """The last losses of each of T times."""

    def __init__(self, T: int) -> None:
        self.losses = torch.zeros(T, KEPT, dtype=torch.float64)
        self.counts = torch.zeros(T, dtype=torch.int64)  # losses ever heard of each t

    @property
    def warm(self) -> bool:
        """Whether every t has its losses."""
        return bool((self.counts >= KEPT).all())

    def chances(self) -> np.ndarray:
        """p_t, of sum 1: (T,) float64."""
        size = self.losses.square().mean(1).sqrt().numpy()
        total = size.sum()
        if not self.warm or total == 0:
            return np.full(len(size), 1 / len(size))
        return np.asarray((1 - UNIFORM) * size / total + UNIFORM / len(size))

    def times(self, u: np.ndarray) -> np.ndarray:
        """t of uniform draws u (B,): the inverse of p's distribution function; (B,) int64."""
        T = len(self.counts)
        if not self.warm:
            return np.asarray(np.floor(u * T), dtype=np.int64)
        return np.asarray(np.minimum(np.searchsorted(np.cumsum(self.chances()), u, side="right"), T - 1))

    def scale(self, t: np.ndarray) -> np.ndarray:
        """1/(T·p_t), which a loss at t counts: (B,) float64."""
        return np.asarray(1 / (len(self.counts) * self.chances()[t]))

    def hear(self, u: np.ndarray, losses: np.ndarray) -> None:
        """Take in one step's scaled losses (B,), drawn by u under the chances up to now, in the rows' order."""
        t = self.times(u)
        for time, loss in zip(t.tolist(), (losses / self.scale(t)).tolist(), strict=True):
            self.losses[time, int(self.counts[time]) % KEPT] = loss
            self.counts[time] += 1

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        return {"importance.losses": self.losses, "importance.counts": self.counts}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take `tensors()` out of these and become it. Raises: KeyError, RuntimeError: none, or of another T."""
        for name, own in self.tensors().items():
            own.copy_(tensors.pop(name))


def gathered(world: World, batch: int, device: torch.device, u: np.ndarray, losses: Tensor) -> np.ndarray:
    """u and losses of all of a step's rows from those of each process (row r is process r mod size's): (2, batch)."""
    own = np.stack([u, losses.cpu().numpy()])
    if world.size == 1:
        return own
    every = torch.zeros(2, batch, dtype=torch.float64, device=device)
    every[:, world.rank :: world.size] = torch.from_numpy(own).to(device)
    return np.asarray(world.sum(every).cpu().numpy())
