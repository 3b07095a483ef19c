"""Exact denoisers, E[x0 | x_t] in closed form: what a perfectly trained network would say.

For data that is Gaussian, a mixture, or a finite set of points. Each is a Denoiser, and `network` dresses it as a
network of any prediction type on any schedule.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser, Prediction, row
from kuosan.diffusion.level import Level, over
from kuosan.diffusion.network import Network
from kuosan.diffusion.schedule import Discrete, Flow, Karras


def gaussian(mean: Tensor, cov: Tensor) -> Denoiser:
    """Data N(mean, cov): mean (C, H, W), cov (D, D) with D = C·H·W, or a number for cov·I.

    E[x0|x] = mean + alpha·cov·(alpha²·cov + sigma²·I)^-1·(x - alpha·mean), by cov's eigenvectors.
    """
    size = mean.numel()
    full = torch.as_tensor(cov, dtype=torch.float64)
    full = full * torch.eye(size, dtype=torch.float64) if full.ndim == 0 else full
    values, vectors = torch.linalg.eigh(full)

    def denoise(x: Tensor, level: Level) -> Prediction:
        alpha, sigma = (c.reshape(-1, 1) for c in (level.alpha, level.sigma))
        centre = mean.double().reshape(1, -1)
        away = (x.double().flatten(1) - alpha * centre) @ vectors
        gain = alpha * values / (alpha**2 * values + sigma**2)
        return Prediction((centre + (gain * away) @ vectors.T).reshape(x.shape).to(x.dtype))

    return denoise


def mixture(means: Tensor, std: float, weights: Tensor | None = None) -> Denoiser:
    """Data in K blobs N(means[k], std²·I): means (K, C, H, W), weights (K,) of sum 1, equal if None.

    The posterior mean of each blob, weighted by the blob's probability given x; std = 0 is a finite set of points.
    """
    flat = means.double().flatten(1)
    prior = torch.ones(len(flat), dtype=torch.float64) / len(flat) if weights is None else weights.double()

    def denoise(x: Tensor, level: Level) -> Prediction:
        alpha, sigma = (c.reshape(-1, 1) for c in (level.alpha, level.sigma))
        v = x.double().flatten(1)
        var = alpha**2 * std**2 + sigma**2
        squared = ((v[:, None] - alpha[..., None] * flat) ** 2).sum(-1)
        chance = (prior.log() - squared / (2 * var)).softmax(-1)  # (B, K)
        centre = chance @ flat
        return Prediction((centre + alpha * std**2 / var * (v - alpha * centre)).reshape(x.shape).to(x.dtype))

    return denoise


def points(data: Tensor) -> Denoiser:
    """Data that is one of finitely many images, (K, C, H, W)."""
    return mixture(data, 0.0)


def level_at(schedule: Discrete | Karras | Flow, t: Tensor) -> Level:
    """The levels (B,) at the network's clock t: the inverse of what `clock` tells a network."""
    t = t.detach().cpu().double()
    if isinstance(schedule, Discrete):
        if bool((t == t.round()).all()):
            return schedule.at_t(t.long().numpy())
        i = t.floor().clamp(max=schedule.T - 2).long()
        table = torch.from_numpy(schedule.log_snr.copy())
        return schedule.at_log_snr((table[i] + (t - i) * (table[i + 1] - table[i])).numpy())
    return schedule.at_sigma((t * 4).exp().numpy() if isinstance(schedule, Karras) else (t / 1000).numpy())


def network(denoise: Denoiser, prediction: str, schedule: Discrete | Karras | Flow, sigma_data: float = 0.5) -> Network:
    """The exact denoiser as a network: what it should put out for a scaled x and the clock t."""

    def forward(x: Tensor, t: Tensor) -> Tensor:
        level = level_at(schedule, t)
        a, b, scale = (over(c, x) for c in row(prediction, level, sigma_data))
        x_t = x / scale
        x0 = denoise(x_t, level).x0
        eps = (x_t - over(level.alpha, x) * x0) / over(level.sigma, x)
        return a * x0 + b * eps

    return forward
