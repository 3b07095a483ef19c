"""Aspect-ratio buckets: shapes of about size x size pixels, and which of them each picture is brought to. Torch-free.

A shape (H, W) has a longer side L = size, size + step, ... and for the shorter the multiple of step nearest to size²/L.
A picture of h x w goes to the shape of the nearest ratio; scaled to cover it, the part of its pixels that is cut is

    cut = 1 - min(wH, hW) / max(wH, hW)

which is least for the very same shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kuosan.errors import Error

Shape = tuple[int, int]  # height, width

LEAST_STEP = 4  # pixels: what networks of the smallest pictures halve twice
MOST_ASTRAY = 0.25  # of size²: a shape of fewer or more pixels is none of about as many


@dataclass(frozen=True)
class Buckets:
    """The shapes that hold pictures, from tall to wide, and the place among them of each picture's."""

    shapes: tuple[Shape, ...]  # (H, W)
    of: np.ndarray  # (N,) int64

    def counts(self, ids: np.ndarray) -> np.ndarray:
        """How many of these pictures each bucket has: (len(shapes),) int64."""
        return np.bincount(self.of[ids], minlength=len(self.shapes))

    def usual(self, ids: np.ndarray) -> Shape:
        """The square where it holds one of these pictures, else the shape that holds most of them."""
        counts = self.counts(ids)
        square = [bool(count) and h == w for count, (h, w) in zip(counts, self.shapes)]
        return self.shapes[square.index(True) if any(square) else int(counts.argmax())]


def usual_step(size: int) -> int:
    """An eighth of `size` as a power of two that divides it, at least 4 where that does: 8 at 64, 64 at 512.

    The usual networks' factor divides it.
    """
    step = LEAST_STEP
    while step < size / 8:
        step *= 2
    while size % step:
        step //= 2
    return step


def shapes(size: int, step: int, aspect: float) -> tuple[Shape, ...]:
    """All buckets of about size x size pixels whose sides are multiples of `step`, from tall to wide.

    Args:
        aspect: the longer side over the shorter, at most.

    Raises:
        Error: `size` is no multiple of `step`, so that the square would be no bucket.
    """
    if size % step:
        raise Error(
            f"bucket_step = {step} does not divide size = {size}, so squares would have no bucket: set size to a "
            f"multiple of it, or leave bucket_step out."
        )
    wide = []
    for longer in range(size, int(size * aspect) + 1, step):
        shorter = max(1, int(size**2 / (longer * step) + 0.5)) * step
        if longer / shorter <= aspect and abs(longer * shorter / size**2 - 1) <= MOST_ASTRAY:
            wide.append((shorter, longer))
    return (*((w, h) for h, w in reversed(wide[1:])), *wide)


def nearest(choices: Sequence[Shape], height: int, width: int) -> int:
    """The place of the shape whose ratio is nearest to a picture's, and so cuts least of it."""
    return min(range(len(choices)), key=lambda i: (cut(choices[i], height, width), i))


def cut(shape: Shape, height: int, width: int) -> float:
    """The part of a picture's pixels, 0 to 1, that is lost when it is scaled to cover `shape` and cut to it."""
    one, other = width * shape[0], height * shape[1]
    return 1 - min(one, other) / max(one, other)


def sorted_into(choices: Sequence[Shape], sizes: Sequence[Shape]) -> Buckets:
    """The buckets of pictures of these sizes (h, w); shapes that hold none are left out."""
    found = {size: nearest(choices, *size) for size in set(sizes)}
    places = np.array([found[size] for size in sizes], np.int64)
    used, of = np.unique(places, return_inverse=True)
    return Buckets(tuple(choices[int(i)] for i in used), of.astype(np.int64).reshape(-1))
