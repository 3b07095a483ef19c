"""Whether an image made of tiles shows where they meet: gradient energy across the tiles' edges over that elsewhere.

energy = sum of (x[p+1] - x[p])² over the pairs of pixels that straddle an edge / what as many pairs elsewhere, of the
same direction, have on average. 1 is no seam. Images vary, so the same is asked of the same grid shifted to where no
tile ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kuosan.errors import Error
from kuosan.metrics.estimate import Array


@dataclass(frozen=True)
class Seams:
    """The energy of a grid's edges, 1 where there is no seam, and that of the same grid shifted to where none are."""

    energy: float
    shifted: Array  # (n,): one a shift that meets no edge; empty where every shift does

    @property
    def p(self) -> float:
        """The chance of so much energy without a seam: the share of shifted grids that have as much, itself counted."""
        return float((1 + (self.shifted >= self.energy).sum()) / (1 + len(self.shifted)))

    @property
    def z(self) -> float:
        """How many standard deviations of the shifted grids the energy lies above their mean; nan if they have none."""
        std = float(self.shifted.std(ddof=1)) if len(self.shifted) > 1 else 0.0
        return (self.energy - float(self.shifted.mean())) / std if std else float("nan")


def seam_energy(
    image: ArrayLike,  # (C, H, W) or (B, C, H, W)
    starts_y: Sequence[int],  # each tile's first row
    starts_x: Sequence[int],  # each tile's first column
    side: int | tuple[int, int],  # of a tile, in pixels; height, width
) -> float:
    """The mean squared difference across tile edges over that of all other neighbours; 1 without seams.

    Tiles blended over an overlap differ most where it is halved, not at their edges: ask there too, with
    start + overlap // 2 for each start and side - overlap.
    Raises:
        Error: a tile outside the image, no edge inside it, nothing but edges, or values that are not finite.
    """
    return seams(image, starts_y, starts_x, side).energy


def seams(image: ArrayLike, starts_y: Sequence[int], starts_x: Sequence[int], side: int | tuple[int, int]) -> Seams:
    """The same with what it is for the grid shifted down and right by 1, 2, ... pixels, around the image's border.

    Shifts that lay an edge on an edge are left out; each is compared with what lies on neither.
    Raises: Error as `seam_energy`.
    """
    pixels = np.asarray(image, dtype=np.float64)
    if pixels.ndim not in (3, 4):
        raise Error(f"an image of shape {pixels.shape}; allowed are (C, H, W) and (B, C, H, W).")
    if not np.isfinite(pixels).all():
        raise Error("seams of images that hold NaN or infinite values: nothing can be said of them.")
    height, width = (side, side) if isinstance(side, int) else side
    profiles = [_profile(pixels, -2), _profile(pixels, -1)]
    edges = [_edges(starts_y, height, pixels.shape[-2]), _edges(starts_x, width, pixels.shape[-1])]
    if not any(edge.any() for edge in edges):
        raise Error("no tile ends inside the image: a single tile has no seam to look for.")
    if any(edge.any() and edge.all() for edge in edges):
        raise Error("every pair of neighbours straddles a tile's edge: take larger tiles.")
    shifts = ([np.roll(edge, by) for edge in edges] for by in range(1, max(map(len, edges))))
    free = [shift for shift in shifts if all(_apart(a, b) for a, b in zip(shift, edges))]
    return Seams(_energy(profiles, edges, edges), np.array([_energy(profiles, shift, edges) for shift in free]))


def _profile(pixels: Array, axis: int) -> Array:
    """The sum of squared differences between neighbouring rows (axis -2) or columns (-1): one number a pair."""
    squares: Array = np.moveaxis(np.diff(pixels, axis=axis) ** 2, axis, -1)
    profile: Array = squares.reshape(-1, squares.shape[-1]).sum(axis=0)
    return profile


def _edges(starts: Sequence[int], side: int, length: int) -> np.ndarray:
    """Which of the length - 1 pairs of neighbours straddle a tile's first or last pixel: (length - 1,) bool."""
    for start in starts:
        if not 0 <= start <= length - side:
            raise Error(f"a tile of {side} pixels that starts at {start} lies outside an image of {length}.")
    inside = [end for start in starts for end in (start, start + side) if 0 < end < length]
    edges = np.zeros(length - 1, dtype=bool)
    edges[np.array(inside, dtype=int) - 1] = True
    return edges


def _apart(shift: np.ndarray, edges: np.ndarray) -> bool:
    """Whether a shifted grid meets no edge along one axis, and leaves pairs that are on neither."""
    return not (shift & edges).any() and not (edges.any() and (shift | edges).all())


def _energy(profiles: Sequence[Array], grid: Sequence[np.ndarray], edges: Sequence[np.ndarray]) -> float:
    """The grid's energy over that of as many pairs, of each direction, that lie neither on it nor on an edge."""
    across, expected = 0.0, 0.0
    for profile, here, edge in zip(profiles, grid, edges):
        if here.any():
            across += float(profile[here].sum())
            expected += float(profile[~(here | edge)].mean()) * int(here.sum())
    if not expected:
        return float("inf") if across else 1.0
    return across / expected
