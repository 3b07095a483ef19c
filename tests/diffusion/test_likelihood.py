"""Both likelihoods in closed form on Gaussian data: any schedule, any prediction, and honest errors."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn
from torch.distributions import Normal

import oracle
from kuosan.diffusion.denoiser import PREDICTIONS, Denoiser, Prediction, denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.likelihood import (
    BIN,
    dequantised,
    log_density,
    ode_bits,
    probe_vectors,
    span,
    strata,
    variational_bound,
)
from kuosan.diffusion.loss import chain, discrete_chain, step_bits
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error

SCHEDULES = {
    "linear": Discrete(),
    "cosine": Discrete(betas="cosine"),
    "zero terminal SNR": Discrete(betas="scaled_linear", zero_terminal_snr=True),
    "karras": Karras(),
    "flow": Flow(),
    "shifted flow": Flow(shift=3.0),
}
VAR = torch.tensor([0.02, 0.3, 1.0, 2.5, 60.0], dtype=torch.float64)
MEAN = 0.2


def data(n: int = 3, seed: int = 0) -> Tensor:
    z = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (MEAN + z * VAR.sqrt()).reshape(n, 5, 1, 1)


def exact() -> Denoiser:
    return oracle.gaussian(torch.full((5, 1, 1), MEAN, dtype=torch.float64), torch.diag(VAR))


def truth(schedule: Any, y: Tensor, first: float | None = None) -> Tensor:
    """log p(y) of the ODE with the exact denoiser: a linear map of N(0, prior) from the noisiest level to the first."""
    ends, noisiest = span(schedule, first), schedule.grid(1)[0]
    s_first = 1 / ends.first
    last_var = noisiest.alpha**2 * VAR + noisiest.sigma**2
    prior = float(schedule.prior_std(noisiest))
    # each quantile of the noisy marginal goes to the same quantile of the clean one
    per_quantile = (VAR + s_first**2).sqrt() / last_var.sqrt()
    mean = MEAN - per_quantile * noisiest.alpha * MEAN
    return Normal(mean, per_quantile * prior).log_prob(y.flatten(1)).sum(1)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_ode_s_density_is_the_closed_form_on_gaussian_data(name: str) -> None:
    schedule, y = SCHEDULES[name], data()
    with torch.no_grad():  # a caller's, as in sampling
        got = log_density(exact(), schedule, y, ids=range(3), steps=80, probe="exact")
    torch.testing.assert_close(got[:, 0], truth(schedule, y), rtol=0, atol=3e-5)


def test_its_error_falls_with_the_fourth_power_of_the_steps() -> None:
    for name in ("linear", "zero terminal SNR", "flow"):
        schedule = SCHEDULES[name]
        known = truth(schedule, data())
        errors = [
            float(
                (log_density(exact(), schedule, data(), ids=range(3), steps=n, probe="exact")[:, 0] - known).abs().max()
            )
            for n in (16, 32, 64)
        ]
        for coarse, fine in pairwise(errors):
            assert 3.5 < math.log2(coarse / fine) < 4.7, (name, errors)


def test_with_ever_less_first_noise_it_is_the_data_s_own_density() -> None:
    own = Normal(MEAN, VAR.sqrt()).log_prob(data().flatten(1)).sum(1)
    off = [
        float(
            (log_density(exact(), Flow(), data(), ids=range(3), steps=100, probe="exact", first=s)[:, 0] - own)
            .abs()
            .max()
        )
        for s in (0.1, 0.01, 1e-3)
    ]
    assert off[0] > 0.1 and off[1] < 0.02 and off[2] < 5e-4


@pytest.mark.parametrize("prediction", [name for name in PREDICTIONS if name != "eps"])
def test_what_the_network_predicts_makes_no_difference(prediction: str) -> None:
    """To the float32 timestep's digits, through networks and denoisers as in use."""
    for schedule in (Discrete(), Karras(), Flow()):
        network = oracle.network(exact(), prediction, schedule)
        got = log_density(denoiser(network, prediction), schedule, data(), ids=range(3), steps=25, probe="exact")
        torch.testing.assert_close(got[:, 0], truth(schedule, data()), rtol=0, atol=5e-3)


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_estimate_the_trace_without_bias(probe: str) -> None:
    """On correlated data, where v·J·v differs from the trace; Rademacher probes know a diagonal J exactly."""
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    mixed = oracle.gaussian(torch.zeros(5, 1, 1, dtype=torch.float64), turn @ torch.diag(VAR) @ turn.T)
    y, options = data(2), {"steps": 12, "seed": 5}
    known = log_density(mixed, Discrete(), y, ids=[7, 8], probe="exact", **options)  # type: ignore[arg-type]
    many = log_density(mixed, Discrete(), y, ids=[7, 8], probe=probe, probes=120, **options)  # type: ignore[arg-type]
    error = many.std(1) / math.sqrt(120)
    assert bool(((many.mean(1) - known[:, 0]).abs() < 4 * error).all()) and float(error.min()) > 0
    if probe == "rademacher":
        one = log_density(exact(), Discrete(), y, ids=[7, 8], **options)  # type: ignore[arg-type]
        exactly = log_density(exact(), Discrete(), y, ids=[7, 8], probe="exact", **options)  # type: ignore[arg-type]
        torch.testing.assert_close(one, exactly, rtol=0, atol=1e-9)


def test_an_image_s_numbers_do_not_depend_on_its_batch() -> None:
    y, steps = data(4), discrete_chain(Discrete(T=50))
    whole = log_density(exact(), Flow(), y, ids=[3, 1, 4, 9], steps=5, probe="gaussian", probes=2)
    part = log_density(exact(), Flow(), y[1:3], ids=[1, 4], steps=5, probe="gaussian", probes=2)
    torch.testing.assert_close(whole[1:3], part, rtol=1e-12, atol=0)
    assert whole[0, 0] != whole[0, 1]
    bound = variational_bound(exact(), steps, y, ids=[3, 1, 4, 9], evaluations=9)
    again = variational_bound(exact(), steps, y[1:3], ids=[1, 4], evaluations=9)
    torch.testing.assert_close(bound.total[1:3], again.total, rtol=1e-12, atol=0)
    assert not torch.equal(dequantised(y, ids=[0, 1, 2, 3])[0], dequantised(y, ids=[1, 0, 2, 3])[0])


def test_weights_get_no_gradient_and_gradients_stay_off_for_the_caller() -> None:
    network = nn.Conv2d(2, 2, 3, padding=1)
    model = denoiser(lambda x, t: network(x), "v")
    with torch.no_grad():
        log_density(model, Discrete(), torch.zeros(2, 2, 4, 4), ids=[0, 1], steps=2)
        assert not torch.is_grad_enabled()
    assert all(p.grad is None for p in network.parameters())


def test_dequantised_images_spread_evenly_over_their_bins() -> None:
    x0 = torch.randint(0, 256, (4, 3, 20, 20), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    noise = (dequantised(x0, ids=range(4)) - x0) / BIN + 0.5
    assert stats.kstest(noise.flatten().numpy(), "uniform").pvalue > 1e-3
    assert dequantised(x0, ids=range(4)).dtype == torch.float32


def test_bits_of_a_density_over_8_bit_images_are_the_bins_probability_s() -> None:
    """Uniform over the 256 bins is 8 bits; and the bound E[log p] <= log of the bin's probability, by quadrature."""
    whole = 256 * BIN
    assert float(ode_bits(torch.tensor([-12 * math.log(whole)]), 12)) == pytest.approx(8)
    p = stats.norm(0.1, 0.004)
    within = integrate.quad(lambda y: p.logpdf(y) / BIN, 0.1, 0.1 + BIN)[0]
    chance = -math.log2(p.cdf(0.1 + BIN) - p.cdf(0.1))
    assert float(ode_bits(torch.tensor([within]), 1)) >= chance


@pytest.mark.parametrize(
    "steps, evaluations", [(1000, 50), (1000, 999), (12, 12), (12, None), (1000, 10), (10, 2), (4, 3), (7, 6)]
)
def test_strata_are_all_rows_each_once(steps: int, evaluations: int | None) -> None:
    first, size = strata(steps, evaluations)
    assert len(first) == min(steps, evaluations or steps) and size.min() >= 1
    assert np.concatenate([np.arange(a, a + n) for a, n in zip(first, size)]).tolist() == list(range(steps))
    assert size[0] == 1, "the decoder stands alone"


def biased(x: Tensor, level: Level) -> Prediction:
    """A denoiser that is wrong differently at each level."""
    return Prediction(0.5 * x + 0.1 * torch.sin(level.t).reshape(-1, 1, 1, 1), torch.sigmoid(x))


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_drawn_rows_estimate_the_whole_bound_without_bias_and_know_their_error(variance: str) -> None:
    schedule = Discrete(T=100, beta_start=0.001, beta_end=0.15)
    steps, n = discrete_chain(schedule), 160
    x0 = (torch.randint(0, 256, (n, 1, 2, 2), generator=torch.Generator().manual_seed(2)) / 127.5 - 1).double()
    options: dict[str, Any] = {"variance": variance}
    whole = variational_bound(biased, steps, x0, ids=range(n), seed=1, **options).total
    drawn = variational_bound(biased, steps, x0, ids=range(n), seed=2, evaluations=10, **options)
    assert drawn.bits.shape == (n, 10)
    off = drawn.total - whole
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(n)
    halves = [
        variational_bound(biased, steps, x0[:50], ids=range(50 * k, 50 * k + 50), seed=3, evaluations=10, **options)
        for k in range(8)
    ]
    means = torch.stack([half.total.mean() for half in halves])  # of the same images: rows and noise alone
    own = float(drawn.total.std()) / math.sqrt(50)
    assert float(means.std()) < 1.8 * own


def test_the_whole_bound_is_each_row_s_term_with_the_keyed_noise() -> None:
    steps = discrete_chain(Discrete(T=6, beta_start=0.01, beta_end=0.4))
    x0 = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    terms = variational_bound(biased, steps, x0, ids=[5, 6], seed=4, variance="learned")
    from kuosan import seeds

    for row in range(6):
        eps = seeds.normal([(4, "likelihood/noise", row, id) for id in (5, 6)], (1, 2, 2))
        level = steps.now[torch.tensor([row, row])]
        hat = biased(level.add(x0, eps), level)
        known = step_bits(steps, torch.tensor([row, row]), x0, hat.x0, variance="learned", frac=hat.frac)
        torch.testing.assert_close(terms.bits[:, row], known)
    assert terms.size.tolist() == [1] * 6 and terms.first.tolist() == list(range(6))


def test_on_gaussian_images_the_bound_agrees_with_the_data_s_own_bits() -> None:
    """8-bit images of independent Gaussian pixels: by both estimates, the exact denoiser knows their distribution."""
    std = 0.2  # none reaches the open bins at the edges
    draws = np.random.Generator(np.random.Philox(3)).normal(0, std, (300, 1, 4, 4))
    x0 = torch.from_numpy(np.clip(np.rint((draws + 1) * 127.5), 0, 255) / 127.5 - 1)
    denoise = oracle.gaussian(torch.zeros(1, 4, 4, dtype=torch.float64), torch.tensor(std**2))
    edges = np.concatenate([[-np.inf], (np.arange(255) + 0.5) / 127.5 - 1, [np.inf]])
    chances = np.diff(stats.norm.cdf(edges, 0, std))
    surprise = -np.log2(chances)[np.rint((x0.numpy() + 1) * 127.5).astype(int)].mean((1, 2, 3))
    levels = Discrete().at_t(range(999, -2, -1))
    gaps = [
        variational_bound(denoise, steps, x0, ids=range(300), evaluations=40, variance="beta").total.numpy() - surprise
        for steps in (chain(levels, torch.tensor(1.0), published=False), discrete_chain(Discrete()))
    ]
    error = gaps[0].std() / math.sqrt(300)
    assert error < 0.05 and abs(gaps[0].mean()) < 0.02 + 3 * error
    dearer = gaps[1] - gaps[0]  # the published decoder's variance is about half of what the first level leaves open
    assert abs(dearer.mean() - 0.164) < 0.03 + 3 * dearer.std() / math.sqrt(300)
    y = dequantised(x0, ids=range(300))
    log_p = log_density(denoise, Discrete(), y, ids=range(300), steps=30)[:, 0]
    difference = ode_bits(log_p, 16).numpy() - surprise
    assert abs(difference.mean()) < 0.02


def test_settings_that_do_not_go_together_are_refused() -> None:
    y = data(1)
    for options, says in (
        ({"probe": "rademacherr"}, "did you mean 'rademacher'"),
        ({"probe": "exact", "probes": 2}, "draws none"),
        ({"steps": 0}, "at least 1"),
        ({"first": 1e-9}, "this schedule was trained from"),
        ({"first": -1.0}, "above 0"),
        ({"first": 1e9}, "below the noisiest"),
    ):
        with pytest.raises(Error, match=says):
            log_density(exact(), Discrete(), y, ids=[0], **options)  # type: ignore[arg-type]
    with pytest.raises(Error, match="at most 4096"):
        log_density(exact(), Discrete(), torch.zeros(1, 5000), ids=[0], probe="exact")
    with pytest.raises(Error, match="carries no gradient"):
        log_density(lambda x, level: Prediction(x.detach()), Discrete(), y, ids=[0])
    with pytest.raises(Error, match="evaluations 1: at least 2"):
        strata(10, 1)


def test_probes_are_of_their_kind() -> None:
    y = torch.zeros(2, 3, 50, 50)
    signs = probe_vectors(y, [0, 1], 0, "rademacher", 2)
    assert signs is not None and signs.shape == (2, 2, 3, 50, 50)
    assert sorted(signs.unique().tolist()) == [-1.0, 1.0] and abs(float(signs.mean())) < 0.03
    normal = probe_vectors(y, [0, 1], 0, "gaussian", 1)
    assert normal is not None and stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    assert probe_vectors(y, [0, 1], 0, "exact", 1) is None
