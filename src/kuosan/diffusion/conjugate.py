"""Conjugate gradients: v with matrix(v) = b for each picture of a batch, where only the product is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kuosan.errors import Error

ITERATIONS = 500  # at most


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], b: Tensor) -> Tensor:
    """The least v with matrix(v) = b, each picture on its own, for a symmetric matrix without negative eigenvalues.

    Stops at a residual of 10·eps of b's (Hestenes & Stiefel 1952), where rounding ends progress, or after 500 steps.
    Gives the v of least residual. Raises: Error for one that stays above a tenth of b's, or is no number.
    """
    v, residual = torch.zeros_like(b), b.clone()
    direction, squared = residual, inner(residual, residual)
    start = squared
    goal = start * (10 * torch.finfo(b.dtype).eps) ** 2
    best, least = v, squared
    for _ in range(min(ITERATIONS, 4 * b[0].numel())):
        going = squared > goal
        if not going.any():
            break
        image = matrix(direction)
        bend = inner(direction, image)
        step = torch.where(going & (bend > 0), squared / bend, 0.0)
        v = v + step * direction
        residual = residual - step * image
        before, squared = squared, inner(residual, residual)
        direction = residual + torch.where(going, squared / before, 0.0) * direction
        best, least = torch.where(squared < least, v, best), torch.minimum(squared, least)
    if not bool(((least <= 0.01 * start) & start.isfinite()).all()):  # a tenth of b's length is far from an answer
        raise Error(
            "conjugate gradients on the operator diverged: its adjoint is not the transpose of its apply, or it is "
            "not linear; try operators.check_adjoint, or give the operator a pseudo_inverse and a solve of its own."
        )
    return best


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each picture: (B, ...) -> (B, 1, ...)."""
    return (a * b).sum(dim=tuple(range(1, a.ndim)), keepdim=True)
