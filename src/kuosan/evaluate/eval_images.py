"""The real side of an evaluation: which images of which data set, and those that show how far apart real ones lie.

No image is on both sides of a floor. Which images are taken is drawn by a fixed key, so every evaluation of every
model against one data set sees the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from shlex import quote

import numpy as np
from PIL import Image

from kuosan.data.config import PORTRAITS, DataConfig
from kuosan.data.dataset import Images, open_images
from kuosan.data.pixels import to_uint8
from kuosan.data.scan import Progress
from kuosan.errors import Error, plural
from kuosan.evaluate.config import HELD_OUT, TRAIN
from kuosan.evaluate.images import ImageFiles
from kuosan.seeds import rng
from kuosan.storage.cache import NEAR, Results

BASELINE = 1000  # held-out images of memorisation's baseline, or as many as are made
LEAST = 3  # images a side; fewer have no distance
RUN, LARGEST = 64, 2**28  # images, and bytes, that are read at once
CELL = 256  # pixels a side of what is shown of images of several sizes, at most


@dataclass(frozen=True)
class Side:
    """Some images of a data set: those at places `begin` to `end` - 1 of `order`, without `skipped` ones."""

    what: str
    images: Images | ImageFiles
    order: np.ndarray  # image numbers, int64
    begin: int
    end: int
    skipped: frozenset[int] = frozenset()  # places of images that are on the other side of a floor as well

    @classmethod
    def of(
        cls, what: str, images: Images | ImageFiles, order: np.ndarray, begin: int = 0, n: int | None = None
    ) -> Side:
        """The n images from place `begin` on, or as many as there are."""
        last = len(order) if n is None else min(begin + n, len(order))
        return cls(what, images, order, min(begin, last), last)

    def __len__(self) -> int:
        return self.end - self.begin - len(self.skipped)

    @property
    def counted(self) -> np.ndarray:
        """Which of the places are counted: (end - begin,) bool."""
        return np.array([place not in self.skipped for place in range(self.begin, self.end)], bool)

    @property
    def ids(self) -> np.ndarray:
        """Their numbers."""
        found: np.ndarray = self.order[self.begin : self.end][self.counted]
        return found

    @property
    def contents(self) -> list[str]:
        """A hash of each one's content."""
        match self.images:
            case ImageFiles():
                every = self.images.contents
                return [every[int(i)] for i in self.ids]
            case _:
                return [self.images.scan.identity(int(i)) for i in self.ids]

    def without(self, other: Side) -> Side:
        """The same without images whose content is on the other side, too."""
        there = set(other.contents)
        places = [place for place in range(self.begin, self.end) if place not in self.skipped]
        twice = [place for place, content in zip(places, self.contents) if content in there]
        return replace(self, skipped=self.skipped | frozenset(twice))

    def bytes(self, n: int | None = None) -> np.ndarray:
        """The first n of them, or all, as they would be written: (N, C, H, W) uint8, which all have one size."""
        last = self.end if n is None else min(self.begin + n, self.end)
        return np.concatenate(list(self.parts(self.begin, last)))

    def shown(self, n: int) -> np.ndarray:
        """The first n of them to be looked at: (N, C, H, W) uint8, images of several sizes in cells of the largest."""
        parts = list(self.parts(self.begin, min(self.begin + n, self.end)))
        if len({part.shape[1:] for part in parts}) == 1:
            return np.concatenate(parts)
        high, wide = (min(CELL, max(part.shape[axis] for part in parts)) for axis in (2, 3))
        return np.stack([_cell(image, high, wide) for part in parts for image in part])

    def parts(self, begin: int, end: int) -> Iterator[np.ndarray]:
        """The images at these places of the order, in runs of one size: (b, C, H, W) uint8 each, no run too large."""
        match self.images:
            case ImageFiles():
                yield from _runs(self.images.at(int(i)) for i in self.order[begin:end])
            case _:
                for first in range(begin, end, RUN):
                    some = self.order[first : min(first + RUN, end)]
                    yield as_bytes(self.images.batch(some).x0.numpy())

    @property
    def key(self) -> str:
        """What their features are kept under: one name for all sides in one order."""
        of = f"{self.images.fingerprint} {self.order[:8].tolist()} {len(self.order)}"
        return sha256(of.encode()).hexdigest()[:16]

    def labels(self) -> np.ndarray | None:
        """Their classes by number, (N,) int64, -1 for none; None without classes."""
        labels = self.images.labels
        return None if labels is None else labels[self.ids]


def _runs(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Images (C, H, W) in runs of one size."""
    run: list[np.ndarray] = []
    for image in images:
        if run and (image.shape != run[0].shape or len(run) == RUN or len(run) * image.nbytes > LARGEST):
            yield np.stack(run)
            run = []
        run.append(image)
    if run:
        yield np.stack(run)


def _cell(image: np.ndarray, high: int, wide: int) -> np.ndarray:
    """An image (C, H, W) in the middle of a white cell, made smaller where it is larger."""
    channels, h, w = image.shape
    scale = min(1.0, high / h, wide / w)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    pixels = np.moveaxis(image, 0, -1)
    if scale < 1:
        flat = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
        pixels = np.asarray(flat.resize(size, Image.Resampling.BICUBIC)).reshape(size[1], size[0], channels)
    cell = np.full((channels, high, wide), 255, np.uint8)
    top, left = (high - size[1]) // 2, (wide - size[0]) // 2
    cell[:, top : top + size[1], left : left + size[0]] = np.moveaxis(pixels, -1, 0)
    return cell


def as_bytes(x: np.ndarray) -> np.ndarray:
    """[-1, 1] images (N, C, H, W) rounded to the 256 levels a file has: uint8."""
    return np.ascontiguousarray(np.moveaxis(to_uint8(x), -1, -3))


def own(data: DataConfig, path: str | None, run: str, progress: Progress | None = None) -> Images:
    """The images a run was trained on, opened as it opened them; not mirrored, whatever training did.

    Raises:
        Error: they are not where they were, and no `path` is given.
    """
    if path is None and data.path != PORTRAITS and not Path(data.path).expanduser().exists():
        raise Error(
            f"{run} was trained on {data.path}, which is not here: name where these images are now: kuosan evaluate "
            f"{quote(run)} --data IMAGES; or compare with others: --against OTHERS."
        )
    return open_images(replace(data, path=path or data.path), progress=progress, memory=Results.at(data.cache, NEAR))


def shuffled(images: Images | ImageFiles, what: str) -> np.ndarray:
    """The image numbers of `train`, `held_out` or everything, in an order drawn by a fixed key."""
    every = np.sort(np.concatenate([images.train, images.held_out, images.test]))
    numbers = {TRAIN: images.train, HELD_OUT: images.held_out}.get(what, every)
    found: np.ndarray = numbers[rng(0, f"evaluate/{what}").permutation(len(numbers))]
    return found


def sides(images: Images | ImageFiles, against: str, real: int | None, n: int) -> tuple[Side, tuple[Side, Side]]:
    """The reference, and two sets of real images whose distance is the floor.

    The floor is other real images against the reference; where too few are left, one half of it against the other.
    No image is on both sides of it, nor is another file of the same content.

    Args:
        real: images of the reference; None is `n`, as many as are made.

    Raises:
        Error: there are not so many, or too few for any distance.
    """
    train, held = (shuffled(images, name) for name in (TRAIN, HELD_OUT))
    what, order = {TRAIN: ("training images", train), HELD_OUT: ("held-out images", held)}.get(
        against, (f"images of {against}", shuffled(images, "all"))
    )
    if real is not None and real > len(order):
        raise Error(f"real = {real}: there are {len(order)} {what}; give {len(order)} or fewer, or leave it out.")
    if len(order) < LEAST:
        cure = "give --against train" if against == HELD_OUT else "more are needed"
        raise Error(f"{len(order)} {what} are too few for a distance; {cure}.")
    reference = Side.of(what, images, order, 0, real or n)
    rest = [Side.of(f"other {what}", images, order, len(reference), n)]
    if against == TRAIN:
        rest.append(Side.of("held-out images", images, held, 0, n))
    if against == HELD_OUT:
        rest.insert(0, Side.of("training images", images, train, 0, n))
    rest = [side.without(reference) for side in rest]
    widest = max(rest, key=len)
    half = len(reference) // 2
    if len(widest) >= max(LEAST, half // 2) or half < LEAST:
        return reference, (widest, reference)
    one, other = (Side.of(what, images, order, begin, half) for begin in (0, half))
    return reference, (replace(one, what=f"of the {what}"), replace(other.without(one), what="others of them"))


@dataclass(frozen=True)
class MemorisationCost:
    """What looking for copies reads that is not kept from before."""

    training: int  # images that were trained on, all of which are compared with
    images: int  # images still to be read, held-out ones among them
    seconds: float  # that takes, about, by reading a few of them
    metrics: tuple[str, ...]  # all the others

    def line(self, took: Callable[[float], str]) -> str:
        """What is said before it begins; `took` writes a time."""
        others = ",".join(self.metrics) or "none"
        return (
            f"memorisation: compares with all {plural(self.training, 'training image')}; {self.images:,} still to be "
            f"read, about {took(max(1.0, self.seconds))} (--metrics {others} leaves it out)"
        )


def memorisation_sides(own: Images, n: int) -> tuple[Side, Side]:
    """All training images, and the held-out ones that are the baseline of n made ones."""
    train = Side.of("training images", own, shuffled(own, TRAIN))
    return train, Side.of("held-out images", own, shuffled(own, HELD_OUT), 0, max(n, BASELINE))
