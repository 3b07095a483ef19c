"""Seams: found where they are, and not where they are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kuosan.errors import Error
from kuosan.metrics.image_quality import seam_energy, seams
from kuosan.models.tiling import blend, tiles
from kuosan.seeds import rng

SIDE, OVERLAP = 32, 8


def white(batch: int, height: int = 128, width: int = 128) -> np.ndarray:
    return rng(0, "test/seams").standard_normal((batch, 3, height, width))


def smooth(batch: int, height: int = 128, width: int = 128) -> np.ndarray:
    """Noise without its fine parts, of variance 1."""
    spectrum = np.fft.rfft2(white(batch, height, width))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    x = np.fft.irfft2(spectrum * np.exp(-((fy**2 + fx**2) / (2 * 0.04**2))), s=(height, width))
    return x / x.std()


def grids(height: int = 128, width: int = 128) -> tuple[list[int], list[int]]:
    return tiles(height, SIDE, OVERLAP), tiles(width, SIDE, OVERLAP)


def with_steps(x: np.ndarray, size: float) -> np.ndarray:
    """Each tile laid over the ones before it, a little lighter or darker."""
    x, (rows, columns) = x.copy(), grids(*x.shape[-2:])
    shade = rng(0, "test/shades").standard_normal((len(rows), len(columns)))
    clean = x.copy()
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            here = (..., slice(top, top + SIDE), slice(left, left + SIDE))
            x[here] = clean[here] + size * shade[i, j]
    return x


@pytest.mark.parametrize("make", [white, smooth])
@pytest.mark.parametrize(("height", "width"), [(128, 128), (90, 200)])
def test_images_without_seams_have_energy_one(make: Any, height: int, width: int) -> None:
    found = seams(make(16, height, width), *grids(height, width), SIDE)
    assert abs(found.energy - 1) < 0.03
    assert abs(found.shifted.mean() - 1) < 0.01
    assert abs(found.z) < 3 and found.p > 0.01


@pytest.mark.parametrize(("make", "size"), [(white, 0.5), (smooth, 0.1)])
def test_planted_seams_are_found(make: Any, size: float) -> None:
    found = seams(with_steps(make(16), size), *grids(), SIDE)
    assert found.energy > 1.05
    assert found.z > 4 and found.p == 1 / (1 + len(found.shifted))


def test_blended_tiles_differ_most_where_their_overlap_is_halved() -> None:
    (rows, columns), x = grids(), smooth(4)
    shades = rng(0, "test/shades").standard_normal((len(rows), len(columns), 1, 1, 1, 1))
    parts = torch.from_numpy(shades).expand(*shades.shape[:-2], SIDE, SIDE)
    x = x + blend(blend(parts.transpose(0, 1), columns, OVERLAP).mT, rows, OVERLAP).mT.numpy()
    at_edges = seams(x, rows, columns, SIDE)
    halved = seams(x, [y + OVERLAP // 2 for y in rows], [z + OVERLAP // 2 for z in columns], SIDE - OVERLAP)
    assert halved.energy > 1.5 and halved.p < 0.02
    assert at_edges.energy < 1.1


def test_more_of_a_seam_is_more_energy() -> None:
    energies = [seam_energy(with_steps(smooth(2), size), *grids(), SIDE) for size in (0.0, 0.05, 0.2, 0.8)]
    assert (np.diff(energies) > 0).all()


def test_the_energy_is_the_ratio_by_its_definition() -> None:
    x = white(1, 6, 7)[0]
    # tiles of 4 x 5 start at rows 0, 2 and columns 0, 2: edges before rows 2, 4 and columns 2, 5
    down, right = np.diff(x, axis=-2) ** 2, np.diff(x, axis=-1) ** 2
    edges = down[:, [1, 3]].sum() + right[:, :, [1, 4]].sum()
    others = down[:, [0, 2, 4]].mean() * 3 * 7 * 2 + right[:, :, [0, 2, 3, 5]].mean() * 3 * 6 * 2
    assert seam_energy(x, [0, 2], [0, 2], (4, 5)) == pytest.approx(edges / others, rel=1e-12)


def test_stripes_along_one_axis_are_no_seam() -> None:
    x = np.tile(rng(0, "test/stripes").standard_normal((128, 1)), (1, 1, 64))  # (1, 128, 64): every row another
    assert seam_energy(x, [0], [0, 32], (128, 32)) == 1.0  # columns only, and they are all alike


def test_a_torch_image_and_a_batch_of_one_give_the_same() -> None:
    x = white(1)
    assert seam_energy(torch.from_numpy(x[0]), *grids(), SIDE) == seam_energy(x, *grids(), SIDE)


def test_a_flat_image_has_no_seam_and_a_flat_one_with_a_step_nothing_else() -> None:
    flat = np.zeros((1, 64, 64))
    assert seam_energy(flat, [0, 32], [0, 32], 32) == 1.0
    flat[:, 32:] = 1
    assert seam_energy(flat, [0, 32], [0, 32], 32) == float("inf")


def test_shifted_grids_meet_no_edge() -> None:
    flat = np.zeros((1, 64, 64))
    flat[:, 32:] = 1
    found = seams(flat, [0, 32], [0], (32, 64))
    assert (found.shifted == 1).all() and len(found.shifted) == 62
    assert np.isnan(found.z) and found.p == 1 / 63


BAD: list[tuple[tuple[int, ...], list[int], list[int], Any, str]] = [
    ((64, 64), [0, 32], [0, 32], 32, r"an image of shape \(64, 64\); allowed are \(C, H, W\)"),
    ((3, 64, 64), [0, 40], [0], 32, "a tile of 32 pixels that starts at 40 lies outside an image of 64"),
    ((3, 64, 64), [0], [0], 64, "no tile ends inside the image"),
    ((3, 4, 64), [0, 1, 2, 3], [0], (1, 64), "every pair of neighbours straddles a tile's edge"),
]


@pytest.mark.parametrize(("shape", "rows", "columns", "side", "message"), BAD)
def test_what_has_no_answer_is_refused(
    shape: tuple[int, ...], rows: list[int], columns: list[int], side: Any, message: str
) -> None:
    with pytest.raises(Error, match=message):
        seam_energy(np.zeros(shape), rows, columns, side)


def test_images_that_are_not_finite_are_refused() -> None:
    with pytest.raises(Error, match="NaN or infinite"):
        seam_energy(np.full((1, 64, 64), np.nan), [0, 32], [0, 32], 32)
