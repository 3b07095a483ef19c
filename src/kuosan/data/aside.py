"""What lies beside the pixels of a file: EXIF, texts, profiles. Bounded here before Pillow or LittleCMS parse them.

Tags of a TIFF or of EXIF (which is a TIFF) may all point at the same bytes, so that 3,000 tags of a megabyte are one
megabyte of file; texts of a PNG are packed; segments of a JPEG are joined one by one.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from kuosan.data.headers import PNG, Refused, boxes, png_chunks

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
