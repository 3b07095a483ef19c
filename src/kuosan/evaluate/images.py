"""Which files of a folder are samples, and which are not: sheets, previews, masks, thumbnails beside their images.

A file is left out where that can be proved: kuosan's own record or recipe beside it says that it is a sheet, or it is
the mask or thumbnail of an image that lies beside it. A name that only sounds so is counted, and named.

Images to measure, each as its file is: `open_images(path) -> Images`, of any sizes side by side.

Nothing is scaled or cut here; a feature network resizes each whole image to its own size, once. Images that stand
against a model's are read as that run's training images were, and only then resized to its size.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from kuosan.data.config import GREY, LABEL, LAYOUT, RGB, RGBA, Channels, DataConfig, nearest, scale_of
from kuosan.data.decoding import decode, read_header
from kuosan.data.doctor import DataReport
from kuosan.data.headers import PNG, Refused, png_chunks
from kuosan.data.pixels import is_grey, with_channels
from kuosan.data.reading import Reading
from kuosan.data.scan import Progress, Scan, content_key, decide
from kuosan.data.sources import find_source
from kuosan.data.walk import Entry, Listing, Look, Source, understood
from kuosan.errors import Error
from kuosan.storage import outputs

OWN = {  # what kuosan writes beside results, and by which of its files a folder is known to hold those
    "sheet.png": ("recipe.json", "request.json", "result.json", "reconstruction.json"),
    "denoising.gif": ("recipe.json",),
    "real.png": ("result.json",),
    "plot.png": ("result.json",),
    "bound.png": ("result.json",),
    "between.png": ("between-0000.png",),
    "curve.png": ("log.jsonl", "config.yaml", "index.html"),
}
RECIPE = b"kuosan\0\0\0\0\0"  # how the text that holds one begins
NUMBERED = re.compile(r"(sheet|nearest[\w.-]*|between|real|plot)(-\d+)?\.png")
SOUNDS = re.compile(
    r"(?:^|[^a-z])(sheets?|grids?|contact|montage|collage|masks?|thumbs?|thumbnails?|previews?|before[-_ ]?after|"
    r"curve|plot|figure|comparison)(?:[^a-z]|$)"
)
PARTNER = re.compile(r"[-_. ]?(masks?|thumbs?|thumbnails?|previews?|small)(?=$|[-_. /])")
SMALL = ("mask", "masks", "thumb", "thumbs", "thumbnail", "thumbnails", "preview", "previews", "small")


def no_samples(
    names: Sequence[str], sizes: Mapping[str, tuple[int, int]], others: Iterable[str], recorded: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Of image files by name, those that are no samples with the reason, and those that only sound so.

    Args:
        sizes: width and height of each.
        others: the files that are no images, by name.
        recorded: what kuosan's record says it wrote there, with the verb.
    """
    beside = {*others, *names, *recorded}
    left, sound, wholes = dict[str, str](), list[str](), _whole_images(sizes)
    for name in names:
        reason = _own(name, beside, recorded) or _partner(name, wholes)
        if reason:
            left[name] = reason
        elif SOUNDS.search(name.lower()):
            sound.append(name)
    one_size = _only_size([sizes[name] for name in names if name not in left and name not in sound])
    for name in sound:
        path = PurePosixPath(name)
        alone = re.fullmatch(r"(sheet|grid|contact|montage|collage|preview|before[-_ ]?after)s?([-_ ]?\d+)?", path.stem)
        if alone and one_size is not None and sizes[name] != one_size:
            left[name] = f"called {path.stem}, and of {sizes[name][0]}x{sizes[name][1]} where all others are of " + (
                f"{one_size[0]}x{one_size[1]}"
            )
    return left, [name for name in sound if name not in left]


def _own(name: str, beside: set[str], recorded: Mapping[str, str]) -> str:
    """Why a file is known to be a sheet or a plot of kuosan's; empty where it is not."""
    path = PurePosixPath(name)
    if path.name in recorded and str(path.parent) == "." and NUMBERED.fullmatch(path.name):
        return f"a sheet that kuosan {recorded[path.name]} wrote"
    match = NUMBERED.fullmatch(path.name)
    usual = path.name if path.name in OWN else f"{match[1]}.png" if match else ""
    marks = OWN.get(usual, ("result.json",) if usual.startswith("nearest") else ())
    if any(str(path.parent / mark) in beside for mark in marks):
        return "a sheet or plot of kuosan's, not one image"
    runs = [parent for parent in path.parents if str(parent / "log.jsonl") in beside]
    if runs and path.relative_to(runs[0]).parts[0] in ("previews", "samples") and path.name.startswith("step-"):
        return "a preview of a training run"
    return ""


def _whole_images(names: Iterable[str]) -> dict[tuple[str, tuple[str, ...]], str]:
    """Images that a mask or thumbnail may belong to, by stem and folders."""
    found: dict[tuple[str, tuple[str, ...]], str] = {}
    for name in names:
        path = PurePosixPath(name)
        plain = not any(part.lower() in SMALL for part in path.parts[:-1]) and not PARTNER.search(path.stem.lower())
        if plain:
            found[path.stem.lower(), _folders(path)] = name
    return found


def _folders(path: PurePosixPath) -> tuple[str, ...]:
    """The folders that a file and its mask have in common."""
    return tuple(part for part in path.parts[:-1] if part.lower() not in (*SMALL, "images", "image", "photos", "full"))


def _partner(name: str, wholes: Mapping[tuple[str, tuple[str, ...]], str]) -> str:
    """Why a file is the mask or thumbnail of an image beside it; empty where none is."""
    path = PurePosixPath(name)
    small = any(part.lower() in SMALL for part in path.parts[:-1])
    stem = PARTNER.sub("", path.stem.lower())
    if not small and stem == path.stem.lower():
        return ""
    whole = wholes.get((stem or path.stem.lower(), _folders(path)))
    return "" if whole in (None, name) else f"the mask or thumbnail of {whole}"


def _only_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    return sizes[0] if len(sizes) > 2 and len(set(sizes)) == 1 else None


def recipe_key(content: bytes) -> str:
    """A hash of the recipe that a PNG of kuosan's carries, the same for all images of a request; empty without one."""
    if content[:8] != PNG:
        return ""
    stream = io.BytesIO(content)
    for name, size in png_chunks(stream):
        if name == b"IDAT":
            break
        if name == b"iTXt" and (body := stream.read(size)).startswith(RECIPE):
            return _request_key(body[len(RECIPE) :])
    return ""


def _request_key(text: bytes) -> str:
    try:
        tree: Any = json.loads(text)
        request = {k: v for k, v in tree["request"].items() if k not in ("n", "seed", "batch", "classes", "prompts")}
        said = [tree["weights"], request]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
    if isinstance(request.get("restoration"), dict):
        request["restoration"] = {k: v for k, v in request["restoration"].items() if k != "picture"}
    return sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


KEPT = 2**30  # bytes of decoded images that are kept in memory
CHUNK = 64  # images decoded ahead
SHOWN = 5  # names that a sentence gives
ARRAY = "an array"  # the format of what is no file


@dataclass(frozen=True)
class ImageFact:
    """What is known of one image: its file's upright size and format, and hashes of its bytes and its pixels."""

    name: str
    width: int
    height: int
    format: str
    mode: str
    grey: bool
    notes: tuple[str, ...]
    key: str  # of the file's bytes
    pixels: str  # of the pixels as they are measured
    recipe: str = ""  # of kuosan's recipe in it, the same for all images of one request


@dataclass(frozen=True)
class ImageFiles:
    """Image files in an order that depends on their content alone; `at` gives their pixels.

    Attributes:
        shape: (C, H, W) of all of them; None where they differ.
        left_out: files that are not counted, each with the reason.
        sound: files that are counted, but are called as sheets, masks or previews are.
    """

    path: str
    source: Source
    entries: tuple[Entry, ...]
    places: tuple[int, ...]  # of the entries in the source's listing
    facts: tuple[ImageFact, ...]
    channels: int
    reading: Reading | None
    size: tuple[int, int] | None  # (H, W) that each is resized to; None: as it is
    left_out: tuple[tuple[str, str], ...] = ()
    sound: tuple[str, ...] = ()
    kept: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    listing: Listing = field(default_factory=lambda: Listing([]), repr=False)  # the source's, as it was opened

    def __len__(self) -> int:
        return len(self.facts)

    def at(self, i: int) -> np.ndarray:
        """One image as it is measured, (C, H, W) uint8. Raises: Error where its file has changed."""
        pixels = self.kept.get(i)
        if pixels is None:
            try:
                content = self.source.read(self.entries[i], self.places[i])
                if content_key(content) != self.facts[i].key:
                    raise Refused("changed since it was looked at")
                pixels = _shown(content, self.reading, self.size)[0]
            except Refused as reason:
                raise Error(f"{self.facts[i].name} in {self.path} was good and is now {reason}.") from None
        return np.ascontiguousarray(np.moveaxis(with_channels(pixels, self.channels), -1, 0))

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of all of them; None where they are of several sizes."""
        sizes = {self.size or (fact.height, fact.width) for fact in self.facts}
        return (self.channels, *next(iter(sizes))) if len(sizes) == 1 else None

    @property
    def train(self) -> np.ndarray:
        """Their numbers, (N,) int64."""
        return np.arange(len(self.facts))

    @property
    def test(self) -> np.ndarray:
        """None: what is measured is measured whole."""
        return np.arange(0)

    @property
    def held_out(self) -> np.ndarray:
        """No numbers: nothing of a folder is held out."""
        return np.arange(0)

    @property
    def config(self) -> DataConfig:
        """Where they are."""
        return DataConfig(self.path)

    @property
    def contents(self) -> list[str]:
        """A hash of each one's pixels."""
        return [fact.pixels for fact in self.facts]

    @property
    def fingerprint(self) -> str:
        """Changes when any image, or the way that they are read, does."""
        digest = sha256(repr((self.size, self.channels, self.labels_by_name)).encode())
        for fact in self.facts:
            digest.update(fact.pixels.encode())
        return digest.hexdigest()[:32]

    @property
    def labels_by_name(self) -> tuple[str | None, ...]:
        """The class of each, by name."""
        return tuple(entry.label for entry in self.entries)

    @property
    def captions(self) -> list[str | None] | None:
        """A text an image; None if no image has one."""
        found = [entry.caption for entry in self.entries]
        return found if any(text is not None for text in found) else None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their labels."""
        looks = [Look(key=fact.key, width=fact.width, height=fact.height) for fact in self.facts]
        config = DataConfig(self.path)
        return DataReport(
            config, Scan(self.listing, decide(config, looks), list(self.entries), looks, list(self.places))
        ).classes

    @property
    def labels(self) -> np.ndarray | None:
        """Their classes by number, (N,) int64, -1 for none; None without classes."""
        classes = self.classes
        if not classes:
            return None
        places = {name: i for i, name in enumerate(classes)}
        return np.array([-1 if name is None else places[name] for name in self.labels_by_name], np.int64)

    def summary(self) -> dict[str, Any]:
        """What the images are and what was done to them, as plain values."""
        notes = Counter(note for fact in self.facts for note in fact.notes)
        height, width = self.size or (0, 0)
        return {
            "path": self.path,
            "images": len(self),
            "sizes": dict(Counter(f"{fact.width}x{fact.height}" for fact in self.facts).most_common()),
            "measured_at": f"{width}x{height}" if self.size else "their own size",
            "formats": dict(Counter(fact.format for fact in self.facts).most_common()),
            "grey": sum(fact.grey for fact in self.facts),
            "done": dict(notes.most_common()),
            "left_out": [list(pair) for pair in self.left_out],
            "repeated": len(self) - len(set(self.contents)),
        }


def open_images(
    path: str,
    reading: Reading | None = None,
    shape: tuple[int, int, int] | None = None,
    progress: Progress | None = None,
    label_column: str = LABEL,
) -> ImageFiles:
    """Look at every image at `path`: a folder, zip, npz or IDX file, or `portraits`.

    Args:
        reading: of the run whose images they stand against, with its model's `shape` (C, H, W); None: as they are.

    Raises:
        Error: nothing is there, or no image that can be used.
    """
    own = _settings(reading)
    channels: Channels = "rgba" if own.channels == "rgba" else "auto"
    config = DataConfig(path, label_column=label_column, range=own.range, channels=channels)
    source = find_source(config)
    listing = source.listing()
    size = None if shape is None else (shape[1], shape[2])
    refused = [(name, reason) for name, reason in listing.skipped if reason != "hidden" or not _system(name)]
    jobs = list(enumerate(listing.entries))
    found = list[tuple[int, ImageFact]]()
    kept, room = dict[str, np.ndarray](), KEPT
    for i, seen in _looked(source, jobs, reading, size, progress):
        if isinstance(seen, str):
            refused.append((listing.entries[i].name, seen))
            continue
        fact, pixels = seen
        found.append((i, fact))
        room -= pixels.nbytes
        if room >= 0:
            kept[fact.name] = pixels
    base = Path(path).expanduser()
    recorded = outputs.recorded(base) if base.is_dir() else {}
    sizes = {fact.name: (fact.width, fact.height) for _, fact in found}
    left, sound = no_samples(list(sizes), sizes, [name for name, _ in refused], recorded)
    if reading is not None and shape is not None:
        left |= _of_other_buckets(reading, shape, [fact for _, fact in found if fact.name not in left])
    good = [(i, fact) for i, fact in found if fact.name not in left]
    if not listing.in_order:
        good.sort(key=lambda pair: (pair[1].key, pair[1].name))
    if not good:
        why = "; ".join(f"{name}: {reason}" for name, reason in [*left.items(), *refused][:3])
        raise Error(f"{path} holds no image that can be measured. {why}")
    entries = [listing.entries[i] for i, _ in good]
    entries, _ = understood(listing, entries, LAYOUT)
    facts = tuple(fact for _, fact in good)
    count = shape[0] if shape is not None else GREY if all(fact.grey for fact in facts) else RGB
    return ImageFiles(
        path, source, tuple(entries), tuple(i for i, _ in good), facts, count, reading, size,
        tuple(sorted([*left.items(), *(pair for pair in refused if _image(*pair))])), tuple(sorted(sound)),
        {place: kept[fact.name] for place, fact in enumerate(facts) if fact.name in kept}, listing,
    )  # fmt: skip


def _of_other_buckets(reading: Reading, shape: tuple[int, int, int], facts: Sequence[ImageFact]) -> dict[str, str]:
    """Of a run on aspect-ratio buckets: the images that training would resize to another shape than this."""
    if reading.data.resize != "buckets":
        return {}
    plan = decide(reading.config("", shape), [])
    if not plan.shapes:
        return {}
    return {
        fact.name: f"of another bucket than {shape[2]}x{shape[1]}"
        for fact in facts
        if plan.shapes[nearest(plan.shapes, fact.height, fact.width)] != (shape[1], shape[2])
    }


def _looked(
    source: Source,
    jobs: Sequence[tuple[int, Entry]],
    reading: Reading | None,
    size: tuple[int, int] | None,
    progress: Progress | None,
) -> Iterator[tuple[int, tuple[ImageFact, np.ndarray] | str]]:
    """Each entry of a listing decoded once: its facts and pixels (H, W, C), or why it is no image to measure."""

    def look(job: tuple[int, Entry]) -> tuple[ImageFact, np.ndarray] | str:
        i, entry = job
        try:
            content = source.read(entry, i)
            if not len(content):
                return "empty file"
            pixels, own, notes, mode = _shown(content, reading, size)
            kind, recipe = ARRAY, ""
            if isinstance(content, bytes):
                kind, recipe = _format(content, reading), recipe_key(content)
        except Refused as reason:
            return str(reason)
        print_of = sha256(
            repr(pixels.shape[:2]).encode() + with_channels(pixels, RGB if pixels.shape[2] < RGBA else RGBA).tobytes()
        ).hexdigest()[:32]
        return ImageFact(entry.name, own[1], own[0], kind, mode, is_grey(pixels), notes, content_key(content), print_of,
                    recipe), pixels  # fmt: skip

    with ThreadPoolExecutor(2, thread_name_prefix="kuosan-look") as pool:
        rest, done = iter(jobs), 0
        while chunk := list(islice(rest, CHUNK)):
            for job, seen in zip(chunk, pool.map(look, chunk)):
                done += 1
                yield job[0], seen
                if progress is not None:
                    progress("looking at images", done, len(jobs))


def _settings(reading: Reading | None) -> DataConfig:
    return DataConfig() if reading is None else reading.data


def _format(content: bytes, reading: Reading | None) -> str:
    data = _settings(reading)
    return read_header(content, data.max_pixels, scale_of(data.range), data.max_bytes).format


def _shown(
    content: bytes | np.ndarray, reading: Reading | None, size: tuple[int, int] | None
) -> tuple[np.ndarray, tuple[int, int], tuple[str, ...], str]:
    """Pixels (H, W, C), the file's own (H, W), what was done, and its mode."""
    if isinstance(content, np.ndarray):
        pixels, notes, mode = content, tuple[str, ...](), {GREY: "L", RGB: "RGB", RGBA: "RGBA"}[content.shape[2]]
    else:
        decoded = decode(content) if reading is None else reading.decoded(content)
        pixels, notes, mode = decoded.pixels, decoded.notes, decoded.mode
    own = (pixels.shape[0], pixels.shape[1])
    if reading is not None and size is not None:
        pixels = reading.fitted(pixels, size).pixels
    if reading is not None and reading.background is None:
        pixels = with_channels(pixels, RGBA)
    return pixels, own, tuple("transparency laid on white" if _on(note, reading) else note for note in notes), mode


def _on(note: str, reading: Reading | None) -> bool:
    return reading is None and "transparency" in note


def _system(name: str) -> bool:
    """Files that nobody means, and kuosan's own record."""
    return name.split("/")[-1] in (outputs.RECORD, ".DS_Store", "Thumbs.db", "desktop.ini")


def _image(name: str, reason: str) -> bool:
    """Whether a file that is not counted is to be named: text and data beside images are not meant as samples."""
    ours = (".json", ".jsonl", ".txt", ".md", ".csv", ".yaml", ".html", ".safetensors", ".log")
    return not name.lower().endswith(ours)
