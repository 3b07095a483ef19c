"""What the shelf's fault tests run: rows that a test can compute again, put on a shelf part by part."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from faults.harness import note
from kuosan.errors import Error
from kuosan.storage.cache import RowCache

ROWS, AT_ONCE = 11, 4
COLUMNS = {"mean": (np.float16, (2, 3)), "count": (np.int64, ())}


def columns_of(rows: range) -> dict[str, np.ndarray]:
    """Row i's values, a function of i."""
    numbers = np.array(rows, np.int64)
    return {"mean": (numbers[:, None, None] + np.arange(6).reshape(2, 3) / 8).astype(np.float16), "count": numbers**2}


def shelf(root: Path, key: str = "a", rows: int = ROWS) -> RowCache:
    return RowCache(root, "latents", {"data": key, "scale": 0.5}, rows, COLUMNS, note="made of fire and water")


def fill(root: str) -> None:
    """Fill the shelf as a training does; note each part computed, and what failed."""

    def compute(rows: range) -> dict[str, np.ndarray]:
        note([rows.start, rows.stop])
        return columns_of(rows)

    try:
        shelf(Path(root)).fill(compute, AT_ONCE)
    except Error as error:
        note(str(error))
