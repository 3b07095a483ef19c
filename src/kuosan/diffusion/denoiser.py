"""What a network may predict, each a row (a, b, scale): its output is a·x0 + b·eps, its input scale·x_t.

With x = alpha·x0 + sigma·eps the row inverts:  x0 = (b·x - sigma·out) / (b·alpha - a·sigma),
eps = (alpha·out - a·x) / (b·alpha - a·sigma).

A denoiser: what samplers see of a network. (x, level) -> the predicted data, conditions already bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kuosan.diffusion import registry
from kuosan.diffusion.level import Level, mix, over
from kuosan.diffusion.network import Network as Network
from kuosan.diffusion.network import call
from kuosan.errors import Error


class Row(NamedTuple):
    """Float64 coefficients of one prediction at a level, of the level's shape."""

    a: Tensor
    b: Tensor
    scale: Tensor  # of the network's input


def edm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Row:
    """EDM's preconditioning (Karras et al. 2022, table 1), for any alpha.

    With d² = alpha²·sigma_data² + sigma²: c_in = 1/d, c_skip = alpha·sigma_data²/d², c_out = sigma·sigma_data/d. The
    output is (x0 - c_skip·x)/c_out, hence this row; at alpha = 1 it is the paper's, at sigma_data = 1 and
    alpha² + sigma² = 1 it is -v.
    """
    d = (alpha**2 * sigma_data**2 + sigma**2).sqrt()
    return Row(sigma / (sigma_data * d), -alpha * sigma_data / d, 1 / d)


PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float], Row]] = {
    "eps": lambda alpha, sigma, _: Row(alpha * 0, alpha * 0 + 1, alpha * 0 + 1),  # Ho et al. 2020
    "x0": lambda alpha, sigma, _: Row(alpha * 0 + 1, alpha * 0, alpha * 0 + 1),
    "v": lambda alpha, sigma, _: Row(-sigma, alpha, alpha * 0 + 1),  # Salimans & Ho 2022
    "flow": lambda alpha, sigma, _: Row(alpha * 0 - 1, alpha * 0 + 1, alpha * 0 + 1),  # Liu et al. 2022
    "edm": edm,
}


def row(prediction: str, level: Level, sigma_data: float = 0.5) -> Row:
    """The coefficients of a prediction at a level. Raises: Error for an unknown name."""
    return PREDICTIONS[registry.prediction(prediction)](level.alpha, level.sigma, sigma_data)


def target(prediction: str, x0: Tensor, eps: Tensor, level: Level, sigma_data: float = 0.5) -> Tensor:
    """What the network should put out: a·x0 + b·eps."""
    prediction = registry.prediction(prediction)
    a, b, _ = row(prediction, level, sigma_data)
    if prediction in ("eps", "x0"):
        return eps if prediction == "eps" else x0
    return mix(x0, a, eps, b)


def to_x0(prediction: str, out: Tensor, x: Tensor, level: Level, sigma_data: float = 0.5) -> Tensor:
    """The data that an output means, in x's dtype.

    Raises: Error where it is undefined: eps at alpha = 0, where x holds nothing of the data.
    """
    prediction = registry.prediction(prediction)
    a, b, _ = row(prediction, level, sigma_data)
    if prediction == "x0":
        return out.to(x.dtype)
    determinant = invertible(prediction, b * level.alpha - a * level.sigma)
    return mix(x, b / determinant, out, -level.sigma / determinant)


def to_eps(prediction: str, out: Tensor, x: Tensor, level: Level, sigma_data: float = 0.5) -> Tensor:
    """The noise that an output means, in x's dtype. Raises: Error where it is undefined: x0 at sigma = 0."""
    prediction = registry.prediction(prediction)
    a, b, _ = row(prediction, level, sigma_data)
    if prediction == "eps":
        return out.to(x.dtype)
    determinant = invertible(prediction, b * level.alpha - a * level.sigma)
    return mix(x, -a / determinant, out, level.alpha / determinant)


def invertible(prediction: str, determinant: Tensor) -> Tensor:
    """The determinant, once it is nowhere zero; a look at CPU numbers, never a wait for a GPU."""
    if torch.any(determinant == 0):
        cure = "predict x0, v, flow or edm" if prediction == "eps" else "ask for a level with sigma > 0"
        raise Error(
            f"prediction {prediction!r} at a level with {'alpha' if prediction == 'eps' else 'sigma'} = 0: "
            f"the output does not determine the image there; {cure}."
        )
    return determinant


class Prediction(NamedTuple):
    """The predicted data, and the learned variance: where log sigma² lies between beta~ (0) and beta (1), or None."""

    x0: Tensor
    frac: Tensor | None = None


Denoiser = Callable[[Tensor, Level], Prediction]


def denoiser(
    network: Network,
    prediction: str,
    *,
    sigma_data: float = 0.5,
    learned_variance: bool = False,
    cond: Mapping[str, Any] | None = None,
) -> Denoiser:
    """The denoiser of a network that predicts eps, x0, v, flow or edm, or what other tools call so ("epsilon").

    The network is called with x and t (B,) and the conditions by name; diffusers' networks are taken as they are, and a
    network that indexes by t gets int64 (`diffusion.network`). `cond`: label (B,), context and context_mask, or any
    other name of the network's own.
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
    prediction = registry.prediction(prediction)
    scale = row(prediction, level, sigma_data).scale
    out = call(network, x * over(scale, x) if prediction == "edm" else x, timestep(level, x), cond)
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


def timestep(level: Level, x: Tensor) -> Tensor:
    """t for the network: (B,) float32 on x's device."""
    if level.t.ndim == 0:
        return torch.full((len(x),), float(level.t), dtype=torch.float32, device=x.device)
    return level.t.to(x.device, torch.float32, non_blocking=x.is_cuda)
