"""The variational bound of a trajectory: prior KL, one KL a step, and the decoder, in bits a dimension.

    bound = KL(q(x_T|x0) || N(0, s²)) + sum_i KL(q(x_to|x_now, x0) || p(x_to|x_now)) - log p(x0|x_first)

(Ho et al. 2020, eq. 5.) Both Gaussians of a step share x_now's coefficient, so their means differ by
gain·(x0 - x0_hat), and no mean is ever made.

The losses, one value an image: simple, weight(level) · mean((output - target)²); the bound; and the hybrid of both.

At a given x the output's error is k times the predicted data's, k = (a·sigma - b·alpha)/sigma. A weight is therefore
written once, as the weight W of the squared error of x0, and w = W/k² makes it the same whatever is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from kuosan.diffusion import registry
from kuosan.diffusion.denoiser import evaluate, row, target, to_x0
from kuosan.diffusion.level import Level, over, there
from kuosan.diffusion.network import Network
from kuosan.diffusion.registry import Weight, elbo_weight
from kuosan.errors import Error, unknown

if TYPE_CHECKING:
    from kuosan.diffusion.schedule import Discrete

Decoder = Literal["bins", "density"]
DECODERS: tuple[str, ...] = ("bins", "density")
HALF_BIN = 1 / 255  # of 8-bit images in [-1, 1]
EDGE = 0.999  # beyond it a value is the first or the last of the 256 (Ho et al. 2020, eq. 13)


@dataclass(frozen=True)
class Chain:
    """The N steps of a trajectory by rising noise: row i steps from `now[i]` to the level below, row 0 to clean data.

    log_beta and log_posterior are the logarithms of the two fixed variances, beta and beta~ (Ho et al. 2020, section
    3.2); the learned one lies between. All (N,) float64.
    """

    now: Level
    log_beta: Tensor
    log_posterior: Tensor
    gain: Tensor  # of x0 in the mean of q(x_to | x_now, x0)
    prior_std: Tensor  # (), of the noise a trajectory starts from
    published: bool  # the decoder's fixed variance is beta~ of the step above, also under `beta`

    def __len__(self) -> int:
        return len(self.log_beta)

    def log_var(self, i: Tensor, variance: str, frac: Tensor | None, x: Tensor) -> Tensor:
        """log variance of p in rows i (B,), shaped to meet x (B, ...); `learned` needs frac, of x's shape.

        Raises: Error for an unknown variance, and for `learned` without a frac.
        """
        variance = registry.variance(variance)
        low, high = over(self.log_posterior[i], x), over(self.log_beta[i], x)
        if variance == "learned":
            if frac is None:
                raise Error("variance 'learned': this model predicts no variance; use variance 'beta' or 'posterior'.")
            return frac * high + (1 - frac) * low
        if variance == "posterior":
            return low
        return over(torch.where((i == 0) & self.published, self.log_posterior[i], self.log_beta[i]), x)


def chain(levels: Level, prior_std: Tensor, *, published: bool = True) -> Chain:
    """The chain of a grid (N+1,), noise first, whose last level is clean; its steps may be any, as in a short chain.

    The last step's beta~ is 0. `published` takes that of the step above (Ho et al. 2020; Nichol & Dhariwal 2021), which
    suits DDPM's own T levels; otherwise beta and beta~ are both sigma²/alpha², what the first level leaves open.

    Raises:
        Error: a grid that does not end at clean data, or a step that adds noise or has no length.
    """
    if float(levels.sigma[-1]) != 0 or float(levels.alpha[-1]) != 1:
        raise Error("a variational bound needs a trajectory down to clean data: use last 'clean'.")
    order = torch.arange(len(levels) - 2, -1, -1)
    now, to = levels[order], levels[order + 1]
    s2 = now.sigma**2 - (now.alpha / to.alpha * to.sigma) ** 2
    if bool((s2 <= 0).any()):
        raise Error("a variational bound needs steps that each take noise away; ask for fewer of them.")
    gain, posterior = to.alpha * s2 / now.sigma**2, s2 * to.sigma**2 / now.sigma**2
    if published:
        posterior[0] = posterior[1] if len(posterior) > 1 else s2[0]
    else:
        s2[0] = posterior[0] = (now.sigma[0] / now.alpha[0]) ** 2
    return Chain(now, s2.log(), posterior.log(), gain, prior_std.reshape(()).double(), published)


def discrete_chain(schedule: Discrete) -> Chain:
    """DDPM's own chain: all T levels, so that row t steps from the trained time t."""
    levels = schedule.at_t(range(schedule.T - 1, -2, -1))
    return chain(levels, schedule.prior_std(levels[0]))


def step_bits(
    steps: Chain,
    i: Tensor,
    x0: Tensor,
    x0_hat: Tensor,
    *,
    variance: str = "posterior",
    frac: Tensor | None = None,
    decoder: Decoder = "bins",
) -> Tensor:
    """Each image's term of the bound in bits a dimension, (B,): the KL of row i[b], or the decoder where i[b] is 0.

    x0, x0_hat (B, ...); the sum over all rows, and `prior_bits`, is the bound. Differentiable in x0_hat and frac.
    Raises: Error for an unknown variance or decoder, and for `learned` without a frac.
    """
    if decoder not in DECODERS:
        raise unknown("decoder", decoder, DECODERS)
    log_var = steps.log_var(i, variance, frac, x0).expand_as(x0)
    off = over(steps.gain[i], x0) * (x0 - x0_hat.to(x0.dtype))
    behind = over(steps.log_posterior[i], x0) - log_var  # log q's variance over p's
    nats = 0.5 * (behind.expm1() - behind + off.square() * (-log_var).exp())
    last = (i == 0).nonzero()[:, 0].to(x0.device)
    if len(last):
        surprise = bins_nats if decoder == "bins" else density_nats
        decoded = surprise(*(exact(values[last]) for values in (x0, x0_hat, log_var)))
        nats = nats.index_copy(0, last, decoded.to(x0))
    return nats.flatten(1).mean(1) / math.log(2)


def exact(values: Tensor) -> Tensor:
    """The values in float64, on the CPU where their device knows none: float32's far tails have infinite slopes."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def prior_bits(steps: Chain, x0: Tensor) -> Tensor:
    """KL(q(x_T | x0) || N(0, prior_std²)) of each image in bits a dimension: (B,)."""
    noisiest, var = steps.now[-1], float(steps.prior_std) ** 2
    ratio = float(noisiest.sigma) ** 2 / var
    mean = float(noisiest.alpha) * x0
    nats = 0.5 * (ratio - 1 - math.log(ratio) + mean.square() / var)
    return nats.flatten(1).mean(1) / math.log(2)


def density_nats(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-log N(x0; mean, var), elementwise: the decoder of continuous data."""
    return 0.5 * (math.log(2 * math.pi) + log_var + (x0 - mean).square() * (-log_var).exp())


def bins_nats(x0: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """-log P(bin of x0) under N(mean, var), elementwise: 256 bins, the outer two open (Ho et al. 2020, eq. 13).

    With the exact normal CDF: log(Phi(b) - Phi(a)) = log Phi(b) + log(1 - exp(log Phi(a) - log Phi(b))), taken in the
    lower tail, where both are accurate however far away they are.
    """
    scale = (-0.5 * log_var).exp()
    low, high = (x0 - HALF_BIN - mean) * scale, (x0 + HALF_BIN - mean) * scale
    flipped = low + high > 0
    low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
    # an open bin is a lower tail: of `high` at the lower edge, and mirrored at the upper one
    lower_open, upper_open = x0 < -EDGE, x0 > EDGE
    below, above = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    inside = above + torch.log(-torch.expm1(-(above - below).clamp_min(torch.finfo(x0.dtype).tiny)))
    edge = torch.special.log_ndtr(torch.where(lower_open, x0 + HALF_BIN - mean, mean - x0 + HALF_BIN) * scale)
    return -torch.where(lower_open | upper_open, edge, inside)


# Each is sigma²·W of (level, numbers, sigma_data): finite at alpha = 0 and at sigma = 0.
SIGMA2_WEIGHTS: dict[str, Callable[[Level, Weight, float], Tensor]] = {
    # k² of a prediction: the simple loss of that prediction, whatever is predicted
    "snr": lambda level, *_: level.alpha**2,  # eps, W = SNR: DDPM's simple loss (Ho et al. 2020, eq. 14)
    "x0": lambda level, *_: level.sigma**2,  # W = 1
    "v": lambda level, *_: (level.alpha**2 + level.sigma**2) ** 2,  # W = SNR + 1 where alpha² + sigma² = 1
    "flow": lambda level, *_: (level.alpha + level.sigma) ** 2,  # W = 1/sigma² where alpha + sigma = 1
    "edm": lambda level, _, d: level.alpha**2 + (level.sigma / d) ** 2,  # (Karras et al. 2022, table 1)
    "min_snr": lambda level, w, _: torch.minimum(level.alpha**2, w.min_snr_gamma * level.sigma**2),  # Hang et al. 2023
    "p2": lambda level, w, _: (
        level.alpha**2 * (level.sigma**2 / (w.p2_k * level.sigma**2 + level.alpha**2)) ** w.p2_gamma
    ),  # Choi et al. 2022, eq. 8
    "sigmoid": lambda level, *_: level.alpha**2 * torch.sigmoid(2 - level.log_snr),  # (Kingma & Gao 2023, k = 2)
}


def weight(
    name: str | Weight, level: Level, prediction: str, sigma_data: float = 0.5, schedule: object = None
) -> Tensor:
    """w of the squared error of the output, float64 of the level's shape; simple is 1 for every prediction.

    `vlb` is the variational bound's own weight, -dSNR/du/2 for levels `schedule.at(u)` (Kingma et al. 2021, eq. 17):
    the mean over u is the bound's part between the first and the last level, in nats a dimension.
    Raises: Error for an unknown name, for vlb without a schedule, or where x0 does not follow (eps, alpha 0).
    """
    made = Weight(name) if isinstance(name, str) else name
    a, b, _ = row(prediction, level, sigma_data)
    if made.name == "simple":
        return torch.ones_like(level.alpha)
    k2 = (a * level.sigma - b * level.alpha) ** 2
    if torch.any(k2 == 0):
        raise Error(
            f"weight {made.name!r} of prediction {prediction!r} at alpha = 0: it has no value; use weight 'simple'."
        )
    if made.name == "vlb":
        return elbo_weight(schedule)(level) / k2
    return SIGMA2_WEIGHTS[made.name](level, made, sigma_data) / k2


def simple_loss(
    network: Network,
    prediction: str,
    x0: Tensor,
    level: Level,
    eps: Tensor,
    *,
    weight_name: str | Weight = "simple",
    schedule: object = None,
    sigma_data: float = 0.5,
    learned_variance: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """The weighted loss of each image, (B,) float32, for levels () or (B,); `schedule` for the weight vlb."""
    out, _ = evaluate(network, prediction, level.add(x0, eps), level, sigma_data, learned_variance, cond)
    wanted = target(prediction, x0, eps, level, sigma_data)
    w = weight(weight_name, level, prediction, sigma_data, schedule)
    return squared_error(out, wanted) * there(w, wanted)


def bound_loss(
    network: Network,
    prediction: str,
    x0: Tensor,
    level: Level,
    eps: Tensor,
    *,
    steps: Chain,
    variance: str = "posterior",
    sigma_data: float = 0.5,
    learned_variance: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """T times the bound's term at each image's level, (B,) bits a dimension, of 8-bit images.

    The mean over all T levels is the bound without its prior's part, which no network changes. `steps` is
    `discrete_chain(schedule)`; `variance` is p's, where the network has not learned one.
    """
    x = level.add(x0, eps)
    out, frac = evaluate(network, prediction, x, level, sigma_data, learned_variance, cond)
    x0_hat = to_x0(prediction, out, x, level, sigma_data)
    return bound_terms(steps, level, x0, x0_hat, "learned" if learned_variance else variance, frac)


def hybrid_loss(
    network: Network,
    prediction: str,
    x0: Tensor,
    level: Level,
    eps: Tensor,
    *,
    steps: Chain,
    vlb_weight: float = 0.001,
    weight_name: str | Weight = "simple",
    schedule: object = None,
    sigma_data: float = 0.5,
    cond: Mapping[str, Any] | None = None,
) -> Tensor:
    """The simple loss, and vlb_weight times the bound, which moves the learned variance alone: (B,).

    The bound sees the predicted mean without a gradient (Nichol & Dhariwal 2021, eq. 16; lambda 0.001).
    """
    x = level.add(x0, eps)
    out, frac = evaluate(network, prediction, x, level, sigma_data, True, cond)
    simple = squared_error(out, target(prediction, x0, eps, level, sigma_data))
    w = weight(weight_name, level, prediction, sigma_data, schedule)
    x0_hat = to_x0(prediction, out.detach(), x, level, sigma_data)
    return simple * there(w, simple) + vlb_weight * bound_terms(steps, level, x0, x0_hat, "learned", frac)


def bound_terms(steps: Chain, level: Level, x0: Tensor, x0_hat: Tensor, variance: str, frac: Tensor | None) -> Tensor:
    """T times the bound's term at a trained level, () or (B,), in bits a dimension: (B,)."""
    rows = level.t.long().expand(len(x0))
    return len(steps) * step_bits(steps, rows, x0, x0_hat, variance=variance, frac=frac)


def squared_error(out: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of each image: (B, C, H, W) twice -> (B,)."""
    return (out.to(wanted.dtype) - wanted).square().flatten(1).mean(1)
