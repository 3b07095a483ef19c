"""Any torch data set from Python as a source: its items are tensors, arrays or Pillow images, alone or with a label."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from PIL import Image

from kuosan.data.arrays import CHANNELS
from kuosan.data.captions import CAPTIONS, caption_text, class_name
from kuosan.data.config import LABEL, DataConfig, rgb, scale_of
from kuosan.data.decoding import decode_image
from kuosan.data.entries import Entry, Listing
from kuosan.data.pixels import opaque
from kuosan.data.ranges import Reading, Survey
from kuosan.errors import Error, unknown

PICTURES = ("image", "x", "x0", "pixel_values", "img")  # keys that a dict's picture may have


class DatasetSource:
    """A map-style data set, read item by item; the range of its numbers is decided over all items.

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
        self.max_pixels, self.max_bytes = config.max_pixels, config.max_bytes
        self.label_column, self.version = config.label_column, config.layout
        self.scale = scale_of(config.range)
        self.numbers = Reading({}, ())
        self.problems: list[tuple[str, str]] = []
        self.reading = threading.Lock()  # a data set may share an open file between its items

    def listing(self) -> Listing:
        """Every item with its label (the second of a tuple, or a dict's `label_column`) or caption (text).

        Raises:
            Error: an item is no picture, or has no such key.
        """
        entries, orders = [], dict[str, int]()
        survey = Survey(type(self.dataset).__name__, self.scale)
        for i in range(len(self.dataset)):
            item = self._item(i)
            picture = _picture(item, i)
            if not _is_shown(picture):
                values, order = _values(picture, i)
                survey.add(values[None])
                orders[order] = orders.get(order, 0) + 1
            entries.append(Entry(f"item {i}", *self._told(item, i)))
        self.numbers = survey.reading(damaged_are_skipped=True)
        says = f"{type(self.dataset).__name__}: {len(entries):,} items"
        axes = [f"{count:,} items are read as {order}." for order, count in orders.items()]
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

    def _told(self, item: Any, i: int) -> tuple[str | None, str | None]:
        """The label and the caption of an item."""
        if isinstance(item, dict):
            if self.label_column != LABEL and self.label_column not in item:
                raise unknown(f"label_column of item {i}", self.label_column, [k for k in item if k not in PICTURES])
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
            Error: it is no picture, or its values have no agreed meaning.
        """
        with self.reading:
            picture = _picture(self._item(i), i)
        if _is_shown(picture):
            return decode_image(picture, self.background, self.max_pixels, self.scale, self.max_bytes).pixels
        return opaque(self.numbers.bytes(_values(picture, i)[0], halved=True), self.background)


def _is_shown(picture: Any) -> bool:
    """Whether it is a Pillow image whose numbers have a white of their own; those of others are read as arrays are."""
    return isinstance(picture, Image.Image) and (
        picture.mode not in ("F", "I") or picture.format in ("PNG", "PPM", "TIFF")
    )


def _array(value: Any) -> np.ndarray:
    """An array or tensor as numpy takes it: without gradient or device, bfloat16 as float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if "bfloat16" in str(value.dtype) or "float8" in str(value.dtype) else value
    return np.asarray(value)


def _values(picture: Any, i: int) -> tuple[np.ndarray, str]:
    """An item's numbers (H, W, C), and the order in which they came.

    Raises:
        Error: it is no picture, or of a shape that may be read in two ways.
    """
    name = f"item {i}"
    if isinstance(picture, np.ma.MaskedArray):
        raise Error(f"{name} is a masked array: fill what is masked (filled), or give transparency as a channel.")
    tensor = hasattr(picture, "detach")
    try:
        values = _array(picture)
    except (TypeError, ValueError, RuntimeError) as reason:
        raise Error(f"{name} is a {type(picture).__name__} that is no array ({reason}).") from None
    if values.dtype.kind not in "biuf":
        raise Error(f"{name} is a {type(picture).__name__}; a picture is a tensor, an array or a Pillow image.")
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise Error(f"{name} has shape {values.shape}; a picture is (C, H, W), (H, W, C) or (H, W).")
    if values.ndim == 2:
        return values[..., None], "(H, W)"
    first, last = values.shape[0] in CHANNELS, values.shape[2] in CHANNELS
    if first and last and not (tensor and values.shape[0] < 4):
        raise Error(
            f"{name} has shape {values.shape}, which may be (C, H, W) or (H, W, C): give a tensor (C, H, W), or "
            "images of at least 5 pixels a side."
        )
    if not first and not last:
        raise Error(f"{name} has shape {values.shape}; a picture is (C, H, W), (H, W, C) or (H, W), C 1, 3 or 4.")
    return (np.moveaxis(values, 0, 2), "(C, H, W)") if first else (values, "(H, W, C)")


def _picture(item: Any, i: int) -> Any:
    if isinstance(item, dict):
        picture = next((item[name] for name in PICTURES if name in item), None)
        if picture is None:
            raise Error(f"item {i} has the keys {', '.join(map(str, item))}; name the picture 'image'.")
        return picture
    return item[0] if isinstance(item, tuple | list) and len(item) > 0 else item
