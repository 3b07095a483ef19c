"""The files below a folder: which are there, and which are passed over because nobody means them as data.

Passed over are what systems leave behind and what kuosan itself writes: runs, models, and the folders of `sample`,
`restore`, `evaluate`, `compare` and `reconstruct`, each known by the file that only kuosan writes there.

The nouns of a source: an entry (one image before anybody looked), a listing of them, a look's result.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from kuosan.errors import Error

Stamps = dict[str, tuple[int, int]]  # name -> (bytes, modification time or checksum)
Skipped = list[tuple[str, str]]  # (name, reason)

LEFT_BEHIND = ("__MACOSX", "Thumbs.db", "desktop.ini")
MORE_LEFT_BEHIND = (*LEFT_BEHIND, "ehthumbs.db", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
RUN, CHECKPOINTS, DATA, MANIFEST = "config.yaml", "checkpoints", "data.json", "manifest.json"
OUTPUTS = {  # file -> (keys of its JSON object, what its folder is)
    DATA: ({"fingerprint", "train", "held_out"}, "a run"),
    MANIFEST: ({"format", "files", "sha256"}, "a model"),
    "recipe.json": ({"weights", "request", "format"}, "images that were sampled"),
    "request.json": ({"weights", "request"}, "images that were restored"),
    "result.json": ({"fingerprint"}, "an evaluation"),
    "reconstruction.json": ({"fingerprint"}, "an evaluation"),
}
MOST_JSON = 1 << 26  # bytes


def hidden(name: str, version: int = 2) -> bool:
    """Files that systems leave behind; nobody means them as images."""
    if version == 1:
        return any(part.startswith(".") or part in LEFT_BEHIND for part in name.split("/"))
    left_behind = {each.lower() for each in MORE_LEFT_BEHIND}
    return any(part.startswith(".") or part.lower() in left_behind for part in name.split("/"))


def written_by_kuosan(folder: Path, version: int = 2) -> str:
    """What a folder of kuosan's own holds; empty for any other."""
    if (folder / RUN).is_file() and any((folder / CHECKPOINTS).glob(f"*/{MANIFEST}")):
        return "a run"
    for name, (keys, what) in OUTPUTS.items():
        if (version > 1 or name == DATA) and keys <= _keys(folder / name):
            return what
    return ""


def _keys(path: Path) -> set[str]:
    try:
        if not path.is_file() or path.stat().st_size > MOST_JSON:
            return set()
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return set()
    return {*value} if isinstance(value, dict) else set()


def walk(root: Path, outputs: Collection[Path] = (), version: int = 2) -> tuple[Stamps, Skipped]:
    """Every file below a folder by its name (relative, with /); links to folders are followed, but never in a circle.

    Args:
        outputs: folders that are written to; their content is no data.

    Raises:
        Error: the folder itself cannot be read.
    """
    stamps: Stamps = {}
    skipped: Skipped = []
    _visit(root, "", frozenset(), {path.resolve() for path in outputs}, version, stamps, skipped)
    return stamps, skipped


def _visit(
    root: Path,
    below: str,
    above: frozenset[tuple[int, int]],
    outputs: set[Path],
    version: int,
    stamps: Stamps,
    skipped: Skipped,
) -> None:
    """Fill `stamps` and `skipped`; `above` are the folders on the way here."""
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
        if hidden(name, version):
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
            elif outputs and (root / name).resolve() in outputs:
                skipped.append((name, "the folder that is written to"))
            elif what := written_by_kuosan(root / name, version):
                skipped.append((name, f"written by kuosan: {what}"))
            else:
                _visit(root, name, above, outputs, version, stamps, skipped)
        elif stat.S_ISREG(found.st_mode):
            stamps[name] = (found.st_size, found.st_mtime_ns)
        else:
            skipped.append((name, "not a regular file"))


Role = Literal["train", "validation", "test"]  # validation is held out, test is never trained on
TRAIN: Role = "train"
VALIDATION: Role = "validation"
TEST: Role = "test"
ROLES: dict[str, Role] = {  # what a split may be called, in lower case
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}


@dataclass(frozen=True)
class Entry:
    """One image before anybody has looked at it; `stamp` is (bytes, modification time) where files have one."""

    name: str
    label: str | None = None
    caption: str | None = None
    role: Role | None = None  # None: decided by content, or trained on where others say
    stamp: tuple[int, int] | None = None

    @property
    def held_out(self) -> bool | None:
        """Whether the data set itself keeps it out of training; None where it says nothing."""
        return None if self.role is None else self.role != TRAIN


@dataclass(frozen=True)
class Listing:
    """What a source holds: `skipped` and `missing` are (name, reason) of files passed over, captions without a home."""

    entries: list[Entry]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    says: str = ""
    classes: tuple[str, ...] | None = None  # a fixed order, where the source has one
    by_folder: bool = False  # classes may be the first-level folders of those that turn out to be images
    columns: tuple[str, ...] = ()  # what else is said of images and could be their class
    in_order: bool = False  # entries keep their own order; else images are numbered by content
    notes: tuple[str, ...] = ()  # what else was understood, a sentence each
    shards: frozenset[str] = frozenset()  # folders that another tool's files beside them say are shards


@dataclass(frozen=True)
class Look:
    """What a look at one file found: `reason` is empty where it can be used."""

    reason: str = ""
    key: str = ""  # hash of the content, 128 bits
    width: int = 0
    height: int = 0
    mode: str = ""
    grey: bool = False
    notes: tuple[str, ...] = ()
    reading: int = 1  # 2 where the version before read such a file otherwise: old runs are to notice
    pixels: str = ""  # hash of what it decodes to, 128 bits, grey as one channel
    view: bytes = b""  # what it is compared with others by, `views.View.packed`


class Source(Protocol):
    """Entries, and the content of each."""

    def listing(self) -> Listing:
        """What is there; nothing is decoded."""
        ...

    def read(self, entry: Entry, i: int) -> bytes | np.ndarray:
        """The i-th entry: a file's bytes, or pixels (H, W, 1 or 3) uint8.

        Raises:
            Refused: this one cannot be used.
        """
        ...
