"""Pictures kept in memory as bytes: one array for all pictures of a shape. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kept:
    """Picture i is row `rows[i]` of `arrays[of[i]]`."""

    arrays: tuple[np.ndarray, ...]  # (n, H, W, C) uint8 each
    of: np.ndarray  # (N,) int64
    rows: np.ndarray  # (N,) int64

    @classmethod
    def room(cls, shapes: Sequence[tuple[int, int]], channels: int) -> Kept:
        """Room for pictures of these shapes (H, W), all black."""
        kinds = sorted(set(shapes))
        places = {shape: i for i, shape in enumerate(kinds)}
        of = np.array([places[shape] for shape in shapes], np.int64)
        rows = np.empty(len(of), np.int64)
        for i in range(len(kinds)):
            rows[of == i] = np.arange(np.count_nonzero(of == i))
        arrays = (np.zeros((int((of == i).sum()), *shape, channels), np.uint8) for i, shape in enumerate(kinds))
        return cls(tuple(arrays), of, rows)

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, i: int) -> np.ndarray:
        """One picture, (H, W, C), to be read or written in place."""
        kept: np.ndarray = self.arrays[int(self.of[i])][int(self.rows[i])]
        return kept

    @property
    def nbytes(self) -> int:
        """What all of them take."""
        return sum(array.nbytes for array in self.arrays)

    def only(self, places: Sequence[int]) -> Kept:
        """Some of them, in this order; the others stay in memory."""
        return Kept(self.arrays, self.of[list(places)], self.rows[list(places)])

    def grey(self) -> Kept:
        """Their first channel alone."""
        return Kept(tuple(np.ascontiguousarray(array[..., :1]) for array in self.arrays), self.of, self.rows)
