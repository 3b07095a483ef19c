"""How much of one set of images lies where the other does, by balls around each row that reach its k-th neighbour.

    precision   share of made rows inside some real row's ball      } Kynkäänniemi et al. 2019, k = 3
    recall      share of real rows inside some made row's ball      }
    density     made rows in a real row's ball, per k, on average   } Naeem et al. 2020, k = 5
    coverage    share of real rows whose ball holds a made row      }

Precision and density measure fidelity, recall and coverage diversity. A ball is closed, and a row is no neighbour of
itself. Distances are taken `CHUNK` rows at a time, so memory is O(CHUNK (N + M)), work O(GROUPS N M + (N + M)^2 D).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuosan.errors import Error
from kuosan.metrics.estimate import Array, Estimate, checked, groups, spread

CHUNK = 256  # rows; their distances to 10,000 others are 20 MB
SPARE = 24  # neighbours kept beyond k, so that the k-th of the remaining is known whichever group is left out
SAME = 1e-13  # of |a|^2 + |b|^2: squared distances below are rounding of |a|^2 + |b|^2 - 2 a.b


@dataclass(frozen=True)
class PrecisionRecall:
    """Shares in [0, 1] with their standard errors."""

    precision: Estimate
    recall: Estimate
    k: int


@dataclass(frozen=True)
class DensityCoverage:
    """Density is 1 on average for equal distributions and may exceed it; coverage lies in [0, 1]."""

    density: Estimate
    coverage: Estimate
    k: int


@dataclass(frozen=True)
class Balls:
    """Squared radii of the balls around rows: of all rows, and with each group of rows left out (its own are -1)."""

    rows: Array  # (N, D)
    number: NDArray[np.int64]  # (N,) the group of each row
    radii: Array  # (N,)
    without: Array  # (groups, N)


def precision_recall(real: ArrayLike, made: ArrayLike, *, k: int = 3, seed: int = 0) -> PrecisionRecall:
    """Of real (N, D) and made (M, D) features; errors by leaving out groups on each side.

    Raises:
        Error: k below 1 or not below the rows of a side, or features that cannot be compared.
    """
    x, y = _checked(real, made, k, "precision and recall")
    return PrecisionRecall(_share(balls(x, k, seed), y, seed), _share(balls(y, k, seed), x, seed), k)


def density_coverage(real: ArrayLike, made: ArrayLike, *, k: int = 5, seed: int = 0) -> DensityCoverage:
    """Of real (N, D) and made (M, D) features; errors by leaving out groups on each side.

    Of equal distributions density is 1 on average and coverage `expected_coverage(N, M, k)`, not 1.

    Raises:
        Error: k below 1 or not below the rows of a side, or features that cannot be compared.
    """
    x, y = _checked(real, made, k, "density and coverage")
    around = balls(x, k, seed)
    number = groups(len(y), seed, "made rows")
    counts = np.zeros(len(around.without) + 1)  # pairs inside: all, and with each group of real rows left out
    by_group = np.zeros(number.max() + 1)  # pairs inside, of each group of made rows
    nearest = np.full((len(x), number.max() + 1), np.inf)  # (N, groups): from a real row to each group of made rows
    for part, d2 in distances(x, y):
        inside = d2 <= around.radii[part, None]
        counts[0] += inside.sum()
        by_group += np.bincount(number, inside.sum(axis=0), minlength=len(by_group))
        for g, radii in enumerate(around.without):
            counts[g + 1] += np.count_nonzero(d2 <= radii[part, None])
        for g in range(len(by_group)):
            nearest[part, g] = d2[:, number == g].min(axis=1)
    density = _density(number, counts, by_group, k)
    return DensityCoverage(density, _coverage(around, nearest), k)


def _density(number: NDArray[np.int64], counts: Array, by_group: Array, k: int) -> Estimate:
    """Density from the pairs inside: of all rows, without each real group, and of each made group."""
    m = len(number)
    variance = spread(counts[1:] / (k * m)) + spread((counts[0] - by_group) / (k * (m - np.bincount(number))))
    return Estimate(float(counts[0] / (k * m)), float(np.sqrt(variance)))


def _coverage(around: Balls, nearest: Array) -> Estimate:
    """Coverage from each real row's nearest made row a group (N, groups)."""
    least = nearest.min(axis=1)
    real = [float((least <= radii)[around.number != g].mean()) for g, radii in enumerate(around.without)]
    made = [float((np.delete(nearest, g, axis=1).min(axis=1) <= around.radii).mean()) for g in range(nearest.shape[1])]
    return Estimate(
        float((least <= around.radii).mean()), float(np.sqrt(spread(np.array(real)) + spread(np.array(made))))
    )


def expected_coverage(n: int, m: int, k: int) -> float:
    """Coverage of n real rows by m made ones of the same distribution (Naeem et al. 2020, appendix): exact.

    A real row's ball holds no made row if its k nearest among the n - 1 + m others are all real.
    """
    miss = 1.0
    for i in range(k):
        miss *= (n - 1 - i) / (n + m - 1 - i)
    return 1 - miss


def balls(rows: Array, k: int, seed: int) -> Balls:
    """The squared distance of each row (N, D) to its k-th neighbour, also with each group of rows left out."""
    n = len(rows)
    number = groups(n, seed, "ball rows")
    keep = min(n - 1, k + SPARE)
    near, names = np.empty((n, keep)), np.empty((n, keep), dtype=np.int64)
    for part, d2 in distances(rows, rows):
        d2[np.arange(d2.shape[0]), np.arange(part.start, part.start + d2.shape[0])] = np.inf
        order = np.argpartition(d2, keep - 1, axis=1)[:, :keep]
        values = np.take_along_axis(d2, order, axis=1)
        by_distance = np.argsort(values, axis=1, kind="stable")
        near[part] = np.take_along_axis(values, by_distance, axis=1)
        names[part] = np.take_along_axis(order, by_distance, axis=1)
    left_out = range(number.max() + 1)
    without = np.stack([np.where(number == g, -1.0, _kth(near, number[names] != g, k)) for g in left_out])
    return Balls(rows, number, near[:, k - 1].copy(), without)


def _kth(near: Array, kept: NDArray[np.bool_], k: int) -> Array:
    """The k-th of the kept distances, which are sorted, in each row; the farthest known where fewer are kept."""
    reached = kept.cumsum(axis=1) >= k
    column = np.where(reached.any(axis=1), reached.argmax(axis=1), near.shape[1] - 1)
    kth: Array = near[np.arange(len(near)), column]
    return kth


def _share(around: Balls, points: Array, seed: int) -> Estimate:
    """The share of points (M, D) inside some ball."""
    number = groups(len(points), seed, "points")
    inside = np.zeros((len(around.without) + 1, len(points)), dtype=bool)
    for part, d2 in distances(around.rows, points):
        inside[0] |= (d2 <= around.radii[part, None]).any(axis=0)
        for g, radii in enumerate(around.without):
            inside[g + 1] |= (d2 <= radii[part, None]).any(axis=0)
    by_ball = spread(inside[1:].mean(axis=1))
    by_point = spread(np.array([inside[0][number != g].mean() for g in range(number.max() + 1)]))
    return Estimate(float(inside[0].mean()), float(np.sqrt(by_ball + by_point)))


def distances(x: Array, y: Array, *, chunk: int = CHUNK) -> Iterator[tuple[slice, Array]]:
    """Squared distances from `chunk` rows of x (N, D) at a time to all of y (M, D): which rows, and (chunk, M)."""
    x2, y2 = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    for start in range(0, len(x), chunk):
        part = slice(start, min(start + chunk, len(x)))
        scale = x2[part, None] + y2
        d2 = scale - 2 * (x[part] @ y.T)
        d2[d2 < SAME * scale] = 0
        yield part, d2


def _checked(real: ArrayLike, made: ArrayLike, k: int, metric: str) -> tuple[Array, Array]:
    """Both sides as float64, k in range on each."""
    x, y = checked(real, made, least=2, metric=metric)
    if not 1 <= k < min(len(x), len(y)):
        raise Error(f"{metric} with k = {k}: allowed is 1 to {min(len(x), len(y)) - 1}, below the rows of each side.")
    return x, y
