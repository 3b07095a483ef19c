"""Not Gaussian: a mixture in one dimension, whose probability flow keeps every quantile, and whose CDF is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from combinations import ROWS
from scipy.optimize import brentq
from scipy.stats import kstest, norm
from torch import Tensor

import oracle
from kuosan.diffusion import registry
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import SAMPLERS
from kuosan.diffusion.schedule import Discrete

MEANS, STD, WEIGHTS = np.array([-0.7, 0.1, 0.8]), 0.2, np.array([0.3, 0.5, 0.2])
EXACT = oracle.mixture(torch.from_numpy(MEANS).reshape(3, 1, 1, 1), STD, torch.from_numpy(WEIGHTS))
QUANTILES = (0.02, 0.15, 0.3, 0.45, 0.6, 0.85, 0.98)
VP = Discrete()


def cdf(x: np.ndarray | float, alpha: float = 1.0, sigma: float = 0.0) -> np.ndarray:
    """The chance of a noisy image below x."""
    spread = math.sqrt(alpha**2 * STD**2 + sigma**2)
    return np.asarray((WEIGHTS * norm.cdf((np.asarray(x)[..., None] - alpha * MEANS) / spread)).sum(-1))


def places(level: Level) -> Tensor:
    """Where the quantiles lie at a level: (7, 1, 1, 1)."""
    alpha, sigma = float(level.alpha), float(level.sigma)
    found = [brentq(lambda x, q=q: float(cdf(x, alpha, sigma)) - q, -9, 9, xtol=1e-14) for q in QUANTILES]
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 1, 1, 1)


def walk(row: str, levels: Level, x: Tensor, draw: torch.Generator | None = None) -> Tensor:
    name, options = ROWS[row]
    extra = {"at_log_snr": VP.at_log_snr} if registry.SAMPLERS[name].at_log_snr else {}

    def noise(i: int, now: Level, to: Level) -> Tensor:
        assert draw is not None, "a deterministic sampler asked for noise"
        return torch.randn(x.shape, generator=draw, dtype=torch.float64)

    *_, last = SAMPLERS[name](EXACT, x, levels, noise, **extra, **options)
    return last.x


@pytest.mark.parametrize("row", [row for row, (name, o) in ROWS.items() if not registry.SAMPLERS[name].stochastic(o)])
def test_a_deterministic_walk_keeps_every_quantile_with_its_order(row: str) -> None:
    errors = []
    for steps in (64, 128):
        levels = VP.at_log_snr(np.linspace(-9, 5, steps + 1))
        errors.append(float((walk(row, levels, places(levels[0])) - places(levels[-1])).abs().mean()))
    promised = registry.SAMPLERS[ROWS[row][0]].order
    assert errors[1] < 0.02 / promised**2
    assert math.log2(errors[0] / errors[1]) > promised - 0.5


@pytest.mark.parametrize("row", [row for row, (name, o) in ROWS.items() if registry.SAMPLERS[name].stochastic(o)])
def test_a_stochastic_walk_s_samples_have_the_data_s_distribution(row: str) -> None:
    """Kolmogorov and Smirnov's test of 2000 samples against the data's distribution."""
    draw = torch.Generator().manual_seed(3)
    order = registry.SAMPLERS[ROWS[row][0]].order
    levels = VP.grid(160 if order == 1 else 80, "karras")
    x = torch.randn(2000, 1, 1, 1, generator=draw, dtype=torch.float64)
    assert kstest(walk(row, levels, x, draw).flatten().numpy(), cdf).pvalue > 0.01


def test_the_distribution_test_can_fail() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2000, 1, 1, 1, generator=draw, dtype=torch.float64)
    coarse = walk("euler_ancestral", VP.grid(6, "karras"), x, draw)
    assert kstest(coarse.flatten().numpy(), cdf).pvalue < 1e-6
