"""What a data set is and how its pictures are made alike: one frozen dataclass, checked as it is built. Torch-free."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kuosan.errors import Error, unknown

Channels = Literal["auto", "rgb", "grey"]
Resize = Literal["auto", "crop", "pad", "stretch", "centre", "random_crop", "buckets"]

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


@dataclass(frozen=True)
class DataConfig:
    """Where the pictures are and what is done to each.

    Attributes:
        path: `portraits` (inside the package), or a folder, .zip, .tar, IDX (.gz or not), .npz or .npy.
        size: pixels a side of the square pictures made; None decides from the data and says so.
        channels: `rgb`, `grey`, or `auto`: grey where every picture is.
        resize: `crop` scales the shorter side to `size` and cuts the centre; `pad` fits the longer side and fills
            with `background`; `stretch` ignores the aspect; `centre` never scales, it cuts or repeats the edges;
            `random_crop` crops to size * 9/8 and draws the window; `auto` is `centre` where all pictures share one
            size at most 8 pixels below `size`, else `crop`; `buckets` keeps aspect ratios: each picture goes to the
            nearest of several shapes of about size x size pixels.
        background: what transparent pictures lie on: white, black, grey or #rrggbb.
        flip: mirror half of the training pictures, drawn anew each time.
        hold_out: fraction kept out of training, chosen by content; None is the data set's own split, else 0.05.
        memory_gib: pictures are kept as bytes in memory when they fit in this.
        workers: threads that decode; 0 decodes in the caller's.
        max_pixels: a larger picture is refused from its header.
        max_bytes: an image whose file, or whose format's decoder, would take more memory than this is refused from its
            header; several at the same time, in `workers` threads, take no more together.
        label_column: the column of metadata.csv, or key of metadata.jsonl, of a data set's dicts or of the portraits'
            attributes, that holds the class.
        range: the numbers that are black and white in arrays, tensors, files of floats and of 32-bit integers, as
            `0,1`, `-1,1`, `0,255` or `0,4095`; `auto` decides over the whole set and says so, or refuses.
        bucket_step: with buckets: sides are multiples of this; none: an eighth of `size`, as a power of two.
        bucket_aspect: with buckets: the longer side over the shorter, at most, 1 to 8.
        split_version: what makes an image the same one, and so decides on its number and its side of the split: 2 its
            decoded pixels, near duplicates on one side; 1 the bytes of its file, as in runs made before.
        cache: folder that keeps what is computed once of pictures and captions (latents, a text encoder's features,
            near duplicates of 5,000 images and more); none: $KUOSAN_CACHE, else kuosan in the user's cache folder.
        layout: how folders and the files beside images are understood: 2; runs begun by older versions go on with 1.
    """

    path: str = PORTRAITS
    size: int | None = None
    channels: Channels = "auto"
    resize: Resize = "auto"
    background: str = "white"
    flip: bool = False
    hold_out: float | None = None
    memory_gib: float = 2.0
    workers: int = 2
    max_pixels: int = 64_000_000
    max_bytes: int = 512 * 2**20
    label_column: str = LABEL
    range: str = "auto"
    bucket_step: int | None = None
    bucket_aspect: float = BUCKET_ASPECT
    cache: str | None = None
    layout: int = LAYOUT
    split_version: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.strip():
            raise Error(
                f"path {self.path!r} is no path: give a folder, a .zip, .tar, IDX, .npz or .npy file, or {PORTRAITS!r}."
            )
        if self.size is not None:
            _whole("size", self.size, *SIZES, "or leave it out to decide from the data")
        for name, value, allowed in (
            ("channels", self.channels, get_args(Channels)),
            ("resize", self.resize, get_args(Resize)),
        ):
            if value not in allowed:
                raise unknown(name, value, allowed)
        self._check_buckets()
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

    def _check_buckets(self) -> None:
        if self.bucket_step is not None:
            _whole("bucket_step", self.bucket_step, 1, SIZES[1], "a multiple of what the network's sides must be")
        _number("bucket_aspect", self.bucket_aspect, 1.0, 8.0)
        for name, given in (
            ("bucket_step", self.bucket_step is not None),
            ("bucket_aspect", self.bucket_aspect != BUCKET_ASPECT),
        ):
            if given and self.resize != "buckets":
                raise Error(f"{name} has no effect with resize {self.resize}: set resize to buckets, or leave it out.")


def as_begun(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A stored run's configuration with the versions that it was begun with: the first, where it says none."""
    data = tree.get("data")
    if not isinstance(data, Mapping):
        return dict(tree)
    return {**tree, "data": {**data, "layout": data.get("layout", 1), "split_version": data.get("split_version", 1)}}


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
