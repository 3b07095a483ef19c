"""Noise schedules: which levels a network is trained at, and the grids a sampler steps along.

A schedule is its configuration, a frozen dataclass of numbers. `at(u)` gives training levels, `grid(steps)` the n+1
levels of a trajectory (noise first), `at_log_snr` any level between. Anything with these methods is a schedule.
This module does not import torch until a level is made.

The betas of a `Discrete` schedule, their cumulative product, and what makes no schedule. Torch-free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from kuosan import limits
from kuosan.diffusion.grids import (
    SPACINGS,
    TINY,
    Array,
    check_grid,
    even_log_snr,
    falling_interp,
    in_unit,
    integer_times,
    normal_density,
    normal_quantile,
    sigmoid,
)
from kuosan.errors import Error, shown, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.diffusion.level import Level


@runtime_checkable
class Schedule(Protocol):
    """What samplers, losses and trainers ask of a schedule; a user's own class with these methods will do."""

    def at(self, u: ArrayLike) -> Level:
        """Training levels for u uniform in [0, 1), one an image; a larger u is noisier."""
        ...

    def at_log_snr(self, log_snr: ArrayLike) -> Level:
        """The levels with these log(alpha²/sigma²)."""
        ...

    def grid(self, steps: int, spacing: str | None = None, last: str = "clean", offset: int = 0) -> Level:
        """`steps` + 1 levels, noise first; the last is clean, or the first trained level."""
        ...

    def prior_std(self, level: Level) -> Tensor:
        """The standard deviation of the noise a trajectory starts from at `level`, of its shape."""
        ...


@dataclass(frozen=True)
class Discrete:
    """T trained levels by their betas: alpha_bar_t = prod(1 - beta), alpha² = alpha_bar, sigma² = 1 - alpha_bar.

    linear: Ho et al. 2020. scaled_linear: linear in sqrt(beta), Rombach et al. 2022. cosine: Nichol & Dhariwal 2021,
    eq. 17, betas at most 0.999. sigmoid: betas along a sigmoid over [-6, 6] (Xu et al. 2022, GeoDiff).
    `zero_terminal_snr` shifts and scales sqrt(alpha_bar) to reach 0 at T-1 (Lin et al. 2023, algorithm 1).
    """

    kind: Literal["discrete"] = "discrete"  # trained levels by their betas
    betas: Literal["linear", "scaled_linear", "cosine", "sigmoid"] = "linear"  # discrete: how the betas rise
    T: int = 1000  # discrete: how many levels are trained
    beta_start: float = 1e-4  # discrete: the first beta
    beta_end: float = 0.02  # discrete: the last beta; the cosine has neither
    zero_terminal_snr: bool = False  # discrete: rescale so that the last level is pure noise (Lin et al. 2023)

    spacings: ClassVar[tuple[str, ...]] = SPACINGS

    def __post_init__(self) -> None:
        check_discrete(self)

    @staticmethod
    def from_betas(betas: ArrayLike | Tensor) -> OwnDiscrete:
        """The schedule of betas of one's own, (T,), least noise first: diffusers' `trained_betas`.

        The last may be 1: then the last level is pure noise.
        Raises: Error for betas outside (0, 1), not finite, or not one row; it names the place.
        """
        return OwnDiscrete.of(alpha_bar_of_betas(betas))

    @staticmethod
    def from_alphas_cumprod(alphas_cumprod: ArrayLike | Tensor) -> OwnDiscrete:
        """The schedule of alpha_bar_t of one's own, (T,), least noise first: `scheduler.alphas_cumprod`.

        The last may be 0: then the last level is pure noise.
        Raises: Error for numbers that do not fall strictly from below 1, or are not finite; it names the place.
        """
        return OwnDiscrete.of(alpha_bar_of(alphas_cumprod))

    @property
    def alpha_bar(self) -> Array:
        """(T,) float64, read-only."""
        return discrete_alpha_bar(self)

    @property
    def log_snr(self) -> Array:
        """(T,) float64, falling; -inf at the end under zero terminal SNR."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.alpha_bar) - np.log1p(-self.alpha_bar))

    def at_t(self, t: ArrayLike) -> Level:
        """The trained levels at integer times 0..T-1; -1 is clean."""
        t = np.asarray(t, dtype=np.int64)
        if np.any((t < -1) | (t >= self.T)):
            raise Error(f"t {t.tolist()}: a schedule of T={self.T} steps has t = 0..{self.T - 1} (and -1 for clean).")
        alpha_bar = np.where(t < 0, 1.0, self.alpha_bar[t])
        return make_level(t, np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))

    def at(self, u: ArrayLike) -> Level:
        """Every t equally often."""
        return self.at_t(np.floor(in_unit(u) * self.T))

    def between(self, u: ArrayLike) -> Level:
        """Levels between trained ones: alpha_bar uniform between neighbours (Saharia et al. 2021, SR3, section 2.4)."""
        place = in_unit(u) * (self.T - 1)
        i = np.floor(place).astype(np.int64)
        after, before = self.alpha_bar[i + 1], self.alpha_bar[i]
        alpha_bar = before + (place - i) * (after - before)
        return self.at_log_snr(np.log(alpha_bar) - np.log1p(-alpha_bar))

    def at_log_snr(self, log_snr: ArrayLike) -> Level:
        """Exact alpha and sigma; t is where the table, linear in log SNR between its entries, has the value.

        Above a zero terminal SNR's last but one t, the table is linear in alpha/sigma.
        """
        l = np.asarray(log_snr, dtype=np.float64)
        table = self.log_snr
        if np.any(np.isnan(l)) or np.any(l > table[0] + 1e-6) or np.any(l < table[-1] - 1e-6):
            raise Error(
                f"log SNR {l.min():g}..{l.max():g}: this schedule was trained from {table[-1]:g} (t={self.T - 1}) "
                f"to {table[0]:g} (t=0); ask for a level within."
            )
        t = falling_interp(l, table)
        if self.zero_terminal_snr:
            t = np.where(l < table[-2], self.T - 1 - np.exp(np.minimum(l - table[-2], 0) / 2), t)
        return make_level(t, np.sqrt(sigmoid(l)), np.sqrt(sigmoid(-l)))

    def grid(self, steps: int, spacing: str | None = None, last: str = "clean", offset: int = 0) -> Level:
        """trailing, leading, linspace: integer t (Lin et al. 2023, table 2); log_snr, karras: fractional t."""
        spacing = check_grid(self.kind, self.spacings, self.T, steps, spacing or "trailing", last, offset)
        if spacing in ("log_snr", "karras"):
            table = self.log_snr
            if not np.isfinite(table[-1]):
                raise Error(
                    f"spacing {spacing!r}: it needs a finite log SNR, and with zero_terminal_snr the first level has "
                    "none; use trailing."
                )
            levels = self.at_log_snr(even_log_snr(table[-1], table[0], steps, spacing, last))
            return levels if last == "first" else join(levels, self.at_t([-1]))
        t = integer_times(self.T, steps, spacing, offset)
        return self.at_t(np.append(t, -1 if last == "clean" else 0))

    def prior_std(self, level: Level) -> Tensor:
        """1: a variance-preserving trajectory starts from N(0, I), even where alpha > 0."""
        return level.sigma * 0 + 1

    def elbo_weight(self, level: Level) -> Tensor:
        """sigma²·W at trained levels, W = T·(SNR_{t-1} - SNR_t)/2: T times the bound's KL, in nats, with beta~.

        t = 0 has the decoder's T/(2·beta~_1), as in Ho et al. 2020.
        """
        import torch

        snr = np.exp(self.log_snr)
        first = 1 / posterior_beta(self.alpha_bar, min(1, self.T - 1))
        rise = torch.from_numpy(np.append(first, -np.diff(snr)))
        return self.T / 2 * level.sigma**2 * rise[level.t.long()]


@dataclass(frozen=True, repr=False)
class OwnDiscrete(Discrete):
    """T levels by a table of one's own, made by `Discrete.from_betas` and `Discrete.from_alphas_cumprod`."""

    table: tuple[float, ...] = ()  # alpha_bar

    def __post_init__(self) -> None:
        array = np.array(self.table, dtype=np.float64)
        array.flags.writeable = False
        object.__setattr__(self, "_alpha_bar", array)

    @classmethod
    def of(cls, alpha_bar: Array) -> OwnDiscrete:
        """The schedule of a checked table."""
        return cls(T=len(alpha_bar), zero_terminal_snr=bool(alpha_bar[-1] == 0), table=tuple(map(float, alpha_bar)))

    def __repr__(self) -> str:
        return f"Discrete.from_alphas_cumprod([{self.table[0]:.6g}, ..., {self.table[-1]:.6g}])  # T={self.T}"

    @property
    def alpha_bar(self) -> Array:
        """(T,) float64, read-only."""
        table: Array = vars(self)["_alpha_bar"]
        return table


@dataclass(frozen=True)
class Karras:
    """EDM (Karras et al. 2022): alpha = 1, sigma from sigma_max to sigma_min.

    In training ln(sigma) ~ N(p_mean, p_std²). The network's timestep is ln(sigma)/4 (table 1).
    """

    kind: Literal["karras"] = "karras"  # EDM's noise
    sigma_min: float = 0.002  # karras: the least noise of a trajectory
    sigma_max: float = 80.0  # karras: the most noise of a trajectory
    rho: float = 7.0  # karras: how much the steps crowd at low noise
    p_mean: float = -1.2  # karras: mean of ln(sigma) in training
    p_std: float = 1.2  # karras: standard deviation of ln(sigma) in training

    spacings: ClassVar[tuple[str, ...]] = ("karras", "log_snr")

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise Error(
                f"sigma_min {self.sigma_min:g}, sigma_max {self.sigma_max:g}: need 0 < sigma_min < sigma_max, "
                "for example 0.002 and 80."
            )
        limits.check(self)
        if not 0 < self.rho < math.inf or not 0 < self.p_std < math.inf or not math.isfinite(self.p_mean):
            raise Error(f"rho {self.rho:g}, p_mean {self.p_mean:g}, p_std {self.p_std:g}: need rho > 0 and p_std > 0.")

    def at_sigma(self, sigma: ArrayLike) -> Level:
        """The levels with these sigmas; the timestep of sigma 0 is -inf, and no network is evaluated there."""
        sigma = np.asarray(sigma, dtype=np.float64)
        with np.errstate(divide="ignore"):
            return make_level(np.log(sigma) / 4, np.ones_like(sigma), sigma)

    def at(self, u: ArrayLike) -> Level:
        """sigma = exp(p_mean + p_std·Phi^-1(u))."""
        return self.at_sigma(np.exp(self.p_mean + self.p_std * normal_quantile(in_unit(u))))

    def at_log_snr(self, log_snr: ArrayLike) -> Level:
        """sigma = exp(-log_snr/2), any."""
        return self.at_sigma(np.exp(np.asarray(log_snr, dtype=np.float64) / -2))

    def grid(self, steps: int, spacing: str | None = None, last: str = "clean", offset: int = 0) -> Level:
        """karras: even in sigma^(1/rho) (eq. 5); log_snr: even in ln(sigma)."""
        spacing = check_grid(self.kind, self.spacings, None, steps, spacing or "karras", last, offset)
        high, low = -2 * math.log(self.sigma_max), -2 * math.log(self.sigma_min)
        levels = self.at_log_snr(even_log_snr(high, low, steps, spacing, last, self.rho))
        return levels if last == "first" else join(levels, self.at_sigma([0.0]))

    def prior_std(self, level: Level) -> Tensor:
        """sigma: the trajectory starts from sigma_max·N(0, I)."""
        return level.sigma * 1

    def elbo_weight(self, level: Level) -> Tensor:
        """sigma²·W, W = -dSNR/du/2: the variational bound's weight under training's density of sigma."""
        return self.p_std / normal_density((level.sigma.log() - self.p_mean) / self.p_std)


@dataclass(frozen=True)
class Flow:
    """Flow matching (Liu et al. 2022, Lipman et al. 2023): alpha = 1 - sigma, sigma in (0, 1], timestep 1000·sigma.

    `shift` moves both training and grids to more noise, sigma' = shift·sigma / (1 + (shift - 1)·sigma); density
    logit_normal draws logit(sigma) ~ N(mean, std²) before it (Esser et al. 2024, eq. 19 and 23).
    """

    kind: Literal["flow"] = "flow"  # straight lines from data to noise
    shift: float = 1.0  # flow: above 1 moves training and steps to more noise; 3 is Stable Diffusion 3's
    density: Literal["uniform", "logit_normal"] = "uniform"  # flow: how sigma is drawn in training
    mean: float = 0.0  # flow: of logit(sigma), with logit_normal
    std: float = 1.0  # flow: of logit(sigma), with logit_normal

    spacings: ClassVar[tuple[str, ...]] = ("trailing", "linspace")

    def __post_init__(self) -> None:
        if not 0 < self.shift < math.inf:
            raise Error(f"shift {self.shift:g}: need shift > 0; 1 is none, 3 is Stable Diffusion 3's.")
        if self.density not in ("uniform", "logit_normal"):
            raise unknown("density", self.density, ("uniform", "logit_normal"))
        limits.check(self)
        if not 0 < self.std < math.inf or not math.isfinite(self.mean):
            raise Error(f"mean {self.mean:g}, std {self.std:g}: need a finite mean and std > 0.")
        if self.density == "uniform" and (self.mean, self.std) != (0.0, 1.0):
            raise Error(f"mean {self.mean:g}, std {self.std:g}: they shape density logit_normal; uniform has none.")

    def at_sigma(self, sigma: ArrayLike) -> Level:
        """The levels with these sigmas in [0, 1]."""
        sigma = np.asarray(sigma, dtype=np.float64)
        return make_level(1000 * sigma, 1 - sigma, sigma)

    def shifted(self, sigma: Array) -> Array:
        # written so that 1 stays exactly 1 and nothing passes it
        return self.shift * sigma / (self.shift * sigma + (1 - sigma))

    def at(self, u: ArrayLike) -> Level:
        sigma = np.maximum(in_unit(u), TINY)
        if self.density == "logit_normal":
            sigma = sigmoid(self.mean + self.std * normal_quantile(sigma))
        return self.at_sigma(self.shifted(sigma))

    def at_log_snr(self, log_snr: ArrayLike) -> Level:
        """sigma/alpha = exp(-log_snr/2)."""
        half = np.asarray(log_snr, dtype=np.float64) / 2
        return make_level(1000 * sigmoid(-half), sigmoid(half), sigmoid(-half))

    def grid(self, steps: int, spacing: str | None = None, last: str = "clean", offset: int = 0) -> Level:
        """trailing: 1, 1 - 1/n, ..., 1/n, 0. linspace: n values from 1 to 1/1000, then 0. Both before the shift."""
        spacing = check_grid(self.kind, self.spacings, None, steps, spacing or "trailing", last, offset)
        noisy = 1 - np.arange(steps) / steps if spacing == "trailing" else np.linspace(1, 0.001, steps)
        return self.at_sigma(np.append(self.shifted(noisy), 0.0))

    def prior_std(self, level: Level) -> Tensor:
        """sigma, which is 1 at the start of a whole trajectory."""
        return level.sigma * 1

    def elbo_weight(self, level: Level) -> Tensor:
        """sigma²·W, W = -dSNR/du/2 = alpha²/sigma² · d logit(sigma)/du under training's density of sigma."""
        alpha, sigma = level.alpha, level.sigma
        if self.density == "uniform":
            return alpha * (self.shift * alpha + sigma) ** 2 / (self.shift * sigma)
        z = (sigma.log() - alpha.log() - math.log(self.shift) - self.mean) / self.std
        return (alpha**2 * self.std / normal_density(z)).nan_to_num(0.0)  # at alpha = 0 the weight's limit is 0


def make_level(t: Array, alpha: Array, sigma: Array) -> Level:
    from kuosan.diffusion.level import Level

    return Level.of(t, alpha, sigma)


def join(*levels: Level) -> Level:
    import torch

    from kuosan.diffusion.level import Level

    t, alpha, sigma = (torch.cat([getattr(level, name) for level in levels]) for name in ("t", "alpha", "sigma"))
    return Level(t, alpha, sigma)


MOST_STEPS = 100_000


@lru_cache(maxsize=64)
def discrete_alpha_bar(schedule: Discrete) -> Array:
    """(T,) float64, read-only: the cumulative product of 1 - beta, rescaled if the schedule says so."""
    alpha_bar: Array = np.cumprod(1 - discrete_betas(schedule), dtype=np.float64)
    if schedule.zero_terminal_snr:
        root = np.sqrt(alpha_bar)
        alpha_bar = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
    alpha_bar.flags.writeable = False
    return alpha_bar


def discrete_betas(schedule: Discrete) -> Array:
    """(T,) float64: the betas before any rescaling, exactly as given for this T."""
    T, start, end = schedule.T, schedule.beta_start, schedule.beta_end
    match schedule.betas:
        case "linear":
            return np.linspace(start, end, T)
        case "scaled_linear":
            return np.asarray(np.linspace(math.sqrt(start), math.sqrt(end), T) ** 2, dtype=np.float64)
        case "sigmoid":
            return sigmoid(np.linspace(-6, 6, T)) * (end - start) + start
        case "cosine":
            f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * math.pi / 2) ** 2
            return np.asarray(np.minimum(1 - f[1:] / f[:-1], 0.999), dtype=np.float64)


def posterior_beta(alpha_bar: Array, t: int) -> float:
    """beta~_t (Ho et al. 2020, eq. 7); at t = 0, where it is 0, beta_0."""
    if t == 0:
        return float(1 - alpha_bar[0])
    return float((1 - alpha_bar[t] / alpha_bar[t - 1]) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]))


def check_discrete(schedule: Discrete) -> None:
    """Raises: Error for betas or T that make no schedule, or numbers without effect."""
    limits.check(schedule)
    names = ("linear", "scaled_linear", "cosine", "sigmoid")
    start, end = schedule.beta_start, schedule.beta_end
    if schedule.betas not in names:
        raise unknown("betas", schedule.betas, names)
    if isinstance(schedule.T, bool) or not isinstance(schedule.T, int) or schedule.T < 1:
        raise Error(f"T {schedule.T!r}: need a whole number of steps, at least 1, for example 1000.")
    if not (0 < start < 1 and 0 < end < 1 and start <= end):
        raise Error(
            f"beta_start {start!r}, beta_end {end!r}: need 0 < beta_start <= beta_end < 1, for example 1e-4 and 0.02."
        )
    if schedule.betas == "cosine" and (start, end) != (1e-4, 0.02):
        raise Error(f"beta_start {start:g}, beta_end {end:g}: betas 'cosine' has neither; leave them out.")
    if schedule.zero_terminal_snr and schedule.T < 2:
        raise Error("zero_terminal_snr needs T of at least 2: with one step nothing but noise would be left.")


def table_of(values: object, name: str) -> Array:
    """An array or tensor of numbers as float64 (T,). Raises: Error for another shape, no numbers, NaN or infinity."""
    if hasattr(values, "detach"):  # a tensor, on whatever device
        values = values.detach().cpu().double().numpy()
    try:
        table: Array = np.array(values, dtype=np.float64)  # a copy, which nobody changes later
    except (TypeError, ValueError):
        raise Error(
            f"{name} {shown(values)}: need an array or tensor of T numbers, as in torch.linspace(1e-4, 0.02, 1000)."
        ) from None
    if table.ndim != 1 or not len(table):
        raise Error(f"{name} of shape {table.shape}: need one number a step, (T,), at least one.")
    if len(table) > MOST_STEPS:
        raise Error(f"{name} of {len(table):,} steps: allowed are at most {MOST_STEPS:,}.")
    if not np.all(np.isfinite(table)):
        i = int(np.argmin(np.isfinite(table)))
        raise Error(f"{name}[{i}] = {table[i]}: need finite numbers.")
    return table


def alpha_bar_of_betas(values: object) -> Array:
    """prod(1 - beta) of given betas. Raises: Error for betas that are none."""
    betas = table_of(values, "betas")
    last = len(betas) - 1
    for i in np.flatnonzero((betas <= 0) | (betas > 1) | ((betas == 1) & (np.arange(len(betas)) < last))):
        cure = "1 only at the last step, which is then pure noise" if betas[i] == 1 else "each above 0, below 1"
        more = "; these look like alphas_cumprod: use from_alphas_cumprod" if _falls(betas) and betas[0] > 0.9 else ""
        raise Error(f"betas[{i}] = {betas[i]:g}: need {cure}{more}.")
    return checked_alpha_bar(np.cumprod(1 - betas, dtype=np.float64), "betas give alphas_cumprod, which")


def alpha_bar_of(values: object) -> Array:
    """Given alphas_cumprod. Raises: Error for numbers that do not fall from below 1 to 0 or above."""
    return checked_alpha_bar(table_of(values, "alphas_cumprod"), "alphas_cumprod")


def checked_alpha_bar(table: Array, name: str) -> Array:
    """A table that falls strictly within (0, 1), or to 0 at its last step. Raises: Error."""
    if len(table) == 1 and table[0] == 0:
        raise Error(f"{name} of one step is 0: nothing but noise would be left.")
    outside = np.flatnonzero((table >= 1) | (table < 0) | ((table == 0) & (np.arange(len(table)) < len(table) - 1)))
    if len(outside):
        i = int(outside[0])
        cure = "0 only at the last step" if table[i] == 0 else "each above 0, below 1; the last may be 0"
        raise Error(f"{name}[{i}] = {table[i]:.9g}: need {cure}.")
    rises = np.flatnonzero(np.diff(table) >= 0)
    if len(rises):
        i = int(rises[0])
        cure = "turn the table round: t = 0 is the least noise" if _falls(table[::-1]) else "each step adds noise"
        raise Error(f"{name}[{i + 1}] = {table[i + 1]:.9g} after {table[i]:.9g}: need a table that falls; {cure}.")
    return table


def _falls(table: Array) -> bool:
    return bool(np.all(np.diff(table) < 0))
