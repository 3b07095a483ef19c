from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dct

from kuosan.data.pixels import LINE, from_uint8
from kuosan.errors import Error
from kuosan.sample import write
from kuosan.sample.write import GAP


def images(*values: int, size: int = 64, channels: int = 3) -> torch.Tensor:
    """Plain images of these grey levels."""
    bytes_ = np.stack([np.full((size, size, channels), value, np.uint8) for value in values])
    return torch.from_numpy(from_uint8(bytes_))


def cell(sheet: np.ndarray, row: int, column: int, size: int = 128) -> np.ndarray:
    """The cell of a sheet whose cells are squares of `size`."""
    top = LINE + GAP + row * (size + GAP)
    left = GAP + column * (size + GAP)
    return sheet[top : top + size, left : left + size]


@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_shows_input_reconstruction_and_four_times_the_difference(channels: int) -> None:
    x, y = images(100, 200, channels=channels), images(110, 192, channels=channels)
    sheet = write.check_sheet(x, y, torch.zeros(2, 4, 16, 16))
    assert sheet.dtype == np.uint8
    assert sheet.shape == (LINE + GAP + 2 * (128 + GAP), 4 * (128 + GAP) + GAP, 3)
    for row, levels in enumerate(([100, 110, 168], [200, 192, 96])):
        for column, level in enumerate(levels):
            assert (cell(sheet, row, column) == level).all()


def test_a_large_difference_is_black_or_white_and_not_wrapped_around() -> None:
    sheet = write.check_sheet(images(0, 255), images(255, 0), torch.zeros(2, 4, 4, 4))
    assert (cell(sheet, 0, 2) == 255).all() and (cell(sheet, 1, 2) == 0).all()


def test_a_reconstruction_beyond_black_and_white_is_clipped_as_a_file_would_be() -> None:
    sheet = write.check_sheet(images(255), torch.full((1, 3, 64, 64), 1.5), torch.zeros(1, 4, 4, 4))
    assert (cell(sheet, 0, 1) == 255).all() and (cell(sheet, 0, 2) == 128).all()


def test_images_stand_side_by_side_in_columns() -> None:
    x = images(10, 20, 30)
    sheet = write.check_sheet(x, x, torch.zeros(3, 4, 8, 8), columns=2)
    assert sheet.shape == (LINE + GAP + 2 * (128 + GAP), 8 * (128 + GAP) + GAP, 3)
    assert (cell(sheet, 0, 4) == 20).all() and (cell(sheet, 1, 0) == 30).all()
    assert (cell(sheet, 1, 4) == 255).all()  # nothing is left for this place


@pytest.mark.parametrize("channels", [2, 3, 4, 16])
def test_the_projection_is_the_orthonormal_dct_of_scipy(channels: int) -> None:
    wanted = dct(np.eye(channels), norm="ortho", axis=0)[:3]
    assert np.allclose(write.projection(channels)[: len(wanted)], wanted)


def test_a_single_channel_of_latents_is_grey_and_dark_where_it_is_low() -> None:
    z = torch.linspace(-1, 1, 16 * 16).reshape(1, 1, 16, 16)
    shown = write.colours(z)
    assert shown.shape == (1, 16, 16, 3) and (shown == shown[..., :1]).all()
    assert shown[0, 0, 0, 0] == 0 and shown[0, -1, -1, 0] == 255
    assert (np.diff(shown[0, ..., 0].ravel().astype(int)) >= 0).all()


def test_one_outlier_does_not_turn_the_latents_grey() -> None:
    z = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32).clone()
    before = write.colours(z)
    z[0, 0, 0, 0] = 1e6
    assert np.abs(write.colours(z)[0].astype(int) - before[0]).max(axis=2).ravel()[1:].max() <= 1


def test_constant_latents_are_the_middle_grey_whatever_their_value() -> None:
    assert (write.colours(torch.full((2, 4, 3, 3), 7.3)) == 128).all()


def test_equal_latents_have_equal_colours_on_every_image_of_a_sheet() -> None:
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    shown = write.colours(torch.cat([z, -3 * z, z]))
    assert (shown[0] == shown[2]).all() and not (shown[0] == shown[1]).all()


def test_small_narrow_and_large_images_are_shown_at_sizes_that_can_be_seen() -> None:
    for size, shown in {
        (2, 2): (128, 128),
        (8, 32): (32, 128),
        (100, 100): (200, 200),
        (1000, 500): (320, 160),
    }.items():
        x = torch.zeros(1, 3, *size)
        sheet = write.check_sheet(x, x, torch.zeros(1, 4, 2, 2))
        wide = max(shown[1], write.NARROW)
        assert sheet.shape == (LINE + 2 * GAP + shown[0], 4 * (wide + GAP) + GAP, 3), size


@pytest.mark.parametrize(
    ("x", "y", "z", "said"),
    [
        ((1, 3, 8, 8), (1, 3, 8, 4), (1, 4, 2, 2), "of one shape"),
        ((1, 2, 8, 8), (1, 2, 8, 8), (1, 4, 2, 2), "1 or 3"),
        ((0, 3, 8, 8), (0, 3, 8, 8), (0, 4, 2, 2), "sanity sheet"),
        ((2, 3, 8, 8), (2, 3, 8, 8), (1, 4, 2, 2), "as many latents"),
        ((2, 3, 8, 8), (2, 3, 8, 8), (2, 4, 2), "as many latents"),
    ],
)
def test_images_and_latents_that_do_not_belong_together_are_refused(
    x: tuple[int, ...], y: tuple[int, ...], z: tuple[int, ...], said: str
) -> None:
    with pytest.raises(Error, match=said):
        write.check_sheet(torch.zeros(x), torch.zeros(y), torch.zeros(z))


def test_values_that_are_not_finite_are_refused() -> None:
    x, z = torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 2, 2)
    with pytest.raises(Error, match="encoder has diverged"):
        write.check_sheet(x, x, z / 0)
    with pytest.raises(Error, match="diverged"):
        write.check_sheet(x, x / 0, z)
    with pytest.raises(Error, match="columns = 0"):
        write.check_sheet(x, x, z, columns=0)
