"""Images of several shapes kept in memory as bytes."""

from __future__ import annotations

import numpy as np

from kuosan.data.scan import PixelStore

SHAPES = [(4, 6), (6, 4), (4, 6), (5, 5), (6, 4), (4, 6)]


def test_each_image_is_written_and_read_in_its_own_place() -> None:
    kept = PixelStore.room(SHAPES, 3)
    assert len(kept) == 6 and [kept[i].shape for i in range(6)] == [(*shape, 3) for shape in SHAPES]
    for i in range(6):
        kept[i][:] = i + 1
    assert [np.unique(kept[i]).tolist() for i in range(6)] == [[i + 1] for i in range(6)]
    assert len(kept.arrays) == 3 and kept.nbytes == sum(h * w * 3 for h, w in SHAPES)


def test_some_of_them_keep_their_pixels_and_grey_is_the_first_channel() -> None:
    kept = PixelStore.room(SHAPES, 3)
    for i in range(6):
        kept[i][:] = (i, 100 + i, 200 + i)
    some = kept.only([5, 1])
    assert len(some) == 2 and (some[0] == (5, 105, 205)).all() and some[1].shape == (6, 4, 3)
    grey = kept.grey()
    assert all(grey[i].shape == (*SHAPES[i], 1) and (grey[i] == i).all() for i in range(6))
