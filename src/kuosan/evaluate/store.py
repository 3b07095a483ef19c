"""Pictures kept on disk as they are made, so that a killed evaluation goes on and a larger one only adds to them.

    FOLDER/about.json                      what the pictures depend on: weights, request, precision; checked when opened
    FOLDER/00000000-00000050.npz           pictures 0 to 49, as bytes, and the seconds each took

A part is written whole or not at all; one that cannot be read is made again.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kuosan.errors import Error
from kuosan.files import explained, write_atomic

ABOUT = "about.json"
_PART = re.compile(r"(\d{8})-(\d{8})\.npz")


class Part(NamedTuple):
    """Pictures `first` to `first + len(pictures) - 1`."""

    first: int
    pictures: np.ndarray  # (B, C, H, W) uint8
    seconds: float  # a picture


def key(about: Mapping[str, Any]) -> str:
    """What a folder of these pictures is called: a hash of all that makes them what they are."""
    return sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """The pictures of one request in `folder`, which is made when there are some; `about` is all that they depend on.

    Attributes:
        damaged: parts that could not be read, and are made again.

    Raises:
        Error: the folder holds pictures of something else, or cannot be read.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.damaged: list[str] = []
        self._about = json.dumps(about, indent=1, sort_keys=True) + "\n"
        path = folder / ABOUT
        with explained(path, doing="read"):
            before = path.read_text(encoding="utf-8") if path.is_file() else None
        if before not in (None, self._about):
            raise Error(f"{folder} holds pictures of other settings than its name says ({path}): delete the folder.")

    def add(self, part: Part) -> None:
        """Keep a part. Raises: Error if the disk does not."""
        if not (self.folder / ABOUT).is_file():
            write_atomic(self.folder / ABOUT, self._about)
        write_atomic(self._path(part.first, len(part.pictures)), _npz(part))

    def parts(self, n: int, begin: int = 0) -> Iterator[Part]:
        """Pictures `begin` to n - 1, or as many of them as are kept, each once and in order.

        A part that cannot be read ends them: it is removed, to be made again.
        """
        end = begin
        for first, stop, path in self._names():
            if not first <= end < min(stop, n):
                continue
            try:
                with np.load(io.BytesIO(path.read_bytes())) as kept:  # given a path, numpy leaves a damaged file open
                    pictures, seconds = kept["pictures"], float(kept["seconds"])
                if len(pictures) != stop - first or pictures.dtype != np.uint8:
                    raise ValueError(f"{pictures.shape} {pictures.dtype}")
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                self.damaged.append(f"{path}: {error}")
                path.unlink(missing_ok=True)
                return
            yield Part(end, pictures[end - first : n - first], seconds)
            end = min(stop, n)

    def pictures(self, begin: int, end: int) -> np.ndarray:
        """Pictures `begin` to `end` - 1, all of which are kept: (end - begin, C, H, W) uint8."""
        found = [part.pictures for part in self.parts(end, begin)]
        if sum(map(len, found)) != end - begin:
            raise Error(f"pictures in {self.folder} are damaged: {self.damaged}; give the command again to make them.")
        return np.concatenate(found)

    def whole(self, n: int) -> int:
        """How many of the first n are kept and can be read; the damaged are removed."""
        return sum(len(part.pictures) for part in self.parts(n))

    def seconds(self, n: int) -> float:
        """What a picture took: the median over the parts, which one slow start does not move."""
        return float(np.median([part.seconds for part in self.parts(n)]))

    def _names(self) -> list[tuple[int, int, Path]]:
        """The parts there by first and last picture, of two that begin alike the longer first."""
        if not self.folder.is_dir():
            return []
        with explained(self.folder, doing="read"):
            matches = [(_PART.fullmatch(path.name), path) for path in self.folder.iterdir()]
        found = [(int(match[1]), int(match[2]), path) for match, path in matches if match]
        return sorted(found, key=lambda item: (item[0], -item[1]))

    def _path(self, first: int, count: int) -> Path:
        return self.folder / f"{first:08d}-{first + count:08d}.npz"


def _npz(part: Part) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, pictures=part.pictures, seconds=np.float64(part.seconds))
    return buffer.getvalue()
