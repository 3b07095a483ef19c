"""What a measurement says of Gaussian data, in closed form: the exact answer that restoration aims at."""

from __future__ import annotations

import torch
from torch import Tensor

from kuosan.diffusion.operators import Measurement, Operator


def dense(operator: Operator, shape: tuple[int, int, int]) -> Tensor:
    """The operator's matrix (d, D) on images of a shape (C, H, W), float64."""
    size = shape[0] * shape[1] * shape[2]
    columns = operator.apply(torch.eye(size, dtype=torch.float64).reshape(size, *shape))
    return columns.flatten(1).T


def posterior(mean: Tensor, cov: Tensor, measurement: Measurement) -> tuple[Tensor, Tensor]:
    """Mean (C, H, W) and covariance (D, D) of x0 ~ N(mean, cov) given one y = A·x0 + noise·n (Bishop 2006, 2.116).

    gain = cov·A^T·(A·cov·A^T + noise²·I)^+, the pseudo-inverse because a mask measures its unknown pixels as 0.
    """
    shape = (mean.shape[0], mean.shape[1], mean.shape[2])
    A = dense(measurement.operator, shape)
    seen = A @ cov @ A.T + measurement.noise**2 * torch.eye(len(A), dtype=torch.float64)
    gain = cov @ A.T @ torch.linalg.pinv(seen, hermitian=True, rtol=1e-10)
    centre = mean.double() + (gain @ measurement.residual(mean.double()[None]).flatten()).reshape(shape)
    return centre, cov - gain @ A @ cov


def distance(samples: Tensor, mean: Tensor, cov: Tensor) -> tuple[float, float]:
    """How far samples (n, C, H, W) are from N(mean, cov), as parts of its std: of the mean and of the covariance."""
    flat = samples.double().flatten(1)
    away = flat.mean(0) - mean.flatten()
    return float(away.norm() / cov.trace().sqrt()), float((flat.T.cov() - cov).norm() / cov.norm())
