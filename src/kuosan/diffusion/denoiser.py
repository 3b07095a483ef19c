"""A denoiser: what samplers see of a network. (x, level) -> the predicted data, conditions already bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kuosan.diffusion.level import Level, over
from kuosan.diffusion.prediction import row, to_x0
from kuosan.errors import Error


class Prediction(NamedTuple):
    """The predicted data, and the learned variance: where log sigma² lies between beta~ (0) and beta (1), or None."""

    x0: Tensor
    frac: Tensor | None = None


Denoiser = Callable[[Tensor, Level], Prediction]
Network = Callable[..., Tensor]  # network(x, t, **cond) -> (B, C or 2C, H, W); t float32 (B,)


def denoiser(
    network: Network,
    prediction: str,
    *,
    sigma_data: float = 0.5,
    learned_variance: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Denoiser:
    """The denoiser of a network that predicts eps, x0, v, flow or edm.

    With `learned_variance` the network puts out 2C channels, the second half v in [-1, 1]; frac = (v + 1)/2
    (Nichol & Dhariwal 2021, eq. 15).
    Raises: Error for an output of another shape, from the denoiser.
    """
    row(prediction, Level.of(0.0, 1.0, 1.0))  # an unknown name is refused now
    bound = dict(cond or {})

    def denoise(x: Tensor, level: Level) -> Prediction:
        out, frac = evaluate(network, prediction, x, level, sigma_data, learned_variance, bound)
        return Prediction(to_x0(prediction, out, x, level, sigma_data), frac)

    return denoise


def evaluate(
    network: Network,
    prediction: str,
    x: Tensor,
    level: Level,
    sigma_data: float = 0.5,
    learned_variance: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The network's output at a level, input scaled as its prediction wants, and the variance's fraction if learned."""
    scale = row(prediction, level, sigma_data).scale
    out = network(x * over(scale, x) if prediction == "edm" else x, clock(level, x), **(cond or {}))
    wanted = (x.shape[0], 2 * x.shape[1], *x.shape[2:]) if learned_variance else tuple(x.shape)
    if out.shape != wanted:
        raise Error(
            f"the network put out {tuple(out.shape)} for an input of {tuple(x.shape)}; with learned_variance "
            f"{learned_variance} it must be {wanted}."
        )
    if not learned_variance:
        return out, None
    out, v = out.chunk(2, dim=1)
    return out, (v.to(x.dtype) + 1) / 2


def clock(level: Level, x: Tensor) -> Tensor:
    """t for the network: (B,) float32 on x's device."""
    if level.t.ndim == 0:
        return torch.full((len(x),), float(level.t), dtype=torch.float32, device=x.device)
    return level.t.to(x.device, torch.float32, non_blocking=x.is_cuda)
