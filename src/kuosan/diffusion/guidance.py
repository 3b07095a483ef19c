"""Guidance: denoiser in, denoiser out. Each wrapper is written once and works with every sampler."""

from __future__ import annotations

from torch import Tensor

from kuosan.diffusion.denoiser import Denoiser, Prediction
from kuosan.diffusion.level import Level
from kuosan.errors import Error


def clamp(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Keep the predicted data within [low, high]; samplers recompute eps from it (diffusers' DDIM does so with
    `use_clipped_model_output=True`). The learned variance passes unchanged.
    """
    if not low < high:
        raise Error(f"clamp from {low} to {high}: low must be below high, as in -1 and 1.")

    def clamped(x: Tensor, level: Level) -> Prediction:
        prediction = denoise(x, level)
        return prediction._replace(x0=prediction.x0.clamp(low, high))

    return clamped
