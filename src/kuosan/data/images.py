"""Eight-bit pictures, the only place where pictures are bytes on their way out: (H, W, C) uint8, C 1 or 3.

u = round((x + 1) * 127.5), and back x = u / 127.5 - 1: every byte survives the round trip.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kuosan.data.headers import PNG, png_chunks
from kuosan.errors import Error
from kuosan.files import write_atomic
from kuosan.regular import open_regular

if TYPE_CHECKING:
    from torch import Tensor

MOST_PIXELS = 64_000_000  # a picture whose recipe is read is no larger
MOST_TEXT = 16 << 20  # bytes of a PNG's text chunk, unpacked; a recipe has some kB, and 128 kB a long prompt
MOST_CHUNKS = 100_000


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
    """The text chunks of a PNG, all together `MOST_TEXT` at most; empty where it has none. No pixel is decoded.

    Raises:
        Error: there is no such file, or it is no PNG, is damaged, or its texts are larger.
    """
    try:
        with open_regular(path) as stream:
            return _texts(stream)
    except FileNotFoundError:
        raise Error(f"{path}: no such picture.") from None
    except (OSError, ValueError, zlib.error) as reason:
        raise Error(f"{path} is no readable PNG ({reason}), so it carries no recipe.") from None


def _texts(stream: BinaryIO) -> dict[str, str]:
    """The texts of a PNG's chunks tEXt, zTXt and iTXt (PNG 3rd edition, 11.3.3). Raises: ValueError, zlib.error."""
    if stream.read(8) != PNG:
        raise ValueError("it does not begin as one")
    found: dict[str, str] = {}
    room = MOST_TEXT
    kind = b""
    for place, (kind, length) in enumerate(png_chunks(stream)):
        if place == MOST_CHUNKS:
            raise ValueError(f"it has more than {MOST_CHUNKS:,} chunks")
        if kind == b"IHDR" and length == 13:
            width, height = struct.unpack(">II", stream.read(8))
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width}x{height} is more than {MOST_PIXELS:,} pixels")
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            continue
        if length > room:
            raise ValueError(f"its texts have more than {MOST_TEXT:,} bytes")
        content, check = stream.read(length), stream.read(4)
        if len(check) < 4 or zlib.crc32(kind + content).to_bytes(4, "big") != check:
            raise ValueError("a text in it is damaged")
        key, text = _text_of(kind, content, room)
        room -= len(content) + len(text)
        found[key] = text
        if room < 0:
            raise ValueError(f"its texts have more than {MOST_TEXT:,} bytes")
    if kind != b"IEND":
        raise ValueError("it is cut short")
    return found


def _text_of(kind: bytes, content: bytes, room: int) -> tuple[str, str]:
    """The key and text of one such chunk; at most `room` bytes are unpacked. Raises: ValueError, zlib.error."""
    key, _, rest = content.partition(b"\0")
    packed, encoding = kind == b"zTXt", "latin-1"
    if packed:
        rest = rest[1:]
    elif kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if packed:
        unpacking = zlib.decompressobj()
        rest = unpacking.decompress(rest, room + 1)
        if len(rest) > room or not unpacking.eof:
            raise ValueError(f"its texts have more than {MOST_TEXT:,} bytes, or end too early")
    return key.decode("latin-1"), rest.decode(encoding, "replace")


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
