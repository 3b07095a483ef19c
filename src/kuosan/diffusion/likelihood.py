"""How likely a model finds images, in two ways: the chain's variational bound, and the probability-flow ODE.

The ODE (Song et al. 2021, eq. 39), on any schedule: in the angle phi = atan(sigma/alpha) the state
z = x/sqrt(alpha² + sigma²) moves by dz/dphi = (cos(phi)·z - x0)/sin(phi), finite from first level to pure noise, and

    log p(y) = log p(z_T) + integral of div(dz/dphi) dphi + D·log cos(phi_first),      y = x/alpha at the first level.

y is what sampling ends with at the first trained level, a little noise still in it. Its density is taken at the data
themselves, to which no noise is added: a proper density on images, of a model that leaves its last noise in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.diffusion.denoiser import Denoiser
from kuosan.diffusion.loss import Chain, Decoder, prior_bits, step_bits
from kuosan.errors import Error, unknown

if TYPE_CHECKING:
    from kuosan.diffusion.schedule import Schedule


Probe = Literal["rademacher", "gaussian", "exact"]
PROBES: tuple[str, ...] = ("rademacher", "gaussian", "exact")
BIN = 2 / 255  # of 8-bit images in [-1, 1]
BEND = 0.02  # alpha/sigma about which even steps of log SNR turn into even steps of alpha/sigma
FLOW_FIRST = 1e-3  # sigma/alpha at which a flow's trajectory is ended: it has no first trained level
MOST_EXACT = 4096  # dimensions whose trace is taken one by one


@dataclass(frozen=True)
class BoundTerms:
    """Terms of the bound of B images in bits a dimension: one step of each of K strata of rows, drawn evenly."""

    prior: Tensor  # (B,)
    bits: Tensor  # (B, K) the term of the row drawn
    first: Tensor  # (K,) each stratum's first row, 0 the decoder
    size: Tensor  # (K,) how many rows it has

    @property
    def total(self) -> Tensor:
        """Each image's bound, without bias: (B,). Drawn apart, so their spread is all of its error."""
        return self.prior + (self.bits * self.size).sum(1)


def strata(steps: int, evaluations: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first rows and sizes of at most `evaluations` groups of a chain's rows; None: each row alone.

    The decoder stands alone, and sizes grow with the row as the terms fall.
    """
    if evaluations is None or evaluations >= steps:
        return np.arange(steps), np.ones(steps, dtype=np.int64)
    if evaluations < 2:
        raise Error(f"evaluations {evaluations}: at least 2 an image, for the decoder and the steps.")
    others, rest = evaluations - 1, steps - 1
    bends = np.floor(np.linspace(0, 1, others, endpoint=False) ** 2 * rest).astype(np.int64)
    firsts = np.clip(bends, np.arange(others), rest - np.arange(others, 0, -1))
    firsts = np.append(0, 1 + firsts)
    return firsts, np.diff(np.append(firsts, steps))


def variational_bound(
    denoise: Denoiser,
    steps: Chain,
    x0: Tensor,
    *,
    ids: Sequence[int],
    seed: int = 0,
    evaluations: int | None = None,
    variance: str = "posterior",
    decoder: Decoder = "bins",
) -> BoundTerms:
    """The bound's terms for images x0 (B, ...), by `evaluations` network calls an image or one for each step.

    Rows and noise are keyed by (seed, "likelihood/...", stratum, id): an image's numbers do not depend on its batch.
    """
    first, size = strata(len(steps), evaluations)
    columns = []
    for k in range(len(first)):
        u = seeds.uniform((seed, "likelihood/row", k, id) for id in ids)
        rows = torch.from_numpy(first[k] + np.floor(u * size[k]).astype(np.int64))
        eps = seeds.normal([(seed, "likelihood/noise", k, id) for id in ids], tuple(x0.shape[1:])).to(x0.device)
        level = steps.now[rows] if size[k] > 1 else steps.now[int(first[k])]
        with torch.no_grad():
            x0_hat, frac = denoise(level.add(x0, eps), level)
        shape = {"variance": variance, "frac": frac if variance == "learned" else None}
        columns.append(step_bits(steps, rows, x0, x0_hat, decoder=decoder, **shape).double().cpu())  # type: ignore[arg-type]
    return BoundTerms(
        prior_bits(steps, x0).double().cpu(), torch.stack(columns, 1), torch.from_numpy(first), torch.from_numpy(size)
    )


def dequantised(x0: Tensor, *, ids: Sequence[int], seed: int = 0) -> Tensor:
    """8-bit images x0 (B, ...) in [-1, 1] with uniform noise of a bin's width, keyed by (seed, ..., id)."""
    noise = np.stack([seeds.rng(seed, "likelihood/dequantise", 0, id).random(tuple(x0.shape[1:])) for id in ids])
    return x0 + (BIN * torch.from_numpy(noise - 0.5)).to(x0)


def ode_bits(log_p: Tensor, size: int) -> Tensor:
    """Bits a dimension that 8-bit images have at most, from log densities of dequantised ones (Theis et al. 2016)."""
    return -(log_p / size + math.log(BIN)) / math.log(2)


def log_density(
    denoise: Denoiser,
    schedule: Schedule,
    y: Tensor,
    *,
    ids: Sequence[int],
    seed: int = 0,
    steps: int = 50,
    probe: Probe = "rademacher",
    probes: int = 1,
    first: float | None = None,
) -> Tensor:
    """log p(y) in nats, one estimate a probe: (B, probes) float64, for y (B, ...) in the data's units.

    Runge-Kutta's fourth order, 4·steps evaluations, as many gradients a probe (Hutchinson 1989). An image's probe is
    keyed by (seed, "likelihood/probe", probe, id) and kept along its path; `exact` sums over all dimensions instead.
    Gradients are switched on here, and none reach the network's weights. `first`: sigma/alpha of the first level.

    Raises:
        Error: settings that do not go together, or a denoiser that hides how x0 depends on x.
    """
    check_probes(y[0].numel(), steps, probe, probes)
    ends = span(schedule, first)
    vectors = probe_vectors(y, ids, seed, probe, probes)
    z, cos = y.detach(), ends.first / math.hypot(1, ends.first)
    z, total = z * cos, torch.zeros(len(y), 1 if vectors is None else probes, dtype=torch.float64)
    times = np.linspace(time_of(ends.first), time_of(ends.last), 2 * steps + 1)
    ratios = [ends.first, *(ratio_of(w) for w in times[1:-1]), ends.last]
    h = float(times[2] - times[0])
    for i in range(steps):
        begin, middle, end = ratios[2 * i : 2 * i + 3]
        k1, d1 = slope(denoise, schedule, z, begin, vectors)
        k2, d2 = slope(denoise, schedule, z + h / 2 * k1, middle, vectors)
        k3, d3 = slope(denoise, schedule, z + h / 2 * k2, middle, vectors)
        k4, d4 = slope(denoise, schedule, z + h * k3, end, vectors)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        total += h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    away = z.flatten(1).cpu().double() / ends.prior_std
    size = away.shape[1]
    prior = -0.5 * away.square().sum(1) - size * (0.5 * math.log(2 * math.pi) + math.log(ends.prior_std))
    return total + prior[:, None] + size * math.log(cos)


@dataclass(frozen=True)
class Span:
    """Where the ODE begins and ends, as alpha/sigma (0 at pure noise), and the std of z at its end."""

    first: float
    last: float
    prior_std: float


def span(schedule: Schedule, first: float | None = None) -> Span:
    """From a schedule's first trained level, or the one with sigma/alpha = `first`, to its noisiest.

    Raises:
        Error: a first level that lies outside the schedule.
    """
    noisiest = schedule.grid(1)[0]
    if first is None and getattr(schedule, "kind", None) == "flow":
        first = FLOW_FIRST
    if first is None:
        clean = schedule.grid(1, last="first")[-1]
        first = float(clean.sigma / clean.alpha)
    last = float(noisiest.alpha / noisiest.sigma)
    if not (0 < first < math.inf and first * last < 1):
        raise Error(f"first {first:g}: the first level's sigma/alpha must be above 0 and below the noisiest level's.")
    schedule.at_log_snr(-2 * math.log(first))  # a level that was never trained is refused
    std = schedule.prior_std(noisiest) / torch.hypot(noisiest.alpha, noisiest.sigma)
    return Span(1 / first, last, float(std))


def time_of(ratio: float) -> float:
    """The solver's time w of alpha/sigma: 0 at pure noise, and in small noise -log SNR/2, up to a constant."""
    return -math.log1p(ratio / BEND)


def ratio_of(w: float) -> float:
    """alpha/sigma at the solver's time."""
    return BEND * math.expm1(-w)


def slope(
    denoise: Denoiser, schedule: Schedule, z: Tensor, ratio: float, vectors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """dz/dw (B, ...), and its divergence by each probe, (B, probes) float64."""
    level = schedule.at_log_snr(2 * math.log(ratio) if ratio > 0 else -math.inf)
    radius, over_sin = math.hypot(float(level.alpha), float(level.sigma)), math.hypot(1, ratio)
    cos = ratio / over_sin
    with torch.enable_grad():
        x = (z.detach() * radius).requires_grad_()
        x0 = denoise(x, level).x0
    if not x0.requires_grad:
        raise Error("the denoiser's answer carries no gradient, which the ODE's likelihood needs: it was detached.")
    speed = over_sin * (ratio + BEND) / (1 + ratio**2)  # dphi/dw / sin(phi)
    spread = z[0].numel() * cos - radius * traces(x0, x, vectors)
    return speed * (cos * z - x0.detach()), speed * spread


def traces(x0: Tensor, x: Tensor, vectors: Tensor | None) -> Tensor:
    """v·J·v for each probe v of `vectors` (probes, B, ...), or the trace of J = dx0/dx: (B, probes or 1) float64."""

    def pulled(v: Tensor, last: bool) -> Tensor:
        (gradient,) = torch.autograd.grad(x0, x, v.to(x0.dtype), retain_graph=not last)
        return gradient.detach()

    if vectors is not None:
        found = [(pulled(v, k == len(vectors) - 1) * v).flatten(1).double().sum(1) for k, v in enumerate(vectors)]
        return torch.stack(found, 1).cpu()
    size = x[0].numel()
    total = torch.zeros(len(x), 1, dtype=torch.float64)
    for d in range(size):
        v = torch.zeros_like(x)
        v.flatten(1)[:, d] = 1
        total += pulled(v, d == size - 1).flatten(1)[:, d : d + 1].double().cpu()
    return total


def probe_vectors(y: Tensor, ids: Sequence[int], seed: int, probe: Probe, probes: int) -> Tensor | None:
    """Random vectors of mean 0 and covariance I: (probes, B, ...), or None for the exact trace."""
    if probe == "exact":
        return None
    drawn = [seeds.normal([(seed, "likelihood/probe", k, id) for id in ids], tuple(y.shape[1:])) for k in range(probes)]
    vectors = torch.stack(drawn).to(y)
    return torch.where(vectors < 0, -1.0, 1.0).to(y) if probe == "rademacher" else vectors


def check_probes(size: int, steps: int, probe: str, probes: int) -> None:
    """Raises: Error for settings that do not go together."""
    if probe not in PROBES:
        raise unknown("probe", probe, PROBES)
    if steps < 1 or probes < 1:
        raise Error(f"steps {steps}, probes {probes}: at least 1 of each.")
    if probe == "exact" and probes != 1:
        raise Error(f"probes {probes}: the exact trace draws none; leave it out, or use probe 'rademacher'.")
    if probe == "exact" and size > MOST_EXACT:
        raise Error(f"probe 'exact' of images of {size} values: at most {MOST_EXACT}; use probe 'rademacher'.")
