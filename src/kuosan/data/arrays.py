"""Arrays of pictures: .npz and .npy files, and what their numbers mean.

Which number is black and which is white is decided over all of them (`ranges`); what the axes are, from the shape.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from kuosan.data.config import DataConfig, rgb, scale_of
from kuosan.data.entries import TEST, TRAIN, Entry, Listing
from kuosan.data.pixels import opaque
from kuosan.data.ranges import Survey
from kuosan.errors import Error

PICTURES = ("x", "images", "image", "data", "x_train", "train_images", "arr_0")
LABELS = ("y", "labels", "label", "targets", "y_train", "train_labels", "arr_1")
CHANNELS, CHANNEL_WORDS = (1, 3, 4), {1: "1 channel", 3: "3 channels", 4: "4 channels"}
TESTS = (("x_test", "y_test"), ("test_images", "test_labels"))


class Arrays:
    """An .npz with pictures (and labels, and a test part), or an .npy of pictures."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.background = rgb(config.background)
        found, others = _load(path, int((config.memory_gib + 1) * 2**30))
        name = next(name for name in PICTURES if name in found)
        label = next((other for other in LABELS if other in found), None)
        parts: list[tuple[np.ndarray, np.ndarray | None, bool | None]] = [self._part(found, name, label, None)]
        used = [name, *([label] if label else [])]
        for test, test_label in TESTS:
            if test in found and test != name and config.hold_out is None:
                parts = [(*parts[0][:2], False), self._part(found, test, test_label, True)]
                used += [test, *([test_label] if test_label in found else [])]
                break
        survey = Survey(f"{path}: {name}" if len(found) > 1 else str(path), scale_of(config.range))
        for pictures, _, _ in parts:
            survey.add(pictures)
        reading = survey.reading()
        self.parts = [(reading.bytes(pictures), labels, held) for pictures, labels, held in parts]
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
        self, found: dict[str, np.ndarray], name: str, label: str | None, held_out: bool | None
    ) -> tuple[np.ndarray, np.ndarray | None, bool | None]:
        labels = found.get(label) if label else None
        pictures = channels_last(found[name], f"{self.path}: {name}", labels is not None)
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


def _load(path: Path, most: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays that may be used, by name, and the names of the others."""
    try:
        if path.suffix.lower() == ".npy":
            return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}, []
        with zipfile.ZipFile(path) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > most:
            raise Error(f"{path} unpacks to {size:,} bytes, more than memory_gib allows ({most:,}): raise memory_gib.")
        with np.load(path, allow_pickle=False) as found:
            wanted = {*PICTURES, *LABELS, *(name for pair in TESTS for name in pair)}
            if not {*PICTURES} & {*found.files}:
                have = ", ".join(found.files[:8]) or "nothing"
                raise Error(f"{path} holds {have}; name the pictures one of {', '.join(PICTURES)}.")
            names = [name for name in found.files if name in wanted]
            return {name: found[name] for name in names}, [name for name in found.files if name not in wanted]
    except Error:
        raise
    # numpy and zipfile fail in many ways on damaged files, and a pickled array is a ValueError
    except Exception as reason:
        raise Error(f"{path} cannot be read as arrays ({reason}); objects (pickle) are never loaded.") from None
