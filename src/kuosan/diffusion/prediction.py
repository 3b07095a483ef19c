"""What a network may predict, each a row (a, b, scale): its output is a·x0 + b·eps, its input scale·x_t.

With x = alpha·x0 + sigma·eps the row inverts:  x0 = (b·x - sigma·out) / (b·alpha - a·sigma),
eps = (alpha·out - a·x) / (b·alpha - a·sigma).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kuosan.diffusion.level import Level, mix
from kuosan.errors import Error, unknown


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
    if prediction not in PREDICTIONS:
        raise unknown("prediction", prediction, PREDICTIONS)
    return PREDICTIONS[prediction](level.alpha, level.sigma, sigma_data)


def target(prediction: str, x0: Tensor, eps: Tensor, level: Level, sigma_data: float = 0.5) -> Tensor:
    """What the network should put out: a·x0 + b·eps."""
    a, b, _ = row(prediction, level, sigma_data)
    if prediction in ("eps", "x0"):
        return eps if prediction == "eps" else x0
    return mix(x0, a, eps, b)


def to_x0(prediction: str, out: Tensor, x: Tensor, level: Level, sigma_data: float = 0.5) -> Tensor:
    """The data that an output means, in x's dtype.

    Raises: Error where it is undefined: eps at alpha = 0, where x holds nothing of the data.
    """
    a, b, _ = row(prediction, level, sigma_data)
    if prediction == "x0":
        return out.to(x.dtype)
    determinant = invertible(prediction, b * level.alpha - a * level.sigma)
    return mix(x, b / determinant, out, -level.sigma / determinant)


def to_eps(prediction: str, out: Tensor, x: Tensor, level: Level, sigma_data: float = 0.5) -> Tensor:
    """The noise that an output means, in x's dtype. Raises: Error where it is undefined: x0 at sigma = 0."""
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
            f"the output does not determine the picture there; {cure}."
        )
    return determinant
