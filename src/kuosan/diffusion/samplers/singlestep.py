"""DPM-Solver++ 2S and its SDE form: one more network evaluation halfway through each step in lambda = log(alpha/sigma).

The state is carried to the middle of the step with x0, and over the whole step with the x0 predicted in the middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers.dpm_solver import reverse
from kuosan.diffusion.samplers.step import (
    LevelAt,
    Noise,
    Step,
    blend,
    fraction,
    need_levels,
    pair,
)


def dpm_solver_2s(
    denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, at_log_snr: LevelAt | None = None
) -> Iterator[Step]:
    """DPM-Solver++ 2S (Lu et al. 2022, algorithm 1) with r = 1/2, singlestep, second order."""
    return singlestep("dpm_solver_2s", denoise, x, levels, noise, 0.0, at_log_snr)


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
