"""Folders, zips and tars of images: every file is an entry, a caption, or skipped with a reason."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection
from pathlib import Path

from kuosan.data.archives import PACKED_TAR, Tar, Zip
from kuosan.data.beside import CAPTIONS, Beside, Read
from kuosan.data.captions import read_beside
from kuosan.data.config import LABEL, DataConfig
from kuosan.data.entries import Entry, Listing
from kuosan.data.headers import Refused, read_image
from kuosan.data.lists import METADATA, SPLIT
from kuosan.data.naming import IMAGES
from kuosan.data.walk import Skipped, Stamps, walk
from kuosan.errors import Error, unknown

BYTES_A_PIXEL = 8  # RGBA of 16 bits: a file longer than this times max_pixels holds no picture that is let in
# What img2dataset writes beside each shard
SHARD_TABLE = re.compile(r"(.*/)?([0-9]+)(_stats\.json|\.parquet)")


def most_bytes(config: DataConfig) -> int:
    """Bytes of the largest file of an image that is let in."""
    return min(BYTES_A_PIXEL * config.max_pixels, config.max_bytes)


class Folder:
    """All files below a folder, and the members of tars where there are no images but in tars; nothing is written."""

    def __init__(self, path: Path, config: DataConfig, outputs: Collection[Path] = ()) -> None:
        self.path, self.config, self.outputs = path, config, outputs
        self.inside: dict[str, tuple[Tar, str]] = {}  # a tar's member -> the tar, and the member's name in it

    def listing(self) -> Listing:
        """Every file below the folder; links to folders are followed, but never in a circle.

        Raises:
            Error: nothing beside the images has the column asked for, or a list of them is not read.
        """
        stamps, skipped = walk(self.path, self.outputs, self.config.layout)
        if self.config.layout > 1:
            self._open_tars(stamps, skipped)
        home = self.path.resolve().name
        return _listing(f"folder {self.path}", self.path, home, stamps, skipped, self._read, self.config)

    def read(self, entry: Entry, i: int) -> bytes:
        """The bytes of one file.

        Raises:
            Refused: it has gone, or may not be read, or is no image, or too large.
        """
        try:
            if entry.name in self.inside:
                tar, member = self.inside[entry.name]
                return tar.image(member)
            return read_image(self.path / entry.name, most_bytes(self.config))
        except OSError as reason:
            raise Refused(f"unreadable: {reason.strerror}") from None

    def _open_tars(self, stamps: Stamps, skipped: Skipped) -> None:
        """Put the members of tars in their place, if no image lies outside of them."""
        loose = next((name for name in stamps if posixpath.splitext(name)[1].lower() in IMAGES), None)
        for name in [name for name in stamps if PACKED_TAR.fullmatch(name) or name.lower().endswith(".tar")]:
            if PACKED_TAR.fullmatch(name):
                skipped.append((name, "compressed tar: unpack it, or store it as .tar"))
            elif loose is not None:
                skipped.append((name, f"a tar beside images that are files ({loose}): unpack it, or give it alone"))
            else:
                tar = Tar(self.path / name, most_bytes(self.config))
                try:
                    inside, passed = tar.files()
                except Refused as reason:
                    skipped.append((name, str(reason)))
                else:
                    self.inside |= {f"{name}/{member}": (tar, member) for member in inside}
                    stamps |= {f"{name}/{member}": stamp for member, stamp in inside.items()}
                    skipped += [(f"{name}/{member}", reason) for member, reason in passed]
            del stamps[name]

    def _read(self, name: str, limit: int) -> bytes:
        if name in self.inside:
            tar, member = self.inside[name]
            return tar.read(member, limit)
        with (self.path / name).open("rb") as file:
            return file.read(limit)


class Archive:
    """A zip or tar of the same; read in place, never unpacked."""

    def __init__(self, path: Path, config: DataConfig, *, zipped: bool) -> None:
        self.path, self.config = path, config
        self.most = most_bytes(config)
        self.archive = Zip(path, self.most, config.layout) if zipped else Tar(path, self.most)

    def listing(self) -> Listing:
        """Every member; a member packed twice under one name counts once.

        Raises:
            Error: nothing beside the images has the column asked for, or the archive cannot be read.
        """
        try:
            stamps, skipped = self.archive.files()
        except Refused as reason:
            raise Error(f"{self.path} cannot be read ({reason}): copy or make it again.") from None
        what = f"{self.archive.kind} {self.path}"
        return _listing(what, self.path, self.path.stem, stamps, skipped, self.archive.read, self.config)

    def read(self, entry: Entry, i: int) -> bytes:
        """The bytes of one member.

        Raises:
            Refused: it is damaged, or longer than it said.
        """
        return self.archive.image(entry.name)


def _listing(
    what: str, path: Path, home: str, stamps: Stamps, skipped: Skipped, read: Read, config: DataConfig
) -> Listing:
    """The listing of files, once what lies beside them is read."""
    beside = read_beside(stamps, read, config.label_column, version=config.layout, root=home)
    _check_column(path, config.label_column, beside)
    skipped = [*skipped, *((name, "the mask of another image") for name in beside.masks)]
    shards = frozenset(found[2] for name in stamps if (found := SHARD_TABLE.fullmatch(name)))
    tables = sorted(name for name in stamps if name not in beside.taken and SHARD_TABLE.fullmatch(name))
    if tables and config.layout > 1:
        skipped += [(name, "a table of img2dataset: what it says stands beside the images too") for name in tables]
    passed = {name for name, _ in skipped}
    names = sorted(name for name in stamps if name not in beside.taken and name not in passed)
    entries = [
        Entry(name, beside.labels.get(name), beside.captions.get(name), beside.splits.get(name), stamps[name])
        for name in names
    ]
    return Listing(
        entries,
        sorted(skipped),
        beside.problems,
        f"{what}: {len(entries) + len(skipped):,} files",
        by_folder=True,
        columns=_columns(beside),
        notes=tuple(beside.notes),
        shards=shards,
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
