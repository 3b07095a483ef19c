"""The real side of an evaluation: which pictures of which data set, and those that tell how far apart real ones lie.

No picture is on both sides of a floor. Which pictures are taken is drawn by a fixed key, so every evaluation of every
model against one data set sees the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from kuosan.data.config import DataConfig
from kuosan.data.images import to_uint8
from kuosan.data.pictures import Pictures, open_pictures
from kuosan.data.scan import Progress
from kuosan.errors import Error
from kuosan.evaluate.config import HELD_OUT, TRAIN
from kuosan.seeds import rng

LEAST = 3  # pictures a side; fewer have no distance


@dataclass(frozen=True)
class Side:
    """Some pictures of a data set: those at places `begin` to `end` - 1 of `order`; `what` says which they are."""

    what: str
    pictures: Pictures
    order: np.ndarray  # picture numbers, int64
    begin: int
    end: int

    @classmethod
    def of(cls, what: str, pictures: Pictures, order: np.ndarray, begin: int = 0, n: int | None = None) -> Side:
        """The n pictures from place `begin` on, or as many as there are."""
        last = len(order) if n is None else min(begin + n, len(order))
        return cls(what, pictures, order, min(begin, last), last)

    def __len__(self) -> int:
        return self.end - self.begin

    @property
    def ids(self) -> np.ndarray:
        """Their numbers."""
        found: np.ndarray = self.order[self.begin : self.end]
        return found

    def bytes(self, n: int | None = None) -> np.ndarray:
        """The first n of them, or all, as they would be written: (N, C, H, W) uint8."""
        return self.at(self.begin, self.end if n is None else min(self.begin + n, self.end))

    def at(self, begin: int, end: int) -> np.ndarray:
        """The pictures at these places of the order: (N, C, H, W) uint8."""
        return as_bytes(self.pictures.batch(self.order[begin:end]).x0.numpy())

    @property
    def key(self) -> str:
        """What their features are kept under: one name for all sides in one order."""
        of = f"{self.pictures.fingerprint} {self.order[:8].tolist()} {len(self.order)}"
        return sha256(of.encode()).hexdigest()[:16]

    def labels(self) -> np.ndarray | None:
        """Their classes by number, (N,) int64, -1 for none; None without classes."""
        return None if self.pictures.labels is None else self.pictures.labels[self.ids]


def as_bytes(x: np.ndarray) -> np.ndarray:
    """[-1, 1] pictures (N, C, H, W) rounded to the 256 levels a file has: uint8."""
    return np.ascontiguousarray(np.moveaxis(to_uint8(x), -1, -3))


def own(data: DataConfig, path: str | None, progress: Progress | None = None) -> Pictures:
    """The pictures a run was trained on, opened as it opened them; not mirrored, whatever training did."""
    return open_pictures(replace(data, path=path or data.path), progress=progress)


def others(path: str, shape: tuple[int, int, int] | None, like: DataConfig, progress: Progress | None) -> Pictures:
    """The pictures at `path`, all of them, brought to `shape` (C, H, W) as `like` says; None decides from them.

    With aspect-ratio buckets they are those whose bucket has that shape.
    """
    size, channels = like.size, like.channels
    if shape is not None:
        if shape[1] != shape[2]:
            raise Error(
                f"pictures of {shape[2]}x{shape[1]} can be compared with the run's own alone: leave --against out."
            )
        size, channels = shape[1], "grey" if shape[0] == 1 else "rgb"
    found = open_pictures(replace(like, path=path, size=size, channels=channels, hold_out=0.0), progress=progress)
    return found if shape is None else found.only((shape[1], shape[2]))


def shuffled(pictures: Pictures, what: str) -> np.ndarray:
    """The picture numbers of `train`, `held_out` or everything, in an order drawn by a fixed key."""
    every = np.sort(np.concatenate([pictures.train, pictures.held_out, pictures.test]))
    numbers = {TRAIN: pictures.train, HELD_OUT: pictures.held_out}.get(what, every)
    found: np.ndarray = numbers[rng(0, f"evaluate/{what}").permutation(len(numbers))]
    return found


def sides(pictures: Pictures, against: str, real: int | None, n: int) -> tuple[Side, tuple[Side, Side]]:
    """The reference, and two sets of real pictures whose distance is the floor.

    The floor is other real pictures against the reference; where too few are left, one half of it against the other.

    Args:
        real: pictures of the reference; None is `n`, as many as are made.

    Raises:
        Error: there are not so many, or too few for any distance.
    """
    train, held = (shuffled(pictures, name) for name in (TRAIN, HELD_OUT))
    what, order = {TRAIN: ("training pictures", train), HELD_OUT: ("held-out pictures", held)}.get(
        against, (f"pictures of {against}", shuffled(pictures, "all"))
    )
    if real is not None and real > len(order):
        raise Error(f"real = {real}: there are {len(order)} {what}; give {len(order)} or fewer, or leave it out.")
    if len(order) < LEAST:
        cure = "give --against train" if against == HELD_OUT else "more are needed"
        raise Error(f"{len(order)} {what} are too few for a distance; {cure}.")
    reference = Side.of(what, pictures, order, 0, real or n)
    rest = [Side.of(f"other {what}", pictures, order, len(reference), n)]
    if against == TRAIN:
        rest.append(Side.of("held-out pictures", pictures, held, 0, n))
    if against == HELD_OUT:
        rest.insert(0, Side.of("training pictures", pictures, train, 0, n))
    widest = max(rest, key=len)
    half = len(reference) // 2
    if len(widest) >= max(LEAST, half // 2) or half < LEAST:
        return reference, (widest, reference)
    one, other = (Side.of(what, pictures, order, begin, half) for begin in (0, half))
    return reference, (replace(one, what=f"of the {what}"), replace(other, what="others of them"))
