"""Classes, which every task may condition its network on: which there are, how one is named, how often none is given.

The settings are torch-free. A label is the number of a class; the number after the last, `null`, is "no class": what
dropped and unlabelled images are shown, and guidance's reference.

Random masks to train inpainting with: (H, W) uint8, 1 = to generate, 0 = known. Torch-free.

Six kinds, from what people cut out of images: boxes, brush strokes, a side, the border (outpainting), scattered
pixels, and objects. A mask is a pure function of its generator, the size and the kinds it is drawn from.

Generation: images from noise, of all kinds or of a class. The settings, torch-free.

Super-resolution: a large image from a small one (Saharia et al. 2021, SR3). The settings, torch-free.

A training image is made small as a user's would be: blurred, shrunk, noisy, through JPEG, and rounded to 8 bits.

Inpainting: the missing part of an image from the rest (Saharia et al. 2022, Palette). The settings, torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import cos, pi, sin
from operator import index
from typing import TYPE_CHECKING, Literal, SupportsIndex

import numpy as np

from kuosan import limits, options
from kuosan.errors import Error, shown, unknown

if TYPE_CHECKING:
    pass

DROP = 0.1  # the default share without their class (Ho & Salimans 2022 found 0.1 and 0.2 alike)
NULL = "none"  # what a person writes for "no class"


@dataclass(frozen=True)
class Labelled:
    """Conditioning that every task may have: an image's class, its caption."""

    kind: str = ""
    labels: bool = False  # condition on each image's class (its folder, column or label file)
    drop: float | None = None  # with labels or text: share shown without, for classifier-free guidance; 0.1
    class_names: tuple[str, ...] = field(
        default=(),
        metadata=options.only(labels=True, otherwise="without labels: say --labels; the data give the names"),
    )  # with labels: the classes in the order of their numbers; from the data
    text: bool = False  # condition on each image's caption; follows from model.text

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.drop is not None and not self.conditioned:
            raise Error(
                f"drop = {self.drop} has no effect without classes or captions: say --labels or --text, or leave "
                f"--drop out."
            )
        if self.drop is not None and not 0 <= self.drop < 1:
            raise Error(f"drop = {self.drop} is not allowed: 0 (never) to below 1; 0.1 is common.")
        options.check(self)
        limits.check(self)  # after the checks that say what is common
        if NULL in self.class_names:
            raise Error(f"a class is called {NULL!r}, which here means no class at all: give it another name.")

    @property
    def conditioned(self) -> bool:
        """Whether a network is given anything of an image that can be left out."""
        return self.labels or self.text

    @property
    def dropped(self) -> float:
        """The share of training images that are shown the null label, and the empty caption."""
        return (DROP if self.drop is None else self.drop) if self.conditioned else 0.0

    @property
    def null(self) -> int:
        """The label of no class."""
        return len(self.class_names)

    def label(self, name: str) -> int:
        """The label of a class by name, or by number where no class is called by one; `none` is the null label.

        Raises:
            Error: no such class, a model without classes, or `none` where no image was ever shown without its class.
        """
        if not self.labels:
            raise Error(f"class {name!r}: this model was trained without classes; train with --labels to name one.")
        if name in self.class_names:
            return self.class_names.index(name)
        if name == NULL:
            if not self.dropped:
                raise Error("class 'none': this model was trained with drop 0 and knows no image without its class.")
            return self.null
        by_number = not any(other.isdigit() for other in self.class_names)  # else "2" could be either
        if by_number and name.isascii() and name.isdigit() and int(name) < len(self.class_names):
            return int(name)
        shown = [*self.class_names[:50], *(["..."] if len(self.class_names) > 50 else []), NULL]
        raise unknown("class", name, shown)

    def default_labels(self, seeds: Sequence[int]) -> list[int]:
        """The labels of images where no class is asked for: each class in turn, by the image's own seed."""
        return [seed % len(self.class_names) for seed in seeds]


KINDS = ("box", "brush", "half", "border", "sparse", "blob")
SMALLEST = 8  # pixels a side: below, the shares that the kinds promise are no longer whole pixels


def draw_mask(rng: np.random.Generator, height: int, width: int, kinds: Sequence[str] = KINDS) -> np.ndarray:
    """A mask of one of `kinds`, each as likely: (height, width) uint8, 1 = to generate, 0 = known.

    It holds both: one that came out whole is thrown away, and the next is drawn from the same generator.
    Raises: Error for an unknown kind, none at all, or a side below 8.
    """
    if not kinds:
        raise Error(f"kinds is empty: name at least one of {', '.join(KINDS)}.")
    for kind in kinds:
        if kind not in _DRAW:
            raise unknown("kind of mask", kind, KINDS)
    if min(height, width) < SMALLEST:
        raise Error(f"a mask of {height}x{width}: each side must be at least {SMALLEST}; take larger images.")
    draw = _DRAW[kinds[int(rng.integers(len(kinds)))]]
    while True:
        mask = draw(rng, height, width)
        if 0 < np.count_nonzero(mask) < mask.size:
            return mask


def _box(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A rectangle, each side 1/8 to 3/4 of the image's, anywhere."""
    mask = np.zeros((height, width), np.uint8)
    mask[_span(rng, height, 1 / 8, 3 / 4), _span(rng, width, 1 / 8, 3 / 4)] = 1
    return mask


def _half(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One side's half, or, half of the time, its share between 1/4 and 3/4."""
    share = 1 / 2 if rng.random() < 1 / 2 else rng.uniform(1 / 4, 3 / 4)
    return _side(rng, height, width, share)


def _border(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """All but a window, each side 1/3 to 7/8 of the image's; a quarter of the time all but a strip along one side."""
    if rng.random() < 1 / 4:
        return _side(rng, height, width, 1 - rng.uniform(1 / 3, 7 / 8))
    mask = np.ones((height, width), np.uint8)
    mask[_span(rng, height, 1 / 3, 7 / 8, edges=True), _span(rng, width, 1 / 3, 7 / 8, edges=True)] = 0
    return mask


def _sparse(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Each pixel known with one chance, drawn between 5 and 60 %."""
    known = rng.uniform(0.05, 0.6)
    mask: np.ndarray = (rng.random((height, width)) >= known).astype(np.uint8)
    return mask


def _brush(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Thick strokes with rounded ends, one after the other until 5 to 45 % are covered.

    A stroke is a random walk of up to 15 steps that ends where it leaves the image: one that were kept inside would
    crawl along the edge.
    """
    from PIL import Image, ImageDraw  # the settings of a task are read without it

    image = Image.new("L", (width, height))
    pen = ImageDraw.Draw(image)
    side, wanted = min(height, width), rng.uniform(0.05, 0.45) * height * width
    covered = 0
    while covered < wanted:
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * pi)
        radius, left = side * rng.uniform(1 / 32, 1 / 12), rng.integers(4, 16)
        pen.circle((x, y), radius, fill=1)
        while covered < wanted and left and 0 <= x <= width and 0 <= y <= height:
            angle, step = angle + rng.normal(0, 0.6), side * rng.uniform(0.05, 0.2)
            to = (x + step * cos(angle), y + step * sin(angle))
            pen.line((x, y, *to), fill=1, width=max(1, round(2 * radius)))
            pen.circle(to, radius, fill=1)
            (x, y), left, covered = to, left - 1, image.histogram()[1]
    return np.array(image)


def _blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One to three shapes like things: r = R (1 + sum_k a_k cos(k angle + phase_k)), k = 2..6, stretched and turned."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (width, height))
    around, waves = np.linspace(0, 2 * pi, 128, endpoint=False), np.arange(2, 7)
    for _ in range(rng.integers(1, 4)):
        size, stretch, turn = min(height, width) * rng.uniform(0.12, 0.36), rng.uniform(1, 1.6), rng.uniform(0, pi)
        heights, phases = rng.normal(0, 0.3, len(waves)) / waves, rng.uniform(0, 2 * pi, len(waves))
        radius = size * np.maximum(0.2, 1 + np.cos(np.outer(around, waves) + phases) @ heights)
        along, across = radius * np.cos(around) * stretch, radius * np.sin(around) / stretch
        x = width * rng.uniform(0.15, 0.85) + along * cos(turn) - across * sin(turn)
        y = height * rng.uniform(0.15, 0.85) + along * sin(turn) + across * cos(turn)
        ImageDraw.Draw(image).polygon(np.stack([x, y], 1).ravel().tolist(), fill=1)
    return np.array(image)


def _span(rng: np.random.Generator, length: int, least: float, most: float, edges: bool = False) -> slice:
    """A stretch of a side, `least` to `most` of it, anywhere; with `edges` a third of them touch an end."""
    size = max(1, round(length * rng.uniform(least, most)))
    place = rng.uniform(-1 / 4, 5 / 4) if edges else rng.random()
    start = round((length - size) * min(max(place, 0), 1))
    return slice(start, start + size)


def _side(rng: np.random.Generator, height: int, width: int, share: float) -> np.ndarray:
    """The strip along one of the four sides that is `share` of the image."""
    mask = np.zeros((height, width), np.uint8)
    turned = np.rot90(mask, int(rng.integers(4)))
    turned[: max(1, round(len(turned) * share))] = 1
    return mask


_DRAW = dict(zip(KINDS, (_box, _brush, _half, _border, _sparse, _blob)))


@dataclass(frozen=True)
class Generation(Labelled):
    """What a model is conditioned on: nothing, each image's class, or its caption."""

    kind: Literal["generation"] = "generation"

    def concat_channels(self, channels: int) -> int:
        """How many channels are joined to an image of so many: none."""
        return 0


SCALES = (2, 16)  # smallest and largest


@dataclass(frozen=True)
class SuperResolution(Labelled):
    """What a small image is taken to have gone through; its channels, enlarged, are joined to the noisy image."""

    kind: Literal["super_resolution"] = "super_resolution"
    scale: int = 4  # super_resolution: how many times larger each side becomes
    down: Literal["area", "bicubic", "any"] = "area"  # super_resolution: how images are shrunk; any: either, drawn
    blur: float = 0.0  # super_resolution: largest std of a blur before shrinking, in pixels of the large image
    noise: float = 0.0  # super_resolution: largest noise std in it, of 255; the network gets it too
    jpeg: int = 0  # super_resolution: least JPEG quality the small image went through, 1 to 95; 0: never

    def __post_init__(self) -> None:
        if not SCALES[0] <= self.scale <= SCALES[1]:
            raise Error(
                f"scale = {self.scale} is not allowed: {SCALES[0]} to {SCALES[1]} times each side; 4 is common."
            )
        if not 0 <= self.blur <= 8:
            raise Error(f"blur = {self.blur} is not allowed: 0 (none) to 8 pixels of the large image.")
        if not 0 <= self.noise <= 100:
            raise Error(f"noise = {self.noise} is not allowed: 0 (none) to 100 of 255; 10 is much.")
        if not 0 <= self.jpeg <= 95:
            raise Error(f"jpeg = {self.jpeg} is not allowed: a quality of 1 to 95, or 0 for none; 40 is common.")
        super().__post_init__()  # last: its limits say less

    def concat_channels(self, channels: int) -> int:
        """How many channels are joined to an image of so many: the enlarged one's, and the noise in it if given."""
        return channels + (self.noise > 0)


@dataclass(frozen=True)
class Inpainting(Labelled):
    """What may be missing; the image with its hole filled smoothly, and the mask, are joined to the noisy one."""

    kind: Literal["inpainting"] = "inpainting"
    masks: tuple[str, ...] = KINDS  # inpainting: what may be missing: box, brush, half, border, sparse, blob

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "masks", tuple(self.masks))
        if not self.masks:
            raise Error(f"masks is empty: name at least one of {', '.join(KINDS)}.")
        for name in self.masks:
            if name not in KINDS:
                raise unknown("kind of mask", name, KINDS)

    def concat_channels(self, channels: int) -> int:
        """How many channels are joined to an image of so many: the one filled smoothly, and the mask."""
        return channels + 1


def class_words(classes: object) -> tuple[str, ...]:
    """Classes as a request has them: of one or several, by name or by number; numbers may be numpy's or a tensor's.

    Raises:
        Error: neither.
    """
    if classes is None or isinstance(classes, str):
        return () if classes is None else (classes,)
    listed = classes.tolist() if hasattr(classes, "tolist") else classes
    found: list[str] = []
    for each in listed if isinstance(listed, Iterable) else [listed]:
        if isinstance(each, bool) or not isinstance(each, str | SupportsIndex):
            raise Error(f"classes = {shown(classes)} is not allowed: names or numbers of classes, one or several.")
        found.append(each if isinstance(each, str) else str(index(each)))
    return tuple(found)
