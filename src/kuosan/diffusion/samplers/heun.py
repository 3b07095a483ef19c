"""Heun's method with EDM's churn: the mean of the slopes at both ends of a step (Karras et al. 2022).

In y = x/alpha against s = sigma/alpha:  y' = y + (s' - s)·(d + d')/2,  d = (y - x0)/s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers.step import LevelAt, Noise, Pair, Step, blend, need_levels, one_slope, pair
from kuosan.errors import Error

CHURN_MOST = math.sqrt(2) - 1  # a step adds at most as much noise as is there (Karras et al. 2022, algorithm 2)


def heun(
    denoise: Denoiser,
    x: Tensor,
    levels: Level,
    noise: Noise,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    at_log_snr: LevelAt | None = None,
) -> Iterator[Step]:
    """Heun's method (Karras et al. 2022, algorithm 1); Euler's at a steep step: to sigma = 0, or from alpha = 0.

    With s_churn a step within s_tmin <= s <= s_tmax first goes back to s·(1 + gamma), gamma = min(s_churn/N, sqrt(2)
    - 1), by fresh noise of std s_noise (algorithm 2); never past the walk's first level, which is the noisiest that
    the network knows.
    """
    gamma = churn_rate(s_churn, len(levels) - 1, s_tmin, s_tmax, s_noise)
    at = need_levels("heun with s_churn", at_log_snr) if gamma > 0 else None
    highest = float(levels.sigma[0] / levels.alpha[0])
    for i, (now, to) in enumerate(pairwise(levels)):
        if at is not None and not pair(now, to).still:
            s = float(now.sigma / now.alpha)
            raised = min(s * (1 + gamma), highest)
            if s_tmin <= s <= s_tmax and raised > s:
                up = at(-2 * math.log(raised))
                x = churned(x, float(now.alpha), s, noise(i, up, now), up, s_noise)
                now = up
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if not p.still:
            euler_x = one_slope(x, x0, p)
            x = euler_x if p.steep else heun_corrected(p, x, x0, denoise(euler_x, to).x0, euler_x)
        yield Step(x, x0)


def heun_corrected(p: Pair, x: Tensor, x0: Tensor, x0_to: Tensor, euler_x: Tensor) -> Tensor:
    """The step with the mean of the slopes at both ends: d = (x/alpha - x0)/s, s = sigma/alpha, h = s' - s."""
    s, s_to = p.sigma / p.alpha, p.sigma_to / p.alpha_to
    half = p.alpha_to * (s_to - s) / 2
    x_next = blend(x, p.alpha_to / p.alpha + half / (s * p.alpha), x0, -half / s)
    return x_next.add_(euler_x, alpha=half / p.sigma_to).add_(x0_to.to(x.dtype), alpha=-half / s_to)


def churned(x: Tensor, alpha: float, s: float, z: Tensor, up: Level, s_noise: float) -> Tensor:
    """The state with fresh noise, at the noisier level `up`: x/alpha + sqrt(s_up² - s²)·s_noise·z, times alpha_up."""
    alpha_up, s_up = float(up.alpha), float(up.sigma / up.alpha)
    return blend(x, alpha_up / alpha, z, alpha_up * math.sqrt(s_up**2 - s**2) * s_noise)


def churn_rate(s_churn: float, steps: int, s_tmin: float, s_tmax: float, s_noise: float) -> float:
    """gamma of a step. Raises: Error for numbers out of range, or without effect because nothing is churned."""
    for name, value in {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}.items():
        if not value >= 0:
            raise Error(f"{name} {value}: need 0 or more.")
    if s_churn == 0 and (s_tmin, s_tmax, s_noise) != (0, math.inf, 1):
        raise Error(
            f"s_tmin {s_tmin:g}, s_tmax {s_tmax:g}, s_noise {s_noise:g}: they shape s_churn, which is 0; "
            "give s_churn above 0, or leave them out."
        )
    return min(s_churn / steps, CHURN_MOST)
