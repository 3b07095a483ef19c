"""Any torch data set from Python as a source: its items are tensors, arrays or Pillow images, alone or with a label.

What is known of an image that is to be restored: a small one, or one with a hole.

The opened data set: `open_images(config) -> Images`, and batches of it as x0 in [-1, 1].

Images have numbers 0 .. N-1; `train` and `held_out` are numbers. The random part of a batch (mirror, window) is
drawn from the keys its caller gives, so a batch is a pure function of (numbers, keys).
"""

from __future__ import annotations

import threading
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
from PIL import Image
from torch import Tensor

from kuosan.data.arrays import CHANNELS
from kuosan.data.config import LABEL, DataConfig, laid_on, scale_of
from kuosan.data.decoding import decode_image
from kuosan.data.doctor import CAPTIONS_SHOWN, DataReport, _row
from kuosan.data.headers import Refused
from kuosan.data.pixels import from_uint8, opaque
from kuosan.data.ranges import RangeReading, Survey
from kuosan.data.scan import Progress, Scan, load, scan
from kuosan.data.sources import find_source
from kuosan.data.text_files import CAPTIONS, caption_text, class_name
from kuosan.data.walk import Entry, Listing, Source
from kuosan.errors import Error, plural, unknown
from kuosan.seeds import Key, rng
from kuosan.storage.cache import Results

IMAGES = ("image", "x", "x0", "pixel_values", "img")  # keys that a dict's image may have


class DatasetSource:
    """A map-style data set, read item by item; the range of its numbers is decided over all items.

    Items are looked at once for labels and range; a data set that draws at random is used as it was drawn then.
    """

    def __init__(self, dataset: Any, config: DataConfig) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise Error(
                f"{type(dataset).__name__} has no length or no items by number: give a map-style data set "
                "(__len__ and __getitem__), or write the images of a stream into a folder."
            )
        if len(dataset) == 0:
            raise Error(f"{type(dataset).__name__} is empty: there is nothing to learn from.")
        self.dataset = dataset
        self.background = laid_on(config)
        self.max_pixels, self.max_bytes = config.max_pixels, config.max_bytes
        self.label_column, self.version = config.label_column, config.layout
        self.scale = scale_of(config.range)
        self.numbers = RangeReading({}, ())
        self.problems: list[tuple[str, str]] = []
        self.reading = threading.Lock()  # a data set may share an open file between its items

    def listing(self) -> Listing:
        """Every item with its label (the second of a tuple, or a dict's `label_column`) or caption (text).

        Raises:
            Error: an item is no image, or has no such key.
        """
        entries, orders = [], dict[str, int]()
        survey = Survey(type(self.dataset).__name__, self.scale)
        for i in range(len(self.dataset)):
            item = self._item(i)
            image = _image(item, i)
            if not _is_shown(image):
                values, order = _values(image, i)
                survey.add(values[None])
                orders[order] = orders.get(order, 0) + 1
            entries.append(Entry(f"item {i}", *self._label_and_caption(item, i)))
        self.numbers = survey.reading(damaged_are_skipped=True)
        says = f"{type(self.dataset).__name__}: {plural(len(entries), 'item')}"
        axes = [f"{plural(count, 'item', 'is')} read as {order}." for order, count in orders.items()]
        return Listing(entries, missing=self.problems, says=says, in_order=True, notes=(*self.numbers.lines, *axes))

    def _item(self, i: int) -> Any:
        """The i-th item. Raises: Error that names it, where the data set's own code fails."""
        try:
            return self.dataset[i]
        except Error:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise Error(
                f"item {i} of {type(self.dataset).__name__} cannot be read: its __getitem__ raised "
                f"{type(error).__name__}{f': {reason}' if reason else ''}. Mend that item, or leave it out."
            ) from error

    def _label_and_caption(self, item: Any, i: int) -> tuple[str | None, str | None]:
        """The label and the caption of an item."""
        if isinstance(item, dict):
            if self.label_column != LABEL and self.label_column not in item:
                raise unknown(f"label_column of item {i}", self.label_column, [k for k in item if k not in IMAGES])
            texts = [item[name] for name in CAPTIONS if isinstance(item.get(name), str | list) and len(item[name])]
            return self._label(item.get(self.label_column), i), self._caption(texts[0] if texts else None, i)
        if self.label_column != LABEL:
            raise Error(
                f"label_column is {self.label_column!r}, but item {i} is a {type(item).__name__}, which has no keys: "
                "leave label_column out, or give items as dicts."
            )
        beside = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
        return (None, self._caption(beside, i)) if isinstance(beside, str) else (self._label(beside, i), None)

    def _caption(self, value: Any, i: int) -> str | None:
        try:
            return caption_text(value)
        except ValueError as reason:
            self.problems.append((f"item {i}", f"has no caption: {reason}"))
            return None

    def _label(self, value: Any, i: int) -> str | None:
        """A number or text as the name of a class; a tensor or array of one number is that number."""
        if isinstance(value, str) or value is None:
            return class_name(value)
        kind = type(value).__name__
        if not isinstance(value, dict | list | tuple | Image.Image):
            values = _array(value)
            if values.ndim == 0 and values.dtype.kind in "iu":
                return str(int(values))
            if values.ndim == 0 and values.dtype.kind in "fb" and self.version > 1:
                number = values.item()
                if isinstance(number, bool) or not np.isfinite(number) or number.is_integer():
                    return class_name(number)
            kind += f" of {values.dtype}" + (f", shape {values.shape}" if values.ndim else "")
        self.problems.append((f"item {i}", f"has no class: a class is a whole number or text, not a {kind}"))
        return None

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (H, W, C) of the i-th item.

        Raises:
            Error: it is no image, or its values have no agreed meaning.
        """
        with self.reading:
            image = _image(self._item(i), i)
        if _is_shown(image):
            return decode_image(image, self.background, self.max_pixels, self.scale, self.max_bytes).pixels
        pixels = self.numbers.bytes(_values(image, i)[0], halved=True)
        return pixels if self.background is None else opaque(pixels, self.background)


def _is_shown(image: Any) -> bool:
    """Whether it is a Pillow image whose numbers have a white of their own; those of others are read as arrays are."""
    return isinstance(image, Image.Image) and (image.mode not in ("F", "I") or image.format in ("PNG", "PPM", "TIFF"))


def _array(value: Any) -> np.ndarray:
    """An array or tensor as numpy takes it: without gradient or device, bfloat16 as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) or "float8" in str(value.dtype) else value
    return np.asarray(value)


def _values(image: Any, i: int) -> tuple[np.ndarray, str]:
    """An item's numbers (H, W, C), and the order in which they came.

    Raises:
        Error: it is no image, or of a shape that may be read in two ways.
    """
    name = f"item {i}"
    if isinstance(image, np.ma.MaskedArray):
        raise Error(f"{name} is a masked array: fill what is masked (filled), or give transparency as a channel.")
    tensor = hasattr(image, "detach")
    try:
        values = _array(image)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise Error(f"{name} is a {type(image).__name__} that is no array ({reason}).") from None
    if values.dtype.kind not in "biuf":
        raise Error(f"{name} is a {type(image).__name__}; an image is a tensor, an array or a Pillow image.")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise Error(f"{name} has shape {values.shape}; an image is (C, H, W), (H, W, C) or (H, W).")
    if values.ndim == 2:
        return values[..., None], "(H, W)"
    first, last = values.shape[0] in CHANNELS, values.shape[2] in CHANNELS
    if first and last and not (tensor and values.shape[0] < 4):
        raise Error(
            f"{name} has shape {values.shape}, which may be (C, H, W) or (H, W, C): give a tensor (C, H, W), or "
            "images of at least 5 pixels a side."
        )
    if not first and not last:
        raise Error(f"{name} has shape {values.shape}; an image is (C, H, W), (H, W, C) or (H, W), C 1, 3 or 4.")
    return (np.moveaxis(values, 0, 2), "(C, H, W)") if first else (values, "(H, W, C)")


def _image(item: Any, i: int) -> Any:
    if isinstance(item, dict):
        image = next((item[name] for name in IMAGES if name in item), None)
        if image is None:
            raise Error(f"item {i} has the keys {', '.join(map(str, item))}; name the image 'image'.")
        return image
    return item[0] if isinstance(item, tuple | list) and len(item) > 0 else item


class Given(NamedTuple):
    """What is known of B images; one row may stand for all images of a request."""

    image: Tensor  # (B, C, h, w) float32 in [-1, 1]: small, or 0 where it is to be generated
    mask: Tensor | None = None  # (B, 1, H, W): 1 where the image is to be generated, 0 where it is known
    noise: Tensor | None = None  # (B,) the std of the noise in it, in units of images in [-1, 1]

    def rows(self, rows: slice | Sequence[int]) -> Given:
        """Some of its images."""
        return Given(*(None if value is None else value[rows] for value in self))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> Given:
        """The same on another device."""
        return Given(*(None if value is None else value.to(device, non_blocking=True) for value in self))  # type: ignore[arg-type]

    def expanded(self, n: int) -> Given:
        """`n` rows: these, or the one there is again and again."""
        assert len(self.image) in (1, n), (len(self.image), n)
        return Given(*(None if v is None else v.expand(n, *v.shape[1:]) for v in self))  # type: ignore[arg-type]


AHEAD = 4  # batches decoded before they are asked for


class Batch(NamedTuple):
    """Some images: x0 (B, C, H, W) float32 in [-1, 1], ids (B,) int64, label (B,) int64 (-1: none) or None."""

    x0: Tensor
    ids: Tensor
    label: Tensor | None = None
    caption: list[str] | None = None  # empty where an image has none
    given: Given | None = None  # of a task that restores: what is known of each image
    text: Mapping[str, Tensor] | None = None  # conditioning from the captions, by input, (B, ...) each
    latent: Tensor | None = None  # (B, c, h, w) what is denoised in x0's place, where x0 is needed beside it

    @property
    def denoised(self) -> Batch:
        """The same with what a network denoises as x0, and nothing beside it."""
        return self if self.latent is None else self._replace(x0=self.latent, latent=None)


Request = tuple[Sequence[int] | np.ndarray, Sequence[Key] | None]  # the ids of a batch, and a key for each


class Images:
    """A data set ready to be trained on.

    Attributes:
        shape: (C, H, W) of x0; with buckets the square's, or where no training image is square the commonest's.
        buckets: the shapes of images, and each image's; one shape without buckets.
        train, held_out: image numbers, (N,) int64 each, disjoint.
        test: numbers of those that are neither, as the data set keeps them for testing; mostly empty.
        classes: their names in the order of the labels; empty without classes.
        labels: (N,) int64, -1 where an image has none; None without classes.
        captions: a text an image, None where it has none; None if no image has one.
        attributes: of the portraits, a dict an image; None elsewhere.
        fingerprint: changes when any image, label, caption, split or setting that shows in x0 does; a run keeps
            `fingerprint_of` what it uses.
        report: every file accounted for.
    """

    def __init__(self, source: Source, scanned: Scan, config: DataConfig) -> None:
        if not scanned.entries:
            raise _nothing(config, scanned)
        self.source, self.scan, self.config, self.plan = source, scanned, config, scanned.plan
        self.report = DataReport(config, scanned)
        self.held_out, self.train = self.report.split()
        self.test = self.report.test()
        self.buckets = self.report.buckets
        self.shape = (self.plan.channels, *self.buckets.default_shape(self.train))
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
        """Whether the pixels are held as bytes, or decoded again for each batch."""
        return self.scan.pixels is not None

    def only(self, shape: tuple[int, int]) -> Images:
        """The same data set, `train` and `held_out` of which are the numbers in the bucket of `shape` (H, W) alone.

        Raises:
            Error: there is no such bucket.
        """
        if shape not in self.buckets.shapes:
            have = ", ".join(f"{w}x{h}" for h, w in self.buckets.shapes)
            raise Error(f"{self.config.path} has no images of {shape[1]}x{shape[0]} (width x height), but of {have}.")
        some, place = copy(self), self.buckets.shapes.index(shape)
        parts = (self.train, self.held_out, self.test)
        some.train, some.held_out, some.test = (ids[self.buckets.of[ids] == place] for ids in parts)
        some.shape = (self.shape[0], *shape)
        return some

    def describe(self) -> list[str]:
        """What will be trained on and what is done to it, a sentence a line."""
        return self.report.lines()

    def name(self, id: int) -> str:
        """The file, or the place in the array, of one image."""
        return self.scan.entries[id].name

    def pixels(self, id: int) -> np.ndarray:
        """The bytes kept of one image, (H, W, C): its bucket's shape, larger than what is shown for random_crop.

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
                "Put the file back, or start again so that the folder is looked at again."
            ) from None

    def batch(self, ids: Sequence[int] | np.ndarray, keys: Sequence[Key] | None = None) -> Batch:
        """Images by number; mirrored and moved as drawn from `keys`, one an image, or as they are without keys.

        Raises:
            Error: they are of several buckets, or a file has changed.
        """
        return self._finish(ids, [self.pixels(int(id)) for id in ids], keys)

    def batches(self, requests: Iterable[Request]) -> Iterator[Batch]:
        """`batch` of each request in order; images that are not in memory are decoded ahead in threads."""
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
            raise Error("these images are of several buckets, a batch is of one: group ids by images.buckets.of.")
        x0 = torch.from_numpy(from_uint8(np.stack([self._drawn(*pair) for pair in zip(pixels, drawn)])))
        return self._with_words(x0, ids)

    def _with_words(self, x0: Tensor, ids: Sequence[int] | np.ndarray) -> Batch:
        """A batch of x0 with what is said of these images."""
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


def open_images(
    data: DataConfig | Any,
    config: DataConfig | None = None,
    *,
    progress: Progress | None = None,
    cache: Path | None = None,
    memory: Results | None = None,
    outputs: Collection[Path] = (),
) -> Images:
    """Open what a config names, or a torch data set (with `config` for size, channels and the rest).

    Args:
        progress: called as (what, done, of) while files are looked at.
        cache: a file for what was found in each file, so that the next opening is quicker; none by default.
        memory: keeps the near duplicates of large sets (`kuosan.storage.cache`); none by default.
        outputs: folders that are written to, which are no data where they lie below it.

    Raises:
        Error: nothing is there, or nothing of it can be used.
    """
    if isinstance(data, DataConfig):
        config, source = data, find_source(data, outputs)
    else:
        config = config or DataConfig(path=type(data).__name__)
        source = DatasetSource(data, config)
    return Images(source, scan(source, config, keep=True, progress=progress, cache=cache, memory=memory), config)


def _nothing(config: DataConfig, scanned: Scan) -> Error:
    if not scanned.refused:
        return Error(f"{config.path} is empty: put images (PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF) into it.")
    shown = "; ".join(f"{name}: {reason}" for name, reason in scanned.refused[:3])
    more = len(scanned.refused) - 3
    return Error(
        f"no image in {config.path} can be used. {shown}"
        + (f"; and {more} more." if more > 0 else ".")
        + " `kuosan doctor` lists them all."
    )


def first_rows(images: Images, n: int = CAPTIONS_SHOWN) -> list[str]:
    """The first images that are trained on, `name -> caption` each."""
    return [_row(images.scan.entries[int(i)]) for i in images.train[:n]]
