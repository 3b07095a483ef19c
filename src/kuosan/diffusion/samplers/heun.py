"""Heun's method with EDM's churn: the mean of the slopes at both ends of a step (Karras et al. 2022).

In y = x/alpha against s = sigma/alpha:  y' = y + (s' - s)·(d + d')/2,  d = (y - x0)/s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers.step import LevelAt, Noise, Step, blend, draws, need_levels, pair, predict
from kuosan.errors import Error

CHURN_MOST = math.sqrt(2) - 1  # a step adds at most as much noise as is there (Karras et al. 2022, algorithm 2)


@draws
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

    d is the paper's (y - x0)/s: with y = x/alpha and s = sigma/alpha it is (x - alpha·x0)/sigma, DDIM's eps, finite at
    alpha = 0. With s_churn a step within s_tmin <= s <= s_tmax first goes back to s·(1 + gamma), gamma =
    min(s_churn/N, sqrt(2) - 1), by fresh noise of std s_noise (algorithm 2); never past the first level, which
    is the noisiest that the network knows.
    """
    churn = churning(levels, noise, at_log_snr, s_churn, s_tmin, s_tmax, s_noise)
    for i, (now, to) in enumerate(pairwise(levels)):
        x, now = churn(i, x, now, to)
        p, x0 = pair(now, to), predict(denoise, x, now).x0
        if not p.still:
            d = (x - p.alpha * x0) / p.sigma
            x_to = p.alpha_to * x0 + p.sigma_to * d  # Euler's: y + (s' - s)·d, times alpha'
            if not p.steep:
                d = (d + (x_to - p.alpha_to * predict(denoise, x_to, to).x0) / p.sigma_to) / 2
                x_to = p.alpha_to * (x / p.alpha + (p.s_to - p.s) * d)
            x = x_to
        yield Step(x, x0)


def churning(
    levels: Level,
    noise: Noise,
    at_log_snr: LevelAt | None,
    s_churn: float,
    s_tmin: float,
    s_tmax: float,
    s_noise: float,
) -> Callable[[int, Tensor, Level, Level], tuple[Tensor, Level]]:
    """What happens to the state before step i from `now` to `to`: it goes up to a noisier level, or nothing does."""
    gamma = churn_rate(s_churn, len(levels) - 1, s_tmin, s_tmax, s_noise)
    at = need_levels("heun with s_churn", at_log_snr) if gamma > 0 else None
    highest = float(levels.sigma[0] / levels.alpha[0])

    def churn(i: int, x: Tensor, now: Level, to: Level) -> tuple[Tensor, Level]:
        if at is None or pair(now, to).still:
            return x, now
        s = float(now.sigma / now.alpha)
        raised = min(s * (1 + gamma), highest)
        if not (s_tmin <= s <= s_tmax and raised > s):
            return x, now
        up = at(-2 * math.log(raised))
        return churned(x, float(now.alpha), s, noise(i, up, now), up, s_noise), up

    return churn


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
