"""The Fréchet distance of two sets of features, each taken for a Gaussian (Fréchet 1957; Heusel et al. 2017, FID).

    d^2 = |m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1^1/2 C2 C1^1/2)^1/2

It is FID only on the standard Inception features; `label` gives every other its own name. It is biased: two samples of
one distribution are apart, the more so the fewer rows a feature has, which `floor` measures on real images. Symmetric
eigenvalues in float64 need no matrix square root to converge and take covariances of any rank.

Mean and covariance of feature rows: gathered in one pass, merged, kept in a file, and where they come from.

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

from kuosan.errors import Error, plural
from kuosan.metrics.estimate import Array, Estimate, checked, checked_rows
from kuosan.seeds import rng
from kuosan.storage.files import explained, write_atomic

STANDARD = "6726825d"  # the SHA-256 of pt_inception-2015-12-05-6726825d.pth begins so


def label(about: About) -> str:
    """What the distance may be called: "FID" on the standard Inception file, else "FD (name of the features)"."""
    standard = about.features.startswith("inception") and about.hash.startswith(STANDARD)
    return "FID" if standard else f"FD ({about.features or 'unnamed features'})"


def frechet(a: Statistics, b: Statistics, *, force: bool = False) -> float:
    """The squared distance of two Gaussians, never below 0.

    Raises:
        Error: other features on the two sides; `n` not above the features of an image, unless `force`.
    """
    same_features(a, b)
    for side in (a, b):
        enough(side.n, side.dim, force=force)
    return distance(a.mean, a.cov, b.mean, b.cov)


def enough(n: int, dim: int, *, force: bool = False) -> None:
    """Refuse a sample that cannot span its features: a covariance of `n` rows has rank n - 1 at most."""
    if n <= dim and not force:
        raise Error(
            f"the Fréchet distance of {n} images on {dim} features: a covariance needs more than {dim} images, "
            "and ten times as many to be worth reading. Use KID, which is unbiased at any size, or give force."
        )


def distance(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """The formula itself, of means (D,) and covariances (D, D)."""
    shift = mean_a - mean_b
    root = power(cov_a, 1 / 2)
    overlap = np.linalg.eigvalsh(symmetric(root @ cov_b @ root))
    value = shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(overlap.clip(0)).sum()
    return max(float(value), 0.0)


def power(cov: Array, exponent: float) -> Array:
    """A covariance (D, D) of any rank to a power; eigenvalues below 0 are rounding and count as 0."""
    values, vectors = np.linalg.eigh(symmetric(cov))
    raised: Array = (vectors * values.clip(0) ** exponent) @ vectors.T
    return raised


def symmetric(matrix: Array) -> Array:
    """The matrix without the asymmetry that rounding left."""
    half: Array = (matrix + matrix.T) / 2
    return half


def frechet_of_rows(x: ArrayLike, y: ArrayLike, *, force: bool = False) -> Estimate:
    """The distance of rows x (N, D) and y (M, D), with its standard error: the infinitesimal jackknife (Jaeckel 1972).

    The error is how far other images would move the value, 1.4 times too large where both sides are alike; it knows
    nothing of the bias, for which see `floor`.

    Raises:
        Error: what `frechet` refuses.
    """
    a, b = checked(x, y, least=4, metric="the Fréchet distance")
    for rows in (a, b):
        enough(len(rows), a.shape[1], force=force)
    p, q = gather([a]), gather([b])
    variance = sum(influence(rows, here, there).var(ddof=1) / here.n for rows, here, there in ((a, p, q), (b, q, p)))
    return Estimate(frechet(p, q, force=True), float(np.sqrt(variance)))


def influence(rows: Array, here: Statistics, there: Statistics) -> Array:
    """How the distance grows with the weight of each of the rows (N, D) that `here` is of, but for a constant: (N,).

    2 (x - m)(m - m') + (x - m)' (I - T) (x - m), where T = C^-1/2 (C^1/2 C' C^1/2)^1/2 C^-1/2 is the linear map that
    carries N(0, C) to N(0, C') (Gelbrich 1990). Directions that the rows do not span have no inverse and are left out.
    """
    values, vectors = np.linalg.eigh(symmetric(here.cov))
    roots = np.sqrt(values.clip(0))
    spanned = values > 1e-10 * values[-1]
    inverse = np.divide(1, roots, out=np.zeros_like(roots), where=spanned)
    root = (vectors * roots) @ vectors.T
    middle = power(root @ there.cov @ root, 1 / 4)
    centred = rows - here.mean
    turned = centred @ vectors * inverse  # C^-1/2 (x - m), in the eigenvectors' directions
    carried = np.square(turned @ (vectors.T @ middle)).sum(axis=1)
    linear = 2 * centred @ (here.mean - there.mean)
    grown: Array = linear + np.square(centred).sum(axis=1) - carried
    return grown


def floor(real: ArrayLike, n: int, m: int, *, repeats: int = 3, seed: int = 0, force: bool = False) -> Estimate:
    """The distance of `n` real images from `m` others of the same source: what a perfect model would score.

    The rows (N, D) are dealt `repeats` times, without overlap between the sides; `error` is their standard
    deviation. Give the sizes of the comparison that the floor is for: it depends on both.

    Raises:
        Error: n + m above the rows there are, or too few for the features, or fewer than 2 repeats.
    """
    rows = checked_rows(real, least=2, metric="the Fréchet floor")
    if n < 2 or m < 2 or n + m > len(rows):
        raise Error(
            f"the Fréchet floor of {n} against {m} images needs {n + m} real ones, there are {len(rows)}: "
            f"ask for halves, {len(rows) // 2} against {len(rows) // 2}, and say so beside it."
        )
    if repeats < 2:
        raise Error(f"the Fréchet floor from {repeats} repeats: at least 2 are needed to say how far it varies.")
    values = []
    for i in range(repeats):
        order = rng(seed, "frechet floor", i).permutation(len(rows))
        a, b = gather([rows[order[:n]]]), gather([rows[order[n : n + m]]])
        values.append(frechet(a, b, force=force))
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1)))


T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What rows are of: only rows whose `features`, `hash` and `resize` agree are comparable."""

    features: str = ""  # the feature network's name
    hash: str = ""  # SHA-256 of its weights
    resize: str = ""  # how images were resized to its size
    data: str = ""  # the images: a fingerprint, or what the caller calls them


@dataclass(frozen=True)
class Statistics:
    """`n` rows' mean (D,) and covariance (D, D), divided by n - 1 as in pytorch-fid."""

    n: int
    mean: Array
    cov: Array
    about: About = About()

    @property
    def dim(self) -> int:
        """Features an image."""
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
        raise Error(f"statistics of {plural(0 if total is None else total.n, 'image')}: at least 2 are needed.")
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
            stored = int(arrays["n"]) if "n" in arrays else None
            said = About(**json.loads(str(arrays["about"]))) if "about" in arrays else None
    except (ValueError, KeyError, TypeError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
        raise Error(f"{path} holds no statistics (arrays mu and sigma, unpickled): {error}; make it again.") from None
    if (
        mean.ndim != 1
        or cov.shape != (len(mean), len(mean))
        or not (np.isfinite(mean).all() and np.isfinite(cov).all())
    ):
        raise Error(f"{path}: mu {mean.shape} and sigma {cov.shape} are no mean and covariance; make it again.")
    return Statistics(_one(path, "n", stored, n), mean, cov, _one(path, "about", said, about))


def _one(path: Path, name: str, stored: T | None, given: T | None) -> T:
    """What the file holds or the caller gives: exactly one of them."""
    if stored is not None and given is not None:
        raise Error(f"{path} itself says {name} = {stored}: giving {name} would have no effect; leave it out.")
    value = given if stored is None else stored
    if value is None:
        raise Error(f"{path} does not say {name} (pytorch-fid's files do not): load(path, n=..., about=About(...)).")
    return value
