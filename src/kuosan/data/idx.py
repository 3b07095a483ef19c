"""IDX, the format of the MNIST family: a magic number, the shape as big-endian words, then the numbers, big-endian too.

http://yann.lecun.com/exdb/mnist/ gives 00 00 TT NN for NN dimensions of type TT; 08 is unsigned bytes.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from kuosan.data.config import DataConfig, scale_of
from kuosan.data.entries import TEST, TRAIN, Entry, Listing
from kuosan.data.ranges import Survey
from kuosan.errors import Error

PIECE = 1 << 20  # bytes that are unpacked at once
TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
TESTS = ("t10k", "test")


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
    """Whether a folder is a data set of IDX files rather than of pictures."""
    return bool(_image_files(path))


class Idx:
    """Pictures of an IDX file with its labels beside it; of a folder, `train` is trained on and `t10k` held out."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        files = _image_files(path) if path.is_dir() else [path]
        tests = [file for file in files if file.name.startswith(TESTS)]
        trains = [file for file in files if file not in tests]
        if len(trains) > 1 or len(tests) > 1:
            raise Error(f"{path} holds several data sets: name one of {', '.join(file.name for file in files)}.")
        self.unused: list[Path] = []
        if config.hold_out is not None and trains:
            self.unused, tests = tests, []  # a fraction of the training file was asked for instead
        if not trains:
            trains, tests = tests, []  # a test file alone is a data set like any other
        found = [(_pictures(file, config), _labels(file), file in tests) for file in [*trains, *tests]]
        survey = Survey(str(path), scale_of(config.range))
        for pictures, _, _ in found:
            survey.add(pictures)
        reading = survey.reading()
        self.notes = reading.lines
        self.parts = [(reading.bytes(pictures), labels, held) for pictures, labels, held in found]

    def listing(self) -> Listing:
        """The pictures in the order of the file, those held out after."""
        entries = []
        for pictures, labels, held_out in self.parts:
            role = TEST if held_out else (TRAIN if len(self.parts) > 1 else None)
            for i in range(len(pictures)):
                label = None if labels is None else str(labels[i])
                entries.append(Entry(f"{role or TRAIN}[{i}]", label, None, role))
        found = sorted({int(label) for _, labels, _ in self.parts if labels is not None for label in np.unique(labels)})
        h, w = self.parts[0][0].shape[1:3]
        says = f"IDX {self.path}: {len(entries):,} pictures of {w}x{h}" + ("" if found else ", no labels beside it")
        if self.unused:
            says += f"; {self.unused[0].name} is not used, as hold_out asks for a part of the other file"
        return Listing(entries, says=says, classes=tuple(map(str, found)) or None, in_order=True, notes=self.notes)

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (H, W, C) of the i-th."""
        for pictures, _, _ in self.parts:
            if i < len(pictures):
                pixels: np.ndarray = pictures[i]
                return pixels
            i -= len(pictures)
        raise AssertionError(entry)


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for kind in ("idx3", "idx4") for file in folder.glob(f"*images*{kind}-ubyte*") if file.is_file())


def _pictures(path: Path, config: DataConfig) -> np.ndarray:  # (N, H, W, C)
    values = _array(path, int((config.memory_gib + 1) * 2**30))
    if values.ndim == 3:
        values = values[..., None]
    if values.ndim != 4 or values.shape[3] not in (1, 3) or 0 in values.shape:
        raise Error(f"{path} has shape {values.shape}; pictures are (N, H, W) or (N, H, W, 3): is it the labels' file?")
    return values


def _labels(pictures: Path) -> np.ndarray | None:
    name = pictures.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    stem = name.removesuffix(".gz")
    for other in (pictures.with_name(stem), pictures.with_name(stem + ".gz")):
        if other != pictures and other.is_file():
            labels, count = _array(other, 1 << 30), len(_header(pictures)[1])
            if labels.dtype.kind == "f":
                raise Error(f"{other} holds floats; labels are whole numbers.")
            if labels.ndim != 1:
                raise Error(f"{other} has shape {labels.shape}; labels are (N,).")
            if len(labels) != (have := _header(pictures)[1][0]):
                raise Error(f"{other} has {len(labels)} labels for {have} pictures in {pictures.name} ({count} dims).")
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
