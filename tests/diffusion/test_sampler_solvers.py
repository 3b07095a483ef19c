"""The higher solvers' published formulas, as other codes write them; their edges; and one Brownian path."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from kuosan.diffusion.denoiser import Prediction
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import SAMPLERS, heun
from kuosan.diffusion.samplers.dpm_solver import moments
from kuosan.diffusion.samplers.pndm import halfway
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error

SHAPE = (2, 2, 3, 3)
EDM = Karras()


def smooth(x: Tensor, level: Level) -> Prediction:
    """A denoiser that is nobody's data."""
    s = level.sigma / (level.alpha + level.sigma)
    return Prediction(torch.tanh(x.flip(-1) / (1 + level.sigma)) + 0.3 * s)


def data(x: Tensor, sigma: float) -> Tensor:
    return smooth(x, EDM.at_sigma(sigma)).x0


def keyed(i: int, now: Level, to: Level) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(i), dtype=torch.float64)


def silent(i: int, now: Level, to: Level) -> Tensor:
    raise AssertionError("noise was asked for")


def start(levels: Level) -> Tensor:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return x * (levels.alpha[0] ** 2 + levels.sigma[0] ** 2).sqrt()


def walk(name: str, levels: Level, noise: Any = keyed, at: Any = EDM.at_log_snr, **options: Any) -> list[Tensor]:
    if name in ("dpm_solver_2s", "dpm_solver_2s_sde", "pndm") or options.get("s_churn"):
        options["at_log_snr"] = at
    return [step.x for step in SAMPLERS[name](smooth, start(levels), levels, noise, **options)]


@pytest.mark.parametrize("s_tmin, s_tmax, s_noise", [(0.05, 50.0, 1.003), (0.0, 10.0, 1.0), (0.0, 70.0, 1.01)])
@pytest.mark.parametrize("s_churn", [3.0, 40.0])
def test_churned_heun_is_algorithm_2_of_karras_et_al(
    s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> None:
    levels = EDM.grid(12)
    t = levels.sigma.tolist()
    x, gamma = start(levels), min(s_churn / 12, math.sqrt(2) - 1)
    found = walk("heun", levels, s_churn=s_churn, s_tmin=s_tmin, s_tmax=s_tmax, s_noise=s_noise)
    for i, ours in enumerate(found):
        g = gamma if s_tmin <= t[i] <= s_tmax else 0.0
        hat = t[i] + g * t[i]
        if g > 0:
            x = x + math.sqrt(hat**2 - t[i] ** 2) * s_noise * keyed(i, levels[0], levels[0])
        d = (x - data(x, hat)) / hat
        after = x + (t[i + 1] - hat) * d
        if t[i + 1] != 0:
            after = x + (t[i + 1] - hat) * (d + (after - data(after, t[i + 1])) / t[i + 1]) / 2
        x = after
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


def test_churn_never_raises_a_level_past_the_trajectorys_first() -> None:
    asked = []

    def watched(x: Tensor, level: Level) -> Prediction:
        asked.append(float(level.log_snr))
        return smooth(x, level)

    schedule = Discrete()
    levels = schedule.grid(10, "log_snr")
    list(heun(watched, start(levels), levels, keyed, s_churn=9.0, at_log_snr=schedule.at_log_snr))
    assert min(asked) >= schedule.log_snr[-1] - 1e-9


def test_dpm_solver_2s_sde_is_k_diffusion_s_dpmpp_sde() -> None:
    """eta 1, r 1/2, alpha 1: down to the middle and to the end with ancestral noise, sd and su of each."""
    levels = EDM.grid(9)
    sigmas = levels.sigma.tolist()
    x = start(levels)

    def down_up(s: float, s_to: float) -> tuple[float, float]:
        up = math.sqrt(s_to**2 * (s**2 - s_to**2) / s**2)
        return math.sqrt(s_to**2 - up**2), up

    for i, ours in enumerate(walk("dpm_solver_2s_sde", levels)):
        s, s_to = sigmas[i], sigmas[i + 1]
        x0 = data(x, s)
        if s_to == 0:
            x = x0
        else:
            middle = math.sqrt(s * s_to)
            down, up = down_up(s, middle)
            first = up * keyed(2 * i, levels[0], levels[0])
            there = data(down / s * x + (1 - down / s) * x0 + first, middle)
            rest = (s_to / middle) ** 2, down_up(middle, s_to)[1]  # the first half's noise decays over the second
            both = rest[0] * first + rest[1] * keyed(2 * i + 1, levels[0], levels[0])
            down, _ = down_up(s, s_to)
            x = down / s * x + (1 - down / s) * there + both
        torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_dpm_solver_3m_sde_is_k_diffusion_s(eta: float) -> None:
    levels = EDM.grid(12)
    sigmas = levels.sigma.tolist()
    x, past = start(levels), []
    for i, ours in enumerate(walk("dpm_solver_3m_sde", levels, eta=eta)):
        s, s_to = sigmas[i], sigmas[i + 1]
        x0 = data(x, s)
        if s_to == 0:
            x = x0
        else:
            h = math.log(s / s_to)
            h_eta = h * (eta + 1)
            x = math.exp(-h_eta) * x - math.expm1(-h_eta) * x0
            if len(past) > 1 and i < 10:  # ours takes two predictions on the last step but one
                r0, r1 = past[0][0] / h, past[1][0] / h
                d1_0, d1_1 = (x0 - past[0][1]) / r0, (past[0][1] - past[1][1]) / r1
                d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
                d2 = (d1_0 - d1_1) / (r0 + r1)
                phi_2 = math.expm1(-h_eta) / h_eta + 1
                x = x + phi_2 * d1 - (phi_2 / h_eta - 0.5) * d2
            elif past:
                x = x - 0.5 * math.expm1(-h_eta) * (x0 - past[0][1]) * h / past[0][0]
            x = x + keyed(i, levels[0], levels[0]) * s_to * math.sqrt(-math.expm1(-2 * h * eta))
            past = [(h, x0), *past][:2]
        torch.testing.assert_close(ours, x, rtol=1e-8, atol=1e-8)


GRIDS = {
    "vp": (Discrete(), Discrete().grid(12)),
    "first": (Discrete(), Discrete().grid(12, "log_snr", "first")),
    "cosine": (Discrete(betas="cosine"), Discrete(betas="cosine").grid(9)),
    "karras": (EDM, EDM.grid(10)),
    "flow": (Flow(shift=2), Flow(shift=2).grid(9)),
    "zero": (Discrete(zero_terminal_snr=True), Discrete(zero_terminal_snr=True).grid(9)),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", ["2s", "2m", "3m"])
def test_an_sde_form_with_eta_0_is_the_form_without_noise(kind: str, grid: str) -> None:
    schedule, levels = GRIDS[grid]
    plain = walk(f"dpm_solver_{kind}", levels, silent, schedule.at_log_snr)
    for ours, theirs in zip(walk(f"dpm_solver_{kind}_sde", levels, silent, schedule.at_log_snr, eta=0.0), plain):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name, count", [("dpm_solver_2s_sde", 2), ("dpm_solver_2m_sde", 1), ("dpm_solver_3m_sde", 1)])
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_a_step_s_draws_make_the_whole_step_s_noise(name: str, count: int, eta: float) -> None:
    """With unchanging data: variance sigma'²·(1 - exp(-2·eta·h)), whatever it is made of."""
    schedule, levels = GRIDS["first"]
    for now, to in pairwise(levels):
        pair = Level(*(torch.stack([getattr(now, n), getattr(to, n)]) for n in ("t", "alpha", "sigma")))
        draws: list[int] = []

        def unit(i: int, a: Level, b: Level, draws: list[int] = draws) -> Tensor:
            draws.append(i)
            return torch.eye(3, dtype=torch.float64)[i].reshape(3, 1, 1, 1)

        extra = {"at_log_snr": schedule.at_log_snr} if count == 2 else {}
        still = Prediction(torch.zeros(3, 1, 1, 1, dtype=torch.float64))
        x = next(SAMPLERS[name](lambda *_, p=still: p, still.x0, pair, unit, eta=eta, **extra)).x
        h = float(to.log_snr - now.log_snr) / 2
        assert float((x**2).sum()) == pytest.approx(float(to.sigma) ** 2 * -math.expm1(-2 * eta * h), rel=1e-9)
        assert draws == list(range(count))


def test_the_middle_s_noise_and_the_end_s_are_of_one_path() -> None:
    """Their covariance is what is left of the first half's noise: e^(-eta·h/2)·(sigma'/sigma_m)·its variance."""
    now, to = EDM.at_sigma(4.0), EDM.at_sigma(1.0)  # the middle is 2, and h is log 4
    pair = Level(*(torch.stack([getattr(now, n), getattr(to, n)]) for n in ("t", "alpha", "sigma")))
    seen = []

    def nothing(x: Tensor, level: Level) -> Prediction:
        seen.append(x.clone())
        return Prediction(torch.zeros_like(x))

    def unit(i: int, a: Level, b: Level) -> Tensor:
        return torch.eye(2, dtype=torch.float64)[i].reshape(2, 1, 1, 1)

    zero = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    end = next(SAMPLERS["dpm_solver_2s_sde"](nothing, zero, pair, unit, at_log_snr=EDM.at_log_snr)).x
    middle = seen[1]
    assert float((middle**2).sum()) == pytest.approx(4 * (1 - 1 / 4))
    assert float((end**2).sum()) == pytest.approx(1 * (1 - 1 / 16))
    assert float((middle * end).sum()) == pytest.approx((1 / 2) * (1 / 2) * 3.0)


@pytest.mark.parametrize("h", [1e-9, 1e-4, 0.03, 0.499, 0.501, 2.0, 30.0])
def test_moments_are_the_integrals(h: float) -> None:
    weight = quad(lambda u: math.exp(-h * (1 - u)), 0, 1)[0]
    for k, found in enumerate(moments(h, 3), 1):
        assert found == pytest.approx(quad(lambda u, k=k: u**k * math.exp(-h * (1 - u)), 0, 1)[0] / weight, rel=1e-7)


@pytest.mark.parametrize("name", SAMPLERS)
def test_repeated_levels_anywhere_change_nothing_and_nothing_is_nan(name: str) -> None:
    schedule, levels = Discrete(), Discrete().grid(8)
    options = (
        {"at_log_snr": schedule.at_log_snr} if name in ("heun", "dpm_solver_2s", "dpm_solver_2s_sde", "pndm") else {}
    )
    for repeated in ([0, 0], [3, 3, 3], [7, 7], [8, 8]):
        order = sorted([*range(9), *repeated[1:]])
        twice = levels[torch.tensor(order)]
        xs = [step.x for step in SAMPLERS[name](smooth, start(levels), twice, keyed, **options)]
        assert all(x.isfinite().all() for x in xs)
        for i, (a, b) in enumerate(pairwise(order)):
            if a == b and i > 0:
                assert torch.equal(xs[i], xs[i - 1])


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_few_steps_are_never_nan(name: str, steps: int) -> None:
    asked = [(s, k) for s in (Discrete(), Discrete(betas="cosine"), Discrete(T=20)) for k in s.spacings]
    asked += [(s, k) for s in (EDM, Flow(), Flow(shift=3.0)) for k in s.spacings]
    for schedule, spacing in asked:
        extra = {"at_log_snr": schedule.at_log_snr} if name in ("dpm_solver_2s", "dpm_solver_2s_sde", "pndm") else {}
        for last in ("clean", "first") if not isinstance(schedule, Flow) else ("clean",):
            levels = schedule.grid(steps, spacing, last)
            xs = [step.x for step in SAMPLERS[name](smooth, start(levels), levels, keyed, **extra)]
            assert len(xs) == steps and all(x.isfinite().all() for x in xs), (schedule, spacing, last)


def test_halfway_is_halfway_between_the_timesteps() -> None:
    for schedule, now, to in (
        (Discrete(), Discrete().at_t(900), Discrete().at_t(800)),
        (EDM, EDM.at_sigma(9.0), EDM.at_sigma(0.1)),
        (Flow(), Flow().at_sigma(0.9), Flow().at_sigma(0.2)),
    ):
        middle = halfway(schedule.at_log_snr, now, to)
        assert float(middle.t) == pytest.approx(float(now.t + to.t) / 2, abs=1e-6)


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("dpm_solver_2s", {}, "at_log_snr=schedule.at_log_snr"),
        ("dpm_solver_2s_sde", {}, "at_log_snr=schedule.at_log_snr"),
        ("pndm", {}, "at_log_snr=schedule.at_log_snr"),
        ("heun", {"s_churn": 1.0}, "heun with s_churn.*at_log_snr"),
        ("heun", {"s_noise": 1.003}, "they shape s_churn, which is 0"),
        ("heun", {"s_tmin": 0.05}, "give s_churn above 0"),
        ("heun", {"s_churn": -1.0}, "s_churn -1"),
        ("heun", {"s_churn": float("nan")}, "s_churn nan"),
        ("dpm_solver_2m_sde", {"eta": 1.5}, "eta 1.5"),
        ("dpm_solver_3m_sde", {"eta": -0.1}, "eta -0.1"),
        ("dpm_solver_2s_sde", {"eta": 2, "at_log_snr": EDM.at_log_snr}, "eta 2"),
    ],
)
def test_what_a_solver_cannot_do_is_refused(name: str, options: dict[str, Any], says: str) -> None:
    levels = EDM.grid(5)
    with pytest.raises(Error, match=says):
        list(SAMPLERS[name](smooth, start(levels), levels, keyed, **options))
