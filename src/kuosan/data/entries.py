"""The nouns of a source: an entry (one picture before anybody looked), a listing of them, a look's result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

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
    """One picture before anybody has looked at it; `stamp` is (bytes, modification time) where files have one."""

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
    by_folder: bool = False  # classes may be the first-level folders of those that turn out to be pictures
    columns: tuple[str, ...] = ()  # what else is told of pictures and could be their class
    in_order: bool = False  # entries keep their own order; else pictures are numbered by content
    notes: tuple[str, ...] = ()  # what else was understood, a sentence each
    shards: frozenset[str] = frozenset()  # folders that another tool's files beside them say are shards


@dataclass(frozen=True)
class Look:
    """What a look at one file told: `reason` is empty where it can be used."""

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
