"""Mean and covariance of feature rows: gathered in one pass, merged, kept in a file, and where they come from.

A file is an `.npz` without pickle whose arrays `mu` and `sigma` are what pytorch-fid writes and reads, so either tool
reads the other's; ours add `n` and `about`. Everything is float64.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from kuosan.errors import Error
from kuosan.evaluate.estimate import Array, checked_rows
from kuosan.files import explained, write_atomic

T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What rows are of: only rows whose `features`, `hash` and `resize` agree are comparable."""

    features: str = ""  # the feature network's name
    hash: str = ""  # SHA-256 of its weights
    resize: str = ""  # how pictures were brought to its size
    data: str = ""  # the pictures: a fingerprint, or what the caller calls them


@dataclass(frozen=True)
class Statistics:
    """`n` rows' mean (D,) and covariance (D, D), divided by n - 1 as in pytorch-fid."""

    n: int
    mean: Array
    cov: Array
    about: About = About()

    @property
    def dim(self) -> int:
        """Features a picture."""
        return len(self.mean)


def gather(parts: Iterable[ArrayLike], about: About = About()) -> Statistics:
    """The statistics of rows (N, D) that come in parts, without holding more than one part.

    Raises:
        Error: fewer than 2 rows in all, widths that differ, or features that are not finite.
    """
    total: Statistics | None = None
    for part in parts:
        rows = checked_rows(part, least=0, metric="statistics")
        if len(rows):
            here = _of(rows, about)
            total = here if total is None else merge(total, here)
    if total is None or total.n < 2:
        raise Error(f"statistics of {0 if total is None else total.n} pictures: at least 2 are needed.")
    return total


def _of(rows: Array, about: About) -> Statistics:
    """Statistics of one part; a single row has no covariance yet, so its matrix is zero and counts nothing."""
    mean = rows.mean(axis=0)
    centred = rows - mean
    return Statistics(len(rows), mean, centred.T @ centred / max(len(rows) - 1, 1), about)


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both sets of rows together (Chan, Golub & LeVeque 1983, eq. 2.1).

    Raises:
        Error: they are of other features.
    """
    same_features(a, b)
    n, shift = a.n + b.n, b.mean - a.mean
    scatter = a.cov * (a.n - 1) + b.cov * (b.n - 1) + np.outer(shift, shift) * (a.n * b.n / n)
    about = a.about if a.about == b.about else replace(a.about, data=f"{a.about.data}+{b.about.data}")
    return Statistics(n, a.mean + shift * (b.n / n), scatter / (n - 1), about)


def same_features(a: Statistics, b: Statistics) -> None:
    """Raise an `Error` unless both were made by the same features, as far as both say."""
    if a.dim != b.dim:
        raise Error(f"statistics of features {a.dim} and {b.dim} wide: both sides need the same feature network.")
    for name in ("features", "hash", "resize"):
        one, other = getattr(a.about, name), getattr(b.about, name)
        if one and other and one != other:
            raise Error(f"statistics of other features: {name} is {one!r} on one side, {other!r} on the other.")


def save(path: str | Path, statistics: Statistics) -> None:
    """Write the file whole or not at all."""
    buffer = io.BytesIO()
    about = np.array(json.dumps(asdict(statistics.about)))
    np.savez(buffer, mu=statistics.mean, sigma=statistics.cov, n=np.array(statistics.n), about=about)
    write_atomic(path, buffer.getvalue())


def load(path: str | Path, *, n: int | None = None, about: About | None = None) -> Statistics:
    """Read our file or one of pytorch-fid's; the latter says neither `n` nor features: give both.

    Raises:
        Error: no such file, damaged, pickled, of no such arrays, or `n`/`about` missing, or given against the file.
    """
    path = Path(path)
    try:
        with explained(path, doing="read"):
            content = path.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            mean, cov = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
            told = int(arrays["n"]) if "n" in arrays else None
            said = About(**json.loads(str(arrays["about"]))) if "about" in arrays else None
    except (ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise Error(f"{path} holds no statistics (arrays mu and sigma, unpickled): {error}; make it again.") from None
    if (
        mean.ndim != 1
        or cov.shape != (len(mean), len(mean))
        or not (np.isfinite(mean).all() and np.isfinite(cov).all())
    ):
        raise Error(f"{path}: mu {mean.shape} and sigma {cov.shape} are no mean and covariance; make it again.")
    return Statistics(_one(path, "n", told, n), mean, cov, _one(path, "about", said, about))


def _one(path: Path, name: str, told: T | None, given: T | None) -> T:
    """What the file tells or the caller gives: exactly one of them."""
    if told is not None and given is not None:
        raise Error(f"{path} itself says {name} = {told}: giving {name} would have no effect; leave it out.")
    value = given if told is None else told
    if value is None:
        raise Error(f"{path} does not say {name} (pytorch-fid's files do not): load(path, n=..., about=About(...)).")
    return value
