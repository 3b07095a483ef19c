"""The files below a folder: which are there, and which are passed over because nobody means them as data.

Passed over are what systems leave behind and what kuosan itself writes: runs, models, and the folders of `sample`,
`restore`, `evaluate`, `compare` and `reconstruct`, each known by the file that only kuosan writes there.

The nouns of a source: an entry (one image before anybody looked), a listing of them, a look's result.

What the folders above images mean: a split, numbered shards, or classes; every decision is a sentence.

Folders are read from the top. One folder that holds everything is passed through. Where all top folders are called as
a split is (train, val, test, ...), they are one; numbered shards (00000, part-0001) hold no classes; what is left first
is the class. Version 1, which older runs go on with, knows neither splits nor shards.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal, Protocol
from urllib.parse import unquote

import numpy as np

from kuosan.data.config import DataConfig
from kuosan.errors import Error, plural

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


SPLIT_NAME = re.compile(rf"({'|'.join(ROLES)})([-_ .]?(sets?|images?|imgs?|data))?([-_ .]?\d+)?(-of-\d+)?", re.I)
SHARD_NAME = re.compile(
    r"(part|shard|chunk|batch|block|bucket|fold|split|subset|folder|data|images?|imgs?)s?[-_ .]?\d+|.*\d+-of-\d+", re.I
)
SHARD_DIGITS = 3  # a folder that is a number of fewer digits, or without a leading zero, is a class
REPEATS = re.compile(r"(\d+)_.+")  # how kohya's trainers say that a folder counts several times
TAR = ".tar"
# Endings of names that are no words: what systems and cameras put there, numbers, pixel sizes, hashes
_COPY = re.compile(r"\s+(copy|copie|kopie|copia)(\s*\(?\d+\)?)?$", re.I)
_TAIL = re.compile(r"(^|\s)(\(\d+\)|#?\d+|@\d+x|\d+x\d+|v\d+|(?=[0-9a-f]*\d)[0-9a-f]{8,})$|@\dx$", re.I)
_HEAD = re.compile(r"^(0\d*|\d{3,}|\d+[.)])(\s+|$)")
_CAMERA = re.compile(
    r"(img|dsc[nf]?|dcim|pxl|mvi|p|image|photo|pic(ture)?|frame|sample|file|scan|screenshot|untitled)\d*", re.I
)
_ENDING = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|avif|heic|ppm|pgm|pbm|pnm|jfif)$", re.I)
TESTED, HELD_OUT = "kept for testing and never trained on", "held out and never trained on"
PURPOSE = {TRAIN: "to train on", VALIDATION: "held out for validation"}
SHOWN = 4
FIRST = (
    "layout 1: folders that a new run takes as a split are none, and images for testing are trained on, because this "
    "run was begun so."
)


def understood(listing: Listing, entries: list[Entry], version: int) -> tuple[list[Entry], tuple[str, ...]]:
    """The images with the classes and roles that their folders give where nothing else does, and what was understood.

    Args:
        entries: those of the listing that are images; a folder of other files means nothing.
    """
    if not listing.by_folder or not entries:
        return entries, ()
    labelled = any(entry.label is not None for entry in entries)
    folders = [entry.name.split("/")[:-1] for entry in entries]
    reading = _Reading(listing.shards, folders, labelled)
    labels, roles = reading.run([entry.name for entry in entries])
    if version == 1:
        notes = (FIRST,) if any(roles) else ()
        depth = _shared(folders)
        if labelled or not all(len(parts) > depth for parts in folders):
            return entries, notes
        return [replace(entry, label=parts[depth]) for entry, parts in zip(entries, folders)], notes
    found = [
        replace(entry, label=entry.label if labelled else label, role=entry.role or role)
        for entry, label, role in zip(entries, labels, roles)
    ]
    return found, tuple(reading.notes)


class _Reading:
    """One pass over the folders of a data set's images; `parts` lose those that are understood."""

    def __init__(self, shards: frozenset[str], folders: list[list[str]], labelled: bool) -> None:
        self.shards, self.labelled = shards, labelled
        self.tars = {part.removesuffix(TAR) for parts in folders for part in parts if part.endswith(TAR)}
        self.parts = [[part.removesuffix(TAR) for part in parts] for parts in folders]
        self.shared: list[str] = []  # folders that hold everything
        self.notes: list[str] = []

    def run(self, names: Sequence[str]) -> tuple[list[str | None], list[Role | None]]:
        """The class and the role of each image."""
        every = list(range(len(self.parts)))
        self._pass(every)
        roles = self._split()
        learned = [i for i in every if roles[i] == TRAIN] or every  # where nothing is to train on, all are
        self._pass(learned)
        labels: list[str | None] = [None] * len(every)
        if not self.labelled and all(self.parts[i] for i in learned):
            classes = {self.parts[i][0] for i in learned}
            for i in every:
                labels[i] = next((part for part in self.parts[i] if part in classes), None)
            self._say_classes(sorted(classes), learned)
            self._say_unknown([i for i in every if roles[i] and labels[i] is None and self.parts[i]], roles)
        elif not self.labelled:
            self._say_outside(learned, names)
        self._say_shared(any(roles))
        return labels, roles

    def _pass(self, chosen: list[int]) -> None:
        """Leave behind the folders that hold all of these images, and shards."""
        while all(self.parts[i] for i in chosen):
            tops = sorted({self.parts[i][0] for i in chosen})
            if len(tops) == 1:
                self.shared.append(tops[0])
            elif _roles(tops) or not self._are_shards(tops):
                return
            else:
                self.notes.append(
                    f"Folders {tops[0]} to {tops[-1]} ({len(tops):,}) are numbered shards and hold no classes; if they "
                    "are classes, give them names of words, or write a label into metadata.csv."
                )
            for i in chosen:
                del self.parts[i][0]

    def _are_shards(self, tops: list[str]) -> bool:
        if {*tops} <= self.shards or all(SHARD_NAME.fullmatch(top) for top in tops):
            return True
        # laion-00000.tar is a shard, a folder of that name may be a class
        prefix = _begin(tops).rstrip("0123456789") if {*tops} <= self.tars else ""
        numbers = [top[len(prefix) :] for top in tops]
        alike = len({len(number) for number in numbers}) == 1 and len(numbers[0]) >= SHARD_DIGITS
        digits = all(re.fullmatch("[0-9]+", number) for number in numbers)
        return alike and digits and (bool(prefix) or any(number[0] == "0" for number in numbers))

    def _split(self) -> list[Role | None]:
        """The role of each image by its top folder, where all of these are called as a split is."""
        roles: list[Role | None] = [None] * len(self.parts)
        counts = Counter(parts[0] for parts in self.parts if parts)
        said = _roles(sorted(counts))
        if len(said) < 2:
            return roles
        for i, parts in enumerate(self.parts):
            if parts:
                roles[i] = said[parts.pop(0)]
        purpose = {**PURPOSE, TEST: TESTED if VALIDATION in said.values() else HELD_OUT}
        some = [f"{top} {purpose[role]} ({counts[top]:,})" for top, role in sorted(said.items(), key=_order)]
        what = f"{', '.join(some[:12])}{f', and {len(some) - 12:,} more' if len(some) > 12 else ''}"
        if {*said.values()} == {TRAIN}:
            self.notes.append(f"Folders hold no classes, as all are named to train on: {what}.")
            return [None] * len(roles)
        if TRAIN not in said.values():
            what += "; none is left to train on, so all are"
        self.notes.append(f"Folders are a split: {what}.")
        return roles

    def _say_classes(self, classes: list[str], learned: list[int]) -> None:
        splits = [name for name in classes if _role(name)]
        others = [name for name in classes if name not in splits]
        if splits and others:
            beside = f"{_few(others)} {'are' if len(others) > 1 else 'is'} beside them"
            self.notes.append(
                f"Taken as classes, as {beside}, and trained on: {_few(splits)}. Folders are a split only where all "
                "top folders are called so."
            )
        below = {self.parts[i][1] for i in learned if len(self.parts[i]) > 1}
        if {TEST, VALIDATION} & {*_roles(sorted(below)).values()}:
            self.notes.append(
                f"Folders {_few(sorted(below))} below the classes are no split, all are trained on: put them above the "
                "classes, or give each image a split in metadata.csv."
            )
        numbers = sorted(int(found[1]) for name in classes if (found := REPEATS.fullmatch(name)))
        if len(numbers) == len(classes) and numbers not in ([*range(len(numbers))], [*range(1, len(numbers) + 1)]):
            self._say_repeats(classes[0], "The class is the whole name")

    def _say_shared(self, split: bool) -> None:
        leaf = self.shared and not any(self.parts)
        if leaf and (found := REPEATS.fullmatch(self.shared[-1])) and int(found[1]) > 1:
            self._say_repeats(self.shared[-1], "One folder is no class")
        for name in self.shared:
            if _role(name) in (TEST, VALIDATION) and not split:
                self.notes.append(f"All images lie below {name}: they are a data set of their own, and trained on.")

    def _say_repeats(self, name: str, what: str) -> None:
        number = name.partition("_")[0]
        self.notes.append(
            f"{name} may mean {plural(int(number), 'repeat')} (kohya's trainers): each image counts once. {what}."
        )

    def _say_unknown(self, ids: list[int], roles: list[Role | None]) -> None:
        folders = sorted({self.parts[i][0] for i in ids})
        if folders:
            self.notes.append(
                f"{plural(len(ids), 'image')} for validation or testing {'lies' if len(ids) == 1 else 'lie'} in "
                "folders that "
                f"are no class of those trained on ({_few(folders)}), and {'has' if len(ids) == 1 else 'have'} no "
                "class."
            )

    def _say_outside(self, ids: list[int], names: Sequence[str]) -> None:
        outside = [names[i] for i in ids if not self.parts[i]]
        if len({self.parts[i][0] for i in ids if self.parts[i]}) > 1:
            self.notes.append(
                f"Folders are no classes, because {plural(len(outside), 'image', 'lies')} outside of them."
            )
            self.notes[-1] = self.notes[-1][:-1] + f": {_few(outside)}."


def captioned(listing: Listing, entries: list[Entry], config: DataConfig) -> tuple[list[Entry], tuple[str, ...]]:
    """The images with captions from where `config` says, and what is to be said of that.

    Raises:
        Error: there are no names of files, in an array say.
    """
    if config.captions == "beside" or not entries:
        return entries, ()
    if not listing.by_folder:
        raise Error(
            f"captions = {config.captions}: the images of {config.path} are no files with names. Leave it out, or give "
            "a folder, zip or tar."
        )
    of = caption_of_file if config.captions == "file_names" else caption_of_folder
    found = [replace(entry, caption=of(entry.name)) for entry in entries]
    beside, named = (sum(entry.caption is not None for entry in each) for each in (entries, found))
    what = "names of files" if config.captions == "file_names" else "names of folders"
    notes = [f"Captions are the {what} ({plural(named, 'image', 'has', of=len(found))} one)."]
    if beside:
        notes.append(
            f"{plural(beside, 'caption', 'is')} beside the images and not used, as captions = {config.captions}."
        )
    return found, tuple(notes)


def caption_of_file(name: str) -> str | None:
    """The words of a file's name: `0012_red-fox (2).png` is `red fox`; None where there are but numbers."""
    stem = name.rsplit("/", 1)[-1]
    stem = posixpath.splitext(stem)[0]
    while (shorter := _ENDING.sub("", stem)) != stem:
        stem = shorter
    return _words(stem)


def caption_of_folder(name: str) -> str | None:
    """The words of the folder that an image lies in; splits, shards and tars are passed over upwards."""
    for folder in reversed(name.split("/")[:-1]):
        if folder.lower().endswith(TAR) or _role(folder) or SHARD_NAME.fullmatch(folder):
            continue
        return _words(folder.partition("_")[2] if REPEATS.fullmatch(folder) else folder)
    return None


def _words(text: str) -> str | None:
    """Text without what is no word in a name; None where nothing is left, or a camera's name alone."""
    text = unicodedata.normalize("NFC", unquote(text))
    text = " ".join(re.sub(r"[_+~-]+", " ", text).split())
    before = ""
    while text != before:
        before, text = text, _TAIL.sub("", _COPY.sub("", _HEAD.sub("", text, count=1))).strip(" .,;-")
    return text if text and not _CAMERA.fullmatch(text) and any(map(str.isalpha, text)) else None


def _shared(folders: list[list[str]]) -> int:
    """How many folders all images share."""
    depth = 0
    while all(len(parts) > depth for parts in folders) and len({parts[depth] for parts in folders}) == 1:
        depth += 1
    return depth


def _role(name: str) -> Role | None:
    found = SPLIT_NAME.fullmatch(name)
    return ROLES[found[1].lower()] if found else None


def _roles(tops: Iterable[str]) -> dict[str, Role]:
    """The role of each of these folders, if every one is called as a split is: train, or pets_train with pets_test."""
    names = list(tops)
    prefix = re.match(r"(.*[-_ .])?", _begin(names))
    for begin in {"", (prefix[0] if prefix else "")}:
        roles = {name: role for name in names if (role := _role(name[len(begin) :]))}
        if names and len(roles) == len(names):
            return roles
    return {}


def _begin(names: Sequence[str]) -> str:
    """The letters that all names begin with."""
    return "".join(letters[0] for letters in takewhile(lambda letters: len({*letters}) == 1, zip(*names)))


def _order(item: tuple[str, Role]) -> tuple[int, str]:
    return [TRAIN, VALIDATION, TEST].index(item[1]), item[0]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
