"""The betas of a `Discrete` schedule, their cumulative product, and what makes no schedule. Torch-free."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from kuosan import limits
from kuosan.diffusion.grids import Array, sigmoid
from kuosan.errors import Error, unknown

if TYPE_CHECKING:
    from kuosan.diffusion.schedule import Discrete


@lru_cache(maxsize=64)
def discrete_alpha_bar(schedule: Discrete) -> Array:
    """(T,) float64, read-only: the cumulative product of 1 - beta, rescaled if the schedule says so."""
    alpha_bar: Array = np.cumprod(1 - discrete_betas(schedule), dtype=np.float64)
    if schedule.zero_terminal_snr:
        root = np.sqrt(alpha_bar)
        alpha_bar = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
    alpha_bar.flags.writeable = False
    return alpha_bar


def discrete_betas(schedule: Discrete) -> Array:
    """(T,) float64: the betas before any rescaling, exactly as given for this T."""
    T, start, end = schedule.T, schedule.beta_start, schedule.beta_end
    match schedule.betas:
        case "linear":
            return np.linspace(start, end, T)
        case "scaled_linear":
            return np.asarray(np.linspace(math.sqrt(start), math.sqrt(end), T) ** 2, dtype=np.float64)
        case "sigmoid":
            return sigmoid(np.linspace(-6, 6, T)) * (end - start) + start
        case "cosine":
            f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
            return np.asarray(np.minimum(1 - f[1:] / f[:-1], 0.999), dtype=np.float64)


def posterior_beta(alpha_bar: Array, t: int) -> float:
    """beta~_t (Ho et al. 2020, eq. 7); at t = 0, where it is 0, beta_0."""
    if t == 0:
        return float(1 - alpha_bar[0])
    return float((1 - alpha_bar[t] / alpha_bar[t - 1]) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]))


def check_discrete(schedule: Discrete) -> None:
    """Raises: Error for betas or T that make no schedule, or numbers without effect."""
    limits.check(schedule)
    names = ("linear", "scaled_linear", "cosine", "sigmoid")
    start, end = schedule.beta_start, schedule.beta_end
    if schedule.betas not in names:
        raise unknown("betas", schedule.betas, names)
    if isinstance(schedule.T, bool) or not isinstance(schedule.T, int) or schedule.T < 1:
        raise Error(f"T {schedule.T!r}: need a whole number of steps, at least 1, for example 1000.")
    if not (0 < start < 1 and 0 < end < 1 and start <= end):
        raise Error(
            f"beta_start {start!r}, beta_end {end!r}: need 0 < beta_start <= beta_end < 1, for example 1e-4 and 0.02."
        )
    if schedule.betas == "cosine" and (start, end) != (1e-4, 0.02):
        raise Error(f"beta_start {start:g}, beta_end {end:g}: betas 'cosine' has neither; leave them out.")
    if schedule.zero_terminal_snr and schedule.T < 2:
        raise Error("zero_terminal_snr needs T of at least 2: with one step nothing but noise would be left.")
