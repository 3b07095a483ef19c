"""Predictions and denoisers: every row inverts, EDM's is the paper's, and what is undefined is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import oracle
from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import PREDICTIONS, Prediction, denoiser, row, target, timestep, to_eps, to_x0
from kuosan.diffusion.guidance import clamp
from kuosan.diffusion.level import Level
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error

SCHEDULES = (Discrete(), Discrete(betas="cosine", T=100), Karras(), Flow(shift=2.0))


def pair(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x0, eps = torch.randn(2, n, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return x0, eps


def test_the_table_and_the_torch_free_names_agree() -> None:
    assert tuple(PREDICTIONS) == registry.PREDICTIONS


@pytest.mark.parametrize("prediction", registry.PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_every_prediction_gives_back_x0_and_eps(prediction: str, schedule: Discrete | Karras | Flow) -> None:
    level = schedule.at([0.01, 0.2, 0.5, 0.8, 0.95])
    x0, eps = pair(5)
    x = level.add(x0, eps)
    out = target(prediction, x0, eps, level)
    torch.testing.assert_close(to_x0(prediction, out, x, level), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_eps(prediction, out, x, level), eps, rtol=1e-9, atol=1e-9)
    one = level[2]
    torch.testing.assert_close(to_x0(prediction, out[2:3], x[2:3], one), x0[2:3], rtol=1e-9, atol=1e-9)


def test_published_targets() -> None:
    level = Discrete().at_t([100, 700])
    x0, eps = pair(2)
    alpha, sigma = (c.reshape(2, 1, 1, 1) for c in (level.alpha, level.sigma))
    for prediction, hand in {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}.items():
        torch.testing.assert_close(target(prediction, x0, eps, level), hand, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 0.3])
def test_edm_is_table_1_of_karras_et_al(sigma_data: float) -> None:
    level = Karras().at([0.01, 0.3, 0.7, 0.99])
    s = level.sigma
    d = (s**2 + sigma_data**2).sqrt()
    c_skip, c_out, c_in = sigma_data**2 / d**2, s * sigma_data / d, 1 / d
    x0, eps = pair(4)
    x = level.add(x0, eps)
    shaped = [c.reshape(-1, 1, 1, 1) for c in (c_skip, c_out)]
    hand = (x0 - shaped[0] * x) / shaped[1]
    torch.testing.assert_close(target("edm", x0, eps, level, sigma_data), hand, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(row("edm", level, sigma_data).scale, c_in, rtol=1e-14, atol=0)
    out = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(
        to_x0("edm", out, x, level, sigma_data), shaped[0] * x + shaped[1] * out, rtol=1e-10, atol=1e-10
    )


def test_edm_s_denoiser_feeds_the_network_c_in_x_and_a_quarter_of_log_sigma() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.zeros_like(x)

    level, x = Karras().at_sigma([3.0, 0.2]), torch.ones(2, 2, 3, 3)
    x0 = denoiser(network, "edm", sigma_data=0.5)(x, level).x0
    assert seen[0][0][:, 0, 0, 0].tolist() == pytest.approx([1 / math.sqrt(9.25), 1 / math.sqrt(0.29)])
    assert seen[0][1].tolist() == pytest.approx([math.log(3) / 4, math.log(0.2) / 4])
    assert x0[:, 0, 0, 0].tolist() == pytest.approx([0.25 / 9.25, 0.25 / 0.29])


def test_edm_targets_and_inputs_have_unit_variance_on_data_of_its_std() -> None:
    for schedule in SCHEDULES:
        level = schedule.at([0.05, 0.5, 0.95])
        a, b, scale = row("edm", level, 0.5)
        one = torch.ones(3, dtype=torch.float64)
        torch.testing.assert_close(a**2 * 0.25 + b**2, one)
        torch.testing.assert_close(scale**2 * (level.alpha**2 * 0.25 + level.sigma**2), one)


def test_edm_with_unit_data_on_a_variance_preserving_schedule_is_minus_v() -> None:
    level, (x0, eps) = Discrete().at_t([10, 900]), pair(2)
    torch.testing.assert_close(target("edm", x0, eps, level, 1.0), -target("v", x0, eps, level), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "edm"])
def test_every_prediction_but_eps_means_an_image_even_at_alpha_0(prediction: str) -> None:
    level, (x0, eps) = Level.of(999.0, 0.0, 1.0), pair(2)
    out = target(prediction, x0, eps, level)
    torch.testing.assert_close(to_x0(prediction, out, eps, level), x0, rtol=1e-12, atol=1e-12)


def test_eps_at_alpha_0_is_refused_and_x0_at_sigma_0_has_no_noise() -> None:
    x = torch.zeros(2, 2, 3, 3)
    with pytest.raises(Error, match="alpha = 0"):
        to_x0("eps", x, x, Level.of([0.0, 0.0], [0.5, 0.0], [0.5, 1.0]))
    with pytest.raises(Error, match="sigma = 0"):
        to_eps("x0", x, x, Level.of(0.0, 1.0, 0.0))


def test_unknown_predictions_are_refused_when_the_denoiser_is_made() -> None:
    with pytest.raises(Error, match="did you mean 'eps'"):
        denoiser(lambda x, t: x, "epss")


def test_the_network_gets_float32_times_of_its_batch_and_its_conditions() -> None:
    seen = {}

    def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.update(t=t, label=label, x=x)
        return x

    label, x = torch.tensor([3, 4]), torch.ones(2, 1, 2, 2)
    for level in (Discrete().at_log_snr(0.3), Discrete().at_t([5, 6])):
        denoiser(network, "v", cond={"label": label})(x, level)
        assert seen["t"].shape == (2,) and seen["t"].dtype == torch.float32
        assert seen["label"] is label and torch.equal(seen["x"], x)
    assert timestep(Discrete().at_t([5, 6]), x).tolist() == [5, 6]


def test_low_precision_outputs_leave_the_state_in_its_dtype() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x, x], 1).bfloat16()

    for prediction in registry.PREDICTIONS:
        got = denoiser(network, prediction, learned_variance=True)(torch.ones(2, 1, 2, 2), Discrete().at_t(500))
        assert got.x0.dtype == torch.float32 and got.frac is not None and got.frac.dtype == torch.float32


def test_learned_variance_is_the_second_half_as_a_fraction() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x * 2, torch.full_like(x, -1.0)], 1)

    x0, frac = denoiser(network, "x0", learned_variance=True)(torch.ones(2, 3, 2, 2), Discrete().at_t(5))
    assert (x0 == 2).all() and x0.shape == (2, 3, 2, 2) and frac is not None and (frac == 0).all()


@pytest.mark.parametrize("learned, channels", [(True, 3), (False, 6), (False, 1)])
def test_outputs_of_another_shape_are_refused(learned: bool, channels: int) -> None:
    denoise = denoiser(lambda x, t: x.new_zeros(len(x), channels, 2, 2), "eps", learned_variance=learned)
    with pytest.raises(Error, match="learned_variance"):
        denoise(torch.ones(2, 3, 2, 2), Discrete().at_t(5))


def test_the_clamp_keeps_x0_in_range_and_the_variance_as_it_is() -> None:
    frac = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))

    def denoise(x: Tensor, level: Level) -> Prediction:
        return Prediction(x * 3, frac)

    x = torch.tensor([[-1.0, 0.1, 1.0], [0.2, -0.3, 0.5]])
    got = clamp(denoise)(x, Level.of(0.0, 1.0, 1.0))
    torch.testing.assert_close(got.x0, torch.tensor([[-1, 0.3, 1], [0.6, -0.9, 1]]))
    assert got.frac is frac
    torch.testing.assert_close(clamp(denoise, -9, 9)(x, Level.of(0.0, 1.0, 1.0)).x0, x * 3)
    with pytest.raises(Error, match="low must be below"):
        clamp(denoise, 1, -1)


@pytest.mark.parametrize("prediction", registry.PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_the_oracle_as_a_network_is_the_oracle(prediction: str, schedule: Discrete | Karras | Flow) -> None:
    exact = oracle.mixture(pair(3)[0], 0.3)
    level = schedule.at([0.1, 0.5, 0.9])
    x = level.add(*pair(3))
    ours = denoiser(oracle.network(exact, prediction, schedule), prediction)(x, level).x0
    torch.testing.assert_close(ours, exact(x, level).x0, rtol=1e-4, atol=1e-4)  # the timestep is float32
