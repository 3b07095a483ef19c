"""Any torch data set from Python as a source: its items are tensors, arrays or Pillow images, alone or with a label."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
from PIL import Image

from kuosan.data.arrays import channels_last, to_bytes
from kuosan.data.config import DataConfig, rgb
from kuosan.data.decoding import decode
from kuosan.data.entries import Entry, Listing
from kuosan.data.headers import Refused
from kuosan.data.pixels import opaque
from kuosan.errors import Error


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
        self.signed = False
        self.reading = threading.Lock()  # a data set may share an open file between its items

    def listing(self) -> Listing:
        """Every item with its label (the second of a tuple, or `label` of a dict) or caption (text)."""
        entries = []
        for i in range(len(self.dataset)):
            picture, beside = _parts(self.dataset[i], i)
            self.signed |= _lowest(picture) < 0
            label = str(int(beside)) if _is_label(beside) else None
            entries.append(Entry(f"item {i}", label, beside if isinstance(beside, str) else None))
        says = f"{type(self.dataset).__name__}: {len(entries):,} items"
        return Listing(entries, says=says, in_order=True)

    def read(self, entry: Entry, i: int) -> np.ndarray:
        """Pixels (H, W, C) of the i-th item.

        Raises:
            Error: it is no picture, or its values have no agreed meaning.
        """
        with self.reading:
            picture, _ = _parts(self.dataset[i], i)
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


def _parts(item: Any, i: int) -> tuple[Any, Any]:
    if isinstance(item, dict):
        picture = next((item[name] for name in ("image", "x", "x0", "pixel_values", "img") if name in item), None)
        if picture is None:
            raise Error(f"item {i} has the keys {', '.join(map(str, item))}; name the picture 'image'.")
        return picture, item.get("label", item.get("text"))
    if isinstance(item, tuple | list) and len(item) > 0:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _is_label(beside: Any) -> bool:
    if isinstance(beside, bool) or beside is None or isinstance(beside, str):
        return False
    values = np.asarray(beside)
    return values.ndim == 0 and values.dtype.kind in "iu"


def _lowest(picture: Any) -> float:
    if isinstance(picture, Image.Image):
        return 0.0
    values = np.asarray(picture)
    return float(values.min()) if values.size and values.dtype.kind == "f" else 0.0
