"""What samplers share: the form of one, the numbers of one step, and how a state is put together from them.

`sampler(denoise, x, levels, noise, **options)` yields a Step for each pair (now, to); `noise(i, now, to)` gives a
standard normal tensor like x, i the number of the draw, which no other draw of the trajectory has. Where the caller
gives none, `draws` makes it of a seed or of a torch.Generator.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kuosan import seeds
from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import Denoiser, Prediction
from kuosan.diffusion.level import Level
from kuosan.errors import Error, shown

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
    def s(self) -> float:
        """sigma/alpha before the step: EDM's sigma, of x/alpha."""
        return self.sigma / self.alpha

    @property
    def s_to(self) -> float:
        """sigma/alpha after the step."""
        return self.sigma_to / self.alpha_to

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
            "goes from noise to data, so sigma must be above 0 before a step and alpha after it."
        )
    if p.sigma_to * p.alpha > p.sigma * p.alpha_to:
        raise Error(
            f"a step from (alpha, sigma) = ({p.alpha:g}, {p.sigma:g}) to ({p.alpha_to:g}, {p.sigma_to:g}) adds noise: "
            "a sampler's grid goes noise first, clean last."
        )
    return p


def predict(denoise: Denoiser, x: Tensor, level: Level) -> Prediction:
    """What a denoiser predicts, the data in the state's dtype, which no step may leave."""
    x0, frac = denoise(x, level)
    return Prediction(x0.to(x.dtype), frac)


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


def draws(sampler: Sampler) -> Sampler:
    """A sampler that takes its noise in any form: a function, `seed=`, `generator=`, or nothing, which is seed 0.

    Row r of x has seed + r: its noise depends on nothing else, and is that of `kuosan sample --seed`. A generator draws
    for the whole batch, in x's shape, dtype and the trajectory's order, as diffusers' schedulers do.
    Raises: Error for noise in two forms, and for a seed or generator where a sampler draws nothing.
    """
    spec, signature = registry.SAMPLERS[sampler.__name__], inspect.signature(sampler)

    @functools.wraps(sampler)
    def sampled(
        denoise: Denoiser,
        x: Tensor,
        levels: Level,
        noise: Noise | None = None,
        *args: Any,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> Iterator[Step]:
        given = {"noise": noise, "seed": seed, "generator": generator}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise Error(f"{' and '.join(given)}: each says where the noise of the steps comes from; give one of them.")
        asked = signature.bind(denoise, x, levels, noise, *args, **options).arguments
        if (seed is not None or generator is not None) and not spec.stochastic(asked):
            off = f" with {spec.noise} {asked.get(spec.noise, spec.options[spec.noise].default)}" if spec.noise else ""
            raise Error(f"{', '.join(given)}: sampler {spec.name!r}{off} draws no noise; leave it out.")
        return sampler(denoise, x, levels, noise_of(x, noise, seed, generator), *args, **options)

    sampled.__signature__ = _with_noise(signature, bool(spec.noise))  # type: ignore[attr-defined]
    return sampled


def _with_noise(signature: inspect.Signature, stochastic: bool) -> inspect.Signature:
    """A sampler's signature as its callers see it."""
    made = [each.replace(default=None) if each.name == "noise" else each for each in signature.parameters.values()]
    if stochastic:
        more = {"seed": "int | None", "generator": "torch.Generator | None"}
        kind = inspect.Parameter.KEYWORD_ONLY
        made += [inspect.Parameter(name, kind, default=None, annotation=hint) for name, hint in more.items()]
    return signature.replace(parameters=made)


def noise_of(x: Tensor, noise: Noise | None, seed: int | None, generator: torch.Generator | None) -> Noise:
    """The function that draws a trajectory's noise for x (B, ...). Raises: Error for what is none of the forms."""
    if noise is not None:
        if not callable(noise):
            form = "generator=" if isinstance(noise, torch.Generator) else "seed="
            raise Error(f"noise {shown(noise)}: need a function (i, now, to) -> tensor like x; or give {form} instead.")
        return noise
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise Error(f"generator {shown(generator)}: need a torch.Generator; a number is seed=.")
        made = generator
        return lambda i, now, to: torch.randn(x.shape, generator=made, device=made.device, dtype=x.dtype).to(x.device)
    if isinstance(seed, bool) or not isinstance(seed, int | None):
        raise Error(f"seed {shown(seed)}: need a whole number, as in seed=0; a torch.Generator is generator=.")
    first = seed or 0

    def keyed(i: int, now: Level, to: Level) -> Tensor:
        keys = [(first + row, "sample/step", i, 0) for row in range(len(x))]
        return seeds.normal(keys, tuple(x.shape[1:])).to(x.device, x.dtype)

    return keyed
