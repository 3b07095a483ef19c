"""The kernel distance of two sets of features (KID, Binkowski et al. 2018): unbiased MMD^2 with a cubic kernel.

    k(x, y) = (x . y / D + 1)^3
    MMD^2   = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

Unbiased: two samples of one distribution give 0 on average, at any size, so a value may be slightly negative.
`kid` uses all pairs and gives a jackknife standard error, which holds for the images not seen as well;
`kid_by_subsets` is the published recipe. Everything is float64; no torch is needed, but tensors are taken too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from kuosan.errors import Error
from kuosan.metrics.estimate import Array, Estimate, checked, spread
from kuosan.seeds import rng


@dataclass(frozen=True)
class Subsets:
    """MMD^2 over random subsets: their mean, their standard deviation, and `error`, that of the mean.

    The subsets overlap, so `error` is only how far more subsets of the SAME images would move the mean;
    `kid(...).error` is for other images.
    """

    mean: float
    std: float
    error: float


@dataclass(frozen=True)
class Pairs:
    """The sums of the kernel over all pairs of two sets, by row, from which MMD^2 with any one row left out follows."""

    xx: Array  # (N,) sum over j != i of k(x_i, x_j)
    yy: Array  # (M,) the same of y
    xy: Array  # (N,) sum over j of k(x_i, y_j)
    yx: Array  # (M,) sum over i of k(x_i, y_j)

    def mmd2(self) -> float:
        """The unbiased MMD^2 of the whole sets."""
        n, m = len(self.xx), len(self.yy)
        within = self.xx.sum() / (n * (n - 1)) + self.yy.sum() / (m * (m - 1))
        return float(within - 2 * self.xy.sum() / (n * m))

    def without_x(self) -> Array:
        """MMD^2 with x_i left out, for each i: (N,)."""
        n, m = len(self.xx), len(self.yy)
        xx = (self.xx.sum() - 2 * self.xx) / ((n - 1) * (n - 2))
        xy = (self.xy.sum() - self.xy) / ((n - 1) * m)
        left_out: Array = xx + self.yy.sum() / (m * (m - 1)) - 2 * xy
        return left_out

    def without_y(self) -> Array:
        """MMD^2 with y_j left out, for each j: (M,)."""
        return Pairs(self.yy, self.xx, self.yx, self.xy).without_x()


def mmd2(x: ArrayLike, y: ArrayLike) -> float:
    """Unbiased MMD^2 of features x (N, D) and y (M, D) with the cubic kernel (Binkowski et al. 2018, eq. 4)."""
    return pairs(*checked(x, y, least=2, metric="KID")).mmd2()


def kid(x: ArrayLike, y: ArrayLike) -> Estimate:
    """MMD^2 of x (N, D) and y (M, D) over all pairs, with its two-sample jackknife standard error (Arvesen 1969).

    Raises:
        Error: fewer than 3 rows a side, widths that differ, or features that are not finite.
    """
    sums = pairs(*checked(x, y, least=3, metric="KID"))
    return Estimate(sums.mmd2(), float(np.sqrt(spread(sums.without_x()) + spread(sums.without_y()))))


def kid_of_pairs(x: ArrayLike, y: ArrayLike) -> Estimate:
    """MMD^2 of x and y, both (N, D), where y_i is made of x_i: an image and its reconstruction.

    mean_{i != j} k(x_i, x_j) + k(y_i, y_j) - 2 k(x_i, y_j) (Gretton et al. 2012, eq. 4): no row meets its own partner,
    which would make the two look closer than their distributions are. 0 where y is x; the jackknife leaves out pairs.

    Raises:
        Error: sets of other sizes, or what `kid` refuses.
    """
    a, b = checked(x, y, least=3, metric="KID")
    n = len(a)
    if n != len(b):
        raise Error(f"KID of pairs: {n} rows against {len(b)}; each image needs its own reconstruction.")
    sums = pairs(a, b)
    partners = (np.einsum("nd,nd->n", a, b) / a.shape[1] + 1) ** 3  # k(x_i, y_i)
    rows = sums.xx + sums.yy - (sums.xy - partners) - (sums.yx - partners)
    left_out = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))
    return Estimate(float(rows.sum()) / (n * (n - 1)), float(np.sqrt(spread(left_out))))


def kid_difference(a: ArrayLike, b: ArrayLike, y: ArrayLike) -> Estimate:
    """KID(a, y) - KID(b, y) for images a[i] and b[i] made from the same seed: a and b (N, D), y (M, D).

    Most of both errors is shared (the same y, the same start noise) and cancels: the jackknife leaves out a[i] and
    b[i] together. This is the error for comparing two samplers of one model.
    """
    x_a, real = checked(a, y, least=3, metric="KID")
    x_b, _ = checked(b, y, least=3, metric="KID")
    if len(x_a) != len(x_b):
        raise Error(f"a difference of two KIDs is paired by seed: {len(x_a)} rows against {len(x_b)}; give as many.")
    p, q = pairs(x_a, real), pairs(x_b, real)
    error = np.sqrt(spread(p.without_x() - q.without_x()) + spread(p.without_y() - q.without_y()))
    return Estimate(p.mmd2() - q.mmd2(), float(error))


def kid_by_subsets(x: ArrayLike, y: ArrayLike, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Subsets:
    """Mean MMD^2 over `subsets` pairs of random subsets of `size` rows, drawn by the key (seed, "kid", subset, side).

    Raises:
        Error: `size` above the rows of a side (or below 2), fewer than 2 subsets, or what `kid` refuses.
    """
    x, y = checked(x, y, least=2, metric="KID")
    if not 2 <= size <= min(len(x), len(y)):
        raise Error(f"KID subset size {size}: allowed is 2 to {min(len(x), len(y))}, the rows of the smaller side.")
    if subsets < 2:
        raise Error(f"KID subsets {subsets}: at least 2 are needed for a standard error.")
    values = np.empty(subsets)
    for i in range(subsets):
        rows_x = rng(seed, "kid", i, 0).choice(len(x), size, replace=False)
        rows_y = rng(seed, "kid", i, 1).choice(len(y), size, replace=False)
        values[i] = pairs(x[rows_x], y[rows_y]).mmd2()
    std = float(values.std(ddof=1))
    return Subsets(float(values.mean()), std, std / subsets**0.5)


def pairs(x: Array, y: Array, *, chunk: int = 1024) -> Pairs:
    """Kernel sums of x (N, D) and y (M, D), `chunk` rows at a time: memory O(chunk (N + M)), work O((N + M)^2 D)."""

    def rows(a: Array, b: Array) -> tuple[Array, Array]:
        by_a, by_b = np.empty(len(a)), np.zeros(len(b))
        for start in range(0, len(a), chunk):
            k = (a[start : start + chunk] @ b.T / a.shape[1] + 1) ** 3
            by_a[start : start + chunk] = k.sum(axis=1)
            by_b += k.sum(axis=0)
        return by_a, by_b

    xy, yx = rows(x, y)
    return Pairs(rows(x, x)[0] - own(x), rows(y, y)[0] - own(y), xy, yx)


def own(x: Array) -> Array:
    """k(x_i, x_i): (N,)."""
    k: Array = (np.square(x).sum(axis=1) / x.shape[1] + 1) ** 3
    return k
