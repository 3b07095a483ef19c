"""Members of a zip unpacked as a stream, never further than asked, whatever they are packed with.

Python's zipfile unpacks bzip2 and LZMA 4 kB of file at a time, and these may be a gigabyte: here a limit goes with
every call, and LZMA gets no larger a dictionary than its member has bytes.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zipfile
import zlib
from pathlib import Path

from kuosan.data.headers import Refused, read_up_to

PIECE = 1 << 16  # packed bytes that are read at once
MOST_DICTIONARY = 1 << 26
SETTINGS = 9  # bytes before what is packed by LZMA (APPNOTE 5.8.8)
LOCAL = 30  # bytes of a member's own header before its name (APPNOTE 4.3.7)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
PACK_AGAIN = "pack the zip again with deflate, which every program offers, or unpack it into a folder"


def read_member(path: Path, opened: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """At most `limit` bytes of a member; its checksum is compared where that is all of it.

    Raises:
        Refused: it is packed in a way that is not read, or needs too large a dictionary.
        zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error, lzma.LZMAError: it is damaged, or encrypted.
    """
    if info.compress_type not in METHODS:
        raise Refused(f"packed by method {info.compress_type}, which is not read: {PACK_AGAIN}")
    if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with opened.open(info) as member:
            return read_up_to(member, min(limit, info.file_size))
    wanted = min(limit, info.file_size)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        head = file.read(LOCAL)
        if len(head) < LOCAL or head[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile(f"no member begins where {info.filename!r} should")
        file.seek(sum(struct.unpack_from("<HH", head, 26)), 1)
        left = info.compress_size
        decoder: lzma.LZMADecompressor | bz2.BZ2Decompressor
        if info.compress_type == zipfile.ZIP_LZMA:
            decoder = _lzma(file.read(SETTINGS), info.file_size)
            left -= SETTINGS
        else:
            decoder = bz2.BZ2Decompressor()
        found, packed = bytearray(), b""
        while len(found) < wanted and not decoder.eof:
            if decoder.needs_input:
                packed = file.read(min(PIECE, left))
                left -= len(packed)
                if not packed:
                    raise EOFError("the member is cut short")
            found += decoder.decompress(packed, min(1 << 20, wanted - len(found)))
            packed = b""
    if len(found) < wanted:
        raise EOFError("the member is shorter than it says")
    if wanted == info.file_size and zlib.crc32(found) != info.CRC:
        raise zipfile.BadZipFile(f"bad checksum of {info.filename!r}")
    return bytes(found)


def _lzma(head: bytes, size: int) -> lzma.LZMADecompressor:
    """What unpacks a member of `size` bytes that begins with `head`, its settings."""
    if len(head) < SETTINGS or struct.unpack_from("<H", head, 2)[0] != 5:
        raise zipfile.BadZipFile("LZMA without its settings")
    dictionary = min(struct.unpack_from("<I", head, 5)[0], max(size, 4096))
    if dictionary > MOST_DICTIONARY:
        raise Refused(f"packed by LZMA with a dictionary of {dictionary:,} bytes, which memory must hold: {PACK_AGAIN}")
    packing, rest = head[4] % 9, head[4] // 9
    if rest > 4 * 5 + 4:
        raise zipfile.BadZipFile("LZMA without its settings")
    settings = {"id": lzma.FILTER_LZMA1, "dict_size": max(dictionary, 4096)}
    settings |= {"lc": packing, "lp": rest % 5, "pb": rest // 5}
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[settings])
