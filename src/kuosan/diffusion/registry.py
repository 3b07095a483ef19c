"""A loss's weight over noise levels: its name and its numbers. Torch-free.

The names a user may give to the mathematics, and which of them go together. Torch-free.

Every name is either understood or refused: `check` raises an Error for what would be wrong or without effect.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kuosan.diffusion.grids import LASTS, check_grid
from kuosan.errors import Error, shown, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.diffusion.level import Level


@dataclass(frozen=True)
class Weight:
    """A weight by its name, in any known spelling, with the numbers of the one that has some."""

    name: str = "simple"
    min_snr_gamma: float = 5.0  # min_snr: the largest SNR that counts (Hang et al. 2023)
    p2_k: float = 1.0  # p2: k of 1/(k + SNR)^gamma on the error of eps (Choi et al. 2022, eq. 8)
    p2_gamma: float = 1.0  # p2: gamma of the same; 0.5 and 1 are the paper's

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", weight(self.name))
        for number, default, owner in (("min_snr_gamma", 5.0, "min_snr"), ("p2_k", 1.0, "p2"), ("p2_gamma", 1.0, "p2")):
            value = getattr(self, number)
            if not 0 < value < math.inf:
                raise Error(f"{number} = {value}: it must be above 0; {default:g} is common.")
            if value != default and self.name != owner:
                raise Error(
                    f"{number} = {value}: weight {self.name!r} has none; use weight {owner!r}, or leave it out."
                )


def check_weight(weight: str | Weight, schedule: object, prediction: str) -> None:
    """Refuse a loss weight that is unknown or has no value on the schedule, or a prediction that it does not allow."""
    check_model(schedule, prediction)
    if (weight if isinstance(weight, Weight) else Weight(weight)).name == "vlb":
        elbo_weight(schedule)


def elbo_weight(schedule: object) -> Callable[[Level], Tensor]:
    """The schedule's own sigma²·W of the variational bound. Raises: Error where it has none."""
    found: Callable[[Level], Tensor] | None = getattr(schedule, "elbo_weight", None)
    if found is None:
        raise Error(
            f"weight 'vlb': {type(schedule).__name__} has no elbo_weight(level), which gives it; use weight 'snr'."
        )
    return found


SCHEDULES: tuple[str, ...] = ("discrete", "karras", "flow")
BETAS: tuple[str, ...] = ("linear", "scaled_linear", "cosine", "sigmoid")
PREDICTIONS: tuple[str, ...] = ("eps", "x0", "v", "flow", "edm")
WEIGHTS: tuple[str, ...] = ("simple", "snr", "x0", "v", "flow", "edm", "min_snr", "p2", "sigmoid", "vlb")
VARIANCES: tuple[str, ...] = ("beta", "posterior", "learned")

PREDICTION_ALIASES = {
    "epsilon": "eps",
    "noise": "eps",
    "pred_noise": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "start_x": "x0",
    "x_start": "x0",
    "pred_x0": "x0",
    "v_prediction": "v",
    "v_pred": "v",
    "pred_v": "v",
    "velocity": "v",
    "flow_prediction": "flow",
    "flow_matching": "flow",
    "rectified_flow": "flow",
}  # words of diffusers, guided-diffusion and denoising-diffusion-pytorch; case, spaces and dashes do not matter
VARIANCE_ALIASES = {"fixed_large": "beta", "fixed_small": "posterior", "learned_range": "learned"}
WEIGHT_ALIASES = {"uniform": "simple", "eps": "snr", "min_snr_gamma": "min_snr", "min-snr": "min_snr", "elbo": "vlb"}


@dataclass(frozen=True)
class SamplerOption:
    """One option of a sampler: its default, and the words or the range it takes."""

    default: str | float
    words: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    needs: str = ""  # the option without which it has no effect

    def check(self, sampler: str, name: str, value: object) -> None:
        if self.words:
            if value not in self.words:
                raise unknown(f"{name} of sampler {sampler!r}", value, self.words)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not self.low <= value <= self.high:
            allowed = f"from {self.low:g} to {self.high:g}" if self.high < math.inf else f"of {self.low:g} or more"
            raise Error(f"{name} {value!r}: sampler {sampler!r} takes a number {allowed}.")


@dataclass(frozen=True)
class SamplerSpec:
    """What is known of a sampler without running it."""

    name: str
    title: str
    aliases: tuple[str, ...]  # other tools' spellings; case, spaces, dashes and underscores do not matter
    default_steps: int
    options: Mapping[str, SamplerOption] = field(default_factory=dict)
    order: int = 1  # of convergence to the probability flow; of a stochastic sampler, of its mean and variance
    per_step: int = 1  # network evaluations a step
    warm_up: tuple[int, ...] = ()  # further evaluations of the first steps
    at_log_snr: bool = False  # takes at_log_snr=schedule.at_log_snr, for levels between those of the grid
    noise: str = ""  # the option that says whether noise is drawn; none: never

    def nfe(self, steps: int, last: str = "clean") -> int:
        """Network evaluations an image; a step of several needs only one if it ends at sigma = 0.

        A few less where the grid begins at alpha = 0, or almost: that step, too, takes one.
        """
        multiple = steps - (1 if last == "clean" else 0)
        return steps + multiple * (self.per_step - 1) + sum(self.warm_up[:multiple])

    def stochastic(self, options: Mapping[str, Any] | None = None) -> bool:
        """Whether sampling draws noise between steps, with these options."""
        return bool(self.noise) and bool((options or {}).get(self.noise, self.options[self.noise].default))


ETA = {"eta": SamplerOption(1.0)}
CHURN = {
    "s_churn": SamplerOption(0.0, high=math.inf),
    "s_tmin": SamplerOption(0.0, high=math.inf, needs="s_churn"),
    "s_tmax": SamplerOption(math.inf, high=math.inf, needs="s_churn"),
    "s_noise": SamplerOption(1.0, high=math.inf, needs="s_churn"),
}
SAMPLERS: dict[str, SamplerSpec] = {
    spec.name: spec
    for spec in (
        SamplerSpec("ddpm", "DDPM (Ho et al. 2020)", ("DDPMScheduler", "DDPMParallelScheduler", "sample_ddpm"), 1000,
                    {"variance": SamplerOption("beta", VARIANCES)}, noise="variance"),
        SamplerSpec("ddim", "DDIM (Song et al. 2021)", ("DDIMScheduler", "DDIMParallelScheduler", "sample_ddim"),
                    50, {"eta": SamplerOption(0.0)}, noise="eta"),
        SamplerSpec("euler", "Euler (Karras et al. 2022)", ("k_euler", "sample_euler", "EulerDiscreteScheduler",
                    "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"), 50),
        SamplerSpec("euler_ancestral", "Euler ancestral (k-diffusion)", ("Euler a", "k_euler_a", "k_euler_ancestral",
                    "sample_euler_ancestral", "EulerAncestralDiscreteScheduler"), 50, ETA, noise="eta"),
        SamplerSpec("heun", "Heun, with EDM's churn (Karras et al. 2022)", ("k_heun", "sample_heun",
                    "HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), 25, CHURN, order=2, per_step=2,
                    at_log_snr=True, noise="s_churn"),
        SamplerSpec("dpm_solver_2s", "DPM-Solver++ 2S (Lu et al. 2022)", ("DPM++ 2S", "dpmpp_2s", "dpm_solver++_2s",
                    "dpm_solver_pp_2s", "DPMSolverSinglestepScheduler", "dpm_solver_singlestep"), 10, order=2,
                    per_step=2, at_log_snr=True),
        SamplerSpec("dpm_solver_2m", "DPM-Solver++ 2M (Lu et al. 2022)", ("DPM++ 2M", "dpmpp_2m", "k_dpmpp_2m",
                    "sample_dpmpp_2m", "dpm_solver++", "dpmsolver++", "dpm_solver++_2m", "dpm_solver_pp_2m",
                    "DPMSolverMultistepScheduler", "dpm_solver_multistep", "EDMDPMSolverMultistepScheduler"), 20,
                    order=2),
        SamplerSpec("dpm_solver_3m", "DPM-Solver++ 3M as published (Lu et al. 2022)", ("DPM++ 3M", "dpmpp_3m",
                    "dpm_solver++_3m", "dpm_solver_pp_3m"), 20, order=2),
        SamplerSpec("dpm_solver_3m_corrected", "DPM-Solver++ 3M with third order's weight", (), 20, order=3),
        SamplerSpec("dpm_solver_2s_sde", "SDE-DPM-Solver++ 2S (Lu et al. 2022)", ("DPM++ SDE", "dpmpp_sde",
                    "k_dpmpp_sde", "sample_dpmpp_sde", "dpmpp_sde_gpu", "DPMSolverSDEScheduler", "dpm_solver_sde"), 15,
                    ETA, order=2, per_step=2, at_log_snr=True, noise="eta"),
        SamplerSpec("dpm_solver_2m_sde", "SDE-DPM-Solver++ 2M (Lu et al. 2022)", ("DPM++ 2M SDE", "dpmpp_2m_sde",
                    "k_dpmpp_2m_sde", "sample_dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "sde_dpm_solver++", "sde_dpmsolver++",
                    "dpm_solver++_2m_sde"), 30, ETA, order=2, noise="eta"),
        SamplerSpec("dpm_solver_3m_sde", "SDE-DPM-Solver++ 3M (k-diffusion)", ("DPM++ 3M SDE", "dpmpp_3m_sde",
                    "k_dpmpp_3m_sde", "sample_dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "dpm_solver++_3m_sde"), 30, ETA,
                    order=2, noise="eta"),
        SamplerSpec("unipc", "UniPC-2 (Zhao et al. 2023)", ("uni_pc", "uni_pc_bh2", "unipc_2", "unipc_bh2",
                    "UniPCMultistepScheduler", "unipc_multistep"), 20, order=3),
        SamplerSpec("unipc_3", "UniPC-3 (Zhao et al. 2023)", ("uni_pc_3",), 20, order=4),
        SamplerSpec("plms", "PLMS (Liu et al. 2022)", ("k_plms",), 50, order=2, warm_up=(1,)),
        SamplerSpec("pndm", "PNDM, PLMS after Runge-Kutta (Liu et al. 2022)", ("PNDMScheduler", "f_pndm"), 50, order=2,
                    warm_up=(3, 3, 3), at_log_snr=True),
    )
}  # fmt: skip


def plain(name: str) -> str:
    """A spelling without case, spaces, dashes, underscores or a 'Scheduler' at its end."""
    return re.sub(r"[\s_\-.]", "", name.lower()).replace("++", "pp").removesuffix("scheduler")


ALIASES = {alias: spec.name for spec in SAMPLERS.values() for alias in spec.aliases}
SPELLINGS = {plain(alias): spec.name for spec in SAMPLERS.values() for alias in (spec.name, *spec.aliases)}


def sampler(name: str) -> str:
    """The canonical name of a sampler in any known spelling. Raises: Error, with the nearest name."""
    key = plain(str(name))
    if key in SPELLINGS:
        return SPELLINGS[key]
    for spacing in ("karras", "exponential"):
        if key.endswith(spacing) and key.removesuffix(spacing) in SPELLINGS:
            cure = "karras" if spacing == "karras" else "log_snr"
            raise Error(f"sampler {name!r}: say sampler {SPELLINGS[key.removesuffix(spacing)]!r} and spacing {cure!r}.")
    raise unknown_among("sampler", name, SAMPLERS, ALIASES)


def prediction(name: str) -> str:
    """The canonical name of a prediction; other tools' words are understood. Raises: Error, with the nearest name."""
    if name in PREDICTIONS:
        return name
    key = re.sub(r"[\s-]", "_", str(name).strip().lower())
    found = PREDICTION_ALIASES.get(key, key)
    if found not in PREDICTIONS:
        raise unknown_among("prediction", name, PREDICTIONS, PREDICTION_ALIASES)
    return found


def unknown_among(thing: str, name: object, own: Iterable[str], aliases: Mapping[str, str]) -> Error:
    """An `Error` for a name that is neither ours nor an alias, with the one of ours that is meant by the nearest."""
    own = tuple(own)
    near = difflib.get_close_matches(str(name).lower(), [*own, *aliases], n=1, cutoff=0.5)
    error = unknown(thing, name, own)
    if not near or near[0] in own:
        return error
    guess = f"did you mean {near[0]!r}, here {aliases[near[0]]!r}?"
    return Error(f"unknown {thing} {shown(name)}: {guess} Allowed: {', '.join(own)}.")


def variance(name: str) -> str:
    """The canonical name of DDPM's variance; diffusers' words are understood. Raises: Error."""
    found = VARIANCE_ALIASES.get(name, name)
    if found not in VARIANCES:
        raise unknown("variance", name, VARIANCES)
    return found


def weight(name: str) -> str:
    """The canonical name of a loss weight. Raises: Error."""
    found = WEIGHT_ALIASES.get(name, name)
    if found not in WEIGHTS:
        raise unknown("weight", name, WEIGHTS)
    return found


def default_spacing(schedule: object) -> str | None:
    """A schedule's default spacing; None leaves it to a schedule of the user's own."""
    kind = getattr(schedule, "kind", None)
    return {"discrete": "trailing", "karras": "karras", "flow": "trailing"}.get(str(kind))


def starts_at_pure_noise(schedule: object) -> bool:
    """Whether the schedule's grids begin at alpha = 0."""
    return getattr(schedule, "kind", None) == "flow" or bool(getattr(schedule, "zero_terminal_snr", False))


def check(
    schedule: object,
    prediction: str,
    *,
    sampler: object = None,
    steps: int | None = None,
    spacing: str | None = None,
    last: str = "clean",
    offset: int = 0,
    learned_variance: bool = False,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Refuse what cannot be trained (schedule and prediction) or, where a sampler is named, what cannot be sampled.

    A schedule or a sampler of the user's own is trusted: only the rules that its attributes let us check apply.
    Raises: Error, naming the thing, its value, what is allowed and the cure.
    """
    check_model(schedule, prediction)
    if steps is not None or spacing is not None or last != "clean" or offset:
        check_trajectory(schedule, 1 if steps is None else steps, spacing, last, offset)
    if sampler is None:
        if options:
            raise Error(f"options {', '.join(options)}: they belong to a sampler, and none is named.")
    elif not callable(sampler):
        check_sampler(str(sampler), learned_variance, options or {})


def check_model(schedule: object, name: str) -> None:
    """Refuse a prediction that a schedule's noisiest level does not allow."""
    if name in PREDICTION_ALIASES:
        raise Error(f"prediction {name!r}: here it is called {PREDICTION_ALIASES[name]!r}.")
    if name not in PREDICTIONS:
        raise unknown("prediction", name, PREDICTIONS)
    if name == "eps" and starts_at_pure_noise(schedule):
        cause = "zero_terminal_snr" if getattr(schedule, "zero_terminal_snr", False) else "a flow schedule"
        raise Error(
            f"prediction 'eps' with {cause}: sampling starts at alpha = 0, where the noise says nothing about the "
            "image; predict v, x0, flow or edm."
        )


def check_trajectory(schedule: object, steps: int, spacing: str | None, last: str, offset: int) -> None:
    """Refuse a grid that a schedule does not have."""
    spacings = getattr(schedule, "spacings", None)
    spacing = spacing or default_spacing(schedule)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise Error(f"steps {steps!r}: need a whole number, at least 1.")
    if last not in LASTS:
        raise unknown("last", last, LASTS)
    if spacings is None or spacing is None:
        return
    kind = str(getattr(schedule, "kind", "own"))
    T = getattr(schedule, "T", None)
    if (
        T is not None
        and steps > T
        and starts_at_pure_noise(schedule)
        and spacing in ("trailing", "leading", "linspace")
    ):
        raise Error(f"steps {steps}: with zero_terminal_snr there are at most T={T}; ask for fewer.")
    check_grid(kind, spacings, T, steps, spacing, last, offset)
    if kind == "discrete" and starts_at_pure_noise(schedule) and spacing in ("log_snr", "karras"):
        raise Error(f"spacing {spacing!r} with zero_terminal_snr: the first level has no finite log SNR; use trailing.")


def check_sampler(name: str, learned_variance: bool, options: Mapping[str, Any]) -> None:
    """Refuse an option that a sampler lacks, or that would have no effect."""
    spec = SAMPLERS[sampler(name)]
    for key, value in options.items():
        if key not in spec.options:
            having = ", ".join(other.name for other in SAMPLERS.values() if key in other.options)
            raise Error(
                f"{key} {value!r}: sampler {spec.name!r} has no {key}; "
                + (f"use {having}, or leave {key} out." if having else f"it has {', '.join(spec.options) or 'none'}.")
            )
        spec.options[key].check(spec.name, key, VARIANCE_ALIASES.get(str(value), value) if key == "variance" else value)
        needs = spec.options[key].needs
        if needs and not options.get(needs):
            raise Error(f"{key} {value!r}: it shapes {needs}, which is 0; give {needs} above 0, or leave {key} out.")
    if "variance" in options and variance(options["variance"]) == "learned" and not learned_variance:
        raise Error("variance 'learned': this model predicts no variance; use variance 'beta' or 'posterior'.")
