"""A value with the error of it, and what every metric of feature rows asks of its input.

Standard errors come from leaving rows out (Efron & Stein 1981): one at a time where that is cheap, else in `GROUPS`
random groups. Proportions carry Wilson's interval, which stays sensible at 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuosan.errors import Error, plural
from kuosan.seeds import rng

Array = NDArray[np.float64]

GROUPS = 20  # of rows left out together; an error from G groups is itself uncertain by 1 / sqrt(2 (G - 1)), 16 %


@dataclass(frozen=True)
class Estimate:
    """A value and the standard error of it: with other images from the same sources it varies by about `error`."""

    value: float
    error: float


BOUNDED = ("precision", "recall", "coverage", "labels", "nearer")  # of 0 to 1: no error reaches beyond


def reach(estimate: Estimate, name: str) -> tuple[float, float]:
    """How far a figure's error reaches below and above it."""
    if name not in BOUNDED:
        return estimate.error, estimate.error
    return min(estimate.error, max(0.0, estimate.value)), min(estimate.error, max(0.0, 1 - estimate.value))


@dataclass(frozen=True)
class Proportion:
    """`count` of `n`, and the interval from `low` to `high` that holds the true share at 95 %."""

    count: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The share itself."""
        return self.count / self.n


def mean(values: ArrayLike) -> Estimate:
    """The mean of images' values, and its standard error; nan of a single image."""
    numbers = np.asarray(values, np.float64)
    error = float(numbers.std(ddof=1)) / sqrt(len(numbers)) if len(numbers) > 1 else float("nan")
    return Estimate(float(numbers.mean()), error)


def wilson(count: int, n: int, z: float = 1.959963984540054) -> Proportion:
    """The share of `count` in `n` with its score interval (Wilson 1927); `z` 1.96 is 95 %.

    Raises:
        Error: no trial at all, or a count outside 0..n.
    """
    if n < 1 or not 0 <= count <= n:
        raise Error(f"a share of {count} in {n}: the number of trials must be at least 1 and hold the count.")
    share, shrink = count / n, 1 / (1 + z * z / n)
    centre = shrink * (share + z * z / (2 * n))
    half = shrink * z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Proportion(count, n, 0.0 if count == 0 else centre - half, 1.0 if count == n else centre + half)


def spread(left_out: NDArray[np.float64]) -> float:
    """The jackknife's variance of an estimate from its values with one row, or one group, left out."""
    n = len(left_out)
    return float((n - 1) / n * np.square(left_out - left_out.mean()).sum())


def groups(n: int, seed: int, purpose: str) -> NDArray[np.int64]:
    """Which of `GROUPS` random groups, of sizes that differ by 1 at most, each of `n` rows belongs to: (n,)."""
    count = min(GROUPS, n)
    numbers: NDArray[np.int64] = rng(seed, purpose).permutation(np.arange(n, dtype=np.int64) % count)
    return numbers


def checked(x: ArrayLike, y: ArrayLike, *, least: int, metric: str) -> tuple[Array, Array]:
    """Both sets as float64 (N, D) and (M, D), or an `Error` that names what is wrong."""
    a, b = checked_rows(x, least=least, metric=metric), checked_rows(y, least=least, metric=metric)
    if a.shape[1] != b.shape[1]:
        raise Error(f"{metric} of features {a.shape[1]} and {b.shape[1]} wide: both sides need the same features.")
    return a, b


def checked_rows(x: ArrayLike, *, least: int, metric: str) -> Array:
    """One set as float64 (N, D), or an `Error` that names what is wrong."""
    rows = np.asarray(x, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise Error(f"{metric} takes features (N, D), one row an image; got shape {rows.shape}.")
    if len(rows) < least:
        raise Error(f"{metric} of {plural(len(rows), 'image')}: at least {least} a side are needed.")
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        raise Error(f"{metric} of features that are not finite: {bad} of {len(rows)} rows.")
    return rows


@dataclass(frozen=True)
class Agreement:
    """The share of images whose likeliest class is the wanted one, and which were taken for which."""

    accuracy: Proportion
    confusion: NDArray[np.int64]  # (C, C): wanted by row, seen by column
    classes: tuple[str, ...] = ()

    def of(self, wanted: int) -> Proportion:
        """The share of one class.

        Raises:
            Error: no image of it was asked for.
        """
        return wilson(int(self.confusion[wanted, wanted]), int(self.confusion[wanted].sum()))


def agreement(logits: ArrayLike, wanted: ArrayLike, classes: tuple[str, ...] = ()) -> Agreement:
    """Of logits, or probabilities, (N, C) and the labels asked for (N,).

    Raises:
        Error: lengths that differ, labels outside 0..C-1, scores that are not finite, or not C names.
    """
    scores, labels = np.asarray(logits, dtype=np.float64), np.asarray(wanted)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise Error(f"label agreement takes logits (N, C) and labels (N,); got {scores.shape} and {labels.shape}.")
    count = scores.shape[1]
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= count:
        raise Error(f"labels of {count} classes are whole numbers 0 to {count - 1}; got {np.unique(labels)[:10]}.")
    if not np.isfinite(scores).all():
        raise Error(f"label agreement of {int((~np.isfinite(scores)).any(axis=1).sum())} rows that are not finite.")
    if classes and len(classes) != count:
        raise Error(f"{len(classes)} class names for {count} classes: give as many, in the classifier's order.")
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (labels, scores.argmax(axis=1)), 1)
    return Agreement(wilson(int(confusion.trace()), len(labels)), confusion, classes)
