"""Samplers: generators that walk a grid of levels pairwise, noise first, with a denoiser.

`sampler(denoise, x, levels, noise, **options)` yields a Step for each pair (now, to); `noise(i, now, to)` gives a
standard normal tensor like x. A sampler owns no bar, device or random state: the caller draws the noise, shows the
progress, and stops it by closing it. Coefficients are float64, the state keeps x's dtype; no noise is asked for or
added at a step that ends at sigma = 0, and a step of no length changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from kuosan.diffusion import names
from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.errors import Error


class Step(NamedTuple):
    """The state after a step, and the data predicted on the way."""

    x: Tensor
    x0: Tensor


Noise = Callable[[int, Level, Level], Tensor]


# sampler(denoise, x, levels, noise, **options); a user's own function of this form works wherever a name does.
Sampler = Callable[..., Iterator[Step]]


class Pair(NamedTuple):
    """The numbers of one step from `now` to `to`; r = alpha_now/alpha_to, s2 = variance of q(x_now | x_to)."""

    alpha: float
    sigma: float
    alpha_to: float
    sigma_to: float

    @property
    def still(self) -> bool:
        """Whether the step has no length."""
        return self.alpha == self.alpha_to and self.sigma == self.sigma_to

    @property
    def s2(self) -> float:
        """sigma_now² - (alpha_now/alpha_to)²·sigma_to²: beta_t between neighbours of a variance-preserving grid."""
        return max(self.sigma**2 - (self.alpha / self.alpha_to * self.sigma_to) ** 2, 0.0)

    @property
    def posterior(self) -> float:
        """The variance of q(x_to | x_now, x0): beta~ (Ho et al. 2020, eq. 7)."""
        return self.s2 * self.sigma_to**2 / self.sigma**2


def ddpm(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, variance: str = "beta") -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2): x' ~ N(posterior mean(x, x0), variance).

    variance: beta (sigma_t² = beta_t), posterior (beta~_t), or learned, log sigma² = frac·log beta +
    (1 - frac)·log beta~ (Nichol & Dhariwal 2021, eq. 15).
    """
    variance = names.variance(variance)
    for i, (now, to) in enumerate(pairwise(levels)):
        p = pair(now, to)
        z = noise(i, now, to) if p.posterior > 0 and not p.still else None  # drawn first, as algorithm 2 does
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
    if not 0 <= eta <= 1:
        raise Error(f"eta {eta}: need 0 (no noise) to 1 (DDPM's).")
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


def heun(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """Heun's method in x/alpha against sigma/alpha (Karras et al. 2022, algorithm 1); Euler's at a last step to 0.

    Raises: Error for a grid with alpha = 0, where sigma/alpha is infinite.
    """
    if bool((levels.alpha == 0).any()):
        raise Error(
            "sampler 'heun': the grid holds a level with alpha = 0, where sigma/alpha is infinite; "
            "use ddim, euler or dpm_solver_2m."
        )
    for now, to in pairwise(levels):
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if not p.still:
            ratio = p.sigma_to / p.sigma
            euler_x = blend(x, ratio, x0, p.alpha_to - ratio * p.alpha)
            x = euler_x if p.sigma_to == 0 else heun_corrected(p, x, x0, denoise(euler_x, to).x0, euler_x)
        yield Step(x, x0)


def heun_corrected(p: Pair, x: Tensor, x0: Tensor, x0_to: Tensor, euler_x: Tensor) -> Tensor:
    """The step with the mean of the slopes at both ends: d = (x/alpha - x0)/s, s = sigma/alpha, h = s' - s."""
    s, s_to = p.sigma / p.alpha, p.sigma_to / p.alpha_to
    half = p.alpha_to * (s_to - s) / 2
    x_next = blend(x, p.alpha_to / p.alpha + half / (s * p.alpha), x0, -half / s)
    return x_next.add_(euler_x, alpha=half / p.sigma_to).add_(x0_to.to(x.dtype), alpha=-half / s_to)


def dpm_solver_2m(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2), data prediction, multistep, second order.

    D = x0 + (x0 - x0_before)/(2r), r = h_before/h, h = log SNR's half step; x' = sigma'/sigma·x + (...)·D.
    First order at the first step, and at a last one to sigma = 0, where h is infinite.
    """
    before: Tensor | None = None
    h_before = math.inf
    for now, to in pairwise(levels):
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if not p.still:
            h = half_log_snr(p.alpha_to, p.sigma_to) - half_log_snr(p.alpha, p.sigma)
            weight = h / (2 * h_before) if math.isfinite(h) and math.isfinite(h_before) and before is not None else 0.0
            data = x0 if weight == 0 or before is None else blend(x0, 1 + weight, before, -weight)
            ratio = p.sigma_to / p.sigma
            x = blend(x, ratio, data, p.alpha_to - ratio * p.alpha)
            before, h_before = x0, h
        yield Step(x, x0)


def half_log_snr(alpha: float, sigma: float) -> float:
    """lambda = log(alpha/sigma), infinite at the ends."""
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def pair(now: Level, to: Level) -> Pair:
    """One step's numbers. Raises: Error for a step that does not go from more noise to less or as much."""
    p = Pair(float(now.alpha), float(now.sigma), float(to.alpha), float(to.sigma))
    if p.still:
        return p
    if not (p.sigma > 0 and p.alpha_to > 0 and p.sigma_to >= 0 and p.alpha >= 0):
        raise Error(
            f"a step from (alpha, sigma) = ({p.alpha:g}, {p.sigma:g}) to ({p.alpha_to:g}, {p.sigma_to:g}): a sampler "
            "walks from noise to data, so sigma must be above 0 before a step and alpha after it."
        )
    if p.sigma_to * p.alpha > p.sigma * p.alpha_to:
        raise Error(
            f"a step from (alpha, sigma) = ({p.alpha:g}, {p.sigma:g}) to ({p.alpha_to:g}, {p.sigma_to:g}) adds noise: "
            "a sampler's grid goes noise first, clean last."
        )
    return p


def blend(x: Tensor, a: float, y: Tensor, b: float) -> Tensor:
    """a·x + b·y in x's dtype, a new tensor."""
    return torch.add(x * a, y.to(x.dtype), alpha=b)


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_solver_2m": dpm_solver_2m,
}


def sampler(name: str | Sampler) -> Sampler:
    """The function of a name in any known spelling; a function of the caller's own is returned as it is."""
    return name if callable(name) else SAMPLERS[names.sampler(name)]
