"""Every argument of the mathematics' public functions has an effect or is refused, and a function that a caller gives
gets what its documentation says. A table: one row an argument, a call without it and one with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from kuosan import DiffusionModel, seeds
from kuosan.diffusion import denoiser, guidance, inversion, likelihood, loss, operators, restoration, samplers
from kuosan.diffusion.denoiser import Prediction
from kuosan.diffusion.guidance import LogProb
from kuosan.diffusion.level import Level
from kuosan.diffusion.operators import Identity, Mask, Measurement
from kuosan.diffusion.registry import Weight
from kuosan.diffusion.samplers.step import Step
from kuosan.diffusion.schedule import Discrete, Flow
from kuosan.errors import Error

SHAPE = (2, 4, 4)
SCHEDULE = Discrete()
GRID = SCHEDULE.grid(6)
LEVEL = SCHEDULE.at_t(400)
LABEL = torch.tensor([0, 2, 1])


def normal(name: str, n: int = 3, shape: tuple[int, ...] = SHAPE, i: int = 0) -> Tensor:
    return seeds.normal([(0, name, i, row) for row in range(n)], shape).double()


X, DATA = normal("x"), normal("data") * 0.5


def blurred(x: Tensor, level: Level) -> Prediction:
    """A denoiser with a slope and a learned variance, of no trained network."""
    return Prediction(torch.tanh(0.7 * x.roll(1, -1) + 0.4 * x + 0.2), torch.sigmoid(x))


def other(x: Tensor, level: Level) -> Prediction:
    return Prediction(torch.cos(x), torch.full_like(x, 0.3))


def network(x: Tensor, t: Tensor, gain: float = 1.0) -> Tensor:
    return torch.tanh(gain * x + t.reshape(-1, 1, 1, 1).to(x) / 1000)


def twice(x: Tensor, t: Tensor, gain: float = 1.0) -> Tensor:
    return torch.cat([network(x, t, gain), 0.3 * network(x, t)], dim=1)


def draw(i: int, now: Level, to: Level) -> Tensor:
    return normal("draw", i=i)


def x0(denoise: Any, x: Tensor = X, level: Level = LEVEL) -> Tensor:
    return denoise(x, level).x0


def last(steps: Iterator[Step]) -> Tensor:
    *_, step = steps
    return step.x


CLASSIFIER = torch.linspace(-1, 1, 3 * X[0].numel(), dtype=torch.float64).reshape(3, -1)


def logits(x: Tensor, t: Tensor) -> Tensor:
    return (x.flatten(1) @ CLASSIFIER.T) * (1 + t.to(x)[:, None] / 1000)


HOLE = Mask(torch.tensor([1.0, 1.0, 0.0, 1.0]).expand(1, 1, 4, 4))
Y = HOLE.apply(normal("y"))
EXACT, NOISY = Measurement(HOLE, Y), Measurement(HOLE, Y, 0.1)
LEARNED = torch.sigmoid(normal("frac"))
ROWS = torch.tensor([0, 3, 7])
CHAIN = loss.discrete_chain(Discrete(T=10))
WALK: dict[str, Any] = {"at_log_snr": SCHEDULE.at_log_snr}
EPS = normal("eps")


def lp(**options: Any) -> Tensor:
    return guidance.log_prob(logits, SCHEDULE, LABEL, **options)(X, Flow().at_sigma(0.4))


def bits(**options: Any) -> Tensor:
    return loss.step_bits(CHAIN, ROWS, DATA, DATA * 0.9, **options)


def simple(prediction: str = "eps", net: Any = network, level: Level = LEVEL, **options: Any) -> Tensor:
    return loss.simple_loss(net, prediction, DATA, level, EPS, **options)


def bounded(net: Any = network, **options: Any) -> Tensor:
    return loss.bound_loss(net, "eps", DATA, Discrete(T=10).at_t(4), EPS, steps=CHAIN, **options)


def hybrid(prediction: str = "eps", **options: Any) -> Tensor:
    return loss.hybrid_loss(twice, prediction, DATA, Discrete(T=10).at_t(4), EPS, steps=CHAIN, **options)


def density(**options: Any) -> Tensor:
    settings = {"ids": [0, 1, 2], "steps": 2, **options}
    return likelihood.log_density(blurred, SCHEDULE, DATA, **settings)


def vb(**options: Any) -> Tensor:
    return likelihood.variational_bound(blurred, CHAIN, DATA, **{"ids": [0, 1, 2], **options}).total


def walked(name: str, **options: Any) -> Tensor:
    return last(samplers.SAMPLERS[name](blurred, X, GRID, draw, **options))


# (function, argument): a call without it, and one with it whose answer must be another
EFFECTS: dict[tuple[str, str], tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
    ("row", "sigma_data"): (
        lambda: torch.stack(denoiser.row("edm", LEVEL)),
        lambda: torch.stack(denoiser.row("edm", LEVEL, sigma_data=1.0)),
    ),
    ("target", "sigma_data"): (
        lambda: denoiser.target("edm", DATA, EPS, LEVEL),
        lambda: denoiser.target("edm", DATA, EPS, LEVEL, sigma_data=1.0),
    ),
    ("to_x0", "sigma_data"): (
        lambda: denoiser.to_x0("edm", EPS, X, LEVEL),
        lambda: denoiser.to_x0("edm", EPS, X, LEVEL, sigma_data=1.0),
    ),
    ("to_eps", "sigma_data"): (
        lambda: denoiser.to_eps("edm", EPS, X, LEVEL),
        lambda: denoiser.to_eps("edm", EPS, X, LEVEL, sigma_data=1.0),
    ),
    ("denoiser", "sigma_data"): (
        lambda: x0(denoiser.denoiser(network, "edm")),
        lambda: x0(denoiser.denoiser(network, "edm", sigma_data=1.0)),
    ),
    ("denoiser", "learned_variance"): (
        lambda: torch.zeros(1),
        lambda: denoiser.denoiser(twice, "v", learned_variance=True)(X, LEVEL).frac,
    ),
    ("denoiser", "cond"): (
        lambda: x0(denoiser.denoiser(network, "v")),
        lambda: x0(denoiser.denoiser(network, "v", cond={"gain": 0.5})),
    ),
    ("interval", "low"): (
        lambda: x0(guidance.interval(other, blurred)),
        lambda: x0(guidance.interval(other, blurred, low=50.0)),
    ),
    ("interval", "high"): (
        lambda: x0(guidance.interval(other, blurred)),
        lambda: x0(guidance.interval(other, blurred, high=0.1)),
    ),
    ("rescale", "prediction"): (
        lambda: x0(guidance.rescale(other, blurred, 0.7)),
        lambda: x0(guidance.rescale(other, blurred, 0.7, prediction="v")),
    ),
    ("clamp", "low"): (lambda: x0(guidance.clamp(other)), lambda: x0(guidance.clamp(other, low=0.1))),
    ("clamp", "high"): (lambda: x0(guidance.clamp(other)), lambda: x0(guidance.clamp(other, high=0.1))),
    ("dynamic_threshold", "percentile"): (
        lambda: x0(guidance.dynamic_threshold(lambda x, level: Prediction(3 * x))),
        lambda: x0(guidance.dynamic_threshold(lambda x, level: Prediction(3 * x), percentile=60)),
    ),
    ("log_prob", "sampled"): (lambda: lp(), lambda: lp(sampled=Flow())),
    ("doubled", "sigma_data"): (
        lambda: x0(guidance.doubled(network, "edm", {}, {})[0]),
        lambda: x0(guidance.doubled(network, "edm", {}, {}, sigma_data=1.0)[0]),
    ),
    ("doubled", "learned_variance"): (
        lambda: torch.zeros(1),
        lambda: guidance.doubled(twice, "v", {}, {}, learned_variance=True)[0](X, LEVEL).frac,
    ),
    ("ddnm", "prior_std"): (
        lambda: x0(restoration.ddnm(blurred, NOISY)),
        lambda: x0(restoration.ddnm(blurred, NOISY, prior_std=0.2)),
    ),
    ("pigdm", "prior_std"): (
        lambda: x0(restoration.pigdm(blurred, NOISY, scale=0.1)),
        lambda: x0(restoration.pigdm(blurred, NOISY, prior_std=0.2, scale=0.1)),
    ),
    ("pigdm", "scale"): (
        lambda: x0(restoration.pigdm(blurred, NOISY, scale=0.1)),
        lambda: x0(restoration.pigdm(blurred, NOISY, scale=0.2)),
    ),
    ("dps", "scale"): (
        lambda: x0(restoration.dps(blurred, EXACT, GRID, scale=1e-4)),
        lambda: x0(restoration.dps(blurred, EXACT, GRID, scale=2e-4)),
    ),
    ("dps", "decode"): (
        lambda: x0(restoration.dps(blurred, EXACT, GRID)),
        lambda: x0(restoration.dps(blurred, EXACT, GRID, decode=lambda z: 1.5 * z)),
    ),
    ("repaint", "jump_length"): (
        lambda: last(restoration.repaint(blurred, X, GRID, draw, EXACT, 1, 2)),
        lambda: last(restoration.repaint(blurred, X, GRID, draw, EXACT, 2, 2)),
    ),
    ("repaint", "jumps"): (
        lambda: last(restoration.repaint(blurred, X, GRID, draw, EXACT, 2, 1)),
        lambda: last(restoration.repaint(blurred, X, GRID, draw, EXACT, 2, 2)),
    ),
    ("repaint", "variance"): (
        lambda: last(restoration.repaint(blurred, X, GRID, draw, EXACT, 2, 1)),
        lambda: last(restoration.repaint(blurred, X, GRID, draw, EXACT, 2, 1, variance="posterior")),
    ),
    ("resampled", "jump_length"): (
        lambda: last(restoration.resampled(blurred, X, GRID, draw, 1, 2)),
        lambda: last(restoration.resampled(blurred, X, GRID, draw, 2, 2)),
    ),
    ("resampled", "jumps"): (
        lambda: last(restoration.resampled(blurred, X, GRID, draw, 2, 1)),
        lambda: last(restoration.resampled(blurred, X, GRID, draw, 2, 2)),
    ),
    ("resampled", "sampler"): (
        lambda: last(restoration.resampled(blurred, X, GRID, draw, 2, 2)),
        lambda: last(restoration.resampled(blurred, X, GRID, draw, 2, 2, sampler=samplers.ddpm)),
    ),
    ("gaussian_blur", "radius"): (
        lambda: operators.gaussian_blur(1.0, (4, 4)).apply(X),
        lambda: operators.gaussian_blur(1.0, (4, 4), radius=1).apply(X),
    ),
    ("ddim_inversion", "iterations"): (
        lambda: last(inversion.ddim_inversion(blurred, X, SCHEDULE.grid(4, last="first"))),
        lambda: last(inversion.ddim_inversion(blurred, X, SCHEDULE.grid(4, last="first"), iterations=2)),
    ),
    ("chain", "published"): (
        lambda: loss.chain(GRID, torch.tensor(1.0)).log_beta,
        lambda: loss.chain(GRID, torch.tensor(1.0), published=False).log_beta,
    ),
    ("step_bits", "variance"): (lambda: bits(), lambda: bits(variance="beta")),
    ("step_bits", "frac"): (
        lambda: bits(variance="learned", frac=0 * LEARNED),
        lambda: bits(variance="learned", frac=LEARNED),
    ),
    ("step_bits", "decoder"): (lambda: bits(), lambda: bits(decoder="density")),
    ("weight", "sigma_data"): (
        lambda: loss.weight("edm", LEVEL, "v"),
        lambda: loss.weight("edm", LEVEL, "v", sigma_data=1.0),
    ),
    ("weight", "schedule"): (
        lambda: loss.weight("vlb", LEVEL, "v", schedule=SCHEDULE),
        lambda: loss.weight("vlb", LEVEL, "v", schedule=Discrete(betas="sigmoid")),
    ),
    ("simple_loss", "weight_name"): (lambda: simple(), lambda: simple(weight_name=Weight("p2", p2_k=2.0))),
    ("simple_loss", "schedule"): (
        lambda: simple(weight_name="vlb", schedule=SCHEDULE),
        lambda: simple(weight_name="vlb", schedule=Discrete(betas="sigmoid")),
    ),
    ("simple_loss", "sigma_data"): (lambda: simple("edm"), lambda: simple("edm", sigma_data=1.0)),
    ("simple_loss", "learned_variance"): (
        lambda: simple(net=lambda x, t: network(x, t)),
        lambda: simple(net=lambda x, t: 2 * twice(x, t), learned_variance=True),
    ),
    ("simple_loss", "cond"): (lambda: simple(), lambda: simple(cond={"gain": 0.5})),
    ("bound_loss", "variance"): (lambda: bounded(), lambda: bounded(variance="beta")),
    ("bound_loss", "sigma_data"): (
        lambda: loss.bound_loss(network, "edm", DATA, Discrete(T=10).at_t(4), EPS, steps=CHAIN),
        lambda: loss.bound_loss(network, "edm", DATA, Discrete(T=10).at_t(4), EPS, steps=CHAIN, sigma_data=1.0),
    ),
    ("bound_loss", "learned_variance"): (lambda: bounded(), lambda: bounded(net=twice, learned_variance=True)),
    ("bound_loss", "cond"): (lambda: bounded(), lambda: bounded(cond={"gain": 0.5})),
    ("hybrid_loss", "vlb_weight"): (lambda: hybrid(), lambda: hybrid(vlb_weight=0.1)),
    ("hybrid_loss", "weight_name"): (lambda: hybrid(), lambda: hybrid(weight_name="min_snr")),
    ("hybrid_loss", "schedule"): (
        lambda: hybrid(weight_name="vlb", schedule=Discrete(T=10)),
        lambda: hybrid(weight_name="vlb", schedule=Discrete(T=10, betas="sigmoid")),
    ),
    ("hybrid_loss", "sigma_data"): (lambda: hybrid("edm"), lambda: hybrid("edm", sigma_data=1.0)),
    ("hybrid_loss", "cond"): (lambda: hybrid(), lambda: hybrid(cond={"gain": 0.5})),
    ("variational_bound", "seed"): (lambda: vb(), lambda: vb(seed=1)),
    ("variational_bound", "evaluations"): (lambda: vb(), lambda: vb(evaluations=3)),
    ("variational_bound", "variance"): (lambda: vb(), lambda: vb(variance="learned")),
    ("variational_bound", "decoder"): (lambda: vb(), lambda: vb(decoder="density")),
    ("dequantised", "seed"): (
        lambda: likelihood.dequantised(DATA, ids=[0, 1, 2]),
        lambda: likelihood.dequantised(DATA, ids=[0, 1, 2], seed=1),
    ),
    ("log_density", "seed"): (lambda: density(probe="gaussian"), lambda: density(probe="gaussian", seed=1)),
    ("log_density", "steps"): (lambda: density(), lambda: density(steps=3)),
    ("log_density", "probe"): (lambda: density(), lambda: density(probe="exact")),
    ("log_density", "probes"): (lambda: density()[:, :1], lambda: density(probes=2)[:, 1:]),
    ("strata", "evaluations"): (
        lambda: torch.from_numpy(likelihood.strata(10)[1]),
        lambda: torch.from_numpy(likelihood.strata(10, evaluations=3)[1]),
    ),
    ("span", "first"): (
        lambda: torch.tensor(likelihood.span(SCHEDULE).first),
        lambda: torch.tensor(likelihood.span(SCHEDULE, first=0.05).first),
    ),
    ("log_density", "first"): (lambda: density(), lambda: density(first=0.05)),
    ("ddpm", "variance"): (lambda: walked("ddpm"), lambda: walked("ddpm", variance="learned")),
    ("ddim", "eta"): (lambda: walked("ddim"), lambda: walked("ddim", eta=0.5)),
    ("euler_ancestral", "eta"): (lambda: walked("euler_ancestral"), lambda: walked("euler_ancestral", eta=0.5)),
    ("dpm_solver_2m_sde", "eta"): (lambda: walked("dpm_solver_2m_sde"), lambda: walked("dpm_solver_2m_sde", eta=0.5)),
    ("dpm_solver_3m_sde", "eta"): (lambda: walked("dpm_solver_3m_sde"), lambda: walked("dpm_solver_3m_sde", eta=0.5)),
    ("dpm_solver_2s_sde", "eta"): (
        lambda: walked("dpm_solver_2s_sde", **WALK),
        lambda: walked("dpm_solver_2s_sde", eta=0.5, **WALK),
    ),
    ("heun", "s_churn"): (lambda: walked("heun", **WALK), lambda: walked("heun", s_churn=2.0, **WALK)),
    ("heun", "s_tmin"): (
        lambda: walked("heun", s_churn=2.0, **WALK),
        lambda: walked("heun", s_churn=2.0, s_tmin=1.0, **WALK),
    ),
    ("heun", "s_tmax"): (
        lambda: walked("heun", s_churn=2.0, **WALK),
        lambda: walked("heun", s_churn=2.0, s_tmax=1.0, **WALK),
    ),
    ("heun", "s_noise"): (
        lambda: walked("heun", s_churn=2.0, **WALK),
        lambda: walked("heun", s_churn=2.0, s_noise=0.5, **WALK),
    ),
}
# where the noise of a stochastic walk comes from; a walk that draws none refuses both
NOISY_OPTIONS: dict[str, dict[str, Any]] = {"ddim": {"eta": 1.0}, "heun": {"s_churn": 3.0}}
for _name in ("ddpm", "ddim", "euler_ancestral", "heun", "dpm_solver_2s_sde", "dpm_solver_2m_sde", "dpm_solver_3m_sde"):
    for _key, _given in {"seed": 5, "generator": torch.Generator().manual_seed(5)}.items():
        _between = WALK if _name in ("heun", "dpm_solver_2s_sde") else {}
        _call = functools.partial(
            samplers.SAMPLERS[_name], blurred, X, GRID, **NOISY_OPTIONS.get(_name, {}), **_between
        )
        EFFECTS[_name, _key] = (
            lambda call=_call: last(call()),  # type: ignore[misc]
            lambda call=_call, key=_key, given=_given: last(call(**{key: given})),  # type: ignore[misc]
        )
# the uniform form of a sampler: handed to all, needed by those that ask between the grid's levels (tests/conformance)
FORM = {"at_log_snr", "noise"}
ROOMS = (denoiser, guidance, restoration, operators, inversion, likelihood, loss, samplers)


def public() -> Iterator[tuple[str, str]]:
    """(function, argument with a default) of all that the rooms of the mathematics hand out."""
    for room in ROOMS:
        for name in getattr(room, "__all__", vars(room)):
            function = vars(room)[name]
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            if function.__module__ != room.__name__ and room is not samplers:
                continue
            for key, parameter in inspect.signature(function).parameters.items():
                if parameter.default is not inspect.Parameter.empty and key not in FORM:
                    yield name, key


INNER = {"evaluate"}  # what the losses and the denoiser above are made of, arguments handed on


def test_every_argument_with_a_default_stands_in_the_table() -> None:
    assert {pair for pair in public() if pair[0] not in INNER} == set(EFFECTS)


@pytest.mark.parametrize("pair", EFFECTS, ids="-".join)
def test_an_argument_has_an_effect(pair: tuple[str, str]) -> None:
    without, with_it = (call() for call in EFFECTS[pair])
    assert without.shape != with_it.shape or float((without - with_it).abs().max().detach()) > 1e-9


@pytest.mark.parametrize(
    "call",
    [
        lambda m: x0(restoration.ddnm(blurred, m)),
        lambda m: x0(restoration.pigdm(blurred, m, scale=0.1)),
        lambda m: x0(restoration.dps(blurred, m, GRID)),
    ],
    ids=["ddnm", "pigdm", "dps"],
)
def test_a_measurements_noise_has_an_effect_on_every_method_that_takes_it(
    call: Callable[[Measurement], Tensor],
) -> None:
    exact, noisy, more = (call(Measurement(HOLE, Y, std)) for std in (0.0, 0.1, 0.4))
    assert float((exact - noisy).abs().max()) > 1e-6 and float((noisy - more).abs().max()) > 1e-6


def test_dps_follows_no_residual_that_noise_alone_explains() -> None:
    near = Measurement(HOLE, HOLE.apply(x0(blurred)) + 0.01, 0.1)  # a tenth of the noise away
    assert torch.equal(x0(restoration.dps(blurred, near, GRID)), x0(blurred))


def test_dps_counts_as_measured_what_a_mask_keeps_and_not_what_it_hides() -> None:
    """The mean of many measurements of exact data lies where half of the residuals are within their noise: for the same
    known numbers the step is the same, whatever else is hidden."""
    wide = torch.cat([X, X.roll(1, 0)], dim=-1)
    hidden = Mask(torch.cat([torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)], dim=-1))

    def still(x: Tensor, level: Level) -> Prediction:
        return Prediction(torch.tanh(x))

    alone = restoration.dps(still, Measurement(Identity(), DATA, 0.3), GRID)(X, LEVEL).x0
    y = hidden.apply(torch.cat([DATA, DATA], dim=-1))
    beside = restoration.dps(still, Measurement(hidden, y, 0.3), GRID)(wide, LEVEL).x0
    torch.testing.assert_close(beside[..., :4], alone, rtol=1e-12, atol=1e-12)


REFUSED = {
    "decoder": lambda: bits(decoder="bin"),
    "variance 'betta'": lambda: bits(variance="betta"),
    "predicts no variance": lambda: bits(variance="learned"),
    "radius 1.5": lambda: operators.gaussian_blur(1.0, (4, 4), radius=1.5),  # type: ignore[arg-type]
    "radius True": lambda: operators.gaussian_blur(1.0, (4, 4), radius=True),
    "cut 2": lambda: operators.Separable(torch.eye(4), torch.eye(4), cut=2),
    "rows of shape": lambda: operators.Separable(torch.ones(4), torch.eye(4)),
    r"shape \(2, 1, 8.5, 8\)": lambda: DiffusionModel(network, 10).sample((2, 1, 8.5, 8)),  # type: ignore[arg-type]
    "label of shape": lambda: guidance.log_prob(logits, SCHEDULE, LABEL[:, None]),
    "torch.float64": lambda: guidance.log_prob(logits, SCHEDULE, LABEL.double()),
    "2 labels for 3 images": lambda: guidance.log_prob(logits, SCHEDULE, LABEL[:2])(X, LEVEL),
    "labels 0 to 7": lambda: guidance.log_prob(logits, SCHEDULE, torch.tensor([0, 1, 7]))(X, LEVEL),
    "labels -1 to 2": lambda: guidance.log_prob(logits, SCHEDULE, torch.tensor([0, -1, 2]))(X, LEVEL),
    "need logits": lambda: guidance.log_prob(lambda x, t: x, SCHEDULE, LABEL)(X, LEVEL),
    "they shape s_churn": lambda: walked("heun", s_tmin=1.0, **WALK),
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_would_have_no_effect_or_no_meaning_is_refused_by_name(words: str) -> None:
    with pytest.raises(Error, match=words):
        REFUSED[words]()


def own_classifier(seen: list[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def called(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return logits(x, t)

    return called


def own_network(seen: list[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def called(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return network(x, t)

    return called


def guided(log_prob: LogProb, level: Level) -> None:
    guidance.classifier(blurred, log_prob, 2.0)(X, level)


# who calls a function of the caller's own: what is called at a level
CALLERS: dict[str, Callable[[list[Tensor], Level], object]] = {
    "denoiser": lambda seen, level: denoiser.denoiser(own_network(seen), "v")(X, level),
    "log_prob": lambda seen, level: guidance.log_prob(own_classifier(seen), SCHEDULE, LABEL)(X, level),
    "log_prob, another schedule": lambda seen, level: guidance.log_prob(
        own_classifier(seen), Flow(), LABEL, sampled=SCHEDULE
    )(X, level),
    "classifier": lambda seen, level: guided(guidance.log_prob(own_classifier(seen), SCHEDULE, LABEL), level),
    "gradient": lambda seen, level: guidance.gradient(
        guidance.log_prob(own_classifier(seen), SCHEDULE, LABEL), X, level
    ),
    "pigdm": lambda seen, level: restoration.pigdm(denoiser.denoiser(own_network(seen), "v"), EXACT)(X, level),
    "dps": lambda seen, level: restoration.dps(denoiser.denoiser(own_network(seen), "v"), NOISY, GRID)(X, level),
    "ddnm": lambda seen, level: restoration.ddnm(denoiser.denoiser(own_network(seen), "v"), EXACT)(X, level),
    "simple_loss": lambda seen, level: simple(net=own_network(seen), level=level),
}


@pytest.mark.parametrize("levels", ["one level", "a level an image"])
@pytest.mark.parametrize("caller", CALLERS)
def test_a_network_of_the_callers_gets_a_timestep_an_image(caller: str, levels: str) -> None:
    seen: list[Tensor] = []
    level = LEVEL if levels == "one level" else SCHEDULE.at_t([300, 400, 500])
    CALLERS[caller](seen, level)
    assert seen
    for t in seen:
        assert t.shape == (3,) and t.dtype == torch.float32
    if "another" not in caller:
        assert seen[0].tolist() == ([400.0] * 3 if levels == "one level" else [300.0, 400.0, 500.0])


def test_every_call_of_a_sampler_has_a_timestep_an_image() -> None:
    for name, sampler in samplers.SAMPLERS.items():
        seen: list[Tensor] = []
        options = WALK if "at_log_snr" in inspect.signature(sampler).parameters else {}
        last(sampler(denoiser.denoiser(own_network(seen), "v"), X, GRID, draw, **options))
        assert seen and all(t.shape == (3,) and t.dtype == torch.float32 for t in seen), name
