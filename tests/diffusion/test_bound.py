"""The variational bound: each term against distributions not ours, the whole in closed form on Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import oracle
from kuosan.diffusion.denoiser import PREDICTIONS, Denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.loss import (
    Chain,
    bins_nats,
    bound_loss,
    chain,
    discrete_chain,
    hybrid_loss,
    prior_bits,
    simple_loss,
    step_bits,
    weight,
)
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error

SMALL = Discrete(T=12, beta_start=0.003, beta_end=0.4)
ROOMY = (SMALL, Discrete(betas="cosine", T=7), Discrete(T=6, beta_start=0.01, beta_end=0.5, zero_terminal_snr=True))
VARIANCES = torch.tensor([0.02, 0.3, 1.0, 2.5], dtype=torch.float64)  # of the Gaussian data's four dimensions


def test_the_decoder_is_the_exact_probability_of_a_bin_far_into_both_tails() -> None:
    mpmath.mp.dps = 50
    grid = [
        (k, mean, std) for k in (0, 1, 128, 254, 255) for mean in (-30, -1.2, 0.004, 1, 100) for std in (0.001, 0.02, 3)
    ]
    for k, mean, std in grid:
        x0 = torch.tensor([k / 127.5 - 1], dtype=torch.float64)
        at = torch.tensor([float(mean)], dtype=torch.float64, requires_grad=True)
        ours = bins_nats(x0, at, torch.tensor([2 * math.log(std)], dtype=torch.float64))
        low = -mpmath.inf if k == 0 else (mpmath.mpf(float(x0)) - mpmath.mpf(1) / 255 - mean) / std
        high = mpmath.inf if k == 255 else (mpmath.mpf(float(x0)) + mpmath.mpf(1) / 255 - mean) / std
        if low + high > 0:
            low, high = -high, -low
        known = float(-mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low)))
        assert float(ours.detach()) == pytest.approx(known, rel=1e-10, abs=1e-10), (k, mean, std)
        ours.sum().backward()
        assert at.grad is not None and bool(torch.isfinite(at.grad).all()), (k, mean, std)


def test_the_decoder_s_256_bins_make_up_one() -> None:
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, std in ((0.0, 0.01), (0.97, 0.3), (-4.0, 2.0)):
        nats = bins_nats(values, torch.full_like(values, mean), torch.full_like(values, 2 * math.log(std)))
        assert float((-nats).exp().sum()) == pytest.approx(1, abs=1e-12)


def textbook(schedule: Discrete, t: int, x0: Tensor, x0_hat: Tensor, x_t: Tensor, log_var: Tensor) -> Tensor:
    """KL(q(x_{t-1} | x_t, x0) || N(mean(x_t, x0_hat), var)) by Ho et al. 2020, eq. 6-7, and torch.distributions."""
    ab = schedule.alpha_bar
    beta = 1 - ab[t] / ab[t - 1]
    mean = lambda data: (  # noqa: E731
        math.sqrt(ab[t - 1]) * beta / (1 - ab[t]) * data + math.sqrt(1 - beta) * (1 - ab[t - 1]) / (1 - ab[t]) * x_t
    )
    q = Normal(mean(x0), math.sqrt(beta * (1 - ab[t - 1]) / (1 - ab[t])))
    nats: Tensor = kl_divergence(q, Normal(mean(x0_hat), (log_var / 2).exp()))
    return nats.flatten(1).mean(1) / math.log(2)


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
@pytest.mark.parametrize("schedule", ROOMY, ids=repr)
def test_each_step_s_term_is_the_kl_of_two_gaussians(schedule: Discrete, variance: str) -> None:
    x0, x0_hat, x_t, frac = torch.randn(
        4, schedule.T - 1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    steps, ab, rows = discrete_chain(schedule), schedule.alpha_bar, torch.arange(1, schedule.T)
    bits = step_bits(steps, rows, x0, x0_hat, variance=variance, frac=frac if variance == "learned" else None)
    for row in rows.tolist():
        beta = 1 - ab[row] / ab[row - 1]
        posterior = beta * (1 - ab[row - 1]) / (1 - ab[row])
        one = slice(row - 1, row)
        mixed = frac[one] * math.log(beta) + (1 - frac[one]) * math.log(posterior)  # Nichol & Dhariwal 2021, eq. 15
        log_var = {"posterior": mixed * 0 + math.log(posterior), "beta": mixed * 0 + math.log(beta), "learned": mixed}
        known = textbook(schedule, row, x0[one], x0_hat[one], x_t[one], log_var[variance])
        torch.testing.assert_close(bits[one], known, rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore")  # diffusers' own
@pytest.mark.parametrize(
    "ours, theirs", [("posterior", "fixed_small"), ("beta", "fixed_large"), ("learned", "learned_range")]
)
def test_the_three_variances_are_diffusers(ours: str, theirs: str) -> None:
    from diffusers import DDPMScheduler

    scheduler, steps = DDPMScheduler(1000, variance_type=theirs), discrete_chain(Discrete())
    frac = torch.tensor([[0.3]], dtype=torch.float64)
    for t in (1, 2, 500, 999):
        known = scheduler._get_variance(t, predicted_variance=2 * frac - 1 if ours == "learned" else None)
        known = known if ours == "learned" else known.log()
        log_var = steps.log_var(torch.tensor([t]), ours, frac, frac)
        assert float(log_var) == pytest.approx(float(known), abs=2e-4), t  # their tables are float32


def test_the_last_step_s_fixed_variance_is_the_published_one() -> None:
    """beta~_1 for both (Ho et al. 2020's code; Nichol & Dhariwal 2021's), and the learned one reaches up to beta_0."""
    steps, zero, one = discrete_chain(SMALL), torch.tensor([0]), torch.ones(1, 1, dtype=torch.float64)
    ab = SMALL.alpha_bar
    published = math.log((1 - ab[1] / ab[0]) * (1 - ab[0]) / (1 - ab[1]))
    for variance in ("posterior", "beta"):
        assert float(steps.log_var(zero, variance, None, one)) == pytest.approx(published)
    assert float(steps.log_var(zero, "learned", one * 0, one)) == pytest.approx(published)
    assert float(steps.log_var(zero, "learned", one, one)) == pytest.approx(math.log(0.003))


def corners(denoise: Denoiser, level: Level) -> tuple[Tensor, Tensor]:
    """x0 and its prediction at x0 = ±std, eps = ±1: the mean over these four of what is quadratic in both is exact."""
    std = VARIANCES.sqrt()
    x0 = torch.stack([std, std, -std, -std]).reshape(4, 4, 1, 1)
    eps = torch.tensor([1.0, -1, 1, -1], dtype=torch.float64).reshape(4, 1, 1, 1).expand_as(x0)
    return x0, denoise(level.add(x0, eps), level).x0


def exact_bound(steps: Chain, variance: str, optimal: bool = False) -> float:
    """E[bound] of the exact denoiser of N(0, diag VARIANCES), continuous decoder, bits a dimension."""
    denoise = oracle.gaussian(torch.zeros(4, 1, 1), torch.diag(VARIANCES))
    total = 0.0
    for row, level in enumerate(steps.now):
        x0, x0_hat = corners(denoise, level)
        frac = None
        if optimal:  # the reverse step's own variance: beta~ + gain² var(x0 | x), the decoder's without beta~
            left = VARIANCES * level.sigma**2 / (level.alpha**2 * VARIANCES + level.sigma**2)
            own = steps.gain[row] ** 2 * left + (steps.log_posterior[row].exp() if row else 0.0)
            span = steps.log_beta[row] - steps.log_posterior[row]
            frac = ((own.log() - steps.log_posterior[row]) / span).reshape(1, 4, 1, 1).expand_as(x0)
        rows = torch.full((4,), row)
        total += float(step_bits(steps, rows, x0, x0_hat, variance=variance, frac=frac, decoder="density").mean())
    return total + float(prior_bits(steps, x0).mean())


def joint_bound(steps: Chain, variance: str) -> float:
    """The same from whole joint Gaussians: KL(q(x_0..x_T) || p(x_0..x_T)) + H(x_0), each dimension apart."""
    n, bits = len(steps), 0.0
    alpha, sigma = steps.now.alpha.numpy(), steps.now.sigma.numpy()
    below = [(1.0, 0.0), *zip(alpha[:-1], sigma[:-1])]
    log_var = steps.log_beta if variance == "beta" else steps.log_posterior
    var = np.exp(log_var.numpy().copy())
    if variance == "beta" and steps.published:
        var[0] = math.exp(float(steps.log_posterior[0]))
    for data in VARIANCES.tolist():
        q, p = np.zeros((n + 1, n + 1)), np.zeros((n + 1, n + 1))
        q[0, 0] = data
        for k in range(n):  # forward: x_now = r x_to + noise
            r = alpha[k] / below[k][0]
            q[k + 1, : k + 1] = q[: k + 1, k + 1] = r * q[k, : k + 1]
            q[k + 1, k + 1] = r**2 * q[k, k] + sigma[k] ** 2 - (r * below[k][1]) ** 2
        p[n, n] = float(steps.prior_std) ** 2
        for k in reversed(range(n)):  # reverse: x_to = m x_now + noise
            (a, s), s2 = below[k], sigma[k] ** 2 - (alpha[k] / below[k][0] * below[k][1]) ** 2
            gain = alpha[k] * data / (alpha[k] ** 2 * data + sigma[k] ** 2)
            m = a * s2 / sigma[k] ** 2 * gain + alpha[k] / a * s**2 / sigma[k] ** 2
            p[k, k + 1 :] = p[k + 1 :, k] = m * p[k + 1, k + 1 :]
            p[k, k] = m**2 * p[k + 1, k + 1] + var[k]
        (_, log_q), (_, log_p) = np.linalg.slogdet(q), np.linalg.slogdet(p)
        kl = 0.5 * (np.trace(np.linalg.solve(p, q)) - n - 1 + log_p - log_q)
        bits += (kl + 0.5 * math.log(2 * math.pi * math.e * data)) / math.log(2)
    return bits / len(VARIANCES)


def entropy(steps: Chain) -> float:
    """H(x0) + KL(q(x_T) || prior) in bits a dimension: what no chain with this prior can beat."""
    last = steps.now[-1]
    ratio = (last.alpha**2 * VARIANCES + last.sigma**2) / steps.prior_std**2
    nats = 0.5 * (2 * math.pi * math.e * VARIANCES).log() + 0.5 * (ratio - 1 - ratio.log())
    return float(nats.mean()) / math.log(2)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("schedule", ROOMY[:2], ids=repr)
def test_on_gaussian_data_the_bound_is_its_closed_form(schedule: Discrete, variance: str) -> None:
    steps = discrete_chain(schedule)
    ours = exact_bound(steps, variance)
    assert ours == pytest.approx(joint_bound(steps, variance), abs=1e-8)
    assert ours > entropy(steps)


@pytest.mark.parametrize("T", [2, 5, 40])
def test_with_the_reverse_steps_own_variance_the_bound_is_the_entropy_at_any_T(T: int) -> None:
    steps = discrete_chain(Discrete(T=T, beta_start=0.02, beta_end=0.5))
    assert exact_bound(steps, "learned", optimal=True) == pytest.approx(entropy(steps), abs=1e-9)


GRIDS: dict[str, Callable[[int], Chain]] = {
    "discrete": lambda n: refined(Discrete(), n),
    "karras": lambda n: refined(Karras(), n),
}


def refined(schedule: Discrete | Karras, n: int) -> Chain:
    levels = schedule.grid(n, "log_snr")
    return chain(levels, schedule.prior_std(levels[0]), published=False)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_bound_falls_to_the_entropy_as_the_walk_gets_finer(kind: str, variance: str) -> None:
    """With steps even in log SNR the gap shrinks as 1/N."""
    gaps = [exact_bound(made, variance) - entropy(made) for made in (GRIDS[kind](n) for n in (100, 200, 400, 1600))]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1) and gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)
    assert 0 < gaps[3] < 0.05


def test_a_walk_of_a_flow_from_pure_noise_has_no_prior_term() -> None:
    levels = Flow().grid(8)
    steps = chain(levels, Flow().prior_std(levels[0]), published=False)
    x0 = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(prior_bits(steps, x0).abs().max()) == 0
    assert exact_bound(steps, "posterior") == pytest.approx(joint_bound(steps, "posterior"), abs=1e-8)


def test_the_prior_s_term_is_the_kl_of_two_gaussians() -> None:
    steps = discrete_chain(SMALL)
    x0 = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ab = SMALL.alpha_bar[-1]
    known = kl_divergence(Normal(math.sqrt(ab) * x0, math.sqrt(1 - ab)), Normal(torch.zeros_like(x0), 1.0))
    torch.testing.assert_close(prior_bits(steps, x0), known.flatten(1).mean(1) / math.log(2))


def test_walks_that_bound_nothing_are_refused() -> None:
    with pytest.raises(Error, match="last 'clean'"):
        chain(Discrete().grid(10, last="first"), torch.tensor(1.0))
    levels = Discrete().at_t([5, 5, -1])
    with pytest.raises(Error, match="take noise away"):
        chain(levels, torch.tensor(1.0))
    with pytest.raises(Error, match="predicts no variance"):
        step_bits(discrete_chain(SMALL), torch.tensor([3]), torch.zeros(1, 2), torch.zeros(1, 2), variance="learned")


def two_headed(x: Tensor, t: Tensor) -> Tensor:
    """A network with a mean and a variance, both wrong."""
    return torch.cat([0.3 * x, torch.tanh(x + 0.1 * t.reshape(-1, 1, 1, 1))], 1)


def drawn(n: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(4)
    x0 = torch.randint(0, 256, (n, 2, 3, 3), generator=g).double() / 127.5 - 1
    return x0, torch.randn(n, 2, 3, 3, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["x0", "v", "eps"])
def test_the_bound_as_a_loss_is_T_times_its_terms(prediction: str) -> None:
    x0, eps = drawn(SMALL.T)
    steps, level = discrete_chain(SMALL), SMALL.at_t(range(SMALL.T))
    learned: dict[str, Any] = {"learned_variance": True}
    loss = bound_loss(two_headed, prediction, x0, level, eps, steps=steps, **learned)
    from kuosan.diffusion.denoiser import denoiser

    x0_hat, frac = denoiser(two_headed, prediction, learned_variance=True)(level.add(x0, eps), level)
    known = step_bits(steps, torch.arange(SMALL.T), x0, x0_hat, variance="learned", frac=frac)
    torch.testing.assert_close(loss, SMALL.T * known, rtol=1e-10, atol=0)
    one = bound_loss(two_headed, prediction, x0[:3], SMALL.at_t(4), eps[:3], steps=steps, **learned)
    torch.testing.assert_close(
        one, bound_loss(two_headed, prediction, x0[:3], SMALL.at_t([4] * 3), eps[:3], steps=steps, **learned)
    )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_weight_of_the_bound_makes_the_simple_loss_the_bound(prediction: str) -> None:
    """With beta~ the KLs in nats are the simple loss with weight vlb, whatever is predicted, t = 0 aside."""
    x0, eps = drawn(SMALL.T - 1)
    level, network = SMALL.at_t(range(1, SMALL.T)), lambda x, t: 0.4 * x
    simple = simple_loss(network, prediction, x0, level, eps, weight_name="vlb", schedule=SMALL)
    bits = bound_loss(network, prediction, x0, level, eps, steps=discrete_chain(SMALL))
    torch.testing.assert_close(simple / math.log(2), bits, rtol=1e-9, atol=0)


def test_the_bound_s_weight_at_the_last_step_is_the_continuous_decoder_s() -> None:
    x0, _ = drawn(1)
    level, steps, zero = SMALL.at_t([0]), discrete_chain(SMALL), torch.tensor([0])
    x0_hat = x0 + 0.01
    shift = [step_bits(steps, zero, x0, hat, decoder="density") for hat in (x0, x0_hat)]
    w = float(weight("vlb", level, "x0", schedule=SMALL))
    assert float(shift[1] - shift[0]) * SMALL.T == pytest.approx(w * 0.01**2 / math.log(2), rel=1e-9)


def test_the_hybrid_s_bound_moves_the_variance_and_not_the_mean() -> None:
    x0, eps = drawn(SMALL.T)
    steps, level = discrete_chain(SMALL), SMALL.at_t(range(SMALL.T))
    mean, var = (torch.zeros_like(x0, requires_grad=True) for _ in range(2))
    network = lambda x, t: torch.cat([mean + 0.3 * x, var + 0.1], 1)  # noqa: E731

    def slopes(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss.sum(), (mean, var))

    hybrid = hybrid_loss(network, "v", x0, level, eps, steps=steps, vlb_weight=0.2, weight_name="min_snr")
    simple = simple_loss(network, "v", x0, level, eps, learned_variance=True, weight_name="min_snr")
    bound = bound_loss(network, "v", x0, level, eps, steps=steps, learned_variance=True)
    torch.testing.assert_close(hybrid, simple + 0.2 * bound)
    of_hybrid, of_simple, of_bound = slopes(hybrid), slopes(simple), slopes(bound)
    assert float(of_simple[1].abs().max()) == 0 and float(of_bound[0].abs().min()) > 0
    torch.testing.assert_close(of_hybrid[0], of_simple[0])
    torch.testing.assert_close(of_hybrid[1], 0.2 * of_bound[1])


def test_float32_terms_and_slopes_are_finite_over_ddpm_s_thousand_levels() -> None:
    schedule = Discrete()
    x0, eps = (values[:1].float().expand(1000, 2, 3, 3) for values in drawn(1))
    for scale in (0.0, 1.0, 50.0):
        out = torch.full((1000, 4, 3, 3), scale, requires_grad=True)
        level = schedule.at_t(range(1000))
        loss = bound_loss(
            lambda x, t, out=out: out, "eps", x0, level, eps, steps=discrete_chain(schedule), learned_variance=True
        )
        loss.sum().backward()
        assert loss.dtype == torch.float32 and bool(torch.isfinite(loss).all())
        assert out.grad is not None and bool(torch.isfinite(out.grad).all())
