"""Whole images damaged, the same for all who restore them: y = A x + noise, rounded to 8 bits as a file would be.

What anybody can do without a model: enlarging by a rule, filling holes from their edges, inverting the damage.

nearest known: x = y(the nearest known pixel)          harmonic: sum of 4 neighbours - 4 x = 0 inside the hole
regularised:   A^T (A A^T + tau)^-1 y, tau = (noise / s)^2, Bayes' mean for white images of std s

How far answers lie from the truth, from the degraded image, and from each other: a value an image.

    consistency = root mean (A x - y)^2        shift = mean (x - truth), a channel        spread = mean std over answers

All of 8-bit images, in grey levels of 255 or dB. Of several answers to an image the mean is taken, but for
`psnr_mean`, of their mean; what compares answers needs two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kuosan import seeds
from kuosan.data.pixels import as_written
from kuosan.diffusion import operators
from kuosan.diffusion.operators import Operator, conjugate_gradients
from kuosan.errors import Error
from kuosan.evaluate.comparison import masked
from kuosan.metrics.image_quality import WINDOW, psnr, ssim
from kuosan.sample.constraint import ROUNDING, operator_of, operator_rows
from kuosan.tasks.condition import enlarged
from kuosan.tasks.task import SMALLEST, draw_mask

if TYPE_CHECKING:
    from kuosan.evaluate.comparison import ComparisonConfig
    from kuosan.sample.request import Restoration


@dataclass(frozen=True)
class Damaged:
    """N images and what is left of them, float32 in [-1, 1], each as 8 bits hold it."""

    restoration: Restoration
    truth: Tensor  # (N, C, H, W)
    degraded: Tensor  # (N, C, h, w): small, blurred, grey in all channels, or 0 where cut out
    hole: Tensor | None  # (N, 1, H, W), 1 where cut out
    operator: Operator  # A, of these N images

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def measured(self) -> Tensor:
        """y: (N, c, h, w), one channel of a grey image whose colours were taken."""
        return self.degraded[:, :1] if self.restoration.colorise else self.degraded

    def rows(self, first: int, last: int) -> Damaged:
        """The images `first` to `last` - 1."""
        part = slice(first, last)
        hole = None if self.hole is None else self.hole[part]
        operator = operator_rows(self.operator, range(*part.indices(len(self))))
        return replace(self, truth=self.truth[part], degraded=self.degraded[part], hole=hole, operator=operator)


def damage(config: ComparisonConfig, truth: Tensor) -> Damaged:
    """Damage whole images (N, C, H, W); masks and noise are keyed by each image's place.

    Raises:
        Error: a size that cannot be shrunk so or holds no such mask, colours taken from grey images.
    """
    wanted, size = config.restoration(), (truth.shape[-2], truth.shape[-1])
    if wanted.colorise and truth.shape[1] != 3:
        raise Error("colorise: these models make grey images, which have no colours to take; use models of colour.")
    if wanted.upscale is not None and any(side % wanted.upscale for side in size):
        raise Error(f"upscale = {wanted.upscale} of images {size[1]}x{size[0]}: it must divide both sides.")
    hole = _holes(config, len(truth), size)
    operator = operator_of(wanted, size, hole)
    y = operator.apply(truth)
    if wanted.noise:
        keys = [(config.seed, "compare/noise", 0, i) for i in range(len(y))]
        y = y + wanted.noise / 127.5 * seeds.normal(keys, tuple(y.shape[1:]))
    y = as_written(y)
    if hole is not None:
        y = y * (1 - hole)
    return Damaged(wanted, truth, y.expand(-1, truth.shape[1], -1, -1).contiguous(), hole, operator)


def _holes(config: ComparisonConfig, n: int, size: tuple[int, int]) -> Tensor | None:
    """(N, 1, H, W), 1 where an image is cut out. Raises: Error for a box outside the image, or all of it."""
    mask = masked(config.mask)
    height, width = size
    if mask is None:
        return None
    if isinstance(mask[0], int):
        left, top, wide, high = (int(part) for part in mask)
        if left + wide > width or top + high > height or (wide, high) == (width, height):
            raise Error(f"mask {config.mask} is no part of the images, {width}x{height}: give a smaller x,y,w,h.")
        hole = torch.zeros(n, 1, height, width)
        hole[..., top : top + high, left : left + wide] = 1
        return hole
    if min(size) < SMALLEST:
        raise Error(f"mask {config.mask} of images {width}x{height}: each side must be at least {SMALLEST}.")
    kinds = [str(kind) for kind in mask]
    drawn = [draw_mask(seeds.rng(config.seed, "compare/mask", 0, i), height, width, kinds) for i in range(n)]
    return torch.from_numpy(np.stack(drawn).astype(np.float32))[:, None]


SPREAD = 0.5  # std of images in [-1, 1], EDM's sigma_data
Restore = Callable[["Damaged"], Tensor]


def baselines(damaged: Damaged) -> dict[str, Restore]:
    """The ways that fit this damage, by name: each takes the degraded images and gives (N, C, H, W)."""
    wanted = damaged.restoration
    if wanted.upscale is not None:
        scale = wanted.upscale
        return {
            "bicubic": lambda d: enlarged(d.degraded, scale),
            "nearest": lambda d: d.degraded.repeat_interleave(scale, -2).repeat_interleave(scale, -1),
        }
    if wanted.missing:
        return {"nearest known": _by_nearest, "harmonic": _by_harmonic}
    ways: dict[str, Restore] = {"as it is": lambda d: d.degraded}
    if wanted.deblur is not None or (wanted.colorise and wanted.noise):
        ways["regularised inverse"] = _by_regularised
    elif wanted.colorise:
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


def harmonic(image: Tensor, hole: Tensor) -> Tensor:
    """Holes (N, 1, H, W) of images (N, C, H, W) filled so that each pixel is the mean of its neighbours.

    Laplace's equation with the known pixels as boundary and no flow over the image's border.
    """
    inside, known = hole.double(), (image * (1 - hole)).double()
    degree = _neighbours(torch.ones_like(inside))

    def laplace(v: Tensor) -> Tensor:
        return inside * (degree * v - _neighbours(inside * v))

    x = conjugate_gradients(laplace, inside * _neighbours(known))
    return torch.where(hole > 0, x.to(image), image)


def _neighbours(x: Tensor) -> Tensor:
    """The sum of the four neighbours that lie in the image."""
    p = F.pad(x, (1, 1, 1, 1))
    return p[..., :-2, 1:-1] + p[..., 2:, 1:-1] + p[..., 1:-1, :-2] + p[..., 1:-1, 2:]


def _by_nearest(damaged: Damaged) -> Tensor:
    assert damaged.hole is not None
    filled = damaged.degraded.clone()
    for image, hole in zip(filled, damaged.hole):
        row, column = nearest_known(hole[0].numpy() > 0)
        image.copy_(image[:, torch.from_numpy(row), torch.from_numpy(column)])
    return filled


def _by_harmonic(damaged: Damaged) -> Tensor:
    assert damaged.hole is not None
    pairs = zip(torch.split(damaged.degraded, 16), torch.split(damaged.hole, 16))
    return torch.cat([harmonic(image, hole) for image, hole in pairs])


def _by_regularised(damaged: Damaged) -> Tensor:
    noise = max(damaged.restoration.noise / 127.5, ROUNDING)
    solved = operators.solve(damaged.operator, damaged.measured, (noise / SPREAD) ** 2)
    return damaged.operator.adjoint(solved)


MOST = 100.0  # dB of equal images, whose PSNR is infinite
Distance = Callable[[Tensor, Tensor], Tensor]  # of uint8 images (B, C, H, W), pair by pair: (B,)
CHANNELS = {1: ("shift",), 3: ("shift_r", "shift_g", "shift_b")}


def measure(damaged: Damaged, answers: Tensor, distance: Distance) -> dict[str, Tensor]:
    """Every measure of answers (N, V, C, H, W) uint8 to N images, by name: (N,) float64 each."""
    n, variants = answers.shape[:2]
    truth = levels(damaged.truth)
    repeated, flat = truth.repeat_interleave(variants, 0), answers.flatten(0, 1)
    middle = answers.double().mean(1) / 127.5 - 1
    found = {
        "psnr": capped(psnr(flat, repeated)).view(n, variants).mean(1),
        "psnr_mean": capped(psnr(middle, truth.double() / 127.5 - 1)),
    }
    if damaged.hole is not None:
        found["psnr_hole"] = hole_psnr(answers, truth, damaged.hole).mean(1)
    if min(truth.shape[-2:]) >= WINDOW:
        found["ssim"] = ssim(flat, repeated).view(n, variants).mean(1)
    found["perceptual"] = distance(flat, repeated).double().view(n, variants).mean(1)
    if not damaged.restoration.noise:
        found["consistency"] = consistency(damaged, flat).view(n, variants).mean(1)
    if variants > 1:
        found["spread"] = answers.double().std(dim=1).mean(dim=(1, 2, 3))
        found["diversity"] = distance(answers[:, 0], answers[:, 1]).double()
    off = (answers.double() - truth[:, None].double()).mean(dim=(1, 3, 4))  # (N, C)
    names = CHANNELS.get(off.shape[1], tuple(f"shift_{i}" for i in range(off.shape[1])))
    return found | dict(zip(names, off.unbind(1)))


def consistency(damaged: Damaged, flat: Tensor) -> Tensor:
    """How far answers (N V, C, H, W) uint8, an equal number an image, lie from the degraded image: (N V,)."""
    variants = len(flat) // len(damaged)
    rows = [i for i in range(len(damaged)) for _ in range(variants)]
    operator: Operator = operator_rows(damaged.operator, rows)
    off = operator.apply(flat.double() / 127.5 - 1) - damaged.measured[rows].double()
    return 127.5 * off.square().mean(dim=(1, 2, 3)).sqrt()


def hole_psnr(answers: Tensor, truth: Tensor, hole: Tensor) -> Tensor:
    """PSNR of answers (N, V, C, H, W) over the holes (N, 1, H, W) alone: (N, V)."""
    wrong = (answers.double() - truth[:, None].double()).square().mean(2)  # (N, V, H, W)
    inside = hole.double()
    mean = (wrong * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3))
    return capped(10 * torch.log10(255**2 / mean))


def capped(value: Tensor) -> Tensor:
    """Decibels with those of equal images as `MOST`, so that they have a mean."""
    return value.clamp(max=MOST)


def levels(x: Tensor) -> Tensor:
    """Images in [-1, 1] as 8-bit files hold them: uint8, in the same order of axes."""
    return x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()
