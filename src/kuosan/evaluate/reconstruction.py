"""What an autoencoder is measured on: which pictures, at which size, in which tiles. Torch-free."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kuosan import config as trees
from kuosan.codec.config import Latents
from kuosan.data.config import SIZES
from kuosan.device import ComputeConfig
from kuosan.errors import Error
from kuosan.features import names
from kuosan.networks.autoencoder_config import AutoencoderConfig

if TYPE_CHECKING:
    from kuosan.model import ModelConfig

NONE = "none"  # the features of a report without them
MOST = 100_000  # pictures


@dataclass(frozen=True)
class ReconstructionConfig:
    """Which pictures are encoded and decoded again, how, and by what the result is judged."""

    pictures: str = ""  # a data set, or one picture file; empty: the pictures that the run held out
    n: int = 256  # how many pictures, drawn by a fixed key
    size: int | None = None  # pixels a side of a data set's pictures; as the run was trained if not given
    tile: int | None = None  # pixels a side of tiles; None: in one piece, but a large picture file
    overlap: int | None = None  # of tiles, in pixels; a quarter of a tile if not given
    features: str = "lite0"  # the network of KID and, where it has one, of the perceptual distance; or none
    batch: int = 16  # pictures computed together
    unseen: bool = False  # leave out the pictures that the run was trained on
    force: bool = False  # measure on pictures that the run was trained on
    out: str | None = None  # the folder to write; RUN/reconstructions/NAME if not given
    compute: ComputeConfig = field(default_factory=ComputeConfig)  # where the networks run

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MOST:
            raise Error(f"n = {self.n} is not allowed: 1 to {MOST:,} pictures.")
        if not 1 <= self.batch <= 4096:
            raise Error(f"batch = {self.batch} is not allowed: 1 to 4096.")
        if self.size is not None and not SIZES[0] <= self.size <= SIZES[1]:
            raise Error(f"size = {self.size} is not allowed: {SIZES[0]} to {SIZES[1]} pixels a side.")
        if self.overlap is not None and self.tile is None:
            raise Error(f"overlap = {self.overlap} has no effect without tiles: give --tile, or leave it out.")
        if self.unseen and self.force:
            raise Error(
                "unseen and force cannot both be given: one leaves training pictures out, the other keeps them."
            )
        if not self.pictures and (self.unseen or self.force):
            name = "unseen" if self.unseen else "force"
            raise Error(
                f"{name} has no effect on the run's own held-out pictures: leave it out, or name other PICTURES."
            )
        if self.features != NONE:
            names.check(self.features)

    def folder(self, home: Path, weights: str) -> Path:
        """Where the report is kept: named by the pictures, and by a digest of all settings and the weights."""
        if self.out:
            return Path(self.out)
        own = trees.plain(replace(self, out=None, compute=ComputeConfig(), batch=1))
        digest = hashlib.sha256(json.dumps([own, weights], sort_keys=True).encode()).hexdigest()[:8]
        tiles = f"-tiles{self.tile}" if self.tile else ""
        name = f"{Path(self.pictures).stem or 'held-out'}-n{self.n}{tiles}-{digest}"
        return home / "reconstructions" / re.sub(r"[^\w.-]", "_", name)


def require_autoencoder(config: ModelConfig, run: str | Path) -> None:
    """Raises: Error for a run that has no autoencoder."""
    if isinstance(config.network, AutoencoderConfig) or isinstance(config.codec, Latents):
        return
    what = "a classifier" if config.network.kind == "classifier" else "a model of pixels"
    raise Error(
        f"{run} is {what} and has no autoencoder: name the run of one (kuosan train PICTURES --objective "
        f"autoencoder), or of a model of its latents (--codec)."
    )
