"""DDIM inversion: to an image's noise and back, with the order the method has, or exactly."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

import oracle
from kuosan.diffusion.denoiser import Prediction
from kuosan.diffusion.inversion import ddim_inversion
from kuosan.diffusion.level import Level
from kuosan.diffusion.samplers import ddim
from kuosan.diffusion.schedule import Discrete, Karras
from kuosan.errors import Error

STD = 0.5
GAUSSIAN = oracle.gaussian(torch.zeros(1, 1, 2), torch.tensor([[STD**2, 0.0], [0.0, 0.04]]))
MEANS = torch.tensor([[[[-0.7, 0.3]]], [[[0.6, 0.5]]], [[[0.1, -0.8]]]])


def images() -> Tensor:
    """Draws from the mixture's blobs: (12, 1, 1, 2)."""
    draw = torch.Generator().manual_seed(0)
    return MEANS.double().repeat(4, 1, 1, 1) + 0.2 * torch.randn(12, 1, 1, 2, generator=draw, dtype=torch.float64)


def psnr(x: Tensor, y: Tensor) -> float:
    """10·log10(2²/mean squared difference), over all images."""
    return 10 * math.log10(4 / float(((x - y) ** 2).mean()))


def there_and_back(levels: Level, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    exact, x = oracle.mixture(MEANS, 0.2), images()
    *_, noise = ddim_inversion(exact, x, levels, iterations)
    *_, back = ddim(exact, noise.x, levels, lambda *_: x)
    return x, noise.x, back.x


def test_the_noise_found_converges_to_the_exact_flow_s_with_order_1() -> None:
    x = torch.tensor([[[[0.4, -0.1]]]], dtype=torch.float64)
    errors = []
    for steps in (64, 128, 256):
        levels = Discrete().grid(steps, "log_snr", "first")
        *_, last = ddim_inversion(GAUSSIAN, x, levels)
        spread = (levels.alpha[:, None] ** 2 * torch.tensor([STD**2, 0.04]) + levels.sigma[:, None] ** 2).sqrt()
        errors.append(float((last.x - x * spread[0] / spread[-1]).abs().max()))
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([1, 1], abs=0.1)


def test_the_way_back_converges_with_order_1_and_its_psnr_grows() -> None:
    found = {}
    for steps in (25, 50, 100, 200):
        x, _, back = there_and_back(Discrete().grid(steps, "trailing", "first"), 0)
        found[steps] = psnr(x, back), float((x - back).abs().mean())
    assert math.log2(found[100][1] / found[200][1]) == pytest.approx(1, abs=0.3)
    values = [value for value, _ in found.values()]
    assert values == sorted(values) and values[1] > 25


def test_fixed_point_iterations_make_the_way_back_exact() -> None:
    levels = Discrete().grid(50, "trailing", "first")
    gaps = []
    for iterations in (0, 1, 3, 10, 40):
        x, _, back = there_and_back(levels, iterations)
        gaps.append(float((x - back).abs().max()))
    assert gaps == sorted(gaps, reverse=True) and gaps[2] < gaps[0] / 10 and gaps[-1] < 1e-7


def test_the_noise_of_images_is_standard_normal() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(4000, 1, 1, 2, generator=draw, dtype=torch.float64) * torch.tensor([STD, 0.2])
    *_, last = ddim_inversion(GAUSSIAN, x, Discrete().grid(1000, "log_snr", "first"))
    cov = torch.cov(last.x.flatten(1).T)
    assert (cov - torch.eye(2)).abs().max() < 0.05


def test_the_first_level_asked_is_the_first_trained_one_and_the_last_is_not() -> None:
    levels = Discrete().grid(10, "trailing", "first")
    asked = []

    def watched(x: Tensor, level: Level) -> Prediction:
        asked.append(float(level.t))
        return Prediction(x)

    assert len(list(ddim_inversion(watched, images(), levels))) == 10
    assert asked == levels.t.flip(0)[:-1].tolist()


@pytest.mark.parametrize("prediction_at_0", [True, False])
def test_a_walk_up_to_alpha_0_and_back(prediction_at_0: bool) -> None:
    """Zero terminal SNR: the noisiest level holds nothing of the image but the noise found."""
    levels = Discrete(zero_terminal_snr=True).grid(50, "trailing", "first")
    x, noise, back = there_and_back(levels, 3 if prediction_at_0 else 0)
    assert noise.isfinite().all() and float(levels.alpha[0]) == 0
    assert psnr(x, back) > 20


def test_what_cannot_be_inverted_is_refused() -> None:
    x = images()
    with pytest.raises(Error, match='last="first"'):
        next(ddim_inversion(GAUSSIAN, x, Discrete().grid(5)))
    with pytest.raises(Error, match="iterations -1"):
        next(ddim_inversion(GAUSSIAN, x, Karras().grid(5, last="first"), iterations=-1))
    levels = Karras().grid(5, last="first")
    with pytest.raises(Error, match="adds noise"):
        next(ddim_inversion(GAUSSIAN, x, levels[torch.arange(5, -1, -1)]))
