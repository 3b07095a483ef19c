"""Files of every kind written from their formats' specifications, for the golden set: PNG, TIFF, BMP, GIF, PNM."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from made_files import chunk

from kuosan.seeds import rng

ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)  # y, x, dy, dx


def numbers(h: int, w: int, c: int, white: int, name: str = "") -> np.ndarray:
    """Random whole numbers (h, w, c) from 0 to `white`, both of which occur."""
    values = rng(0, f"golden {name}").integers(0, white + 1, (h, w, c))
    values[0, 0], values[-1, -1] = 0, white
    return values


def packed(rows: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows (h, n) of numbers, each row packed from the highest bit on and filled to a byte."""
    if bits in (8, 16, 32, 64):
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    single = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def png_file(values: np.ndarray, depth: int, kind: int, before: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG of (H, W, C) samples; every row has the filter of its number, so that all five occur."""
    h, w, c = values.shape
    data = b""
    for y, x, dy, dx in ADAM7 if interlaced else ((0, 0, 1, 1),):
        part = values[y::dy, x::dx]
        if part.size == 0:
            continue
        each = max(1, c * depth // 8)
        above = np.zeros((part.shape[1] * c * depth + 7) // 8, np.int64)
        for i, row in enumerate(part.reshape(len(part), -1)):
            now = np.frombuffer(packed(row[None], depth), np.uint8).astype(np.int64)
            left, corner = (np.concatenate([np.zeros(each, np.int64), line])[: len(now)] for line in (now, above))
            guess = left + above - corner
            nearest = np.argmin([abs(guess - left), abs(guess - above), abs(guess - corner)], axis=0)
            paeth = np.choose(nearest, [left, above, corner])
            taken = (0 * now, left, above, (left + above) // 2, paeth)[i % 5]
            data += bytes([i % 5]) + ((now - taken) % 256).astype(np.uint8).tobytes()
            above = now
    head = struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, int(interlaced))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before
    return start + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def packbits(data: bytes) -> bytes:
    """Apple's run lengths, runs and literals both."""
    out, at = b"", 0
    while at < len(data):
        run = 1
        while run < 128 and at + run < len(data) and data[at + run] == data[at]:
            run += 1
        part = data[at : at + 5] if run == 1 else data[at : at + run]
        out += bytes([257 - run]) + part[:1] if run > 1 else bytes([len(part) - 1]) + part
        at += len(part)
    return out


def tiff_file(
    values: np.ndarray,
    photometric: int,
    bits: int,
    order: str = "<",
    planar: bool = False,
    compression: int = 1,
    rows: int = 3,
    tile: int = 0,
    predictor: int = 1,
    fill: int = 1,
    extra: Sequence[int] = (),
    more: Sequence[tuple[int, int, Sequence[int]]] = (),
    big: bool = False,
) -> bytes:
    """A TIFF of (H, W, C) numbers (floats where they are floats) in strips of `rows`, or tiles of `tile` pixels."""
    h, w, c = values.shape
    real = values.dtype.kind == "f"
    planes = [values[..., i : i + 1] for i in range(c)] if planar else [values]
    parts = []
    for plane in planes:
        step, across = (tile, tile) if tile else (rows, w)
        for y in range(0, h, step):
            for x in range(0, w, across):
                part = plane[y : y + step, x : x + across]
                if tile:
                    part = np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1]), (0, 0)))
                parts.append(_strip(part, bits, order, compression, predictor, fill, real))
    tags: list[tuple[int, int, Sequence[int]]] = [
        (256, 4, [w]),
        (257, 4, [h]),
        (258, 3, [bits] * c),
        (259, 3, [compression]),
        (262, 3, [photometric]),
        (277, 3, [c]),
        (284, 3, [2 if planar else 1]),
        *([(266, 3, [fill])] if fill != 1 else []),
        *([(317, 3, [predictor])] if predictor != 1 else []),
        *([(338, 3, list(extra))] if extra else []),
        *([(339, 3, [3] * c)] if real else []),
        *more,
    ]
    offset = 16 if big else 8
    places = [offset + sum(map(len, parts[:i])) for i in range(len(parts))]
    tags += [(324 if tile else 273, 4, places), (325 if tile else 279, 4, [len(part) for part in parts])]
    tags += [(322, 4, [tile]), (323, 4, [tile])] if tile else [(278, 4, [rows])]
    tags = sorted({tag: (tag, kind, body) for tag, kind, body in tags}.values())
    body = b"".join(parts)
    body += b"\0" * (len(body) % 2)
    at, wide = offset + len(body), 8 if big else 4
    ifd = struct.pack(order + ("Q" if big else "H"), len(tags))
    room = at + len(ifd) + len(tags) * (20 if big else 12) + wide
    after = b""
    for tag, kind, found in tags:
        data = struct.pack(f"{order}{len(found)}{ {1: 'B', 3: 'H', 4: 'L', 7: 'B', 8: 'h'}[kind] }", *found)
        if len(data) > wide:
            data, after = (
                struct.pack(order + ("Q" if big else "L"), room + len(after)),
                after + data + b"\0" * (len(data) % 2),
            )
        ifd += struct.pack(order + ("HHQ" if big else "HHL"), tag, kind, len(found)) + data.ljust(wide, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, at) if big else struct.pack(order + "HL", 42, at))
    return head + body + ifd + b"\0" * wide + after


def _strip(part: np.ndarray, bits: int, order: str, compression: int, predictor: int, fill: int, real: bool) -> bytes:
    h, _, c = part.shape
    if predictor == 3:
        planes = (
            part.astype(f">f{bits // 8}").view(np.uint8).reshape(h, -1, bits // 8).transpose(0, 2, 1).reshape(h, -1)
        )
        data = planes.copy()
        data[:, c:] -= planes[:, :-c]
        raw = data.tobytes()
    elif real:
        raw = part.astype(f"{order}f{bits // 8}").tobytes()
    else:
        rows = part.astype(np.int64)
        if predictor == 2:
            rows = np.concatenate([rows[:, :1], np.diff(rows, axis=1)], 1) % (1 << bits)
        raw = packed(rows.reshape(h, -1), bits, order)
    raw = {1: lambda d: d, 8: zlib.compress, 32946: zlib.compress, 32773: packbits}[compression](raw)
    return raw.translate(bytes(int(f"{i:08b}"[::-1], 2) for i in range(256))) if fill == 2 else raw


def bmp_file(
    rows: np.ndarray,
    bits: int,
    palette: np.ndarray | None = None,
    masks: Sequence[int] = (),
    head: int = 40,
    top_down: bool = False,
    colours: int = 0,
    compression: int | None = None,
    data: bytes | None = None,
) -> bytes:
    """A BMP of (H, W) indices or words, or (H, W, 3) blue, green, red for 24 bits."""
    h, w = rows.shape[:2]
    stored = rows if top_down else rows[::-1]
    if data is None:
        if bits == 24:
            lines = [row.astype(np.uint8).tobytes() for row in stored]
        elif bits >= 16:
            lines = [row.astype(f"<u{bits // 8}").tobytes() for row in stored]
        else:
            lines = [packed(row[None].astype(np.int64), bits) for row in stored]
        data = b"".join(line + b"\0" * (-len(line) % 4) for line in lines)
    entry = 3 if head == 12 else 4
    table = b"" if palette is None else b"".join(bytes([*colour[::-1]]).ljust(entry, b"\0") for colour in palette)
    if head == 12:
        header = struct.pack("<IHHHH", 12, w, h, 1, bits)
    else:
        kind = (3 if masks else 0) if compression is None else compression
        header = struct.pack("<IiiHHIIiiII", head, w, -h if top_down else h, 1, bits, kind, len(data), 0, 0, colours, 0)
        if masks:
            header += struct.pack(f"<{len(masks)}I", *masks)
        header = header.ljust(head, b"\0")
    offset = 14 + len(header) + len(table)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + table + data


def gif_file(
    indices: np.ndarray,
    palette: np.ndarray,
    clear: int | None = None,
    place: tuple[int, int] = (0, 0),
    screen: tuple[int, int] | None = None,
    local: bool = False,
    background: int = 0,
) -> bytes:
    """A GIF of one image (H, W) at `place` (left, top) of a screen (W, H); codes of 9 bits, cleared in time."""
    h, w = indices.shape
    width, height = screen or (w, h)
    table = bytes(int(v) for v in palette.reshape(-1)).ljust(768, b"\0")
    out = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x77 if local else 0xF7, background, 0)
    out += b"" if local else table
    if clear is not None:
        out += b"\x21\xf9\x04" + struct.pack("<BHBB", 1, 0, clear, 0)
    out += b"\x2c" + struct.pack("<HHHHB", *place, w, h, 0x87 if local else 0) + (table if local else b"")
    codes = [
        code for i, value in enumerate(indices.reshape(-1)) for code in ([256] if i % 200 == 0 else []) + [int(value)]
    ]
    total = sum(code << (9 * i) for i, code in enumerate([*codes, 257]))
    body = total.to_bytes((9 * (len(codes) + 1) + 7) // 8, "little")
    blocks = [body[i : i + 255] for i in range(0, len(body), 255)]
    return out + b"\x08" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0\x3b"


def boxes_changed(content: bytes, name: bytes, change: bytes, at: int) -> bytes:
    """An AVIF whose first box `name` has other bytes from its body's byte `at` on."""
    place = content.index(name) + 4 + at
    return content[:place] + change + content[place + len(change) :]
