"""The pictures that an autoencoder is measured on: those its run held out, another data set's, or one picture file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kuosan import config as trees
from kuosan.data.config import PORTRAITS, DataConfig
from kuosan.data.decoding import read_header
from kuosan.data.footprint import MAX_BYTES
from kuosan.data.headers import Refused, is_known, read_image
from kuosan.data.pictures import Pictures, open_pictures
from kuosan.data.pixels import is_grey, with_channels
from kuosan.data.reading import Reading
from kuosan.data.scan import Progress
from kuosan.errors import Error
from kuosan.evaluate import real, unseen
from kuosan.evaluate.config import HELD_OUT
from kuosan.evaluate.reconstruction import ReconstructionConfig
from kuosan.evaluate.unseen import Schooling
from kuosan.shelf import NEAR, Results

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Subjects:
    """Pictures in an order drawn by a fixed key; `at` gives those at places first to last - 1, (B, C, H, W) uint8."""

    what: str
    names: tuple[str, ...]
    shape: Shape
    fingerprint: str
    at: Callable[[int, int], np.ndarray]
    notes: tuple[str, ...] = ()
    single: bool = False  # one picture file, at its own size

    def __len__(self) -> int:
        return len(self.names)


def subjects(
    config: ReconstructionConfig, shape: Shape, runs: Mapping[str, Schooling], progress: Progress | None = None
) -> Subjects:
    """Open what is asked for, with the channels of `shape` (C, H, W), the pictures that the run was trained on.

    Args:
        runs: what the run was trained on, and the run of its autoencoder where that is another; the first is its own.

    Raises:
        Error: no such pictures, none at all, or some that a run was trained on.
    """
    wanted = shape if config.size is None else (shape[0], config.size, config.size)
    if not config.pictures:
        return _held_out(config, next(iter(runs)), runs, progress)
    path = Path(config.pictures).expanduser()
    if config.pictures != PORTRAITS and path.is_file() and (content := _picture(path)) is not None:
        return _file(config, path, content, shape[0], next(iter(runs.values())).reading)
    if wanted[1] != wanted[2] and next(iter(runs.values())).data.get("resize") != "buckets":
        raise Error(
            f"the run's pictures are {wanted[2]}x{wanted[1]}, and others are taken as squares: say of which --size."
        )
    cure = "name others" + (", or say by --size at how many pixels a side" if config.size is None else "")
    chosen = unseen.chosen(config, wanted, runs, progress, cure)
    return _of(chosen.pictures, chosen.ids, f"of {config.pictures}", chosen.notes)


def _held_out(
    config: ReconstructionConfig, run: str, runs: Mapping[str, Schooling], progress: Progress | None
) -> Subjects:
    """The pictures that a run held out."""
    tree, fingerprint, _ = runs[run]
    data = trees.build(DataConfig, tree)
    if data.path != PORTRAITS and not Path(data.path).expanduser().exists():
        raise Error(
            f"{run} was trained on {data.path}, which is not here: name pictures: kuosan reconstruct {run} PICTURES."
        )
    sized = data if config.size is None else replace(data, size=config.size)
    pictures = open_pictures(sized, progress=progress, memory=Results.at(data.cache, NEAR))
    notes = list[str]()
    if len(pictures.buckets.shapes) > 1:
        height, width = pictures.shape[1:]
        notes.append(f"of the pictures' several shapes only those of {width}x{height} are taken")
        pictures = pictures.only((height, width))
    notes += unseen.brought(pictures)
    order = real.shuffled(pictures, HELD_OUT)
    if config.size is None and fingerprint is not None and not pictures.has_fingerprint(fingerprint):
        notes.append(f"{data.path} has changed since {run} was trained on it: some of these may have been trained on")
    if len(runs) > 1:
        other = next(name for name in runs if name != run)
        notes.append(f"whether its autoencoder ({other}) was trained on them was not looked for")
    if not len(order):
        raise Error(f"{run} held no pictures out: name others: kuosan reconstruct {run} PICTURES.")
    if len(order) < config.n:
        notes.append(f"there are {len(order):,} such pictures, not {config.n:,}: all are taken")
    return _of(pictures, order[: config.n], f"held-out pictures of {data.path}", tuple(notes))


def _of(pictures: Pictures, ids: np.ndarray, what: str, notes: tuple[str, ...]) -> Subjects:
    def at(first: int, last: int) -> np.ndarray:
        return real.as_bytes(pictures.batch(ids[first:last]).x0.numpy())

    names = tuple(pictures.name(int(i)) for i in ids)
    return Subjects(what, names, pictures.shape, pictures.fingerprint, at, notes)


def _file(config: ReconstructionConfig, path: Path, content: bytes, channels: int, reading: Reading) -> Subjects:
    """One picture file at its own size, on the run's background."""
    for name in ("size", "unseen", "force"):
        if getattr(config, name):
            raise Error(f"{name} has no effect on one picture file, which is taken as it is: leave it out.")
    try:
        decoded = reading.decoded(content)
    except Refused as reason:
        raise Error(f"{path} cannot be used: {reason}.") from None
    notes = [*decoded.notes, "whether the run was trained on it was not looked for"]
    if channels == 1 and not is_grey(decoded.pixels):
        notes.append("its colours are left out: this autoencoder is of grey pictures")
    pixels = np.moveaxis(with_channels(decoded.pixels, channels), -1, 0).copy()  # Pillow's is read-only
    sha256 = hashlib.sha256(content).hexdigest()
    shape = (channels, pixels.shape[1], pixels.shape[2])
    return Subjects(
        f"the file {path}",
        (path.name,),
        shape,
        sha256,
        lambda first, last: pixels[None][first:last],
        tuple(notes),
        True,
    )


def _picture(path: Path) -> bytes | None:
    """The content of a file that is one picture; None for an archive, an array, or anything else."""
    try:
        with path.open("rb") as file:
            if not is_known(file.read(16)):
                return None
        content = read_image(path, MAX_BYTES)
    except Refused:
        return None
    except OSError as reason:
        raise Error(f"cannot read {path}: {reason.strerror}.") from None
    try:
        read_header(content)
    except Refused:
        return None
    return content
