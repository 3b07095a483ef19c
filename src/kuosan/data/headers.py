"""What a header says: refusals that Pillow makes late or not at all, and marks that it passes over."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from typing import IO, BinaryIO

from kuosan.errors import Error
from kuosan.regular import open_regular

PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins


class Refused(Error):
    """A file that is no picture to learn from; `str(refused)` is the reason, without the file's name."""


def is_known(head: bytes) -> bool:
    """Whether a file that begins so (16 bytes are enough) may be an image of a format that is read."""
    if head.startswith((b"\xff\xd8", PNG, b"GIF87a", b"GIF89a", b"BM")):
        return True
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0") or head[4:8] == b"ftyp":
        return True
    return (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or (head[:1] == b"P" and head[1:2] in b"1234567fFy")


def is_packed(head: bytes) -> bool:
    """Whether a file that begins so is of a format that compresses, so that a zip makes it little smaller."""
    return is_known(head) and not head.startswith((b"BM", b"II", b"MM", b"P"))


def read_image(path: str | os.PathLike[str], most: int) -> bytes:
    """The bytes of an image's file; of what does not begin as one, nothing but its beginning is read.

    Raises:
        Refused: it is no image, or larger than `most` bytes, or holes for the most part.
        OSError: it is not there, or cannot be read.
    """
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(16)
            if size and not is_known(head):
                raise Refused("not a picture of a known format")
            if size > most:
                raise Refused(
                    f"too large: {size:,} bytes, more than {most:,} are read of an image's file: scale it down"
                )
            stream.seek(0)
            return read_up_to(stream, size)
    except Refused:
        raise
    except Error as reason:
        raise Refused(f"not read: {reason}") from None


def read_up_to(stream: IO[bytes], size: int) -> bytes:
    """`size` bytes of a stream, or fewer where it ends before."""
    parts, left = [], size
    while left and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(name, bytes of the body) of a PNG's chunks up to IEND, that one included; the stream stands at the body.

    A file that is cut short ends earlier.
    """
    at = len(PNG)
    while True:
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:
            return
        size, name = struct.unpack(">I4s", head)
        yield name, size
        if name == b"IEND":
            return
        at += 12 + size


def before_pixels(content: bytes) -> dict[bytes, bytes]:
    """The first chunk of each name before the pixels of a PNG, by name."""
    found: dict[bytes, bytes] = {}
    stream = io.BytesIO(content)
    for name, size in png_chunks(stream):
        if name == b"IDAT":
            break
        found.setdefault(name, stream.read(size))
    return found


def gif_uncovered(content: bytes) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) of a GIF's first image where it does not cover the screen; None where it does."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    while at < len(content):
        if content[at] == 0x2C:
            left, top, wide, high = struct.unpack_from("<HHHH", content, at + 1)
            covers = left == top == 0 and wide >= width and high >= height
            return None if covers else (left, top, left + wide, top + high)
        if content[at] != 0x21:
            return None
        at += 2
        while at < len(content) and content[at]:
            at += 1 + content[at]
        at += 1
    return None


def boxes(content: bytes, first: int = 0, last: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(name, first byte, end) of the bodies of an ISO base media file's boxes (ISO/IEC 14496-12, 4.2)."""
    at, last = first, len(content) if last is None else last
    while at + 8 <= last:
        size, name = struct.unpack_from(">I4s", content, at)
        head = 8
        if size == 1 and at + 16 <= last:
            (size,), head = struct.unpack_from(">Q", content, at + 8), 16
        size = last - at if size == 0 else size
        if size < head or at + size > last:
            return
        yield name, at + head, at + size
        at += size


def avif_properties(content: bytes) -> list[tuple[bytes, bytes]]:
    """(name, body) of the item properties of an AVIF (ISO/IEC 23008-12, 9.3): colour, turns, cuts."""
    found = []
    for name, at, end in boxes(content):
        if name != b"meta":
            continue
        for inner, start, stop in boxes(content, at + 4, end):
            if inner != b"iprp":
                continue
            for container, low, high in boxes(content, start, stop):
                if container == b"ipco":
                    found += [(kind, content[a:b]) for kind, a, b in boxes(content, low, high)]
    return found
