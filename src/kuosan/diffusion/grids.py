"""Where the steps of a trajectory lie: integer times as diffusers counts them, and even spacings of log SNR or sigma.

Torch-free, like the schedules that use it.

The times of a trajectory that goes back to noise and down again: RePaint's, and DDNM's time travel. Torch-free.

From each multiple of `jump_length` on the way down, the trajectory returns by `jump_length` steps, jumps - 1 times.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kuosan.errors import Error, unknown

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[np.float64]

Spacing = Literal["trailing", "leading", "linspace", "log_snr", "karras"]
Last = Literal["clean", "first"]
SPACINGS: tuple[str, ...] = ("trailing", "leading", "linspace", "log_snr", "karras")
LASTS: tuple[str, ...] = ("clean", "first")
TINY = 2.0**-53  # the least positive value of a uniform float64 draw


def check_grid(
    kind: str, spacings: tuple[str, ...], T: int | None, steps: int, spacing: str, last: str, offset: int
) -> str:
    """The spacing, once the grid is possible. Raises: Error."""
    if spacing not in SPACINGS:
        raise unknown("spacing", spacing, spacings)
    if spacing not in spacings:
        raise Error(f"spacing {spacing!r}: schedule {kind!r} has {', '.join(spacings)}.")
    if last not in LASTS:
        raise unknown("last", last, LASTS)
    if last == "first" and kind == "flow":
        raise Error("last 'first': a flow schedule has no first trained level; use last 'clean'.")
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise Error(f"steps {steps!r}: need a whole number, at least 1.")
    if offset and spacing != "leading":
        raise Error(f"offset {offset}: only spacing 'leading' has one; {spacing!r} was asked for.")
    if T is not None and spacing in ("trailing", "leading", "linspace"):
        if steps > T:
            raise Error(f"steps {steps}: spacing {spacing!r} has at most T={T}; ask for fewer, or spacing log_snr.")
        if spacing == "leading" and not 0 <= offset <= T - 1 - (steps - 1) * (T // steps):
            raise Error(f"offset {offset}: the grid's first t would leave 0..{T - 1}; 0 always fits.")
    return spacing


def integer_times(T: int, steps: int, spacing: str, offset: int) -> Array:
    """(steps,) falling times in 0..T-1, as diffusers counts them; one step of linspace starts at T-1, not at 0."""
    if spacing == "trailing":
        return np.asarray(np.round(np.arange(T, 0, -T / steps)[:steps]) - 1)
    if spacing == "leading":
        return np.asarray(np.arange(steps)[::-1] * (T // steps) + offset, dtype=np.float64)
    return np.linspace(0, T - 1, steps, dtype=np.float64).round()[::-1] if steps > 1 else np.array([T - 1.0])


def even_log_snr(high: float, low: float, steps: int, spacing: str, last: str, rho: float = 7.0) -> Array:
    """Log SNRs from `high` noise to `low`, even in log SNR or in (sigma/alpha)^(1/rho) (Karras et al. 2022, eq. 5).

    n values before a clean last level, n+1 where the last is the first trained one.
    """
    count = steps if last == "clean" else steps + 1
    if spacing == "log_snr":
        values = np.linspace(high, low, count)
    else:
        values = -2 * rho * np.log(np.linspace(math.exp(-high / 2 / rho), math.exp(-low / 2 / rho), count))
    values[-1] = low
    values[0] = high  # exact ends; one value alone is the noisy one
    return values


def in_unit(u: ArrayLike) -> Array:
    """u as float64, all in [0, 1)."""
    values = np.asarray(u, dtype=np.float64)
    assert np.all((values >= 0) & (values < 1)), "u must lie in [0, 1)"
    return values


def sigmoid(x: ArrayLike) -> Array:
    """1/(1 + exp(-x)) without overflow."""
    return np.asarray(np.exp(-np.logaddexp(0, -np.asarray(x, dtype=np.float64))))


def normal_quantile(u: Array) -> Array:
    """Phi^-1(u) for u in [0, 1); 0 is read as 2^-53."""
    import torch

    return np.asarray(torch.special.ndtri(torch.from_numpy(np.maximum(u, TINY))).numpy())


def logit_normal(u: ArrayLike, mean: float, std: float) -> Array:
    """Draws in [0, 1) whose logit is N(mean, std²), from uniform ones u (Esser et al. 2024, eq. 19)."""
    return np.minimum(sigmoid(mean + std * normal_quantile(in_unit(u))), 1 - TINY)


def normal_density(z: Tensor) -> Tensor:
    """phi(z), the standard normal density."""
    return (z**2 / -2).exp() / math.sqrt(2 * math.pi)


def falling_interp(value: Array, table: Array) -> Array:
    """The fractional index where a falling table, linear between entries, has the value; clamped to its ends."""
    return np.asarray(np.interp(-value, -table, np.arange(len(table), dtype=np.float64)))


def repaint_times(steps: int, jump_length: int = 10, jumps: int = 10) -> list[int]:
    """The indices into a grid of steps + 1 levels that a trajectory visits, 0 first, `steps` (clean) last
    (Lugmayr et al. 2022, section 4.2).

    A move to the next index is a denoising step, one to the index before adds noise. With t = steps - 1 - i, the
    paper's time, returns start at t = 0, jump_length, 2·jump_length, ... below steps - jump_length.
    Raises: Error for returns that do not fit.
    """
    turning = {steps - 1 - t for t in _returning(steps, jump_length, jumps)}
    times = [0]
    for i in range(1, steps + 1):
        times.append(i)
        if i in turning:
            back = list(range(i - 1, i - jump_length - 1, -1))
            times += (back + list(range(i - jump_length + 1, i + 1))) * (jumps - 1)
    return times


def repaint_nfe(steps: int, jump_length: int = 10, jumps: int = 10) -> int:
    """Network evaluations of such a trajectory: each step, and each step of a return again."""
    return steps + len(_returning(steps, jump_length, jumps)) * jump_length * (jumps - 1)


def _returning(steps: int, jump_length: int, jumps: int) -> range:
    """The paper's times t from which a trajectory returns."""
    for name, value in (("steps", steps), ("jump_length", jump_length), ("jumps", jumps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Error(f"{name} {value!r}: need a whole number, at least 1.")
    if jumps == 1:
        return range(0)
    if jump_length >= steps:
        raise Error(
            f"jump_length {jump_length} with {steps} steps: no return fits; need jump_length below {steps}, or jumps 1."
        )
    return range(0, steps - jump_length, jump_length)
