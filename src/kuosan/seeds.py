"""Every random draw, keyed: no generator state exists, so nothing has to be saved to resume.

A draw is a pure function of its key `(seed, purpose, step, id)`. The key is hashed (BLAKE2b, 128 bits) into the
counter-based generator Philox4x64 (Salmon et al. 2011), so streams of different keys are independent, and the same
key gives the same bits on every machine, at any batch size, before and after an interruption.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Key = tuple[int, str, int, int]  # (seed, purpose, step, id)


def rng(seed: int, purpose: str, step: int = 0, id: int = 0) -> np.random.Generator:
    """The generator of one key; two calls with the same key give the same stream."""
    digest = blake2b(f"{seed}\0{purpose}\0{step}\0{id}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key.astype(np.uint64)))


def normal(keys: Iterable[Key], shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 noise, one independent stream a key: (len(keys), *shape)."""
    import torch

    return torch.from_numpy(np.stack([rng(*key).standard_normal(shape, dtype=np.float32) for key in keys]))


def uniform(keys: Iterable[Key]) -> np.ndarray:
    """One float64 in [0, 1) a key: (len(keys),)."""
    return np.array([rng(*key).random() for key in keys])


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `n` pictures in one epoch: (n,) int64, each index exactly once."""
    return rng(seed, "order", epoch).permutation(n)
