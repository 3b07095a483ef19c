"""Whether pictures show the class that was asked for, as an independent classifier sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuosan.errors import Error
from kuosan.evaluate.estimate import Proportion, wilson


@dataclass(frozen=True)
class Agreement:
    """The share of pictures whose likeliest class is the wanted one, and which were taken for which."""

    accuracy: Proportion
    confusion: NDArray[np.int64]  # (C, C): wanted by row, seen by column
    classes: tuple[str, ...] = ()

    def of(self, wanted: int) -> Proportion:
        """The share of one class.

        Raises:
            Error: no picture of it was asked for.
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
