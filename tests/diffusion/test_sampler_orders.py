"""Orders of convergence, measured: the error against the exact solution, halving the step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import oracle
from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import SAMPLERS
from kuosan.diffusion.schedule import Discrete, Karras

STD = 0.5


def silent(i: int, now: Level, to: Level) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def solution(x: Tensor, levels: Level) -> Tensor:
    """The probability flow of N(0, STD²): x keeps its place in the marginal, of variance alpha²·STD² + sigma²."""
    spread = (levels.alpha**2 * STD**2 + levels.sigma**2).sqrt()
    return x * spread[-1] / spread[0]


def error(name: str, levels: Level, exact: Denoiser) -> float:
    x = torch.tensor([[[[1.0]]]], dtype=torch.float64) * (levels.alpha[0] ** 2 * STD**2 + levels.sigma[0] ** 2).sqrt()
    *_, last = SAMPLERS[name](exact, x, levels, silent)
    return float((last.x - solution(x, levels)).abs())


def grid(kind: str, steps: int) -> Level:
    """From log SNR -6 to 6, where the solution is smooth; even in log SNR, or Karras's."""
    if kind == "vp":
        return Discrete().at_log_snr(torch.linspace(-6, 6, steps + 1, dtype=torch.float64).numpy())
    return Karras(sigma_min=math.exp(-3), sigma_max=math.exp(3)).grid(steps, kind, last="first")


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm_solver_2m"])
@pytest.mark.parametrize("kind", ["vp", "log_snr", "karras"])
def test_the_measured_order_is_the_one_the_names_give(name: str, kind: str) -> None:
    exact = oracle.gaussian(torch.zeros(1, 1, 1), torch.tensor(STD**2))
    coarse, fine = (error(name, grid(kind, steps), exact) for steps in (256, 512))
    assert math.log2(coarse / fine) == pytest.approx(registry.SAMPLERS[name].order, abs=0.15)


def test_more_order_is_less_error_at_equal_steps() -> None:
    exact = oracle.gaussian(torch.zeros(1, 1, 1), torch.tensor(STD**2))
    errors = {name: error(name, grid("vp", 32), exact) for name in ("euler", "dpm_solver_2m", "heun")}
    assert errors["dpm_solver_2m"] < errors["euler"] / 5 and errors["heun"] < errors["euler"] / 5
