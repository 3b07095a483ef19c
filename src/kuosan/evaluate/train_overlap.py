"""The images that models are measured on, and whether one of them was trained on them.

An image was trained on if a run's training part holds a file, or an array, of the same bytes or the same decoded
pixels, or if both are the same pixels once resized to the models' size. A copy that was edited, mirrored or compressed
again with loss is not noticed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from kuosan import config as trees
from kuosan import seeds
from kuosan.data.config import LABEL, PORTRAITS, DataConfig
from kuosan.data.dataset import Images, open_images
from kuosan.data.reading import FACT, RULES, Reading
from kuosan.data.scan import Progress, content_key
from kuosan.data.walk import Look
from kuosan.errors import Error, plural
from kuosan.storage.cache import NEAR, Results

SHOWN = 3  # images that a refusal names


class ImageChoice(Protocol):
    """Settings that say which images are wanted."""

    @property
    def images(self) -> str:
        """What `data.path` may be."""
        ...

    @property
    def n(self) -> int:
        """How many."""
        ...

    @property
    def unseen(self) -> bool:
        """Leave out those that were trained on."""
        ...

    @property
    def force(self) -> bool:
        """Take them all the same."""
        ...


class Schooling(NamedTuple):
    """What a run was trained on: the settings of its data, and what they held then."""

    data: Mapping[str, Any]
    fingerprint: str | None
    rule: str | None = None  # what its `auto` came to

    @property
    def reading(self) -> Reading:
        """How its images were read."""
        return Reading.of({"data": self.data}, {FACT: self.rule})


@dataclass(frozen=True)
class Chosen:
    """The images that are compared on."""

    images: Images
    ids: np.ndarray  # (N,) their numbers
    notes: tuple[str, ...]  # what is to be said of them

    @property
    def names(self) -> tuple[str, ...]:
        """Their files, or places in the array."""
        return tuple(self.images.name(int(i)) for i in self.ids)


def chosen(
    config: ImageChoice,
    shape: tuple[int, int, int],
    runs: Mapping[str, Schooling],
    progress: Progress | None = None,
    cure: str = "name others",
) -> Chosen:
    """Open the images at the models' size, and draw n of them by a fixed key.

    Args:
        shape: (C, H, W) of the models' images.
        runs: what each run was trained on, by the run's name.
        cure: what helps where there are none of that shape.

    Raises:
        Error: no such images, fewer than two, or some that a run was trained on.
    """
    images, read = _opened(config, shape, runs, progress, cure)
    order, notes = _candidates(images)
    order = order[seeds.permutation(len(order), 0, 0)]
    seen, said = _seen(images, order if config.unseen else order[: config.n], runs, progress)
    notes += said
    if config.unseen and seen:
        order = np.array([i for i in order if int(i) not in seen], np.int64)
        notes.append(
            f"{plural(len(seen), 'image', 'is')} left out: {'it was' if len(seen) == 1 else 'they were'} trained on"
        )
    if len(order) < 2:
        raise Error(f"{config.images} has {plural(len(order), 'such image')}; at least 2 are needed: name others.")
    if len(order) < config.n:
        notes.append(f"there are {plural(len(order), 'such image')}, not {config.n:,}: all are taken")
    ids = order[: config.n]
    if seen and not config.unseen:
        notes.append(_refused(config, images, seen, len(ids)))
    small = sum(min(look.width, look.height) < shape[1] for look in (images.scan.looks[i] for i in ids))
    if small:
        notes.append(
            f"{plural(small, 'image', 'is')} smaller than {shape[2]}x{shape[1]}, and enlarged: the truth is smooth "
            "there"
        )
    return Chosen(images, ids, (*notes, *read))


def _opened(
    config: ImageChoice,
    shape: tuple[int, int, int],
    runs: Mapping[str, Schooling],
    progress: Progress | None,
    cure: str,
) -> tuple[Images, list[str]]:
    """The images as the first run's training images were read; and what is to be said of that."""
    own = _reading(config, shape, runs)
    images = open_images(own.config(config.images, shape), progress=progress, memory=Results.at(own.data.cache, NEAR))
    notes = []
    if images.plan.rule == "buckets":
        few = images.only((shape[1], shape[2])) if (shape[1], shape[2]) in images.buckets.shapes else None
        if few is None:
            raise Error(f"{config.images} gives no images of {shape[2]}x{shape[1]}, which the models make: {cure}.")
        notes.append(
            f"of {plural(len(images), 'image')} only those that training would resize to {shape[2]}x{shape[1]} are used"
        )
        images = few
    if images.shape != shape:
        raise Error(f"{config.images} gives images {images.shape}, the models make {shape}: name others.")
    return images, [*notes, *resized_notes(images), *_differently(images, own, runs)]


def _reading(config: ImageChoice, shape: tuple[int, int, int], runs: Mapping[str, Schooling]) -> Reading:
    """The first run's reading. Raises: Error for a shape that it never had."""
    reading = next(iter(runs.values())).reading if runs else Reading()
    if not reading.takes((shape[1], shape[2])):
        raise Error(f"these models make images of {shape[2]}x{shape[1]}; only square ones can be compared.")
    usual = DataConfig()  # of whichever run comes first: others' images are understood as they are today
    data = replace(reading.data, label_column=LABEL, layout=usual.layout, split_version=usual.split_version)
    return Reading(replace(data, hold_out=None), reading.rule)


def _differently(images: Images, own: Reading, runs: Mapping[str, Schooling]) -> list[str]:
    """A warning for each run whose own training images were read in another way that shows in these."""
    clear = any("transparency" in note for look in images.scan.looks for note in look.notes)
    cut = any((look.height, look.width) != images.shape[1:] for look in images.scan.looks)
    notes = []
    for run, schooling in list(runs.items())[1:]:
        theirs = schooling.reading
        if clear and theirs.background != own.background:
            notes.append(
                f"warning: {run} was trained with transparency on {theirs.data.background}, these lie on "
                f"{own.data.background}"
            )
        if cut and theirs.data.resize != own.data.resize:
            notes.append(
                f"warning: {run} was trained with resize {theirs.data.resize}, these are read by {own.data.resize}"
            )
    return notes


def resized_notes(images: Images) -> list[str]:
    """What was done to the images of a data set: from which sizes to which, by what rule, on which background."""
    plan, looks = images.plan, images.scan.looks
    shown = ", ".join(counted(Counter(f"{look.width}x{look.height}" for look in looks)))
    height, width = images.shape[1:]
    notes = []
    if plan.side != plan.size or any((look.height, look.width) != (height, width) for look in looks):
        rule = RULES.get(plan.rule, "scaled to cover, centre cut")
        notes.append(f"resized to {width}x{height} as in training ({rule}) from {shown}")
    clear = sum(any("transparency" in note for note in look.notes) for look in looks)
    if clear:
        done = "kept" if plan.background is None else f"laid on {images.config.background}"
        notes.append(f"{plural(clear, 'image')} had transparency, {done}")
    return notes


def counted(counts: Counter[str]) -> list[str]:
    """The commonest kinds with how many of each, the rest in one number: "64x64 (900)"."""
    shown = [f"{kind} ({count:,})" for kind, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))]
    return [*shown[:SHOWN], *([f"{len(shown) - SHOWN:,} other sizes"] if len(shown) > SHOWN else [])]


def _candidates(images: Images) -> tuple[np.ndarray, list[str]]:
    """The held-out ones of a data set that has a split of its own, else all."""
    split = [entry.held_out for entry in images.scan.entries]
    parts = [images.train, images.held_out, images.test]
    every = np.sort(np.concatenate(parts))  # of one bucket, where there are several
    if not any(split):
        return every, []
    held = np.array([i for i in every if split[i]], np.int64)
    return held, [f"only the {len(held):,} of {len(images):,} that the data set itself holds out are used"]


def _seen(
    images: Images, ids: np.ndarray, runs: Mapping[str, Schooling], progress: Progress | None
) -> tuple[dict[int, str], list[str]]:
    """Which of these images a run was trained on, each with that run; and what is to be said of the runs."""
    keys, pixels = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)  # of each, all that have it
    for i in map(int, ids):
        pixels[content_key(images.batch([i]).x0.numpy())].append(i)
        for key in _hashes(images.scan.looks[i]):
            keys[key].append(i)
    seen: dict[int, str] = {}
    notes, opened = list[str](), dict[str, Images]()
    for run, (tree, fingerprint, _) in runs.items():
        path = str(tree.get("path", ""))
        if path != PORTRAITS and not Path(path).expanduser().exists():
            notes.append(f"{run} was trained on {path}, which is not here: whether it saw these images is not known")
            continue
        name = trees.dump(dict(tree))
        if name not in opened:
            data = trees.build(DataConfig, tree)
            opened[name] = open_images(data, progress=progress, memory=Results.at(data.cache, NEAR))
        if fingerprint is not None and not opened[name].has_fingerprint(fingerprint):
            notes.append(f"{path} has changed since {run} was trained on it: only what is there now was looked for")
        for i in _shared(opened[name], keys, pixels, images.shape):
            seen.setdefault(i, run)
    return seen, notes


def _hashes(look: Look) -> list[str]:
    """Of a file's bytes, and of what it decodes to; by split version 1 of the bytes alone."""
    return [key for key in (look.key, look.pixels) if key]


def _shared(
    theirs: Images, keys: Mapping[str, list[int]], pixels: Mapping[str, list[int]], shape: tuple[int, ...]
) -> set[int]:
    """The images, of those with these keys and pixels, that are in a run's training part."""
    found = set[int]()
    alike = theirs.in_memory and theirs.shape == shape
    for i in theirs.train:
        known = [key for key in _hashes(theirs.scan.looks[int(i)]) if key in keys]
        if known:
            found.update(*(keys[key] for key in known))
        elif alike:
            same = content_key(theirs.batch([i]).x0.numpy())
            found.update(pixels.get(same, ()))
    return found


def _refused(config: ImageChoice, images: Images, seen: Mapping[int, str], n: int) -> str:
    """The warning, where a person insists. Raises: Error, for a contestant that was trained on some of the images."""
    runs = ", ".join(dict.fromkeys(seen.values()))
    few = ", ".join(images.name(i) for i in list(seen)[:SHOWN])
    more = f" and {len(seen) - SHOWN:,} more" if len(seen) > SHOWN else ""
    were = "was" if len(seen) == 1 else "were"
    said = f"{len(seen):,} of the {plural(n, 'image')} {were} trained on by {runs} ({few}{more})"
    if config.force:
        return f"warning: {said}, so that the figures flatter"
    raise Error(
        f"{said}: a model knows their answers by heart. Give other images, --unseen to leave these out, or --force."
    )
