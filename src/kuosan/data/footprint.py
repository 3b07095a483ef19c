"""How much memory decoding a file will take at its peak, said from its header: `needed(...)`, before a pixel is read.

Bytes a pixel, measured with Pillow 13 (benchmarks/image_bombs.py): Pillow's image takes 1 (grey, palette), 2 (16 bits
of grey) or 4 (everything else), and what the format's own decoder holds comes on top.

    JPEG of several scans   all coefficients, 2 bytes each
    WebP                    16: two canvases, the frame that is handed over, Pillow's image
    AVIF                    the planes, the frame that is handed over, Pillow's image, and 1.5 for the decoder
    TIFF                    its largest strip or tile, and a list entry for each
    PNM of text             the numbers twice
"""

from __future__ import annotations

import math
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from kuosan.data import tiff
from kuosan.data.aside import segments
from kuosan.data.config import DataConfig
from kuosan.data.headers import Refused, avif_properties

MAX_BYTES = DataConfig.max_bytes
WHERE = "kuosan train and doctor:"  # the verbs that have such options; the others read as a run was trained
ENTRY = 600  # bytes that Pillow and kuosan keep of each strip or tile


class Room:
    """Memory that threads share: who needs more than is left waits, unless nobody holds any; first come, first served.

    So one that needs much gets it as soon as those before it are done, however many that need little come after it.
    """

    def __init__(self) -> None:
        self.used, self.changed = 0, threading.Condition()
        self.waiting = deque[object]()

    @contextmanager
    def hold(self, count: int, limit: int) -> Iterator[None]:
        """Hold `count` bytes of `limit` while the body runs."""
        own = object()
        with self.changed:
            self.waiting.append(own)
            try:
                self.changed.wait_for(lambda: self.waiting[0] is own and (self.used == 0 or self.used + count <= limit))
                self.used += count
            finally:
                self.waiting.remove(own)
                self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                self.used -= count
                self.changed.notify_all()


FILES, DECODERS = Room(), Room()  # a thread takes of the first, then of the second, so that none waits for itself


def check_needed(needed: int, max_bytes: int) -> None:
    """Refuse a file whose decoder would hold more than is allowed.

    Raises:
        Refused: it would.
    """
    if needed > max_bytes:
        raise Refused(
            f"too large: decoding takes about {math.ceil(needed / 1e6):,} MB, more than {max_bytes:,} bytes "
            f"(max_bytes): save it smaller or as PNG, or let it in where data are chosen ({WHERE} --max-bytes {needed})"
        )


def needed(image: Image.Image, content: bytes, sheet: tiff.Sheet | None) -> int:
    """Bytes at the peak of decoding a file that Pillow has opened, and not yet loaded."""
    pixels = image.width * image.height
    own = pixels * pixel_bytes(image.mode)
    match image.format:
        case "JPEG" | "MPO":
            return own + _coefficients(content)
        case "WEBP":
            return 16 * pixels + pixels // 8
        case "AVIF":
            return own + _planes(content, pixels, image.mode)
        case "GIF":
            return 3 * own  # the canvas, what is laid back after the frame, and an enlarged screen
        case "TIFF" if sheet is not None:
            return own + _strips(sheet, image.mode)
        case "PPM" if content[1:2] in b"123":
            return own + 3 * pixels * len(image.getbands()) * (1 if image.mode != "I" else 4)
    return own


def needed_here(sheet: tiff.Sheet) -> int:
    """The same of a TIFF that is read without Pillow, a band of a strip or tile at a time."""
    columns = sheet.one(322, 0) if 324 in sheet.tags else sheet.width
    row = columns * (1 if sheet.planar else sheet.samples) * 8 * (sheet.bits[0] if sheet.bits[0] % 8 else 1)
    return 4 * row + ENTRY // 4 * sum(len(sheet.tags.get(tag, ())) for tag in (273, 279, 324, 325))


def pixel_bytes(mode: str) -> int:
    """Bytes of a pixel inside Pillow."""
    return 2 if mode.startswith("I;16") else 1 if mode in ("1", "L", "P") else 4


def webp_size(content: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP's canvas, which is made as the file is opened; None of what is none."""
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP" or len(content) < 30:
        return None
    kind = content[12:16]
    if kind == b"VP8X":
        return (
            int.from_bytes(content[24:27], "little") + 1,
            int.from_bytes(content[27:30], "little") + 1,
        )
    if kind == b"VP8L" and content[20] == 0x2F:
        bits = int.from_bytes(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _coefficients(content: bytes) -> int:
    """What a JPEG's decoder holds beside the image: with several scans every coefficient, or sample, of all of them."""
    frame, parts = b"", 0
    several = False
    for mark, first, end in segments(content):
        if 0xC0 <= mark <= 0xCF and mark not in (0xC4, 0xC8, 0xCC):
            frame, several = content[first:end], several or mark in (0xC2, 0xC6, 0xCA, 0xCE)
            parts = frame[5] if len(frame) > 5 else 0
        elif mark == 0xDA and first < len(content):
            several = several or content[first] < parts
    if not several or len(frame) < 6 + 3 * parts or not parts:
        return 0
    height, width = struct.unpack_from(">HH", frame, 1)
    factors = [(frame[7 + 3 * i] >> 4, frame[7 + 3 * i] & 15) for i in range(parts)]
    across, down = max(h for h, _ in factors) or 1, max(v for _, v in factors) or 1
    blocks = math.ceil(width / (8 * across)) * math.ceil(height / (8 * down)) * sum(h * v for h, v in factors)
    return int(128 * blocks)


def _planes(content: bytes, pixels: int, mode: str) -> int:
    """An AVIF's planes and the frame that is handed over."""
    wide, chroma, configured = 1, 2.0, False
    for name, body in avif_properties(content):
        if name == b"av1C" and len(body) >= 4:
            flags = body[2]
            wide = max(wide, 2 if flags & 0x40 else 1)
            share = 0.0 if flags & 0x10 else 2.0 / ((1 + (flags >> 3 & 1)) * (1 + (flags >> 2 & 1)))
            chroma, configured = (max(chroma, share) if configured else share), True
    alpha = 1 if mode in ("RGBA", "LA") else 0
    channels = {"L": 1, "LA": 2, "RGB": 3}.get(mode, 4)
    return int(pixels * (1.5 + wide * (1 + chroma + alpha) + channels))


def _strips(sheet: tiff.Sheet, mode: str) -> int:
    """A TIFF's largest strip or tile unpacked, and the entries of all of them."""
    tiled = 324 in sheet.tags
    rows = min(sheet.one(323, 0), sheet.height + 4096) if tiled else min(sheet.one(278, sheet.height), sheet.height)
    columns = sheet.one(322, 0) if tiled else sheet.width
    packed = rows * (columns * (1 if sheet.planar else sheet.samples) * max(sheet.bits, default=8) // 8 + 1)
    if sheet.compression in (6, tiff.JPEG):
        packed = rows * columns * 10  # as four bytes a pixel, and its coefficients where it has several scans
    elif sheet.compression == tiff.RAW:
        packed *= 2  # read, and joined to what is left of the part before
    return packed + ENTRY * max(len(sheet.tags.get(tag, ())) for tag in (273, 324))
