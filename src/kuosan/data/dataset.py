"""Any torch data set from Python as a source: its items are tensors, arrays or Pillow images, alone or with a label."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
from PIL import Image

from kuosan.data.arrays import channels_last, to_bytes
from kuosan.data.captions import CAPTIONS, caption_text, class_name
from kuosan.data.config import LABEL, DataConfig, rgb
from kuosan.data.decoding import decode
from kuosan.data.entries import Entry, Listing
from kuosan.data.headers import Refused
from kuosan.data.pixels import opaque
from kuosan.errors import Error, unknown

PICTURES = ("image", "x", "x0", "pixel_values", "img")  # keys that a dict's picture may have


class DatasetSource:
    """A map-style data set, read item by item. Floats are in [0, 1], or in [-1, 1] if any item looked at is negative.

    Items are looked at once for labels and range; a data set that draws at random is used as it was drawn then.
    """

    def __init__(self, dataset: Any, config: DataConfig) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise Error(
                f"{type(dataset).__name__} has no length or no items by number: give a map-style data set "
                "(__len__ and __getitem__), or write the pictures of a stream into a folder."
            )
        if len(dataset) == 0:
            raise Error(f"{type(dataset).__name__} is empty: there is nothing to learn from.")
        self.dataset = dataset
        self.background = rgb(config.background)
        self.max_pixels = config.max_pixels
        self.label_column = config.label_column
        self.signed = False
        self.problems: list[tuple[str, str]] = []
        self.reading = threading.Lock()  # a data set may share an open file between its items

    def listing(self) -> Listing:
        """Every item with its label (the second of a tuple, or a dict's `label_column`) or caption (text).

        Raises:
            Error: an item is no picture, or has no such key.
        """
        entries = []
        for i in range(len(self.dataset)):
            item = self.dataset[i]
            picture = _picture(item, i)
            self.signed |= _lowest(picture) < 0
            entries.append(Entry(f"item {i}", *self._told(item, i)))
        says = f"{type(self.dataset).__name__}: {len(entries):,} items"
        return Listing(entries, missing=self.problems, says=says, in_order=True)

    def _told(self, item: Any, i: int) -> tuple[str | None, str | None]:
        """The label and the caption of an item."""
        if isinstance(item, dict):
            if self.label_column != LABEL and self.label_column not in item:
                raise unknown(f"label_column of item {i}", self.label_column, [k for k in item if k not in PICTURES])
            texts = [item[name] for name in CAPTIONS if isinstance(item.get(name), str | list) and len(item[name])]
            return _label(item.get(self.label_column)), self._caption(texts[0] if texts else None, i)
        if self.label_column != LABEL:
            raise Error(
                f"label_column is {self.label_column!r}, but item {i} is a {type(item).__name__}, which has no keys: "
                "leave label_column out, or give items as dicts."
            )
        beside = item[1] if isinstance(item, tuple | list) and len(item) > 1 else None
        return (None, self._caption(beside, i)) if isinstance(beside, str) else (_label(beside), None)

    def _caption(self, value: Any, i: int) -> str | None:
        try:
            return caption_text(value)
        except ValueError as reason:
            self.problems.append((f"item {i}", f"has no caption: {reason}"))
            return None

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (H, W, C) of the i-th item.

        Raises:
            Error: it is no picture, or its values have no agreed meaning.
        """
        with self.reading:
            picture = _picture(self.dataset[i], i)
        if isinstance(picture, Image.Image):
            buffer = io.BytesIO()
            picture.save(buffer, "TIFF" if picture.mode in ("CMYK", "F") else "PNG")
            return decode(buffer.getvalue(), self.background, self.max_pixels).pixels
        values = np.asarray(picture)
        if values.ndim == 2:
            values = values[None]
        name = f"item {i}"
        if values.dtype.kind not in "biuf":
            raise Error(f"{name} is a {type(picture).__name__}; a picture is a tensor, an array or a Pillow image.")
        if values.ndim != 3:
            raise Error(f"{name} has shape {values.shape}; a picture is (C, H, W), (H, W, C) or (H, W).")
        if values.shape[0] in (1, 3, 4):  # torch's order first, unlike files of arrays
            values = np.moveaxis(values, 0, 2)
        values = channels_last(values[None], name)[0]
        if values.dtype.kind == "f" and self.signed:
            if not np.isfinite(values).all():
                raise Refused("holds NaN or infinite values")
            if values.min() < -1.001 or values.max() > 1.001:  # beyond rounding
                raise Error(
                    f"{name} holds floats from {values.min():g} to {values.max():g}; pictures are in [0, 1] or "
                    "[-1, 1]: undo the normalisation by mean and standard deviation, or clip."
                )
            values = (np.clip(values, -1, 1) + 1) / 2
        return opaque(to_bytes(values, name), self.background)


def _picture(item: Any, i: int) -> Any:
    if isinstance(item, dict):
        picture = next((item[name] for name in PICTURES if name in item), None)
        if picture is None:
            raise Error(f"item {i} has the keys {', '.join(map(str, item))}; name the picture 'image'.")
        return picture
    return item[0] if isinstance(item, tuple | list) and len(item) > 0 else item


def _label(value: Any) -> str | None:
    """A number or text as the name of a class; a tensor or array of one number is that number."""
    if isinstance(value, str) or value is None:
        return class_name(value)
    values = np.asarray(value)
    return str(int(values)) if values.ndim == 0 and values.dtype.kind in "iu" else None


def _lowest(picture: Any) -> float:
    if isinstance(picture, Image.Image):
        return 0.0
    values = np.asarray(picture)
    return float(values.min()) if values.size and values.dtype.kind == "f" else 0.0
