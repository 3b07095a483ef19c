"""The higher-order solvers step by step against diffusers' schedulers, on their levels and the same network outputs."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from test_diffusers_schedulers import BETAS, KINDS, assert_same, in_sigma, keyed_noise, make, network, start
from torch import Tensor

from kuosan.diffusion.denoiser import denoiser
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import SAMPLERS
from kuosan.diffusion.schedule import Discrete

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, numpy


def states(theirs: Any, levels: Level, noisy: bool = False) -> list[Tensor]:
    """The states of a scheduler that evaluates the network once at each level."""
    theirs.set_begin_index(0)  # else it starts at its second step where two times round to the same
    x, found = start(), []
    for i, t in enumerate(theirs.timesteps):
        extra = {"variance_noise": keyed_noise(i, levels[i], levels[i])} if noisy else {}
        x = theirs.step(network(x, levels.t[i].float()[None]), t, x, **extra).prev_sample
        found.append(x)
    return found


def compare(name: str, prediction: str, levels: Level, found: list[Tensor], tolerance: float = 2e-5) -> None:
    walk = SAMPLERS[name](denoiser(network, prediction), start(), levels, keyed_noise)
    for step, theirs in zip(walk, found, strict=True):
        assert_same(step.x, theirs, tolerance)


def settings(betas: str, prediction: str, spacing: str) -> tuple[Discrete, dict[str, Any]]:
    schedule, config = make(betas, 1000)
    plain = "trailing" if spacing == "karras" else spacing
    config |= {
        "prediction_type": KINDS[prediction],
        "timestep_spacing": plain,
        "use_karras_sigmas": spacing == "karras",
    }
    return schedule, config | {"steps_offset": 1 if spacing == "leading" else 0}


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "sigmoid"])
@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize("final, steps", [("zero", 3), ("zero", 10), ("sigma_min", 20)])
def test_dpm_solver_3m_is_diffusers(betas: str, prediction: str, spacing: str, final: str, steps: int) -> None:
    schedule, config = settings(betas, prediction, spacing)
    theirs = diffusers.DPMSolverMultistepScheduler(
        **config, solver_order=3, final_sigmas_type=final, lower_order_final=final == "zero"
    )
    theirs.set_timesteps(steps)
    levels = in_sigma(schedule, theirs)
    if float(levels.sigma[-2]) != float(levels.sigma[-1]):  # diffusers divides by a last step of no length
        compare("dpm_solver_3m", prediction, levels, states(theirs, levels))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "karras"])
def test_dpm_solver_2m_sde_is_diffusers(betas: str, prediction: str, spacing: str) -> None:
    schedule, config = settings(betas, prediction, spacing)
    theirs = diffusers.DPMSolverMultistepScheduler(**config, solver_order=2, algorithm_type="sde-dpmsolver++")
    theirs.set_timesteps(15)
    levels = in_sigma(schedule, theirs)
    compare("dpm_solver_2m_sde", prediction, levels, states(theirs, levels, noisy=True), 1e-4)


def test_dpm_solver_3m_sde_is_diffusers_but_for_the_sign_of_its_second_difference() -> None:
    """diffusers adds ((1 - e^-H - H)/H² - 1/2)·D2, which tends to -D2 as the step H shrinks; + 1/2 tends to 0."""
    schedule, config = settings("linear", "eps", "karras")
    theirs = diffusers.DPMSolverMultistepScheduler(**config, solver_order=3, algorithm_type="sde-dpmsolver++")
    theirs.set_timesteps(20)
    levels = in_sigma(schedule, theirs)
    ours = [step.x for step in SAMPLERS["dpm_solver_3m_sde"](denoiser(network, "eps"), start(), levels, keyed_noise)]
    for mine, other in zip(ours[:2], states(theirs, levels, noisy=True)):  # its steps of order 1 and 2
        assert_same(mine, other, 2e-5)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "sigmoid"])
@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize("final, steps", [("zero", 2), ("zero", 15), ("sigma_min", 9)])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc_is_diffusers(betas: str, prediction: str, spacing: str, final: str, steps: int, order: int) -> None:
    schedule, config = settings(betas, prediction, spacing)
    theirs = diffusers.UniPCMultistepScheduler(
        **config, solver_order=order, solver_type="bh2", final_sigmas_type=final, lower_order_final=final == "zero"
    )
    theirs.set_timesteps(steps)
    levels = in_sigma(schedule, theirs)
    if float(levels.sigma[-2]) != float(levels.sigma[-1]):
        name = {2: "unipc", 3: "unipc_3"}[order]
        compare(name, prediction, levels, states(theirs, levels), 5e-4 if order == 3 else 1e-4)  # it solves in float32


@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_dpm_solver_2s_is_diffusers_on_a_grid_even_in_log_snr(betas: str, prediction: str) -> None:
    """There its middles, which are grid points, lie halfway in lambda."""
    schedule, config = make(betas, 1000)
    theirs = diffusers.DPMSolverSinglestepScheduler(
        **config, prediction_type=KINDS[prediction], solver_order=2, final_sigmas_type="sigma_min",
        lower_order_final=False,
    )  # fmt: skip
    theirs.set_timesteps(16)
    theirs.sigmas = torch.linspace(2.3, -4.2, 17).exp()
    levels = in_sigma(schedule, theirs)
    coarse = levels[torch.arange(0, 17, 2)]
    found = states(theirs, levels)

    def middle(log_snr: float) -> Level:
        nearest = (levels.log_snr - log_snr).abs()
        assert float(nearest.min()) < 1e-3
        return levels[int(nearest.argmin())]

    walk = SAMPLERS["dpm_solver_2s"](denoiser(network, prediction), start(), coarse, keyed_noise, at_log_snr=middle)
    for step, other in zip(walk, found[1::2], strict=True):
        assert_same(step.x, other, 2e-5)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("steps", [3, 10, 50])  # of two, the cosine's first is steep, and has one slope here
@pytest.mark.parametrize("last", ["first", "clean"])
def test_plms_is_diffusers(betas: str, steps: int, last: str) -> None:
    """For eps: of other predictions diffusers averages the outputs, not eps, and its walk is another.

    Stable Diffusion 1 is last "first"; a walk to "clean" ends at x0 here, at an extrapolated image there.
    """
    schedule, config = make(betas, 1000)
    theirs = diffusers.PNDMScheduler(
        **config, skip_prk_steps=True, set_alpha_to_one=last == "clean",
        steps_offset=1, timestep_spacing="leading",
    )  # fmt: skip
    theirs.alphas_cumprod = torch.from_numpy(schedule.alpha_bar.copy())
    theirs.final_alpha_cumprod = torch.tensor(1.0).double() if last == "clean" else theirs.alphas_cumprod[0]
    theirs.set_timesteps(steps)
    levels = schedule.grid(steps, "leading", last, 1)
    x, found = start().double(), []
    for t in theirs.timesteps:
        x = theirs.step(network(x, t[None]), t, x).prev_sample
        found.append(x)
    del found[0]  # of the first step's two evaluations
    walk = SAMPLERS["plms"](denoiser(network, "eps"), start().double(), levels, keyed_noise)
    for i, (step, other) in enumerate(zip(walk, found, strict=True)):
        if last == "first" or i < steps - 1:
            assert_same(step.x, other, 1e-6)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@pytest.mark.parametrize("steps", [5, 10, 50])
def test_pndm_is_diffusers(betas: str, steps: int) -> None:
    schedule, config = make(betas, 1000)
    theirs = diffusers.PNDMScheduler(**config, skip_prk_steps=False, steps_offset=1, timestep_spacing="leading")
    theirs.alphas_cumprod = torch.from_numpy(schedule.alpha_bar.copy())
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(steps)
    levels = schedule.grid(steps, "leading", "first", 1)

    def at_integer(log_snr: float) -> Level:
        """The trained level nearest by; diffusers asks the network at whole times."""
        level = schedule.at_log_snr(log_snr)
        whole = schedule.at_t(round(float(level.t)))
        return whole if abs(float(level.t - whole.t)) < 1e-6 else level

    x, found = start().double(), []
    for t in theirs.timesteps:
        x = theirs.step(network(x, t[None]), t, x).prev_sample
        found.append(x)
    walk = SAMPLERS["pndm"](denoiser(network, "eps"), start().double(), levels, keyed_noise, at_log_snr=at_integer)
    for step, other in zip(walk, found[3:12:4] + found[12:], strict=True):
        assert_same(step.x, other, 1e-6)
