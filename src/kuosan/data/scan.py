"""Every file of a source looked at once: what it is, whether it can be used, and if so its pixels.

Two passes: headers (kind, size, content hash), from which size and rule are decided; then pixels, because only
decoding shows whether a file is whole.

What earlier looks found, in a file the caller names: a file of the same size and time is not looked at again.

Images kept in memory as bytes: one array for all images of a shape. Torch-free.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL

from kuosan.data.config import (
    GREY,
    RGB,
    RGBA,
    SIZES,
    DataConfig,
    Shape,
    default_step,
    laid_on,
    nearest,
    scale_of,
    shapes,
)
from kuosan.data.decoding import Decoded, decode_to, read_header
from kuosan.data.footprint import FILES
from kuosan.data.headers import Refused
from kuosan.data.near_duplicates import VERSION, Near, View
from kuosan.data.pixels import cover, fit, is_grey, least_channels, opaque, with_channels
from kuosan.data.walk import Entry, Listing, Look, Source, captioned, understood
from kuosan.storage.cache import Results
from kuosan.storage.files import write_atomic

Progress = Callable[[str, int, int], None]  # (what, done, of)
Job = TypeVar("Job")

DEFAULT_SIZE = 64  # pixels a side at most where nobody says: what a CPU can learn in an evening
CHUNK = 256  # results that may wait for the slowest
LOOKING, DECODING, COMPARING = "looking at files", "decoding images", "comparing images"
REMEMBERED = 5_000  # images from which on near duplicates are kept for the next time; fewer are compared in seconds
BETWEEN = (128, 128, 128)  # what transparent images lie on to be compared: neither black nor white ones vanish
BORDER = 8  # pixels that `auto` adds around small images of one size, 28 -> 32, instead of scaling them


@dataclass(frozen=True)
class ResizePlan:
    """What is done to every image: `side` pixels are stored of which `size` are shown (random_crop), by `rule`.

    With buckets, each goes to the nearest of `shapes` instead, all of about size x size pixels; of no squares one.
    """

    size: int
    side: int
    rule: str
    channels: int
    background: tuple[int, int, int] | None  # None: transparency is kept
    why: str = ""
    shapes: tuple[Shape, ...] = ()  # (H, W) of all buckets, or of all images where they are no squares

    def shape_of(self, look: Look) -> Shape:
        """(H, W) that is stored of an image."""
        if not self.shapes:
            return self.side, self.side
        return self.shapes[nearest(self.shapes, look.height, look.width)]


@dataclass(frozen=True)
class Scan:
    """The usable entries in the order of their numbers, with looks; the rest in `refused`; pixels if they were kept."""

    listing: Listing
    plan: ResizePlan
    entries: list[Entry]
    looks: list[Look]
    places: list[int]  # each entry's place in the listing, which is what the source reads by
    refused: list[tuple[str, str]] = field(default_factory=list)
    pixels: PixelStore | None = None
    by_pixels: bool = False  # whether images are the same by what they decode to, or by the bytes of their files
    near: Near | None = None  # near duplicates; None where images are not compared

    def identity(self, i: int) -> str:
        """What makes image i the same one, whatever its name: the hash of its pixels, or of its file's bytes."""
        return self.looks[i].pixels if self.by_pixels else self.looks[i].key


def scan(
    source: Source,
    config: DataConfig,
    *,
    keep: bool,
    progress: Progress | None = None,
    cache: Path | None = None,
    memory: Results | None = None,
) -> Scan:
    """Look at everything in `source`; with `keep`, hold the pixels if they fit into `config.memory_gib`.

    `memory` keeps the near duplicates of large sets.
    """
    listing = source.listing()
    earlier = ScanCache(cache, config)
    compared = config.split_version > 1 and (not keep or by_content(config, listing.entries))
    looks = list(
        _each(
            lambda job: _head(source, config, earlier, *job),
            list(enumerate(listing.entries)),
            config,
            progress,
            LOOKING,
        )
    )
    good = [i for i, look in enumerate(looks) if not look.reason]
    memory, name = memory if len(good) >= REMEMBERED else None, _name(config, looks)
    kept = None if memory is None or not compared else memory.get(name)
    viewed = compared and kept is None  # what is kept needs no views
    if not listing.in_order and config.split_version == 1:
        good.sort(key=lambda i: (looks[i].key, listing.entries[i].name))
    plan = decide(config, [looks[i] for i in good])
    store = None
    sides = [plan.shape_of(looks[i]) for i in good]
    if keep and good and sum(h * w for h, w in sides) * plan.channels <= config.memory_gib * 2**30:
        store = PixelStore.room(sides, plan.channels)

    def decode_one(job: tuple[int, int]) -> Look:
        place, i = job
        known = earlier.look(listing.entries[i]) is not None and (bool(looks[i].view) or not viewed)
        if store is None and known:
            return looks[i]
        room = None if store is None else store[place]
        return _pixels(source, listing.entries[i], i, looks[i], config, plan, room, viewed)

    for i, look in zip(good, list(_each(decode_one, list(enumerate(good)), config, progress, DECODING))):
        looks[i] = look
    earlier.write(listing.entries, looks)
    whole = [place for place, i in enumerate(good) if not looks[i].reason]
    if not listing.in_order and config.split_version > 1:
        whole.sort(key=lambda place: (looks[good[place]].pixels, listing.entries[good[place]].name))
    if store is not None and whole != list(range(len(good))):
        store = store.only(whole)
    found = _finish(listing, plan, looks, [good[place] for place in whole], store, config)
    if not compared or not found.entries:
        return found
    near = None if kept is None else Near.unpacked(kept, found.looks)
    if kept is not None and near is None:  # of other images after all, or damaged
        return scan(source, config, keep=keep, progress=progress, cache=cache)
    return replace(found, near=near or _compared(found.looks, memory, name, progress))


def _compared(looks: list[Look], memory: Results | None, name: str, progress: Progress | None) -> Near | None:
    """The near duplicates: compared by one process, and kept."""

    def compare() -> Near | None:
        return Near.of(looks, progress and partial(progress, COMPARING))

    if memory is None or not all(look.view for look in looks):
        return compare()
    own: list[Near | None] = []

    def packed() -> bytes:
        own.append(compare())
        return b"" if own[0] is None else own[0].packed()

    kept = memory.once(name, packed)
    return own[0] if own else Near.unpacked(kept, looks) or compare()


def _name(config: DataConfig, looks: list[Look]) -> str:
    """What a comparison is kept by: the files' content, how they are decoded, and by which versions."""
    how: tuple[object, ...] = (
        VERSION,
        PIL.__version__,
        config.background,
        config.range,
        config.max_pixels,
        config.max_bytes,
    )
    filled = config.size if config.resize == "pad" else 0  # grey on a coloured background is seen as colour
    how = (*how, *["rgba"] * (config.channels == "rgba"))
    digest = blake2b(repr((*how, filled)).encode(), digest_size=16)
    for look in looks:
        digest.update(look.key.encode() or b"-")
    return digest.hexdigest()


def _finish(
    listing: Listing,
    plan: ResizePlan,
    looks: list[Look],
    places: list[int],
    store: PixelStore | None,
    config: DataConfig,
) -> Scan:
    """The scan of the usable `places` of a listing; grey images stored as colour lose two channels."""
    kept = [looks[i] for i in places]
    if config.channels == "auto" and plan.channels == 3 and kept and all(look.grey for look in kept):
        plan = replace(plan, channels=1)
        store = None if store is None else store.grey()
    bad = [(entry.name, look.reason) for entry, look in zip(listing.entries, looks) if look.reason]
    entries, notes = understood(listing, [listing.entries[i] for i in places], config.layout)
    entries, named = captioned(listing, entries, config)
    listing = replace(listing, notes=(*notes, *named, *listing.notes))
    refused = sorted([*listing.skipped, *bad])
    return Scan(listing, plan, entries, kept, places, refused, store, config.split_version > 1)


def by_content(config: DataConfig, entries: list[Entry]) -> bool:
    """Whether some images are held out and the data set itself does not say which."""
    if config.hold_out is not None:
        return config.hold_out > 0
    return all(entry.role is None for entry in entries)


def content_key(content: bytes | np.ndarray) -> str:
    """128 bits of BLAKE2b of a file's bytes, or of an array's shape and values."""
    if isinstance(content, bytes):
        return blake2b(content, digest_size=16).hexdigest()
    digest = blake2b(repr(content.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(content).data)
    return digest.hexdigest()


def decide(config: DataConfig, heads: list[Look]) -> ResizePlan:
    """Size, rule and channels from the settings and, where they leave it open, from what is there."""
    sizes = {(head.width, head.height) for head in heads}
    every: tuple[Shape, ...] = (config.sides,) if isinstance(config.size, str) else ()
    size, why = _size(heads, sizes) if config.size is None else (round(prod(config.sides) ** 0.5), "as set")
    rule = config.resize
    if rule == "auto":
        near = len(sizes) == 1 and all(0 <= size - side <= BORDER for pair in sizes for side in pair) and not every
        rule = "centre" if near else "crop"
    side = size
    if rule == "random_crop":
        side, rule = size * 9 // 8, "crop"
    grey = config.channels == "grey" or (config.channels == "auto" and bool(heads) and all(head.grey for head in heads))
    if rule == "buckets":
        every = shapes(size, config.bucket_step or default_step(size), config.bucket_aspect)
    channels = RGBA if config.channels == "rgba" else GREY if grey else RGB
    return ResizePlan(size, side, rule, channels, laid_on(config), why, every)


def _size(heads: list[Look], sizes: set[tuple[int, int]]) -> tuple[int, str]:
    if len(sizes) == 1:
        ((w, h),) = sizes
        if w == h <= DEFAULT_SIZE:
            return max(SIZES[0], -(-w // 8) * 8), f"all images are {w}x{h}"
    shorter = sorted(min(head.width, head.height) for head in heads) or [DEFAULT_SIZE]
    tenth = shorter[len(shorter) // 10]
    size = max(SIZES[0], min(DEFAULT_SIZE, 1 << (tenth.bit_length() - 1)))
    return size, f"nine in ten images are at least {tenth} pixels on their shorter side; set size for another"


def _head(source: Source, config: DataConfig, cache: ScanCache, i: int, entry: Entry) -> Look:
    known = cache.look(entry)
    if known is not None:
        return known
    try:
        with FILES.hold(_size_of(entry), config.max_bytes):
            return _looked_at(source.read(entry, i), config)
    except Refused as reason:
        return Look(str(reason))


def _size_of(entry: Entry) -> int:
    """Bytes of an entry's file, 0 of what lies in memory."""
    return 0 if entry.stamp is None else entry.stamp[0]


def _looked_at(content: bytes | np.ndarray, config: DataConfig) -> Look:
    """What one file or array is."""
    if isinstance(content, np.ndarray):
        h, w, c = content.shape
        return Look("", content_key(content), w, h, {GREY: "L", RGB: "RGB", RGBA: "RGBA"}[c], c == GREY)
    if not content:
        raise Refused("empty file")
    header = read_header(content, config.max_pixels, scale_of(config.range), config.max_bytes)
    grey = header.mode in ("1", "L", "LA", "La", "F", "I") or header.mode.startswith("I;16")
    return Look("", content_key(content), header.width, header.height, header.mode, grey)


def _pixels(
    source: Source,
    entry: Entry,
    i: int,
    head: Look,
    config: DataConfig,
    plan: ResizePlan,
    store: np.ndarray | None,
    compared: bool,
) -> Look:
    def look(decoded: Decoded) -> Look:
        whole = decoded.pixels
        pixels = _shaped(whole, head, plan)
        if store is not None:
            store[:] = with_channels(pixels, plan.channels)
        found = replace(head, grey=is_grey(pixels), notes=decoded.notes, reading=decoded.reading)
        if config.split_version == 1:
            return found
        own = least_channels(whole, found.grey)
        view = View.of(opaque(own, BETWEEN)).packed() if compared else b""
        return replace(found, pixels=content_key(own), view=view)

    try:
        return _decoded(source, entry, i, head, config, plan, look, known=bool(head.pixels))
    except Refused as reason:
        return replace(head, reason=str(reason))


def load(source: Source, entry: Entry, i: int, head: Look, config: DataConfig, plan: ResizePlan) -> np.ndarray:
    """One image as planned, (side, side, C) uint8.

    Raises:
        Refused: it cannot be decoded, or is not what it was when it was looked at.
        MemoryError: memory ran out, which says nothing of the file.
    """

    def shaped(decoded: Decoded) -> np.ndarray:
        return np.ascontiguousarray(with_channels(_shaped(decoded.pixels, head, plan), plan.channels))

    return _decoded(source, entry, i, head, config, plan, shaped, known=True)


def _decoded(
    source: Source,
    entry: Entry,
    i: int,
    head: Look,
    config: DataConfig,
    plan: ResizePlan,
    use: Callable[[Decoded], Job],
    known: bool,
) -> Job:
    """What `use` makes of an image at its own size, in the channels it has; the memory is shared with other threads."""
    with FILES.hold(_size_of(entry), config.max_bytes):
        content = source.read(entry, i)
        if isinstance(content, np.ndarray):
            return use(Decoded(content, head.mode))
        if content_key(content) != head.key:
            raise Refused("changed since it was looked at")
        scale = scale_of(config.range)
        return decode_to(content, use, plan.background, config.max_pixels, scale, config.max_bytes, known)


def _shaped(pixels: np.ndarray, head: Look, plan: ResizePlan) -> np.ndarray:
    if plan.rule == "buckets":
        return cover(pixels, *plan.shape_of(head))
    return fit(pixels, plan.shape_of(head), plan.rule, plan.background)


def _each(
    work: Callable[[Job], Look], jobs: list[Job], config: DataConfig, progress: Progress | None, what: str
) -> Iterator[Look]:
    """`work` over `jobs` in order, in `config.workers` threads; at most a few hundred results wait."""
    report = progress or (lambda what, done, of: None)
    if config.workers == 0:
        for done, job in enumerate(jobs, 1):
            yield work(job)
            report(what, done, len(jobs))
        return
    with ThreadPoolExecutor(config.workers) as pool:
        rest, done = iter(jobs), 0
        while chunk := list(islice(rest, CHUNK)):
            for look in pool.map(work, chunk):
                done += 1
                yield look
                report(what, done, len(jobs))


CACHE_VERSION = 2


class ScanCache:
    """Looks by name and stamp; a cache that is damaged or of other settings is as good as none."""

    def __init__(self, path: Path | None, config: DataConfig) -> None:
        self.path = path
        self.head = {
            "version": CACHE_VERSION,
            "path": str(Path(config.path).absolute()),
            "max_pixels": config.max_pixels,
            "background": config.background,  # grey images may be seen as grey on one, not on another
            "resize": config.resize,
            "range": config.range,
            "split_version": config.split_version,
        }
        if config.channels == "rgba":
            self.head["channels"] = "rgba"  # the others find the same pixels in a file
        if config.max_bytes != DataConfig.max_bytes:
            self.head["max_bytes"] = config.max_bytes
        self.rows: dict[str, dict[str, Any]] = {}
        if path is None:
            return
        try:
            found = json.loads(path.read_text())
            if found["head"] == self.head:
                self.rows = {name: row for name, row in found["rows"].items() if isinstance(row, dict)}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.rows = {}

    def look(self, entry: Entry) -> Look | None:
        """What was found in the file, if size and time are the same."""
        row = self.rows.get(entry.name)
        if row is None or entry.stamp is None or row.get("stamp") != list(entry.stamp):
            return None
        try:
            look = Look(**row["look"])
            view = base64.b64decode(row["look"]["view"], validate=True)
            if view:
                View.unpacked(view)
        except (TypeError, KeyError, ValueError):
            return None
        return None if look.reason else replace(look, notes=tuple(look.notes), view=view)

    def write(self, entries: list[Entry], looks: list[Look]) -> None:
        """Keep what was found; the file is replaced whole.

        Raises:
            Error: it cannot be written.
        """
        if self.path is None:
            return
        rows = {
            entry.name: {"stamp": entry.stamp, "look": _plain(look)}
            for entry, look in zip(entries, looks)
            if entry.stamp is not None and not look.reason
        }
        write_atomic(self.path, json.dumps({"head": self.head, "rows": rows}))


def _plain(look: Look) -> dict[str, Any]:
    """A look as JSON takes it."""
    return {**asdict(look), "view": base64.b64encode(look.view).decode()}


@dataclass(frozen=True)
class PixelStore:
    """Image i is row `rows[i]` of `arrays[of[i]]`."""

    arrays: tuple[np.ndarray, ...]  # (n, H, W, C) uint8 each
    of: np.ndarray  # (N,) int64
    rows: np.ndarray  # (N,) int64

    @classmethod
    def room(cls, shapes: Sequence[tuple[int, int]], channels: int) -> PixelStore:
        """Room for images of these shapes (H, W), all black."""
        kinds = sorted(set(shapes))
        places = {shape: i for i, shape in enumerate(kinds)}
        of = np.array([places[shape] for shape in shapes], np.int64)
        rows = np.empty(len(of), np.int64)
        for i in range(len(kinds)):
            rows[of == i] = np.arange(np.count_nonzero(of == i))
        arrays = (np.zeros((int((of == i).sum()), *shape, channels), np.uint8) for i, shape in enumerate(kinds))
        return cls(tuple(arrays), of, rows)

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, i: int) -> np.ndarray:
        """One image, (H, W, C), to be read or written in place."""
        kept: np.ndarray = self.arrays[int(self.of[i])][int(self.rows[i])]
        return kept

    @property
    def nbytes(self) -> int:
        """What all of them take."""
        return sum(array.nbytes for array in self.arrays)

    def only(self, places: Sequence[int]) -> PixelStore:
        """Some of them, in this order; the others stay in memory."""
        return PixelStore(self.arrays, self.of[list(places)], self.rows[list(places)])

    def grey(self) -> PixelStore:
        """Their first channel alone."""
        return PixelStore(tuple(np.ascontiguousarray(array[..., :1]) for array in self.arrays), self.of, self.rows)
