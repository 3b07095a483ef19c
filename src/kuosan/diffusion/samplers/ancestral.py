"""Samplers of one network evaluation and one slope a step: DDPM, DDIM, Euler, Euler ancestral.

One step is all of them:  x' = alpha'·x0 + sqrt(sigma'² - std²)·eps + std·z.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from torch import Tensor

from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers.step import Noise, Pair, Step, blend, fraction, pair
from kuosan.errors import Error


def ddpm(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, variance: str = "beta") -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): x' ~ N(posterior mean(x, x0), variance).

    variance: beta (sigma_t² = beta_t), posterior (beta~_t), or learned, log sigma² = frac·log beta +
    (1 - frac)·log beta~ (Nichol & Dhariwal 2021, eq. 15).
    """
    variance = registry.variance(variance)
    for i, (now, to) in enumerate(pairwise(levels)):
        p = pair(now, to)
        z = noise(i, now, to) if not p.still and p.posterior > 0 else None  # drawn first, as algorithm 2 does
        x0, frac = denoise(x, now)
        if not p.still:
            mean = blend(x, p.alpha / p.alpha_to * p.sigma_to**2 / p.sigma**2, x0, p.alpha_to * p.s2 / p.sigma**2)
            x = mean if z is None else add_noise(mean, z, p, variance, frac)
        yield Step(x, x0)


def add_noise(mean: Tensor, z: Tensor, p: Pair, variance: str, frac: Tensor | None) -> Tensor:
    """The mean with noise of DDPM's variance added."""
    if variance != "learned":
        return mean.add_(z.to(mean.dtype), alpha=math.sqrt(p.s2 if variance == "beta" else p.posterior))
    if frac is None:
        raise Error("variance 'learned': this model predicts no variance; use variance 'beta' or 'posterior'.")
    low, high = math.log(p.posterior), math.log(p.s2)
    return mean.addcmul_(((high - low) / 2 * frac + low / 2).exp_(), z.to(mean.dtype))


def ddim(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """x' = alpha'·x0 + sqrt(sigma'² - std²)·eps + std·z with std² = eta²·beta~ (Song et al. 2021, eq. 12 and 16).

    eta 0 is deterministic (Euler's method on the probability flow), eta 1 is DDPM with the posterior variance.
    """
    fraction("eta", eta)
    for i, (now, to) in enumerate(pairwise(levels)):
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if not p.still:
            std = eta * math.sqrt(p.posterior)
            kept = math.sqrt(max(p.sigma_to**2 - std**2, 0.0)) / p.sigma
            x = blend(x, kept, x0, p.alpha_to - kept * p.alpha)
            if std > 0:
                z = noise(i, now, to)
                x = x.add_(z.to(x.dtype), alpha=std)
        yield Step(x, x0)


def euler(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """Euler's method in x/alpha against sigma/alpha (Karras et al. 2022): the same step as DDIM's with eta 0."""
    return ddim(denoise, x, levels, noise, eta=0.0)


def euler_ancestral(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """k-diffusion's Euler a, in x/alpha against sigma/alpha: the same step as DDIM's, with eta 1."""
    return ddim(denoise, x, levels, noise, eta=eta)
