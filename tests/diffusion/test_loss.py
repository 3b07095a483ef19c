"""The simple loss and its weights: published values, and the same meaning whatever the network predicts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import oracle
from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import PREDICTIONS, target
from kuosan.diffusion.level import Level
from kuosan.diffusion.loss import SIGMA2_WEIGHTS, simple_loss, weight
from kuosan.diffusion.registry import Weight, check_weight
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error

SCHEDULES = (Discrete(), Discrete(betas="cosine", T=100), Karras(), Flow(shift=2.0))


def levels(schedule: Discrete | Karras | Flow) -> Level:
    return schedule.at([0.02, 0.3, 0.5, 0.8, 0.97])


def pair() -> tuple[Tensor, Tensor]:
    x0, eps = torch.randn(2, 5, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x0, eps


def wrong(prediction: str, schedule: Discrete | Karras | Flow) -> object:
    """A network whose data is half of x: wrong in the same way whatever it predicts."""
    half = oracle.gaussian(torch.zeros(2, 3, 3), torch.tensor(0.04))
    return oracle.network(half, prediction, schedule)


def test_the_weights_and_the_torch_free_names_agree() -> None:
    assert {"simple", "vlb", *SIGMA2_WEIGHTS} == set(registry.WEIGHTS)


@pytest.mark.parametrize("name", [name for name in registry.WEIGHTS if name != "simple"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_a_weight_means_the_same_loss_whatever_is_predicted(name: str, schedule: Discrete | Karras | Flow) -> None:
    level, (x0, eps) = levels(schedule), pair()
    losses = [
        simple_loss(wrong(prediction, schedule), prediction, x0, level, eps, weight_name=name, schedule=schedule)  # type: ignore[arg-type]
        for prediction in PREDICTIONS
    ]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=2e-3, atol=1e-6)  # the timestep is float32


def test_published_weights() -> None:
    level = levels(Discrete())
    snr = (level.alpha / level.sigma) ** 2
    least = torch.minimum(snr, torch.full_like(snr, 5.0))
    hand: dict[tuple[str | Weight, str], Tensor] = {
        # Hang et al. 2023, section 3.4; Salimans & Ho 2022, section 4; Choi et al. 2022, eq. 8
        ("min_snr", "eps"): least / snr,
        (Weight("min_snr", min_snr_gamma=20.0), "v"): snr.clamp(max=20) / (snr + 1),
        (Weight("p2", p2_k=2.0, p2_gamma=0.5), "eps"): 1 / (2 + snr) ** 0.5,
        ("v", "x0"): snr + 1,
        ("v", "eps"): 1 + 1 / snr,
        ("min_snr", "x0"): least,
        ("min_snr", "v"): least / (snr + 1),
        ("snr", "x0"): snr,
        ("snr", "eps"): torch.ones_like(snr),
        ("snr", "v"): snr / (snr + 1),
        ("x0", "eps"): 1 / snr,
        ("x0", "x0"): torch.ones_like(snr),
        ("p2", "eps"): 1 / (1 + snr),
        ("sigmoid", "eps"): torch.sigmoid(2 - snr.log()),
    }
    for (name, prediction), value in hand.items():
        torch.testing.assert_close(weight(name, level, prediction), value, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["snr", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_a_prediction_s_own_weight_is_the_simple_loss_of_it(name: str, schedule: Discrete | Karras | Flow) -> None:
    own = weight(name, levels(schedule), "eps" if name == "snr" else name)
    torch.testing.assert_close(own, torch.ones_like(own), rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "schedule",
    [Karras(), Flow(), Flow(shift=3.0), Flow(density="logit_normal", mean=-0.5, std=1.3, shift=2.0)],
    ids=repr,
)
def test_the_bound_s_weight_is_half_the_slope_of_the_snr_over_training_s_draws(schedule: Karras | Flow) -> None:
    """-dSNR/du/2 (Kingma et al. 2021, eq. 17), by a difference over u; so the mean over u does not see the density."""
    u, h = torch.tensor([0.05, 0.3, 0.5, 0.7, 0.95], dtype=torch.float64), 1e-6
    snr = [torch.exp(schedule.at((u + step).numpy()).log_snr) for step in (-h, h)]
    w = weight("vlb", schedule.at(u.numpy()), "x0", schedule=schedule)
    torch.testing.assert_close(w, (snr[0] - snr[1]) / (4 * h), rtol=1e-6, atol=0)


def test_the_discrete_bound_s_weight_is_half_the_snr_s_fall_times_T() -> None:
    schedule = Discrete(T=10, beta_start=0.01, beta_end=0.3)
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    w = weight("vlb", schedule.at_t(range(10)), "x0", schedule=schedule)
    torch.testing.assert_close(w[1:], torch.from_numpy(10 * (snr[:-1] - snr[1:]) / 2))
    beta = 1 - schedule.alpha_bar[1] / schedule.alpha_bar[0]
    posterior = beta * (1 - schedule.alpha_bar[0]) / (1 - schedule.alpha_bar[1])
    assert float(w[0]) == pytest.approx(10 / (2 * posterior))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_s_weight_is_its_lambda_and_one_for_its_own_prediction(sigma_data: float) -> None:
    level = levels(Karras())
    published = (level.sigma**2 + sigma_data**2) / (level.sigma * sigma_data) ** 2
    torch.testing.assert_close(weight("edm", level, "x0", sigma_data), published, rtol=1e-12, atol=0)
    for schedule in SCHEDULES:
        ones = weight("edm", levels(schedule), "edm", sigma_data)
        torch.testing.assert_close(ones, torch.ones_like(ones), rtol=1e-10, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_simple_is_the_plain_mean_squared_error_an_image(prediction: str) -> None:
    level, (x0, eps) = levels(Discrete()), pair()
    network = wrong(prediction, Discrete())
    loss = simple_loss(network, prediction, x0, level, eps)  # type: ignore[arg-type]
    scale = PREDICTIONS[prediction](level.alpha, level.sigma, 0.5).scale.reshape(-1, 1, 1, 1)
    out = network(level.add(x0, eps) * scale, level.t.float())  # type: ignore[operator]
    hand = ((out - target(prediction, x0, eps, level)) ** 2).mean((1, 2, 3))
    assert loss.shape == (5,)
    torch.testing.assert_close(loss, hand, rtol=1e-10, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_the_exact_network_of_a_single_image_has_no_loss(prediction: str, schedule: Discrete | Karras | Flow) -> None:
    x0, eps = pair()
    exact = oracle.network(oracle.points(x0[:1]), prediction, schedule)
    loss = simple_loss(exact, prediction, x0[:1].expand(5, 2, 3, 3), levels(schedule), eps)
    assert float(loss.max()) < 1e-8


@pytest.mark.parametrize("name", registry.WEIGHTS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [*SCHEDULES, Discrete(zero_terminal_snr=True)], ids=lambda s: s.kind)
def test_weights_are_finite_at_every_level_that_training_draws(
    name: str, prediction: str, schedule: Discrete | Karras | Flow
) -> None:
    level = schedule.at([0.0, 2.0**-53, 0.5, 1 - 2.0**-53])
    if prediction == "eps" and float(level.alpha.min()) == 0 and name != "simple":
        with pytest.raises(Error, match="alpha = 0"):
            weight(name, level, prediction, schedule=schedule)
    else:
        w = weight(name, level, prediction, schedule=schedule)
        assert torch.isfinite(w).all() and (w >= 0).all() and w.dtype == torch.float64


def test_gradients_reach_the_network_through_low_precision_outputs() -> None:
    scale = torch.tensor(0.5, requires_grad=True)
    x0, eps = (v.float() for v in pair())
    network = lambda x, t: (x * scale).bfloat16()  # noqa: E731
    loss = simple_loss(network, "v", x0, levels(Discrete()), eps, weight_name="min_snr")
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert scale.grad is not None and torch.isfinite(scale.grad)


def test_one_level_for_a_whole_batch_is_that_level_for_each() -> None:
    x0, eps = pair()
    one = Discrete().at_t(300)
    each = Discrete().at_t([300] * 5)
    network = wrong("v", Discrete())
    losses = [simple_loss(network, "v", x0, level, eps, weight_name="min_snr") for level in (one, each)]  # type: ignore[arg-type]
    torch.testing.assert_close(losses[0], losses[1])


def test_conditions_and_learned_variance_pass_through() -> None:
    def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return torch.cat([x * label, x], 1)

    x0, eps = pair()
    loss = simple_loss(network, "x0", x0, Discrete().at_t(0), eps, learned_variance=True, cond={"label": 1.0})
    assert float(loss.max()) < 0.01


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(Error, match="did you mean 'min_snr'"):
        weight("min_snrr", levels(Discrete()), "eps")


def test_weights_are_checked_with_their_schedule_and_their_numbers_with_the_name() -> None:
    class Own:
        pass

    for name in registry.WEIGHTS:
        check_weight(name, Discrete(), "eps")
    with pytest.raises(Error, match="did you mean"):
        check_weight("min_snrr", Discrete(), "eps")
    with pytest.raises(Error, match="flow"):
        check_weight("simple", Flow(), "eps")
    for schedule in (Own(), None):
        with pytest.raises(Error, match="has no elbo_weight"):
            check_weight("vlb", schedule, "v")
    with pytest.raises(Error, match=r"min_snr_gamma = 3.0: weight 'simple' has none"):
        Weight("simple", min_snr_gamma=3.0)
    with pytest.raises(Error, match=r"p2_k = 2: weight 'min_snr' has none"):
        Weight("min_snr", p2_k=2)
    with pytest.raises(Error, match="above 0"):
        Weight("p2", p2_gamma=0.0)
    assert Weight("elbo").name == "vlb"
