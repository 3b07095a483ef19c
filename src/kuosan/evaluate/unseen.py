"""The pictures that models are measured on, and whether one of them was trained on them.

A picture was trained on if a run's training part holds a file, or an array, of the same bytes, or if both are the same
pixels once brought to the models' size. A copy that was edited, mirrored or compressed anew is not noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from kuosan import config as trees
from kuosan import seeds
from kuosan.data.config import PORTRAITS, DataConfig
from kuosan.data.pictures import Pictures, open_pictures
from kuosan.data.scan import Progress, content_key
from kuosan.errors import Error

SHOWN = 3  # pictures that a refusal names


class Asked(Protocol):
    """Settings that say which pictures are wanted."""

    @property
    def pictures(self) -> str:
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


@dataclass(frozen=True)
class Chosen:
    """The pictures that are compared on."""

    pictures: Pictures
    ids: np.ndarray  # (N,) their numbers
    notes: tuple[str, ...]  # what is to be said of them

    @property
    def names(self) -> tuple[str, ...]:
        """Their files, or places in the array."""
        return tuple(self.pictures.name(int(i)) for i in self.ids)


def chosen(
    config: Asked,
    shape: tuple[int, int, int],
    runs: Mapping[str, Schooling],
    progress: Progress | None = None,
) -> Chosen:
    """Open the pictures at the models' size, and draw n of them by a fixed key.

    Args:
        shape: (C, H, W) of the models' pictures.
        runs: what each run was trained on, by the run's name.

    Raises:
        Error: no such pictures, fewer than two, or some that a run was trained on.
    """
    pictures = _opened(config, shape, progress)
    order, notes = _candidates(pictures)
    order = order[seeds.permutation(len(order), 0, 0)]
    seen, told = _seen(pictures, order if config.unseen else order[: config.n], runs, progress)
    notes += told
    if config.unseen and seen:
        order = np.array([i for i in order if int(i) not in seen], np.int64)
        notes.append(f"{len(seen):,} pictures are left out: they were trained on")
    if len(order) < 2:
        raise Error(f"{config.pictures} has {len(order)} such pictures; at least 2 are needed: name others.")
    if len(order) < config.n:
        notes.append(f"there are {len(order):,} such pictures, not {config.n:,}: all are taken")
    ids = order[: config.n]
    if seen and not config.unseen:
        notes.append(_refused(config, pictures, seen, len(ids)))
    small = sum(min(look.width, look.height) < shape[1] for look in (pictures.scan.looks[i] for i in ids))
    if small:
        notes.append(
            f"{small:,} of them are smaller than {shape[2]}x{shape[1]} and were enlarged: their truth is smooth"
        )
    return Chosen(pictures, ids, tuple(notes))


def _opened(config: Asked, shape: tuple[int, int, int], progress: Progress | None) -> Pictures:
    channels, height, width = shape
    if height != width:
        raise Error(f"these models make pictures of {width}x{height}; only square ones can be compared.")
    own = DataConfig(config.pictures, size=height, channels="grey" if channels == 1 else "rgb")
    pictures = open_pictures(own, progress=progress)
    if pictures.shape != shape:
        raise Error(f"{config.pictures} gives pictures {pictures.shape}, the models make {shape}: name others.")
    return pictures


def _candidates(pictures: Pictures) -> tuple[np.ndarray, list[str]]:
    """The held-out ones of a data set that has a split of its own, else all."""
    split = [entry.held_out for entry in pictures.scan.entries]
    if not any(split):
        return np.arange(len(pictures)), []
    held = np.flatnonzero([bool(out) for out in split])
    return held, [f"only the {len(held):,} of {len(pictures):,} that the data set itself holds out are used"]


def _seen(
    pictures: Pictures, ids: np.ndarray, runs: Mapping[str, Schooling], progress: Progress | None
) -> tuple[dict[int, str], list[str]]:
    """Which of these pictures a run was trained on, each with that run; and what is to be said of the runs."""
    keys = {pictures.scan.looks[int(i)].key: int(i) for i in ids}
    pixels = {content_key(pictures.batch([i]).x0.numpy()): int(i) for i in ids}
    seen: dict[int, str] = {}
    notes, opened = list[str](), dict[str, Pictures]()
    for run, (tree, fingerprint) in runs.items():
        path = str(tree.get("path", ""))
        if path != PORTRAITS and not Path(path).expanduser().exists():
            notes.append(f"{run} was trained on {path}, which is not here: whether it saw these pictures is not known")
            continue
        name = trees.dump(dict(tree))
        if name not in opened:
            opened[name] = open_pictures(trees.build(DataConfig, tree), progress=progress)
        if fingerprint not in (None, opened[name].fingerprint):
            notes.append(f"{path} has changed since {run} was trained on it: only what is there now was looked for")
        for i in _shared(opened[name], keys, pixels, pictures.shape):
            seen.setdefault(i, run)
    return seen, notes


def _shared(theirs: Pictures, keys: Mapping[str, int], pixels: Mapping[str, int], shape: tuple[int, ...]) -> set[int]:
    """The pictures, of those with these keys and pixels, that are in a run's training part."""
    found = set[int]()
    alike = theirs.in_memory and theirs.shape == shape
    for i in theirs.train:
        key = theirs.scan.looks[int(i)].key
        if key in keys:
            found.add(keys[key])
        elif alike:
            same = content_key(theirs.batch([i]).x0.numpy())
            if same in pixels:
                found.add(pixels[same])
    return found


def _refused(config: Asked, pictures: Pictures, seen: Mapping[int, str], n: int) -> str:
    """The warning, where a person insists. Raises: Error, for a contestant that was trained on some of the pictures."""
    runs = ", ".join(dict.fromkeys(seen.values()))
    few = ", ".join(pictures.name(i) for i in list(seen)[:SHOWN])
    more = f" and {len(seen) - SHOWN:,} more" if len(seen) > SHOWN else ""
    told = f"{len(seen):,} of the {n:,} pictures were trained on by {runs} ({few}{more})"
    if config.force:
        return f"warning: {told}, so that the figures flatter"
    raise Error(
        f"{told}: a model knows their answers by heart. Give other pictures, --unseen to leave these out, or --force."
    )
