"""What is kept of an image to compare it with others: its `View`, at most 32 x 32. Torch-free.

Views are brought to other sizes, and cropped, by the matrices that Pillow resizes by.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image

SIDE, COARSE, COLOUR = 32, 16, 8  # cells a side: brightness kept, brightness compared again, colour
FLAT = 2.0  # levels: an image whose 16 x 16 cells vary by less is alike to none but its very copies
CROP = 0.02  # of each side; of small images at least one pixel
ORDERS = 5  # frequencies k + l of the coordinates, at most: 20 of them
STEP = 0.1  # of the coordinates in a code
SIGNIFICANT = 4.0  # levels: coefficients of 8 x 8 blocks that count as detail
BLOCKS = 32  # blocks a side that are looked at, at most

BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class View:
    """What is kept of an image to compare it with others."""

    height: int  # of the image
    width: int
    luma: np.ndarray  # (h, w) uint8, at most SIDE each
    colour: np.ndarray  # (2, 8, 8) uint8, blue and red differences; 128 is grey
    detail: int  # about how many frequencies of 8 x 8 blocks it holds: fewer in a copy

    @classmethod
    def of(cls, pixels: np.ndarray) -> View:
        """The view of (H, W, 1 or 3) uint8."""
        height, width, channels = pixels.shape
        size = (min(width, SIDE), min(height, SIDE))
        image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        small = np.asarray(image.resize(size, BICUBIC, reducing_gap=3.0), np.float32)
        colour = np.full((2, COLOUR, COLOUR), 128, np.uint8)
        if channels == 3:
            luma = small @ np.array([0.299, 0.587, 0.114], np.float32)
            for place, (channel, scale) in enumerate(((2, 0.564), (0, 0.713))):
                plane = Image.fromarray(128 + scale * (small[..., channel] - luma))
                colour[place] = _bytes(np.asarray(plane.resize((COLOUR, COLOUR), BICUBIC)))
            small = luma
        return cls(height, width, _bytes(small), colour, _detail(pixels))

    def packed(self) -> bytes:
        """As bytes, for a cache."""
        head = np.array([self.height, self.width, *self.luma.shape, self.detail], "<u4").tobytes()
        return head + self.luma.tobytes() + self.colour.tobytes()

    @classmethod
    def unpacked(cls, content: bytes) -> View:
        """What `packed` made. Raises: ValueError."""
        height, width, h, w, detail = (int(number) for number in np.frombuffer(content[:20], "<u4"))
        if len(content) != 20 + h * w + 2 * COLOUR**2:
            raise ValueError("no view")
        values = np.frombuffer(content, np.uint8, offset=20)
        return cls(height, width, values[: h * w].reshape(h, w), values[h * w :].reshape(2, COLOUR, COLOUR), detail)

    @property
    def crops(self) -> tuple[float, float]:
        """What a crop takes of each side, of height and of width."""
        return _crop(self.height), _crop(self.width)

    @cached_property
    def code(self) -> bytes | None:
        """Its lowest frequencies in coarse steps, which most near duplicates share; None for a flat one."""
        values, flat = coordinates(np.stack([cells(self.luma[None], COARSE, COARSE)[0]]))
        return None if flat[0] else np.floor(values[0, :16] / STEP + 0.5).astype(np.int8).tobytes()


def coordinates(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest frequencies of (N, 16, 16), (N, 20) of a vector of length 1, and which are flat: (N,) bool."""
    d = _cosines(COARSE)
    k, l = (grid.reshape(-1) for grid in np.indices((COARSE, COARSE)))
    order = [i for i in np.lexsort((k, k + l)) if 0 < k[i] + l[i] <= ORDERS]
    values = (d @ (cells - cells.mean((1, 2), keepdims=True)) @ d.T).reshape(len(cells), -1)
    size = np.sqrt((values * values).sum(1, keepdims=True))
    return (values / np.maximum(size, 1e-6))[:, order], size[:, 0] / COARSE < FLAT


def cells(
    luma: np.ndarray, h: int, w: int, crop: tuple[float, float] = (0.0, 0.0), kernel: int = BICUBIC
) -> np.ndarray:
    """(N, m, n) float32 less `crop` of each side, at (h, w)."""
    luma = luma.astype(np.float32)
    if luma.shape[1:] == (h, w) and crop == (0.0, 0.0):
        return luma
    down, across = _resampling(luma.shape[1], h, crop[0], kernel), _resampling(luma.shape[2], w, crop[1], kernel)
    found: np.ndarray = np.clip(down @ np.clip(luma @ across.T, 0, 255), 0, 255)
    return found


@lru_cache(512)
def _resampling(m: int, n: int, crop: float, kernel: int) -> np.ndarray:
    """The matrix (n, m) that brings a side of m cells, less `crop` of both ends, to n, as Pillow does."""
    one, cut = Image.fromarray(np.eye(m, dtype=np.float32)), round(crop * m)
    how = Image.Resampling(kernel)
    if cut and abs(cut - crop * m) < 1e-6 and m > 2 * cut:  # whole cells: as a cropped file, whose edge is its own
        return np.pad(
            np.asarray(one.crop((cut, cut, m - cut, m - cut)).resize((m - 2 * cut, n), how)), ((0, 0), (cut, cut))
        )
    return np.array(one.resize((m, n), how, box=(0, crop * m, m, m - crop * m)))


@lru_cache(2)
def _cosines(n: int) -> np.ndarray:
    """The orthonormal DCT-II of n values, (n, n)."""
    k, x = np.indices((n, n))
    scale = np.where(k == 0, np.sqrt(1 / n), np.sqrt(2 / n))
    found: np.ndarray = np.asarray(scale * np.cos(np.pi * k * (2 * x + 1) / (2 * n)), np.float32)
    return found


def _detail(pixels: np.ndarray) -> int:
    """About how many high frequencies of 8 x 8 blocks exceed a few levels: lossy, smaller and cut copies have fewer."""
    h, w, channels = pixels.shape
    if h < 8 or w < 8:
        return 0
    step = -(-(h // 8) // BLOCKS), -(-(w // 8) // BLOCKS)
    blocks = pixels[: h // 8 * 8, : w // 8 * 8].reshape(h // 8, 8, w // 8, 8, channels)[:: step[0], :, :: step[1]]
    values = blocks.astype(np.float32)
    luma = values[..., 0] if channels == 1 else values @ np.array([0.299, 0.587, 0.114], np.float32)
    d = _cosines(8)
    found = np.abs(d @ luma.swapaxes(1, 2) @ d.T) >= SIGNIFICANT
    found[..., :4, :4] = False
    return int(np.count_nonzero(found) / (found.shape[0] * found.shape[1]) * (h * w / 64) + 0.5)


def _bytes(values: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return found


def _crop(side: int) -> float:
    """The part of a side that a crop of CROP takes in whole pixels."""
    return CROP if side >= 100 else max(1, round(CROP * side)) / max(side, 3)
