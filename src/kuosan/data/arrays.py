"""Arrays of pictures: .npz and .npy files, and what their numbers mean.

Bytes are bytes; floats are white at 1 and black at 0, or at -1 where any is negative; 16 bits are scaled.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from kuosan.data.config import DataConfig, rgb
from kuosan.data.entries import Entry, Listing
from kuosan.data.pixels import opaque, rounded
from kuosan.errors import Error

PICTURES = ("x", "images", "image", "data", "x_train", "train_images", "arr_0")
LABELS = ("y", "labels", "label", "targets", "y_train", "train_labels", "arr_1")
TESTS = (("x_test", "y_test"), ("test_images", "test_labels"))


class Arrays:
    """An .npz with pictures (and labels, and a test part), or an .npy of pictures."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.background = rgb(config.background)
        found = _load(path, int((config.memory_gib + 1) * 2**30))
        name = next(name for name in PICTURES if name in found)
        label = next((other for other in LABELS if other in found), None)
        self.parts = [self._part(found, name, label, None)]
        for test, test_label in TESTS:
            if test in found and test != name and config.hold_out is None:
                self.parts = [(*self.parts[0][:2], False), self._part(found, test, test_label, True)]
                break

    def listing(self) -> Listing:
        """The pictures in the order of the array, those held out after."""
        entries = [
            Entry(f"{'test' if held else 'train'}[{i}]", None if labels is None else str(labels[i]), None, held)
            for pictures, labels, held in self.parts
            for i in range(len(pictures))
        ]
        h, w = self.parts[0][0].shape[1:3]
        return Listing(entries, says=f"array {self.path}: {len(entries):,} pictures of {w}x{h}", in_order=True)

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (H, W, C) of the i-th."""
        for pictures, _, _ in self.parts:
            if i < len(pictures):
                return opaque(pictures[i], self.background)
            i -= len(pictures)
        raise AssertionError(entry)

    def _part(
        self, found: dict[str, np.ndarray], name: str, label: str | None, held_out: bool | None
    ) -> tuple[np.ndarray, np.ndarray | None, bool | None]:
        pictures = to_bytes(channels_last(found[name], f"{self.path}: {name}"), f"{self.path}: {name}")
        labels = found.get(label) if label else None
        if labels is not None:
            labels = labels.reshape(len(labels), -1)[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
            if labels.ndim != 1 or len(labels) != len(pictures) or labels.dtype.kind not in "iuUb":
                raise Error(
                    f"{self.path}: {label} is {labels.dtype} of shape {labels.shape}; "
                    f"labels are whole numbers or text, ({len(pictures)},), one a picture."
                )
        return pictures, labels, held_out


def channels_last(values: np.ndarray, name: str) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, H, W, C), C 1, 3 or 4.

    Raises:
        Error: it is none of these.
    """
    if 0 not in values.shape:
        if values.ndim == 3:
            return values[..., None]
        if values.ndim == 4 and values.shape[3] in (1, 3, 4):
            return values
        if values.ndim == 4 and values.shape[1] in (1, 3, 4):
            return np.moveaxis(values, 1, 3)
    raise Error(f"{name} has shape {values.shape}; pictures are (N, H, W), (N, H, W, C) or (N, C, H, W), C 1, 3 or 4.")


def to_bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Numbers as bytes by what they mean.

    Raises:
        Error: floats outside [-1, 1], or a type that has no agreed white.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return rounded(values / 257.0)
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if low >= -1 and high <= 1:  # NaN fails both
            return rounded((values + 1) * 127.5 if low < 0 else values * 255.0)
        raise Error(f"{name} holds floats from {low:g} to {high:g}; pictures are in [0, 1] or [-1, 1], or bytes.")
    raise Error(f"{name} is {values.dtype}; pictures are uint8, uint16, bool, or floats in [0, 1] or [-1, 1].")


def _load(path: Path, most: int) -> dict[str, np.ndarray]:
    try:
        if path.suffix.lower() == ".npy":
            return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > most:
            raise Error(f"{path} unpacks to {size:,} bytes, more than memory_gib allows ({most:,}): raise memory_gib.")
        with np.load(path, allow_pickle=False) as found:
            wanted = {*PICTURES, *LABELS, *(name for pair in TESTS for name in pair)}
            if not {*PICTURES} & {*found.files}:
                have = ", ".join(found.files[:8]) or "nothing"
                raise Error(f"{path} holds {have}; name the pictures one of {', '.join(PICTURES)}.")
            return {name: found[name] for name in found.files if name in wanted}
    except Error:
        raise
    # numpy and zipfile fail in many ways on damaged files, and a pickled array is a ValueError
    except Exception as reason:
        raise Error(f"{path} cannot be read as arrays ({reason}); objects (pickle) are never loaded.") from None
