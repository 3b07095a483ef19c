"""How far answers lie from the truth, from what was brought, and from each other: a value a picture.

    consistency = root mean (A x - y)^2        shift = mean (x - truth), a channel        spread = mean std over answers

All of 8-bit pictures, in grey levels of 255 or dB. Of several answers to a picture the mean is taken, but for
`psnr_mean`, of their mean; what compares answers needs two of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kuosan.diffusion.operators import Operator
from kuosan.evaluate.reference import WINDOW, psnr, ssim
from kuosan.sample.restored import operator_rows

if TYPE_CHECKING:
    from kuosan.evaluate.damaged import Damaged

MOST = 100.0  # dB of equal pictures, whose PSNR is infinite
Distance = Callable[[Tensor, Tensor], Tensor]  # of uint8 pictures (B, C, H, W), pair by pair: (B,)
CHANNELS = {1: ("shift",), 3: ("shift_r", "shift_g", "shift_b")}


def measure(damaged: Damaged, answers: Tensor, distance: Distance) -> dict[str, Tensor]:
    """Every measure of answers (N, V, C, H, W) uint8 to N pictures, by name: (N,) float64 each."""
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
    if not damaged.asked.noise:
        found["consistency"] = consistency(damaged, flat).view(n, variants).mean(1)
    if variants > 1:
        found["spread"] = answers.double().std(dim=1).mean(dim=(1, 2, 3))
        found["diversity"] = distance(answers[:, 0], answers[:, 1]).double()
    off = (answers.double() - truth[:, None].double()).mean(dim=(1, 3, 4))  # (N, C)
    names = CHANNELS.get(off.shape[1], tuple(f"shift_{i}" for i in range(off.shape[1])))
    return found | dict(zip(names, off.unbind(1)))


def consistency(damaged: Damaged, flat: Tensor) -> Tensor:
    """How far answers (N V, C, H, W) uint8, an equal number a picture, lie from what was brought: (N V,)."""
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
    """Decibels with those of equal pictures as `MOST`, so that they have a mean."""
    return value.clamp(max=MOST)


def levels(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] as 8-bit files hold them: uint8, in the same order of axes."""
    return x.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()
