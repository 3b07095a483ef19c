"""What samplers share: the form of one, the numbers of one step, and how a state is put together from them.

`sampler(denoise, x, levels, noise, **options)` yields a Step for each pair (now, to); `noise(i, now, to)` gives a
standard normal tensor like x, i the number of the draw, which no other draw of the walk has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kuosan.diffusion.level import Level
from kuosan.errors import Error

STEEP = 100.0  # Karras's grid of 5 steps or more has no such step before its last


class Step(NamedTuple):
    """The state after a step, and the data predicted on the way."""

    x: Tensor
    x0: Tensor


Noise = Callable[[int, Level, Level], Tensor]
LevelAt = Callable[[float], Level]  # a schedule's at_log_snr: the levels between those of a grid


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

    @property
    def steep(self) -> bool:
        """Whether sigma/alpha falls so far that a slope of one end means nothing at the other: from alpha = 0, to
        sigma = 0, and from the cosine schedule's end, where two slopes did harm (docs/mathematics.md, Traps).
        """
        return self.sigma * self.alpha_to > STEEP * self.sigma_to * self.alpha

    @property
    def ratio(self) -> float:
        """sigma_to/sigma: what a step with one slope keeps of the state."""
        return self.sigma_to / self.sigma

    @property
    def lam(self) -> float:
        """lambda = log(alpha/sigma) where the step begins."""
        return half_log_snr(self.alpha, self.sigma)

    @property
    def h(self) -> float:
        """The step's length in lambda, DPM-Solver's time; infinite from alpha = 0 and to sigma = 0."""
        return half_log_snr(self.alpha_to, self.sigma_to) - self.lam

    @property
    def shrink(self) -> float:
        """exp(-h), 0 for an infinite step."""
        return self.sigma_to * self.alpha / (self.sigma * self.alpha_to)


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


def half_log_snr(alpha: float, sigma: float) -> float:
    """lambda = log(alpha/sigma), infinite at the ends."""
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def blend(x: Tensor, a: float, y: Tensor, b: float) -> Tensor:
    """a·x + b·y in x's dtype, a new tensor."""
    return torch.add(x * a, y.to(x.dtype), alpha=b)


def combine(parts: list[tuple[float, Tensor]], dtype: torch.dtype) -> Tensor:
    """The weighted sum of tensors, in a dtype; one part of weight 1 is returned as it is."""
    (weight, first), *others = parts
    if not others and weight == 1:
        return first
    total = first.to(dtype) * weight
    for weight, tensor in others:
        total = total.add_(tensor.to(dtype), alpha=weight)
    return total


def one_slope(x: Tensor, x0: Tensor, p: Pair) -> Tensor:
    """DDIM's step, Euler's in x/alpha against sigma/alpha: x' = sigma'/sigma·x + (alpha' - alpha·sigma'/sigma)·x0."""
    return blend(x, p.ratio, x0, p.alpha_to - p.ratio * p.alpha)


def need_levels(name: str, at_log_snr: LevelAt | None) -> LevelAt:
    """The function that gives levels between those of the grid. Raises: Error if there is none."""
    if at_log_snr is None:
        raise Error(
            f"sampler {name!r} asks the network between the levels of the grid: pass at_log_snr=schedule.at_log_snr."
        )
    return at_log_snr


def fraction(name: str, value: float) -> float:
    """An eta, once it lies in [0, 1]. Raises: Error."""
    if not 0 <= value <= 1:
        raise Error(f"{name} {value}: need 0 (no noise) to 1 (DDPM's).")
    return value
