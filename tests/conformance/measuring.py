"""One walk measured: the mean and variance a sampler arrives at, against the closed form."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from analytic import GOALS, Cell, Goal, in_cells
from torch import Tensor

from kuosan.diffusion import registry
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import SAMPLERS
from kuosan.diffusion.schedule import Discrete, Flow, Karras

Schedule = Discrete | Karras | Flow


def errors(name: str, options: dict[str, Any], schedule: Schedule, levels: Level, cells: list[Cell]) -> Tensor:
    """(cells,): the root mean square of the errors in mean and standard deviation, over two dimensions."""
    spec = registry.SAMPLERS[name]
    draws = spec.per_step * (len(levels) - 1) if spec.stochastic(options) else 0
    x = torch.zeros(2 + draws, len(cells), 1, 2, dtype=torch.float64)
    x[1] = 1.0

    def noise(i: int, now: Level, to: Level) -> Tensor:
        z = torch.zeros_like(x)
        z[2 + i] = 1.0  # an IndexError here is a draw that nobody expected
        return z

    extra = {"at_log_snr": schedule.at_log_snr} if spec.at_log_snr else {}
    with torch.no_grad():
        for step in SAMPLERS[name](in_cells(cells), x, levels, noise, **extra, **options):
            end = step.x[:, :, 0]
    origin, slope, drawn = end[0], end[1] - end[0], end[2:] - end[0]  # (cells, 2); drawn (draws, cells, 2)
    alpha, sigma = float(levels.alpha[0]), float(levels.sigma[0])
    goals = [GOALS[guidance] for guidance, _ in cells]
    start = torch.stack([alpha**2 * goal.prior(0.0) + sigma**2 for goal in goals])  # of x itself: alpha may be 0
    mean = origin + slope * alpha * torch.stack([goal.mean for goal in goals])
    std = (slope**2 * start + (drawn**2).sum(0)).sqrt()
    arrivals = [arrival(goal, name, options, levels) for goal in goals]
    away = (mean - torch.stack([a for a, _ in arrivals])) ** 2 + (std - torch.stack([b for _, b in arrivals])) ** 2
    return (away / 2).mean(1).sqrt()


def arrival(goal: Goal, name: str, options: dict[str, Any], levels: Level) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation at the grid's end, of x.

    A step to sigma = 0 goes to the predicted data, by every sampler: the exact walk does the same from the last noisy
    level, so that the error is the sampler's and not the grid's.
    """
    clean = float(levels.sigma[-1]) == 0
    noisy = levels[:-1] if clean else levels
    s = [math.inf if a == 0 else b / a for a, b in zip(noisy.alpha.tolist(), noisy.sigma.tolist())]
    s[0] = min(s[0], 1e8)  # alpha = 0: y has no limit there, but what it leads to has
    variance = goal.prior(s[0])
    stochastic = registry.SAMPLERS[name].stochastic(options)
    if name == "heun" and stochastic:
        gamma = min(options["s_churn"] / (len(levels) - 1), math.sqrt(2) - 1)
        highest = s[0]
        for now, to in pairwise(s):
            raised = min(now * (1 + gamma), highest)
            variance = goal.flow(variance + raised**2 - now**2, to, raised)
        if clean:
            raised = min(s[-1] * (1 + gamma), highest)
            variance = goal.jump(variance + raised**2 - s[-1] ** 2, raised)
    else:
        variance = (goal.reverse if stochastic else goal.flow)(variance, s[-1], s[0])
        variance = goal.jump(variance, s[-1]) if clean else variance
    scale = 1.0 if clean else float(levels.alpha[-1])
    return scale * goal.mean, scale * variance.sqrt()
