"""Levels: how a coefficient meets an image."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from kuosan.diffusion.level import Level, mix

GRID = Level.of([2.0, 1.0, -1.0], [0.6, 0.8, 1.0], [0.8, 0.6, 0.0])


def test_a_grid_is_walked_pairwise_by_index_and_by_slice() -> None:
    assert len(GRID) == 3
    assert [(float(now.t), float(to.t)) for now, to in pairwise(GRID)] == [(2, 1), (1, -1)]
    assert GRID[1:].alpha.tolist() == [0.8, 1.0] and float(GRID[-1].sigma) == 0


def test_log_snr_is_infinite_where_clean_and_minus_infinite_where_nothing_is_left() -> None:
    log_snr = Level.of([0, 0, 0], [1.0, 0.6, 0.0], [0.0, 0.8, 1.0]).log_snr
    assert log_snr[0] == torch.inf and log_snr[2] == -torch.inf
    assert float(log_snr[1]) == pytest.approx(2 * torch.log(torch.tensor(0.75, dtype=torch.float64)).item())


def test_a_batch_s_levels_are_shaped_and_cast_to_the_image() -> None:
    over = GRID.over(torch.zeros(3, 2, 4, 4))
    assert over.alpha.shape == (3, 1, 1, 1) and over.alpha.dtype == torch.float32
    assert GRID.over(torch.zeros(3, 5)).sigma.shape == (3, 1)


def test_a_single_level_stays_a_float64_number_and_keeps_the_image_s_dtype() -> None:
    over = GRID[0].over(torch.zeros(3, 2, 4, 4))
    assert over.alpha.shape == () and over.alpha.dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert (torch.ones(3, 2, dtype=dtype) * over.alpha).dtype == dtype


def test_a_batch_of_another_size_is_a_broken_invariant() -> None:
    with pytest.raises(AssertionError):
        GRID.over(torch.zeros(2, 2, 4, 4))
    with pytest.raises(AssertionError):
        Level.of([1.0, 2.0], [1.0], [1.0])


def test_adding_noise_is_alpha_x0_plus_sigma_eps_for_one_level_and_for_a_batch() -> None:
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, sigma = (c.reshape(3, 1, 1, 1) for c in (GRID.alpha, GRID.sigma))
    torch.testing.assert_close(GRID.add(x0, eps), alpha * x0 + sigma * eps, rtol=1e-14, atol=0)
    torch.testing.assert_close(GRID[0].add(x0, eps), 0.6 * x0 + 0.8 * eps, rtol=1e-14, atol=0)


def test_mix_takes_x_s_dtype_and_changes_neither_input() -> None:
    x, y = torch.ones(3, 2), torch.full((3, 2), 2.0, dtype=torch.bfloat16)
    for level in (GRID, GRID[0]):
        out = mix(x, level.alpha, y, level.sigma)
        assert out.dtype == torch.float32 and (x == 1).all() and (y == 2).all()


def test_gradients_pass_through_adding_noise() -> None:
    x0 = torch.ones(3, 2, requires_grad=True)
    GRID.add(x0, torch.zeros(3, 2)).sum().backward()
    assert x0.grad is not None
    torch.testing.assert_close(x0.grad[:, 0], GRID.alpha.float())
