"""What a number of network evaluations buys: every deterministic sampler on a mixture with its exact score."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import oracle
from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import SAMPLERS
from kuosan.diffusion.schedule import Discrete, Flow, Karras

BUDGETS = (10, 20, 40)
FINE = 400  # steps of the solution that errors are measured from
WALKS: dict[str, tuple[Discrete | Karras | Flow, str]] = {
    "linear, trailing": (Discrete(), "trailing"),
    "linear, karras": (Discrete(), "karras"),
    "karras, karras": (Karras(), "karras"),
    "flow, trailing": (Flow(), "trailing"),
}
DETERMINISTIC = [
    name for name, spec in registry.SAMPLERS.items() if not spec.stochastic() and name != "euler"
]  # = ddim


@lru_cache
def mixture() -> Denoiser:
    """Ten blobs of std 0.15 about random means in 64 dimensions."""
    draw = torch.Generator().manual_seed(4)
    return oracle.mixture(torch.rand(10, 1, 8, 8, generator=draw, dtype=torch.float64) * 1.6 - 0.8, 0.15)


def run(name: str, walk: str, steps: int, levels: Level | None = None, **options: Any) -> Tensor:
    """Where 32 starts are led: (32, 1, 8, 8)."""
    schedule, spacing = WALKS[walk]
    levels = schedule.grid(steps, spacing) if levels is None else levels
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(32, 1, 8, 8, generator=draw, dtype=torch.float64) * float(schedule.prior_std(levels[0]))
    extra = {"at_log_snr": schedule.at_log_snr} if registry.SAMPLERS[name].at_log_snr else {}
    *_, last = SAMPLERS[name](mixture(), x, levels, lambda *_: x, **extra, **options)
    return last.x


@lru_cache
def solution(walk: str) -> Tensor:
    """The probability flow of the walk, to its clean end: the finest grid's, by the sampler of the highest order."""
    return run("unipc_3", walk, FINE)


def steps_for(name: str, budget: int) -> int | None:
    """The most steps that a budget of network evaluations pays for; none if not even three."""
    paid = [steps for steps in range(3, budget + 1) if registry.SAMPLERS[name].nfe(steps) <= budget]
    return max(paid, default=None)


def error(name: str, walk: str, budget: int) -> float | None:
    """The root mean square error a pixel."""
    steps = steps_for(name, budget)
    if steps is None:
        return None
    return float(((run(name, walk, steps) - solution(walk)) ** 2).mean().sqrt())


def table() -> dict[tuple[str, str, int], float | None]:
    """(sampler, walk, budget) -> error."""
    return {(n, w, budget): error(n, w, budget) for n in DETERMINISTIC for w in WALKS for budget in BUDGETS}
