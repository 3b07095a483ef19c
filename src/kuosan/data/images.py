"""Eight-bit pictures, the only place where pictures are bytes on their way out: (H, W, C) uint8, C 1 or 3.

u = round((x + 1) * 127.5), and back x = u / 127.5 - 1: every byte survives the round trip.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kuosan.errors import Error
from kuosan.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

MOST_PIXELS = 64_000_000  # a picture whose recipe is read is no larger


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Pictures in [-1, 1], (..., C, H, W), as bytes, (..., H, W, C); values beyond are clipped.

    Raises:
        Error: a value is NaN or infinite.
    """
    x = np.asarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise Error("a picture holds NaN or infinite values, so there is nothing to write: the model has diverged.")
    return np.moveaxis(np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8), -3, -1)


def from_uint8(pictures: np.ndarray) -> np.ndarray:
    """Bytes (..., H, W, C) as float32 in [-1, 1], (..., C, H, W)."""
    x = np.ascontiguousarray(np.moveaxis(pictures, -1, -3)).astype(np.float32)
    x /= 127.5
    x -= 1
    return x


def as_written(x: Tensor) -> Tensor:
    """Pictures in [-1, 1] as 8 bits will hold them: what `from_uint8(to_uint8(x))` gives, on x's device."""
    return x.add(1).mul(127.5).round().clamp(0, 255).div(127.5).sub(1)


def grid(pictures: np.ndarray, columns: int | None = None, padding: int = 2, background: int = 255) -> np.ndarray:
    """Pictures (N, H, W, C) side by side in rows of `columns` (near square if None): one (H', W', C)."""
    n, h, w, c = pictures.shape
    columns = min(n, columns or int(np.ceil(np.sqrt(n))))
    rows = -(-n // columns)
    sheet = np.full((rows * (h + padding) + padding, columns * (w + padding) + padding, c), background, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (h + padding) + padding, (i % columns) * (w + padding) + padding
        sheet[top : top + h, left : left + w] = picture
    return sheet


def enlarge(pictures: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel of (..., H, W, C) as a square of `factor` pixels."""
    return pictures.repeat(factor, axis=-3).repeat(factor, axis=-2)


def png_bytes(picture: np.ndarray, text: dict[str, str] | None = None) -> bytes:
    """A PNG file of (H, W, C) bytes with text chunks, the same bytes for the same input."""
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    _pillow(picture).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(path: str | Path, picture: np.ndarray, text: dict[str, str] | None = None) -> None:
    """Write (H, W, C) bytes as a PNG with text chunks, whole or not at all.

    Raises:
        Error: the file cannot be written.
    """
    write_atomic(path, png_bytes(picture, text))


def read_png_text(path: str | Path) -> dict[str, str]:
    """The text chunks of a PNG; empty where it has none.

    Raises:
        Error: there is no such file, or it is no PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width}x{image.height} is more than {MOST_PIXELS:,} pixels")
            image.load()  # chunks may follow the pixels
            return {
                key: str(value) for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)
            }
    except FileNotFoundError:
        raise Error(f"{path}: no such picture.") from None
    except Exception as reason:
        raise Error(f"{path} is no readable PNG ({reason}), so it carries no recipe.") from None


def save_gif(path: str | Path, frames: Sequence[np.ndarray], milliseconds: int = 60, hold: int = 1500) -> None:
    """Write frames (H, W, C) as an endless GIF, each shown `milliseconds`, the last `hold`.

    Raises:
        Error: the file cannot be written.
    """
    images = [_pillow(frame).convert("RGB").quantize(256, dither=Image.Dither.NONE) for frame in frames]
    times = [milliseconds] * (len(images) - 1) + [hold]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0)
    write_atomic(path, buffer.getvalue())


def _pillow(picture: np.ndarray) -> Image.Image:
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] in (1, 3), picture.shape
    return Image.fromarray(np.ascontiguousarray(picture[..., 0] if picture.shape[2] == 1 else picture))
