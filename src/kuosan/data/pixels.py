"""Arithmetic on 8-bit pixels, (H, W, C) uint8 in sRGB values: compositing, grey, channels.

An image resized to its shape: antialiased bicubic (Keys 1981, a = -0.5, widened by the factor when shrinking).

Eight-bit images, the only place where images are bytes on their way out: (H, W, C) uint8, C 1, 3 or 4.

u = round((x + 1) * 127.5), and back x = u / 127.5 - 1: every byte survives the round trip.

Four channels are colour and alpha. As bytes the colour is straight, and 0 where alpha a is 0; in [-1, 1] it is
multiplied by alpha, so that nothing is said of what nobody sees, and where a = 0 all four are -1 (Porter & Duff 1984):

    p = c a / 255,    x = (p / 127.5 - 1, a / 127.5 - 1),    and back c = round(255 p / a), at most 255

in float32, where all pairs of bytes (c, a > 0) survive; in 8 bits a low alpha would leave few colours.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from kuosan.data.headers import PNG, png_chunks
from kuosan.errors import Error
from kuosan.regular import open_regular
from kuosan.storage.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

BICUBIC = Image.Resampling.BICUBIC
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as JPEG
CHECKER, CHECKER_GREYS = 8, (204, 255)  # pixels a side of a square below transparent images; the two greys


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


def on_checkerboard(images: np.ndarray) -> np.ndarray:
    """Images (..., H, W, 4) uint8 on squares of two greys, as image editors show transparency: (..., H, W, 3)."""
    h, w = images.shape[-3:-1]
    rows, columns = np.arange(h)[:, None] // CHECKER, np.arange(w) // CHECKER
    under = np.where((rows + columns) % 2, *CHECKER_GREYS)[..., None]
    share = images[..., 3:] / 255.0
    return rounded(share * images[..., :3] + (1 - share) * under)


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
    """Whether red, green and blue agree in every pixel of (H, W, 1, 3 or 4)."""
    return pixels.shape[2] == 1 or bool((pixels[..., :3] == pixels[..., :1]).all())


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Pixels (H, W, 1 or 3) as (H, W, channels); a fourth is opaque. (H, W, 4) stay."""
    if pixels.shape[2] == channels:
        return pixels
    assert pixels.shape[2] != 4, "alpha is laid on a background where the file is read"
    if channels == 4:
        alpha = np.full((*pixels.shape[:2], 1), 255, np.uint8)
        return np.concatenate([with_channels(pixels, 3), alpha], 2)
    return luma(pixels) if channels == 1 else np.repeat(pixels, 3, axis=2)


def least_channels(pixels: np.ndarray, grey: bool) -> np.ndarray:
    """The same image, (H, W, C), without an alpha that is whole everywhere; where `grey`, in one channel if it is."""
    if pixels.shape[2] == 4 and bool((pixels[..., 3] == 255).all()):
        pixels = pixels[..., :3]
    return np.ascontiguousarray(pixels[..., :1] if grey and pixels.shape[2] < 4 and is_grey(pixels) else pixels)


def fit(
    pixels: np.ndarray, size: int | tuple[int, int], rule: str, background: tuple[int, int, int] | None
) -> np.ndarray:
    """Pixels (H, W, C) uint8 at a side, or at (height, width), by `rule`: crop, nearest, pad, stretch or centre.

    `pad` without a background fills with nothing, and so has four channels. `crop` scales the central square only, so
    a 1 x 20,000 strip costs no more than a square.
    """
    h, w = pixels.shape[:2]
    height, width = (size, size) if isinstance(size, int) else size
    match rule:
        case "crop" | "nearest":
            return cover(pixels, height, width, nearest=rule == "nearest")
        case "pad":
            wider = w * height >= h * width
            wide, high = (width, width * h / w) if wider else (height * w / h, height)
            wide, high = max(1, round(wide)), max(1, round(high))
            channels = pixels.shape[2] if background is not None else 4
            sheet = np.zeros((height, width, channels), np.uint8)
            if background is not None:
                sheet[:] = background if channels == 3 else luma(np.array([[background]]))[0, 0]
            top, left = (height - high) // 2, (width - wide) // 2
            scaled = _scale(pixels, (0, 0, w, h), wide, high)
            sheet[top : top + high, left : left + wide] = with_channels(scaled, channels)
            return sheet
        case "stretch":
            return _scale(pixels, (0, 0, w, h), width, height)
        case "centre":
            return _window(_window(pixels, height, 0), width, 1)
    raise AssertionError(rule)


def cover(pixels: np.ndarray, height: int, width: int, nearest: bool = False) -> np.ndarray:
    """Pixels (H, W, C) uint8 scaled until they cover (height, width), and the centre of them: the least that is cut.

    With `nearest` every pixel is one of the image's, of pixel art: that in which its middle lies.
    """
    h, w = pixels.shape[:2]
    wide = w if w * height <= h * width else _whole(h * width / height)
    high = h if wide < w else _whole(w * height / width)
    left, top = int(w - wide) // 2, int(h - high) // 2
    box = (left, top, left + wide, top + high)
    return _picked(pixels, box, width, height) if nearest else _scale(pixels, box, width, height)


def _picked(pixels: np.ndarray, box: tuple[float, float, float, float], wide: int, high: int) -> np.ndarray:
    """The pixels of a box in which the middles of (high, wide) lie."""
    left, top, right, bottom = box
    rows = (top + (np.arange(high) + 0.5) * ((bottom - top) / high)).astype(np.int64)
    columns = (left + (np.arange(wide) + 0.5) * ((right - left) / wide)).astype(np.int64)
    return pixels[rows[:, None], columns]


def _whole(side: float) -> float:
    """A whole side as an int, so that an image of the right size is copied and not scaled."""
    return int(side) if side == int(side) else side


def _scale(pixels: np.ndarray, box: tuple[float, float, float, float], wide: int, high: int) -> np.ndarray:
    left, top, right, bottom = box
    if (right - left, bottom - top) == (wide, high):
        return pixels[int(top) : int(bottom), int(left) : int(right)]
    if pixels.shape[2] == 4:
        return _scale_clear(pixels, box, wide, high)
    flat = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    scaled = np.asarray(Image.fromarray(flat).resize((wide, high), BICUBIC, box=box))
    return scaled[..., None] if scaled.ndim == 2 else scaled


def _scale_clear(pixels: np.ndarray, box: tuple[float, float, float, float], wide: int, high: int) -> np.ndarray:
    """The same of (H, W, 4): colour times alpha and alpha are scaled, so that no hidden colour reaches an edge.

    In floats, a channel and a band of rows at a time: a large image in floats would take sixteen bytes a pixel.
    """
    if len(pixels) * wide > pixels.shape[1] * high:  # along columns first, for the least between
        across = _scale_clear(pixels.swapaxes(0, 1), (box[1], box[0], box[3], box[2]), high, wide)
        return across.swapaxes(0, 1)
    (left, right), (top, bottom) = _seen(box[0], box[2], wide), _seen(box[1], box[3], high)
    pixels = pixels[top:bottom, left:right]
    between, made = np.empty(pixels.shape[:1] + (wide,), np.float32), np.empty((high, wide, 4), np.float32)
    for i in range(4):
        for rows in bands(pixels, BAND):
            part = pixels[rows]
            plane = part[..., i] * (part[..., 3] / np.float32(255) if i < 3 else np.float32(1))
            span = (box[0] - left, 0, box[2] - left, len(part))
            between[rows] = np.asarray(Image.fromarray(plane).resize((wide, len(part)), BICUBIC, box=span))
        down = (0, box[1] - top, wide, box[3] - top)
        made[..., i] = np.asarray(Image.fromarray(between).resize((wide, high), BICUBIC, box=down))
    made *= np.minimum(1, 255 / np.maximum(made[..., 3:], 1))  # alpha swings over at an edge, and colour with it
    return straight(made)


def _seen(low: float, high: float, size: int) -> tuple[int, int]:
    """From where to where bicubic looks at an axis of which `low` to `high` become `size` pixels."""
    reach = 2 * max((high - low) / size, 1.0) + 2
    return max(0, int(low - reach)), int(np.ceil(high + reach))


def straight(premultiplied: np.ndarray) -> np.ndarray:
    """Colour times alpha and alpha in [0, 255], (..., 4) float, as bytes with straight colour; beyond is clipped.

    Colour is divided by alpha before that is rounded, so that a colour is the same however faint.
    """
    out: np.ndarray = np.zeros(premultiplied.shape, np.uint8)
    alpha = np.clip(premultiplied[..., 3:], 0, 255)
    divided = premultiplied[..., :3] * (np.float32(255) / np.maximum(alpha, np.float32(0.5)))
    out[..., 3:] = rounded(alpha)
    out[..., :3] = np.where(out[..., 3:] > 0, rounded(np.clip(divided, 0, 255)), np.uint8(0))
    return out


def _window(pixels: np.ndarray, size: int, axis: int) -> np.ndarray:
    """The central `size` rows or columns; where there are fewer, the edge is repeated."""
    have = pixels.shape[axis]
    first = (have - size) // 2 if have >= size else -((size - have) // 2)
    return pixels.take(np.clip(np.arange(first, first + size), 0, have - 1), axis)


MOST_PIXELS = 64_000_000  # an image whose recipe is read is no larger
MOST_TEXT = 16 << 20  # bytes of a PNG's text chunk, unpacked; a recipe has some kB, and 128 kB a long prompt
MOST_CHUNKS = 100_000


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Images in [-1, 1], (..., C, H, W), as bytes, (..., H, W, C); values beyond are clipped.

    Of four channels colour is divided by alpha.

    Raises:
        Error: a value is NaN or infinite.
    """
    x = np.asarray(x, dtype=np.float32)
    if not np.isfinite(x).all():
        raise Error("an image holds NaN or infinite values, so there is nothing to write: the model has diverged.")
    if x.shape[-3] == 4:
        return straight(np.moveaxis((x + 1) * np.float32(127.5), -3, -1))
    return np.moveaxis(np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8), -3, -1)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """Bytes (..., H, W, C) as float32 in [-1, 1], (..., C, H, W); of four channels colour is multiplied by alpha."""
    x = np.ascontiguousarray(np.moveaxis(images, -1, -3)).astype(np.float32)
    if images.shape[-1] == 4:
        x[..., :3, :, :] *= x[..., 3:, :, :]  # whole numbers below 2^16: exact
        x[..., :3, :, :] /= 255
    x /= 127.5
    x -= 1
    return x


def as_written(x: Tensor) -> Tensor:
    """Images in [-1, 1] as 8 bits will hold them: what `from_uint8(to_uint8(x))` gives, on x's device."""
    if x.shape[-3] == 4:
        return x.new_tensor(from_uint8(to_uint8(x.detach().cpu().numpy())))
    return x.add(1).mul(127.5).round().clamp(0, 255).div(127.5).sub(1)


FONT, LINE = 12, 15  # of the texts on a sheet: pixels of a letter, and from line to line


def grid(
    images: Sequence[np.ndarray] | np.ndarray,
    columns: int | None = None,
    padding: int = 2,
    background: int = 255,
    *,
    least: int = 0,
    labels: Sequence[str] = (),
    titles: Sequence[str] = (),
) -> np.ndarray:
    """Images (H, W, C) side by side in rows of `columns` (near square if None): one (H', W', C). Every sheet is one.

    Args:
        images: of one size (N, H, W, C), or of several; a row is as high as its highest.
        padding: pixels around each image.
        least: pixels that each takes across at least, so that a label has room.
        labels: a text above each image, in their order; those of the first row alone are heads of the columns.
        titles: a text above each row, as wide as the sheet.

    Transparent images lie on a checkerboard, and C is 3.
    """
    images = [on_checkerboard(each) if each.shape[2] == 4 else each for each in images]
    count = len(images)
    columns = min(count, columns or int(np.ceil(np.sqrt(count))))
    rows = [images[i : i + columns] for i in range(0, count, columns)]
    slots = [[max(each.shape[1], least) for each in row] for row in rows]
    width = max(sum(row) + padding * len(row) for row in slots) + padding
    texts, places, top = list[tuple[int, int, str]](), list[tuple[int, int]](), 0
    for r, row in enumerate(rows):
        top += LINE // 2 * bool(r and (any(titles[r : r + 1]) or any(labels[r * columns :][: len(row)])))
        for line in wrapped("".join(titles[r : r + 1]), width - 2 * padding):
            texts.append((padding, top, line))
            top += LINE
        lefts = [padding + sum(slots[r][:c]) + c * padding for c in range(len(row))]
        own = [wrapped(text, slot) for text, slot in zip(labels[r * columns :], slots[r])]
        for left, lines in zip(lefts, own):
            texts += [(left, top + k * LINE, line) for k, line in enumerate(lines)]
        top += LINE * max(map(len, own), default=0) + padding
        places += [(top, left) for left in lefts]
        top += max(each.shape[0] for each in row)
    sheet = np.full((top + padding, width, images[0].shape[2]), background, np.uint8)
    if texts:
        canvas = _pillow(sheet)
        pen = ImageDraw.Draw(canvas)
        for left, high, line in texts:
            pen.text((left, high), line, fill="black", font=_font())
        sheet = np.array(canvas).reshape(sheet.shape)
    for image, (high, left) in zip(images, places):
        sheet[high : high + image.shape[0], left : left + image.shape[1]] = image
    return sheet


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own, which needs no file."""
    return ImageFont.load_default(FONT)


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines no wider than so many pixels, broken at spaces, or within a word that is too long."""
    font, lines = _font(), [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """Each pixel of (..., H, W, C) as a square of `factor` pixels."""
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def png_bytes(image: np.ndarray, text: dict[str, str] | None = None) -> bytes:
    """A PNG file of (H, W, C) bytes with text chunks, the same bytes for the same input."""
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    _pillow(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(path: str | Path, image: np.ndarray, text: dict[str, str] | None = None) -> None:
    """Write (H, W, C) bytes as a PNG with text chunks, whole or not at all.

    Raises:
        Error: the file cannot be written.
    """
    write_atomic(path, png_bytes(image, text))


def read_png_text(path: str | Path) -> dict[str, str]:
    """The text chunks of a PNG, all together `MOST_TEXT` at most; empty where it has none. No pixel is decoded.

    Raises:
        Error: there is no such file, or it is no PNG, is damaged, or its texts are larger.
    """
    try:
        with open_regular(path) as stream:
            return _texts(stream)
    except FileNotFoundError:
        raise Error(f"{path}: no such image.") from None
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


def _pillow(image: np.ndarray) -> Image.Image:
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] in (1, 3, 4), image.shape
    return Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image))
