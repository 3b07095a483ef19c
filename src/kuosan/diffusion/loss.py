"""The losses, one value a picture: simple, weight(level) · mean((output - target)²); the bound; and the hybrid of both.

At a given x the output's error is k times the predicted data's, k = (a·sigma - b·alpha)/sigma. A weight is therefore
written once, as the weight W of the squared error of x0, and w = W/k² makes it the same whatever is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kuosan.diffusion.bound import Chain, step_bits
from kuosan.diffusion.denoiser import Network, evaluate
from kuosan.diffusion.level import Level, there
from kuosan.diffusion.prediction import row, target, to_x0
from kuosan.diffusion.weighting import Weight, elbo_weight
from kuosan.errors import Error

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
    Raises: Error for an unknown name, for vlb without a schedule, or where the output does not tell x0 (eps, alpha 0).
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
    """The weighted loss of each picture, (B,) float32, for levels () or (B,); `schedule` for the weight vlb."""
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
    """T times the bound's term at each picture's level, (B,) bits a dimension, of 8-bit pictures.

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
    """The mean squared error of each picture: (B, C, H, W) twice -> (B,)."""
    return (out.to(wanted.dtype) - wanted).square().flatten(1).mean(1)
