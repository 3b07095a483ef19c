"""DDIM inversion: an image's own noise, found along a grid from clean to noisy (Song et al. 2021, section 4.3).

Each step solves DDIM's step x = sigma/sigma'·x' + (alpha - alpha'·sigma/sigma')·x0(x', to) for the noisier x':

    x' = sigma'/sigma·x + (alpha' - alpha·sigma'/sigma)·x0

with x0 predicted at x (first order), or, by fixed-point iteration, at x' itself, which DDIM then inverts exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers.step import Step, blend, pair
from kuosan.errors import Error

if TYPE_CHECKING:
    pass
if TYPE_CHECKING:
    pass


def ddim_inversion(denoise: Denoiser, x: Tensor, levels: Level, iterations: int = 0) -> Iterator[Step]:
    """From images to their noise: yields a Step for each pair of levels, the clean end's first.

    levels: a sampler's grid, noise first, with its last level the first trained one: `schedule.grid(n, spacing,
    last="first")`. The image stands for the state there, whose noise no eye sees; at sigma = 0 no network was trained
    and eps says nothing. `ddim` over the same levels leads back.

    iterations: how often each step asks again at the noisier state it has found: 0 is the published inversion, n + 1
    the evaluations a step costs; a few make the way back exact to rounding.

    Raises: Error for a grid that ends at sigma = 0, or that does not go noise first, clean last.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise Error(f"iterations {iterations!r}: need a whole number, 0 (the published inversion) or more, as in 3.")
    if float(levels.sigma[-1]) == 0:
        raise Error(
            "inversion: the grid ends at sigma = 0, where no network was trained; "
            'give one that ends at the first trained level: schedule.grid(steps, spacing, last="first").'
        )
    for to, now in pairwise(levels[torch.arange(len(levels) - 1, -1, -1)]):
        x, x0 = inverted(denoise, x, to, now, iterations)
        yield Step(x, x0)


def inverted(denoise: Denoiser, x: Tensor, now: Level, to: Level, iterations: int) -> Step:
    """One step from `now` to the noisier `to`."""
    p = pair(to, now)  # the sampler's step, which this one undoes
    x0 = denoise(x, now).x0
    if p.still:
        return Step(x, x0)
    grown = p.sigma / p.sigma_to
    noisier = blend(x, grown, x0, p.alpha - p.alpha_to * grown)
    for _ in range(iterations):
        # by the noise, which hardly changes where the image is nearly clean; by x0 the iteration diverges there
        x0 = denoise(noisier, to).x0
        eps = blend(noisier, 1 / p.sigma, x0, -p.alpha / p.sigma)
        scale = p.alpha / p.alpha_to
        noisier = blend(x, scale, eps, p.sigma - scale * p.sigma_to)
    return Step(noisier, x0)
