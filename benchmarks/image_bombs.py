"""Image files that would take gigabytes or minutes, each decoded in a process of its own: what it costs, and the rule.

    python benchmarks/image_bombs.py [--every 6] [--only tiff]

The rule: refused by name within 100 ms of processor time and 64 MB, or decoded within the peak of Pillow's own decoder
of the same file (measured beside it) and 1 byte a sample and 64 MB. Peak memory is the kernel's (VmHWM, reset in each
process). Files are made here from the formats' specifications, nearly all of zeros.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import os
import pickle
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kuosan.data.config import DataConfig
from kuosan.data.decoding import decode
from kuosan.data.doctor import examine
from kuosan.errors import Error

SPARE = 64.0  # MB beside the decoder's peak and a byte a sample
SECONDS = 0.1  # of processor time for a refusal, on a quiet machine
FILE = "bomb.png"


@dataclass(frozen=True)
class Bomb:
    """One hostile file: its bytes, or a path below a folder that is opened as a data set."""

    name: str
    make: Callable[[], bytes] | Callable[[Path], None]
    samples: int = 0  # width * height * channels, as stored or as shown, whichever are more
    in_folder: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one cost: MB above the start and seconds of processor time."""

    name: str
    size: int  # bytes of the file
    decoder: float  # MB that Pillow takes alone
    megabytes: float
    seconds: float
    allowed: float
    said: str  # the refusal, or empty

    def fine(self, slack: float = 1.0) -> bool:
        """Whether it keeps the rule; a busy machine's seconds may be `slack` times as many."""
        if self.said:
            return self.megabytes <= SPARE and self.seconds <= slack * SECONDS
        return self.megabytes <= self.allowed


# The formats, of zeros


def zeros(count: int, level: int = 1) -> bytes:
    """So many zeros, packed by deflate."""
    pack, block, parts = zlib.compressobj(level), bytes(1 << 20), []
    for first in range(0, count, 1 << 20):
        parts.append(pack.compress(block[: count - first]))
    return b"".join([*parts, pack.flush()])


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(w: int, h: int, depth: int, kind: int, before: bytes = b"", claim: bool = False, interlaced: int = 0) -> bytes:
    """A PNG of zeros; `claim`: one that says so and has next to nothing."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    lines = [(w, h)]
    if interlaced:
        steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        lines = [(-(-(w - x) // across), -(-(h - y) // down)) for x, y, across, down in steps]
    count = sum(high * ((wide * bits + 7) // 8 + 1) for wide, high in lines if wide)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, interlaced))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if kind == 3 else b""
    body = chunk(b"IDAT", zeros(100 if claim else count))
    return b"\x89PNG\r\n\x1a\n" + head + before + palette + body + chunk(b"IEND", b"")


def tags_of(count: int, size: int, big: bool = False) -> bytes:
    """A TIFF of tags that all point at the same bytes."""
    if big:
        rows = b"".join(struct.pack("<HHQQ", 40000 + i, 7, size, 16) for i in range(count))
        return struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, count) + rows + bytes(8 + size)
    rows = b"".join(struct.pack("<HHLL", 1000 + i, 7, size, 8) for i in range(count))
    return struct.pack("<2sHLH", b"II", 42, 8, count) + rows + bytes(4 + size)


def loop_of(count: int, size: int) -> bytes:
    """EXIF whose second directory holds the tags and points back at itself."""
    rows = b"".join(struct.pack("<HHLL", 1000 + i, 7, size, 8) for i in range(count))
    rows += struct.pack("<HHLL", 0x8769, 4, 1, 26)
    first = struct.pack("<2sHLH", b"II", 42, 8, 1) + struct.pack("<HHLLL", 0x8769, 4, 1, 26, 8)
    return first + struct.pack("<H", count + 1) + rows + bytes(4 + size)


def pillow(mode: str, w: int, h: int, kind: str, **more: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (w, h)).save(file, kind, **more)
    return file.getvalue()


def segment(mark: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, mark, len(body) + 2) + body


def jpeg(*parts: bytes) -> bytes:
    """A small JPEG with segments before its frame."""
    small = pillow("RGB", 16, 16, "JPEG")
    return small[:2] + b"".join(parts) + small[2:]


def claimed_jpeg(w: int, h: int, **more: object) -> bytes:
    """A small JPEG whose frame says that it is large."""
    small = bytearray(pillow("RGB", 16, 16, "JPEG", **more))
    at = small.index(b"\xff\xc2" if more.get("progressive") else b"\xff\xc0")
    struct.pack_into(">HH", small, at + 5, h, w)
    return bytes(small)


def webp(*chunks: tuple[bytes, bytes], w: int = 8, h: int = 8, flags: int = 0) -> bytes:
    """An extended WebP with chunks before a small image."""
    inner = pillow("RGB", 8, 8, "WEBP", lossless=True)[12:]
    canvas = struct.pack("<II", flags, w - 1)[:7] + (h - 1).to_bytes(3, "little")
    body = b"".join(
        name + struct.pack("<I", len(part)) + part + b"\0" * (len(part) % 2)
        for name, part in ((b"VP8X", canvas), *chunks)
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body) + len(inner)) + b"WEBP" + body + inner


def tiff(
    w: int,
    h: int,
    bits: int,
    samples: int,
    zero: int,
    rows: int,
    data: bytes = b"",
    compression: int = 8,
    **tags: object,
) -> bytes:
    """A TIFF of deflated zeros; strips share their bytes. `tags` are t_NUMBER = list of numbers."""
    strips = -(-h // rows)
    planes = samples if tags.get("t284") == [2] else 1
    line = (w * bits * (1 if planes > 1 else samples) + 7) // 8
    body = data or zeros(line * rows)
    found: dict[int, list[int]] = {
        256: [w], 257: [h], 258: [bits] * samples, 259: [compression], 262: [zero], 277: [samples], 278: [rows],
        273: [8] * (strips * planes), 279: [len(body)] * (strips * planes),
    }  # fmt: skip
    found |= {int(name[1:]): value for name, value in tags.items()}  # type: ignore[misc]
    at = 8 + len(body)
    after, rest = at + 6 + 12 * len(found), b""
    ifd = struct.pack("<H", len(found))
    for tag in sorted(found):
        packed = struct.pack(f"<{len(found[tag])}L", *found[tag])
        if len(packed) > 4:
            packed, rest = struct.pack("<L", after + len(rest)), rest + packed
        ifd += struct.pack("<HHL", tag, 4, len(found[tag])) + packed
    return struct.pack("<2sHL", b"II", 42, at) + body + ifd + bytes(4) + rest


def chained(count: int) -> bytes:
    """A TIFF followed by so many directories."""
    first = bytearray(pillow("L", 4, 4, "TIFF"))
    (at,) = struct.unpack_from("<L", first, 4)
    (tags,) = struct.unpack_from("<H", first, at)
    struct.pack_into("<L", first, at + 2 + 12 * tags, len(first))
    start = len(first)
    links = (
        struct.pack("<HHHLLL", 1, 256, 4, 1, 4, start + 18 * (i + 1) if i + 1 < count else 0) for i in range(count)
    )
    return bytes(first) + b"".join(links)


def gif(w: int, h: int, wide: int, high: int, before: bytes = b"") -> bytes:
    """A GIF of a screen (w, h) and one frame of a pixel that claims (wide, high)."""
    screen = b"GIF89a" + struct.pack("<HHBBB", w, h, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    frame = struct.pack("<BHHHHB", 0x2C, 0, 0, wide, high, 0)
    if (wide, high) == (1, 1):
        return screen + before + frame + b"\x02\x02\x44\x01\x00\x3b"
    return screen + before + frame + pillow("L", 1, 1, "GIF").split(b"\x2c", 1)[1][9:]


def bmp(w: int, h: int, bits: int, compression: int, data: bytes, colours: int = 2) -> bytes:
    palette = b"\0\0\0\0\xff\0\0\0" if bits <= 8 else b""
    head = struct.pack("<IiiHHIIiiII", 40, w, h, 1, bits, compression, len(data), 0, 0, colours if palette else 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(data), 0, 0, 54 + len(palette)) + head + palette + data


# Data sets


def packed(method: int, size: int, head: bytes = b"") -> Callable[[Path], None]:
    """A zip with a member of zeros."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / "bombs.zip", "w", method) as file:
            file.writestr("ok.png", png(16, 16, 8, 2))
            with file.open(FILE, "w", force_zip64=True) as member:
                member.write(head)
                for _ in range(size >> 20):
                    member.write(bytes(1 << 20))

    return make


def patched(method: int, change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    """A zip whose bytes are changed after it is written."""

    def make(folder: Path) -> None:
        packed(method, 64 << 20, png(16, 16, 8, 2))(folder)
        content = bytearray((folder / "bombs.zip").read_bytes())
        change(content)
        (folder / "bombs.zip").write_bytes(content)

    return make


def small_claim(content: bytearray) -> None:
    """The directory says 1,000 bytes of what unpacks to 64 MB."""
    at = content.rindex(b"PK\x01\x02")
    struct.pack_into("<L", content, at + 24, 1000)


def large_dictionary(content: bytearray) -> None:
    at = content.index(FILE.encode()) + len(FILE)
    at = content.index(b"\x05\x00\x5d", at)
    struct.pack_into("<L", content, at + 3, (1 << 32) - 1)


def holes(head: bytes, size: int, name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "files").mkdir()
        (folder / "files" / "ok.png").write_bytes(png(16, 16, 8, 2))
        with (folder / "files" / name).open("wb") as file:
            file.write(head)
            file.truncate(size)

    return make


def npz(method: int, shape: tuple[int, ...], stored: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(folder / "bombs.npz", "w", method) as file, file.open("x.npy", "w") as member:
            member.write(head.getvalue())
            for first in range(0, stored, 1 << 20):
                member.write(bytes(min(1 << 20, stored - first)))

    return make


def bombs() -> Iterator[Bomb]:
    """All of them."""
    side, most = 8000, 64_000_000
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    turned = chunk(b"eXIf", struct.pack("<2sHLHHHLLL", b"II", 42, 8, 1, 0x112, 3, 1, 6, 0))
    kinds = {"grey": (0, 1), "RGB": (2, 3), "palette": (3, 1), "grey and alpha": (4, 2), "RGBA": (6, 4)}
    for name, (kind, channels) in kinds.items():
        for depth in (8,) if kind == 3 else (8, 16):
            what = f"png {name} {depth} bits"
            shown = 3 if name == "palette" or (kind, depth) == (4, 16) else channels  # Pillow makes these RGBA
            yield Bomb(f"{what} 64 MP", lambda d=depth, k=kind: png(side, side, d, k), shown * most)
            yield Bomb(f"{what} claims 60000 x 60000", lambda d=depth, k=kind: png(60000, 60000, d, k, claim=True))
    for name, before, depth, kind, channels in (
        ("RGB 16 bits with gamma", gamma, 16, 2, 3),
        ("RGBA 16 bits with gamma", gamma, 16, 6, 4),
        ("RGBA turned", turned, 8, 6, 4),
        ("RGB with a clear colour", chunk(b"tRNS", bytes(6)), 8, 2, 3),
        ("palette with clear colours", b"", 8, 3, 3),
        ("RGB with gamma, turned", gamma + turned, 8, 2, 3),
    ):
        yield Bomb(f"png {name}", lambda b=before, d=depth, k=kind: png(5000, 5000, d, k, b), channels * 25_000_000)
    yield Bomb("png of one row", lambda: png(20_000_000, 1, 8, 6), 80_000_000)
    yield Bomb("png of one column", lambda: png(1, 4_000_000, 8, 6), 16_000_000)
    yield Bomb("png of one column, 16 bits, gamma", lambda: png(1, 4_000_000, 16, 2, gamma), 12_000_000)
    yield Bomb("png interlaced", lambda: png(4000, 4000, 8, 6, interlaced=1), 64_000_000)
    yield Bomb("png of 1 bit", lambda: png(side, side, 1, 0), most)
    exif = tags_of(3000, 1_000_000)
    hexed = b"\nexif\n%d\n" % len(exif) + exif.hex().encode()
    loop = loop_of(3000, 1_000_000)
    zipped = zeros(200 << 20)
    for name, before in (
        ("3,000 EXIF tags", chunk(b"eXIf", exif)),
        ("EXIF in a loop of directories", chunk(b"eXIf", loop)),
        ("EXIF in a text", chunk(b"tEXt", b"Raw profile type exif\0" + hexed)),
        ("EXIF in a packed text", chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexed))),
        ("EXIF of 9 MB", chunk(b"eXIf", b"II*\0\x08\0\0\0" + bytes(9 << 20))),
        ("a zTXt bomb", chunk(b"zTXt", b"Comment\0\0" + zipped)),
        ("an iTXt bomb", chunk(b"iTXt", b"Comment\0\1\0\0\0" + zipped)),
        ("an iCCP bomb", chunk(b"iCCP", b"profile\0\0" + zipped)),
        ("60 texts of a megabyte", chunk(b"zTXt", b"Comment\0\0" + zeros(1_000_000)) * 60),
        ("60 rare texts", chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress("\U0001f600".encode() + b"a" * 900_000)) * 60),
        ("a text of 20 MB", chunk(b"tEXt", b"Comment\0" + b"a" * (20 << 20))),
        ("200,000 chunks", chunk(b"prIv", b"") * 200_000),
    ):
        yield Bomb(f"png with {name}", lambda b=before: png(4, 4, 8, 2, b))
    for name, mode, more in (
        ("grey", "L", {}), ("RGB", "RGB", {}), ("inks", "CMYK", {}), ("progressive", "RGB", {"progressive": True}),
        ("progressive 4:4:4", "RGB", {"progressive": True, "subsampling": 0}),
    ):  # fmt: skip
        samples = 36_000_000 * len(mode)
        yield Bomb(f"jpeg {name} 36 MP", lambda m=mode, o=more: pillow(m, 6000, 6000, "JPEG", **o), samples)
    for w, h in ((60000, 60000), (8000, 8000), (65535, 900)):
        yield Bomb(f"jpeg claims {w} x {h}", lambda w=w, h=h: claimed_jpeg(w, h), w * h * 3)
        yield Bomb(
            f"jpeg progressive claims {w} x {h}",
            lambda w=w, h=h: claimed_jpeg(w, h, progressive=True, subsampling=0),
            w * h * 3,
        )
    short = tags_of(3000, 20_000)
    for name, parts in (
        ("EXIF tags", [segment(0xE1, b"Exif\0\0" + short)]),
        ("EXIF in 16 parts", [segment(0xE1, b"Exif\0\0" + exif[i : i + 65000]) for i in range(0, len(exif), 65000)]),
        ("12 MB of EXIF", [segment(0xE1, b"Exif\0\0" + bytes(65000))] * 190),
        ("a profile of 20 MB", [segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(65000))] * 320),
        ("an MPF bomb", [segment(0xE2, b"MPF\0" + short)]),
        ("30 MB of comments", [segment(0xFE, bytes(65000))] * 480),
    ):
        yield Bomb(f"jpeg with {name}", lambda p=parts: jpeg(*p))
    yield Bomb("webp lossless 12 MP", lambda: pillow("RGBA", 4000, 3000, "WEBP", lossless=True, method=0), 48_000_000)
    yield Bomb("webp lossy 12 MP", lambda: pillow("RGB", 4000, 3000, "WEBP", method=0), 36_000_000)
    yield Bomb("webp with EXIF tags", lambda: webp((b"EXIF", exif), flags=8))
    yield Bomb("webp with a profile of 20 MB", lambda: webp((b"ICCP", bytes(20 << 20)), flags=32))
    for w, h in ((16384, 16384), (8000, 6000), (1 << 24, 256)):
        yield Bomb(f"webp claims {w} x {h}", lambda w=w, h=h: webp(w=w, h=h))
    yield Bomb("webp animation claims 8000 x 8000", lambda: webp((b"ANIM", bytes(6)), w=8000, h=8000, flags=2))
    yield Bomb("avif 9 MP", lambda: pillow("RGB", 3000, 3000, "AVIF", speed=10), 27_000_000)
    yield Bomb("avif with alpha", lambda: pillow("RGBA", 3000, 3000, "AVIF", speed=10), 36_000_000)
    yield Bomb("avif with EXIF tags", lambda: pillow("RGB", 16, 16, "AVIF", speed=10, exif=exif))
    yield Bomb("gif of 64 MP, a frame of one pixel", lambda: gif(side, side, 1, 1), 3 * most)
    yield Bomb("gif claims 65535 x 65535", lambda: gif(65535, 65535, 1, 1))
    yield Bomb("gif whose frame is larger than its screen", lambda: gif(1, 1, 60000, 60000))
    comments = b"\x21\xfe" + (b"\xff" + bytes(255)) * 80_000 + b"\0"
    yield Bomb("gif with 20 MB of comments", lambda: gif(4, 4, 1, 1, comments))
    yield Bomb("bmp of runs, 64 MP", lambda: bmp(side, side, 8, 1, b"\0\1"), 3 * most)
    yield Bomb("bmp of short runs, 64 MP", lambda: bmp(side, side, 4, 2, b"\0\1"), 3 * most)
    yield Bomb("bmp of 24 bits", lambda: bmp(4000, 4000, 24, 0, bytes(48_000_000)), 48_000_000)
    yield Bomb("bmp of 1 bit", lambda: bmp(side, side, 1, 0, bytes(8_000_000)), 3 * most)
    yield Bomb("bmp claims 60000 x 60000", lambda: bmp(60000, 60000, 8, 1, b"\0\1"))
    yield Bomb("bmp of a column", lambda: bmp(1, 4_000_000, 8, 0, bytes(16_000_000)), 4_000_000)
    for name, bits, channels, zero, more in (
        ("grey 16 bits", 16, 1, 1, {}), ("white is 0", 16, 1, 0, {}), ("12 bits", 12, 1, 1, {}), ("RGB", 8, 3, 2, {}),
        ("RGB of 16 bits in planes", 16, 3, 2, {"t284": [2]}), ("RGBA of 16 bits", 16, 4, 2, {"t338": [2]}),
        ("floats", 32, 1, 1, {"t339": [3]}), ("RGB of floats", 32, 3, 2, {"t339": [3, 3, 3]}), ("inks", 8, 4, 5, {}),
        ("YCbCr", 8, 3, 6, {"t530": [1, 1]}), ("multiplied alpha", 16, 4, 2, {"t338": [1]}),
    ):  # fmt: skip
        for rows in (16, 3000):
            yield Bomb(
                f"tiff {name}, strips of {rows}",
                lambda b=bits, c=channels, z=zero, m=more, r=rows: tiff(3000, 3000, b, c, z, r, **m),
                9_000_000 * channels,
            )
    yield Bomb("tiff 64 MP in one strip", lambda: tiff(side, side, 8, 3, 2, side), 3 * most)
    yield Bomb("tiff 64 MP of 16 bits in planes", lambda: tiff(side, side, 16, 3, 2, 64, t284=[2]), 3 * most)
    yield Bomb("tiff of LZW, 64 MP", lambda: pillow("RGB", side, side, "TIFF", compression="tiff_lzw"), 3 * most)
    yield Bomb("tiff of JPEG", lambda: pillow("RGB", 4000, 4000, "TIFF", compression="jpeg"), 48_000_000)
    yield Bomb("tiff of a million strips", lambda: tiff(1, 1_000_000, 8, 1, 1, 1, compression=1, data=b"\0"), 1_000_000)
    yield Bomb("tiff of 16 bits, a million strips", lambda: tiff(1, 1_000_000, 16, 1, 0, 1), 1_000_000)
    yield Bomb("tiff of a depth a byte", lambda: tiff(4, 4, 8, 1, 1, 4, t258=[8] * 900_000), 16)
    yield Bomb("tiff of 4,000 tags", lambda: tags_of(4000, 1_000_000))
    yield Bomb("big tiff of 4,000 tags", lambda: tags_of(4000, 1_000_000, big=True))
    yield Bomb("tiff of 60,000 directories", lambda: chained(60_000), 16)
    yield Bomb(
        "tiff of a tile of 60000 x 60000", lambda: tiff(64, 64, 8, 3, 2, 64, t322=[60000], t323=[60000], t324=[8])
    )
    yield Bomb("ppm of 12 MP", lambda: b"P6 4000 3000 255\n" + bytes(36_000_000), 36_000_000)
    yield Bomb("ppm of text", lambda: b"P3 1000 1000 255\n" + b"0 " * 3_000_000, 3_000_000)
    yield Bomb("pbm of 64 MP", lambda: b"P4 8000 8000\n" + bytes(8_000_000), most)
    yield Bomb("ppm claims 60000 x 60000", lambda: b"P6 60000 60000 255\n" + bytes(100))
    yield Bomb("ppm of text claims 8000 x 8000", lambda: b"P3 8000 8000 255\n" + b"0 " * 100, 3 * most)
    yield Bomb("pfm of 9 MP", lambda: b"Pf\n3000 3000\n-1.0\n" + bytes(36_000_000), 9_000_000)
    head = png(16, 16, 8, 2)
    for name, method in (("LZMA", zipfile.ZIP_LZMA), ("bzip2", zipfile.ZIP_BZIP2), ("deflate", zipfile.ZIP_DEFLATED)):
        yield Bomb(f"zip of {name}, 100 MB of no image", packed(method, 100 << 20), in_folder=True)
        yield Bomb(f"zip of {name}, 300 MB that begin as a PNG", packed(method, 300 << 20, head), in_folder=True)
        yield Bomb(f"zip of {name} that says it is small", patched(method, small_claim), in_folder=True)
    yield Bomb("zip of LZMA with a dictionary of 4 GB", patched(zipfile.ZIP_LZMA, large_dictionary), in_folder=True)
    for name, begins in (
        ("an MP4", b"\0\0\0\x18moov"),
        ("a PNG", head),
        ("a TIFF", b"II*\0"),
        ("an AVIF", b"\0\0\0\x18ftypavif"),
    ):
        yield Bomb(f"500 MB of holes that begin as {name}", holes(begins, 500 << 20, "film.mp4"), in_folder=True)
    yield Bomb("npz of LZMA", npz(zipfile.ZIP_LZMA, (1000, 512, 512), 1000 << 18), in_folder=True)
    yield Bomb("npz that says more than it has", npz(zipfile.ZIP_DEFLATED, (1 << 40, 32, 32), 1 << 20), in_folder=True)


# Measuring


def status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise AssertionError(name)


def apart(work: Callable[[], object]) -> tuple[float, float, object]:
    """(MB at the peak above the start, seconds of processor time, what came back) of work in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            warnings.simplefilter("ignore")
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before, started = status("VmRSS"), time.process_time()
            try:
                found = work()
            except Error as reason:
                found = reason
            done = status("VmHWM") - before, time.process_time() - started
            answer = f"{type(found).__name__}: {found}" if isinstance(found, Error) else found
            with os.fdopen(write, "wb") as file:
                file.write(pickle.dumps((*done, answer)))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    result: tuple[float, float, object] = pickle.loads(content)
    return result


def _by_pillow(content: bytes) -> None:
    warnings.simplefilter("ignore")
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception:
        return


def measured(bomb: Bomb, folder: Path) -> Outcome:
    """What a bomb costs."""
    if bomb.in_folder:
        apart(lambda: bomb.make(folder))  # type: ignore[call-arg]
        (path,) = folder.iterdir()

        def look() -> str:
            report = examine(DataConfig(path=str(path), workers=0, size=16))
            reasons = [f"{name}: {reason}" for name, reason in report.scan.refused]
            return "; ".join(reasons)

        megabytes, seconds, said = apart(look)
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        return Outcome(bomb.name, size, 0, megabytes, seconds, SPARE, str(said))
    place = folder / "bomb"
    apart(lambda: place.write_bytes(bomb.make()) and None)  # type: ignore[call-arg, arg-type]
    content = place.read_bytes()
    decoder, _, _ = apart(lambda: _by_pillow(content))
    megabytes, seconds, said = apart(lambda: len(decode(content).pixels) and None)
    allowed = decoder + bomb.samples / 2**20 + SPARE
    return Outcome(bomb.name, len(content), decoder, megabytes, seconds, allowed, str(said or ""))


def run(chosen: list[Bomb]) -> Iterator[Outcome]:
    """Each of them in turn."""
    Image.MAX_IMAGE_PIXELS = 50_000_000  # Pillow alone refuses twice that: its decoder is measured up to there
    for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM"):  # what is loaded once is not a bomb's
        decode(pillow("RGB", 4, 4, kind))
    with tempfile.TemporaryDirectory() as name:
        holes(b"", 0, "empty.png")(Path(name))
        examine(DataConfig(path=str(Path(name) / "files"), workers=0, size=16))
    for bomb in chosen:
        with tempfile.TemporaryDirectory() as name:
            yield measured(bomb, Path(name))


def main() -> None:
    """Measure, print, and exit 1 where the rule is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only each so manieth")
    parser.add_argument("--only", default="", help="only names that begin so; several with commas")
    parser.add_argument("--slack", type=float, default=1.0, help="seconds may be so many times the rule's")
    options = parser.parse_args()
    chosen = [bomb for bomb in bombs() if bomb.name.startswith(tuple(options.only.split(",")))][:: options.every]
    outcomes = []
    print("| file | kB | Pillow, MB | kuosan, MB | allowed | s | |\n|---|---|---|---|---|---|---|")
    for found in run(chosen):
        outcomes.append(found)
        mark = "" if found.fine(options.slack) else "VIOLATION "
        allowed = SPARE if found.said else found.allowed
        print(
            f"| {found.name} | {found.size / 1e3:,.0f} | {found.decoder:.0f} | {found.megabytes:.0f} | {allowed:.0f} | "
            f"{found.seconds:.2f} | {mark}{found.said[:80] or 'decoded'} |",
            flush=True,
        )
    refused, bad = sum(bool(found.said) for found in outcomes), sum(not found.fine(options.slack) for found in outcomes)
    print(f"\n{len(outcomes)} files: {refused} refused, {len(outcomes) - refused} decoded, {bad} violations.")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
