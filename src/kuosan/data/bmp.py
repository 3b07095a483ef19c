"""Windows bitmaps: palettes, masks and runs as their headers say; Pillow takes some palettes of two colours wrongly.

Rows come from the bottom unless the height is negative; every row is padded to four bytes; masks say where a channel's
bits lie (Microsoft's BITMAPINFOHEADER to BITMAPV5HEADER, and OS/2's first).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kuosan.data.headers import Refused
from kuosan.data.layers import Layers, LayerTile
from kuosan.data.pixels import tiles

RAW, RLE8, RLE4, MASKS, ALPHA_MASKS = 0, 1, 2, 3, 6
DEFAULT_MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
EMBEDDED, LINKED = b"DEBM", b"KNIL"


@dataclass(frozen=True)
class Bitmap:
    """What the header of a bitmap says."""

    content: bytes
    width: int
    height: int
    upside_down: bool  # rows from the bottom, the default order
    bits: int
    compression: int
    offset: int
    palette: np.ndarray | None  # (n, 3) uint8 red, green, blue
    masks: tuple[int, int, int, int]
    profile: bytes | None = None

    @property
    def mode(self) -> str:
        """Pillow's name of the kind."""
        if self.palette is None:
            return "RGBA" if self.masks[3] else "RGB"
        return "L" if self.is_grey else "P"

    @property
    def is_grey(self) -> bool:
        """Whether every colour of the palette is a grey."""
        return self.palette is not None and bool((self.palette == self.palette[:, :1]).all())

    @property
    def as_before(self) -> bool:
        """Whether Pillow, which read bitmaps before, gives the same pixels."""
        if self.palette is None:
            return True
        given = self.palette.tolist()
        two, ramp = [[0] * 3, [255] * 3], [[i] * 3 for i in range(len(given))]
        return not ((given == two and self.bits > 1) or (given == ramp and self.bits < 8))

    def parts(self) -> Iterator[LayerTile]:
        """Colour and straight alpha, part by part.

        Raises:
            Refused: fewer bytes than the pixels need.
        """
        runs = self._runs() if self.palette is not None and self.compression in (RLE4, RLE8) else None
        table = np.zeros((256, 3), np.uint8)  # a colour beyond the palette is black, as viewers show it
        if self.palette is not None:
            table[: len(self.palette)] = self.palette
            table = table[:, :1] if self.is_grey else table
        for top, left, bottom, right in tiles(self.height, self.width):
            first, last = (self.height - bottom, self.height - top) if self.upside_down else (top, bottom)
            if self.palette is None:
                pixels = self._channels(first, last, left, right)
            else:
                found = self._indices(first, last, left, right) if runs is None else runs[first:last, left:right]
                pixels = table[found]
            pixels = pixels[::-1] if self.upside_down else pixels
            yield LayerTile(top, left, pixels[..., :3], pixels[..., 3:] if pixels.shape[2] == 4 else None)

    def _stored(self, first: int, last: int, start: int, stop: int) -> np.ndarray:
        """Bytes `start` to `stop` of some stored rows, (h, bytes)."""
        line = (self.width * self.bits + 31) // 32 * 4
        used = (self.width * self.bits + 7) // 8
        if self.offset + line * (self.height - 1) + used > len(self.content):
            raise Refused("damaged: cut short")
        rows = np.lib.stride_tricks.as_strided(
            np.frombuffer(self.content, np.uint8, offset=self.offset), (self.height, used), (line, 1), writeable=False
        )
        return rows[first:last, start:stop]

    def _indices(self, first: int, last: int, left: int, right: int) -> np.ndarray:  # (h, w) uint8
        each = 8 // self.bits
        lines = self._stored(first, last, left // each, -(-right // each))
        if each == 1:
            return lines
        shifts = np.arange(8 - self.bits, -1, -self.bits, dtype=np.uint8)
        out = ((lines[..., None] >> shifts) & np.uint8(2**self.bits - 1)).reshape(last - first, -1)
        return out[:, left % each :][:, : right - left]

    def _channels(self, first: int, last: int, left: int, right: int) -> np.ndarray:
        wide = self.bits // 8
        lines = self._stored(first, last, left * wide, right * wide)
        if self.bits == 24:
            return lines.reshape(last - first, right - left, 3)[..., ::-1]
        masks = self.masks if self.masks[3] else self.masks[:3]
        words = np.ascontiguousarray(lines).view("<u4" if self.bits == 32 else "<u2")  # (h, w)
        out = np.empty((*words.shape, len(masks)), np.uint8)
        for c, mask in enumerate(masks):
            low = (mask & -mask).bit_length() - 1
            white = mask >> low
            values = ((words & words.dtype.type(mask)) >> words.dtype.type(low)).astype(np.uint64)
            out[..., c] = values if white == 255 else values * np.uint64(255) // np.uint64(white)
        return out

    def _runs(self) -> np.ndarray:  # (H, W) uint8
        """Run lengths of 8 or 4 bits; what they skip is the palette's first colour."""
        out = np.zeros((self.height, self.width), np.uint8)
        data, at, x, y = self.content, self.offset, 0, 0
        four = self.compression == RLE4
        while True:
            if at + 2 > len(data):
                if y >= self.height or (y == self.height - 1 and x >= self.width):
                    return out  # every row is there, only the mark of the end is not
                raise Refused("damaged: cut short")
            count, value = data[at], data[at + 1]
            at += 2
            if count:
                pair = (value >> 4, value & 15) if four else (value, value)
                wide = max(0, min(count, self.width - x))
                if y < self.height:
                    out[y, x : x + wide] = np.resize(np.array(pair, np.uint8), wide)
                x += count
            elif value == 0:
                x, y = 0, y + 1
            elif value == 1:
                return out
            elif value == 2:
                if at + 2 > len(data):
                    raise Refused("damaged: cut short")
                x, y, at = x + data[at], y + data[at + 1], at + 2
            else:
                size = (value + 1) // 2 if four else value
                body = np.frombuffer(data[at : at + size], np.uint8)
                if len(body) < size:
                    raise Refused("damaged: cut short")
                if four:
                    body = np.stack([body >> 4, body & 15], 1).reshape(-1)
                wide = max(0, min(value, self.width - x))
                if y < self.height:
                    out[y, x : x + wide] = body[:wide]
                x, at = x + value, at + size + size % 2


def bitmap(content: bytes) -> Bitmap | None:
    """The header of a bitmap, or None of what is none.

    Raises:
        Refused: it is damaged, or of a kind that is not read.
    """
    if content[:2] != b"BM":
        return None
    try:
        return _bitmap(content)
    except struct.error:
        raise Refused("damaged: header cut short") from None


def _bitmap(content: bytes) -> Bitmap:
    offset, head = struct.unpack_from("<II", content, 10)
    if head == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", content, 18)
        compression, colours, entry = RAW, 0, 3
    elif head in (40, 52, 56, 64, 108, 124):
        width, height, _, bits, compression, _, _, _, colours = struct.unpack_from("<iiHHIIiiI", content, 18)
        entry = 4
    else:
        raise Refused("not an image of a known format" if head < 12 else f"BMP of a header of {head} bytes, not read")
    if width < 1 or height == 0:
        raise Refused(f"has no pixels ({width}x{abs(height)})")
    known = {RAW: (1, 2, 4, 8, 16, 24, 32), RLE8: (8,), RLE4: (4,), MASKS: (16, 32), ALPHA_MASKS: (16, 32)}
    if bits not in known.get(compression, ()) or (head == 64 and compression > RLE4):
        raise Refused(f"BMP of {bits} bits, compression {compression}, which is not read; save it as PNG")
    masks, after = DEFAULT_MASKS.get(bits, (0, 0, 0, 0)), 14 + head
    if compression in (MASKS, ALPHA_MASKS):
        count = 4 if compression == ALPHA_MASKS or head >= 56 else 3
        red, green, blue, *alpha = struct.unpack_from(f"<{count}I", content, 54)
        masks = (red, green, blue, alpha[0] if alpha else 0)
        after = max(after, 54 + 4 * count)
        _check_masks(masks, bits)
    palette = None
    if bits <= 8:
        colours = min(colours or 1 << bits, 1 << bits, max(0, (offset - after) // entry) or 1 << bits)
        stored = content[after : after + entry * colours]
        if len(stored) < entry * colours:
            raise Refused("damaged: palette cut short")
        palette = np.frombuffer(stored, np.uint8).reshape(-1, entry)[:, 2::-1]
        after += entry * colours
    profile = _profile(content, head)
    top_down = height < 0 and head != 12
    where = offset if offset >= 14 + head else after
    return Bitmap(content, width, abs(height), not top_down, bits, compression, where, palette, masks, profile)


def _check_masks(masks: tuple[int, int, int, int], bits: int) -> None:
    for mask in masks:
        ones = mask >> ((mask & -mask).bit_length() - 1) if mask else 0
        if (ones & (ones + 1)) or mask >= 1 << bits:
            raise Refused("BMP of masks that are no channels")
    red, green, blue, alpha = masks
    if not (red and green and blue) or red & green or green & blue or red & blue or alpha & (red | green | blue):
        raise Refused("BMP of masks that are no channels")


def _profile(content: bytes, head: int) -> bytes | None:
    """The colour profile inside a BITMAPV5HEADER; other calibrations are refused where they say anything."""
    if head < 108:
        return None
    space = content[70:74]
    if space == LINKED:
        raise Refused("BMP whose colour profile lies in another file; save it as PNG")
    gammas = [value / 65536 for value in struct.unpack_from("<3I", content, 110)]
    screens = (
        0.0,
        2.2,
        1 / 2.2,
    )  # nothing, or sRGB's: some programs write the exponent of the file, others the screen's
    if space == b"\0\0\0\0" and not all(any(abs(g - own) <= 0.05 * own for own in screens) for g in gammas):
        raise Refused("BMP of a gamma of its own; save it as PNG, which says the same as gAMA")
    if space == EMBEDDED and head == 124:
        at, size = struct.unpack_from("<II", content, 126)
        return content[14 + at : 14 + at + size]
    return None


def layers_of(bitmap: Bitmap) -> Layers:
    """Colour and opacity of a bitmap."""
    layers = Layers(bitmap.mode, "BMP", profile=bitmap.profile)
    layers.size, layers.parts = (bitmap.height, bitmap.width), bitmap.parts
    layers.reading = 1 if bitmap.as_before and bitmap.profile is None else 2
    return layers.done()
