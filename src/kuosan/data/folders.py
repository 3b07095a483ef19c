"""Folders and zips of pictures: every file is an entry, a caption, or skipped with a reason."""

from __future__ import annotations

import lzma
import os
import posixpath
import stat
import zipfile
import zlib
from pathlib import Path

from kuosan.data.captions import CAPTIONS, METADATA, SPLIT, TRAINED_ON, Beside, read_beside
from kuosan.data.config import LABEL, DataConfig
from kuosan.data.entries import Entry, Listing
from kuosan.data.headers import Refused, is_known, is_packed, read_image
from kuosan.data.unpacking import read_member
from kuosan.errors import Error, unknown

Stamps = dict[str, tuple[int, int]]  # name -> (bytes, modification time or checksum)

BYTES_A_PIXEL = 8  # RGBA of 16 bits: a file longer than this times max_pixels holds no picture that is let in
AGAIN, LARGE = 100, 1 << 24  # how much smaller a zip makes a compressed image at most, and from which size on


def most_bytes(config: DataConfig) -> int:
    """Bytes of the largest file of an image that is let in."""
    return min(BYTES_A_PIXEL * config.max_pixels, config.max_bytes)


class Folder:
    """All files below a folder; nothing in it is ever written."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path, self.most = path, most_bytes(config)
        self.label_column, self.hold_out = config.label_column, config.hold_out

    def listing(self) -> Listing:
        """Every file below the folder; links to folders are followed, but never in a circle.

        Raises:
            Error: nothing beside the pictures has the column asked for.
        """
        stamps: Stamps = {}
        skipped: list[tuple[str, str]] = []
        _walk(self.path, "", frozenset(), stamps, skipped)
        beside = read_beside(stamps, self._read_text, self.label_column)
        _check_column(self.path, self.label_column, beside)
        return _listing(f"folder {self.path}", stamps, beside, skipped, self.hold_out)

    def read(self, entry: Entry, i: int) -> bytes:
        """The bytes of one file.

        Raises:
            Refused: it has gone, or may not be read, or is no image, or too large.
        """
        try:
            return read_image(self.path / entry.name, self.most)
        except OSError as reason:
            raise Refused(f"unreadable: {reason.strerror}") from None

    def _read_text(self, name: str, limit: int) -> bytes:
        with (self.path / name).open("rb") as file:
            return file.read(limit)


class ZipFolder:
    """A zip of the same; read in place, never unpacked."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.label_column, self.hold_out = config.label_column, config.hold_out
        self.most = most_bytes(config)
        try:
            self.zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as reason:
            raise Error(f"{path} is no readable zip ({reason}): unpack it, or make it anew.") from None

    def listing(self) -> Listing:
        """Every member; a member packed twice under one name counts once.

        Raises:
            Error: nothing beside the pictures has the column asked for.
        """
        stamps: Stamps = {}
        skipped: list[tuple[str, str]] = []
        for info in self.zip.infolist():
            name = posixpath.normpath(info.filename)
            if info.is_dir():
                continue
            if _hidden(name):
                skipped.append((name, "hidden"))
            elif info.flag_bits & 1:
                skipped.append((name, "encrypted"))
            elif info.file_size > self.most:
                skipped.append((name, f"too large: {info.file_size:,} bytes unpacked"))
            elif name != info.filename or name.startswith(("/", "..")):
                skipped.append((info.filename, "a name that leads out of the zip"))
            else:
                stamps[name] = (info.file_size, info.CRC)
        beside = read_beside(stamps, self._read, self.label_column)
        _check_column(self.path, self.label_column, beside)
        return _listing(f"zip {self.path}", stamps, beside, skipped, self.hold_out)

    def read(self, entry: Entry, i: int) -> bytes:
        """The bytes of one member.

        Raises:
            Refused: it is damaged, or longer than it said.
        """
        try:
            info, head = self.zip.getinfo(entry.name), self._read(entry.name, 16)
            if info.file_size and not is_known(head):
                raise Refused("not a picture of a known format")
            if is_packed(head) and info.file_size > max(AGAIN * info.compress_size, LARGE):
                raise Refused(
                    f"too large: {info.file_size:,} bytes unpacked from {info.compress_size:,}, which no image is that "
                    "is compressed itself"
                )
            return self._read(entry.name, self.most)
        except Refused:
            raise
        except (OSError, ValueError, RuntimeError, NotImplementedError, EOFError, zlib.error, lzma.LZMAError) as reason:
            raise Refused(f"unreadable in the zip: {reason}") from None
        except zipfile.BadZipFile as reason:
            raise Refused(f"damaged in the zip: {reason}") from None

    def _read(self, name: str, limit: int) -> bytes:
        return read_member(self.path, self.zip, name, limit)


def _walk(
    root: Path, below: str, above: frozenset[tuple[int, int]], stamps: Stamps, skipped: list[tuple[str, str]]
) -> None:
    """Fill `stamps` (name -> bytes, mtime) and `skipped`; `above` are the folders on the way here."""
    try:
        here = os.stat(root / below)
        inside = sorted(os.scandir(root / below), key=lambda item: item.name)
    except OSError as reason:
        if not below:
            raise Error(f"cannot read the folder {root}: {reason.strerror}.") from None
        skipped.append((below, f"unreadable folder: {reason.strerror}"))
        return
    above = above | {(here.st_dev, here.st_ino)}
    for item in inside:
        name = posixpath.join(below, item.name)
        if _hidden(name):
            skipped.append((name, "hidden"))
            continue
        try:
            found = item.stat()
        except OSError as reason:
            skipped.append((name, f"unreadable: {reason.strerror}"))
            continue
        if stat.S_ISDIR(found.st_mode):
            if (found.st_dev, found.st_ino) in above:
                skipped.append((name, "link in a circle"))
            else:
                _walk(root, name, above, stamps, skipped)
        elif stat.S_ISREG(found.st_mode):
            stamps[name] = (found.st_size, found.st_mtime_ns)
        else:
            skipped.append((name, "not a regular file"))


def _hidden(name: str) -> bool:
    """Files that systems leave behind; nobody means them as pictures."""
    left_behind = ("__MACOSX", "Thumbs.db", "desktop.ini")
    return any(part.startswith(".") or part in left_behind for part in name.split("/"))


def _listing(
    what: str, stamps: Stamps, beside: Beside, skipped: list[tuple[str, str]], hold_out: float | None
) -> Listing:
    names = sorted(name for name in stamps if name not in beside.taken)
    notes, held_out = list(beside.notes), {name: split not in TRAINED_ON for name, split in beside.splits.items()}
    if held_out and hold_out is not None:
        notes.append(f"The pictures' own {SPLIT} is not used, because hold_out is {hold_out:g}.")
        held_out = {}
    entries = [
        Entry(name, beside.labels.get(name), beside.captions.get(name), held_out.get(name), stamps[name])
        for name in names
    ]
    return Listing(
        entries,
        sorted(skipped),
        beside.problems,
        f"{what}: {len(entries) + len(skipped):,} files",
        by_folder=True,
        columns=_columns(beside),
        notes=tuple(notes),
    )


def _columns(beside: Beside) -> tuple[str, ...]:
    """What could be a class: every column but the captions' and the split's."""
    return tuple(column for column in beside.columns if column not in (*CAPTIONS, SPLIT))


def _check_column(path: Path, column: str, beside: Beside) -> None:
    """Refuse a column that nobody has; `label` is where classes are looked for unasked."""
    if column == LABEL or column in beside.columns:
        return
    if beside.columns:
        raise unknown("label_column", column, beside.columns)
    raise Error(
        f"label_column is {column!r}, but no {' or '.join(METADATA)} with columns is in {path}: write one "
        f"(file_name,{column}), or leave label_column out to take folders as classes."
    )


def folder_labels(names: list[str]) -> list[str | None]:
    """The class of each picture: its first-level folder, below what all of them share; none where there is no choice.

    A zip usually holds one folder that holds everything; that one is not a class.
    """
    parts = [name.split("/")[:-1] for name in names]
    depth = 0
    while all(len(part) > depth for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    if not all(len(part) > depth for part in parts):
        return [None] * len(names)
    return [part[depth] for part in parts]
