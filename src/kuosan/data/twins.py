"""Near duplicates: images that are one another re-encoded, resized, cropped by a little or brightened. Torch-free.

An image is kept as a `View`: its brightness at 32 x 32 at most, its colour at 8 x 8. Candidates are pairs whose lowest
frequencies agree, as they are or with one of them cropped (`_candidates`, by a tree: none is compared with all others).
A candidate a, brought to b's size, is a near duplicate of b if what is left after brightness is fitted,

    r = b - clip(gain a + offset),    rms(r) <= T rms(b - mean b)

is small, spread over all that has detail (compression and resizing change every edge a little, an edit changes some
places and leaves the others exactly as they were), and the colours agree.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
from PIL import Image

from kuosan.data.entries import Look, Role
from kuosan.data.views import BICUBIC, COARSE, COLOUR, CROP, View, cells, coordinates

FINE, ROUGH = 0.10, 0.07  # T at the smaller one's size (32 at most), and at 16 x 16
SPREAD = {FINE: 0.3, ROUGH: 0.35}  # median over rms of |b - a| where there is detail
PEAKED = {FINE: 0.75, ROUGH: 0.6}  # of the energy of r in 6 of 64 blocks, at most
HUE = 20.0  # levels: the largest difference of colour
QUIET, STILL = 10.0, 0.025  # levels, and T: so small a difference need not be spread
ROUNDING = 3.0  # levels: |b - a| nowhere more is the same whatever its shape
ASPECT = 0.13  # |log| of the ratio of aspects
NEAR = 0.08  # distance of the coordinates of candidates, which lie on the unit sphere
LEAF, PART = 1500, 2048  # points compared with each other; pairs verified together
CLOSEST, FEWEST = 256, 8  # candidates of an image, at most; where there would be more than MOST_PAIRS in all, so few
MOST_PAIRS = 500_000  # verified in about two minutes of a core; thousands of images that are all alike have millions
GROWTH = 8  # times the points that all parts of the tree may hold together: halves overlap
VERSION = 1  # of what is kept of a comparison

BOX, BILINEAR = Image.Resampling.BOX, Image.Resampling.BILINEAR
Tell = Callable[[int, int], None]  # (done, of)


@dataclass(frozen=True)
class Groups:
    """Near duplicates, each group about the one of its images that holds most detail."""

    leader: np.ndarray  # (N,) int64: of each image's group, itself where it is alone or leads
    across: tuple[tuple[int, int], ...]  # near duplicates in different groups: chains, of which each link is alike
    crowded: int = 0  # images that resemble so many others at a glance that they were compared with the nearest alone

    @cached_property
    def members(self) -> list[list[int]]:
        """The groups of two or more."""
        found = defaultdict[int, list[int]](list)
        for i, own in enumerate(self.leader.tolist()):
            found[own].append(i)
        return [each for each in found.values() if len(each) > 1]


@dataclass(frozen=True)
class Near:
    """Near duplicates among images, by their looks.

    Attributes:
        pixels: hash of the pixels of each image.
        own: what each image's side would follow from by itself, hexadecimal: its lowest frequencies in coarse steps; of
            a flat one its pixels. A near duplicate mostly has the same; so even one that comes to lead its group moves
            few to another side.
        found: the groups, copies of the same pixels among them.
    """

    pixels: Sequence[str]
    own: Sequence[str]
    found: Groups

    @classmethod
    def of(cls, looks: Sequence[Look], tell: Tell | None = None) -> Near | None:
        """None where images are not compared: the split is the data set's own, or holds nothing out."""
        if not all(look.view for look in looks):
            return None
        views, pixels = [View.unpacked(look.view) for look in looks], [look.pixels for look in looks]
        codes = [view.code for view in views]
        own = [key if code is None else blake2b(code, digest_size=16).hexdigest() for key, code in zip(pixels, codes)]
        return cls(pixels, own, groups(views, pixels, tell))

    def packed(self) -> bytes:
        """As bytes, for a cache; hashes of 64 bits."""
        moved = np.flatnonzero(self.found.leader != np.arange(len(self.pixels)))
        row = {
            "pixels": _digest(self.pixels),
            "own": "".join(key[:16] for key in self.own),
            "leaders": [[int(i), int(self.found.leader[i])] for i in moved],
            "across": self.found.across,
            "crowded": self.found.crowded,
        }
        return json.dumps(row).encode()

    @classmethod
    def unpacked(cls, content: bytes, looks: Sequence[Look]) -> Near | None:
        """What `packed` made of these very images; None of others, or of anything else."""
        pixels, n = [look.pixels for look in looks], len(looks)
        try:
            row = json.loads(content)
            if row["pixels"] != _digest(pixels):
                return None
            own, leader = [row["own"][16 * i : 16 * i + 16] for i in range(n)], np.arange(n)
            for i, j in row["leaders"]:
                leader[i] = j
            across = tuple((int(i), int(j)) for i, j in row["across"])
            low, high = (f([0, *leader.tolist(), *(i for pair in across for i in pair)]) for f in (min, max))
            if low < 0 or high >= max(1, n) or any(int(key, 16) < 0 for key in own):
                return None
            return cls(pixels, own, Groups(leader, across, int(row["crowded"])))
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
            return None

    @cached_property
    def groups(self) -> list[list[int]]:
        """The groups that hold more than copies of the same pixels."""
        return [ids for ids in self.found.members if len({self.pixels[i] for i in ids}) > 1]

    def parted(self, roles: Sequence[Role]) -> list[tuple[int, int]]:
        """Pairs of near duplicates of different roles, one trained on and one held out say."""
        pairs = [(i, own) for i, own in enumerate(self.found.leader.tolist()) if i != own]
        return [(i, j) for i, j in [*pairs, *self.found.across] if roles[i] != roles[j]]

    def keys(self) -> list[str]:
        """What each side follows from: its leader's `own`, the first 64 bits at least."""
        return [self.own[leader] for leader in self.found.leader.tolist()]


def _digest(pixels: Sequence[str]) -> str:
    return blake2b(f"{VERSION} {' '.join(pixels)}".encode(), digest_size=16).hexdigest()


def groups(views: Sequence[View], keys: Sequence[str], tell: Tell | None = None) -> Groups:
    """Which images are near duplicates; images of the same key are.

    An image leads, in the order of detail, unless it is a near duplicate of one that leads already; every other joins
    the leader that it is nearest to. So an image added with less detail than those it resembles
    changes no other's group.

    Args:
        tell: called as (pairs compared, of).
    """
    first: dict[str, int] = {}
    of = np.array([first.setdefault(key, i) for i, key in enumerate(keys)], np.int64)
    own = np.unique(of)
    beside = defaultdict[int, list[tuple[float, int]]](list)
    different = [views[i] for i in own]
    candidates, crowded = _candidates(different)
    pairs = list(_alike(different, candidates, tell))
    for a, b, distance in pairs:
        beside[int(own[a])].append((distance, int(own[b])))
        beside[int(own[b])].append((distance, int(own[a])))
    order = sorted(beside, key=lambda i: (-views[i].detail, keys[i]))
    leads = set[int]()
    for i in order:
        if not any(other in leads for _, other in beside[i]):
            leads.add(i)
    leader = of.copy()
    for i in order:
        if i not in leads:
            leader[i] = min((distance, keys[j], j) for distance, j in beside[i] if j in leads)[2]
    links = tuple((int(own[a]), int(own[b])) for a, b, _ in pairs if leader[own[a]] != leader[own[b]])
    return Groups(leader[of], links, crowded)


def near_duplicates(views: Sequence[View]) -> Iterator[tuple[int, int, float]]:
    """Pairs (a, b) with a < b, and how far apart: rms(r) over rms(b - mean b)."""
    return _alike(views, _candidates(views)[0])


def _alike(views: Sequence[View], pairs: np.ndarray, tell: Tell | None = None) -> Iterator[tuple[int, int, float]]:
    """The near duplicates of candidates (n, 2), those of the same two shapes together."""
    shapes: dict[tuple[object, ...], int] = {}
    kind = np.array([shapes.setdefault((view.luma.shape, view.crops), len(shapes)) for view in views], np.int64)
    aspect = np.log(np.array([view.width / view.height for view in views], np.float64))
    one, other = pairs.T
    pairs = pairs[np.abs(aspect[one] - aspect[other]) <= ASPECT + 1e-12]
    both = kind[pairs[:, 0]] * len(shapes) + kind[pairs[:, 1]]
    order, done = np.argsort(both, kind="stable"), 0
    for batch in np.split(order, np.flatnonzero(np.diff(both[order])) + 1):
        for begin in range(0, len(batch), PART):
            part = pairs[batch[begin : begin + PART]].tolist()
            distances = _verified([views[a] for a, _ in part], [views[b] for _, b in part])
            done += len(part)
            if tell is not None:
                tell(done, len(pairs))
            yield from ((a, b, float(d)) for (a, b), d in zip(part, distances) if np.isfinite(d))


def _verified(ones: list[View], others: list[View]) -> np.ndarray:
    """How far apart pairs of views of two shapes are, inf where they are no near duplicates: (N,)."""
    found = np.full(len(ones), np.inf, np.float32)
    for p, q in ((ones, others), (others, ones)):
        luma = [np.stack([view.luma for view in views]).astype(np.float32) for views in (p, q)]
        colour = [np.stack([view.colour for view in views]).astype(np.float32) for views in (p, q)]
        for crop in ((0.0, 0.0), (CROP, CROP), p[0].crops):
            cut = cells(colour[0].reshape(-1, COLOUR, COLOUR), COLOUR, COLOUR, crop).reshape(colour[0].shape)
            hue = np.abs(cut - colour[1]).max((1, 2, 3)) <= HUE
            for (h, w), kernel, most in _ways(luma[0].shape[1:], luma[1].shape[1:]):
                rows = np.flatnonzero(hue)
                if not len(rows):
                    break
                a = cells(luma[0][rows], h, w, crop, kernel)
                b = cells(luma[1][rows], h, w, (0.0, 0.0), kernel)
                if crop != (0.0, 0.0) and min(h, w) >= COARSE:  # at the rim a crop knows less than the whole
                    a, b = a[:, 1:-1, 1:-1], b[:, 1:-1, 1:-1]
                found[rows] = np.minimum(found[rows], _distance(a, b, most))
            if crop == p[0].crops == (CROP, CROP):
                break
    return found


def _ways(one: tuple[int, ...], other: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], Image.Resampling, float]]:
    """At which sizes views of two shapes are compared, by which kernel they are brought there, and T."""
    low = min(one[0], other[0]), min(one[1], other[1])
    high = max(one[0], other[0]), max(one[1], other[1])
    yield low, BICUBIC, FINE
    if low != high:  # tools shrink and enlarge in several ways
        yield low, BOX, FINE
        yield low, BILINEAR, FINE
        yield high, BICUBIC, FINE
        yield high, BILINEAR, FINE
    if min(low) > COARSE:
        yield (COARSE, COARSE), BICUBIC, ROUGH


def _distance(a: np.ndarray, b: np.ndarray, most: float) -> np.ndarray:
    """How far a is from b, (N, h, w) float32 each: (N,), inf beyond `most` or where they are no near duplicates."""
    n, h, w = a.shape
    raw = np.abs(b - a).reshape(n, h * w)
    fa, fb = a.reshape(n, h * w), b.reshape(n, h * w)
    da, db = fa - fa.mean(1, keepdims=True), fb - fb.mean(1, keepdims=True)
    gain = np.clip((da * db).sum(1) / np.maximum((da * da).sum(1), 1e-6), 0.8, 1.25)[:, None]
    r = fb - np.clip(gain * da + fb.mean(1, keepdims=True), 0, 255)
    r -= r.mean(1, keepdims=True)
    far = np.sqrt((r * r).mean(1)) / np.maximum(np.sqrt((db * db).mean(1)), 1.0)
    same = (raw.max(1, initial=0) <= ROUNDING) & (most == FINE)
    rows = np.flatnonzero((far <= most) & ~same)
    result = np.where(same, far, np.inf).astype(np.float32)
    if len(rows):
        spread, peak = _spread(a[rows], raw[rows]), _peak((r[rows] ** 2).reshape(-1, h, w))
        kept = ((spread >= SPREAD[most]) | ((raw[rows].max(1) <= QUIET) & (far[rows] <= STILL))) & (
            peak <= PEAKED[most]
        )
        result[rows[kept]] = far[rows[kept]]
    return result


def _spread(a: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """The median over the rms of differences, where there is detail: (N,)."""
    steps = np.abs(np.diff(a, axis=1, append=a[:, -1:])) + np.abs(np.diff(a, axis=2, append=a[:, :, -1:]))
    steps = steps.reshape(len(a), -1)
    edges = steps > 0.5 * steps.mean(1, keepdims=True)
    some = edges.any(1)
    edges[~some] = True
    middle = np.nanmedian(np.where(edges, raw, np.nan), 1)
    size = np.sqrt(np.where(edges, raw * raw, 0).sum(1) / edges.sum(1))
    found: np.ndarray = middle / np.maximum(size, 0.5)
    return found


def _peak(energy: np.ndarray) -> np.ndarray:
    """The part of (N, h, w) that lies in the 6 fullest of 8 x 8 blocks: (N,)."""
    _, h, w = energy.shape
    rows, columns = (np.unique(np.linspace(0, side, min(8, side), endpoint=False).astype(int)) for side in (h, w))
    blocks = np.add.reduceat(np.add.reduceat(energy, rows, 1), columns, 2).reshape(len(energy), -1)
    most = np.sort(blocks, 1)[:, -6:].sum(1)
    found: np.ndarray = most / np.maximum(blocks.sum(1), 1e-9)
    return found


def _candidates(views: Sequence[View]) -> tuple[np.ndarray, int]:
    """Pairs (n, 2) of views whose coordinates lie within NEAR, one of them as it is, the other that or cropped.

    An image has at most the CLOSEST nearest ones; second, how many have more.
    """
    points, owners, whole = [], [], []
    shapes = defaultdict[tuple[tuple[int, ...], tuple[float, float]], list[int]](list)
    for i, view in enumerate(views):
        shapes[view.luma.shape, view.crops].append(i)
    for (_, crops), ids in shapes.items():
        for begin in range(0, len(ids), PART):
            part = np.array(ids[begin : begin + PART])
            luma = np.stack([views[i].luma for i in part]).astype(np.float32)
            for crop in sorted({(0.0, 0.0), (CROP, CROP), crops}):
                values, flat = coordinates(cells(luma, COARSE, COARSE, crop))
                points.append(values[~flat])
                owners.append(part[~flat])
                whole.append(np.full(len(owners[-1]), crop == (0.0, 0.0)))
    n = len(views)
    if n < 2:
        return np.empty((0, 2), np.int64), 0
    pairs, crowded = _near(np.concatenate(points), np.concatenate(owners), np.concatenate(whole), n)
    return np.stack([pairs // n, pairs % n], 1), crowded


def _near(x: np.ndarray, owner: np.ndarray, plain: np.ndarray, n: int) -> tuple[np.ndarray, int]:
    """Pairs a * n + b of owners with points within NEAR, by halving along the widest coordinate, with an overlap.

    Second, how many owners were not compared with all of theirs. Halves that overlap so much that all parts together
    would hold more than GROWTH times the points are not made: each point then meets those next to it alone.
    """
    found, ranks, crowded = [np.empty(0, np.int64)], [np.empty(0, np.int64)], np.zeros(n, bool)
    waiting, room = deque([np.arange(len(x))]), GROWTH * len(x)
    most = max(FEWEST, min(CLOSEST, 2**24 // n))  # so many pairs take 150 MB
    while waiting:
        ids = waiting.popleft()
        if len(ids) > LEAF:
            column = x[ids, int(np.argmax(x[ids].std(0)))]
            middle = float(np.median(column))
            low, high = ids[column <= middle + NEAR / 2], ids[column >= middle - NEAR / 2]
            more = len(low) + len(high) - len(ids)
            if max(len(low), len(high)) < 0.9 * len(ids) and more <= room:
                waiting += [low, high]
                room -= more
                continue
            ids = ids[np.argsort(column, kind="stable")]
        many = len(ids) > 8 * LEAF  # all alike: each is compared with those next to it alone
        own = ids[plain[ids]]
        if many:
            crowded[owner[own]] = True
        for begin in range(0, len(own), PART):
            one = own[begin : begin + PART]
            other = ids if not many else own[max(0, begin - CLOSEST) : begin + PART + CLOSEST]
            squares = _squares(x[one])[:, None] + _squares(x[other]) - 2 * (x[one] @ x[other].T)
            squares[owner[one][:, None] == owner[other]] = np.inf
            close = squares <= NEAR**2
            rank = np.zeros(close.shape, np.int16)  # among the candidates of an image that has too many
            for row in np.flatnonzero(np.count_nonzero(close, 1) > most):
                nearest = np.argpartition(squares[row], most)[:most]
                close[row], crowded[owner[one[row]]] = False, True
                close[row, nearest] = True
                rank[row, nearest[np.argsort(squares[row, nearest])]] = np.arange(most)
            rows, columns = np.nonzero(close)
            a, b = owner[one[rows]], owner[other[columns]]
            found.append(np.minimum(a, b) * n + np.maximum(a, b))
            ranks.append(rank[rows, columns])
    pairs, place = np.concatenate(found), np.concatenate(ranks)
    if len(every := np.unique(pairs)) > MOST_PAIRS:
        every = np.unique(pairs[place < max(FEWEST, most * MOST_PAIRS // len(every))])
    return every, int(np.count_nonzero(crowded))


def _squares(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = (x * x).sum(1)
    return found
