"""Whether made images are nearer to training images than unseen real ones are: memorisation, with a baseline.

    distance(x) = |x - nearest training row|
    relative(x) = distance(x) / mean distance of x to its 50 nearest training rows     (Carlini et al. 2023, section 4)

Held-out images say how near is ordinary. Distances are Euclidean, in any space: pixels or features. `relative` sees
a copy that lies far out and overlooks a dull image that is near to everything; the verdict is about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuosan.errors import Error
from kuosan.metrics.estimate import Array, Estimate, Proportion, checked_rows, spread, wilson
from kuosan.metrics.prdc import SAME

Images = NDArray[np.uint8]  # (N, H, W, C)

NEIGHBOURS = 50  # Carlini et al. 2023, section 4.2
LEAST = 20  # rows a side
CHUNK = 4096  # training rows at a time
SHOWN = 3  # training neighbours kept of each image
ALPHA = 0.01  # a verdict is wrong about one honest model in a hundred


@dataclass(frozen=True)
class Nearest:
    """The nearest training rows of each row, nearest first."""

    index: NDArray[np.int64]  # (N, SHOWN)
    distance: Array  # (N,)
    relative: Array  # (N,)


@dataclass(frozen=True)
class Memorisation:
    """Made images against held-out ones, by their nearest training images."""

    made: Nearest
    held_out: Nearest
    nearer: Estimate  # P(a made image's relative distance is below a held-out one's): 0.5 where nothing is memorised
    below: Proportion  # made images nearer, relatively, than the `quantile` nearest held-out ones
    quantile: float  # the share of held-out images that are, so the expected share of made ones
    p_value: float  # of `below`, were made and held-out images alike; exact
    ratio: float  # median distance of made images over that of held-out ones; below 1 is nearer

    @property
    def flagged(self) -> bool:
        """True where more made images lie close to training ones than chance explains (p below `ALPHA`)."""
        return self.p_value < ALPHA

    def closest(self, count: int) -> NDArray[np.int64]:
        """The made images with the smallest relative distance, the nearest first: (count,)."""
        order: NDArray[np.int64] = np.argsort(self.made.relative, kind="stable")[:count]
        return order


def memorisation(made: ArrayLike, held_out: ArrayLike, train: ArrayLike, *, quantile: float = 0.01) -> Memorisation:
    """Of rows (N, D), (M, D), (T, D) of one space; `train` must hold what was trained on and no held-out image.

    Raises:
        Error: fewer than 20 rows a side or 51 training rows, widths that differ, or a quantile outside (0, 0.5].
    """
    if not 0 < quantile <= 0.5:
        raise Error(f"memorisation with quantile {quantile}: allowed is above 0 to 0.5.")
    x, y = nearest(made, train), nearest(held_out, train)
    for side, name in ((x, "made"), (y, "held-out")):
        if len(side.distance) < LEAST:
            raise Error(f"memorisation by {len(side.distance)} {name} images: at least {LEAST} are needed.")
    n, m = len(x.relative), len(y.relative)
    rank = threshold(y.relative, quantile)
    below = int((x.relative < np.sort(y.relative)[rank - 1]).sum())
    return Memorisation(
        made=x,
        held_out=y,
        nearer=mann_whitney(x.relative, y.relative),
        below=wilson(below, n),
        quantile=rank / (m + 1),
        p_value=tail(below, n, rank, m),
        ratio=float(np.median(x.distance) / max(float(np.median(y.distance)), np.finfo(np.float64).tiny)),
    )


def threshold(held_out: Array, quantile: float) -> int:
    """The rank, from 1, of the held-out value that made ones are to lie below: the quantile's, or next above its ties.

    Ties are held-out images that are copies themselves, at distance 0: a data set with duplicates has them, and
    made copies must count although they are no nearer than those.
    """
    ordered = np.sort(held_out)
    rank = max(int(quantile * len(ordered)), 1)
    upto = int(np.searchsorted(ordered, ordered[rank - 1], "right"))
    tied = upto - int(np.searchsorted(ordered, ordered[rank - 1], "left")) > 1
    return min(upto + 1, len(ordered)) if tied else rank


def nearest(rows: ArrayLike, train: ArrayLike) -> Nearest:
    """The nearest of training rows (T, D) to each row (N, D), `CHUNK` training rows at a time.

    Raises:
        Error: widths that differ, fewer than 51 training rows, or rows that are not finite.
    """
    x, t = checked_rows(rows, least=1, metric="memorisation"), np.asarray(train)
    if t.ndim != 2 or t.shape[1] != x.shape[1]:
        raise Error(f"memorisation of rows {x.shape} against training rows {t.shape}: give both (N, D) of one width.")
    if len(t) <= NEIGHBOURS:
        raise Error(f"memorisation against {len(t)} training images: at least {NEIGHBOURS + 1} are needed.")
    x2 = np.square(x).sum(axis=1)[:, None]
    best, index = np.full((len(x), NEIGHBOURS), np.inf), np.zeros((len(x), NEIGHBOURS), dtype=np.int64)
    for start in range(0, len(t), CHUNK):
        part = checked_rows(t[start : start + CHUNK], least=1, metric="memorisation")
        scale = x2 + np.square(part).sum(axis=1)
        d2 = scale - 2 * (x @ part.T)
        d2[d2 < SAME * scale] = 0
        both = np.concatenate([best, d2], axis=1)
        names = np.concatenate([index, np.broadcast_to(np.arange(start, start + len(part)), d2.shape)], axis=1)
        keep = np.argpartition(both, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        best, index = np.take_along_axis(both, keep, axis=1), np.take_along_axis(names, keep, axis=1)
    order = np.argsort(best, axis=1, kind="stable")
    distance = np.sqrt(np.take_along_axis(best, order, axis=1))
    around = distance.mean(axis=1)
    relative = np.divide(distance[:, 0], around, out=np.zeros(len(x)), where=around > 0)
    return Nearest(np.take_along_axis(index, order, axis=1)[:, :SHOWN], distance[:, 0], relative)


def mann_whitney(x: Array, y: Array) -> Estimate:
    """P(x < y) + P(x = y) / 2 with the standard error of DeLong et al. 1988: the jackknife over both samples."""
    ordered_x, ordered_y = np.sort(x), np.sort(y)
    above = 1 - (np.searchsorted(ordered_y, x, "left") + np.searchsorted(ordered_y, x, "right")) / (2 * len(y))
    below = (np.searchsorted(ordered_x, y, "left") + np.searchsorted(ordered_x, y, "right")) / (2 * len(x))
    n, m = len(x), len(y)
    left_out_x, left_out_y = (above.sum() - above) / (n - 1), (below.sum() - below) / (m - 1)
    return Estimate(float(above.mean()), sqrt(spread(left_out_x) + spread(left_out_y)))


def tail(count: int, n: int, rank: int, m: int) -> float:
    """P(at least `count` of n rows lie below the `rank`-th smallest of m others of the same distribution).

    The number below is beta-binomial(n, rank, m + 1 - rank), whatever the distribution (Wilks 1941).
    """

    def log_beta(a: float, b: float) -> float:
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    def probability(k: int) -> float:
        choose = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
        return exp(choose + log_beta(k + rank, n - k + m + 1 - rank) - log_beta(rank, m + 1 - rank))

    return min(1.0, sum(probability(k) for k in range(count, n + 1)))


def copies(made: Images, train: Images) -> list[tuple[int, int]]:
    """Made images (N, H, W, C) that are a training image byte for byte, or its mirror image: (made, training).

    Raises:
        Error: images that are not 8-bit, or of other shapes.
    """
    for images in (made, train):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise Error(f"copies are sought in 8-bit images (N, H, W, C); got {images.dtype} {images.shape}.")
    if made.shape[1:] != train.shape[1:]:
        raise Error(f"copies among images {made.shape[1:]} and {train.shape[1:]}: give both in one size.")
    known: dict[bytes, int] = {}
    for i, image in enumerate(train):
        known.setdefault(image.tobytes(), i)
    found = []
    for i, image in enumerate(made):
        match = known.get(image.tobytes(), known.get(image[:, ::-1].tobytes()))
        if match is not None:
            found.append((i, match))
    return found
