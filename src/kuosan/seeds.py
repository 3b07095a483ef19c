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

BESIDE_A_GPU = 4  # threads that draw noise where a GPU computes and leaves the processor free

Key = tuple[int, str, int, int]  # (seed, purpose, step, id)


def rng(seed: int, purpose: str, step: int = 0, id: int = 0) -> np.random.Generator:
    """The generator of one key; two calls with the same key give the same stream."""
    return np.random.Generator(np.random.Philox(key=_philox_key(seed, purpose, step, id)))


def _philox_key(seed: int, purpose: str, step: int, id: int) -> np.ndarray:
    digest = blake2b(f"{seed}\0{purpose}\0{step}\0{id}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


class Streams:
    """One generator turned to one key after another: the streams of `rng`, at a quarter of the cost of making each.

    A stream ends where the next begins, so it is for one thread, and for draws taken at once.
    """

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._start = self._bits.state  # of any key, before its first draw

    def at(self, key: Key) -> np.random.Generator:
        """The generator at the beginning of a key's stream."""
        self._start["state"]["key"] = _philox_key(*key)
        self._bits.state = self._start
        return self._generator


def normal(keys: Iterable[Key], shape: tuple[int, ...], threads: int = 1) -> Tensor:
    """Standard normal float32 noise, one independent stream a key: (len(keys), *shape); `threads` share the keys."""
    import torch

    keys = list(keys)
    drawn = np.empty((len(keys), *shape), np.float32)

    def draw(first: int) -> None:
        streams = Streams()
        for row in range(first, len(keys), threads):
            streams.at(keys[row]).standard_normal(dtype=np.float32, out=drawn[row, ...])

    if threads == 1:
        draw(0)
    else:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads, "noise") as pool:
            list(pool.map(draw, range(threads)))
    return torch.from_numpy(drawn)


def uniform(keys: Iterable[Key]) -> np.ndarray:
    """One float64 in [0, 1) a key: (len(keys),)."""
    streams = Streams()
    return np.array([streams.at(key).random() for key in keys])


def permutation(n: int, seed: int, epoch: int, id: int = 0) -> np.ndarray:
    """The order of `n` images in one epoch (of the bucket `id`): (n,) int64, each index exactly once."""
    return rng(seed, "order", epoch, id).permutation(n)
