"""Resizing against a float64 antialiased bicubic, and the rules about what is cut, filled or repeated."""

from __future__ import annotations

import numpy as np
import pytest
from made_files import drawn

from kuosan.data.pixels import enlarge, fit, is_grey, luma, with_channels

WHITE = (255, 255, 255)


def bicubic(values: np.ndarray, size: int, axis: int, low: float, high: float) -> np.ndarray:
    """Keys's kernel, a = -1/2, widened by the factor when shrinking; float64, the edge weights renormalised."""
    have = values.shape[axis]
    scale = (high - low) / size
    wide = max(scale, 1.0)
    centres = low + (np.arange(size) + 0.5) * scale
    z = np.abs((np.arange(have) + 0.5 - centres[:, None]) / wide)
    near, far = 1.5 * z**3 - 2.5 * z**2 + 1, -0.5 * z**3 + 2.5 * z**2 - 4 * z + 2
    weights = np.where(z < 1, near, np.where(z < 2, far, 0.0))
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, np.moveaxis(values, axis, 0), 1), 0, axis)


def square(values: np.ndarray, size: int, box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = box
    scaled = bicubic(bicubic(values.astype(np.float64), size, 1, left, right), size, 0, top, bottom)
    return np.clip(scaled, 0, 255)


@pytest.mark.parametrize("size", [8, 16, 37, 64, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_stretch_are_antialiased_bicubic(size: int, channels: int) -> None:
    pixels = 60 + drawn(50, 71, channels) // 2  # where no overshoot is clipped between the two passes
    crop, stretch = (fit(pixels, size, rule, WHITE) for rule in ("crop", "stretch"))
    assert crop.shape == stretch.shape == (size, size, channels)
    assert np.abs(crop - square(pixels, size, (10, 0, 60, 50))).max() <= 2
    assert np.abs(stretch - square(pixels, size, (0, 0, 71, 50))).max() <= 2


def test_a_strip_of_twenty_thousand_pixels_costs_no_more_than_a_square() -> None:
    for shape in ((1, 20_000), (20_000, 1)):
        for rule in ("crop", "pad", "stretch", "centre"):
            assert fit(drawn(*shape), 32, rule, WHITE).shape == (32, 32, 3)


def test_an_image_of_the_right_size_is_untouched() -> None:
    pixels = drawn(16, 16)
    for rule in ("crop", "pad", "stretch", "centre"):
        assert (fit(pixels, 16, rule, WHITE) == pixels).all()


@pytest.mark.parametrize(("h", "w", "top", "left"), [(20, 40, 8, 0), (40, 20, 0, 8)])
def test_padding_lays_the_whole_image_on_the_background(h: int, w: int, top: int, left: int) -> None:
    padded = fit(np.full((h, w, 3), 9, np.uint8), 32, "pad", (200, 0, 7))
    inside = np.zeros((32, 32), bool)
    inside[top : 32 - top, left : 32 - left] = True
    assert (padded[inside] == 9).all() and (padded[~inside] == (200, 0, 7)).all()
    grey = fit(np.full((h, w, 1), 9, np.uint8), 32, "pad", (200, 0, 7))
    assert (grey[~inside] == round(0.299 * 200 + 0.114 * 7)).all()


def test_centre_cuts_what_is_larger_and_repeats_the_edge_of_what_is_smaller() -> None:
    pixels = drawn(7, 12)
    made = fit(pixels, 10, "centre", WHITE)
    assert (made[1:8] == pixels[:, 1:11]).all()
    assert (made[0] == made[1]).all() and (made[8:] == made[7]).all()


def test_grey_is_the_luma_of_colour() -> None:
    pixels = drawn()
    assert np.abs(luma(pixels)[..., 0] - (pixels * [0.299, 0.587, 0.114]).sum(2)).max() <= 0.5
    assert is_grey(np.repeat(pixels[..., :1], 3, 2)) and not is_grey(pixels)
    assert (with_channels(pixels[..., :1], 3) == pixels[..., :1]).all()
    assert with_channels(pixels, 1).shape == (10, 12, 1)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("factor", [2, 3, 7])
def test_nearest_gives_enlarged_pixel_art_back_and_mixes_nothing(channels: int, factor: int) -> None:
    art = drawn(16, 16, channels)
    assert (fit(enlarge(art, factor), 16, "nearest", WHITE) == art).all()
    assert (fit(art, 16 * factor, "nearest", WHITE) == enlarge(art, factor)).all()


@pytest.mark.parametrize(("h", "w", "size"), [(50, 71, 16), (71, 50, 37), (9, 9, 64), (5, 40, 24)])
def test_nearest_takes_the_pixel_in_which_each_middle_lies(h: int, w: int, size: int) -> None:
    pixels, side = drawn(h, w), min(h, w)
    left, top = (w - side) // 2, (h - side) // 2
    middles = [(2 * i + 1) * side // (2 * size) for i in range(size)]  # in whole numbers
    wanted = np.array([[pixels[top + y, left + x] for x in middles] for y in middles])
    assert (fit(pixels, size, "nearest", WHITE) == wanted).all()
