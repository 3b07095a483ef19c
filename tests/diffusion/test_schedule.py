"""Schedules: closed forms, published values, training levels, and the grids a sampler walks."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kuosan.diffusion.grids import SPACINGS
from kuosan.diffusion.schedule import Discrete, Flow, Karras, Schedule
from kuosan.errors import Error

BETAS = ("linear", "scaled_linear", "cosine", "sigmoid")
DISCRETE = [Discrete(betas=betas, T=T) for betas in BETAS for T in (1, 2, 10, 100, 1000, 4000)]


def loop_alpha_bar(betas: list[float]) -> list[float]:
    product, out = 1.0, []
    for beta in betas:
        product *= 1 - beta
        out.append(product)
    return out


@pytest.mark.parametrize("T", [2, 10, 100, 1000, 4000])
def test_betas_are_the_published_formulas(T: int) -> None:
    def line(a: float, b: float, t: int) -> float:
        return a + (b - a) * t / (T - 1)

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    a, b = 0.00085, 0.012
    hand = {
        "linear": [line(a, b, t) for t in range(T)],
        "scaled_linear": [line(a**0.5, b**0.5, t) ** 2 for t in range(T)],
        "sigmoid": [a + (b - a) / (1 + math.exp(-line(-6, 6, t))) for t in range(T)],
        "cosine": [min(1 - f((t + 1) / T) / f(t / T), 0.999) for t in range(T)],
    }
    for betas in BETAS:
        ends = {} if betas == "cosine" else {"beta_start": a, "beta_end": b}
        ours = Discrete(betas=betas, T=T, **ends).alpha_bar
        np.testing.assert_allclose(ours, loop_alpha_bar(hand[betas]), rtol=1e-10)


def test_published_values_of_alpha_bar() -> None:
    ddpm = Discrete().alpha_bar
    assert ddpm[0] == pytest.approx(0.9999, abs=1e-12)
    assert ddpm[-1] == pytest.approx(4.0358e-5, rel=1e-4)  # Ho et al. 2020: KL(q(x_T|x0) || N(0, I)) ~ 1e-5 bits/dim
    sd = Discrete(betas="scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert sd.alpha_bar[0] == pytest.approx(0.99915, abs=1e-7)  # Stable Diffusion 1.5
    assert sd.alpha_bar[-1] == pytest.approx(0.0046601, rel=1e-4)
    sigma = np.sqrt((1 - sd.alpha_bar) / sd.alpha_bar)
    assert sigma[-1] == pytest.approx(14.6146, abs=1e-4) and sigma[0] == pytest.approx(0.0291675, abs=1e-6)


def test_one_step_schedules_hold_the_first_beta() -> None:
    assert Discrete(T=1, beta_start=0.3, beta_end=0.3).alpha_bar.tolist() == [0.7]
    assert Discrete(betas="scaled_linear", T=1, beta_start=0.3, beta_end=0.5).alpha_bar[0] == pytest.approx(0.7)
    assert Discrete(betas="cosine", T=1).alpha_bar[0] == pytest.approx(0.001)


@pytest.mark.parametrize("betas", BETAS)
def test_zero_terminal_snr_is_algorithm_1_of_lin_et_al(betas: str) -> None:
    plain, zero = Discrete(betas=betas), Discrete(betas=betas, zero_terminal_snr=True)
    root = [math.sqrt(value) for value in plain.alpha_bar]
    hand = [((r - root[-1]) * root[0] / (root[0] - root[-1])) ** 2 for r in root]
    np.testing.assert_allclose(zero.alpha_bar, hand, rtol=1e-12, atol=1e-18)
    assert zero.alpha_bar[-1] == 0 and zero.alpha_bar[0] == pytest.approx(plain.alpha_bar[0], rel=1e-14)
    last = zero.at_t(999)
    assert (float(last.alpha), float(last.sigma)) == (0.0, 1.0)


def test_the_timestep_reaches_a_zero_terminal_snr_without_a_jump() -> None:
    schedule = Discrete(T=20, beta_start=0.01, beta_end=0.3, zero_terminal_snr=True)
    ends = schedule.log_snr[[-2, -2]] - [0.0, np.inf]
    assert schedule.at_log_snr(ends).t.tolist() == [18.0, 19.0]
    half = schedule.at_log_snr(schedule.log_snr[-2] + 2 * math.log(0.25))  # a quarter of t = 18's alpha/sigma
    assert float(half.t) == pytest.approx(18.75)


@pytest.mark.parametrize("schedule", DISCRETE, ids=repr)
def test_discrete_levels_preserve_variance_and_lose_signal(schedule: Discrete) -> None:
    level = schedule.at_t(np.arange(schedule.T))
    torch.testing.assert_close(level.alpha**2 + level.sigma**2, torch.ones(schedule.T, dtype=torch.float64))
    assert (level.log_snr.diff() < 0).all()
    assert level.alpha.dtype == level.sigma.dtype == level.t.dtype == torch.float64


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("T", [10, 1000])
def test_markov_steps_compose_to_the_closed_form(betas: str, T: int) -> None:
    """q(x_t|x_{t-1}) = N(sqrt(1-beta)x, beta): after t steps the mean is alpha_t·x0, the variance sigma_t²."""
    schedule = Discrete(betas=betas, T=T)
    before = np.append(1.0, schedule.alpha_bar[:-1])
    mean, variance = 1.0, 0.0
    for t, step in enumerate(schedule.alpha_bar / before):
        mean, variance = math.sqrt(step) * mean, step * variance + (1 - step)
        level = schedule.at_t(t)
        assert abs(mean - float(level.alpha)) < 1e-12 and abs(variance - float(level.sigma) ** 2) < 1e-12


def test_simulated_markov_steps_have_the_closed_form_s_moments() -> None:
    schedule = Discrete(T=20, beta_start=0.01, beta_end=0.3)
    draw = torch.Generator().manual_seed(0)
    x = torch.full((200_000,), 1.5, dtype=torch.float64)
    before = 1.0
    for alpha_bar in schedule.alpha_bar:
        step, before = alpha_bar / before, alpha_bar
        x = math.sqrt(step) * x + math.sqrt(1 - step) * torch.randn(x.shape, generator=draw, dtype=torch.float64)
    level = schedule.at_t(19)
    assert abs(float(x.mean() - 1.5 * level.alpha)) < 4 * float(level.sigma) / math.sqrt(len(x))
    assert abs(float(x.std() / level.sigma) - 1) < 0.01


@pytest.mark.parametrize(
    "schedule", [Discrete(), Discrete(T=10), Karras(), Flow(), Flow(shift=3), Flow(density="logit_normal")]
)
def test_a_larger_u_is_noisier_and_even_the_least_is_finite(schedule: Schedule) -> None:
    level = schedule.at(np.array([0.0, 2.0**-53, 0.01, 0.3, 0.5, 0.9, 1 - 2.0**-53]))
    assert (level.log_snr.diff() <= 0).all() and torch.isfinite(level.log_snr[:-1]).all()
    assert torch.isfinite(level.t).all() and level.t.shape == (7,)


@pytest.mark.parametrize("T", [1, 3, 1000])
def test_discrete_training_draws_every_t_equally_often(T: int) -> None:
    u = (np.arange(T * 4) + 0.5) / (T * 4)
    assert np.bincount(Discrete(T=T).at(u).t.long().numpy(), minlength=T).tolist() == [4] * T
    assert float(Discrete(T=T).at(1 - 2.0**-53).t) == T - 1


def test_karras_trains_on_lognormal_sigma_and_tells_a_quarter_of_its_log() -> None:
    u = (np.arange(100_000) + 0.5) / 100_000
    level = Karras(p_mean=-0.7, p_std=1.3).at(u)
    log_sigma = level.sigma.log()
    assert float(log_sigma.mean()) == pytest.approx(-0.7, abs=1e-3)
    assert float(log_sigma.std()) == pytest.approx(1.3, abs=1e-3)
    torch.testing.assert_close(level.t, log_sigma / 4, rtol=1e-14, atol=0)
    assert (level.alpha == 1).all()


def test_flow_levels_are_a_straight_line_with_sd3_s_shift() -> None:
    level = Flow(shift=3).at([0.25, 0.5])
    assert level.sigma.tolist() == pytest.approx([0.5, 0.75])  # 3·0.25/(1 + 2·0.25), 3·0.5/(1 + 2·0.5)
    torch.testing.assert_close(level.alpha + level.sigma, torch.ones(2, dtype=torch.float64))
    assert level.t.tolist() == pytest.approx([500, 750])


def test_flow_logit_normal_draws_logits_of_its_mean_and_std() -> None:
    u = (np.arange(100_000) + 0.5) / 100_000
    sigma = Flow(density="logit_normal", mean=0.5, std=0.8).at(u).sigma
    logit = (sigma / (1 - sigma)).log()
    assert float(logit.mean()) == pytest.approx(0.5, abs=1e-3) and float(logit.std()) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize("schedule", [Discrete(), Discrete(betas="cosine", T=100), Karras(), Flow()])
def test_at_log_snr_is_exact(schedule: Schedule) -> None:
    log_snr = np.linspace(-6.5, 6.0, 9)
    level = schedule.at_log_snr(log_snr)
    np.testing.assert_allclose(level.log_snr, log_snr, atol=1e-12)


@pytest.mark.parametrize("betas", BETAS)
def test_at_log_snr_gives_back_the_trained_levels(betas: str) -> None:
    schedule = Discrete(betas=betas)
    t = np.array([0, 1, 17, 500, 998, 999])
    level, back = schedule.at_t(t), schedule.at_log_snr(schedule.log_snr[t])
    for ours, again in ((level.t, back.t), (level.alpha, back.alpha), (level.sigma, back.sigma)):
        torch.testing.assert_close(again, ours, rtol=1e-9, atol=1e-9)


def test_at_log_snr_outside_what_was_trained_is_refused() -> None:
    for value in (50.0, -50.0, math.nan):
        with pytest.raises(Error, match="trained from"):
            Discrete().at_log_snr(value)


def test_grids_of_integer_times_are_those_of_table_2_of_lin_et_al() -> None:
    schedule = Discrete()
    assert schedule.grid(10, "trailing").t.tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]
    assert schedule.grid(10, "leading").t.tolist() == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0, -1]
    assert schedule.grid(10, "linspace").t.tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0, -1]
    assert schedule.grid(3, "leading", last="first", offset=1).t.tolist() == [667, 334, 1, 0]
    assert schedule.grid(1, "linspace").t.tolist() == [999, -1]


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("T", [1, 10, 100, 1000])
def test_as_many_steps_as_T_are_every_t(spacing: str, T: int) -> None:
    levels = Discrete(T=T).grid(T, spacing)
    assert levels.t.tolist() == [*range(T - 1, -1, -1), -1]


@pytest.mark.parametrize("T", [7, 10, 100, 1000, 4000])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_every_number_of_steps_has_a_grid_of_distinct_falling_times(spacing: str, T: int) -> None:
    for steps in range(1, min(T, 300) + 1):
        t = Discrete(T=T).grid(steps, spacing).t
        assert len(t) == steps + 1 and (t.diff() < 0).all() and float(t[-2]) >= 0 and float(t[0]) <= T - 1
        assert spacing == "leading" or float(t[0]) == T - 1


schedules = st.one_of(
    st.builds(
        Discrete,
        betas=st.sampled_from(["linear", "scaled_linear", "sigmoid"]),
        T=st.integers(2, 4000),
        beta_start=st.floats(1e-5, 1e-3),
        beta_end=st.floats(2e-3, 0.05),
    ),
    st.builds(Discrete, betas=st.just("cosine"), T=st.integers(2, 4000)),
    st.builds(Karras, sigma_min=st.floats(1e-3, 0.1), sigma_max=st.floats(1, 200), rho=st.floats(1, 10)),
    st.builds(Flow, shift=st.floats(0.2, 8)),
)


@settings(max_examples=150, deadline=None)
@given(schedule=schedules, steps=st.integers(1, 60), pick=st.integers(0, 4), last=st.sampled_from(["clean", "first"]))
def test_every_grid_goes_from_noise_to_where_it_said(schedule: Schedule, steps: int, pick: int, last: str) -> None:
    spacing = schedule.spacings[pick % len(schedule.spacings)]
    if isinstance(schedule, Flow):
        last = "clean"
    if isinstance(schedule, Discrete) and steps > schedule.T:
        steps = schedule.T
    levels = schedule.grid(steps, spacing, last)
    assert len(levels) == steps + 1 and levels.t.dtype == torch.float64
    ratio = levels.sigma / levels.alpha
    still = last == "first" and spacing in ("leading", "linspace", "trailing")  # may end with a step of no length
    assert (ratio.diff()[: -1 if still else None] < 0).all() and ratio.diff()[-1] <= 0
    if last == "clean":
        assert float(levels.alpha[-1]) == 1 and float(levels.sigma[-1]) == 0
    elif isinstance(schedule, Discrete):
        assert float(levels.t[-1]) == 0 and float(levels.alpha[-1]) ** 2 == pytest.approx(schedule.alpha_bar[0])
    else:
        assert float(levels.sigma[-1]) == pytest.approx(schedule.sigma_min)
    if isinstance(schedule, Discrete) and spacing != "leading":
        assert float(levels.alpha[0]) ** 2 == pytest.approx(schedule.alpha_bar[-1])
    assert torch.isfinite(levels.alpha).all() and torch.isfinite(levels.sigma).all()


@pytest.mark.parametrize("steps", [1, 2, 3, 18, 80])
def test_the_karras_grid_is_equation_5(steps: int) -> None:
    n, low, high, rho = steps, 0.002, 80.0, 7.0
    hand = [
        (high ** (1 / rho) + (i / (n - 1) if n > 1 else 0) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(n)
    ] + [0.0]
    np.testing.assert_allclose(Karras().grid(steps).sigma, hand, rtol=1e-12)


def test_karras_spacing_of_a_discrete_schedule_is_equation_5_in_sigma_over_alpha() -> None:
    schedule = Discrete(betas="scaled_linear", beta_start=0.00085, beta_end=0.012)
    levels = schedule.grid(10, "karras")
    table = np.sqrt((1 - schedule.alpha_bar) / schedule.alpha_bar)
    hand = np.linspace(table[-1] ** (1 / 7), table[0] ** (1 / 7), 10) ** 7
    np.testing.assert_allclose((levels.sigma / levels.alpha)[:-1], hand, rtol=1e-10)
    torch.testing.assert_close(levels.alpha**2 + levels.sigma**2, torch.ones(11, dtype=torch.float64))


def test_log_snr_spacing_is_even_in_log_snr() -> None:
    for schedule in (Discrete(), Karras()):
        steps = schedule.grid(12, "log_snr", last="first").log_snr.diff()
        torch.testing.assert_close(steps, torch.full_like(steps, float(steps[0])), rtol=1e-9, atol=0)


def test_flow_grids_are_one_minus_i_over_n_and_diffusers_linspace() -> None:
    assert Flow().grid(4).sigma.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert Flow(shift=3).grid(2).sigma.tolist() == pytest.approx([1, 0.75, 0])
    assert Flow().grid(3, "linspace").sigma.tolist() == pytest.approx([1, 0.5005, 0.001, 0])


def test_a_walk_starts_from_noise_of_the_schedule_s_prior() -> None:
    for schedule, std in ((Discrete(), 1.0), (Karras(sigma_max=50), 50.0), (Flow(), 1.0)):
        assert float(schedule.prior_std(schedule.grid(5)[0])) == pytest.approx(std)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Discrete(betas="lineer"), "did you mean 'linear'"),
        (lambda: Discrete(T=0), "T 0"),
        (lambda: Discrete(T=10.0), "T 10.0"),
        (lambda: Discrete(beta_start=0.02, beta_end=0.01), "beta_start"),
        (lambda: Discrete(beta_end=1.0), "beta_end"),
        (lambda: Discrete(beta_start=math.nan), "beta_start"),
        (lambda: Discrete(betas="cosine", beta_end=0.03), "cosine"),
        (lambda: Discrete(T=1, zero_terminal_snr=True), "zero_terminal_snr"),
        (lambda: Karras(sigma_min=0), "sigma_min"),
        (lambda: Karras(sigma_min=3, sigma_max=2), "sigma_max"),
        (lambda: Karras(rho=0), "rho"),
        (lambda: Flow(shift=0), "shift"),
        (lambda: Flow(density="normal"), "density"),
        (lambda: Flow(mean=1.0), "logit_normal"),
        (lambda: Discrete().grid(0), "steps 0"),
        (lambda: Discrete().grid(1001), "T=1000"),
        (lambda: Discrete().grid(2.5), "steps 2.5"),
        (lambda: Discrete().grid(True), "steps True"),
        (lambda: Discrete().grid(10, "trayling"), "did you mean 'trailing'"),
        (lambda: Discrete().grid(10, last="frist"), "did you mean 'first'"),
        (lambda: Discrete().grid(10, "trailing", offset=1), "offset 1"),
        (lambda: Discrete().grid(1000, "leading", offset=1), "offset 1"),
        (lambda: Discrete().grid(10, "leading", offset=-1), "offset -1"),
        (lambda: Discrete(zero_terminal_snr=True).grid(10, "karras"), "zero_terminal_snr"),
        (lambda: Karras().grid(10, "leading"), "karras, log_snr"),
        (lambda: Flow().grid(10, "karras"), "trailing, linspace"),
        (lambda: Flow().grid(10, last="first"), "first"),
        (lambda: Discrete().at_t(1000), "0..999"),
        (lambda: Discrete().at_t([-2]), "0..999"),
    ],
)
def test_impossible_schedules_and_grids_are_refused(make: object, says: str) -> None:
    with pytest.raises(Error, match=says):
        make()  # type: ignore[operator]


def test_more_steps_than_T_are_possible_between_the_trained_times() -> None:
    assert len(Discrete(T=10).grid(50, "log_snr")) == 51


def test_a_schedule_is_its_configuration() -> None:
    adapter: TypeAdapter[Discrete | Karras | Flow] = TypeAdapter(Discrete | Karras | Flow)
    for schedule in (Discrete(betas="cosine", T=50), Karras(rho=5.0), Flow(shift=2.0)):
        assert adapter.validate_python(adapter.dump_python(schedule)) == schedule
        assert isinstance(schedule, Schedule)
    with pytest.raises(Error):
        adapter.validate_python({"kind": "discrete", "T": 0})


def test_schedules_and_names_do_not_import_torch() -> None:
    code = (
        "import sys, kuosan.diffusion.registry, kuosan.diffusion.schedule as s; s.Flow(); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"False\n"


def test_the_table_is_read_only_and_shared() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Discrete().alpha_bar[0] = 0.5
    assert Discrete().alpha_bar is Discrete().alpha_bar
    assert Discrete.spacings == SPACINGS
