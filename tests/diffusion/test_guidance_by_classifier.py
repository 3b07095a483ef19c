"""Classifier guidance: with Bayes' own classifier it is conditioning, and it is both of the paper's algorithms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.diffusion.denoiser import PREDICTIONS, Denoiser, Prediction, denoiser
from kuosan.diffusion.guidance import LogProb, classifier, gradient, log_prob
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import ddim, ddpm
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error
from oracle import gaussian, level_at, mixture, network

SHAPE = (4, 3, 3)  # a latent image: nothing assumes three channels
STD = 0.4
SCHEDULES = {"linear": Discrete(), "cosine": Discrete(betas="cosine"), "karras": Karras(), "flow": Flow()}
INNER = (0.15, 0.5, 0.85)  # where on a schedule


def noise(name: str, n: int) -> Tensor:
    return seeds.normal([(0, name, 0, i) for i in range(n)], SHAPE).double()


MEANS = noise("means", 3) * 0.1  # they overlap: the class is in doubt at every level
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
LABEL = torch.tensor([2, 0, 1, 1])
ALL: Denoiser = mixture(MEANS, STD, WEIGHTS)


def of_class(x: Tensor, level: Level) -> Prediction:
    """E[x0 | x_t, y]: each image's own blob alone."""
    parts = [
        gaussian(MEANS[y], STD**2)(x[i : i + 1], level if level.t.ndim == 0 else level[i : i + 1]).x0
        for i, y in enumerate(LABEL.tolist())
    ]
    return Prediction(torch.cat(parts))


def logits(x: Tensor, level: Level) -> Tensor:
    """log p(y, x_t) up to a constant: (B, 3), by the blobs' densities N(alpha·mean, alpha²·std² + sigma²)."""
    alpha, var = (c.reshape(-1, 1, 1, 1, 1) for c in (level.alpha, level.alpha**2 * STD**2 + level.sigma**2))
    squared = (x[:, None] - alpha * MEANS) ** 2 / (2 * var)
    return WEIGHTS.log() - squared.flatten(2).sum(2)


def bayes(x: Tensor, level: Level) -> Tensor:
    return logits(x, level).log_softmax(1)[torch.arange(len(x)), LABEL]


def clock_network(schedule: Discrete | Karras | Flow):
    """Bayes' classifier as a network trained on a schedule: (x, t) -> logits."""

    def forward(x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.float32 and t.shape in ((1,), (len(x),))
        level = level_at(schedule, t)
        return logits(x, level if len(level) == len(x) else level[0])

    return forward


def noisy(level: Level) -> Tensor:
    return level.add(MEANS[LABEL] + STD * noise("data", 4), noise("eps", 4))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_bayes_own_classifier_turns_the_unconditional_denoiser_into_the_conditional_one(
    name: str, prediction: str
) -> None:
    schedule = SCHEDULES[name]
    unconditional = denoiser(network(ALL, prediction, schedule), prediction)
    for level in schedule.at(INNER):
        level = level_at(schedule, level.t.float()[None])[0]  # as the network is told
        x = noisy(level)
        guided = classifier(unconditional, bayes, 1.0)(x, level).x0
        torch.testing.assert_close(guided, of_class(x, level).x0, rtol=1e-9, atol=1e-9)
        assert float((unconditional(x, level).x0 - guided).abs().max()) > 1e-3  # there was something to do


def test_a_batch_of_levels_is_guided_each_at_its_own_and_pure_noise_not_at_all() -> None:
    level = Level.of([0.0, 0.0, 0.0, 0.0], [0.99, 0.7, 0.3, 0.0], [0.2, 0.7, 0.9, 1.0])
    x = noisy(level)
    out = classifier(ALL, bayes, 1.0)(x, level).x0
    torch.testing.assert_close(out[:3], of_class(x, level).x0[:3], rtol=1e-9, atol=1e-9)
    assert torch.equal(out[3], ALL(x, level).x0[3])


def test_pure_noise_is_left_alone_and_the_classifier_not_asked() -> None:
    def never(x: Tensor, level: Level) -> Tensor:
        raise AssertionError("asked")

    level, x = Level.of(1000.0, 0.0, 1.0), noise("x", 4)
    assert torch.equal(classifier(ALL, never, 3.0)(x, level).x0, ALL(x, level).x0)


def test_scale_zero_is_the_denoiser_itself() -> None:
    assert classifier(ALL, bayes, 0.0) is ALL


def test_the_gradient_is_found_under_no_grad_and_leaves_x_alone_and_the_learned_variance_passes() -> None:
    level = Discrete().at_t(300)
    x = noisy(level).float()
    version, frac = x._version, torch.full_like(x, 0.3)

    def learned(x: Tensor, level: Level) -> Prediction:
        return Prediction(ALL(x, level).x0, frac)

    with torch.no_grad():
        out = classifier(learned, bayes, 2.0)(x, level)
    assert out.frac is frac and out.x0.dtype == torch.float32
    assert not out.x0.requires_grad and not x.requires_grad and x._version == version
    wanted = ALL(x, level).x0 + 2 * (of_class(x, level).x0 - ALL(x, level).x0)
    torch.testing.assert_close(out.x0, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_ddim_guided_is_the_papers_algorithm_2(scale: float) -> None:
    """Dhariwal & Nichol 2021, literally: eps_hat = eps - sqrt(1 - alpha_bar)·s·grad, then DDIM's step."""
    levels = Discrete().grid(10)
    x = start = noise("start", 4)
    for now, to in pairwise(levels):
        alpha_bar, alpha_bar_to = float(now.alpha) ** 2, float(to.alpha) ** 2
        eps = (x - math.sqrt(alpha_bar) * ALL(x, now).x0) / math.sqrt(1 - alpha_bar)
        eps_hat = eps - math.sqrt(1 - alpha_bar) * scale * gradient(bayes, x, now)
        x = math.sqrt(alpha_bar_to) * (x - math.sqrt(1 - alpha_bar) * eps_hat) / math.sqrt(alpha_bar)
        x = x + math.sqrt(1 - alpha_bar_to) * eps_hat
    *_, last = ddim(classifier(ALL, bayes, scale), start, levels, None)
    torch.testing.assert_close(last.x, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("t", [1, 50, 500, 999])
def test_ddpm_guided_is_the_papers_algorithm_1_up_to_a_known_factor(t: int, variance: str) -> None:
    """x' ~ N(mu + s·Sigma·grad, Sigma); ours shifts mu by s·(alpha'/alpha)·beta_t·grad whatever Sigma is."""
    schedule, scale = Discrete(), 3.0
    levels = schedule.at_t([t, t - 1])
    now = levels[0]
    x, z = noisy(now), noise("z", 4)
    alpha_bar, alpha_bar_to = (float(level.alpha) ** 2 for level in levels)
    beta = 1 - alpha_bar / alpha_bar_to
    tilde = beta * (1 - alpha_bar_to) / (1 - alpha_bar)
    x0 = ALL(x, now).x0
    mu = (  # Ho et al. 2020, eq. 7
        math.sqrt(alpha_bar_to) * beta * x0 + math.sqrt(1 - beta) * (1 - alpha_bar_to) * x
    ) / (1 - alpha_bar)
    Sigma = beta if variance == "beta" else tilde
    published = mu + scale * Sigma * gradient(bayes, x, now) + math.sqrt(Sigma) * z

    factor = math.sqrt(1 - beta) * Sigma / beta  # the scale of ours that is the paper's scale 1
    ours = next(ddpm(classifier(ALL, bayes, scale * factor), x, levels, lambda i, a, b: z, variance=variance)).x
    torch.testing.assert_close(ours, published, rtol=1e-9, atol=1e-9)
    other = next(ddpm(classifier(ALL, bayes, scale), x, levels, lambda i, a, b: z, variance=variance)).x
    assert not torch.allclose(other, published, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("trained", SCHEDULES)
@pytest.mark.parametrize("sampled", SCHEDULES)
def test_a_classifier_of_one_schedule_guides_a_model_of_any_other(trained: str, sampled: str) -> None:
    own, other = SCHEDULES[trained], SCHEDULES[sampled]
    told = log_prob(clock_network(own), own, LABEL, other)
    for level in other.at(INNER):
        x = noisy(level)
        guided = classifier(ALL, told, 1.0)(x, level).x0
        away = float((of_class(x, level).x0 - ALL(x, level).x0).abs().max())
        error = float((guided - of_class(x, level).x0).abs().max())
        assert error < 1e-4 * max(away, 0.1), (level, error, away)  # the timestep is float32


@pytest.mark.parametrize("name", SCHEDULES)
def test_log_prob_of_a_batch_of_levels_is_each_images_own(name: str) -> None:
    schedule = SCHEDULES[name]
    level = schedule.at([0.2, 0.4, 0.6, 0.8])
    told = log_prob(clock_network(schedule), schedule, LABEL)
    torch.testing.assert_close(told(noisy(level), level), bayes(noisy(level), level), rtol=1e-4, atol=1e-4)


def test_a_level_that_the_classifier_was_never_shown_is_refused() -> None:
    told = log_prob(clock_network(Discrete()), Discrete(), LABEL, Karras())
    level = Karras().at_sigma(0.001)
    with pytest.raises(Error, match=r"the classifier does not know this noise: log SNR .* within an interval"):
        classifier(ALL, told, 1.0)(noisy(level), level)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (lambda x, level: x.flatten(1), r"gave \(4, 36\).*\(4,\)"),
        (lambda x, level: x.sum(), r"gave \(\)"),
        (lambda x, level: x.detach().flatten(1).sum(1), "does not depend on x"),
    ],
)
def test_a_function_without_a_gradient_of_each_image_is_refused(told: LogProb, message: str) -> None:
    with pytest.raises(Error, match=message):
        classifier(ALL, told, 1.0)(noise("x", 4), Discrete().at_t(10))


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan])
def test_impossible_scales_are_refused(scale: float) -> None:
    with pytest.raises(Error, match="classifier scale"):
        classifier(ALL, bayes, scale)
