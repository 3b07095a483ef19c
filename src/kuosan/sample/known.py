"""What is known of damaged pictures: what a trained model is given, and the measurement that others are held to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from kuosan.data.given import Given
from kuosan.diffusion.operators import (
    Compose,
    Greyscale,
    Identity,
    Mask,
    Measurement,
    Operator,
    Separable,
    gaussian_blur,
)
from kuosan.tasks.condition import shrinking

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.model import Model
    from kuosan.sample.restoration import Restoration

ROUNDING = 1 / 127.5 / 12**0.5  # std of rounding to 8 bits: what a deblurred picture's noise is at least


def told(
    model: Model, asked: Restoration, chosen: str | None, picture: Tensor, hole: Tensor | None
) -> tuple[Given | None, Measurement | None]:
    """What the model is given, and what it is held to, of pictures (B, C, h, w) with holes (B, 1, h, w)."""
    noise = asked.noise / 127.5
    given = None
    if model.config.task.kind != "generation":
        given = Given(picture, hole, torch.full((len(picture),), noise) if noise else None)
    if chosen is None:
        return given, None
    scale = asked.upscale or 1
    size = (scale * picture.shape[-2], scale * picture.shape[-1])
    operator = operator_of(asked, size, hole)
    y = _measured(asked, picture)
    return given, Measurement(operator, y, max(noise, ROUNDING if asked.deblur else 0.0))


def operator_of(asked: Restoration, size: tuple[int, int], hole: Tensor | None) -> Operator:
    """What the picture went through, as one operator."""
    resampling: list[Separable] = []
    if asked.upscale:
        resampling += shrinking(asked.upscale, size, asked.down or "area", asked.deblur or 0.0)
    elif asked.deblur:
        resampling.append(gaussian_blur(asked.deblur, size))
    parts: list[Operator] = []
    if resampling:
        rows, columns = resampling[0].rows, resampling[0].columns
        for part in resampling[1:]:
            rows, columns = part.rows @ rows, part.columns @ columns
        parts.append(Separable(rows, columns))
    if asked.colorise:
        parts.append(Greyscale())
    if hole is not None:
        parts.append(Mask(1 - hole))
    return Identity() if not parts else parts[0] if len(parts) == 1 else Compose(tuple(parts))


def _measured(asked: Restoration, picture: Tensor) -> Tensor:
    return picture[:, :1] if asked.colorise else picture  # grey: all channels are equal
