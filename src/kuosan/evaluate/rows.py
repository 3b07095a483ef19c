"""Features of pictures, kept on disk chunk by chunk: computed once, and a killed computation goes on."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from kuosan.files import write_atomic

if TYPE_CHECKING:
    from kuosan.evaluate.making import Job
    from kuosan.evaluate.progress import Report
    from kuosan.evaluate.real import Side

CHUNK = 256  # pictures a file


class Reader(Protocol):
    """What makes a row of numbers of a picture: a feature network, or a classifier."""

    @property
    def name(self) -> str:
        """Its name, fit for a folder's."""

    @property
    def hash(self) -> str:
        """Of its weights."""

    @property
    def dim(self) -> int:
        """Numbers a picture."""

    def __call__(self, pictures: Tensor, /) -> Tensor:
        """uint8 (B, C, H, W) -> (B, dim)."""


def rows(
    network: Reader,
    pictures: Callable[[int, int], np.ndarray],
    begin: int,
    end: int,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> np.ndarray:
    """The features of pictures `begin` to `end` - 1, (N, D) float32.

    Args:
        pictures: (first, last) -> (last - first, C, H, W) uint8, asked only for what is not kept.
        folder: where they are kept, of these pictures alone.
        progress: hears (done, of).
    """
    place = folder / f"{network.name}-{network.hash[:12]}"
    found = [np.empty((0, network.dim), np.float32)]
    for first in range(begin - begin % CHUNK, end, CHUNK):
        last = min(first + CHUNK, end)
        path = place / f"{first:08d}.npy"
        kept = _kept(path, network.dim) if network.hash else None
        if kept is None or len(kept) < last - first:
            kept = network(torch.from_numpy(pictures(first, last))).float().cpu().numpy()
            if network.hash:  # without one, another network of the same name would be taken for it
                buffer = io.BytesIO()
                np.save(buffer, kept)
                write_atomic(path, buffer.getvalue())
        found.append(kept[max(begin - first, 0) : last - first])
        progress(last - begin, end - begin)
    return np.concatenate(found)


def side_rows(home: Path, side: Side, reader: Reader, report: Report) -> np.ndarray:
    """What a network reads of real pictures, kept for every later evaluation against the same ones."""

    def hear(done: int, of: int) -> None:
        report.progress(f"{reader.name} of {side.what}", done, of)

    return rows(reader, side.at, side.begin, side.end, home / "features" / side.key, hear)


def job_rows(each: Job, reader: Reader, report: Report) -> np.ndarray:
    """What a network reads of a point's pictures, kept beside them."""

    def hear(done: int, of: int) -> None:
        report.progress(f"{reader.name} {each.point.name}".strip(), done, of)

    return rows(reader, each.store.pictures, 0, each.request.n, each.store.folder / "features", hear)


def _kept(path: Path, dim: int) -> np.ndarray | None:
    """Features as they were written, or None where there are none that can be read."""
    try:
        kept: np.ndarray = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    good = kept.ndim == 2 and kept.shape[1] == dim and kept.dtype == np.float32 and bool(np.isfinite(kept).all())
    return kept if good else None
