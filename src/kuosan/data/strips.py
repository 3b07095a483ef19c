"""The samples of a TIFF read here, and what they mean: strips and tiles, planes, packed bits, predictors (TIFF 6.0)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from kuosan.data import tiff
from kuosan.data.headers import Refused
from kuosan.data.layers import ORIENTATION, Layers, Scale, fill, numbers
from kuosan.data.pixels import BAND, bands, eight_bits
from kuosan.data.tiff import DEFLATE, OLD_DEFLATE, PACKBITS, PALETTE, RAW, Sheet

LARGEST_TILE = 4096  # pixels that a tile may be larger than its image
REVERSED = bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))


def layers_of(sheet: Sheet, scale: Scale | None, profile: bytes | None = None) -> Layers:
    """A TIFF of a kind that is read here and not by Pillow."""
    layers = Layers(sheet_mode(sheet), "TIFF", profile=profile or sheet.profile, turn=sheet.one(ORIENTATION, 1))
    layers.reading = 2
    values, zero = samples(sheet), sheet.photometric
    if sheet.kind == 3:
        values = numbers(values, "F", layers, scale)
    elif sheet.bits[0] not in (1, 2, 4, 8):
        layers.notes.append(f"{sheet.bits[0]} bits scaled to 8")
    count = sheet.colours
    colours = values[..., :count]
    if sheet.extra and sheet.extra[0] in (tiff.PREMULTIPLIED, tiff.STRAIGHT):
        layers.alpha, layers.premultiplied = values[..., count : count + 1], sheet.extra[0] == tiff.PREMULTIPLIED
    if zero == tiff.WHITE_IS_ZERO:
        np.subtract(np.iinfo(colours.dtype).max, colours, out=colours)
    elif zero == tiff.PALETTE:
        colours = sheet.colours_of(colours[..., 0])
    elif zero in (tiff.YCBCR, tiff.LAB, tiff.INKS):
        eight = np.ascontiguousarray(eight_bits(colours) if colours.dtype == np.uint16 else colours)
        mode = {tiff.YCBCR: "YCbCr", tiff.LAB: "LAB", tiff.INKS: "CMYK"}[zero]
        image = Image.frombytes(mode, (sheet.width, sheet.height), eight.tobytes())
        alpha = layers.alpha
        fill(layers, image, None, None)
        layers.alpha = alpha if alpha is None or alpha.dtype == np.uint8 else eight_bits(alpha)
        return layers.done()
    layers.colour = colours
    return layers.done()


def sheet_mode(sheet: Sheet) -> str:
    """Pillow's name of the nearest mode."""
    if sheet.photometric in (tiff.WHITE_IS_ZERO, tiff.BLACK_IS_ZERO):
        kind = "F" if sheet.kind == 3 else "L" if sheet.bits[0] <= 8 else "I;16"
        return "LA" if sheet.extra and kind == "L" else kind
    return {tiff.PALETTE: "P", tiff.INKS: "CMYK", tiff.YCBCR: "YCbCr", tiff.LAB: "LAB"}.get(sheet.photometric, "RGB")


def samples(sheet: Sheet) -> np.ndarray:
    """The samples as stored, (H, W, S): uint8, uint16 or float32, integers scaled to their type's white.

    S are those of colour, and one of opacity where there is one; work goes on in bands of rows.

    Raises:
        Refused: fewer bytes than the pixels need.
    """
    bits, kept = sheet.bits[0], sheet.colours + (1 if sheet.extra and sheet.extra[0] else 0)
    inside = 1 if sheet.planar else sheet.samples
    kind: type[np.generic] = np.float32 if sheet.kind == 3 else np.uint8 if bits in (1, 2, 4, 8) else np.uint16
    out = np.empty((sheet.height, sheet.width, kept), kind)
    for plane, top, left, rows, columns, data in _parts(sheet):
        if plane >= kept:
            break
        across = min(columns, sheet.width - left)
        for first, lines in _lines(sheet, data, min(rows, sheet.height - top), (columns * inside * bits + 7) // 8):
            values = _numbers(sheet, lines, columns, inside)[:, :across]
            y = top + first
            if sheet.planar:
                out[y : y + len(lines), left : left + across, plane] = values[..., 0]
            else:
                out[y : y + len(lines), left : left + across] = values[..., :kept]
    return out


def _parts(sheet: Sheet) -> Iterator[tuple[int, int, int, int, int, memoryview]]:
    """(plane, top, left, rows, columns) of each strip or tile with its bytes, plane after plane."""
    tiled = 324 in sheet.tags
    rows = sheet.one(323, 0) if tiled else min(sheet.one(278, sheet.height), sheet.height)
    columns = sheet.one(322, 0) if tiled else sheet.width
    if not 1 <= rows <= sheet.height + LARGEST_TILE or not 1 <= columns <= sheet.width + LARGEST_TILE:
        raise Refused(f"damaged: strips or tiles of {columns}x{rows}")
    offsets = sheet.tags.get(324 if tiled else 273, ())
    counts = sheet.tags.get(325 if tiled else 279, ())
    i, content = 0, memoryview(sheet.content)
    for plane in range(sheet.samples if sheet.planar else 1):
        for top in range(0, sheet.height, rows):
            for left in range(0, sheet.width, columns):
                if i >= len(offsets):
                    raise Refused("damaged: fewer strips or tiles than rows need")
                at = int(offsets[i])
                end = at + int(counts[i]) if i < len(counts) else len(content)
                yield plane, top, left, rows, columns, content[at:end]
                i += 1


def _lines(sheet: Sheet, data: memoryview, rows: int, line: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, packed rows (h, line) uint8) of a strip or tile, a band at a time."""
    reversed_bits, band = sheet.one(266, 1) == 2, max(1, BAND // line)
    unpack = zlib.decompressobj() if sheet.compression in (DEFLATE, OLD_DEFLATE) else None
    rest: bytes | memoryview = bytes(data).translate(REVERSED) if reversed_bits else data
    if sheet.compression == PACKBITS:
        rest = _packbits(bytes(rest), rows * line)
    for first in range(0, rows, band):
        need = min(band, rows - first) * line
        if unpack is None:
            part, rest = rest[:need], rest[need:]
        else:
            part = b""
            while len(part) < need and (found := unpack.decompress(rest, need - len(part))):
                part, rest = part + found, unpack.unconsumed_tail
        if len(part) < need:
            raise Refused("damaged: cut short")
        yield first, np.frombuffer(part, np.uint8).reshape(-1, line)


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
    for rows in bands(out):
        single = np.unpackbits(lines[rows], axis=1)[:, : columns * inside * bits]
        numbers = single.reshape(len(single), columns, inside, bits) @ powers
        out[rows] = np.rint(numbers * (white / (2**bits - 1))) if sheet.photometric != PALETTE else numbers
    return out


def _packbits(data: bytes, need: int) -> bytes:
    out, at = bytearray(), 0
    while len(out) < need and at < len(data):
        count = data[at]
        if count < 128:
            out += data[at + 1 : at + 2 + count]
            at += 2 + count
        elif count > 128:
            out += data[at + 1 : at + 2] * (257 - count)
            at += 2
        else:
            at += 1
    return bytes(out[:need])
