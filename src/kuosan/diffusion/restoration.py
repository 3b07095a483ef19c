"""Restoration without training: a denoiser held to a measurement y = A·x0 + noise·n, or a trajectory that steps back.

    ddnm:   x0 + A^+·(y - A·x0)
    pigdm:  x0 + sigma²/alpha·J^T·A^T·(r²·A·A^T + noise²·I)^-1·(y - A·x0),   J = dx0/dx
    dps:    x0 - scale·sqrt(1 - noise²·m/|e|²)·grad_x |e|,  e = y - A·x0         repaint: known pixels at every level

r² = s²·sigma²/(alpha²·s² + sigma²) is the variance of x0 given x_t for data of std s (`prior_std`). The wrappers are
denoiser in, denoiser out, like guidance, and enable gradients themselves where they need them.

Restoration of latents: y = A·D(z0) + noise·n, the measurement taken of what a decoder D makes of them.

    ddnm:   z0 + E(x0 + A^+·(y - A·x0)) - E(x0),   x0 = D(z0), E the encoder
    dps:    z0 - scale·grad_z |y - A·D(z0)|

A decoder is not linear, so what asks for its pseudo-inverse or for A·A^T (PiGDM) has no exact form here. The pixels
that a mask keeps are another matter: averaged over the cells of the latents, they are a mask there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kuosan.diffusion import operators
from kuosan.diffusion.denoiser import Denoiser, Prediction
from kuosan.diffusion.grids import repaint_nfe as repaint_nfe
from kuosan.diffusion.grids import repaint_times as repaint_times
from kuosan.diffusion.level import Level, over
from kuosan.diffusion.operators import Mask, Measurement, inner
from kuosan.diffusion.samplers.ancestral import ddim, ddpm
from kuosan.diffusion.samplers.step import Noise, Sampler, Step, blend, pair
from kuosan.errors import Error

STEPS = 1000  # DPS's trajectory, whose step size the paper gives


def ddnm(denoise: Denoiser, measurement: Measurement, prior_std: float = 1.0) -> Denoiser:
    """What y says replaces what the network says of it: x0 + A^+·(y - A·x0) (Wang, Yu & Zhang 2023, eq. 13).

    With noise, which must not be copied, x0 + A^T·(A·A^T + (noise/r)²·I)^-1·(y - A·x0): Bayes' mean for x0 spread
    with variance r² about the prediction. It stands in the place of the paper's DDNM+, and is not it.
    """
    _positive("prior_std", prior_std)

    def held(x: Tensor, level: Level) -> Prediction:
        prediction = denoise(x, level)
        residual = measurement.residual(prediction.x0)
        if measurement.noise == 0:
            step = operators.pseudo_inverse(measurement.operator, residual)
        else:
            tau = over(measurement.noise**2 / _variance(level, prior_std), residual)
            step = measurement.operator.adjoint(operators.solve(measurement.operator, residual, tau))
        return prediction._replace(x0=prediction.x0 + step)

    return held


def pigdm(denoise: Denoiser, measurement: Measurement, prior_std: float = 1.0, scale: float = 1.0) -> Denoiser:
    """Bayes' rule with p(y | x_t) = N(A·x0, r²·A·A^T + noise²·I), x0 the prediction (Song et al. 2023, ΠGDM).

    Exact for isotropic Gaussian data of std `prior_std`. Scale 0 is `denoise` itself; where alpha = 0 the prediction
    stays. sigma²/alpha is Bayes' own factor, where the paper has adaptive weights; a network's Jacobian is inexact, and
    the factor huge at the noisy end, so each image's step ends at the latest where the residual, weighed by p's
    precision, is least along it. For such Gaussian data the whole step is never longer than that.
    """
    if not 0 <= scale < math.inf:
        raise Error(f"pigdm scale {scale}: need 0 (unheld) or more; 1 is Bayes' rule.")
    _positive("prior_std", prior_std)
    if scale == 0:
        return denoise
    operator = measurement.operator

    def held(x: Tensor, level: Level) -> Prediction:
        if not level.alpha.any():
            return denoise(x, level)
        leaf, prediction, tracked = _tracked(denoise, x, level)
        residual = measurement.residual(prediction.x0)
        variance = _variance(level, prior_std)
        tau = over(measurement.noise**2 / variance, residual)
        wanted = operators.solve(operator, residual, tau)  # r² times smaller than p's precision would have it
        gain = torch.where(level.alpha > 0, level.sigma**2 / (level.alpha * variance), 0.0)
        step = over(gain, x) * _pulled(operator.adjoint(wanted), leaf, tracked)
        image = operator.apply(step)
        least = inner(image, wanted) / inner(image, operators.solve(operator, image, tau))
        return prediction._replace(x0=prediction.x0 + _capped(scale, least) * step)

    return held


def dps(
    denoise: Denoiser,
    measurement: Measurement,
    levels: Level,
    scale: float = 1.0,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Denoiser:
    """Down the gradient of the residual's length: x0 - step·grad_x |y - A·x0| (Chung et al. 2023, algorithm 1).

    On DDPM's 1000 steps over `levels`, x moves by the paper's scale·grad: step = scale·1000/N/c, with c the factor
    of x0 in the posterior mean of the step from here. Fewer steps are longer, each image no further than
    where |y - A·x0| is least along its step. Scale 0 is `denoise` itself. With `decode`, x are latents, and the
    residual is that of what they decode to.

    The paper's step knows no noise and would fit it. Here a measurement's noise shortens the step by
    sqrt(1 - noise²·m/|y - A·x0|²), m the numbers in y, and ends it where noise alone explains the residual (Morozov's
    discrepancy principle); without noise the factor is 1, the paper's step.
    """
    if not 0 <= scale < math.inf:
        raise Error(f"dps scale {scale}: need 0 (unheld) or more; the paper's are 0.3 to 1.")
    if scale == 0:
        return denoise
    ratios = (levels.sigma / levels.alpha)[:-1]  # falling; infinite at alpha = 0
    pairs = [pair(now, to) for now, to in pairwise(levels)]
    factors = torch.tensor([0.0 if p.still else p.alpha_to * p.s2 / p.sigma**2 for p in pairs], dtype=torch.float64)
    lengths = torch.where(factors > 0, scale * STEPS / len(pairs) / factors, 0.0)

    def held(x: Tensor, level: Level) -> Prediction:
        ratio = (level.sigma / level.alpha)[..., None] * (1 - 1e-12)  # rounding must not choose the pair before
        i = (ratios >= ratio).sum(-1) - 1
        leaf, prediction, tracked = _tracked(denoise, x, level)
        shown = linearised(decode, prediction.x0)
        residual = measurement.residual(shown.image)
        squared = inner(residual, residual)
        length = squared.sqrt()
        unit = torch.where(length > 0, residual / length, 0.0)
        step = _pulled(shown.vjp(measurement.operator.adjoint(unit)), leaf, tracked)
        image = measurement.operator.apply(shown.jvp(step))
        least = inner(image, residual) / inner(image, image)
        scales = _capped(over(lengths[i.clamp(min=0)], x), least)
        if measurement.noise > 0:
            scales = scales * _beyond(measurement.noise, residual, squared)
        return prediction._replace(x0=prediction.x0 + scales * step)

    return held


def project(measurement: Measurement, x: Tensor) -> Tensor:
    """Finished images with the known pixels pasted, exactly, where a Mask measured without noise; else unchanged."""
    if not isinstance(measurement.operator, Mask) or measurement.noise > 0:
        return x
    return torch.where(measurement.operator.known.to(x.device) > 0, measurement.y.to(x), x)


def repaint(
    denoise: Denoiser,
    x: Tensor,
    levels: Level,
    noise: Noise,
    measurement: Measurement,
    jump_length: int = 10,
    jumps: int = 10,
    variance: str = "beta",
) -> Iterator[Step]:
    """Known pixels at each level, DDPM's step for the others, and returns to noise so that both agree
    (Lugmayr et al. 2022, algorithm 1): a trajectory, of a Step for each network evaluation.

    jumps is the paper's r: each stretch is passed so often; 1 is plain replacement.
    Raises: Error for an operator that is no Mask, for noise, and for a grid that does not end clean.
    """
    operator = measurement.operator
    if not isinstance(operator, Mask):
        raise Error(f"repaint with operator {type(operator).__name__}: it fills masks only; use ddnm or pigdm.")
    if measurement.noise > 0:
        raise Error(f"repaint with noise {measurement.noise}: it copies known pixels exactly; use ddnm or pigdm.")
    known, y = operator.known.to(x.device) > 0, measurement.y.to(x)

    def merged(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, **options: Any) -> Iterator[Step]:
        for step in ddpm(denoise, x, levels, noise, **options):
            to = levels[-1]
            seen = y if to.sigma == 0 else to.add(y.expand_as(x), noise(0, levels[0], to).to(x))
            yield step._replace(x=torch.where(known, seen, step.x))

    return resampled(denoise, x, levels, noise, jump_length, jumps, merged, variance=variance)


def resampled(
    denoise: Denoiser,
    x: Tensor,
    levels: Level,
    noise: Noise,
    jump_length: int = 10,
    jumps: int = 10,
    sampler: Sampler = ddim,
    **options: Any,
) -> Iterator[Step]:
    """A sampler of single steps over `repaint_times`: down by `sampler`, up by x_t = alpha/alpha'·x + sqrt(s²)·z.

    With `ddnm`'s denoiser it is DDNM's time travel (Wang, Yu & Zhang 2023). A Step a network evaluation;
    each draw has its own number. Raises: Error for a grid that does not end clean.
    """
    if float(levels.sigma[-1]) != 0:
        raise Error('a resampled trajectory ends at a clean image: make the grid with last="clean".')
    return _resampled(denoise, x, levels, noise, repaint_times(len(levels) - 1, jump_length, jumps), sampler, options)


def _resampled(
    denoise: Denoiser,
    x: Tensor,
    levels: Level,
    noise: Noise,
    times: list[int],
    sampler: Sampler,
    options: dict[str, Any],
) -> Iterator[Step]:
    draws = count()

    def draw(_: int, now: Level, to: Level) -> Tensor:
        return noise(next(draws), now, to)

    for i, j in pairwise(times):
        if j > i:
            for step in sampler(denoise, x, levels[i : j + 1], draw, **options):
                x = step.x
                yield step
        else:
            p = pair(levels[j], levels[i])
            x = blend(x, p.alpha / p.alpha_to, draw(0, levels[i], levels[j]), math.sqrt(p.s2))


def _variance(level: Level, prior_std: float) -> Tensor:
    """r²: of x0 given x_t, for data of variance prior_std²."""
    return prior_std**2 * level.sigma**2 / (level.alpha**2 * prior_std**2 + level.sigma**2)


def _tracked(denoise: Denoiser, x: Tensor, level: Level) -> tuple[Tensor, Prediction, Tensor]:
    """x as a leaf, the prediction without its graph, and its x0 with it. Raises: Error if x0 has none."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        x0, frac = denoise(leaf, level)
    if not x0.requires_grad:
        raise Error("the denoiser's x0 does not depend on x (no_grad or detach inside?): pigdm and dps need d x0/d x.")
    return leaf, Prediction(x0.detach(), None if frac is None else frac.detach()), x0


def _pulled(v: Tensor, leaf: Tensor, x0: Tensor) -> Tensor:
    """J^T·v, J = d x0/d x."""
    return torch.autograd.grad(x0, leaf, v.to(x0))[0].to(v)


def _beyond(noise: float, residual: Tensor, squared: Tensor) -> Tensor:
    """sqrt(1 - noise²·m/|e|²), at least 0: the share of a residual e beyond its noise, (B, 1, 1, 1).

    m counts what was measured: what a mask hides is 0 in e, and says nothing.
    """
    m = (residual != 0).sum(dim=tuple(range(1, residual.ndim)), keepdim=True)
    return (1 - noise**2 * m / squared).nan_to_num(0.0).clamp(min=0).sqrt()


def _capped(scale: float | Tensor, least: Tensor) -> Tensor:
    """The scale, but at most the step of least residual and at least 0, each image's: (B, 1, 1, 1)."""
    return torch.minimum(least.nan_to_num(0.0).clamp(min=0), torch.as_tensor(scale).to(least))


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise Error(f"{name} {value}: need the data's standard deviation, above 0, as in 0.5 for images in [-1, 1].")


SMALL = 0.01  # of the latents' size: the step over which a decoder's change is measured


class Linearised(NamedTuple):
    """What a decoder makes of latents, and how that changes with them."""

    image: Tensor  # (B, C, H, W)
    vjp: Callable[[Tensor], Tensor]  # J^T·v: (B, C, H, W) -> (B, c, h, w)
    jvp: Callable[[Tensor], Tensor]  # J·s: (B, c, h, w) -> (B, C, H, W)


def linearised(decode: Callable[[Tensor], Tensor] | None, z: Tensor) -> Linearised:
    """Latents z (B, c, h, w) through a decoder; None is the identity."""
    if decode is None:
        return Linearised(z, _same, _same)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        shown = decode(leaf)
    at = shown.detach()

    def vjp(v: Tensor) -> Tensor:
        return torch.autograd.grad(shown, leaf, v.to(shown))[0]

    def jvp(step: Tensor) -> Tensor:
        size = step.flatten(1).norm(dim=1)
        short = SMALL * z.flatten(1).norm(dim=1) / size
        h = over(torch.where(size > 0, short, 1.0), z)
        return (decode(z + h * step) - at) / h

    return Linearised(at, vjp, jvp)


def _same(v: Tensor) -> Tensor:
    return v


def ddnm_through(
    denoise: Denoiser,
    measurement: Measurement,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    prior_std: float,
    image_std: float,
) -> Denoiser:
    """What y says replaces what the decoded prediction says of it (after Wang, Yu & Zhang 2023), and that is encoded.

    The encoder sees the image before and after, so that its own loss cancels: where y agrees with the prediction,
    it stays. With noise, as `restoration.ddnm` in pixels of std `image_std`.
    """
    if not (prior_std > 0 and image_std > 0):
        raise Error(f"prior_std {prior_std}, image_std {image_std}: standard deviations of data, above 0.")

    def held(z: Tensor, level: Level) -> Prediction:
        prediction = denoise(z, level)
        shown = decode(prediction.x0)
        residual = measurement.residual(shown)
        if measurement.noise == 0:
            step = operators.pseudo_inverse(measurement.operator, residual)
        else:
            spread = level.sigma**2 / (level.alpha**2 * prior_std**2 + level.sigma**2)  # of the prior's variance
            tau = over(measurement.noise**2 / (image_std**2 * spread), residual)
            step = measurement.operator.adjoint(operators.solve(measurement.operator, residual, tau))
        moved = encode(shown + step) - encode(shown)
        return prediction._replace(x0=prediction.x0 + moved.to(prediction.x0))

    return held
