"""Arrays of pictures: .npz and .npy files, and what their numbers mean.

Which number is black and which is white is decided over all of them (`ranges`); what the axes are, from the shape.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kuosan.data.config import DataConfig, rgb, scale_of
from kuosan.data.entries import TEST, TRAIN, Entry, Listing
from kuosan.data.headers import read_up_to
from kuosan.data.pixels import opaque
from kuosan.data.ranges import Reading, Survey
from kuosan.errors import Error

CHUNK = 1 << 23  # bytes of an array that are unpacked at once
PICTURES = ("x", "images", "image", "data", "x_train", "train_images", "arr_0")
LABELS = ("y", "labels", "label", "targets", "y_train", "train_labels", "arr_1")
CHANNELS, CHANNEL_WORDS = (1, 3, 4), {1: "1 channel", 3: "3 channels", 4: "4 channels"}
TESTS = (("x_test", "y_test"), ("test_images", "test_labels"))


@dataclass(frozen=True)
class Stored:
    """An array in a file: mapped, or a member of an .npz that is unpacked chunk by chunk, each time from its start."""

    shape: tuple[int, ...]
    dtype: np.dtype
    mapped: np.ndarray | None = None
    member: tuple[Path, str, int] | None = None  # the archive, the name in it, bytes of the header

    def chunks(self) -> Iterator[np.ndarray]:
        """All items in order, about `CHUNK` bytes at a time, or one."""
        each = max(1, CHUNK // max(1, int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize))
        if self.mapped is not None or self.member is None:
            for first in range(0, len(self.mapped) if self.mapped is not None else 0, each):
                yield self.mapped[first : first + each]  # type: ignore[index]
            return
        path, name, skip = self.member
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            stream.read(skip)
            for first in range(0, self.shape[0], each):
                shape = (min(each, self.shape[0] - first), *self.shape[1:])
                size = int(np.prod(shape, dtype=object)) * self.dtype.itemsize
                content = read_up_to(stream, size)
                if len(content) < size:
                    raise Error(f"{path}: {name} is cut short: fetch it again.")
                yield np.frombuffer(content, self.dtype).reshape(shape)

    def whole(self) -> np.ndarray:
        """The array."""
        if self.mapped is not None:
            return self.mapped
        return np.concatenate([*self.chunks()]) if self.shape and self.shape[0] else np.zeros(self.shape, self.dtype)


class Images:
    """A stored array as images (N, H, W, C)."""

    def __init__(self, stored: Stored, name: str, counted: bool) -> None:
        self.stored, shape = stored, stored.shape
        probe = channels_last(np.broadcast_to(np.zeros((), stored.dtype), shape), name, counted)
        self.shape = probe.shape
        self.first = len(shape) == 4 and shape[3] not in CHANNELS  # the channels come first

    def __len__(self) -> int:
        return int(self.shape[0])

    def chunks(self) -> Iterator[np.ndarray]:
        """The images in order, some at a time."""
        for some in self.stored.chunks():
            yield some[..., None] if some.ndim == 3 else np.moveaxis(some, 1, 3) if self.first else some

    def converted(self, reading: Reading) -> np.ndarray:
        """All of them as bytes; what is mapped and holds bytes stays where it is."""
        if self.stored.mapped is not None and self.stored.dtype == np.uint8:
            only = self.stored.mapped
            only = only[..., None] if only.ndim == 3 else np.moveaxis(only, 1, 3) if self.first else only
            return reading.bytes(only)
        out, at = np.empty(self.shape, np.uint8), 0
        for some in self.chunks():
            out[at : at + len(some)] = reading.bytes(some)
            at += len(some)
        return out


class Arrays:
    """An .npz with pictures (and labels, and a test part), or an .npy of pictures."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.background = rgb(config.background)
        found, others = _load(path, int((config.memory_gib + 1) * 2**30))
        name = next(name for name in PICTURES if name in found)
        label = next((other for other in LABELS if other in found), None)
        parts: list[tuple[Images, np.ndarray | None, bool | None]] = [self._part(found, name, label, None)]
        used = [name, *([label] if label else [])]
        for test, test_label in TESTS:
            if test in found and test != name and config.hold_out is None:
                parts = [(*parts[0][:2], False), self._part(found, test, test_label, True)]
                used += [test, *([test_label] if test_label in found else [])]
                break
        survey = Survey(f"{path}: {name}" if len(found) > 1 else str(path), scale_of(config.range))
        for pictures, _, _ in parts:
            for some in pictures.chunks():
                survey.add(some)
        reading = survey.reading()
        self.parts = [(pictures.converted(reading), labels, held) for pictures, labels, held in parts]
        self.notes = [*reading.lines, _axes(found[name].shape)]
        unused = [each for each in (*found, *others) if each not in used]
        if unused:
            self.notes.append(f"Of its arrays {', '.join(used)} are read, and not {', '.join(unused[:8])}.")

    def listing(self) -> Listing:
        """The pictures in the order of the array, those held out after."""
        entries = [
            Entry(
                f"{'test' if held else 'train'}[{i}]",
                None if labels is None else str(labels[i]),
                None,
                {True: TEST, False: TRAIN, None: None}[held],
            )
            for pictures, labels, held in self.parts
            for i in range(len(pictures))
        ]
        h, w = self.parts[0][0].shape[1:3]
        says = f"array {self.path}: {len(entries):,} pictures of {w}x{h}"
        return Listing(entries, says=says, in_order=True, notes=tuple(self.notes))

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (H, W, C) of the i-th."""
        for pictures, _, _ in self.parts:
            if i < len(pictures):
                return opaque(pictures[i], self.background)
            i -= len(pictures)
        raise AssertionError(entry)

    def _part(
        self, found: dict[str, Stored], name: str, label: str | None, held_out: bool | None
    ) -> tuple[Images, np.ndarray | None, bool | None]:
        labels = found[label].whole() if label and label in found else None
        pictures = Images(found[name], f"{self.path}: {name}", labels is not None)
        if labels is not None:
            labels = labels.reshape(len(labels), -1)[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
            if labels.ndim != 1 or len(labels) != len(pictures) or labels.dtype.kind not in "iuUb":
                raise Error(
                    f"{self.path}: {label} is {labels.dtype} of shape {labels.shape}; "
                    f"labels are whole numbers or text, ({len(pictures)},), one a picture."
                )
        return pictures, labels, held_out


def _axes(shape: tuple[int, ...]) -> str:
    """How the axes of an array were read."""
    order = "(N, H, W)" if len(shape) == 3 else "(N, H, W, C)" if shape[3] in CHANNELS else "(N, C, H, W)"
    return f"The axes {tuple(shape)} are read as {order}."


def channels_last(values: np.ndarray, name: str, counted: bool = False) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, H, W, C), C 1, 3 or 4.

    Args:
        counted: labels beside it say how many images there are.

    Raises:
        Error: it is none of these, or could be two of them.
    """
    shape = values.shape
    if 0 not in shape:
        if values.ndim == 3:
            one = f"1 image of {CHANNEL_WORDS.get(shape[2])}" if shape[2] in CHANNELS else "1 image of 3 channels"
            if not counted and (shape[2] in CHANNELS or shape[0] == 3):
                raise Error(
                    f"{name} has shape {shape}, which may be {one}, or {shape[0]} grey images: add an axis, so that "
                    f"it is (N, H, W, C) or (N, C, H, W), C 1, 3 or 4."
                )
            return values[..., None]
        if values.ndim == 4 and shape[3] in CHANNELS and shape[1] in CHANNELS:
            raise Error(
                f"{name} has shape {shape}, which may be (N, H, W, C) or (N, C, H, W): images of at least 5 pixels a "
                "side leave no doubt; repeat rows and columns, or save files."
            )
        if values.ndim == 4 and shape[3] in CHANNELS:
            return values
        if values.ndim == 4 and shape[1] in CHANNELS:
            return np.moveaxis(values, 1, 3)
    raise Error(f"{name} has shape {shape}; pictures are (N, H, W), (N, H, W, C) or (N, C, H, W), C 1, 3 or 4.")


def _load(path: Path, most: int) -> tuple[dict[str, Stored], list[str]]:
    """The arrays that may be used, by name, and the names of the others; nothing is unpacked but their headers."""
    try:
        if path.suffix.lower() == ".npy":
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            return {"x": Stored(mapped.shape, mapped.dtype, mapped)}, []
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
            names = [name.removesuffix(".npy") for name in members.namelist()]
        if size > most:
            raise Error(f"{path} unpacks to {size:,} bytes, more than memory_gib allows ({most:,}): raise memory_gib.")
        wanted = {*PICTURES, *LABELS, *(name for pair in TESTS for name in pair)}
        if not {*PICTURES} & {*names}:
            have = ", ".join(names[:8]) or "nothing"
            raise Error(f"{path} holds {have}; name the pictures one of {', '.join(PICTURES)}.")
        with zipfile.ZipFile(path) as members:
            return {name: _member(path, members, name) for name in dict.fromkeys(names) if name in wanted}, [
                name for name in names if name not in wanted
            ]
    except Error:
        raise
    # numpy and zipfile fail in many ways on damaged files, and a pickled array is a ValueError
    except Exception as reason:
        raise Error(f"{path} cannot be read as arrays ({reason}); objects (pickle) are never loaded.") from None


def _member(path: Path, members: zipfile.ZipFile, name: str) -> Stored:
    """The header of an array in an .npz.

    Raises:
        Error: it is packed otherwise than numpy packs, or its header says more or less than its bytes.
        ValueError, OSError, zipfile.BadZipFile: it is damaged, or holds objects.
    """
    info = members.getinfo(f"{name}.npy" if f"{name}.npy" in members.namelist() else name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Error(
            f"{path}: {name} is packed by method {info.compress_type}; numpy writes .npz stored or deflated: write it "
            "again with numpy.savez or numpy.savez_compressed."
        )
    with members.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        skip = stream.tell()
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if skip + size != info.file_size:
        raise Error(
            f"{path}: {name} says {size:,} bytes of {shape}, and has {info.file_size - skip:,}: it is damaged, write "
            "it again."
        )
    if fortran and len(shape) > 1:
        with members.open(info) as stream:
            whole = np.lib.format.read_array(stream, allow_pickle=False)
        return Stored(shape, dtype, whole)
    return Stored(shape, dtype, None, (path, info.filename, skip))
