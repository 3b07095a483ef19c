"""Arithmetic on 8-bit pixels, (H, W, C) uint8 in sRGB values: compositing, grey, channels.

An image resized to its shape: antialiased bicubic (Keys 1981, a = -0.5, widened by the factor when shrinking).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as JPEG


BAND = 1 << 20  # values that are worked on at once: a few megabytes of float64


def bands(pixels: np.ndarray, most: int = BAND) -> Iterator[slice]:
    """Rows of (H, W, C), or items of any array, a band of about `most` values at a time."""
    step = max(1, most // max(1, pixels[:1].size))
    for first in range(0, len(pixels), step):
        yield slice(first, first + step)


def tiles(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, bottom, right) of rectangles of about `BAND` / 4 pixels that cover an image, whatever its shape."""
    across = min(width, BAND // 4)
    down = max(1, BAND // 4 // across)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield top, left, min(top + down, height), min(left + across, width)


def pieces(*arrays: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Views of arrays of one shape, about `BAND` values each: for what is done to every value alone."""
    first = arrays[0]
    if first.size <= BAND or first.ndim == 0:
        yield arrays
    elif first[:1].size > BAND:
        for i in range(len(first)):
            yield from pieces(*(array[i] for array in arrays))
    else:
        for rows in bands(first):
            yield tuple(array[rows] for array in arrays)


def rounded(values: np.ndarray) -> np.ndarray:
    """Values in [0, 255] as bytes, to the nearest."""
    nearest: np.ndarray = np.rint(values).astype(np.uint8)
    return nearest


def laid_on(colour: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """alpha * colour + (1 - alpha) * background, in sRGB values as browsers do.

    Colour (H, W, 1 or 3) and alpha (H, W, 1), bytes, give (H, W, 3), or (H, W, 1) for grey on grey.
    """
    under = np.array(background, np.float64)
    if colour.shape[2] == 1 and len(set(background)) == 1:
        under = under[:1]
    out = np.empty((*colour.shape[:2], max(colour.shape[2], len(under))), np.uint8)
    for rows in bands(out):
        share = alpha[rows] / 255.0
        out[rows] = rounded(share * colour[rows] + (1 - share) * under)
    return out


def opaque(pixels: np.ndarray, background: tuple[int, int, int]) -> np.ndarray:
    """Pixels (H, W, 1, 3 or 4) with a fourth channel, if there is one, laid on `background`."""
    return laid_on(pixels[..., :3], pixels[..., 3:], background) if pixels.shape[2] == 4 else pixels


def eight_bits(wide: np.ndarray) -> np.ndarray:
    """uint16 of any shape as bytes: divided by 257, to the nearest, never clipped."""
    out = np.empty(wide.shape, np.uint8)
    for source, target in pieces(wide, out):
        target[...] = rounded(source / 257.0)
    return out


def unmultiplied(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour (H, W, C) that was multiplied by alpha (H, W, 1) in [0, white], both uint8 or uint16, as it was before."""
    white = np.iinfo(colour.dtype).max
    out = np.empty_like(colour)
    for rows in bands(colour):
        share = np.maximum(alpha[rows], 1) / float(white)
        out[rows] = np.rint(np.minimum(colour[rows] / share, white))
    return out


def luma(pixels: np.ndarray) -> np.ndarray:
    """Grey (H, W, 1) of colour (H, W, 3), 0.299 R + 0.587 G + 0.114 B."""
    out = np.empty((*pixels.shape[:2], 1), np.uint8)
    for rows in bands(pixels):
        out[rows] = rounded(pixels[rows] @ LUMA)[..., None]
    return out


def is_grey(pixels: np.ndarray) -> bool:
    """Whether red, green and blue agree in every pixel of (H, W, 1 or 3)."""
    return pixels.shape[2] == 1 or bool((pixels == pixels[..., :1]).all())


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Pixels (H, W, 1 or 3) as (H, W, channels)."""
    if pixels.shape[2] == channels:
        return pixels
    return luma(pixels) if channels == 1 else np.repeat(pixels, 3, axis=2)


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
    """A whole side as an int, so that an image of the right size is copied and not scaled."""
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
