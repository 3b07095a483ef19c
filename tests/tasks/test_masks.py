"""Masks: what each kind promises, at every size, and that nothing but the generator decides."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kuosan.errors import Error
from kuosan.seeds import rng
from kuosan.tasks.task import MASK_KINDS, draw_mask

SIZES = [(8, 8), (8, 61), (64, 64), (96, 40), (33, 1024), (1024, 1024)]


def masks(kind: str, count: int = 200, height: int = 64, width: int = 64) -> list[np.ndarray]:
    return [draw_mask(rng(0, "test/masks", 0, i), height, width, (kind,)) for i in range(count)]


def rows_and_columns(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and columns a shape touches."""
    return mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]


def is_rectangle(shape: np.ndarray) -> bool:
    rows, columns = rows_and_columns(shape)
    return bool(shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_kind_at_every_size_holds_known_and_new_pixels(kind: str, height: int, width: int) -> None:
    for mask in masks(kind, 2 if height > 64 else 40, height, width):
        assert mask.shape == (height, width) and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_a_mask_is_a_function_of_its_generator(kind: str) -> None:
    first, again, other = (draw_mask(rng(0, "test/masks", 0, i), 64, 48, (kind,)) for i in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_all_kinds_are_drawn_alike_and_only_those_that_are_named() -> None:
    drawn = [draw_mask(rng(0, "test/masks", 1, i), 8, 8, ("box", "sparse")) for i in range(400)]
    boxes = sum(is_rectangle(mask) for mask in drawn)
    assert 150 < boxes < 250
    generators = [rng(0, "test/masks", 2, i) for i in range(300)]
    share = np.mean([draw_mask(generator, 16, 16).mean() for generator in generators])
    assert 0.3 < share < 0.6


def test_a_box_is_one_rectangle_of_an_eighth_to_three_quarters_a_side_anywhere() -> None:
    seen = np.zeros((64, 64), int)
    for mask in masks("box"):
        rows, columns = rows_and_columns(mask)
        assert is_rectangle(mask)
        assert 8 <= len(rows) <= 48 and 8 <= len(columns) <= 48
        seen += mask
    assert seen[32, 32] > 60 and seen.min() >= 0 and seen[0, 0] + seen[-1, -1] + seen[0, -1] + seen[-1, 0] > 0


def test_a_brush_covers_a_twentieth_to_a_half() -> None:
    shares = [mask.mean() for mask in masks("brush")]
    assert 0.045 < min(shares) < 0.1 and 0.4 < max(shares) < 0.55


def test_a_half_is_a_quarter_to_three_quarters_along_each_of_the_sides() -> None:
    touched = set()
    exact = 0
    for mask in masks("half"):
        rows, columns = rows_and_columns(mask)
        assert is_rectangle(mask) and is_rectangle(1 - mask)
        assert 0.24 <= mask.mean() <= 0.76
        touched.add((rows[0] == 0, rows[-1] == 63, columns[0] == 0, columns[-1] == 63))
        exact += mask.mean() == 0.5
    assert touched == {tuple(i != free for i in range(4)) for free in range(4)}
    assert 80 < exact < 130


def test_a_border_leaves_one_window_of_a_third_to_seven_eighths_or_a_strip() -> None:
    free, strips = 0, 0
    for mask in masks("border"):
        known = 1 - mask
        rows, columns = rows_and_columns(known)
        assert is_rectangle(known)
        spans = sorted((len(rows) / 64, len(columns) / 64))
        assert 0.32 <= spans[0] <= 0.89
        strips += spans[1] == 1
        free += rows[0] > 0 and rows[-1] < 63 and columns[0] > 0 and columns[-1] < 63
    assert 30 < strips < 70
    assert free > 30


def test_a_sparse_mask_knows_a_twentieth_to_three_fifths_of_the_pixels_everywhere_alike() -> None:
    known = np.stack([1 - mask for mask in masks("sparse")])
    shares = known.mean((1, 2))
    assert 0.03 < shares.min() < 0.1 and 0.55 < shares.max() < 0.65
    assert np.abs(known.mean((0, 1)) - shares.mean()).max() < 0.05


def test_blobs_are_smooth_and_differ_in_size() -> None:
    drawn = masks("blob")
    shares = [mask.mean() for mask in drawn]
    assert min(shares) < 0.1 and max(shares) > 0.5
    for mask in drawn:
        turns = np.abs(np.diff(mask.astype(int), axis=0)).sum() + np.abs(np.diff(mask.astype(int), axis=1)).sum()
        assert turns < 12 * 64  # pixels scattered at random have 64 * 63


def test_masks_are_named_without_torch_and_without_pillow() -> None:
    code = "import sys, kuosan.tasks.task; print([name for name in ('torch', 'PIL') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_mask_that_cannot_be_drawn_is_refused() -> None:
    generator = rng(0, "test/masks")
    with pytest.raises(Error, match="unknown kind of mask 'bux': did you mean 'box'"):
        draw_mask(generator, 64, 64, ("bux",))
    with pytest.raises(Error, match="kinds is empty: name at least one of box, brush"):
        draw_mask(generator, 64, 64, ())
    with pytest.raises(Error, match="a mask of 64x7: each side must be at least 8"):
        draw_mask(generator, 64, 7)
