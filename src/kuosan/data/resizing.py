"""A picture brought to its shape: antialiased bicubic (Keys 1981, a = -0.5, widened by the factor when shrinking)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from kuosan.data.pixels import luma


def fit(pixels: np.ndarray, size: int, rule: str, background: tuple[int, int, int]) -> np.ndarray:
    """Pixels (H, W, C) uint8 as (size, size, C) by `rule`: crop, pad, stretch or centre.

    `crop` scales the central square only, so a 1 x 20,000 strip costs no more than a square.
    """
    h, w = pixels.shape[:2]
    match rule:
        case "crop":
            return cover(pixels, size, size)
        case "pad":
            wide, high = max(1, round(size * w / max(h, w))), max(1, round(size * h / max(h, w)))
            sheet = np.empty((size, size, pixels.shape[2]), np.uint8)
            sheet[:] = background if pixels.shape[2] == 3 else luma(np.array([[background]]))[0, 0]
            top, left = (size - high) // 2, (size - wide) // 2
            sheet[top : top + high, left : left + wide] = _scale(pixels, (0, 0, w, h), wide, high)
            return sheet
        case "stretch":
            return _scale(pixels, (0, 0, w, h), size, size)
        case "centre":
            return _window(_window(pixels, size, 0), size, 1)
    raise AssertionError(rule)


def cover(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels (H, W, C) uint8 scaled until they cover (height, width), and the centre of them: the least that is cut."""
    h, w = pixels.shape[:2]
    wide = w if w * height <= h * width else _whole(h * width / height)
    high = h if wide < w else _whole(w * height / width)
    left, top = int(w - wide) // 2, int(h - high) // 2
    return _scale(pixels, (left, top, left + wide, top + high), width, height)


def _whole(side: float) -> float:
    """A whole side as an int, so that a picture of the right size is copied and not scaled."""
    return int(side) if side == int(side) else side


def _scale(pixels: np.ndarray, box: tuple[float, float, float, float], wide: int, high: int) -> np.ndarray:
    left, top, right, bottom = box
    if (right - left, bottom - top) == (wide, high):
        return pixels[int(top) : int(bottom), int(left) : int(right)]
    flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    scaled = np.asarray(Image.fromarray(flat).resize((wide, high), Image.Resampling.BICUBIC, box=box))
    return scaled[..., None] if scaled.ndim == 2 else scaled


def _window(pixels: np.ndarray, size: int, axis: int) -> np.ndarray:
    """The central `size` rows or columns; where there are fewer, the edge is repeated."""
    have = pixels.shape[axis]
    first = (have - size) // 2 if have >= size else -((size - have) // 2)
    return pixels.take(np.clip(np.arange(first, first + size), 0, have - 1), axis)
