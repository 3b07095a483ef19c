"""TIFF 6.0: what a file's tags say its samples mean, and a reader of the kinds that Pillow misreads or cannot read.

Pillow ignores the zero of 16 bits and floats, the depth of 12 bits, planes of 16 bits, palettes of bytes, the sign of
8 bits and the packing of YCbCr. Of these a sheet is read here (strips and tiles, planes, packed bits, predictors), or
refused by name; see `Sheet.trusted`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from kuosan.data.headers import Refused
from kuosan.data.layers import ORIENTATION, Layers, LayerTile, Scale, numbers, reader
from kuosan.data.pixels import BAND, bands, eight_bits

RAW, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS = 1, 5, 7, 8, 32946, 32773
READ_HERE = (RAW, DEFLATE, OLD_DEFLATE, PACKBITS)
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, INKS, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
NAMES = {
    MASK: "a transparency mask",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "a camera's filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "a camera's linear raw",
}
MOST_SAMPLES = 16
MOST_VALUES = 3 << 18  # of all tags: a strip for every row of 64 megapixels of 8,000 a row has 16,000
PROFILE = 34675  # kept as (where, bytes)
PREMULTIPLIED, STRAIGHT = 1, 2  # ExtraSamples
WIDTHS = {1: "B", 3: "H", 4: "L", 5: "LL", 6: "b", 7: "B", 8: "h", 9: "l", 11: "f", 12: "d", 13: "L", 16: "Q"}
WANTED = {254, *range(256, 259), 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 332, 336, 338}
WANTED |= {274, 339, 529, 530, 532, PROFILE, 50706}


@dataclass(frozen=True)
class Sheet:
    """The first image of a TIFF: its tags as numbers, and the file."""

    content: bytes
    order: str  # < or >
    tags: dict[int, tuple[float, ...]]

    def one(self, tag: int, default: int) -> int:
        """A tag of one number."""
        return int(self.tags.get(tag, (default,))[0])

    @property
    def width(self) -> int:
        """Of the stored rows."""
        return self.one(256, 0)

    @property
    def height(self) -> int:
        """Number of the stored rows."""
        return self.one(257, 0)

    @property
    def compression(self) -> int:
        """Compression tag."""
        return self.one(259, RAW)

    @property
    def photometric(self) -> int:
        """PhotometricInterpretation; -1 where the file says nothing of it."""
        return self.one(262, YCBCR if self.compression in (6, JPEG) else -1)

    @cached_property
    def samples(self) -> int:
        """Samples a pixel."""
        expected = 3 if self.compression == JPEG and self.photometric in (RGB, YCBCR) else 1
        return self.one(277, max(expected, len(self.tags.get(258, (1,)))))

    @cached_property
    def bits(self) -> tuple[int, ...]:
        """Bits of each sample."""
        found = tuple(int(value) for value in self.tags.get(258, (1,)))
        return found * self.samples if len(found) == 1 else found[: self.samples]

    @cached_property
    def kind(self) -> int:
        """SampleFormat: 1 unsigned, 2 signed, 3 floating point; -1 where samples differ."""
        found = {int(value) for value in self.tags.get(339, (1,))}
        return found.pop() if len(found) == 1 else -1

    @property
    def planar(self) -> bool:
        """Whether each sample has planes of its own."""
        return self.one(284, 1) == 2 and self.samples > 1

    @cached_property
    def colours(self) -> int:
        """Samples that are colour; the rest is transparency, or said to be nothing."""
        return {RGB: 3, YCBCR: min(3, self.samples), LAB: 3, INKS: 4}.get(self.photometric, 1)

    @cached_property
    def extra(self) -> tuple[int, ...]:
        """ExtraSamples: 1 multiplied into the colour, 2 straight alpha, 0 unspecified."""
        found = tuple(int(value) for value in self.tags.get(338, ()))
        if not found and self.photometric == RGB and self.samples == 4:
            return (STRAIGHT,)  # the tag is left out; the fourth sample is taken as alpha
        return tuple(STRAIGHT if value == 999 else value for value in found)

    @property
    def whole(self) -> bool:
        """Whether it holds grey integers without a white of their own that Pillow reads: 32 bits, or signed."""
        kinds = {(2, 16), (2, 32), *([(1, 32)] if self.order == "<" else [])}
        plain = self.samples == 1 and self.photometric == BLACK_IS_ZERO and self.one(266, 1) == 1
        return plain and (self.kind, self.bits[0]) in kinds

    def check(self, ranged: bool = False) -> None:
        """Refuse by name what has no agreed meaning, or is not read.

        Args:
            ranged: somebody says which numbers are black and white.

        Raises:
            Refused: such a sheet.
        """
        zero = self.photometric
        if not 1 <= self.samples <= MOST_SAMPLES:
            raise Refused(f"TIFF of {self.samples} samples a pixel; 1 to {MOST_SAMPLES} are read")
        if 50706 in self.tags or zero in (32803, 34892):
            raise Refused("a camera's raw file (DNG): develop it, and save it as PNG, JPEG or TIFF")
        if self.one(254, 0) & 1:
            raise Refused(
                "TIFF whose first image is a reduced copy of another: save the whole image as a file of its own"
            )
        if zero < 0:
            raise Refused("TIFF that does not say whether 0 is black (no PhotometricInterpretation)")
        if zero not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, INKS, YCBCR, LAB):
            raise Refused(f"TIFF of {NAMES.get(zero, f'photometric interpretation {zero}')}, which is not read")
        if zero == INKS and self.one(332, 1) != 1:
            raise Refused("TIFF of inks that are not cyan, magenta, yellow and black (InkSet)")
        full = [(0.0, 2.0**bits - 1) for bits in self.bits[:1]]
        if zero == INKS and 336 in self.tags and self.tags[336][:2] not in full:
            raise Refused("TIFF of inks with a range of its own (DotRange)")
        if len(self.bits) != self.samples or len(set(self.bits)) != 1:
            raise Refused(f"TIFF of {self.described}: samples of several depths are not read")
        if ranged and self.whole:
            return
        if self.kind not in (1, 3):
            name = {2: "signed integers", 4: "samples of no format"}.get(self.kind, "complex or mixed samples")
            raise Refused(f"TIFF of {name}: nobody has agreed which value is white; save it as 8 or 16 bits")
        if self.kind == 1 and self.bits[0] > 16:
            raise Refused(
                f"TIFF of {self.bits[0]}-bit integers: nobody has agreed which value is white; save it as 8 or 16 bits"
            )
        if self.samples != self.colours + len(self.extra):
            raise Refused(f"TIFF of {self.described}: {len(self.extra)} of its samples are said to be no colour")
        if not self.trusted and (self.compression not in READ_HERE or self._unread):
            raise Refused(f"TIFF of {self.described}, which is not read; save it as 8 bits, or without compression")

    @property
    def described(self) -> str:
        """The sheet's kind in words."""
        zero = {0: "white is 0", 1: "grey", 2: "RGB", 3: "palette", 5: "inks", 6: "YCbCr", 8: "Lab"}
        depth = "+".join(str(bits) for bits in self.bits) if len(set(self.bits)) > 1 else str(self.bits[0])
        return (
            f"{self.samples} x {depth} bits ({zero.get(self.photometric, self.photometric)}, compression "
            f"{self.compression}{', planes' if self.planar else ''})"
        )

    @property
    def _unread(self) -> bool:
        zero, bits = self.photometric, self.bits[0]
        if self.kind == 3:
            return zero not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB) or bits not in (16, 32, 64)
        if PREMULTIPLIED in self.extra and zero not in (BLACK_IS_ZERO, RGB):
            return True
        if zero == YCBCR:
            return not self._plain_ycbcr or self.samples != 3
        return zero == LAB and bits != 8

    @property
    def _plain_ycbcr(self) -> bool:
        """One chroma sample a pixel, by the default coefficients and range."""
        defaults = {530: (1, 1), 529: (0.299, 0.587, 0.114), 532: (0, 255, 128, 255, 128, 255)}
        own = {tag: tuple(round(v, 3) for v in self.tags[tag]) for tag in defaults if tag in self.tags}
        return self.bits[0] == 8 and 530 in own and all(found == defaults[tag] for tag, found in own.items())

    @cached_property
    def trusted(self) -> bool:
        """Whether Pillow reads the samples of this kind as they are meant, but for what `after` says."""
        zero, bits, extra = self.photometric, self.bits[0], self.extra
        rest = all(value == 0 for value in extra[1:]) and (not extra or extra[0] in (0, 1, 2))
        if self.planar and (bits != 8 or extra or zero in (YCBCR, LAB)):
            return False
        if self.whole:
            return True
        if self.kind == 3:
            return self.samples == 1 and bits == 32 and zero in (WHITE_IS_ZERO, BLACK_IS_ZERO)
        if self.one(266, 1) == 2 and not (bits <= 8 and self.samples == 1):
            return False
        if zero in (WHITE_IS_ZERO, BLACK_IS_ZERO):
            if self.samples == 1:
                odd = bits == 12 and zero == BLACK_IS_ZERO and self.order == "<" and self.compression not in READ_HERE
                wide = bits == 16 and (zero == BLACK_IS_ZERO or self.order == "<")
                return bits in (1, 2, 4, 8) or wide or odd
            return zero == BLACK_IS_ZERO and self.samples == 2 and bits == 8 and rest
        if zero == PALETTE:
            return self.samples == 1 and bits in (1, 2, 4, 8)
        if zero == RGB:
            return rest and len(extra) <= {8: 3, 16: 1}.get(bits, -1)
        if zero == INKS:
            plain = all(value == 0 for value in extra)
            return plain and len(extra) <= {8: 2, 16: 0}.get(bits, -1)
        if zero == YCBCR:
            packed = self.compression == RAW and self.samples == 3 and not self._plain_ycbcr
            return bits == 8 and not extra and not packed
        return bits == 8 and self.samples == 3  # Lab

    @cached_property
    def after(self) -> str:
        """What is left to do to Pillow's numbers of a trusted sheet: `inverted`, `scaled` (12 bits) or nothing."""
        if self.photometric == WHITE_IS_ZERO and self.bits[0] >= 16:
            return "inverted"
        return "scaled" if self.bits[0] == 12 else ""

    def palette(self) -> np.ndarray | None:
        """The colours (n, 3) uint8 of a palette that holds bytes, as some programs write; None of a common one."""
        found = self.tags.get(320, ())
        if self.photometric != PALETTE or not found or max(found) > 255:
            return None
        return np.array(found).reshape(3, -1).T.astype(np.uint8)

    def colours_of(self, indices: np.ndarray) -> np.ndarray:
        """Indices (H, W) as colours (H, W, 3) uint8 or uint16."""
        found = np.array(self.tags.get(320, ())).reshape(3, -1).T
        table = found.astype(np.uint8 if found.max() <= 255 else np.uint16)
        colours: np.ndarray = table[indices]
        return colours

    @cached_property
    def has_more(self) -> bool:
        """Whether another image follows the first."""
        big = self.content[2:4] in (b"+\0", b"\0+")
        wide = self.order + ("Q" if big else "L")
        try:
            (at,) = struct.unpack_from(wide, self.content, 8 if big else 4)
            (count,) = struct.unpack_from(self.order + ("Q" if big else "H"), self.content, at)
            (after,) = struct.unpack_from(wide, self.content, at + (8 + 20 * count if big else 2 + 12 * count))
        except (struct.error, OverflowError):
            return False
        return bool(after and after != at)

    @property
    def profile(self) -> bytes | None:
        """The colour profile."""
        if PROFILE not in self.tags:
            return None
        at, length = (int(value) for value in self.tags[PROFILE])
        return self.content[at : at + length]


def sheet(content: bytes) -> Sheet | None:
    """The first image's tags, or None of what is no TIFF.

    Raises:
        Refused: it is damaged.
    """
    if content[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    order = "<" if content[:2] == b"II" else ">"
    try:
        return Sheet(content, order, _tags(content, order))
    except struct.error:
        raise Refused("damaged: tags cut short") from None


def _tags(content: bytes, order: str) -> dict[int, tuple[float, ...]]:
    big = content[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(order + ("Q" if big else "L"), content, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, at)
    at += 8 if big else 2
    row, inline = ("HHQ", 8) if big else ("HHL", 4)
    size = struct.calcsize(order + row) + inline
    found: dict[int, tuple[float, ...]] = {}
    room = MOST_VALUES
    for i in range(min(count, 4096, (len(content) - at) // size)):
        place = at + i * size
        tag, kind, length = struct.unpack_from(order + row, content, place)
        code = WIDTHS.get(kind)
        if tag not in WANTED or tag in found or code is None or length < 1:
            continue
        where = place + size - inline
        wide = struct.calcsize(order + code)
        if length * wide > inline:
            (where,) = struct.unpack_from(order + ("Q" if big else "L"), content, where)
        if length * wide + where > len(content):
            continue  # a tag larger than the file: libtiff and Pillow pass it over
        if tag != PROFILE:
            room -= length
        if room < 0:
            raise Refused(f"too large: its tags hold more than {MOST_VALUES:,} numbers: save it in larger strips")
        if tag == PROFILE:
            found[tag] = (where, length)
            continue
        values = struct.unpack_from(f"{order}{length * len(code)}{code[0]}", content, where)
        if kind == 5:  # rationals
            values = tuple(a / b if b else 0.0 for a, b in zip(values[::2], values[1::2]))
        found[tag] = values
    return found


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
    clear = bool(sheet.extra) and sheet.extra[0] in (PREMULTIPLIED, STRAIGHT)
    divide = clear and sheet.extra[0] == PREMULTIPLIED
    mode = {YCBCR: "YCbCr", LAB: "LAB", INKS: "CMYK"}.get(zero)
    work = None if mode is None else reader(layers, mode, None)
    layers.premultiplied, count, values = divide, sheet.colours, layers.parts

    def meant() -> Iterator[LayerTile]:
        for top, left, found, _ in values():
            colour, alpha = found[..., :count], found[..., count : count + 1] if clear else None
            if work is not None and mode is not None:
                eight = np.ascontiguousarray(eight_bits(colour) if colour.dtype == np.uint16 else colour)
                colour, _ = work(Image.frombytes(mode, (eight.shape[1], eight.shape[0]), eight.tobytes()))
                alpha = alpha if alpha is None or alpha.dtype == np.uint8 else eight_bits(alpha)
            elif zero == WHITE_IS_ZERO:
                colour = np.iinfo(colour.dtype).max - colour
            elif zero == PALETTE:
                colour = sheet.colours_of(colour[..., 0])
            yield LayerTile(top, left, colour, alpha)

    layers.parts = meant
    return layers.done()


def sheet_mode(sheet: Sheet) -> str:
    """Pillow's name of the nearest mode."""
    if sheet.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        kind = "F" if sheet.kind == 3 else "L" if sheet.bits[0] <= 8 else "I;16"
        return "LA" if sheet.extra and kind == "L" else kind
    return {PALETTE: "P", INKS: "CMYK", YCBCR: "YCbCr", LAB: "LAB"}.get(sheet.photometric, "RGB")


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
