"""Step by step against diffusers' schedulers, each given our levels' images and the same network outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser, denoiser
from kuosan.diffusion.guidance import clamp
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import Step, ddim, ddpm, dpm_solver_2m, euler, euler_ancestral, heun
from kuosan.diffusion.schedule import Discrete, Flow, Karras

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers, numpy

SHAPE = (2, 3, 4, 4)
KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
BETAS = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2", "sigmoid": "sigmoid"}
SETTINGS = [(betas, 1000) for betas in BETAS] + [("linear", 100), ("cosine", 10), ("linear", 4000)]


def network(x: Tensor, t: Tensor) -> Tensor:
    """Any smooth function of x and t, of unit size."""
    phase = (t.to(x.dtype) / 300).reshape(-1, 1, 1, 1)
    return torch.sin(2 * x.flip(-1) + phase) * 0.7 + torch.cos(x * 0.5 - phase) * 0.3


def learned(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([network(x, t), torch.tanh(x.flip(1))], 1)


def start(std: float = 1.0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * std


def make(betas: str, T: int) -> tuple[Discrete, dict[str, Any]]:
    """Our schedule, and diffusers' settings of it; few of its schedulers know sigmoid, so they are given the betas."""
    ends = {} if betas == "cosine" else {"beta_start": 0.00085, "beta_end": 0.012}
    config: dict[str, Any] = {"num_train_timesteps": T} | ends
    if betas == "sigmoid":
        table = diffusers.DDPMScheduler(**config, beta_schedule="sigmoid").betas.numpy()
        return Discrete(betas=betas, T=T, **ends), config | {"trained_betas": table}
    return Discrete(betas=betas, T=T, **ends), config | {"beta_schedule": BETAS[betas]}


def exact(theirs: Any, schedule: Discrete) -> None:
    """Give diffusers' scheduler its tables in float64: float32 keeps 3 digits of 1 - alpha_bar where that is small."""
    theirs.alphas_cumprod = torch.from_numpy(schedule.alpha_bar.copy())
    if float(theirs.one if hasattr(theirs, "one") else theirs.final_alpha_cumprod) != 1:
        theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]


def keyed_noise(i: int, now: Level, to: Level) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(100 + i))


def one_step(
    walk: Callable[..., Iterator[Step]], denoise: Denoiser, x: Tensor, levels: Level, i: int, **options: object
) -> Tensor:
    """Our step i, from x."""
    return next(walk(denoise, x, levels[i : i + 2], lambda _, now, to: keyed_noise(i, now, to), **options)).x


def assert_same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    error, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
    assert error <= tolerance * max(1.0, size), (error, size)


@pytest.mark.parametrize("betas, T", SETTINGS)
def test_the_tables_are_diffusers(betas: str, T: int) -> None:
    schedule, config = make(betas, T)
    theirs = diffusers.DDPMScheduler(**config)
    tolerance = 2e-4 if betas == "cosine" else 2e-5
    np.testing.assert_allclose(schedule.alpha_bar, theirs.alphas_cumprod.numpy(), rtol=tolerance)


@pytest.mark.parametrize("betas", BETAS)
def test_zero_terminal_snr_is_diffusers(betas: str) -> None:
    schedule, config = make(betas, 1000)
    ours = Discrete(betas=betas, beta_start=schedule.beta_start, beta_end=schedule.beta_end, zero_terminal_snr=True)
    theirs = diffusers.DDIMScheduler(**config, rescale_betas_zero_snr=True)
    np.testing.assert_allclose(ours.alpha_bar, theirs.alphas_cumprod.numpy(), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 3, 7, 10, 50, 999, 1000])
def test_the_integer_grids_are_diffusers(spacing: str, steps: int) -> None:
    for offset in (0, 1) if spacing == "leading" and steps < 1000 else (0,):
        theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
        theirs.set_timesteps(steps)
        if int(theirs.timesteps.max()) > 999:
            continue
        assert Discrete().grid(steps, spacing, offset=offset).t[:-1].tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("betas, T", SETTINGS)
@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_ddpm_is_diffusers(betas: str, T: int, prediction: str, variance: str) -> None:
    schedule, config = make(betas, T)
    kind = {"posterior": "fixed_small", "beta": "fixed_large", "learned": "learned_range"}[variance]
    net = learned if variance == "learned" else network
    denoise = denoiser(net, prediction, learned_variance=variance == "learned")
    for spacing in ("leading", "trailing", "linspace"):
        for steps in {1, 3, 7, min(T, 20)}:
            if steps == 1 and spacing == "linspace":
                continue  # diffusers starts this one at t = 0
            theirs = diffusers.DDPMScheduler(
                **config,
                prediction_type=KINDS[prediction],
                variance_type=kind,
                timestep_spacing=spacing,
                clip_sample=False,
            )
            if betas == "cosine":
                exact(theirs, schedule)
            theirs.set_timesteps(steps)
            levels, x = schedule.grid(steps, spacing), start()
            assert levels.t[:-1].tolist() == theirs.timesteps.tolist()
            for i, t in enumerate(theirs.timesteps):
                draw = torch.Generator().manual_seed(100 + i)
                after = theirs.step(net(x, t[None]), t, x, generator=draw).prev_sample
                ours = one_step(ddpm, denoise, x, levels, i, variance=variance)
                if i < steps - 1 or t == 0:  # at a last step to x0 from t > 0 diffusers still adds noise
                    assert_same(ours, after)
                x = after


@pytest.mark.parametrize("betas, T", SETTINGS)
@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("last", ["clean", "first"])
def test_ddim_is_diffusers(betas: str, T: int, prediction: str, eta: float, last: str) -> None:
    schedule, config = make(betas, T)
    denoise = denoiser(network, prediction)
    for spacing, offset in (("leading", 0), ("leading", 1), ("trailing", 0)):
        for steps in {T // 5, T // 2, 1} - ({T} if offset else set()):  # it guesses: the steps must divide T
            theirs = diffusers.DDIMScheduler(
                **config, prediction_type=KINDS[prediction], timestep_spacing=spacing, steps_offset=offset,
                set_alpha_to_one=last == "clean", clip_sample=False,
            )  # fmt: skip
            if betas == "cosine" or last == "first":
                exact(theirs, schedule)
            theirs.set_timesteps(steps)
            levels, x = schedule.grid(steps, spacing, last, offset), start()
            picked = sorted({*range(0, steps, max(1, steps // 8)), steps - 1})
            for i, t in ((i, theirs.timesteps[i]) for i in picked):
                noise = keyed_noise(i, levels[0], levels[0])
                after = theirs.step(network(x, t[None]), t, x, eta=eta, variance_noise=noise).prev_sample
                ours = one_step(ddim, denoise, x, levels, i, eta=eta)
                if float(levels.t[i]) == float(levels.t[i + 1]):  # diffusers' root of a rounding error may be nan
                    assert torch.equal(ours, x)
                else:
                    assert_same(ours, after)
                x = ours


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("steps", [3, 7, 600])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_between_the_levels_diffusers_guesses(prediction: str, steps: int, eta: float) -> None:
    """Where the steps do not divide T, or for linspace, diffusers walks to t - T//steps; ours can be told to."""
    schedule, config = make("scaled_linear", 1000)
    denoise = denoiser(network, prediction)
    for spacing in ("leading", "trailing", "linspace"):
        config |= {"prediction_type": KINDS[prediction], "timestep_spacing": spacing, "clip_sample": False}
        theirs = diffusers.DDIMScheduler(**config)
        theirs.set_timesteps(steps)
        x = start()
        for i, t in list(enumerate(theirs.timesteps))[:: max(1, steps // 12)]:
            levels = schedule.at_t([int(t), max(int(t) - 1000 // steps, -1)])
            noise = keyed_noise(i, levels[0], levels[1])
            after = theirs.step(network(x, t[None]), t, x, eta=eta, variance_noise=noise).prev_sample
            ours = next(ddim(denoise, x, levels, lambda *_, z=noise: z, eta=eta)).x
            assert_same(ours, after)
            x = after


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_clamp_is_diffusers_with_use_clipped_model_output(eta: float) -> None:
    schedule, config = make("linear", 1000)
    theirs = diffusers.DDIMScheduler(**config, clip_sample=True, timestep_spacing="trailing")
    theirs.set_timesteps(20)
    levels, x = schedule.grid(20), start()
    for i, t in enumerate(theirs.timesteps):
        noise = keyed_noise(i, levels[0], levels[0])
        options = {"eta": eta, "use_clipped_model_output": True, "variance_noise": noise}
        after = theirs.step(network(x, t[None]), t, x, **options).prev_sample
        assert_same(one_step(ddim, clamp(denoiser(network, "eps")), x, levels, i, eta=eta), after)
        x = after


def test_the_clamp_in_ddpm_is_diffusers_clip_sample() -> None:
    schedule, config = make("linear", 1000)
    theirs = diffusers.DDPMScheduler(**config, clip_sample=True, variance_type="fixed_small")
    theirs.set_timesteps(1000)
    levels, x = schedule.grid(1000), start(2.0)
    for i in (0, 1, 500, 900, 998, 999):
        t = theirs.timesteps[i]
        after = theirs.step(network(x, t[None]), t, x, generator=torch.Generator().manual_seed(100 + i)).prev_sample
        assert_same(one_step(ddpm, clamp(denoiser(network, "eps")), x, levels, i, variance="posterior"), after)


def test_zero_terminal_snr_walks_as_diffusers_does() -> None:
    _, config = make("scaled_linear", 1000)
    config |= {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    zero = Discrete(betas="scaled_linear", beta_start=0.00085, beta_end=0.012, zero_terminal_snr=True)
    theirs = diffusers.DDIMScheduler(**config, timestep_spacing="trailing", clip_sample=False)
    theirs.set_timesteps(25)
    levels, x = zero.grid(25), start()
    for i, t in enumerate(theirs.timesteps):
        after = theirs.step(network(x, t[None]), t, x).prev_sample
        assert_same(one_step(ddim, denoiser(network, "v"), x, levels, i), after)
        x = after


def in_sigma(schedule: Discrete, theirs: Any) -> Level:
    """Our levels at a scheduler's sigmas = sigma/alpha, and the times of those."""
    sigma = theirs.sigmas.double()
    log_snr = (-2 * sigma[sigma > 0].log()).clamp(schedule.log_snr[-1], schedule.log_snr[0])
    t = schedule.at_log_snr(log_snr.numpy()).t
    alpha = (1 + sigma**2).rsqrt()
    return Level(torch.cat([t, -torch.ones(len(sigma) - len(t))]), alpha, sigma * alpha)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras", "log_snr"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_euler_and_euler_ancestral_are_diffusers(betas: str, prediction: str, spacing: str, name: str) -> None:
    schedule, config = make(betas, 1000)
    if name == "EulerDiscreteScheduler":
        config |= {"use_karras_sigmas": spacing == "karras", "use_exponential_sigmas": spacing == "log_snr"}
    plain = spacing if spacing in ("leading", "trailing", "linspace") else "trailing"
    theirs = getattr(diffusers, name)(**config, prediction_type=KINDS[prediction], timestep_spacing=plain)
    theirs.set_timesteps(15)
    levels = in_sigma(schedule, theirs)
    ancestral = name != "EulerDiscreteScheduler"
    x = start()
    for i, t in enumerate(theirs.timesteps):
        alpha, alpha_to = float(levels.alpha[i]), float(levels.alpha[i + 1])
        scaled = theirs.scale_model_input(x / alpha, t)
        assert_same(scaled, x)
        out = network(x, levels.t[i].float()[None])  # diffusers rounds some fractional times; the sampler does not care
        options = {"generator": torch.Generator().manual_seed(100 + i)} if ancestral else {}
        after = theirs.step(out, t, x / alpha, **options).prev_sample * alpha_to
        ours = one_step(euler_ancestral if ancestral else euler, denoiser(network, prediction), x, levels, i)
        assert_same(ours, after)
        x = ours


def test_the_spacings_between_trained_times_are_diffusers_sigmas() -> None:
    schedule, config = make("scaled_linear", 1000)
    for spacing, words in (("karras", "use_karras_sigmas"), ("log_snr", "use_exponential_sigmas")):
        theirs = diffusers.EulerDiscreteScheduler(**config, **{words: True})
        theirs.set_timesteps(12)
        ours = schedule.grid(12, spacing)
        np.testing.assert_allclose(ours.sigma / ours.alpha, theirs.sigmas.numpy(), rtol=1e-4)
        np.testing.assert_allclose(ours.t[:-1], theirs.timesteps.numpy(), atol=0.02)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
def test_heun_is_diffusers(prediction: str, spacing: str) -> None:
    schedule, config = make("scaled_linear", 1000)
    plain = "trailing" if spacing == "karras" else spacing
    theirs = diffusers.HeunDiscreteScheduler(
        **config, prediction_type=KINDS[prediction], timestep_spacing=plain, use_karras_sigmas=spacing == "karras"
    )
    theirs.set_timesteps(8)
    sigmas = theirs.sigmas
    theirs.sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])  # each once, not twice
    levels = in_sigma(schedule, theirs)
    theirs.sigmas = sigmas
    x, state, walk = start(), start() / float(levels.alpha[0]), 0
    for i, step in enumerate(heun(denoiser(network, prediction), x, levels, keyed_noise)):
        for level in (levels[i], levels[i + 1])[: 1 if i == 7 else 2]:
            out = network(theirs.scale_model_input(state, theirs.timesteps[walk]), level.t.float()[None])
            state = theirs.step(out, theirs.timesteps[walk], state).prev_sample
            walk += 1
        assert_same(step.x, state * float(levels.alpha[i + 1]), 2e-5)
    assert walk == len(theirs.timesteps) == 15


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@pytest.mark.parametrize("steps", [2, 15])
def test_dpm_solver_2m_is_diffusers(betas: str, prediction: str, spacing: str, final: str, steps: int) -> None:
    schedule, config = make(betas, 1000)
    plain = "trailing" if spacing == "karras" else spacing
    theirs = diffusers.DPMSolverMultistepScheduler(
        **config, prediction_type=KINDS[prediction], timestep_spacing=plain, solver_order=2, final_sigmas_type=final,
        use_karras_sigmas=spacing == "karras", steps_offset=1 if spacing == "leading" else 0,
        lower_order_final=False, euler_at_final=final == "zero",
    )  # fmt: skip
    theirs.set_timesteps(steps)
    theirs.set_begin_index(0)  # else it starts at its second step where two times round to the same
    levels, x = in_sigma(schedule, theirs), start()
    if float(levels.sigma[-2]) == float(levels.sigma[-1]):
        return  # diffusers divides by a last step of no length
    state = x
    for i, step in enumerate(dpm_solver_2m(denoiser(network, prediction), x, levels, keyed_noise)):
        out = network(state, levels.t[i].float()[None])
        state = theirs.step(out, theirs.timesteps[i], state).prev_sample
        assert_same(step.x, state, 1e-4 if (prediction, betas) == ("eps", "cosine") else 2e-5)  # x/alpha is 1e5 there


def test_euler_on_a_karras_grid_with_edm_s_network_is_diffusers() -> None:
    schedule = Karras()
    theirs = diffusers.EDMEulerScheduler(sigma_data=0.5)
    theirs.set_timesteps(18)
    levels = schedule.grid(18)
    np.testing.assert_allclose(levels.sigma, theirs.sigmas.numpy(), rtol=1e-5)
    x = start(80.0)
    for i, t in enumerate(theirs.timesteps):
        out = network(theirs.scale_model_input(x, t), levels.t[i].float()[None])
        after = theirs.step(out, t, x).prev_sample
        assert_same(one_step(euler, denoiser(network, "edm", sigma_data=0.5), x, levels, i), after)
        x = after


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_on_a_flow_grid_is_diffusers(shift: float) -> None:
    schedule = Flow(shift=shift)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=[1 - i / 12 for i in range(12)])  # as Stable Diffusion 3's and Flux's pipelines do
    levels, x = schedule.grid(12), start()
    np.testing.assert_allclose(levels.sigma, theirs.sigmas.numpy(), atol=1e-6)
    for i, t in enumerate(theirs.timesteps):
        after = theirs.step(network(x, levels.t[i].float()[None]), t, x).prev_sample
        assert_same(one_step(euler, denoiser(network, "flow"), x, levels, i), after)
        x = after


def test_the_flow_linspace_grid_is_diffusers() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(9)
    np.testing.assert_allclose(Flow().grid(9, "linspace").sigma, theirs.sigmas.numpy(), atol=1e-6)
