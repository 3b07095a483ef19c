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
from kuosan.diffusion.samplers.step import Noise, Pair, Step, draws, fraction, pair, predict
from kuosan.errors import Error


@draws
def ddpm(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, variance: str = "beta") -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): x' ~ N(posterior mean(x, x0), variance).

    In their words mean = sqrt(abar')·beta/(1 - abar)·x0 + sqrt(1 - beta)·(1 - abar')/(1 - abar)·x (eq. 7).
    variance: beta (sigma_t² = beta_t), posterior (beta~_t), or learned, log sigma² = frac·log beta +
    (1 - frac)·log beta~ (Nichol & Dhariwal 2021, eq. 15).
    """
    variance = registry.variance(variance)
    for i, (now, to) in enumerate(pairwise(levels)):
        p = pair(now, to)
        z = noise(i, now, to).to(x.dtype) if not p.still and p.posterior > 0 else None  # before the network, as there
        x0, frac = predict(denoise, x, now)
        if not p.still:
            x = p.alpha_to * p.s2 / p.sigma**2 * x0 + p.alpha / p.alpha_to * p.sigma_to**2 / p.sigma**2 * x
            x = x if z is None else x + noise_std(p, variance, frac) * z
        yield Step(x, x0)


def noise_std(p: Pair, variance: str, frac: Tensor | None) -> float | Tensor:
    """The standard deviation of the noise that DDPM adds to its mean."""
    if variance != "learned":
        return math.sqrt(p.s2 if variance == "beta" else p.posterior)
    if frac is None:
        raise Error("variance 'learned': this model predicts no variance; use variance 'beta' or 'posterior'.")
    low, high = math.log(p.posterior), math.log(p.s2)
    return ((high - low) / 2 * frac + low / 2).exp_()


@draws
def ddim(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, eta: float = 0.0) -> Iterator[Step]:
    """x' = alpha'·x0 + sqrt(sigma'² - std²)·eps + std·z with std² = eta²·beta~ (Song et al. 2021, eq. 12 and 16).

    eta 0 is deterministic (Euler's method on the probability flow), eta 1 is DDPM with the posterior variance.
    """
    fraction("eta", eta)
    for i, (now, to) in enumerate(pairwise(levels)):
        p, x0 = pair(now, to), predict(denoise, x, now).x0
        if not p.still:
            std = eta * math.sqrt(p.posterior)
            eps = (x - p.alpha * x0) / p.sigma
            x = p.alpha_to * x0 + eps.mul_(math.sqrt(max(p.sigma_to**2 - std**2, 0.0)))  # in place: a temporary less
            if std > 0:
                x = x + std * noise(i, now, to).to(x.dtype)
        yield Step(x, x0)


@draws
def euler(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """Euler's method in x/alpha against sigma/alpha (Karras et al. 2022): the same step as DDIM's with eta 0."""
    return ddim(denoise, x, levels, noise, eta=0.0)


@draws
def euler_ancestral(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, eta: float = 1.0) -> Iterator[Step]:
    """k-diffusion's Euler a, in x/alpha against sigma/alpha: the same step as DDIM's, with eta 1."""
    return ddim(denoise, x, levels, noise, eta=eta)
