"""Samplers by other tools' names, and the noise of their steps from a seed, a torch.Generator or nothing."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import Prediction, denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import SAMPLERS, Noise
from kuosan.diffusion.schedule import Discrete
from kuosan.errors import Error

SCHEDULE = Discrete()
GRID = SCHEDULE.grid(8)
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
OPTIONS: dict[str, dict[str, Any]] = {"ddim": {"eta": 0.7}, "heun": {"s_churn": 4.0}}
NOISY = [name for name, spec in registry.SAMPLERS.items() if spec.noise]
QUIET = [name for name in registry.SAMPLERS if name not in NOISY]


def smooth(x: Tensor, level: Level) -> Prediction:
    return Prediction(torch.tanh(x.flip(-1)), torch.sigmoid(x))


def walked(name: str, x: Tensor = X, **noise: Any) -> Tensor:
    between = {"at_log_snr": SCHEDULE.at_log_snr} if registry.SAMPLERS[name].at_log_snr else {}
    *_, last = SAMPLERS[name](smooth, x, GRID, **noise, **OPTIONS.get(name, {}), **between)
    return last.x


@pytest.mark.parametrize("name", NOISY)
def test_nothing_is_seed_0_and_another_seed_is_another_image(name: str) -> None:
    assert torch.equal(walked(name), walked(name, seed=0))
    assert torch.equal(walked(name), walked(name, noise=None))
    assert not torch.equal(walked(name), walked(name, seed=1))


@pytest.mark.parametrize("name", NOISY)
def test_a_row_s_noise_is_its_own_whatever_stands_beside_it(name: str) -> None:
    whole = walked(name, seed=7)
    for row in range(len(X)):
        torch.testing.assert_close(walked(name, X[row : row + 1], seed=7 + row), whole[row : row + 1])


@pytest.mark.parametrize("name", NOISY)
def test_a_generator_is_the_function_that_draws_from_it_in_order(name: str) -> None:
    mine = torch.Generator().manual_seed(3)

    def drawn(i: int, now: Level, to: Level) -> Tensor:
        return torch.randn(X.shape, generator=mine)

    assert torch.equal(walked(name, generator=torch.Generator().manual_seed(3)), walked(name, noise=drawn))


def test_a_generator_gives_what_diffusers_ddpm_gives_with_it() -> None:
    """The whole walk, one generator on each side."""
    theirs = diffusers.DDPMScheduler(clip_sample=False, variance_type="fixed_large", timestep_spacing="trailing")
    theirs.set_timesteps(20)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x + t.reshape(-1, 1, 1, 1) / 300)

    x, draw = X, torch.Generator().manual_seed(11)
    for t in theirs.timesteps[:-1]:  # its last step adds noise, ours does not
        x = theirs.step(network(x, t[None]), t, x, generator=draw).prev_sample
    walk = SAMPLERS["DDPMScheduler"](
        denoiser(network, "epsilon"), X, SCHEDULE.grid(20), generator=torch.Generator().manual_seed(11)
    )
    ours = [step.x for step in walk][-2]
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NOISY)
def test_a_seed_keeps_the_dtype_and_a_double_state_stays_double(name: str) -> None:
    assert walked(name, X.double(), seed=2).dtype == torch.float64
    assert walked(name, X.double(), generator=torch.Generator().manual_seed(2)).dtype == torch.float64


@pytest.mark.parametrize("name", QUIET)
def test_a_walk_without_noise_needs_none_and_refuses_a_seed(name: str) -> None:
    assert walked(name).isfinite().all()
    assert torch.equal(walked(name), walked(name, noise=lambda *_: pytest.fail("noise was asked for")))
    for given in ({"seed": 0}, {"generator": torch.Generator()}):
        with pytest.raises(Error, match=f"sampler '{name}' draws no noise; leave it out"):
            walked(name, **given)
    assert not {"seed", "generator"} & set(inspect.signature(SAMPLERS[name]).parameters)


@pytest.mark.parametrize(
    "name, given, words",
    [
        ("ddpm", {"seed": 1, "generator": torch.Generator()}, "seed and generator.*give one of them"),
        ("ddpm", {"noise": lambda *_: X, "seed": 1}, "noise and seed"),
        ("ddpm", {"seed": 1.5}, "seed 1.5: need a whole number"),
        ("ddpm", {"seed": True}, "seed True"),
        ("ddpm", {"seed": torch.Generator()}, "torch.Generator is generator="),
        ("ddpm", {"generator": 3}, "a number is seed="),
        ("ddpm", {"noise": 3}, "give seed= instead"),
        ("ddpm", {"noise": torch.Generator()}, "give generator= instead"),
    ],
)
def test_noise_that_is_none_or_given_twice_is_refused(name: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(Error, match=words):
        walked(name, **given)


def test_a_stochastic_sampler_whose_noise_is_switched_off_refuses_a_seed() -> None:
    with pytest.raises(Error, match=r"'ddim' with eta 0\.0 draws no noise"):
        SAMPLERS["ddim"](smooth, X, GRID, seed=3)
    with pytest.raises(Error, match="'euler_ancestral' with eta 0 draws no noise"):
        SAMPLERS["euler_ancestral"](smooth, X, GRID, None, 0, seed=3)
    *_, first = SAMPLERS["euler_a"](smooth, X, GRID, None, 0.5, seed=3)  # options by place, as before
    *_, second = SAMPLERS["ddim"](smooth, X, GRID, eta=0.5, seed=3)
    assert torch.equal(first.x, second.x)


@pytest.mark.parametrize("name", NOISY)
def test_the_noise_of_a_seed_is_the_keyed_one_that_sampling_draws(name: str) -> None:
    def keyed(i: int, now: Level, to: Level) -> Tensor:
        return seeds.normal([(4 + row, "sample/step", i, 0) for row in range(len(X))], tuple(X.shape[1:]))

    noise: Noise = keyed
    assert torch.equal(walked(name, seed=4), walked(name, noise=noise))


SPELLED = {
    "dpmpp_2m": "dpm_solver_2m",
    "dpm++2m": "dpm_solver_2m",
    "DPM++ 2M": "dpm_solver_2m",
    "DPMSolverMultistepScheduler": "dpm_solver_2m",
    "EDMDPMSolverMultistepScheduler": "dpm_solver_2m",
    "DPMSolverSinglestepScheduler": "dpm_solver_2s",
    "dpmpp_2m_sde": "dpm_solver_2m_sde",
    "dpmpp_2m_sde_gpu": "dpm_solver_2m_sde",
    "dpmpp_sde_gpu": "dpm_solver_2s_sde",
    "dpmpp_3m_sde_gpu": "dpm_solver_3m_sde",
    "euler_a": "euler_ancestral",
    "Euler a": "euler_ancestral",
    "k_euler_ancestral": "euler_ancestral",
    "EulerDiscreteScheduler": "euler",
    "k_heun": "heun",
    "HeunDiscreteScheduler": "heun",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "uni_pc_bh2": "unipc",
    "UniPCMultistepScheduler": "unipc",
    "PNDMScheduler": "pndm",
    "DDIMParallelScheduler": "ddim",
}


@pytest.mark.parametrize("spelling", SPELLED)
def test_samplers_are_found_by_the_names_of_other_tools(spelling: str) -> None:
    assert SAMPLERS[spelling] is SAMPLERS[SPELLED[spelling]] is SAMPLERS.get(spelling)
    assert spelling in SAMPLERS


def test_class_names_among_the_spellings_are_diffusers_own() -> None:
    """A scheduler's class that diffusers does not have would be an invented alias."""
    named = [alias for alias in registry.ALIASES if alias.endswith("Scheduler")]
    assert len(named) >= 14
    assert all(hasattr(diffusers, alias) for alias in named)


def test_the_list_of_samplers_shows_our_own_names_alone() -> None:
    before = list(registry.SAMPLERS)
    assert SAMPLERS["dpmpp_2m"] is SAMPLERS["dpm_solver_2m"]
    assert list(SAMPLERS) == list(SAMPLERS.keys()) == before and len(SAMPLERS) == len(before)
    assert "dpmpp_2m" not in list(SAMPLERS) and "dimm" not in SAMPLERS and 3 not in SAMPLERS
    assert SAMPLERS.get("dimm") is None and SAMPLERS.get("dimm", 5) == 5


@pytest.mark.parametrize(
    "spelling, words",
    [
        ("dimm", "did you mean 'ddim'"),
        ("dpmp_2m", "did you mean 'dpmpp_2m', here 'dpm_solver_2m'"),
        ("dpmpp_2m_karras", "sampler 'dpm_solver_2m' and spacing 'karras'"),
        ("LCMScheduler", "unknown sampler 'LCMScheduler'"),
    ],
)
def test_an_unknown_sampler_gets_a_guess(spelling: str, words: str) -> None:
    with pytest.raises(Error, match=words):
        SAMPLERS[spelling]


PREDICTIONS = {
    "epsilon": "eps",
    "Epsilon": "eps",
    "noise": "eps",
    "sample": "x0",
    "START_X": "x0",
    "v_prediction": "v",
    "v-prediction": "v",
    "flow_prediction": "flow",
    "EDM": "edm",
}


@pytest.mark.parametrize("spelling", PREDICTIONS)
def test_predictions_have_the_names_of_other_tools_wherever_one_is_given(spelling: str) -> None:
    from kuosan.diffusion.denoiser import target, to_eps, to_x0
    from kuosan.diffusion.loss import simple_loss

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x)

    own, level, eps = PREDICTIONS[spelling], SCHEDULE.at_t(400), torch.ones_like(X)
    assert torch.equal(denoiser(network, spelling)(X, level).x0, denoiser(network, own)(X, level).x0)
    for function in (to_x0, to_eps):
        assert torch.equal(function(spelling, eps, X, level), function(own, eps, X, level))
    assert torch.equal(target(spelling, X, eps, level), target(own, X, eps, level))
    rows = SCHEDULE.at_t([1, 400, 900])
    assert torch.equal(simple_loss(network, spelling, X, rows, eps), simple_loss(network, own, X, rows, eps))


def test_an_unknown_prediction_gets_a_guess() -> None:
    with pytest.raises(Error, match=r"did you mean 'v_prediction', here 'v'.*Allowed: eps, x0, v, flow, edm"):
        denoiser(lambda x, t: x, "v_predicton")
