"""Restoration against the exact posterior of Gaussian data, its papers' formulas written plainly, and every sampler."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.diffusion.denoiser import Denoiser, Prediction
from kuosan.diffusion.grids import repaint_evaluations, repaint_times
from kuosan.diffusion.level import Level
from kuosan.diffusion.operators import Compose, Greyscale, Identity, Mask, Measurement, Operator, area
from kuosan.diffusion.restoration import ddnm, dps, pigdm, project, repaint, resampled
from kuosan.diffusion.samplers import SAMPLERS, Step, ddim, ddpm, dpm_solver_2m, heun
from kuosan.diffusion.schedule import Discrete, Flow, Karras
from kuosan.errors import Error
from oracle import gaussian
from posterior import distance, posterior

SHAPE = (1, 4, 4)
STD = 0.5
N = 4000  # chains
SCHEDULES = {"linear": Discrete(), "cosine": Discrete(betas="cosine"), "karras": Karras(), "flow": Flow()}
INNER = (0.05, 0.3, 0.6, 0.95)  # where on a schedule
PLACE = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
COV = STD**2 * torch.exp(-torch.cdist(PLACE, PLACE) / 2)  # neighbours are alike
ISOTROPIC = STD**2 * torch.eye(16, dtype=torch.float64)
MEAN = 0.2 * torch.sin(torch.arange(16.0).double()).reshape(SHAPE)
HALF = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 4, 4)
OPERATORS: dict[str, Operator] = {"inpainting": Mask(HALF), "area": area(2, (4, 4))}


def noise(name: str, n: int, i: int = 0) -> Tensor:
    return seeds.normal([(0, name, i, 0)], (n, *SHAPE))[0].double()


TRUTH = MEAN + (torch.linalg.cholesky(COV) @ noise("truth", 1).flatten()).reshape(1, *SHAPE)


def measured(name: str, std: float) -> Measurement:
    operator = OPERATORS[name]
    return Measurement(operator, operator.apply(TRUTH) + std * operator.apply(noise("measured", 1)), std)


def last(steps: Iterator[Step]) -> Tensor:
    with torch.no_grad():
        *_, step = steps
    return step.x


def draws(n: int):
    return lambda i, now, to: noise("z", n, i)


def conditional(cov: Tensor, measurement: Measurement) -> Denoiser:
    """E[x0 | x_t, y], exactly."""
    return gaussian(*posterior(MEAN, cov, measurement))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("std", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("name", OPERATORS)
def test_pigdm_is_bayes_own_denoiser_for_isotropic_data(name: str, std: float, schedule: str) -> None:
    measurement = measured(name, std)
    held = pigdm(gaussian(MEAN, ISOTROPIC), measurement, STD)
    for level in SCHEDULES[schedule].at(INNER):
        x = level.add(TRUTH, noise("eps", 5))
        wanted = conditional(ISOTROPIC, measurement)(x, level).x0
        torch.testing.assert_close(held(x, level).x0, wanted, rtol=1e-7, atol=1e-7)
        assert float((held(x.float(), level).x0 - wanted).abs().max()) < 1e-5


@pytest.mark.parametrize("std", [0.0, 0.3])
def test_ddnm_is_it_too_where_nothing_unknown_depends_on_the_known(std: float) -> None:
    """For isotropic data A^T·A commutes with everything, so that no Jacobian is needed."""
    measurement, level = measured("area", std), Discrete().at_t(400)
    x = level.add(TRUTH, noise("eps", 5))
    held = ddnm(gaussian(MEAN, ISOTROPIC), measurement, STD)(x, level).x0
    torch.testing.assert_close(held, conditional(ISOTROPIC, measurement)(x, level).x0, rtol=1e-9, atol=1e-9)


def test_a_batch_of_levels_is_held_each_at_its_own_and_pure_noise_not_at_all() -> None:
    level = Level.of([0.0] * 4, [0.99, 0.7, 0.3, 0.0], [0.2, 0.7, 0.9, 1.0])
    grid = Flow().grid(10)
    x = level.add(TRUTH.expand(4, *SHAPE), noise("eps", 4))
    denoise = gaussian(MEAN, COV)
    for std in (0.0, 0.3):
        measurement = measured("area", std)
        for held in (ddnm(denoise, measurement), pigdm(denoise, measurement), dps(denoise, measurement, grid)):
            together = held(x, level).x0
            alone = torch.cat([held(x[i : i + 1], level[i]).x0 for i in range(4)])
            torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
        assert torch.equal(pigdm(denoise, measurement)(x, level).x0[3], denoise(x, level).x0[3])


WALKS = {
    "ddim": lambda denoise, x: ddim(denoise, x, Discrete().grid(100), draws(len(x))),
    "ddim, eta 1": lambda denoise, x: ddim(denoise, x, Discrete().grid(100), draws(len(x)), eta=1.0),
    "dpm_solver_2m": lambda denoise, x: dpm_solver_2m(denoise, x, Discrete().grid(30, "log_snr"), draws(len(x))),
    "heun": lambda denoise, x: heun(
        denoise, x, Discrete().grid(30, "log_snr"), draws(len(x)), at_log_snr=Discrete().at_log_snr
    ),
}


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("std", [0.0, 0.2])
@pytest.mark.parametrize("name", OPERATORS)
def test_pigdms_samples_of_isotropic_data_are_the_posteriors(name: str, std: float, walk: str) -> None:
    """Monte Carlo is 0.016 of the mean and 0.05 of the covariance; 100 steps of DDIM's eta 1 add 0.1."""
    measurement = measured(name, std)
    samples = last(WALKS[walk](pigdm(gaussian(MEAN, ISOTROPIC), measurement, STD), noise("x", N)))
    same = last(WALKS[walk](conditional(ISOTROPIC, measurement), noise("x", N)))
    torch.testing.assert_close(samples, same, rtol=1e-6, atol=1e-6)
    mean, cov = distance(samples, *posterior(MEAN, ISOTROPIC, measurement))
    assert mean < 0.04 and cov < (0.16 if "eta" in walk else 0.1)


# errors of the mean and of the covariance as parts of the posterior's std and covariance, of correlated data, 4000
# chains of dpm_solver_2m's 30 steps; docs/mathematics.md shows them
FIGURES = {
    ("ddnm", "inpainting", 0.0): (0.252, 0.413),
    ("ddnm", "inpainting", 0.2): (0.327, 0.394),
    ("ddnm", "area", 0.0): (0.182, 0.092),
    ("ddnm", "area", 0.2): (0.158, 0.323),
    ("pigdm", "inpainting", 0.0): (0.062, 0.039),
    ("pigdm", "inpainting", 0.2): (0.146, 0.092),
    ("pigdm", "area", 0.0): (0.065, 0.045),
    ("pigdm", "area", 0.2): (0.088, 0.241),
    ("dps", "inpainting", 0.0): (0.050, 0.040),
    ("dps", "inpainting", 0.2): (0.077, 0.098),
    ("dps", "area", 0.0): (0.064, 0.044),
    ("dps", "area", 0.2): (0.089, 0.299),
}


@pytest.mark.parametrize(("method", "name", "std"), FIGURES)
def test_correlated_data_is_restored_as_near_to_the_posterior_as_the_page_says(
    method: str, name: str, std: float
) -> None:
    denoise, measurement, levels = gaussian(MEAN, COV), measured(name, std), Discrete().grid(30, "log_snr")
    held = {
        "ddnm": lambda: ddnm(denoise, measurement, STD),
        "pigdm": lambda: pigdm(denoise, measurement, STD),
        "dps": lambda: dps(denoise, measurement, levels),
    }[method]()
    found = distance(last(dpm_solver_2m(held, noise("x", N), levels, draws(N))), *posterior(MEAN, COV, measurement))
    assert found == pytest.approx(FIGURES[method, name, std], abs=0.02)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_sampler_runs_and_ddnm_ends_with_just_what_was_measured_pigdm_near_it(name: str) -> None:
    schedule, measurement = Discrete(), measured(name, 0.0)
    for sampler in SAMPLERS:
        options = {"at_log_snr": schedule.at_log_snr} if sampler in NEEDS_LEVELS else {}
        for hold, allowed in ((ddnm, 1e-5), (pigdm, 0.2)):
            held = hold(gaussian(MEAN, COV), measurement, STD)
            x = last(SAMPLERS[sampler](held, noise("x", 3).float(), schedule.grid(20), draws(3), **options))
            assert x.dtype == torch.float32 and not x.requires_grad
            assert float(measurement.residual(x).abs().max()) < allowed, (sampler, hold)


NEEDS_LEVELS = ("heun", "dpm_solver_2s", "dpm_solver_2s_sde", "pndm")


def bent(x: Tensor, level: Level) -> Prediction:
    """A denoiser whose Jacobian has little to do with any data's: as of a network half trained."""
    return Prediction(torch.tanh(3 * x.roll(1, -1)) + 0.3 * x.flip(-1))


@pytest.mark.parametrize("hold", ["pigdm", "dps"])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_wrong_jacobian_never_leads_away_from_the_measurement(name: str, hold: str) -> None:
    measurement = measured(name, 0.0)
    for level in Discrete().at(INNER):
        x = level.add(TRUTH, noise("eps", 50))
        wrap = pigdm(bent, measurement, scale=100.0) if hold == "pigdm" else dps(bent, measurement, Discrete().grid(5))
        before, after = (measurement.residual(f(x, level).x0).flatten(1).norm(dim=1) for f in (bent, wrap))
        assert bool((after <= before * (1 + 1e-9)).all())
        assert float((before - after).max()) > 1e-3


def test_pigdms_scale_shortens_the_step_it_takes() -> None:
    measurement, level, denoise = measured("area", 0.1), Discrete().at_t(300), gaussian(MEAN, ISOTROPIC)
    x = level.add(TRUTH, noise("eps", 5))
    plain, whole, half = (pigdm(denoise, measurement, STD, scale)(x, level).x0 for scale in (0.0, 1.0, 0.5))
    torch.testing.assert_close(half, (plain + whole) / 2, rtol=1e-9, atol=1e-9)


def test_dps_is_the_papers_algorithm_where_its_steps_are_short() -> None:
    """Chung et al. 2023, algorithm 1, plainly: DDPM's step, then x - scale·grad |y - A·x0(x)|."""
    schedule, scale, denoise = Discrete(), 0.004, gaussian(MEAN, COV)
    operator, levels = OPERATORS["inpainting"], schedule.grid(1000)
    measurement = Measurement(operator, operator.apply(TRUTH) + 3 * HALF)  # far away: the residual stays long
    x = start = noise("x", 3)
    for i, (now, to) in enumerate(pairwise(levels)):
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            length = (measurement.y - operator.apply(denoise(leaf, now).x0)).flatten(1).norm(dim=1)
            grad = torch.autograd.grad(length.sum(), leaf)[0]
        x = next(ddpm(denoise, x, Level.of(*(torch.stack(pair) for pair in zip(parts(now), parts(to)))),
                      lambda _, now, to, i=i: noise("z", 3, i), variance="posterior")).x - scale * grad  # fmt: skip
    held = dps(denoise, measurement, levels, scale)
    torch.testing.assert_close(last(ddpm(held, start, levels, draws(3), "posterior")), x, rtol=1e-5, atol=1e-5)
    plain = last(ddpm(denoise, start, levels, draws(3), "posterior"))
    assert float((x - plain).abs().max()) > 0.1  # there was something to do


def parts(level: Level) -> tuple[Tensor, Tensor, Tensor]:
    return level.t, level.alpha, level.sigma


def test_dps_takes_the_pair_that_a_level_between_lies_in() -> None:
    schedule, measurement, denoise = Discrete(), measured("area", 0.0), gaussian(MEAN, COV)
    levels = schedule.grid(1000)
    held = dps(denoise, measurement, levels, 1e-4)
    i = 600
    between = schedule.at_log_snr((levels[i].log_snr * 0.3 + levels[i + 1].log_snr * 0.7).numpy())
    pushes = []
    for level in (levels[i], between, levels[i + 1]):
        x = level.add(TRUTH, noise("eps", 1))
        leaf = x.clone().requires_grad_()
        grad = torch.autograd.grad(measurement.residual(denoise(leaf, level).x0).norm(), leaf)[0]
        pushes.append(float((denoise(x, level).x0 - held(x, level).x0).norm() / grad.norm()))
    assert pushes[0] == pytest.approx(pushes[1], rel=1e-9)
    assert pushes[2] != pytest.approx(pushes[1], rel=1e-5)


def test_scale_zero_is_the_denoiser_itself_and_what_is_known_already_changes_nothing() -> None:
    denoise, measurement, level = gaussian(MEAN, COV), measured("area", 0.0), Discrete().at_t(300)
    levels = Discrete().grid(10)
    assert pigdm(denoise, measurement, scale=0.0) is denoise and dps(denoise, measurement, levels, 0.0) is denoise
    x = level.add(TRUTH, noise("eps", 2))
    known = Measurement(OPERATORS["area"], OPERATORS["area"].apply(denoise(x, level).x0))
    for held in (ddnm(denoise, known), pigdm(denoise, known), dps(denoise, known, levels)):
        torch.testing.assert_close(held(x, level).x0, denoise(x, level).x0, rtol=1e-12, atol=1e-12)
    whole = Measurement(Identity(), TRUTH)
    torch.testing.assert_close(ddnm(denoise, whole)(x, level).x0, TRUTH.expand(2, *SHAPE), rtol=1e-12, atol=1e-12)


def test_colours_and_size_are_restored_together_by_a_composition() -> None:
    operator = Compose((Greyscale(), area(2, (4, 4))))
    image = seeds.normal([(0, "colours", 0, 0)], (3, 4, 4))
    measurement = Measurement(operator, operator.apply(image))
    denoise, level = gaussian(torch.zeros(3, 4, 4), torch.tensor(STD**2)), Discrete().at_t(200)
    x = level.add(image, seeds.normal([(0, "eps", 0, i) for i in range(2)], (3, 4, 4)))
    for held in (ddnm(denoise, measurement, STD), pigdm(denoise, measurement, STD)):
        assert float(measurement.residual(held(x, level).x0).abs().max()) < 1e-5


def test_the_learned_variance_passes_and_x_is_left_alone() -> None:
    level, measurement = Discrete().at_t(300), measured("area", 0.1)
    x = level.add(TRUTH, noise("eps", 2)).float()
    version, frac = x._version, torch.full_like(x, 0.3)

    def learned(x: Tensor, level: Level) -> Prediction:
        return Prediction(gaussian(MEAN, COV)(x, level).x0, frac)

    for held in (ddnm(learned, measurement), pigdm(learned, measurement), dps(learned, measurement, Flow().grid(5))):
        with torch.no_grad():
            out = held(x, level)
        assert torch.equal(out.frac, frac) and out.x0.dtype == torch.float32
        assert not out.x0.requires_grad and not x.requires_grad and x._version == version


def test_images_may_be_on_another_device_than_levels_and_measurement() -> None:
    """On torch's meta device, which computes nothing but refuses what a GPU refuses: tensors of two devices."""
    levels = Discrete().grid(4)
    x = noise("x", 2).float().to("meta")
    for name in OPERATORS:
        for std in (0.0, 0.1):
            measurement = measured(name, std)
            holds = (ddnm(bent, measurement), pigdm(bent, measurement), dps(bent, measurement, levels))
            for held in holds:
                for level in (levels[1], levels[1:3]):
                    assert held(x, level).x0.device.type == "meta"
    steps = repaint(bent, x, levels, lambda i, now, to: noise("z", 2).to("meta"), measured("inpainting", 0.0), 2, 2)
    assert last(steps).dtype == torch.float32
    assert project(measured("inpainting", 0.0), x).device.type == "meta"


def test_project_pastes_known_pixels_exactly_and_only_where_they_are_exact() -> None:
    x = noise("x", 2).float()
    measurement = measured("inpainting", 0.0)
    pasted = project(measurement, x)
    assert torch.equal(pasted[..., :2], measurement.y.float().expand(2, *SHAPE)[..., :2])
    assert torch.equal(pasted[..., 2:], x[..., 2:])
    assert project(measured("inpainting", 0.1), x) is x and project(measured("area", 0.0), x) is x


def test_repaints_times_go_down_and_return_from_each_multiple() -> None:
    assert repaint_times(5, 2, 2) == [0, 1, 2, 1, 0, 1, 2, 3, 4, 3, 2, 3, 4, 5]  # t: 4 3 2 3 4 3 2 1 0 1 2 1 0 clean
    assert repaint_times(4, 1, 3) == [0, 1, 0, 1, 0, 1, 2, 1, 2, 1, 2, 3, 2, 3, 2, 3, 4]
    assert repaint_times(6, 4, 1) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("steps", "length", "jumps"), [(250, 10, 10), (250, 10, 2), (50, 5, 3), (47, 10, 4), (9, 8, 2)]
)
def test_each_stretch_is_walked_jumps_times_and_its_ends_once(steps: int, length: int, jumps: int) -> None:
    """Stretches of `length` from t = 0 up cover the first multiple of it at least steps - length; the rest is once."""
    times = repaint_times(steps, length, jumps)
    down = Counter(i for i, j in pairwise(times) if j == i + 1)
    up = Counter(j for i, j in pairwise(times) if j == i - 1)
    covered = math.ceil((steps - length) / length) * length
    assert times[0] == 0 and times[-1] == steps and all(abs(i - j) == 1 for i, j in pairwise(times))
    for i in range(steps):
        again = steps - 1 - covered <= i < steps - 1  # the last step, to clean, is never walked again
        assert down[i] == up[i] + 1 == (jumps if again else 1), i
    assert down.total() == repaint_evaluations(steps, length, jumps) == steps + covered * (jumps - 1)


def test_the_papers_setting_asks_the_network_2410_times() -> None:
    assert repaint_evaluations(250, 10, 10) == 10 * 240 + 10 == 2410


def test_a_plan_is_costed_without_torch() -> None:
    code = "import sys; from kuosan.diffusion import grids; grids.repaint_times(250); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_repaint_with_one_jump_is_plain_replacement() -> None:
    levels, measurement, denoise = Discrete().grid(20), measured("inpainting", 0.0), gaussian(MEAN, COV)
    x = start = noise("x", 3)
    i = iter(range(1000))
    for now, to in pairwise(levels):
        pair = Level.of(*(torch.stack(two) for two in zip(parts(now), parts(to))))
        x = next(ddpm(denoise, x, pair, lambda _, now, to: noise("z", 3, next(i)))).x
        known = to.add(measurement.y.expand_as(x), noise("z", 3, next(i)) if to.sigma > 0 else torch.zeros_like(x))
        x = HALF * known + (1 - HALF) * x
    out = last(repaint(denoise, start, levels, draws(3), measurement, jumps=1))
    torch.testing.assert_close(out, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_repaint_keeps_known_pixels_draws_each_noise_once_and_yields_each_evaluation(schedule: str) -> None:
    measurement, levels = measured("inpainting", 0.0), SCHEDULES[schedule].grid(12)
    numbers, asked = [], []

    def counted(x: Tensor, level: Level) -> Prediction:
        asked.append(level)
        return gaussian(MEAN, COV)(x, level)

    def draw(i: int, now: Level, to: Level) -> Tensor:
        numbers.append(i)
        return noise("z", 3, i)

    x = noise("x", 3).float() * float(levels.sigma[0])
    steps = list(repaint(counted, x, levels, draw, measurement, 3, 2))
    assert len(steps) == len(asked) == repaint_evaluations(12, 3, 2)
    assert numbers == list(range(len(numbers)))
    assert steps[-1].x.dtype == torch.float32 and bool(steps[-1].x.isfinite().all())
    assert torch.equal(steps[-1].x[..., :2], measurement.y.float().expand(3, *SHAPE)[..., :2])


def test_going_back_up_keeps_the_distribution_of_every_level() -> None:
    """Unheld and resampled, exact denoisers' DDPM still gives the data: returns alone change nothing."""
    steps = resampled(gaussian(MEAN, COV), noise("x", N), Discrete().grid(100), draws(N), 10, 3, ddim, eta=1.0)
    mean, cov = distance(last(steps), MEAN, COV)
    assert mean < 0.05 and cov < 0.13  # one walk of DDIM's eta 1 is as far from it


def repaint_error(steps: int, length: int, jumps: int, n: int) -> tuple[float, float]:
    measurement = measured("inpainting", 0.0)
    walk = repaint(gaussian(MEAN, COV), noise("x", n), Discrete().grid(steps), draws(n), measurement, length, jumps)
    with torch.no_grad():
        for step in walk:
            x = step.x
    return distance(x, *posterior(MEAN, COV, measurement))


# jumps: errors of mean and covariance; docs/mathematics.md shows them
QUICK = {1: (0.204, 0.229), 2: (0.139, 0.223), 5: (0.119, 0.168), 10: (0.104, 0.136)}  # 50 steps, jump_length 5
PAPER = {1: (0.185, 0.201), 2: (0.115, 0.165), 5: (0.072, 0.091), 10: (0.045, 0.071)}  # 250 steps, jump_length 10


@pytest.mark.parametrize(
    ("steps", "length", "n", "curve"),
    [(50, 5, 2000, QUICK), pytest.param(250, 10, 4000, PAPER, marks=pytest.mark.slow)],
    ids=["50 steps", "the paper's 250"],
)
def test_repaint_comes_nearer_to_the_posterior_with_more_jumps(
    steps: int, length: int, n: int, curve: dict[int, tuple[float, float]]
) -> None:
    found = {jumps: repaint_error(steps, length, jumps, n) for jumps in curve}
    for (mean, cov), (nearer, narrower) in pairwise(found.values()):
        assert nearer < mean - 0.01 and narrower < cov, found
    for jumps, figures in curve.items():
        assert found[jumps] == pytest.approx(figures, abs=0.03)


def test_ddnm_travels_in_time_by_the_same_times() -> None:
    measurement, levels = measured("inpainting", 0.0), Discrete().grid(50)
    held = ddnm(gaussian(MEAN, COV), measurement, STD)
    plain, travelled = (
        distance(last(resampled(held, noise("x", N), levels, draws(N), 5, jumps, eta=0.85)),
                 *posterior(MEAN, COV, measurement))
        for jumps in (1, 5)
    )  # fmt: skip
    assert travelled[0] < plain[0] - 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d, m, g: pigdm(d, m, scale=-1.0), r"pigdm scale -1.0"),
        (lambda d, m, g: pigdm(d, m, prior_std=0.0), r"prior_std 0.0"),
        (lambda d, m, g: ddnm(d, m, prior_std=math.nan), r"prior_std nan"),
        (lambda d, m, g: dps(d, m, g, math.inf), r"dps scale inf"),
        (lambda d, m, g: repaint(d, noise("x", 1), g, draws(1), m), r"repaint with operator Separable.*ddnm or pigdm"),
        (
            lambda d, m, g: repaint(d, noise("x", 1), g, draws(1), measured("inpainting", 0.1)),
            r"repaint with noise 0.1",
        ),
        (lambda d, m, g: resampled(d, noise("x", 1), g[:5], draws(1), 2, 2), r"ends at a clean image.*last"),
        (lambda d, m, g: resampled(d, noise("x", 1), g, draws(1), 10, 2), r"jump_length 10 with 10 steps"),
        (lambda d, m, g: repaint_times(10, 0, 1), r"jump_length 0: need a whole number"),
        (lambda d, m, g: repaint_evaluations(10, 2, 0), r"jumps 0"),
        (lambda d, m, g: pigdm(lambda x, l: Prediction(x.detach()), m)(noise("x", 1), g[3]), r"does not depend on x"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: object, message: str) -> None:
    with pytest.raises(Error, match=message):
        make(gaussian(MEAN, COV), measured("area", 0.0), Discrete().grid(10))  # type: ignore[operator]
