"""Restoration of latents: y = A·D(z0) + noise·n, the measurement taken of what a decoder D makes of them.

    ddnm:   z0 + E(x0 + A^+·(y - A·x0)) - E(x0),   x0 = D(z0), E the encoder
    dps:    z0 - push·grad_z |y - A·D(z0)|

A decoder is not linear, so what asks for its pseudo-inverse or for A·A^T (PiGDM) has no exact form here. The pixels
that a mask keeps are another matter: brought to the cells of the latents, they are a mask there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kuosan.diffusion import operators
from kuosan.diffusion.denoiser import Denoiser, Prediction
from kuosan.diffusion.level import Level, over
from kuosan.diffusion.operators import Measurement
from kuosan.errors import Error

SMALL = 0.01  # of the latents' size: the step over which a decoder's change is measured


class Seen(NamedTuple):
    """What a decoder makes of latents, and how that changes with them."""

    picture: Tensor  # (B, C, H, W)
    pull: Callable[[Tensor], Tensor]  # J^T·v: (B, C, H, W) -> (B, c, h, w)
    push: Callable[[Tensor], Tensor]  # J·s: (B, c, h, w) -> (B, C, H, W)


def seen(decode: Callable[[Tensor], Tensor] | None, z: Tensor) -> Seen:
    """Latents z (B, c, h, w) through a decoder; None is the identity."""
    if decode is None:
        return Seen(z, _same, _same)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        picture = decode(leaf)
    at = picture.detach()

    def pull(v: Tensor) -> Tensor:
        return torch.autograd.grad(picture, leaf, v.to(picture))[0]

    def push(step: Tensor) -> Tensor:
        size = step.flatten(1).norm(dim=1)
        short = SMALL * z.flatten(1).norm(dim=1) / size
        h = over(torch.where(size > 0, short, 1.0), z)
        return (decode(z + h * step) - at) / h

    return Seen(at, pull, push)


def _same(v: Tensor) -> Tensor:
    return v


def ddnm(
    denoise: Denoiser,
    measurement: Measurement,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    prior_std: float,
    picture_std: float,
) -> Denoiser:
    """What y says replaces what the decoded prediction says of it (after Wang, Yu & Zhang 2023), and that is encoded.

    The encoder sees the picture before and after, so that its own loss cancels: where y agrees with the prediction,
    it stays. With noise, as `restoration.ddnm` in pixels of std `picture_std`.
    """
    if not (prior_std > 0 and picture_std > 0):
        raise Error(f"prior_std {prior_std}, picture_std {picture_std}: standard deviations of data, above 0.")

    def held(z: Tensor, level: Level) -> Prediction:
        prediction = denoise(z, level)
        picture = decode(prediction.x0)
        residual = measurement.residual(picture)
        if measurement.noise == 0:
            step = operators.pseudo_inverse(measurement.operator, residual)
        else:
            spread = level.sigma**2 / (level.alpha**2 * prior_std**2 + level.sigma**2)  # of the prior's variance
            tau = over(measurement.noise**2 / (picture_std**2 * spread), residual)
            step = measurement.operator.adjoint(operators.solve(measurement.operator, residual, tau))
        moved = encode(picture + step) - encode(picture)
        return prediction._replace(x0=prediction.x0 + moved.to(prediction.x0))

    return held
