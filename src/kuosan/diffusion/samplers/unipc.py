"""UniPC: a predictor, and a corrector that reuses the next step's network evaluation (Zhao et al. 2023).

Data prediction, B(h) = exp(-h) - 1 ("bh2"). Both are, with m_k the moments of exp(-(h - tau)) over the step,

    x' = sigma'/sigma·x + (alpha' - alpha·sigma'/sigma)·(x0 + sum_k rho_k·(x0_k - x0)/r_k),  sum_k rho_k·r_k^(j-1) = m_j

over earlier predictions at r_k < 0; the corrector also takes the new one, at r = 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers.dpm_solver import Past, moments
from kuosan.diffusion.samplers.step import Noise, Pair, Step, blend, combine, draws, pair


class Taken(NamedTuple):
    """A step from which the corrector can go again: the state before it, its numbers, and what was predicted."""

    x: Tensor
    p: Pair
    x0: Tensor
    past: list[Past]  # newest first, as many as the predictor used


@draws
def unipc(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """UniPC with predictor and corrector of order 2."""
    return predict_correct(denoise, x, levels, order=2)


@draws
def unipc_3(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise) -> Iterator[Step]:
    """UniPC with predictor and corrector of order 3."""
    return predict_correct(denoise, x, levels, order=3)


def predict_correct(denoise: Denoiser, x: Tensor, levels: Level, order: int) -> Iterator[Step]:
    """UniPC; a state is corrected when the network has been asked there, so the last one is the predictor's.

    The order rises over the first steps, falls over the last ones to sigma = 0, and is 1 where h is infinite.
    """
    past: list[Past] = []  # newest first
    taken: Taken | None = None
    clean = float(levels.sigma[-1]) == 0
    for i, (now, to) in enumerate(pairwise(levels)):
        p = pair(now, to)
        x0 = denoise(x, now).x0
        if not p.still:
            x = x if taken is None else corrected(taken, x0)
            smooth = 0 < p.h < math.inf
            left = len(levels) - 1 - i if clean else order
            usable = past[: min(order, left) - 1] if smooth else []
            taken = Taken(x, p, x0, usable) if smooth else None
            x = predicted(x, p, x0, usable)
            if smooth:
                past = [Past(p.lam, x0), *past][: order - 1]
        yield Step(x, x0)


def predicted(x: Tensor, p: Pair, x0: Tensor, past: list[Past]) -> Tensor:
    """UniP: the step with what is known at its start."""
    places = [(entry.lam - p.lam) / p.h for entry in past]
    rho = [0.5] if len(past) == 1 else weights(p.h, places)  # order 2's weight is 1/2 for every step (section 3.4)
    return along(x, p, x0, [(weight / r, entry.x0) for weight, r, entry in zip(rho, places, past)])


def corrected(taken: Taken, x0: Tensor) -> Tensor:
    """UniC: the same step again, now that the network has been asked at its end."""
    x, p, before, past = taken
    places = [(entry.lam - p.lam) / p.h for entry in past]
    rho = weights(p.h, [*places, 1.0]) if past else [0.5]
    parts = [(weight / r, entry.x0) for weight, r, entry in zip(rho, places, past)]
    return along(x, p, before, [*parts, (rho[-1], x0)])


def along(x: Tensor, p: Pair, x0: Tensor, parts: list[tuple[float, Tensor]]) -> Tensor:
    """The exponential step with the data x0 + sum of weight·(other - x0)."""
    rest = 1 - sum(weight for weight, _ in parts)
    return blend(x, p.ratio, combine([(rest, x0), *parts], x.dtype), p.alpha_to - p.ratio * p.alpha)


def weights(h: float, places: list[float]) -> list[float]:
    """rho with sum_k rho_k·r_k^(j-1) = m_j for j = 1 .. len(places)."""
    if not places:
        return []
    powers = np.vander(np.array(places), increasing=True).T  # (order, order): row j holds r_k^j
    return [float(rho) for rho in np.linalg.solve(powers, np.array(moments(h, len(places))))]
