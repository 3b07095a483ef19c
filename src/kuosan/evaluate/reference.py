"""How near a picture is to the one it should be: for restoration, codecs and inversion, where there is a reference.

    PSNR = 10 log10(L^2 / mean (x - y)^2)
    SSIM = mean (2 mx my + c1)(2 sxy + c2) / ((mx^2 + my^2 + c1)(sx^2 + sy^2 + c2)),  c = (K L)^2, K = .01, .03

Pictures (B, C, H, W) are uint8 (L = 255) or float in [-1, 1] (L = 2), both of one kind, and taken as they are: round
first what will be written in 8 bits. Everything is float64, a value a picture; higher is nearer.
"""

from __future__ import annotations

from math import log10

import torch
import torch.nn.functional as F
from torch import Tensor

from kuosan.errors import Error

WINDOW, SIGMA = 11, 1.5  # Wang et al. 2004, section III.B
STRIP = 256  # rows of places whose SSIM is taken at once: a large picture's blurred parts would not fit into memory
K1, K2 = 0.01, 0.03


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, over all channels and pixels of each picture: (B,), inf for equal ones.

    Raises:
        Error: pictures of other shapes or kinds.
    """
    a, b, reach = _checked(x, y, "PSNR")
    error = (a - b).square().mean(dim=(1, 2, 3))
    return 20 * log10(reach) - 10 * torch.log10(error)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004), averaged over channels and places that hold the whole window: (B,).

    As the authors and scikit-image do it; torchmetrics mirrors the borders and averages over them as well.

    Raises:
        Error: pictures of other shapes or kinds, or smaller than the window of 11 pixels.
    """
    a, b, reach = _checked(x, y, "SSIM")
    if min(a.shape[-2:]) < WINDOW:
        raise Error(f"SSIM of pictures {tuple(a.shape[-2:])}: its window is {WINDOW} pixels; use PSNR.")
    if reach == 2:
        a, b = a + 1, b + 1  # the formula is for brightness from 0
    rows = a.shape[2] - WINDOW + 1
    total = torch.zeros(len(a), dtype=a.dtype, device=a.device)
    for top in range(0, rows, STRIP):
        some = slice(top, min(top + STRIP, rows) + WINDOW - 1)
        total += _similarity(a[:, :, some], b[:, :, some], reach)
    return total / rows


def _similarity(a: Tensor, b: Tensor, reach: float) -> Tensor:
    """SSIM summed over rows of places, averaged over columns and channels: (B,)."""
    count, channels = a.shape[:2]
    parts = torch.cat([a, b, a * a, b * b, a * b]).flatten(0, 1)[:, None]  # (5 B C, 1, H, W)
    mean_a, mean_b, aa, bb, ab = blurred(parts).view(5, count, channels, a.shape[2] - WINDOW + 1, -1)
    c1, c2 = (K1 * reach) ** 2, (K2 * reach) ** 2
    brightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * (ab - mean_a * mean_b) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
    found: Tensor = (brightness * structure).mean(dim=(1, 3)).sum(dim=1)
    return found


def blurred(x: Tensor) -> Tensor:
    """x (N, 1, H, W) under the Gaussian window, where the whole of it fits: (N, 1, H - 10, W - 10)."""
    line = torch.exp(-((torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    line = line / line.sum()
    return F.conv2d(F.conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))


def _checked(x: Tensor, y: Tensor, metric: str) -> tuple[Tensor, Tensor, float]:
    """Both as float64 with the reach of their values L, or an `Error` that names what is wrong."""
    if x.ndim != 4 or x.shape != y.shape or not len(x):
        raise Error(f"{metric} compares pictures (B, C, H, W) of one shape; got {tuple(x.shape)} and {tuple(y.shape)}.")
    if (x.dtype == torch.uint8) != (y.dtype == torch.uint8):
        raise Error(f"{metric} compares pictures of one kind, uint8 or [-1, 1]; got {x.dtype} and {y.dtype}.")
    if x.dtype == torch.uint8:
        return x.double(), y.double(), 255.0
    for side in (x, y):
        if not side.is_floating_point() or not torch.isfinite(side).all() or side.abs().max() > 1 + 1e-6:
            raise Error(f"{metric} reads uint8 or finite pictures in [-1, 1]; got {side.dtype} beyond: clamp first.")
    return x.double(), y.double(), 2.0
