"""A contact sheet of restorations: a row a picture, what was brought first, then every answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from kuosan.data.images import save_png, to_uint8
from kuosan.data.pixels import with_channels

CELL = (
    128,
    320,
)  # pixels a side that pictures are shown at: enlarged by whole factors to the first, at most the second
GAP = 4


def sheet(path: Path, lines: Sequence[np.ndarray]) -> None:
    """Write rows (h, w, 3) uint8, as `line` makes them, below each other."""
    width = max(each.shape[1] for each in lines)
    padded = [np.pad(each, ((0, GAP), (0, width - each.shape[1]), (0, 0)), constant_values=255) for each in lines]
    save_png(path, np.concatenate(padded))


def line(brought: Tensor, answers: Tensor) -> np.ndarray:
    """One row of the sheet, (h, w, 3) uint8."""
    high, wide = answers.shape[-2:]
    factor = max(1, CELL[0] // max(high, wide))
    shrink = min(1.0, CELL[1] / (max(high, wide) * factor))
    size = (max(1, round(wide * factor * shrink)), max(1, round(high * factor * shrink)))
    cells = [cell(picture, size) for picture in (brought, *answers)]
    return np.concatenate([np.pad(each, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for each in cells], axis=1)


def cell(picture: Tensor, size: tuple[int, int]) -> np.ndarray:
    """One picture at a size (width, height): its pixels as squares where it is enlarged, averaged where shrunk."""
    pixels = with_channels(to_uint8(picture.cpu().float().numpy()), 3)
    how = Image.Resampling.NEAREST if pixels.shape[1] <= size[0] else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize(size, how))
