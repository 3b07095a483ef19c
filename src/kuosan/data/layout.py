"""What the folders above images mean: a split, numbered shards, or classes; every decision is a sentence.

Folders are read from the top. One folder that holds everything is passed through. Where all top folders are called as
a split is (train, val, test, ...), they are one; numbered shards (00000, part-0001) hold no classes; what is left first
is the class. Version 1, which older runs go on with, knows neither splits nor shards.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import takewhile

from kuosan.data.walk import ROLES, TEST, TRAIN, VALIDATION, Entry, Listing, Role

SPLIT_NAME = re.compile(rf"({'|'.join(ROLES)})([-_ .]?(sets?|images?|imgs?|data))?([-_ .]?\d+)?(-of-\d+)?", re.I)
SHARD_NAME = re.compile(
    r"(part|shard|chunk|batch|block|bucket|fold|split|subset|folder|data|images?|imgs?)s?[-_ .]?\d+|.*\d+-of-\d+", re.I
)
SHARD_DIGITS = 3  # a folder that is a number of fewer digits, or without a leading zero, is a class
REPEATS = re.compile(r"(\d+)_.+")  # how kohya's trainers say that a folder counts several times
TAR = ".tar"
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
        self.notes.append(f"{name} may mean {number} repeats (kohya's trainers): each image counts once. {what}.")

    def _say_unknown(self, ids: list[int], roles: list[Role | None]) -> None:
        folders = sorted({self.parts[i][0] for i in ids})
        if folders:
            self.notes.append(
                f"{len(ids):,} images for validation or testing lie in folders that are no class of those trained on "
                f"({_few(folders)}): they have no class."
            )

    def _say_outside(self, ids: list[int], names: Sequence[str]) -> None:
        outside = [names[i] for i in ids if not self.parts[i]]
        if len({self.parts[i][0] for i in ids if self.parts[i]}) > 1:
            self.notes.append(f"Folders are no classes, because {len(outside):,} images lie outside of them.")
            self.notes[-1] = self.notes[-1][:-1] + f": {_few(outside)}."


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
