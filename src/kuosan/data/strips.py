"""The samples of a TIFF read here, and what they mean: strips and tiles, planes, packed bits, predictors (TIFF 6.0)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from kuosan.data import tiff
from kuosan.data.headers import Refused
from kuosan.data.layers import ORIENTATION, Layers, LayerTile, Scale, numbers, reader
from kuosan.data.pixels import BAND, bands, eight_bits
from kuosan.data.tiff import DEFLATE, OLD_DEFLATE, PACKBITS, PALETTE, RAW, Sheet

PIECE = 1 << 16  # packed bytes that are given to zlib at once
LARGEST_TILE = 4096  # pixels that a tile may be larger than its image
REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def layers_of(sheet: Sheet, scale: Scale | None, profile: bytes | None = None) -> Layers:
    """A TIFF of a kind that is read here and not by Pillow."""
    layers = Layers(sheet_mode(sheet), "TIFF", profile=profile or sheet.profile, turn=sheet.one(ORIENTATION, 1))
    layers.size, layers.reading, zero = (sheet.height, sheet.width), 2, sheet.photometric
    layers.parts = lambda: (LayerTile(*part) for part in samples(sheet))
    if sheet.kind == 3:
        numbers(layers, "F", scale)
    elif sheet.bits[0] not in (1, 2, 4, 8):
        layers.notes.append(f"{sheet.bits[0]} bits scaled to 8")
    clear = bool(sheet.extra) and sheet.extra[0] in (tiff.PREMULTIPLIED, tiff.STRAIGHT)
    divide = clear and sheet.extra[0] == tiff.PREMULTIPLIED
    mode = {tiff.YCBCR: "YCbCr", tiff.LAB: "LAB", tiff.INKS: "CMYK"}.get(zero)
    work = None if mode is None else reader(layers, mode, None)
    layers.premultiplied, count, values = divide, sheet.colours, layers.parts

    def meant() -> Iterator[LayerTile]:
        for top, left, found, _ in values():
            colour, alpha = found[..., :count], found[..., count : count + 1] if clear else None
            if work is not None and mode is not None:
                eight = np.ascontiguousarray(eight_bits(colour) if colour.dtype == np.uint16 else colour)
                colour, _ = work(Image.frombytes(mode, (eight.shape[1], eight.shape[0]), eight.tobytes()))
                alpha = alpha if alpha is None or alpha.dtype == np.uint8 else eight_bits(alpha)
            elif zero == tiff.WHITE_IS_ZERO:
                colour = np.iinfo(colour.dtype).max - colour
            elif zero == tiff.PALETTE:
                colour = sheet.colours_of(colour[..., 0])
            yield LayerTile(top, left, colour, alpha)

    layers.parts = meant
    return layers.done()


def sheet_mode(sheet: Sheet) -> str:
    """Pillow's name of the nearest mode."""
    if sheet.photometric in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO):
        kind = "F" if sheet.kind == 3 else "L" if sheet.bits[0] <= 8 else "I;16"
        return "LA" if sheet.extra and kind == "L" else kind
    return {tiff.PALETTE: "P", tiff.INKS: "CMYK", tiff.YCBCR: "YCbCr", tiff.LAB: "LAB"}.get(sheet.photometric, "RGB")


def samples(sheet: Sheet) -> Iterator[tuple[int, int, np.ndarray]]:
    """(top, left, samples as stored) of one part after another, the last (h, w, S).

    They are uint8, uint16 or float32, integers scaled to their type's white. S are those of colour, and one of opacity
    where there is one. A strip or tile is unpacked a band of rows at a time, the planes side by side.

    Raises:
        Refused: fewer bytes than the pixels need.
    """
    bits, kept = sheet.bits[0], sheet.colours + (1 if sheet.extra and sheet.extra[0] else 0)
    inside = 1 if sheet.planar else sheet.samples
    for top, left, rows, columns, planes in _parts(sheet, kept if sheet.planar else 1):
        down, across = min(rows, sheet.height - top), min(columns, sheet.width - left)
        packed = [_lines(sheet, data, down, (columns * inside * bits + 7) // 8) for data in planes]
        for side_by_side in zip(*packed):
            values = [_numbers(sheet, lines, columns, inside)[:, :across, :kept] for _, lines in side_by_side]
            yield top + side_by_side[0][0], left, np.concatenate(values, 2) if sheet.planar else values[0]


def _parts(sheet: Sheet, planes: int) -> Iterator[tuple[int, int, int, int, list[memoryview]]]:
    """(top, left, rows, columns) of each strip or tile with its bytes in each plane."""
    tiled = 324 in sheet.tags
    rows = sheet.one(323, 0) if tiled else min(sheet.one(278, sheet.height), sheet.height)
    columns = sheet.one(322, 0) if tiled else sheet.width
    if not 1 <= rows <= sheet.height + LARGEST_TILE or not 1 <= columns <= sheet.width + LARGEST_TILE:
        raise Refused(f"damaged: strips or tiles of {columns}x{rows}")
    offsets = sheet.tags.get(324 if tiled else 273, ())
    counts = sheet.tags.get(325 if tiled else 279, ())
    content = memoryview(sheet.content)
    each = -(-sheet.height // rows) * -(-sheet.width // columns)  # of one plane
    for i in range(each):
        places = [i + plane * each for plane in range(planes)]
        if places[-1] >= len(offsets):
            raise Refused("damaged: fewer strips or tiles than rows need")
        found = []
        for place in places:
            at = int(offsets[place])
            found.append(content[at : at + int(counts[place]) if place < len(counts) else len(content)])
        down, right = divmod(i, -(-sheet.width // columns))
        yield down * rows, right * columns, rows, columns, found


def _lines(sheet: Sheet, data: memoryview, rows: int, line: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, packed rows (h, line) uint8) of a strip or tile, a band at a time."""
    band = max(1, BAND // line)
    unpacked = _Unpacked(data, sheet.compression, sheet.one(266, 1) == 2)
    for first in range(0, rows, band):
        need = min(band, rows - first) * line
        part = unpacked.read(need)
        if len(part) < need:
            raise Refused("damaged: cut short")
        yield first, np.frombuffer(part, np.uint8).reshape(-1, line)


class _Unpacked:
    """The bytes of a strip or tile as a stream; a band of them is held, whatever they unpack to."""

    def __init__(self, data: memoryview, compression: int, reversed_bits: bool) -> None:
        if reversed_bits and compression == PACKBITS:
            data, reversed_bits = memoryview(bytes(data).translate(REVERSED)), False
        self.data, self.compression, self.reversed_bits, self.at = data, compression, reversed_bits, 0
        self.inflate, self.rest, self.spare = zlib.decompressobj(), b"", bytearray()

    def read(self, need: int) -> bytes | memoryview:
        """The next bytes, fewer where there are no more."""
        if self.compression in (DEFLATE, OLD_DEFLATE):
            return self._inflated(need)
        return self._runs(need) if self.compression == PACKBITS else self._taken(need)

    def _taken(self, count: int) -> bytes | memoryview:
        part = self.data[self.at : self.at + count]
        self.at += count
        return bytes(part).translate(REVERSED) if self.reversed_bits else part

    def _inflated(self, need: int) -> bytes:
        found = bytearray()
        while len(found) < need and not self.inflate.eof:
            rest = self.rest or self._taken(PIECE)
            part = self.inflate.decompress(rest, need - len(found))
            if not part and not rest:
                break
            found += part
            self.rest = self.inflate.unconsumed_tail
        return bytes(found)

    def _runs(self, need: int) -> bytes:
        out, data, at = self.spare, self.data, self.at
        while len(out) < need and at < len(data):
            count = data[at]
            if count < 128:
                out += data[at + 1 : at + 2 + count]
                at += 2 + count
            elif count > 128:
                out += bytes(data[at + 1 : at + 2]) * (257 - count)
                at += 2
            else:
                at += 1
        self.at, self.spare = at, out[need:]
        return bytes(out[:need])


def _numbers(sheet: Sheet, lines: np.ndarray, columns: int, inside: int) -> np.ndarray:
    """Packed rows (h, bytes) as numbers (h, columns, inside), integers scaled to white."""
    bits, predictor = (
        sheet.bits[0],
        sheet.one(317, 1) if sheet.compression != RAW and sheet.compression != PACKBITS else 1,
    )
    h = len(lines)
    if predictor == 3 and sheet.kind == 3:
        wide = bits // 8
        sums = np.cumsum(lines.reshape(h, -1, inside), 1, dtype=np.uint8).reshape(h, wide, columns * inside)
        values = np.ascontiguousarray(sums.transpose(0, 2, 1)).view(f">f{wide}")[..., 0]
        return values.reshape(h, columns, inside).astype(np.float32)
    if predictor != 1 and (predictor != 2 or bits not in (8, 16, 32, 64)):
        raise Refused(f"TIFF of predictor {predictor}, {bits} bits, which is not read")
    if bits % 8 == 0:
        values = np.ascontiguousarray(lines).view(f"{sheet.order}u{bits // 8}").reshape(h, columns, inside)
        values = values.astype(values.dtype.newbyteorder("="))
        if predictor == 2:
            values = np.cumsum(values, 1, dtype=values.dtype)
        if sheet.kind == 3:
            with np.errstate(over="ignore"):
                return values.view(f"f{bits // 8}").astype(np.float32)
        return values
    out = np.empty((h, columns, inside), np.uint8 if bits < 8 and bits in (1, 2, 4) else np.uint16)
    white = 255 if out.dtype == np.uint8 else 65535
    powers = (1 << np.arange(bits - 1, -1, -1)).astype(np.float64)
    for rows in bands(out, BAND // 64):  # a bit is a float64 on the way
        single = np.unpackbits(lines[rows], axis=1)[:, : columns * inside * bits]
        numbers = single.reshape(len(single), columns, inside, bits) @ powers
        out[rows] = np.rint(numbers * (white / (2**bits - 1))) if sheet.photometric != PALETTE else numbers
    return out
