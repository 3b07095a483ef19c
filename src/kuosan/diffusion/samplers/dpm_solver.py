"""What exponential integrators share: how much of an interval's moments the factor exp(-(h - tau)) keeps.

M_k(h) = ∫_0^h exp(-(h - tau))·(tau/h)^k dtau,  M_0 = 1 - exp(-h),  M_k = 1 - k/h·M_{k-1}

DPM-Solver++ and its SDE forms (Lu et al. 2022), data prediction, in lambda = log(alpha/sigma).

One step of length h is  x' = decay·x + (alpha' - decay·alpha)·D + std·z  with decay = sigma'/sigma·exp(-eta·h) and
std² = sigma'²·(1 - exp(-2·eta·h)); D is x0 extrapolated from this and earlier predictions. eta 0 is the probability
flow, eta 1 the SDE. The order falls at the first steps, and on the way to sigma = 0, where h is infinite.

DPM-Solver++ 2S and its SDE form: one more network evaluation halfway through each step in lambda = log(alpha/sigma).

The state is carried to the middle of the step with x0, and over the whole step with the x0 predicted in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers.step import (
    LevelAt,
    Noise,
    Pair,
    Step,
    blend,
    combine,
    draws,
    fraction,
    need_levels,
    pair,
)

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


@draws
def dpm_solver_2m(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2), multistep, second order.

    D = x0 + (x0 - x0_before)/(2r), r = h_before/h.
    """
    return multistep(denoise, x, levels, noise, order=2)


@draws
def dpm_solver_3m(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++ 3M as published and as other tools have it: its second-difference weight is half of what third
    order needs, so it converges with order 2, with a small constant.
    """
    return multistep(denoise, x, levels, noise, order=3)


@draws
def dpm_solver_3m_corrected(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++ 3M with the whole second-difference weight: third order."""
    return multistep(denoise, x, levels, noise, order=3, curvature=1.0)


@draws
def dpm_solver_2m_sde(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """SDE-DPM-Solver++ 2M (Lu et al. 2022, eq. 19, midpoint form); eta 0 is dpm_solver_2m."""
    return multistep(denoise, x, levels, noise, order=2, eta=fraction("eta", eta))


@draws
def dpm_solver_3m_sde(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """k-diffusion's DPM++ 3M SDE, with the published second-difference weight; eta 0 is dpm_solver_3m."""
    return multistep(denoise, x, levels, noise, order=3, eta=fraction("eta", eta))


def multistep(
    denoise: Denoiser,
    x: Tensor,
    levels: Level,
    noise: Noise,
    order: int,
    eta: float = 0.0,
    curvature: float = 0.5,
) -> Iterator[Step]:
    """The multistep solvers; `curvature` is the share of the second difference's exact weight."""
    past: list[Past] = []  # newest first
    clean = float(levels.sigma[-1]) == 0
    for i, (now, to) in enumerate(pairwise(levels)):
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if not p.still:
            left = len(levels) - 1 - i if clean else order
            usable = past[: min(order, left) - 1] if 0 < p.h < math.inf else []
            weights = extrapolation(p, [entry.lam for entry in usable], eta, curvature)
            data = combine([*zip(weights, (x0, *(entry.x0 for entry in usable)))], x.dtype)
            decay, std = reverse(p, eta)
            x = blend(x, decay, data, p.alpha_to - decay * p.alpha)
            if std > 0:
                x = x.add_(noise(i, now, to).to(x.dtype), alpha=std)
            if 0 < p.h < math.inf:
                past = [Past(p.lam, x0), *past][: order - 1]
        yield Step(x, x0)


def reverse(p: Pair, eta: float) -> tuple[float, float]:
    """What a step keeps of the state, sigma'/sigma·exp(-eta·h), and the std of its noise."""
    shrink = p.shrink**eta
    return p.ratio * shrink, p.sigma_to * math.sqrt(max(1 - shrink**2, 0.0))


def extrapolation(p: Pair, lams: list[float], eta: float, curvature: float) -> list[float]:
    """The weights of x0, x0 one step before, and two before, in D; they sum to 1.

    With H = (1 + eta)·h and moments m_k of exp(-(H - tau)) over the step: order 2 is x0 + D1/2 (the midpoint form),
    order 3 is x0 + m_1·D1 + curvature·m_2·D2, D1 and D2 the divided differences at the step's start, in units of h.
    """
    if not lams:
        return [1.0]
    h = p.h
    r0 = (p.lam - lams[0]) / h
    if len(lams) == 1:
        weight = h / (2 * (p.lam - lams[0]))
        return [1 + weight, -weight]
    r1 = (lams[0] - lams[1]) / h
    m1, m2 = moments((1 + eta) * h, 2)
    # D1 = d0 + r0/(r0 + r1)·(d0 - d1), D2 = (d0 - d1)/(r0 + r1) with d0 = (x0 - x1)/r0, d1 = (x1 - x2)/r1
    bend = (m1 * r0 + curvature * m2) / (r0 + r1)
    newest, older = (m1 + bend) / r0, bend / r1
    return [1 + newest, -newest - older, older]


@draws
def dpm_solver_2s(
    denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, at_log_snr: LevelAt | None = None
) -> Iterator[Step]:
    """DPM-Solver++ 2S (Lu et al. 2022, algorithm 1) with r = 1/2, singlestep, second order."""
    return singlestep("dpm_solver_2s", denoise, x, levels, noise, 0.0, at_log_snr)


@draws
def dpm_solver_2s_sde(
    denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, eta: float = 1.0, at_log_snr: LevelAt | None = None
) -> Iterator[Step]:
    """k-diffusion's DPM++ SDE: 2S on the SDE, r = 1/2; eta 0 is dpm_solver_2s.

    A step's two noises come from one Brownian path: draws 2i (to the middle) and 2i + 1 (from there) are independent,
    and the noise of the whole step is made of both.
    """
    return singlestep("dpm_solver_2s_sde", denoise, x, levels, noise, fraction("eta", eta), at_log_snr)


def singlestep(
    name: str, denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, eta: float, at_log_snr: LevelAt | None
) -> Iterator[Step]:
    """2S for any eta; of first order at a step from alpha = 0 or to sigma = 0, which has no middle."""
    at = need_levels(name, at_log_snr)
    for i, (now, to) in enumerate(pairwise(levels)):
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if not p.still:
            if 0 < p.h < math.inf:
                x = halves(denoise, x, x0, (now, at(2 * p.lam + p.h), to), noise, 2 * i, eta)
            else:
                decay, std = reverse(p, eta)
                x = blend(x, decay, x0, p.alpha_to - decay * p.alpha)
                x = x.add_(noise(2 * i, now, to).to(x.dtype), alpha=std) if std > 0 else x
        yield Step(x, x0)


def halves(
    denoise: Denoiser, x: Tensor, x0: Tensor, levels: tuple[Level, Level, Level], noise: Noise, draw: int, eta: float
) -> Tensor:
    """The state after one step through its middle."""
    now, middle, to = levels
    first, second, whole = pair(now, middle), pair(middle, to), pair(now, to)
    decay, std = reverse(first, eta)
    z = noise(draw, now, middle).to(x.dtype) if std > 0 else None
    between = blend(x, decay, x0, first.alpha_to - decay * first.alpha)
    if z is not None:
        between = between.add_(z, alpha=std)
    decay, _ = reverse(whole, eta)
    x = blend(x, decay, denoise(between, middle).x0, whole.alpha_to - decay * whole.alpha)
    if z is not None:
        later, rest = reverse(
            second, eta
        )  # the first half's noise, as much as the second half keeps of it, and its own
        x = x.add_(z, alpha=later * std).add_(noise(draw + 1, middle, to).to(x.dtype), alpha=rest)
    return x
