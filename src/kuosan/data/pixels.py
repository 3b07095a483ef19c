"""Arithmetic on 8-bit pixels, (H, W, C) uint8 in sRGB values: compositing, grey, channels."""

from __future__ import annotations

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as JPEG


def rounded(values: np.ndarray) -> np.ndarray:
    """Values in [0, 255] as bytes, to the nearest."""
    nearest: np.ndarray = np.rint(values).astype(np.uint8)
    return nearest


def laid_on(colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """alpha * colour + (1 - alpha) * background, in sRGB values as browsers do.

    Colour (H, W, 1 or 3) and alpha (H, W, 1) in [0, 1] give (H, W, 3), or (H, W, 1) for grey on grey.
    """
    under = np.array(background, np.float64)
    if colour.shape[2] == 1 and len(set(background)) == 1:
        under = under[:1]
    return rounded(alpha * colour + (1 - alpha) * under)


def opaque(pixels: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Pixels (H, W, 1, 3 or 4) with a fourth channel, if there is one, laid on `background`."""
    return laid_on(pixels[..., :3], pixels[..., 3:] / 255, background) if pixels.shape[2] == 4 else pixels


def luma(pixels: np.ndarray) -> np.ndarray:
    """Grey (H, W, 1) of colour (H, W, 3), 0.299 R + 0.587 G + 0.114 B."""
    return rounded(pixels @ LUMA)[..., None]


def is_grey(pixels: np.ndarray) -> bool:
    """Whether red, green and blue agree in every pixel of (H, W, 1 or 3)."""
    return pixels.shape[2] == 1 or bool((pixels == pixels[..., :1]).all())


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Pixels (H, W, 1 or 3) as (H, W, channels)."""
    if pixels.shape[2] == channels:
        return pixels
    return luma(pixels) if channels == 1 else np.repeat(pixels, 3, axis=2)
