"""What a data set is and how its images are made alike: one frozen dataclass, checked as it is built. Torch-free.

Aspect-ratio buckets: shapes of about size x size pixels, and which of them each image is resized to. Torch-free.

A shape (H, W) has a longer side L = size, size + step, ... and for the shorter the multiple of step nearest to size²/L.
An image of h x w goes to the shape of the nearest ratio; scaled to cover it, the part of its pixels that is cut is

    cut = 1 - min(wH, hW) / max(wH, hW)

which is least for the very same shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from kuosan.errors import Error, unknown
from kuosan.options import check, only

Channels = Literal["auto", "rgb", "grey", "rgba"]
Captions = Literal["beside", "file_names", "folder_names"]
Resize = Literal["auto", "crop", "pad", "stretch", "centre", "nearest", "random_crop", "buckets"]

Shape = tuple[int, int]  # height, width

PORTRAITS = "portraits"  # the path that means: the data set inside the package
LABEL = "label"  # the column that holds the class where nobody says
SIZES = (8, 1024)  # pixels a side, smallest and largest
BUCKET_ASPECT = 2.0  # as wide or tall as nearly all photographs are
LAYOUT = 2  # how folders and the files beside images are understood; a run keeps the version that it began with
SPLITS = (1, 2)  # by the bytes of files, as runs of 0.1 and before; by pixels, near duplicates together
HOLD_OUT = 0.05  # fraction held out where neither the caller nor the data set says
# Pillow refuses twice its own warning limit by itself; more could not be opened anyway.
MOST_PIXELS = 178_956_970
COLOURS = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
GREY, RGB, RGBA = 1, 3, 4  # channels of images
CHANNELS_OF: dict[int, Channels] = {GREY: "grey", RGB: "rgb", RGBA: "rgba"}  # as `channels` is set
COLOUR_WORDS = {GREY: "grey", RGB: "colour", RGBA: "colour and alpha"}  # as messages say it


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and what is done to each.

    Attributes:
        path: `portraits` (inside the package), or a folder, .zip, .tar, IDX (.gz or not), .npz or .npy.
        size: pixels a side of the square images made, or width and height of others, as 64x48; None decides from the
            data and says so.
        channels: `rgb`, `grey`, `rgba` (transparency is kept, and images without are opaque), or `auto`: grey where
            every image is, else rgb.
        resize: `crop` scales the shorter side to `size` and cuts the centre; `pad` fits the longer side and fills
            with `background` (of rgba: with nothing); `stretch` ignores the aspect; `centre` never scales, it cuts or
            repeats the edges; `nearest` is `crop` for pixel art: it takes the nearest pixel and mixes no colours;
            `random_crop` crops to size * 9/8 and draws the window; `auto` is `centre` where all images share one
            size at most 8 pixels below `size`, else `crop`; `buckets` keeps aspect ratios: each image goes to the
            nearest of several shapes of about size x size pixels.
        background: what transparent images lie on: white, black, grey or #rrggbb.
        flip: mirror half of the training images, drawn again each time.
        hold_out: fraction kept out of training, chosen by content; None is the data set's own split, else 0.05.
        memory_gib: images are kept as bytes in memory when they fit in this.
        workers: threads that decode; 0 decodes in the caller's.
        max_pixels: a larger image is refused from its header.
        max_bytes: an image whose file, or whose format's decoder, would take more memory than this is refused from its
            header; several at the same time, in `workers` threads, take no more together.
        label_column: the column of metadata.csv, or key of metadata.jsonl, of a data set's dicts or of the portraits'
            attributes, that holds the class.
        captions: where captions come from: `beside` the images (lists, and files of an image's name), `file_names`
            or `folder_names`, without underscores, hyphens, numbering and suffix.
        range: the numbers that are black and white in arrays, tensors, files of floats and of 32-bit integers, as
            `0,1`, `-1,1`, `0,255` or `0,4095`; `auto` decides over the whole set and says so, or refuses.
        bucket_step: with buckets: sides are multiples of this; none: an eighth of `size`, as a power of two.
        bucket_aspect: with buckets: the longer side over the shorter, at most, 1 to 8.
        split_version: what makes an image the same one, and so decides on its number and its side of the split: 2 its
            decoded pixels, near duplicates on one side; 1 the bytes of its file, as in runs made before.
        cache: folder that keeps what is computed once of images and captions (latents, a text encoder's features,
            near duplicates of 5,000 images and more); none: $KUOSAN_CACHE, else kuosan in the user's cache folder.
        layout: how folders and the files beside images are understood: 2; runs begun by older versions go on with 1.
    """

    path: str = PORTRAITS
    size: int | str | None = field(default=None, metadata={"read": lambda text: read_size(text)})
    channels: Channels = "auto"
    resize: Resize = "auto"
    background: str = field(
        default="white", metadata=only(channels=("auto", "rgb", "grey"), because="rgba images keep their transparency")
    )
    flip: bool = False
    hold_out: float | None = None
    memory_gib: float = 2.0
    workers: int = 2
    max_pixels: int = 64_000_000
    max_bytes: int = 512 * 2**20
    label_column: str = LABEL
    captions: Captions = "beside"
    range: str = "auto"
    bucket_step: int | None = field(default=None, metadata=only(resize="buckets"))
    bucket_aspect: float = field(default=BUCKET_ASPECT, metadata=only(resize="buckets"))
    cache: str | None = None
    layout: int = LAYOUT
    split_version: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.strip():
            raise Error(
                f"path {self.path!r} is no path: give a folder, a .zip, .tar, IDX, .npz or .npy file, or {PORTRAITS!r}."
            )
        if self.size is not None:
            object.__setattr__(self, "size", read_size(self.size))
            for side in self.sides:
                _whole("size", side, *SIZES, "or leave it out to decide from the data")
        for name, value, allowed in (
            ("channels", self.channels, get_args(Channels)),
            ("resize", self.resize, get_args(Resize)),
            ("captions", self.captions, get_args(Captions)),
        ):
            if value not in allowed:
                raise unknown(name, value, allowed)
        self._check_buckets()
        if isinstance(self.size, str) and self.resize in ("buckets", "random_crop"):
            raise Error(
                f"size = {self.size} with resize {self.resize}, which makes squares or shapes of about as many pixels: "
                "give one number, or use resize crop, pad, stretch, centre or nearest."
            )
        rgb(self.background)
        if not isinstance(self.flip, bool):
            raise Error(f"flip {self.flip!r} must be true or false.")
        if self.hold_out is not None:
            _number("hold_out", self.hold_out, 0.0, 0.9)
        _number("memory_gib", self.memory_gib, 0.0, 4096.0)
        _whole("workers", self.workers, 0, 64, "0 decodes in the calling thread")
        _whole("max_pixels", self.max_pixels, 1, MOST_PIXELS, "pixels, width times height")
        _whole("max_bytes", self.max_bytes, 1 << 20, 1 << 40, "bytes of memory for decoding one image")
        scale_of(self.range)
        _whole("layout", self.layout, 1, LAYOUT, "1 is how older versions understood folders")
        if self.split_version not in SPLITS or isinstance(self.split_version, bool):
            raise unknown("split_version", str(self.split_version), [str(version) for version in SPLITS])
        if not isinstance(self.label_column, str) or self.label_column in ("", "file_name"):
            raise Error(f"label_column {self.label_column!r} is no column of classes: name one, such as {LABEL!r}.")

    @property
    def sides(self) -> Shape:
        """Height and width of a `size` that is given."""
        assert self.size is not None
        if not isinstance(self.size, str):
            return self.size, self.size
        width, height = self.size.split("x")
        return int(height), int(width)

    def _check_buckets(self) -> None:
        if self.bucket_step is not None:
            _whole("bucket_step", self.bucket_step, 1, SIZES[1], "a multiple of what the network's sides must be")
        _number("bucket_aspect", self.bucket_aspect, 1.0, 8.0)
        check(self)


def read_size(size: int | str) -> int | str:
    """A size as it is stored: one number of squares, else `WxH`. Raises: Error for anything else."""
    if not isinstance(size, str):
        return size
    parts = [part.strip() for part in size.lower().replace("×", "x").split("x")]
    if len(parts) > 2 or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise Error(f"size {size!r} is neither one number of pixels, as 64, nor width x height, as 64x48.")
    width, height = int(parts[0]), int(parts[-1])
    return width if width == height else f"{width}x{height}"


def rgb(background: str) -> tuple[int, int, int]:
    """The bytes of a colour by name or #rrggbb.

    Raises:
        Error: it is neither.
    """
    if isinstance(background, str):
        if background in COLOURS:
            return COLOURS[background]
        if re.fullmatch("#[0-9a-fA-F]{6}", background):
            red, green, blue = bytes.fromhex(background[1:])
            return red, green, blue
    raise unknown("background", background, [*COLOURS, "#rrggbb"])


def laid_on(config: DataConfig) -> tuple[int, int, int] | None:
    """The bytes of what transparent images are laid on; None where they keep their transparency."""
    return None if config.channels == "rgba" else rgb(config.background)


def scale_of(range: str) -> tuple[float, float] | None:
    """The numbers that are black and white of `BLACK,WHITE`; None for `auto`.

    Raises:
        Error: it is neither.
    """
    if range == "auto":
        return None
    try:
        black, white = (float(part) for part in range.split(","))
    except (AttributeError, ValueError):
        black = white = math.nan
    if not (math.isfinite(black) and math.isfinite(white) and black != white):
        raise Error(
            f"range {range!r} must be auto, or the numbers that are black and white, two and different, as 0,1 or "
            "--range=-1,1."
        )
    return black, white


def _whole(name: str, value: object, low: int, high: int, cure: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Error(f"{name} {value!r} must be a whole number from {low} to {high}: {cure}.")


def _number(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Error(f"{name} {value!r} must be a number from {low:g} to {high:g}.")


LEAST_STEP = 4  # pixels: what networks of the smallest images halve twice
MOST_AREA_ERROR = 0.25  # of size²: a shape of fewer or more pixels is none of about as many


@dataclass(frozen=True)
class Buckets:
    """The shapes that hold images, from tall to wide, and the place among them of each image's."""

    shapes: tuple[Shape, ...]  # (H, W)
    of: np.ndarray  # (N,) int64

    def counts(self, ids: np.ndarray) -> np.ndarray:
        """How many of these images each bucket has: (len(shapes),) int64."""
        return np.bincount(self.of[ids], minlength=len(self.shapes))

    def default_shape(self, ids: np.ndarray) -> Shape:
        """The square where it holds one of these images, else the shape that holds most of them."""
        counts = self.counts(ids)
        square = [bool(count) and h == w for count, (h, w) in zip(counts, self.shapes)]
        return self.shapes[square.index(True) if any(square) else int(counts.argmax())]


def default_step(size: int) -> int:
    """An eighth of `size` as a power of two that divides it, at least 4 where that does: 8 at 64, 64 at 512.

    The default networks' factor divides it.
    """
    step = LEAST_STEP
    while step < size / 8:
        step *= 2
    while size % step:
        step //= 2
    return step


def shapes(size: int, step: int, aspect: float) -> tuple[Shape, ...]:
    """All buckets of about size x size pixels whose sides are multiples of `step`, from tall to wide.

    Args:
        aspect: the longer side over the shorter, at most.

    Raises:
        Error: `size` is no multiple of `step`, so that the square would be no bucket.
    """
    if size % step:
        raise Error(
            f"bucket_step = {step} does not divide size = {size}, so squares would have no bucket: set size to a "
            f"multiple of it, or leave bucket_step out."
        )
    wide = []
    for longer in range(size, int(size * aspect) + 1, step):
        shorter = max(1, int(size**2 / (longer * step) + 0.5)) * step
        if longer / shorter <= aspect and abs(longer * shorter / size**2 - 1) <= MOST_AREA_ERROR:
            wide.append((shorter, longer))
    return (*((w, h) for h, w in reversed(wide[1:])), *wide)


def nearest(choices: Sequence[Shape], height: int, width: int) -> int:
    """The place of the shape whose ratio is nearest to an image's, and so cuts least of it."""
    return min(range(len(choices)), key=lambda i: (cut(choices[i], height, width), i))


def cut(shape: Shape, height: int, width: int) -> float:
    """The part of an image's pixels, 0 to 1, that is lost when it is scaled to cover `shape` and cut to it."""
    one, other = width * shape[0], height * shape[1]
    return 1 - min(one, other) / max(one, other)


def sorted_into(choices: Sequence[Shape], sizes: Sequence[Shape]) -> Buckets:
    """The buckets of images of these sizes (h, w); shapes that hold none are left out."""
    found = {size: nearest(choices, *size) for size in set(sizes)}
    places = np.array([found[size] for size in sizes], np.int64)
    used, of = np.unique(places, return_inverse=True)
    return Buckets(tuple(choices[int(i)] for i in used), of.astype(np.int64).reshape(-1))
