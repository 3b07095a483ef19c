"""What exponential integrators share: how much of an interval's moments the factor exp(-(h - tau)) keeps.

M_k(h) = ∫_0^h exp(-(h - tau))·(tau/h)^k dtau,  M_0 = 1 - exp(-h),  M_k = 1 - k/h·M_{k-1}
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

SHORT = 0.5  # below it the recurrence cancels, and the series needs few terms
TERMS = 18  # 0.5^18/18! is far below float64's rounding


class Past(NamedTuple):
    """An earlier prediction and where in lambda it was made."""

    lam: float
    x0: Tensor


def moments(h: float, count: int) -> list[float]:
    """M_k/M_0 for k = 1 .. count: the mean of (tau/h)^k under the weight exp(tau), for h > 0."""
    whole = -math.expm1(-h)
    if h >= SHORT:
        found, last = [], whole
        for k in range(1, count + 1):
            last = 1 - k / h * last
            found.append(last / whole)
        return found
    return [series(h, k) * h / whole for k in range(1, count + 1)]


def series(h: float, k: int) -> float:
    """M_k/h for short h: the sum over j of (-h)^j·k!/(k + j + 1)!."""
    total, term = 0.0, 1 / (k + 1)
    for j in range(TERMS):
        total += term
        term *= -h / (k + j + 2)
    return total
