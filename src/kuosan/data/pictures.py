"""The opened data set: `open_pictures(config) -> Pictures`, and batches of it as x0 in [-1, 1].

Pictures have numbers 0 .. N-1; `train` and `held_out` are numbers. The random part of a batch (mirror, window) is
drawn from the keys its caller gives, so a batch is a pure function of (numbers, keys).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from hashlib import blake2b
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kuosan.data.config import DataConfig
from kuosan.data.dataset import DatasetSource
from kuosan.data.doctor import Report
from kuosan.data.entries import Source
from kuosan.data.given import Given
from kuosan.data.headers import Refused
from kuosan.data.images import from_uint8
from kuosan.data.scan import Memory, Progress, Scan, load, scan
from kuosan.data.sources import find_source
from kuosan.errors import Error
from kuosan.seeds import Key, rng

AHEAD = 4  # batches decoded before they are asked for


class Batch(NamedTuple):
    """Some pictures: x0 (B, C, H, W) float32 in [-1, 1], ids (B,) int64, label (B,) int64 (-1: none) or None."""

    x0: Tensor
    ids: Tensor
    label: Tensor | None = None
    caption: list[str] | None = None  # empty where a picture has none
    given: Given | None = None  # of a task that restores: what a user would bring of each
    text: Mapping[str, Tensor] | None = None  # what a network is told of the captions, by door, (B, ...) each
    latent: Tensor | None = None  # (B, c, h, w) what is denoised in x0's place, where x0 is needed beside it

    @property
    def denoised(self) -> Batch:
        """The same with what a network denoises as x0, and nothing beside it."""
        return self if self.latent is None else self._replace(x0=self.latent, latent=None)


Request = tuple[Sequence[int] | np.ndarray, Sequence[Key] | None]  # the ids of a batch, and a key for each


class Pictures:
    """A data set ready to be trained on.

    Attributes:
        shape: (C, H, W) of x0; with buckets the square's, or where no training picture is square the commonest's.
        buckets: the shapes of pictures, and each picture's; one shape without buckets.
        train, held_out: picture numbers, (N,) int64 each, disjoint.
        test: numbers of those that are neither, as the data set keeps them for testing; mostly empty.
        classes: their names in the order of the labels; empty without classes.
        labels: (N,) int64, -1 where a picture has none; None without classes.
        captions: a text a picture, None where it has none; None if no picture has one.
        attributes: of the portraits, a dict a picture; None elsewhere.
        fingerprint: changes when any picture, label, caption, split or setting that shows in x0 does; a run keeps
            `fingerprint_of` what it uses.
        report: every file accounted for.
    """

    def __init__(self, source: Source, scanned: Scan, config: DataConfig) -> None:
        if not scanned.entries:
            raise _nothing(config, scanned)
        self.source, self.scan, self.config, self.plan = source, scanned, config, scanned.plan
        self.report = Report(config, scanned)
        self.held_out, self.train = self.report.split()
        self.test = self.report.test()
        self.buckets = self.report.buckets
        self.shape = (self.plan.channels, *self.buckets.usual(self.train))
        self.classes = self.report.classes
        places = {name: i for i, name in enumerate(self.classes)}
        names = [entry.label for entry in scanned.entries]
        self.labels = np.array([-1 if name is None else places[name] for name in names]) if self.classes else None
        texts = [entry.caption for entry in scanned.entries]
        self.captions = texts if any(text is not None for text in texts) else None
        self.attributes: list[dict[str, str]] | None = getattr(source, "attributes", None)
        self.fingerprint = self.fingerprint_of()

    def __len__(self) -> int:
        return len(self.scan.entries)

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are held as bytes, or decoded anew for each batch."""
        return self.scan.pixels is not None

    def only(self, shape: tuple[int, int]) -> Pictures:
        """The same data set, `train` and `held_out` of which are the numbers in the bucket of `shape` (H, W) alone.

        Raises:
            Error: there is no such bucket.
        """
        if shape not in self.buckets.shapes:
            have = ", ".join(f"{w}x{h}" for h, w in self.buckets.shapes)
            raise Error(f"{self.config.path} has no pictures of {shape[1]}x{shape[0]} (width x height), but of {have}.")
        some, place = copy(self), self.buckets.shapes.index(shape)
        parts = (self.train, self.held_out, self.test)
        some.train, some.held_out, some.test = (ids[self.buckets.of[ids] == place] for ids in parts)
        some.shape = (self.shape[0], *shape)
        return some

    def describe(self) -> list[str]:
        """What will be trained on and what is done to it, a sentence a line."""
        return self.report.lines()

    def name(self, id: int) -> str:
        """The file, or the place in the array, of one picture."""
        return self.scan.entries[id].name

    def pixels(self, id: int) -> np.ndarray:
        """The bytes kept of one picture, (H, W, C): its bucket's shape, larger than what is shown for random_crop.

        Raises:
            Error: its file has gone, or is not what it was when the data set was opened.
        """
        if self.scan.pixels is not None:
            kept: np.ndarray = self.scan.pixels[id]
            return kept
        entry, place = self.scan.entries[id], self.scan.places[id]
        try:
            return load(self.source, entry, place, self.scan.looks[id], self.config, self.plan)
        except Refused as reason:
            raise Error(
                f"{entry.name} in {self.config.path} was good when the data set was opened and is now {reason}. "
                "Put the file back, or start again so that the folder is looked at anew."
            ) from None

    def batch(self, ids: Sequence[int] | np.ndarray, keys: Sequence[Key] | None = None) -> Batch:
        """Pictures by number; mirrored and moved as drawn from `keys`, one a picture, or as they are without keys.

        Raises:
            Error: they are of several buckets, or a file has changed.
        """
        return self._finish(ids, [self.pixels(int(id)) for id in ids], keys)

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """`batch` of each request in order; pictures that are not in memory are decoded ahead in threads."""
        if self.in_memory or self.config.workers == 0 or isinstance(self.source, DatasetSource):
            for ids, keys in requests:
                yield self.batch(ids, keys)
            return
        waiting: deque[tuple[Request, list[Future[np.ndarray]]]] = deque()
        with ThreadPoolExecutor(self.config.workers, thread_name_prefix="kuosan-decode") as pool:
            try:
                for request in chain(requests, repeat(None, AHEAD)):
                    if request is not None:
                        waiting.append((request, [pool.submit(self.pixels, int(id)) for id in request[0]]))
                        if len(waiting) < AHEAD:
                            continue
                    if waiting:
                        (ids, keys), pixels = waiting.popleft()
                        yield self._finish(ids, [result.result() for result in pixels], keys)
            finally:
                for _, pixels in waiting:
                    for result in pixels:
                        result.cancel()

    def _finish(self, ids: Sequence[int] | np.ndarray, pixels: list[np.ndarray], keys: Sequence[Key] | None) -> Batch:
        drawn: Sequence[Key | None] = keys or [None] * len(ids)
        assert len(drawn) == len(ids), (len(ids), len(drawn))
        if len({each.shape for each in pixels}) > 1:
            raise Error("these pictures are of several buckets, a batch is of one: group ids by pictures.buckets.of.")
        x0 = torch.from_numpy(from_uint8(np.stack([self._drawn(*pair) for pair in zip(pixels, drawn)])))
        return self._with_words(x0, ids)

    def _with_words(self, x0: Tensor, ids: Sequence[int] | np.ndarray) -> Batch:
        """A batch of x0 with what is said of these pictures."""
        numbers = np.asarray(ids, np.int64)
        label = None if self.labels is None else torch.from_numpy(self.labels[numbers])
        caption = None if self.captions is None else [self.captions[i] or "" for i in numbers]
        return Batch(x0, torch.from_numpy(numbers.copy()), label, caption)

    def _drawn(self, pixels: np.ndarray, key: Key | None) -> np.ndarray:
        """The window and the mirror image that `key` draws; the middle, unmirrored, without one."""
        size, spare = self.plan.size, self.plan.side - self.plan.size
        top = left = spare // 2
        if key is not None and (spare or self.config.flip):
            draw = rng(*key)
            mirrored = draw.random() < 0.5
            if spare:
                top, left = (int(place) for place in draw.integers(0, spare + 1, 2))
            if mirrored and self.config.flip:
                pixels = pixels[:, ::-1]
        if self.plan.shapes:
            return pixels
        return pixels[top : top + size, left : left + size]

    def fingerprint_of(self, labels: bool = True, captions: bool = True) -> str:
        """The fingerprint of what a run uses: without `labels` or `captions`, editing them changes nothing.

        By split version 1 it is of files' bytes, labels and captions, whatever is used.
        """
        if not self.scan.by_pixels:
            return vars(self).get("fingerprint") or self._by_bytes()  # of all shapes, whatever `only` leaves
        digest = blake2b(digest_size=16)
        plan, classes = self.plan, self.classes if labels else ()
        settings = (plan.size, plan.side, plan.rule, plan.channels, plan.shapes, plan.background, self.config.flip)
        digest.update(repr((2, settings, labels, captions, classes)).encode())
        for i, entry in enumerate(self.scan.entries):
            beside = (entry.label if labels else None, entry.caption if captions else None)
            digest.update(
                repr((self.scan.identity(i), *beside, self.report.roles[i])).encode("utf-8", "backslashreplace")
            )
        return digest.hexdigest()

    def has_fingerprint(self, known: object) -> bool:
        """Whether a run that keeps this fingerprint was trained on these, whatever of them it used."""
        uses = ((labels, captions) for labels in (True, False) for captions in (True, False))
        return any(known == self.fingerprint_of(*each) for each in uses)

    def _by_bytes(self) -> str:
        digest = blake2b(digest_size=16)
        digest.update(repr((self.plan.size, self.plan.side, self.plan.rule, self.plan.channels)).encode())
        if self.plan.shapes:
            digest.update(repr(self.plan.shapes).encode())
        digest.update(repr((self.plan.background, self.config.flip, self.classes)).encode())
        held = set(self.held_out.tolist())
        for i, (entry, look) in enumerate(zip(self.scan.entries, self.scan.looks)):
            digest.update(repr((look.key, entry.label, entry.caption, i in held)).encode())
            if look.reading != 1:
                digest.update(repr(("reading", look.reading, self.config.range)).encode())
        if len(self.test):
            digest.update(repr(("test", self.test.tolist())).encode())
        return digest.hexdigest()


def open_pictures(
    data: DataConfig | Any,
    config: DataConfig | None = None,
    *,
    progress: Progress | None = None,
    cache: Path | None = None,
    memory: Memory | None = None,
    outputs: Collection[Path] = (),
) -> Pictures:
    """Open what a config names, or a torch data set (with `config` for size, channels and the rest).

    Args:
        progress: called as (what, done, of) while files are looked at.
        cache: a file for what was told of each file, so that the next opening is quicker; none by default.
        memory: keeps the near duplicates of large sets (`kuosan.shelf.results`); none by default.
        outputs: folders that are written to, which are no data where they lie below it.

    Raises:
        Error: nothing is there, or nothing of it can be used.
    """
    if isinstance(data, DataConfig):
        config, source = data, find_source(data, outputs)
    else:
        config = config or DataConfig(path=type(data).__name__)
        source = DatasetSource(data, config)
    return Pictures(source, scan(source, config, keep=True, progress=progress, cache=cache, memory=memory), config)


def _nothing(config: DataConfig, scanned: Scan) -> Error:
    if not scanned.refused:
        return Error(f"{config.path} is empty: put pictures (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF) into it.")
    shown = "; ".join(f"{name}: {reason}" for name, reason in scanned.refused[:3])
    more = len(scanned.refused) - 3
    return Error(
        f"no picture in {config.path} can be used. {shown}"
        + (f"; and {more} more." if more > 0 else ".")
        + " `kuosan doctor` lists them all."
    )
