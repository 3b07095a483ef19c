"""Pseudo linear multistep: a DDIM step with eps extrapolated over earlier steps (Liu et al. 2022).

    x' = alpha'/alpha·x + (sigma' - alpha'·sigma/alpha)·eps~,  eps~ = (55·e0 - 59·e1 + 37·e2 - 9·e3)/24 (eq. 12)

with e0 the newest eps; fewer earlier ones give the lower Adams-Bashforth weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

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
    need_levels,
    one_slope,
    pair,
)

ADAMS_BASHFORTH: tuple[tuple[float, ...], ...] = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)  # newest first
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
WARM_UP = 3  # steps of pndm by Runge-Kutta
HALVINGS = 60  # of the search for a level's timestep: to float64's rounding


@draws
def plms(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """The linear multistep from its first step: that one with the mean of eps at both its ends, the next with two eps,
    three, then four; Stable Diffusion's PLMS, diffusers' skip_prk_steps.
    """
    return linear_multistep(denoise, x, levels, None)


@draws
def pndm(
    denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, at_log_snr: LevelAt | None = None
) -> Iterator[Step]:
    """The linear multistep after three steps of pseudo Runge-Kutta, four evaluations each (Liu et al. 2022, eq. 13)."""
    return linear_multistep(denoise, x, levels, need_levels("pndm", at_log_snr))


def linear_multistep(denoise: Denoiser, x: Tensor, levels: Level, at: LevelAt | None) -> Iterator[Step]:
    """Both starts; a steep step takes its own slope, and to sigma = 0 goes straight to x0, as every sampler's does."""
    past: list[Tensor] = []  # newest first
    for now, to in pairwise(levels):
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if p.steep and not p.still:
            x = one_slope(x, x0, p)
        elif not p.still:
            eps = noise_in(x, x0, now)
            known = [eps, *past][:4]
            if at is not None and len(past) < WARM_UP:
                x = runge_kutta(denoise, x, eps, (now, halfway(at, now, to), to))
            elif not past:
                ahead = transfer(x, p, eps)
                x = transfer(x, p, combine([(0.5, eps), (0.5, noise_in(ahead, denoise(ahead, to).x0, to))], x.dtype))
            else:
                x = transfer(x, p, combine([*zip(ADAMS_BASHFORTH[len(known) - 1], known)], x.dtype))
            past = known[:3]
        yield Step(x, x0)


def runge_kutta(denoise: Denoiser, x: Tensor, eps: Tensor, levels: tuple[Level, Level, Level]) -> Tensor:
    """The step with eps at its start, twice in its middle, and at its end."""
    now, middle, to = levels
    found = [eps]
    for level in (middle, middle, to):
        reached = transfer(x, pair(now, level), found[-1])
        found.append(noise_in(reached, denoise(reached, level).x0, level))
    return transfer(x, pair(now, to), combine([*zip(RUNGE_KUTTA, found)], x.dtype))


def transfer(x: Tensor, p: Pair, eps: Tensor) -> Tensor:
    """DDIM's step by its eps (Liu et al. 2022, eq. 11)."""
    grown = p.alpha_to / p.alpha
    return blend(x, grown, eps, p.sigma_to - grown * p.sigma)


def noise_in(x: Tensor, x0: Tensor, level: Level) -> Tensor:
    """eps = (x - alpha·x0)/sigma."""
    sigma = float(level.sigma)
    return blend(x, 1 / sigma, x0, -float(level.alpha) / sigma)


def halfway(at: LevelAt, now: Level, to: Level) -> Level:
    """The level whose timestep is halfway between two levels', by bisection: schedules give levels by their log SNR."""
    t = float(now.t + to.t) / 2
    low, high = float(now.log_snr), float(to.log_snr)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle).t) > t else (low, middle)
    return at((low + high) / 2)
