"""What anybody can do without a model: enlarging by a rule, filling holes from their edges, inverting the damage.

nearest known: x = y(the nearest known pixel)          harmonic: sum of 4 neighbours - 4 x = 0 inside the hole
regularised:   A^T (A A^T + tau)^-1 y, tau = (noise / s)^2, Bayes' mean for white pictures of std s
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kuosan.diffusion import operators
from kuosan.diffusion.conjugate import conjugate_gradients
from kuosan.sample.known import ROUNDING
from kuosan.tasks.condition import enlarged

if TYPE_CHECKING:
    from kuosan.evaluate.damaged import Damaged

SPREAD = 0.5  # std of pictures in [-1, 1], EDM's sigma_data
Restore = Callable[["Damaged"], Tensor]


def baselines(damaged: Damaged) -> dict[str, Restore]:
    """The ways that fit this damage, by name: each takes what was brought and gives (N, C, H, W)."""
    asked = damaged.asked
    if asked.upscale is not None:
        scale = asked.upscale
        return {
            "bicubic": lambda d: enlarged(d.brought, scale),
            "nearest": lambda d: d.brought.repeat_interleave(scale, -2).repeat_interleave(scale, -1),
        }
    if asked.missing:
        return {"nearest known": _by_nearest, "harmonic": _by_harmonic}
    ways: dict[str, Restore] = {"as it is": lambda d: d.brought}
    if asked.deblur is not None or (asked.colorise and asked.noise):
        ways["regularised inverse"] = _by_regularised
    elif asked.colorise:
        ways["pseudo-inverse"] = lambda d: operators.pseudo_inverse(d.operator, d.measured)
    return ways


def nearest_known(hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the known pixel nearest to each, in Euclid's distance: hole (H, W) bool -> two of (H, W).

    Exact, axis by axis: the nearest known row in each column first, then the best of all columns.
    """
    height, width = hole.shape
    rows = np.arange(height)[:, None]
    far = 4 * (height + width)
    above = np.maximum.accumulate(np.where(hole, -far, rows), axis=0)
    below = np.minimum.accumulate(np.where(hole, far, rows)[::-1], axis=0)[::-1]
    row = np.where(rows - above <= below - rows, above, below)  # (H, W), out of reach where a column is all hole
    down = (row - rows).astype(np.int64) ** 2
    across = (np.arange(width)[:, None] - np.arange(width)) ** 2  # (W, W)
    column = np.stack([np.argmin(across + line, axis=1) for line in down])  # (H, W)
    return np.take_along_axis(row, column, axis=1), column


def harmonic(picture: Tensor, hole: Tensor) -> Tensor:
    """Holes (N, 1, H, W) of pictures (N, C, H, W) filled so that each pixel is the mean of its neighbours.

    Laplace's equation with the known pixels as boundary and no flow over the picture's border.
    """
    inside, known = hole.double(), (picture * (1 - hole)).double()
    degree = _neighbours(torch.ones_like(inside))

    def laplace(v: Tensor) -> Tensor:
        return inside * (degree * v - _neighbours(inside * v))

    x = conjugate_gradients(laplace, inside * _neighbours(known))
    return torch.where(hole > 0, x.to(picture), picture)


def _neighbours(x: Tensor) -> Tensor:
    """The sum of the four neighbours that lie in the picture."""
    p = F.pad(x, (1, 1, 1, 1))
    return p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]


def _by_nearest(damaged: Damaged) -> Tensor:
    assert damaged.hole is not None
    filled = damaged.brought.clone()
    for picture, hole in zip(filled, damaged.hole):
        row, column = nearest_known(hole[0].numpy() > 0)
        picture.copy_(picture[:, torch.from_numpy(row), torch.from_numpy(column)])
    return filled


def _by_harmonic(damaged: Damaged) -> Tensor:
    assert damaged.hole is not None
    pairs = zip(torch.split(damaged.brought, 16), torch.split(damaged.hole, 16))
    return torch.cat([harmonic(picture, hole) for picture, hole in pairs])


def _by_regularised(damaged: Damaged) -> Tensor:
    noise = max(damaged.asked.noise / 127.5, ROUNDING)
    solved = operators.solve(damaged.operator, damaged.measured, (noise / SPREAD) ** 2)
    return damaged.operator.adjoint(solved)
