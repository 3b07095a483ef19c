"""Samplers: published update formulas, identities between samplers, exact posteriors, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import Denoiser, Prediction, denoiser
from kuosan.diffusion.guidance import clamp
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import (
    SAMPLERS,
    Noise,
    Sampler,
    Step,
    ddim,
    ddpm,
    dpm_solver_2m,
    euler,
    euler_ancestral,
    heun,
    sampler,
)
from kuosan.diffusion.schedule import Discrete, Flow, Karras, Schedule
from kuosan.errors import Error

SHAPE = (3, 2, 2, 2)
VP = Discrete()
SCHEDULES: dict[str, Discrete | Karras | Flow] = {
    "linear": Discrete(),
    "all": Discrete(T=30, beta_start=1e-3, beta_end=0.3),
    "one": Discrete(),
    "cosine": Discrete(betas="cosine", T=100),
    "sd": Discrete(betas="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "vp karras": Discrete(),
    "log_snr": Discrete(),
    "karras": Karras(),
    "karras first": Karras(),
    "flow": Flow(shift=2),
    "zero snr": Discrete(zero_terminal_snr=True),
}
ASKED: dict[str, tuple[Any, ...]] = {
    "linear": (12,), "all": (30,), "one": (1,), "cosine": (7, "linspace"), "sd": (9, "leading", "first", 1),
    "vp karras": (8, "karras"), "log_snr": (8, "log_snr", "first"), "karras": (10,),
    "karras first": (6, "log_snr", "first"), "flow": (9,), "zero snr": (10,),
}  # fmt: skip
GRIDS = {name: schedule.grid(*ASKED[name]) for name, schedule in SCHEDULES.items()}


def between(name: str, schedule: Schedule) -> dict[str, Any]:
    """What a sampler is given that asks for levels between those of a grid."""
    return {"at_log_snr": schedule.at_log_snr} if registry.SAMPLERS[name].at_log_snr else {}


DETERMINISTIC = [name for name, spec in registry.SAMPLERS.items() if not spec.stochastic()]


def smooth(x: Tensor, level: Level) -> Prediction:
    """A denoiser that is nobody's data, with a variance."""
    s = level.sigma / (level.alpha + level.sigma)
    return Prediction(torch.tanh(x.flip(-1) / (1 + level.sigma)) + 0.3 * s, torch.sigmoid(x))


def keyed(i: int, now: Level, to: Level) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(i), dtype=torch.float64)


def no_noise(i: int, now: Level, to: Level) -> Tensor:
    raise AssertionError(f"noise was asked for at step {i}")


def start(levels: Level) -> Tensor:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return x * (levels.alpha[0] ** 2 + levels.sigma[0] ** 2).sqrt()


def walk(
    name: str,
    levels: Level,
    denoise: Denoiser = smooth,
    schedule: Schedule = VP,
    **options: object,
) -> Tensor:
    *_, last = SAMPLERS[name](denoise, start(levels), levels, keyed, **between(name, schedule), **options)
    return last.x


def published_ddpm(x: Tensor, x0: Tensor, frac: Tensor, ab: float, ab_to: float, variance: str, z: Tensor) -> Tensor:
    """Ho et al. 2020, eq. 7, with the betas of the (re)spaced chain; Nichol & Dhariwal 2021, eq. 15."""
    beta = 1 - ab / ab_to
    tilde = beta * (1 - ab_to) / (1 - ab)
    mean = math.sqrt(ab_to) * beta / (1 - ab) * x0 + math.sqrt(1 - beta) * (1 - ab_to) / (1 - ab) * x
    if ab_to == 1:
        return mean
    fraction = {"beta": torch.ones_like(x), "posterior": torch.zeros_like(x), "learned": frac}[variance]
    return mean + torch.exp(0.5 * (fraction * math.log(beta) + (1 - fraction) * math.log(tilde))) * z


@pytest.mark.parametrize("variance", registry.VARIANCES)
@pytest.mark.parametrize("T, steps", [(1, 1), (10, 10), (10, 3), (100, 7), (1000, 1), (1000, 50), (4000, 25)])
@pytest.mark.parametrize("betas", registry.BETAS)
def test_ddpm_is_the_published_update_also_on_respaced_steps(variance: str, T: int, steps: int, betas: str) -> None:
    for spacing in ("trailing", "leading", "linspace"):
        schedule = Discrete(betas=betas, T=T)
        levels = schedule.grid(steps, spacing)
        ab = [*(float(schedule.alpha_bar[int(t)]) for t in levels.t[:-1]), 1.0]
        x = start(levels)
        for i, step in enumerate(ddpm(smooth, x, levels, keyed, variance=variance)):
            x0, frac = smooth(x, levels[i])
            assert frac is not None
            z = keyed(i, levels[i], levels[i])
            x = published_ddpm(x, x0, frac, ab[i], ab[i + 1], variance, z)
            torch.testing.assert_close(step.x, x, rtol=1e-10, atol=1e-10)
            assert torch.equal(step.x0, x0)
            x = step.x


@pytest.mark.parametrize("eta", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("grid", ["linear", "all", "one", "cosine", "sd", "vp karras"])
def test_ddim_is_equation_12_of_song_et_al(eta: float, grid: str) -> None:
    levels = GRIDS[grid]
    x = start(levels)
    for i, step in enumerate(ddim(smooth, x, levels, keyed, eta=eta)):
        ab, ab_to = (float(levels.alpha[j]) ** 2 for j in (i, i + 1))
        x0 = smooth(x, levels[i]).x0
        eps = (x - math.sqrt(ab) * x0) / math.sqrt(1 - ab)
        std = eta * math.sqrt((1 - ab_to) / (1 - ab)) * math.sqrt(max(1 - ab / ab_to, 0))  # eq. 16
        x = math.sqrt(ab_to) * x0 + math.sqrt(max(1 - ab_to - std**2, 0)) * eps + std * keyed(i, levels[i], levels[i])
        torch.testing.assert_close(step.x, x, rtol=1e-10, atol=1e-10)
        x = step.x


@pytest.mark.parametrize("grid", ["karras", "karras first", "linear", "vp karras", "sd"])
def test_euler_and_heun_are_algorithm_1_of_karras_et_al(grid: str) -> None:
    """In x/alpha against s = sigma/alpha; at alpha = 1 as printed."""
    levels = GRIDS[grid]
    s = (levels.sigma / levels.alpha).tolist()

    def slope(y: Tensor, i: int) -> Tensor:
        return (y - smooth(y * levels.alpha[i], levels[i]).x0) / s[i]

    for method in (euler, heun):
        y = start(levels) / levels.alpha[0]
        for i, step in enumerate(method(smooth, start(levels), levels, no_noise)):
            d = slope(y, i)
            after = y + (s[i + 1] - s[i]) * d
            if method is heun and s[i + 1] > 0:
                after = y + (s[i + 1] - s[i]) * (d + slope(after, i + 1)) / 2
            y = after
            torch.testing.assert_close(step.x, y * levels.alpha[i + 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("grid", ["linear", "all", "cosine", "sd", "vp karras", "log_snr", "karras", "karras first"])
def test_dpm_solver_2m_is_algorithm_2_of_lu_et_al(grid: str) -> None:
    levels = GRIDS[grid]
    lam = [float(v) for v in levels.log_snr / 2]
    x, before = start(levels), None
    for i, step in enumerate(dpm_solver_2m(smooth, x, levels, no_noise)):
        x0 = smooth(x, levels[i]).x0
        h, data = lam[i + 1] - lam[i], x0
        if before is not None and math.isfinite(h):
            r = (lam[i] - lam[i - 1]) / h
            data = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = levels.sigma[i + 1] / levels.sigma[i] * x - levels.alpha[i + 1] * math.expm1(-h) * data
        torch.testing.assert_close(step.x, x, rtol=1e-10, atol=1e-10)
        x, before = step.x, x0


@pytest.mark.parametrize("grid", GRIDS)
def test_ddim_with_eta_one_is_ddpm_with_the_posterior_variance(grid: str) -> None:
    torch.testing.assert_close(
        walk("ddim", GRIDS[grid], eta=1.0), walk("ddpm", GRIDS[grid], variance="posterior"), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("grid", ["karras", "karras first"])
def test_ddim_on_a_karras_grid_is_euler_and_euler_ancestral(grid: str) -> None:
    levels = GRIDS[grid]
    x, y = start(levels), start(levels)
    for i, (now, to) in enumerate(pairwise(levels)):
        x = x + (to.sigma - now.sigma) * (x - smooth(x, now).x0) / now.sigma
        up = to.sigma * ((now.sigma**2 - to.sigma**2) / now.sigma**2).sqrt()  # k-diffusion's get_ancestral_step
        down = (to.sigma**2 - up**2).clamp(0).sqrt()
        y = y + (down - now.sigma) * (y - smooth(y, now).x0) / now.sigma + up * keyed(i, now, to)
    torch.testing.assert_close(walk("ddim", levels, eta=0.0), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(walk("euler", levels), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(walk("ddim", levels, eta=1.0), y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(walk("euler_ancestral", levels), y, rtol=1e-9, atol=1e-9)


def test_ddim_on_a_flow_grid_is_flow_s_euler() -> None:
    levels = GRIDS["flow"]
    x = start(levels)
    for now, to in pairwise(levels):
        x0 = smooth(x, now).x0
        x = x + (to.sigma - now.sigma) * ((x - now.alpha * x0) / now.sigma - x0)
    for name in ("euler", "ddim"):
        torch.testing.assert_close(walk(name, levels), x, rtol=1e-10, atol=1e-10)


def test_with_unchanging_data_every_deterministic_sampler_gives_it_exactly() -> None:
    still = torch.full(SHAPE, 0.4, dtype=torch.float64)
    for grid in GRIDS:
        for name in DETERMINISTIC:
            levels = GRIDS[grid]
            x = walk(name, levels, lambda x, level: Prediction(still), SCHEDULES[grid])
            eps = (start(levels) - levels.alpha[0] * still) / levels.sigma[0]
            torch.testing.assert_close(x, levels[-1].add(still, eps), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", [Discrete(), Discrete(betas="cosine", T=50), Karras(), Flow()])
def test_ddpm_with_the_exact_denoiser_is_the_exact_posterior(schedule: Schedule) -> None:
    """Data at a point: p(x_to | x_now) has the posterior's mean and variance by Bayes' rule on the two Gaussians."""
    point = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(1, 2, 2, 2)
    levels = schedule.grid(6)
    for now, to in list(pairwise(levels))[:-1]:
        x = now.add(point, keyed(0, now, to)[:1])
        # x_to ~ N(alpha_to·x0, sigma_to²), x_now | x_to ~ N(r·x_to, s²): completing the square
        r = now.alpha / to.alpha
        s2 = now.sigma**2 - r**2 * to.sigma**2
        precision = 1 / to.sigma**2 + r**2 / s2
        mean = (to.alpha * point / to.sigma**2 + r * x / s2) / precision
        pair = Level(*(torch.stack([getattr(now, n), getattr(to, n)]) for n in ("t", "alpha", "sigma")))
        for z in (0.0, 1.0):
            ours = next(ddpm(oracle.points(point), x, pair, lambda *_, z=x * 0 + z: z, "posterior")).x
            torch.testing.assert_close(ours, mean + z / precision.sqrt(), rtol=1e-9, atol=1e-9)


def test_ddpm_s_posterior_on_gaussian_data_composes_to_the_data_at_every_step() -> None:
    """Unit Gaussian data: with sigma² = beta, x stays exactly N(0, 1) at every step (Ho et al. 2020, section 3.2)."""
    levels = Discrete(T=50, beta_start=1e-3, beta_end=0.2).grid(50)
    exact = oracle.gaussian(torch.zeros(1, 1, 1), torch.tensor(1.0))
    variance, one = 1.0, torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for now, to in list(pairwise(levels))[:-1]:
        pair = Level(*(torch.stack([getattr(now, n), getattr(to, n)]) for n in ("t", "alpha", "sigma")))
        zero = next(ddpm(exact, one, pair, lambda *_: one * 0)).x
        noisy = next(ddpm(exact, one, pair, lambda *_: one)).x
        variance = float(zero) ** 2 * variance + float(noisy - zero) ** 2  # the step is linear in x and z
        assert variance == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", [Discrete(), Discrete(betas="cosine", T=100), Karras()], ids=lambda s: s.kind)
def test_all_predictions_walk_the_same_way(name: str, schedule: Discrete | Karras) -> None:
    means = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    exact = oracle.mixture(means, 0.2)
    levels = schedule.grid(10)
    truth = walk(name, levels, exact, schedule)
    for prediction in registry.PREDICTIONS:
        x = walk(name, levels, denoiser(oracle.network(exact, prediction, schedule), prediction), schedule)
        torch.testing.assert_close(x, truth, rtol=1e-3, atol=1e-3)  # the timestep is float32


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "edm"])
def test_walks_from_alpha_0_work_where_the_limit_exists(name: str, prediction: str) -> None:
    data = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64).clamp(-1, 1)
    exact = oracle.points(data)
    for schedule in (Discrete(zero_terminal_snr=True), Flow(shift=2)):
        levels = schedule.grid(20)
        assert float(levels.alpha[0]) == 0
        x = walk(name, levels, denoiser(oracle.network(exact, prediction, schedule), prediction), schedule)
        nearest = (x[:, None] - data).flatten(2).norm(dim=-1).min(1).values
        assert float(nearest.max()) < 1e-3  # every walk ends on an image of the data


def test_zero_terminal_snr_s_first_step_is_the_limit_of_ever_less_signal() -> None:
    x = start(GRIDS["linear"])
    for name, options in [("ddim", {"eta": 0.7}), ("ddpm", {}), ("dpm_solver_2m", {})]:
        ends = []
        for a in (1e-9, 0.0):
            levels = Level.of([9, 5, 2], [a, 0.3, 0.9], [math.sqrt(1 - a * a), math.sqrt(0.91), math.sqrt(0.19)])
            ends.append(list(SAMPLERS[name](smooth, x, levels, keyed, **options))[-1].x)
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0.02 if name == "dpm_solver_2m" else 1e-7)


def test_eps_has_no_meaning_at_alpha_0() -> None:
    x = start(GRIDS["flow"])
    with pytest.raises(Error, match="alpha = 0"):
        next(ddim(denoiser(lambda x, t: x, "eps"), x, GRIDS["zero snr"], no_noise))


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_noise_is_asked_for_at_a_step_to_sigma_0_or_by_deterministic_samplers(name: str) -> None:
    levels, asked = GRIDS["karras"], []

    def noise(i: int, now: Level, to: Level) -> Tensor:
        asked.append((i, float(now.sigma), float(to.sigma)))
        return keyed(i, now, to)

    list(SAMPLERS[name](smooth, start(levels), levels, noise, **between(name, Karras())))
    steps = [(float(now.sigma), float(to.sigma)) for now, to in pairwise(levels)][:-1]
    if name == "dpm_solver_2s_sde":  # to the middle, and from there
        steps = [half for now, to in steps for half in ((now, math.sqrt(now * to)), (math.sqrt(now * to), to))]
    assert len({i for i, _, _ in asked}) == len(asked)  # no two draws of a walk are the same
    assert [pair for _, *pair in asked] == [
        pytest.approx(list(step)) for step in (steps if registry.SAMPLERS[name].stochastic() else [])
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_to_clean_gives_the_predicted_image(name: str) -> None:
    for grid in ("linear", "karras", "one"):
        *_, last = SAMPLERS[name](smooth, start(GRIDS[grid]), GRIDS[grid], keyed, **between(name, SCHEDULES[grid]))
        torch.testing.assert_close(last.x, last.x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_last_step_of_no_length_changes_nothing(name: str) -> None:
    levels = Discrete().grid(8, "leading", "first")
    assert float(levels.t[-2]) == float(levels.t[-1]) == 0
    steps = list(SAMPLERS[name](smooth, start(levels), levels, keyed, **between(name, VP)))
    assert len(steps) == 8 and torch.equal(steps[-1].x, steps[-2].x)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid", ["linear", "sd", "karras first", "one"])
def test_evaluations_are_what_the_names_say(name: str, grid: str) -> None:
    levels, calls = GRIDS[grid], []

    def counted(x: Tensor, level: Level) -> Prediction:
        calls.append(level)
        return smooth(x, level)

    list(SAMPLERS[name](counted, start(levels), levels, keyed, **between(name, SCHEDULES[grid])))
    last = "clean" if float(levels.sigma[-1]) == 0 else "first"
    assert len(calls) == registry.SAMPLERS[name].nfe(len(levels) - 1, last)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_walk_can_start_in_the_middle_and_be_stopped(name: str) -> None:
    levels = GRIDS["linear"]
    extra = between(name, VP)
    steps = list(SAMPLERS[name](smooth, start(levels)[:1], levels[5:], lambda i, a, b: keyed(i, a, b)[:1], **extra))
    assert len(steps) == len(levels) - 6
    running = SAMPLERS[name](smooth, start(levels), levels, keyed, **extra)
    assert next(running).x.shape == SHAPE
    running.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SAMPLERS)
def test_yielded_states_are_not_changed_by_later_steps(name: str) -> None:
    x = start(GRIDS["linear"])
    before = x.clone()
    kept, copies = [], []
    for step in SAMPLERS[name](smooth, x, GRIDS["linear"], keyed, **between(name, VP)):
        kept.append(step)
        copies.append((step.x.clone(), step.x0.clone()))
    assert torch.equal(x, before)
    assert all(torch.equal(s.x, a) and torch.equal(s.x0, b) for s, (a, b) in zip(kept, copies, strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_state_keeps_its_dtype_whatever_the_network_gives(name: str, dtype: torch.dtype) -> None:
    def low(x: Tensor, level: Level) -> Prediction:
        return Prediction(torch.tanh(x).bfloat16(), torch.sigmoid(x))

    levels = GRIDS["linear"]
    for step in SAMPLERS[name](low, start(levels).to(dtype), levels, keyed, **between(name, VP)):
        assert step.x.dtype == dtype


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_follows_float64(name: str) -> None:
    levels = GRIDS["linear"]
    *_, low = SAMPLERS[name](smooth, start(levels).float(), levels, keyed, **between(name, VP))
    torch.testing.assert_close(low.x.double(), walk(name, levels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_clamp_holds_every_predicted_image_in_range(name: str) -> None:
    levels = GRIDS["linear"]
    wide = clamp(lambda x, level: Prediction(x * 5, torch.sigmoid(x)))
    for step in SAMPLERS[name](wide, start(levels), levels, keyed, **between(name, VP)):
        assert float(step.x0.abs().max()) <= 1
    assert float(step.x.abs().max()) <= 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_gradients_flow_through_a_walk(name: str) -> None:
    """Guidance by gradients needs it: no sampler may use what autograd forbids."""
    levels = Discrete().grid(4, last="first", spacing="log_snr")
    x = start(levels).requires_grad_()
    *_, last = SAMPLERS[name](smooth, x, levels, keyed, **between(name, VP))
    last.x.sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and float(x.grad.abs().sum()) > 0


def samples(name: str, schedule: Schedule, steps: int, exact: Denoiser, n: int, spacing: str | None = None) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    levels = schedule.grid(steps, spacing)
    x = torch.randn(n, 1, 1, 2, generator=draw, dtype=torch.float64) * schedule.prior_std(levels[0])

    def noise(i: int, now: Level, to: Level) -> Tensor:
        return torch.randn(x.shape, generator=draw, dtype=torch.float64)

    for step in SAMPLERS[name](exact, x, levels, noise, **between(name, schedule)):
        last = step.x
    return last.flatten(1)


WALKS = [("ddpm", 1000), ("ddim", 200), ("euler", 200), ("euler_ancestral", 400), ("heun", 60), ("dpm_solver_2m", 60)]


@pytest.mark.parametrize("name, steps", WALKS)
@pytest.mark.parametrize("schedule", [Discrete(), Karras(sigma_min=0.01), Flow()], ids=lambda s: s.kind)
def test_samples_of_gaussian_data_have_its_mean_and_covariance(name: str, steps: int, schedule: Schedule) -> None:
    mean, cov = torch.tensor([[[0.5, -0.3]]]), torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
    spacing = "karras" if name == "heun" and isinstance(schedule, Discrete) else None
    x = samples(
        name,
        schedule,
        min(steps, 300) if not isinstance(schedule, Discrete) else steps,
        oracle.gaussian(mean, cov),
        6000,
        spacing,
    )
    assert (x.mean(0) - mean.flatten()).abs().max() < 0.03
    assert (torch.cov(x.T) - cov).abs().max() < 0.025


@pytest.mark.parametrize("name, steps", [("ddpm", 400), ("ddim", 100), ("heun", 40), ("dpm_solver_2m", 40)])
def test_samples_of_a_mixture_have_its_weights_and_spread(name: str, steps: int) -> None:
    means, weights = torch.tensor([[[[-1.0, 0.5]]], [[[0.8, -0.6]]]]), torch.tensor([0.3, 0.7])
    spacing = "karras" if name in ("heun", "dpm_solver_2m") else "trailing"  # fine near 0, where the spread is
    x = samples(name, Discrete(), steps, oracle.mixture(means, 0.1, weights), 4000, spacing)
    first = x[:, 0] < 0
    assert abs(float(first.double().mean()) - 0.3) < 0.03
    for chosen, mean in ((first, means[0]), (~first, means[1])):
        assert (x[chosen].mean(0) - mean.flatten()).abs().max() < 0.02
        assert (x[chosen].std(0) - 0.1).abs().max() < 0.02


def test_a_sampler_of_the_user_s_own_and_a_schedule_of_the_user_s_own_work() -> None:
    class Sine:
        """alpha = cos, sigma = sin of an angle: nothing of ours but the protocol."""

        def level(self, angle: np.ndarray) -> Level:
            return Level.of(angle * 100, np.cos(angle), np.sin(angle))

        def at(self, u: np.ndarray) -> Level:
            return self.level(np.asarray(u) * math.pi / 2)

        def at_log_snr(self, log_snr: np.ndarray) -> Level:
            return self.level(np.arctan(np.exp(-np.asarray(log_snr) / 2)))

        def grid(self, steps: int, spacing: str | None = None, last: str = "clean", offset: int = 0) -> Level:
            return self.level(np.linspace(1.5, 0, steps + 1))

        def prior_std(self, level: Level) -> Tensor:
            return level.sigma

    def jump(denoise: Denoiser, x: Tensor, levels: Level, noise: Noise, again: int = 1) -> Iterator[Step]:
        for _ in range(again):
            x = denoise(x, levels[0]).x0
        yield Step(x, x)

    schedule: Schedule = Sine()
    assert isinstance(schedule, Schedule)
    data = torch.tensor([[[[0.5, -0.5]]], [[[-0.2, 0.9]]]])
    for name in SAMPLERS:
        registry.check(schedule, "v", sampler=name, steps=20)
        x = samples(name, schedule, 30, oracle.points(data), 50)
        assert float((x[:, None] - data.flatten(1)).norm(dim=-1).min(1).values.max()) < 0.02
    own: Sampler = jump
    assert sampler(own) is jump and sampler("DPM++ 2M") is dpm_solver_2m
    registry.check(schedule, "v", sampler=jump, steps=3, options={"again": 2})
    assert len(list(sampler(own)(smooth, start(GRIDS["linear"]), GRIDS["linear"], keyed, again=2))) == 1


def test_the_table_of_samplers_and_the_torch_free_names_agree() -> None:
    assert list(SAMPLERS) == list(registry.SAMPLERS)


@pytest.mark.parametrize(
    "run, says",
    [
        (lambda x: ddim(smooth, x, GRIDS["linear"], keyed, eta=1.5), "eta 1.5"),
        (lambda x: euler_ancestral(smooth, x, GRIDS["linear"], keyed, eta=-1), "eta -1"),
        (lambda x: ddpm(smooth, x, GRIDS["linear"], keyed, variance="betta"), "did you mean 'beta'"),
        (lambda x: ddpm(lambda x, level: Prediction(x), x, GRIDS["linear"], keyed, variance="learned"), "learned"),
        (lambda x: ddim(smooth, x, Level.of([1, 0], [0.5, 0.5], [0.5, 0.6]), keyed), "adds noise"),
        (lambda x: ddim(smooth, x, Level.of([1, 0], [1.0, 1.0], [0.0, 0.5]), keyed), "sigma must be above 0"),
        (lambda x: ddim(smooth, x, Level.of([1, 0], [0.1, 0.0], [0.9, 1.0]), keyed), "alpha after it"),
    ],
)  # fmt: skip
def test_what_cannot_be_walked_is_refused(run: object, says: str) -> None:
    with pytest.raises(Error, match=says):
        list(run(start(GRIDS["linear"])))  # type: ignore[operator]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", registry.PREDICTIONS)
def test_no_walk_reads_an_image_s_values(name: str, prediction: str) -> None:
    """On the meta device there are none to read: on a GPU, then, no step waits for one."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        assert t.is_meta and t.shape == (3,)
        return torch.cat([x, x], 1)

    levels, x = Discrete().grid(6), torch.empty(SHAPE, device="meta")
    denoise = clamp(denoiser(network, prediction, learned_variance=True))
    options = {"variance": "learned"} if name == "ddpm" else between(name, VP)
    for step in SAMPLERS[name](denoise, x, levels, lambda *_: torch.empty_like(x), **options):
        assert step.x.is_meta and step.x.dtype == torch.float32
