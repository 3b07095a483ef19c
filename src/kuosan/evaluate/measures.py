"""Which metric gives which figures: `kid` one, `prdc` four. All are functions of two sets of feature rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kuosan.errors import Error
from kuosan.evaluate.estimate import Estimate
from kuosan.evaluate.frechet import enough, frechet_of_rows
from kuosan.evaluate.kid import kid
from kuosan.evaluate.neighbours import density_coverage, precision_recall

Figures = dict[str, Estimate]


def _kid(made: np.ndarray, real: np.ndarray, force: bool) -> Figures:
    return {"kid": kid(made, real)}


def _frechet(made: np.ndarray, real: np.ndarray, force: bool) -> Figures:
    return {"frechet": frechet_of_rows(made, real, force=force)}


def _prdc(made: np.ndarray, real: np.ndarray, force: bool) -> Figures:
    shares, balls = precision_recall(real, made), density_coverage(real, made)
    return {
        "precision": shares.precision,
        "recall": shares.recall,
        "density": balls.density,
        "coverage": balls.coverage,
    }


DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray, bool], Figures]] = {
    "kid": _kid,
    "frechet": _frechet,
    "prdc": _prdc,
}
LEAST = {"kid": 3, "frechet": 4, "prdc": 6}  # rows a side, without which there is no figure at all


def chosen(asked: Sequence[str], made: int, real: int, dim: int, force: bool) -> tuple[str, ...]:
    """The distances to take: those asked for, or all that so many pictures allow.

    Raises:
        Error: one asked for needs more pictures.
    """
    if not asked:
        allowed = [name for name in DISTANCES if min(made, real) >= LEAST[name]]
        return tuple(name for name in allowed if name != "frechet" or min(made, real) > dim or force)
    for name in asked:
        if min(made, real) < LEAST[name]:
            raise Error(
                f"{name} of {made} pictures against {real}: at least {LEAST[name]} a side are needed; give --n or "
                f"--real {LEAST[name]} or more."
            )
    if "frechet" in asked:
        for n in (made, real):
            enough(n, dim, force=force)
    return tuple(name for name in DISTANCES if name in asked)


def figures(names: Sequence[str], made: np.ndarray, real: np.ndarray, *, force: bool = False) -> Figures:
    """All figures of made (N, D) against real (M, D) features."""
    return {key: value for name in names for key, value in DISTANCES[name](made, real, force).items()}


def floor(names: Sequence[str], one: np.ndarray, other: np.ndarray) -> Figures:
    """The same figures of real pictures, as far as there are enough of them."""
    few = min(len(one), len(other))
    possible = [name for name in names if few >= LEAST[name] and (name != "frechet" or few > one.shape[1])]
    return figures(possible, one, other)
