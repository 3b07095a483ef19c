"""Noise and JPEG: what they do to an image, whatever stands beside it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kuosan import seeds
from kuosan.data.pixels import from_uint8, to_uint8
from kuosan.errors import Error
from kuosan.tasks.condition import gaussian_noise, jpeg


def rngs(count: int, first: int = 0) -> list[np.random.Generator]:
    return [seeds.rng(0, "test/degrade", 0, first + i) for i in range(count)]


def smooth(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Images with a slope, a wave and a colour of their own."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    one = [0.4 * torch.sin(3 * x + i) + 0.4 * y * (1 - c) for i in range(batch) for c in range(channels)]
    return torch.stack(one).unflatten(0, (batch, channels))


def test_noise_has_the_std_asked_for_and_no_mean() -> None:
    x = torch.zeros(3, 3, 64, 64)
    noise = gaussian_noise(x, [0.1, 0.5, 2.0], rngs(3))
    assert noise.dtype == torch.float32
    for image, std in zip(noise, (0.1, 0.5, 2.0)):
        assert abs(image.std() / std - 1) < 0.03
        assert abs(image.mean()) < 0.03 * std


def test_noise_is_the_generators_own_added_to_the_image() -> None:
    x = smooth(2, 3, 9, 7)
    drawn = np.stack([rng.standard_normal((3, 9, 7), np.float32) for rng in rngs(2)])
    assert torch.equal(
        gaussian_noise(x, torch.tensor([0.25, 0.5]), rngs(2))[1], x[1] + 0.5 * torch.from_numpy(drawn[1])
    )


def test_noise_depends_on_the_images_own_generator_alone() -> None:
    x, stds = smooth(4, 3, 8, 8), np.array([0.1, 0.2, 0.3, 0.4])
    together = gaussian_noise(x, stds, rngs(4))
    alone = torch.cat([gaussian_noise(x[i : i + 1], stds[i : i + 1], rngs(1, i)) for i in range(4)])
    assert torch.equal(together, alone)


def test_std_zero_gives_the_image_back_and_uses_up_as_many_draws() -> None:
    x, silent, loud = smooth(1, 3, 8, 8), rngs(1), rngs(1)
    assert torch.equal(gaussian_noise(x, [0.0], silent), x)
    gaussian_noise(x, [1.0], loud)
    assert silent[0].random() == loud[0].random()


def test_jpeg_is_what_a_file_holds() -> None:
    x, file = smooth(2, 3, 33, 18), io.BytesIO()
    Image.fromarray(to_uint8(x[1].numpy())).save(file, "JPEG", quality=40)
    with Image.open(file) as image:
        wanted = from_uint8(np.asarray(image))
    assert torch.equal(jpeg(x, [90, 40])[1], torch.from_numpy(wanted))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (7, 5), (16, 16), (17, 33), (64, 40)])
def test_jpeg_takes_every_size_and_quality_and_stays_near(channels: int, height: int, width: int) -> None:
    qualities = [1, 2, 10, 25, 50, 75, 90, 95, 99, 100]
    x = smooth(len(qualities), channels, height, width)
    stored = jpeg(x, qualities)
    assert stored.shape == x.shape and stored.dtype == x.dtype
    assert stored.min() >= -1 and stored.max() <= 1
    assert (stored - x)[4:].abs().mean() < 0.06


def test_jpeg_loses_more_the_lower_the_quality() -> None:
    x = smooth(4, 3, 64, 64) + 0.1 * seeds.normal([(0, "test/jpeg", 0, 0)] * 4, (3, 64, 64))
    lost = (jpeg(x, [10, 40, 70, 95]) - x).square().mean((1, 2, 3))
    assert (lost.diff() < 0).all()


def test_jpeg_of_colour_halves_the_resolution_of_colour_only() -> None:
    fine = torch.ones(1, 3, 32, 32)
    fine[:, :, :, ::2] = -1
    assert (jpeg(fine, [100]) - fine).abs().max() < 0.1  # stripes of grey survive
    fine[:, 1] = 0
    fine[:, 2] = -fine[:, 0]  # red and blue in turn
    assert (jpeg(fine, [100]) - fine).abs().mean() > 0.3


def test_jpeg_leaves_quality_zero_bit_for_bit_and_the_input_as_it_was() -> None:
    x = smooth(2, 3, 16, 16) * 3  # beyond [-1, 1]
    before = x.clone()
    stored = jpeg(x, [0, 80])
    assert torch.equal(stored[0], x[0]) and torch.equal(x, before)
    assert stored[1].abs().max() <= 1


def test_jpeg_does_not_depend_on_what_stands_beside() -> None:
    x, qualities = smooth(4, 3, 20, 12), [5, 0, 50, 100]
    alone = torch.cat([jpeg(x[i : i + 1], qualities[i : i + 1]) for i in range(4)])
    assert torch.equal(jpeg(x, qualities), alone)
    assert torch.equal(jpeg(x, torch.tensor(qualities)), alone)


def test_an_empty_batch_stays_empty() -> None:
    x = torch.zeros(0, 3, 8, 8)
    assert gaussian_noise(x, [], []).shape == jpeg(x, np.zeros(0, int)).shape == x.shape


BAD_NOISE: list[tuple[Any, int, str]] = [
    ([0.1, -0.2], 2, r"stds = \[.*-0.2.*\] are not allowed: each is 0"),
    ([0.1, float("nan")], 2, "finite"),
    ([0.1], 2, r"stds has shape \(1,\); wanted is \(2,\)"),
    (0.1, 2, r"stds has shape \(\)"),
    ([0.1, 0.2], 3, "3 generators for 2 images"),
]


@pytest.mark.parametrize(("stds", "count", "message"), BAD_NOISE)
def test_noise_that_cannot_be_added_is_refused(stds: Any, count: int, message: str) -> None:
    with pytest.raises(Error, match=message):
        gaussian_noise(torch.zeros(2, 3, 8, 8), stds, rngs(count))


BAD_JPEG: list[tuple[tuple[int, ...], Any, str]] = [
    ((2, 3, 8, 8), [50, 101], r"qualities = \[50, 101\] are not allowed: whole numbers 1 to 100, or 0"),
    ((2, 3, 8, 8), [50, -1], "not allowed"),
    ((2, 3, 8, 8), [50.0, 60.0], "whole numbers"),
    ((2, 3, 8, 8), [50], r"wanted is \(2,\)"),
    ((1, 4, 8, 8), [50], "images of 4 channels"),
    ((3, 8, 8), [50, 50, 50], r"\(3, 8, 8\): allowed is \(B, C, H, W\)"),
]


@pytest.mark.parametrize(("shape", "qualities", "message"), BAD_JPEG)
def test_a_file_that_cannot_be_written_is_refused(shape: tuple[int, ...], qualities: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        jpeg(torch.zeros(shape), qualities)
