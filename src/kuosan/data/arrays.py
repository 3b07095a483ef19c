"""Arrays of images: .npz and .npy files, and what their numbers mean.

Which number is black and which is white is decided over all of them (`ranges`); what the axes are, from the shape.

IDX, the format of the MNIST family: a magic number, the shape as big-endian words, then the numbers, big-endian too.

http://yann.lecun.com/exdb/mnist/ gives 00 00 TT NN for NN dimensions of type TT; 08 is unsigned bytes.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kuosan.data.config import DataConfig, laid_on, scale_of
from kuosan.data.headers import read_up_to
from kuosan.data.pixels import opaque
from kuosan.data.ranges import RangeReading, Survey
from kuosan.data.walk import TEST, TRAIN, Entry, Listing
from kuosan.errors import Error, plural

CHUNK = 1 << 23  # bytes of an array that are unpacked at once
IMAGES = ("x", "images", "image", "data", "x_train", "train_images", "arr_0")
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


class StoredImages:
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

    def converted(self, reading: RangeReading) -> np.ndarray:
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
    """An .npz with images (and labels, and a test part), or an .npy of images."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.background = laid_on(config)
        found, others = _load(path, int((config.memory_gib + 1) * 2**30))
        name = next(name for name in IMAGES if name in found)
        label = next((other for other in LABELS if other in found), None)
        parts: list[tuple[StoredImages, np.ndarray | None, bool | None]] = [self._part(found, name, label, None)]
        used = [name, *([label] if label else [])]
        for test, test_label in TESTS:
            if test in found and test != name and config.hold_out is None:
                parts = [(*parts[0][:2], False), self._part(found, test, test_label, True)]
                used += [test, *([test_label] if test_label in found else [])]
                break
        survey = Survey(f"{path}: {name}" if len(found) > 1 else str(path), scale_of(config.range))
        for images, _, _ in parts:
            for some in images.chunks():
                survey.add(some)
        reading = survey.reading()
        self.parts = [(images.converted(reading), labels, held) for images, labels, held in parts]
        self.notes = [*reading.lines, _axes(found[name].shape)]
        unused = [each for each in (*found, *others) if each not in used]
        if unused:
            self.notes.append(f"Of its arrays {', '.join(used)} are read, and not {', '.join(unused[:8])}.")

    def listing(self) -> Listing:
        """The images in the order of the array, those held out after."""
        entries = [
            Entry(
                f"{'test' if held else 'train'}[{i}]",
                None if labels is None else str(labels[i]),
                None,
                {True: TEST, False: TRAIN, None: None}[held],
            )
            for images, labels, held in self.parts
            for i in range(len(images))
        ]
        h, w = self.parts[0][0].shape[1:3]
        says = f"array {self.path}: {plural(len(entries), 'image')} of {w}x{h}"
        return Listing(entries, says=says, in_order=True, notes=tuple(self.notes))

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (H, W, C) of the i-th."""
        for images, _, _ in self.parts:
            if i < len(images):
                return images[i] if self.background is None else opaque(images[i], self.background)
            i -= len(images)
        raise AssertionError(entry)

    def _part(
        self, found: dict[str, Stored], name: str, label: str | None, held_out: bool | None
    ) -> tuple[StoredImages, np.ndarray | None, bool | None]:
        labels = found[label].whole() if label and label in found else None
        images = StoredImages(found[name], f"{self.path}: {name}", labels is not None)
        if labels is not None:
            labels = labels.reshape(len(labels), -1)[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
            if labels.ndim != 1 or len(labels) != len(images) or labels.dtype.kind not in "iuUb":
                raise Error(
                    f"{self.path}: {label} is {labels.dtype} of shape {labels.shape}; "
                    f"labels are whole numbers or text, ({len(images)},), one an image."
                )
        return images, labels, held_out


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
    raise Error(f"{name} has shape {shape}; images are (N, H, W), (N, H, W, C) or (N, C, H, W), C 1, 3 or 4.")


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
        wanted = {*IMAGES, *LABELS, *(name for pair in TESTS for name in pair)}
        if not {*IMAGES} & {*names}:
            have = ", ".join(names[:8]) or "nothing"
            raise Error(f"{path} holds {have}; name the images one of {', '.join(IMAGES)}.")
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


PIECE = 1 << 20  # bytes that are unpacked at once
TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
TEST_FILES = ("t10k", "test")


def is_idx(path: Path, head: bytes) -> bool:
    """Whether a file of these first bytes is IDX, or a gzip of it."""
    if _is_head(head[:4]):
        return True
    if head[:2] != b"\x1f\x8b":
        return False
    try:
        with gzip.open(path) as file:
            return _is_head(file.read(4))
    except (OSError, EOFError, zlib.error):
        return False


def _is_head(head: bytes) -> bool:
    return len(head) == 4 and head[:2] == b"\0\0" and head[2] in TYPES and (head[2] == 8 or 1 <= head[3] <= 4)


def is_idx_folder(path: Path) -> bool:
    """Whether a folder is a data set of IDX files rather than of images."""
    return bool(_image_files(path))


class Idx:
    """Images of an IDX file with its labels beside it; of a folder, `train` is trained on and `t10k` held out."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        files = _image_files(path) if path.is_dir() else [path]
        tests = [file for file in files if file.name.startswith(TEST_FILES)]
        trains = [file for file in files if file not in tests]
        if len(trains) > 1 or len(tests) > 1:
            raise Error(f"{path} holds several data sets: name one of {', '.join(file.name for file in files)}.")
        self.unused: list[Path] = []
        if config.hold_out is not None and trains:
            self.unused, tests = tests, []  # a fraction of the training file was asked for instead
        if not trains:
            trains, tests = tests, []  # a test file alone is a data set like any other
        found = [(_images(file, config), _labels(file), file in tests) for file in [*trains, *tests]]
        survey = Survey(str(path), scale_of(config.range))
        for images, _, _ in found:
            survey.add(images)
        reading = survey.reading()
        self.notes = reading.lines
        self.parts = [(reading.bytes(images), labels, held) for images, labels, held in found]

    def listing(self) -> Listing:
        """The images in the order of the file, those held out after."""
        entries = []
        for images, labels, held_out in self.parts:
            role = TEST if held_out else (TRAIN if len(self.parts) > 1 else None)
            for i in range(len(images)):
                label = None if labels is None else str(labels[i])
                entries.append(Entry(f"{role or TRAIN}[{i}]", label, None, role))
        found = sorted({int(label) for _, labels, _ in self.parts if labels is not None for label in np.unique(labels)})
        h, w = self.parts[0][0].shape[1:3]
        says = f"IDX {self.path}: {plural(len(entries), 'image')} of {w}x{h}" + (
            "" if found else ", no labels beside it"
        )
        if self.unused:
            says += f"; {self.unused[0].name} is not used, as hold_out asks for a part of the other file"
        return Listing(entries, says=says, classes=tuple(map(str, found)) or None, in_order=True, notes=self.notes)

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (H, W, C) of the i-th."""
        for images, _, _ in self.parts:
            if i < len(images):
                pixels: np.ndarray = images[i]
                return pixels
            i -= len(images)
        raise AssertionError(entry)


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for kind in ("idx3", "idx4") for file in folder.glob(f"*images*{kind}-ubyte*") if file.is_file())


def _images(path: Path, config: DataConfig) -> np.ndarray:  # (N, H, W, C)
    values = _array(path, int((config.memory_gib + 1) * 2**30))
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[3] not in (1, 3) or 0 in values.shape:
        raise Error(f"{path} has shape {values.shape}; images are (N, H, W) or (N, H, W, 3): is it the labels' file?")
    return values


def _labels(images: Path) -> np.ndarray | None:
    name = images.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    stem = name.removesuffix(".gz")
    for other in (images.with_name(stem), images.with_name(stem + ".gz")):
        if other != images and other.is_file():
            labels, count = _array(other, 1 << 30), len(_header(images)[1])
            if labels.dtype.kind == "f":
                raise Error(f"{other} holds floats; labels are whole numbers.")
            if labels.ndim != 1:
                raise Error(f"{other} has shape {labels.shape}; labels are (N,).")
            if len(labels) != (have := _header(images)[1][0]):
                raise Error(
                    f"{other} has {plural(len(labels), 'label')} for {plural(have, 'image')} in {images.name} "
                    f"({count} dims)."
                )
            return labels
    return None


def _header(path: Path) -> tuple[np.dtype, tuple[int, ...]]:
    """The type and the shape."""
    try:
        with _open(path) as file:
            head = file.read(4)
            if not _is_head(head) or not 1 <= head[3] <= 4:
                raise Error(f"{path} is no IDX file: it starts with {head.hex()}, not 000008 and a dimension.")
            return np.dtype(TYPES[head[2]]), tuple(int(w) for w in np.frombuffer(file.read(4 * head[3]), ">u4"))
    except (OSError, EOFError, zlib.error, IndexError) as reason:
        raise Error(f"{path} cannot be read ({reason}): fetch it again.") from None


def _array(path: Path, most: int) -> np.ndarray:
    kind, shape = _header(path)
    size = int(np.prod([kind.itemsize, *shape], dtype=object))
    if size > most:
        raise Error(f"{path} says it holds {size:,} bytes, more than memory_gib allows ({most:,}): raise memory_gib.")
    try:
        with _open(path) as file:
            file.read(4 + 4 * len(shape))
            content = np.empty(size, np.uint8)  # filled in place: reading would join two copies
            have = 0
            while have < size and (more := file.readinto(content.data[have : have + PIECE])):
                have += more
    except (OSError, EOFError, zlib.error) as reason:
        raise Error(f"{path} is damaged ({reason}): fetch it again.") from None
    if have < size:
        raise Error(f"{path} is cut short: it holds {have:,} of {size:,} bytes. Fetch it again.")
    return content.view(kind).reshape(shape)


def _open(path: Path) -> gzip.GzipFile:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else path.open("rb")  # type: ignore[return-value]
