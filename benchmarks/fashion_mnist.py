"""Fashion-MNIST (Xiao et al. 2017) from its IDX files, padded to 32 pixels: what the benchmarks train and judge on."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it


def images(folder: Path = FOLDER, part: str = "train") -> np.ndarray:
    """The images of `part` ("train" 60,000, "t10k" 10,000) with two black pixels around: (N, 1, 32, 32) uint8."""
    raw = _read(Path(folder) / f"{part}-images-idx3-ubyte.gz")
    count, height, width = (int.from_bytes(raw[at : at + 4], "big") for at in (4, 8, 12))
    pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(count, 1, height, width)
    return np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)))


def labels(folder: Path = FOLDER, part: str = "train") -> np.ndarray:
    """The classes of the images of `part`: (N,) int64."""
    return np.frombuffer(_read(Path(folder) / f"{part}-labels-idx1-ubyte.gz"), np.uint8, offset=8).astype(np.int64)


def _read(path: Path) -> bytes:
    if not path.exists():
        raise SystemExit(f"{path} is missing: apt-get install dataset-fashion-mnist, or give --data FOLDER")
    return gzip.decompress(path.read_bytes())
