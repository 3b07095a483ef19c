"""How much memory decoding a file will take at its peak, said from its header: `needed(...)`, before a pixel is read.

Bytes a pixel, measured with Pillow 13 (benchmarks/image_bombs.py): Pillow's image takes 1 (grey, palette), 2 (16 bits
of grey) or 4 (everything else), and what the format's own decoder holds comes on top.

    JPEG of several scans   all coefficients, 2 bytes each
    WebP                    16: two canvases, the frame that is handed over, Pillow's image
    AVIF                    the planes, the frame that is handed over, Pillow's image, and 1.5 for the decoder
    TIFF                    its largest strip or tile, and a list entry for each
    PNM of text             the numbers twice

What lies beside the pixels of a file: EXIF, texts, profiles. Bounded here before Pillow or LittleCMS parse them.

Tags of a TIFF or of EXIF (which is a TIFF) may all point at the same bytes, so that 3,000 tags of a megabyte are one
megabyte of file; texts of a PNG are packed; segments of a JPEG are joined one by one.
"""

from __future__ import annotations

import io
import math
import re
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from PIL import Image

from kuosan.data import tiff
from kuosan.data.config import DataConfig
from kuosan.data.headers import PNG, Refused, avif_properties, boxes, png_chunks

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


SPARE = 1 << 20  # bytes that tags may promise beyond twice their file
MOST_EXIF = 8 << 20  # bytes of EXIF, of texts unpacked, and (twice that) of a profile: the largest printers' have 8
MOST_CHUNKS = 50_000
MOST_TAGS = 1 << 16  # in all directories of a file
MOST_DIRECTORIES = 64  # that are followed; Pillow follows one of EXIF
POINTERS = (0x8769, 0x8825, 0xA005)  # EXIF, GPS, interoperability
WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
RAW_PROFILE = (b"Raw profile type exif", b"Raw profile type APP1")
XMP = b"XML:com.adobe.xmp"


@dataclass
class Aside:
    """What was found: the EXIF that counts, XMP, and how many bytes a reader holds of everything."""

    exif: bytes | None = None
    xmp: bytes | None = None
    held: int = 0
    blocks: list[bytes] = field(default_factory=list)  # each piece of EXIF


def aside(content: bytes) -> Aside:
    """What lies beside the pixels of a file of any format.

    Raises:
        Refused: it would cost far more memory than it has bytes, or time.
    """
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return Aside(held=check_tags(content, "its"))
    if content[:8] == PNG:
        found = _of_png(content)
    elif content[:2] == b"\xff\xd8":
        found = _of_jpeg(content)
    elif content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        found = _of_webp(content)
    elif content[4:8] == b"ftyp":
        found = _of_avif(content)
    else:
        return Aside()
    counted = count()
    for block in found.blocks:
        if len(block) > MOST_EXIF:
            raise _too_much("EXIF", len(block), MOST_EXIF)
        found.held += len(block) + check_tags(without_mark(block), "its EXIF", counted)
    return found


def without_mark(block: bytes) -> bytes:
    """EXIF without the mark that JPEG puts before it, once or twice as some programs do."""
    for _ in range(2):
        block = block.removeprefix(b"Exif\0\0")
    return block


def check_profile(profile: object) -> None:
    """Refuse a colour profile that no device has.

    Raises:
        Refused: it is larger.
    """
    if isinstance(profile, bytes) and len(profile) > 2 * MOST_EXIF:
        raise _too_much("colour profile", len(profile), 2 * MOST_EXIF)


def check_tags(content: bytes | memoryview, whose: str, counted: Iterator[int] | None = None) -> int:
    """How many bytes the tags of a TIFF, or of EXIF, hold in all, sub-directories included.

    Args:
        counted: 0, 1, 2 ..., a number for each tag of the file that was looked at.

    Raises:
        Refused: they point at more bytes than the file can honestly hold, or are too many.
    """
    counted = count() if counted is None else counted
    if content[:2] not in (b"II", b"MM") or len(content) < 16:
        return 0
    order, big = ("<" if content[:2] == b"II" else ">"), content[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(order + ("Q" if big else "L"), content, 8 if big else 4)
    waiting, seen, total = [int(at)], set[int](), 0
    while waiting and len(seen) < MOST_DIRECTORIES:
        at = waiting.pop()
        if at in seen or at < 8:
            continue
        seen.add(at)
        for tag, size, where in _tags(content, order, big, at):
            if next(counted) >= MOST_TAGS:
                raise Refused(f"too large: more than {MOST_TAGS:,} tags of EXIF or TIFF; save it without metadata")
            if tag in POINTERS:
                waiting.append(where)
            total += size if size <= len(content) else 0  # Pillow passes over a tag larger than the file
            if total > 2 * len(content) + SPARE:
                raise Refused(f"too large: {whose} tags promise {total:,} bytes, the file has {len(content):,}")
    return total


def _tags(content: bytes | memoryview, order: str, big: bool, at: int) -> Iterator[tuple[int, int, int]]:
    """(tag, bytes of its value, where they are or the value itself) of one directory."""
    counter, row, inline = ("Q", "HHQ", "Q") if big else ("H", "HHL", "L")
    head, wide = struct.calcsize(order + counter), struct.calcsize(order + inline)
    size = struct.calcsize(order + row) + wide
    if at + head > len(content):
        return
    (tags,) = struct.unpack_from(order + counter, content, at)
    if tags > MOST_TAGS:
        raise Refused(f"too large: a directory of {tags:,} tags")
    for i in range(min(tags, (len(content) - at - head) // size)):
        tag, kind, length = struct.unpack_from(order + row, content, at + head + i * size)
        (where,) = struct.unpack_from(order + inline, content, at + head + (i + 1) * size - wide)
        yield tag, WIDTHS.get(kind, 1) * length, where


def _of_png(content: bytes) -> Aside:
    """Chunks before and after the pixels: Pillow keeps the last of each kind."""
    found, texts, stream = Aside(), 0, io.BytesIO(content)
    raw: bytes | None = None
    for place, (name, size) in enumerate(png_chunks(stream)):
        if place == MOST_CHUNKS:
            raise Refused(f"damaged: more than {MOST_CHUNKS:,} chunks")
        if name == b"eXIf":
            found.exif = stream.read(size)
            found.blocks.append(found.exif)
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            key, text = _text(name, stream.read(size), MOST_EXIF - texts)
            texts += len(text)
            if texts >= MOST_EXIF:
                raise Refused(f"too large: its texts unpack to more than {MOST_EXIF:,} bytes; save it without metadata")
            if key in RAW_PROFILE:
                raw = _unhexed(text)
                found.blocks += [] if raw is None else [raw]
            elif key == XMP:
                found.xmp = text
    found.exif = raw if found.exif is None else found.exif
    found.held += 4 * texts  # a text with one rare character takes four bytes a character
    return found


def _text(name: bytes, body: bytes, most: int) -> tuple[bytes, bytes]:
    """The key and the text of a chunk, at most so many bytes of it; what is damaged is empty, as it is for Pillow."""
    key, _, rest = body.partition(b"\0")
    packed = name == b"zTXt"
    if packed:
        rest = rest[1:]
    elif name == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not packed:
        return key, rest[:most]
    try:
        return key, zlib.decompressobj().decompress(rest, max(1, most))
    except zlib.error:
        return key, b""


def _unhexed(text: bytes) -> bytes | None:
    """The block that ImageMagick writes as lines of hexadecimal digits after a name and a length."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("latin-1"))
    except ValueError:
        return None


def segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """(mark, first byte, end) of the bodies of a JPEG's segments up to its first scan, that one included."""
    at = 2
    while at + 4 <= len(content):
        if content[at] != 0xFF:
            at = content.find(b"\xff", at)
            if at < 0:
                return
            continue
        mark = content[at + 1]
        if mark in (0xFF, 0x00, 0x01) or 0xD0 <= mark <= 0xD8:
            at += 1 if mark == 0xFF else 2
            continue
        if mark == 0xD9:
            return
        (size,) = struct.unpack_from(">H", content, at + 2)
        yield mark, at + 4, min(at + 2 + size, len(content))
        if mark == 0xDA:
            return
        at += 2 + max(size, 2)


def has_adobe_mark(content: bytes) -> bool:
    """Whether a JPEG has Adobe's APP14 segment, which says how its inks are stored."""
    return any(mark == 0xEE and content[first : first + 5] == b"Adobe" for mark, first, _ in segments(content))


def _of_jpeg(content: bytes) -> Aside:
    found, parts, header, profile = Aside(), list[bytes](), 0, 0
    for mark, first, end in segments(content):
        header = end
        if mark == 0xE1 and content[first : first + 6] == b"Exif\0\0":
            parts.append(content[first + 6 : end])
            if sum(map(len, parts[-1:])) * len(parts) > 4 * MOST_EXIF and sum(map(len, parts)) > MOST_EXIF:
                raise _too_much("EXIF", sum(map(len, parts)), MOST_EXIF)
        elif mark == 0xE2 and content[first : first + 4] == b"MPF\0":
            found.blocks.append(content[first + 4 : end])
        elif mark == 0xE2 and content[first : first + 12] == b"ICC_PROFILE\0":
            profile += end - first
    if profile > 2 * MOST_EXIF:
        raise _too_much("colour profile", profile, 2 * MOST_EXIF)
    found.exif = b"".join(parts) or None
    found.blocks += [] if found.exif is None else [found.exif]
    found.held = header + 3 * profile
    return found


def _of_webp(content: bytes) -> Aside:
    found, at = Aside(), 12
    for _ in range(MOST_CHUNKS):
        if at + 8 > len(content):
            break
        name, size = struct.unpack_from("<4sI", content, at)
        if name == b"EXIF":
            found.blocks.append(content[at + 8 : at + 8 + size])
        elif name == b"ICCP" and size > 2 * MOST_EXIF:
            raise _too_much("colour profile", size, 2 * MOST_EXIF)
        elif name in (b"ICCP", b"XMP "):
            found.held += min(size, len(content))
        at += 8 + size + size % 2
    else:
        raise Refused(f"damaged: more than {MOST_CHUNKS:,} chunks")
    found.held += len(content)  # Pillow reads the rest of the file after its head, which is a copy
    return found


def _of_avif(content: bytes) -> Aside:
    """EXIF is an item wherever the file says, the pixels' own box included; every mark of a TIFF is looked at."""
    found = Aside()
    for name, first, end in boxes(content):
        if name == b"meta" and end - first > MOST_EXIF:
            raise _too_much("table of items", end - first, MOST_EXIF)
    counted = count()
    view = memoryview(content)  # a mark may begin megabytes, which are not to be copied for each
    for place, match in enumerate(re.finditer(rb"II\*\0|MM\0\*", content)):
        if place == MOST_DIRECTORIES:  # chance writes one in two gigabytes; the last one may be the EXIF that counts
            raise Refused(f"damaged: more than {MOST_DIRECTORIES} beginnings of EXIF; save it without metadata")
        check_tags(view[match.start() : match.start() + MOST_EXIF], "its EXIF", counted)
    found.held = len(content)
    return found


def _too_much(what: str, size: int, most: int) -> Refused:
    return Refused(f"too large: its {what} has {size:,} bytes, {most:,} are read; save it without metadata")
