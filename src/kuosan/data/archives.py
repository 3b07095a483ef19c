"""Zips and tars of images: their members by clean names, read in place and never unpacked.

Members of a zip unpacked as a stream, never further than asked, whatever they are packed with.

Python's zipfile unpacks bzip2 and LZMA 4 kB of file at a time, and these may be a gigabyte: here a limit goes with
every call, and LZMA gets no larger a dictionary than its member has bytes.
"""

from __future__ import annotations

import bz2
import lzma
import posixpath
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

from kuosan.data.headers import Refused, is_known, is_packed, read_up_to
from kuosan.data.walk import Skipped, Stamps, hidden
from kuosan.errors import Error

UTF_8_NAME = 0x800  # flag of a zip's member
UNICODE_PATH = 0x7075  # Info-ZIP's extra field: a version, the CRC of the name, the name in UTF-8
PACKED_TAR = re.compile(r".*\.(tar\.(gz|bz2|xz|zst|lz4?|z)|tgz|tbz2?|txz)", re.IGNORECASE)
AGAIN, LARGE = 100, 1 << 24  # how much smaller a zip makes a compressed image at most, and from which size on
BLOCK = 512  # bytes of a tar's header
OUTSIDE = "a name that leads out of the {}"


def member_name(name: str) -> str | None:
    """A member's name with / between folders and without `./`, as unzip reads it; None where it leads out."""
    name = name.replace("\\", "/")
    if name.startswith("/") or re.match("[A-Za-z]:", name) or ".." in name.split("/"):
        return None
    return posixpath.normpath(name)


class Zip:
    """A zip's members."""

    kind = "zip"

    def __init__(self, path: Path, most: int, version: int) -> None:
        self.path, self.most, self.version = path, most, version
        self.members: dict[str, zipfile.ZipInfo] = {}
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as reason:
            raise Error(f"{path} is no readable zip ({reason}): unpack it, or make it again.") from None

    def files(self) -> tuple[Stamps, Skipped]:
        """Every member with its size and checksum; a member packed twice under one name counts once, the last."""
        stamps: Stamps = {}
        skipped: Skipped = []
        for info in self.zip.infolist():
            raw = info.filename if self.version == 1 else _unicode_name(info)
            name = posixpath.normpath(raw) if self.version == 1 else member_name(raw)
            if info.is_dir() or (self.version > 1 and raw.endswith("\\") and not info.file_size):
                continue
            if self.version == 1 and hidden(str(name), 1):
                skipped.append((str(name), "hidden"))
            elif name is None or (self.version == 1 and (name != raw or name.startswith(("/", "..")))):
                skipped.append((raw, OUTSIDE.format(self.kind)))
            elif hidden(name, self.version):
                skipped.append((name, "hidden"))
            elif info.flag_bits & 1:
                skipped.append((name, "encrypted"))
            elif info.file_size > self.most:
                skipped.append((name, f"too large: {info.file_size:,} bytes unpacked"))
            else:
                before = self.members.get(name)
                if before is not None and before.filename != info.filename:
                    skipped.append((before.filename, f"packed twice: {info.filename} is the same name"))
                self.members[name] = info
                stamps[name] = (info.file_size, info.CRC)
        return stamps, skipped

    def read(self, name: str, limit: int) -> bytes:
        """A member's first bytes.

        Raises:
            Refused: it is damaged, or cannot be unpacked.
        """
        try:
            return read_member(self.path, self.zip, self.members[name], limit)
        except zipfile.BadZipFile as reason:
            raise Refused(f"damaged in the zip: {reason}") from None
        except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zlib.error, lzma.LZMAError) as reason:
            raise Refused(f"unreadable in the zip: {reason}") from None

    def image(self, name: str) -> bytes:
        """An image's bytes; of what does not begin as one, only the beginning is unpacked.

        Raises:
            Refused: as `read`; or it is no image, or unpacks to more than an image does.
        """
        info, head = self.members[name], self.read(name, 16)
        if info.file_size and not is_known(head):
            raise Refused("not an image of a known format")
        if is_packed(head) and info.file_size > max(AGAIN * info.compress_size, LARGE):
            raise Refused(
                f"too large: {info.file_size:,} bytes unpacked from {info.compress_size:,}, which no image is that is "
                "compressed itself"
            )
        return self.read(name, self.most)


def _unicode_name(info: zipfile.ZipInfo) -> str:
    """A member's name; of one not marked as UTF-8, what Info-ZIP adds, else UTF-8 where it is that, else cp437."""
    if info.flag_bits & UTF_8_NAME:
        return info.filename
    try:
        raw = info.filename.encode("cp437")
        extra = info.extra
        while len(extra) >= 4:
            kind, size = struct.unpack_from("<HH", extra)
            if kind == UNICODE_PATH and size > 5 and struct.unpack_from("<L", extra, 5)[0] == zlib.crc32(raw):
                return extra[9 : 4 + size].decode("utf-8")
            extra = extra[4 + size :]
        return raw.decode("utf-8")
    except UnicodeError:
        return info.filename


class Tar:
    """A tar's members; only a tar that is not compressed can be read in place."""

    kind = "tar"

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most
        self.members: dict[str, tuple[int, int]] = {}  # name -> where it begins, bytes

    def files(self) -> tuple[Stamps, Skipped]:
        """Every member with its size and the tar's time; of members of one name the last counts, as in tar itself.

        Raises:
            Refused: it is no tar.
        """
        stamps: Stamps = {}
        skipped: Skipped = []
        try:
            with self.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                size = self.path.stat().st_size
                time = self.path.stat().st_mtime_ns
                reason = ""
                try:
                    while (info := tar.next()) is not None:
                        self._member(info, size, time, stamps, skipped)
                except tarfile.TarError as error:
                    reason = str(error)
                file.seek(tar.offset)
                if reason or any(file.read(BLOCK)):
                    skipped.append((f"after {tar.offset:,} bytes", f"damaged tar: {reason or 'no header'}"))
        except (tarfile.TarError, OSError, ValueError) as error:
            raise Refused(f"unreadable tar: {error}") from None
        return stamps, skipped

    def _member(self, info: tarfile.TarInfo, size: int, time: int, stamps: Stamps, skipped: Skipped) -> None:
        name = member_name(info.name)
        if info.isdir():
            return
        if name is None:
            skipped.append((info.name, OUTSIDE.format(self.kind)))
        elif hidden(name):
            skipped.append((name, "hidden"))
        elif not info.isreg() or info.issparse():
            skipped.append((name, "not a regular file"))
        elif info.size > self.most:
            skipped.append((name, f"too large: {info.size:,} bytes"))
        elif info.offset_data + info.size > size:
            skipped.append((name, "cut short: the tar ends before it"))
        else:
            self.members[name] = info.offset_data, info.size
            stamps[name] = (info.size, time)

    def read(self, name: str, limit: int) -> bytes:
        """A member's first bytes.

        Raises:
            Refused: the tar has gone, or may not be read.
        """
        begin, size = self.members[name]
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                return file.read(min(size, limit))
        except OSError as reason:
            raise Refused(f"unreadable: {reason.strerror}") from None

    def image(self, name: str) -> bytes:
        """An image's bytes; of what does not begin as one, only the beginning is read.

        Raises:
            Refused: as `read`; or it is no image.
        """
        if self.members[name][1] and not is_known(self.read(name, 16)):
            raise Refused("not an image of a known format")
        return self.read(name, self.most)


def is_tar(path: Path, head: bytes) -> bool:
    """Whether a file of these first 512 bytes is a tar, by its header's checksum."""
    try:
        tarfile.TarInfo.frombuf(head[:BLOCK], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return path.suffix.lower() == ".tar" and len(head) >= BLOCK and not any(head[:BLOCK])  # an empty one
    return True


def packed(path: Path) -> Error:
    """Why a compressed tar is refused, and what to do."""
    return Error(
        f"{path} is a compressed tar, whose members cannot be read in place: unpack it (tar -xf {path.name}) and give "
        "the folder, or store it as .tar: images are compressed already."
    )


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
