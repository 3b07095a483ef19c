"""Noise levels: x_t = alpha·x0 + sigma·eps, and the two ways an image meets one.

A level is a pair (alpha, sigma), not a beta: for DDPM alpha² is alpha_bar, for EDM alpha is 1, for flow matching
alpha is 1 - sigma. Levels are float64 on the CPU; `mix` moves their coefficients to the image's dtype and device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """Float64 CPU tensors of one shape: () one level, (B,) a batch's, (N+1,) a grid, noise first and clean last."""

    t: Tensor  # the timestep given to the network (Discrete: 0..T-1, fractional between); never an index
    alpha: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, t: object, alpha: object, sigma: object) -> Level:
        """A level from numbers, lists or arrays, all of one shape."""
        t, alpha, sigma = (torch.as_tensor(value, dtype=torch.float64) for value in (t, alpha, sigma))
        assert t.shape == alpha.shape == sigma.shape, (t.shape, alpha.shape, sigma.shape)
        return cls(t, alpha, sigma)

    @property
    def log_snr(self) -> Tensor:
        """log(alpha²/sigma²): +inf where clean, -inf where nothing of the image is left."""
        return 2 * (self.alpha.log() - self.sigma.log())

    def __len__(self) -> int:
        return len(self.alpha)

    def __getitem__(self, i: int | slice | Tensor) -> Level:
        return Level(self.t[i], self.alpha[i], self.sigma[i])

    def __iter__(self) -> Iterator[Level]:
        return (self[i] for i in range(len(self)))

    def over(self, x: Tensor) -> Level:
        """The level shaped to multiply `x`: (B,) becomes (B, 1, ..., 1) in x's dtype and device.

        A single level stays a 0-dim float64 CPU tensor: torch multiplies it with any x, in x's dtype, without a copy.
        """
        return Level(over(self.t, x), over(self.alpha, x), over(self.sigma, x))

    def add(self, x0: Tensor, eps: Tensor) -> Tensor:
        """Data with noise added: alpha·x0 + sigma·eps."""
        return mix(x0, self.alpha, eps, self.sigma)


def there(values: Tensor, x: Tensor) -> Tensor:
    """A few CPU numbers in x's dtype and device, where a GPU goes on with what it has while they are copied."""
    return values.to(x.device, x.dtype, non_blocking=x.is_cuda)


def over(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient () or (B,) shaped to multiply x (B, ...)."""
    if coefficient.ndim == 0:
        return coefficient
    assert coefficient.shape == x.shape[:1], (coefficient.shape, x.shape)
    return there(coefficient, x).reshape(-1, *[1] * (x.ndim - 1))


def mix(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """a·x + b·y with float64 CPU coefficients, () or (B,), in x's dtype and with one temporary."""
    y = y.to(x.dtype)
    if a.ndim == 0 and b.ndim == 0:
        return torch.add(x * float(a), y, alpha=float(b))
    return torch.addcmul(x * over(a, x), over(b, x), y)
