"""Features of pictures, kept on disk chunk by chunk: computed once, and a killed computation goes on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from kuosan.files import write_atomic

if TYPE_CHECKING:
    from kuosan.evaluate.making import Job
    from kuosan.evaluate.prepare import Prepared
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


Memory = dict[str, dict[int, np.ndarray]]  # what this evaluation has read: by place, by the first row's number


def rows(
    network: Reader,
    pictures: Callable[[int, int], Iterable[np.ndarray]],
    begin: int,
    end: int,
    folder: Path,
    progress: Callable[[int, int], None] = lambda done, of: None,
    memory: Memory | None = None,
) -> np.ndarray:
    """The features of pictures `begin` to `end` - 1, (N, D) float32; no picture is read that was read before.

    Args:
        pictures: (first, last) -> runs of (b, C, H, W) uint8, asked only for what is not kept.
        folder: where they are kept, of these pictures alone.
        progress: hears (done, of).
        memory: what this process has read, to which is added.
    """
    place = folder / f"{network.name}-{network.hash[:12]}"
    memory = {} if memory is None else memory
    stretches = memory.setdefault(str(place), _stretches(place, network) if network.hash else {})
    found = [np.empty((0, network.dim), np.float32)]
    at = begin
    while at < end:
        first = max((start for start in stretches if start <= at < start + len(stretches[start])), default=None)
        if first is None:
            nearest = min((start for start in stretches if start > at), default=end)
            last = min(at - at % CHUNK + CHUNK, end, nearest)
            new = [network(torch.from_numpy(part)).float().cpu().numpy() for part in pictures(at, last)]
            first, stretches[at] = at, np.concatenate(new)
            if network.hash:  # without one, another network of the same name would be taken for it
                buffer = io.BytesIO()
                np.save(buffer, stretches[at])
                write_atomic(place / f"{at:08d}.npy", buffer.getvalue())
        stretch = stretches[first][at - first : end - first]
        found.append(stretch)
        at += len(stretch)
        progress(at - begin, end - begin)
    return np.concatenate(found)


def _stretches(place: Path, network: Reader) -> dict[int, np.ndarray]:
    """All rows that are kept at a place, by the number of the first of each file."""
    found = {}
    for path in sorted(place.glob("*.npy")) if place.is_dir() else []:
        kept = _kept(path, network.dim) if path.stem.isdigit() else None
        if kept is not None and len(kept):
            found[int(path.stem)] = kept
    return found


def side_rows(prepared: Prepared, side: Side, reader: Reader, report: Report) -> np.ndarray:
    """What a network reads of real pictures, kept for every later evaluation against the same ones."""

    def hear(done: int, of: int) -> None:
        report.progress(f"{reader.name} of {side.what}", done, of)

    folder = prepared.home / "features" / side.key
    found: np.ndarray = rows(reader, side.parts, side.begin, side.end, folder, hear, prepared.memory)[side.counted]
    return found


def job_rows(prepared: Prepared, each: Job, reader: Reader, report: Report) -> np.ndarray:
    """What a network reads of a point's pictures, kept beside them."""

    def hear(done: int, of: int) -> None:
        report.progress(f"{reader.name} {each.point.name}".strip(), done, of)

    def made(first: int, last: int) -> Iterator[np.ndarray]:
        yield each.store.pictures(first, last)

    return rows(reader, made, 0, each.request.n, each.store.folder / "features", hear, prepared.memory)


def _kept(path: Path, dim: int) -> np.ndarray | None:
    """Features as they were written, or None where there are none that can be read."""
    try:
        kept: np.ndarray = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    good = kept.ndim == 2 and kept.shape[1] == dim and kept.dtype == np.float32 and bool(np.isfinite(kept).all())
    return kept if good else None
