"""What restorers are compared on: which pictures, what is done to them, who restores them. Torch-free."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from kuosan import config as trees
from kuosan.device import ComputeConfig
from kuosan.errors import Error, unknown
from kuosan.features.names import FEATURES
from kuosan.sample.restoration import BOX, Restoration
from kuosan.tasks.masks import KINDS

FOLDER = Path("comparisons")  # where comparisons are kept if nobody says
MOST = (100_000, 1000)  # pictures, and answers to each


@dataclass(frozen=True)
class ComparisonConfig:
    """What is done to which pictures, and by whom it is undone.

    Attributes:
        pictures: whole pictures: what `data.path` may be; of a data set with a split of its own the held-out ones.
        contestants: RUN, RUN:METHOD, or RUN:METHOD,key=value,... each; keys are those of a request or a restoration.
        upscale: the pictures are made so many times smaller.
        down: with upscale: how they are shrunk.
        deblur: std of the blur they go through, in pixels.
        colorise: their colours are taken.
        noise: std of the noise they are given, of 255.
        mask: what is cut out of them: kinds of masks with commas between, each picture's drawn, or a box x,y,w,h.
        n: how many pictures, drawn by a fixed key.
        variants: answers to a picture by each contestant.
        seed: answer k to picture i has seed + i * variants + k, so that contestants on one run share their noise.
        features: the network of the perceptual distance.
        batch: answers computed together.
        unseen: leave out the pictures that a contestant was trained on.
        force: compare on pictures that a contestant was trained on.
        out: the folder to write; comparisons/NAME if not given.
        compute: where the networks run.
    """

    pictures: str = ""
    contestants: tuple[str, ...] = ()
    upscale: int | None = None
    down: Literal["area", "bicubic"] = "area"
    deblur: float | None = None
    colorise: bool = False
    noise: float = 0.0
    mask: str | None = None
    n: int = 64
    variants: int = 8
    seed: int = 0
    features: str = "lite0"
    batch: int = 16
    unseen: bool = False
    force: bool = False
    out: str | None = None
    compute: ComputeConfig = field(default_factory=ComputeConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "contestants", tuple(self.contestants))
        if not self.pictures:
            raise Error("no pictures to compare on: kuosan compare PICTURES --upscale 4 --with RUN.")
        if not self.contestants:
            raise Error("nobody to compare: name at least one run, as in --with runs/photos:ddnm.")
        for name, value, low, high in (("n", self.n, 2, MOST[0]), ("variants", self.variants, 1, MOST[1])):
            if not low <= value <= high:
                raise Error(f"{name} = {value} is not allowed: {low:,} to {high:,}.")
        if not 1 <= self.batch <= 4096:
            raise Error(f"batch = {self.batch} is not allowed: 1 to 4096.")
        if not 0 <= self.seed < 2**62:
            raise Error(f"seed = {self.seed} is not allowed: 0 to 2^62 - 1.")
        if self.features not in FEATURES:
            raise unknown("perceptual distance", self.features, FEATURES)
        if self.unseen and self.force:
            raise Error(
                "unseen and force cannot both be given: one leaves training pictures out, the other keeps them."
            )
        masked(self.mask)
        self.restoration()

    def restoration(self, method: str | None = None) -> Restoration:
        """The damage as what is to be undone. Raises: Error for none, or an impossible one."""
        return Restoration(
            self.pictures, mask=self.mask, upscale=self.upscale, down=self.down if self.upscale else None,
            deblur=self.deblur, colorise=self.colorise, noise=self.noise, method=method,
        )  # fmt: skip

    @property
    def damage(self) -> str:
        """What is done to the pictures, in words."""
        said = [
            f"{self.upscale} times smaller by {self.down}" if self.upscale else "",
            f"blurred by {self.deblur:g} pixels" if self.deblur else "",
            "without colours" if self.colorise else "",
            f"cut by {self.mask}" if self.mask else "",
            f"with noise of {self.noise:g}" if self.noise else "",
        ]
        return ", ".join(part for part in said if part)

    def folder(self) -> Path:
        """Where the comparison is kept: named by its damage, and by a digest of all settings."""
        if self.out:
            return Path(self.out)
        own = trees.plain(replace(self, out=None, compute=ComputeConfig()))
        digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]
        parts = [
            f"upscale-{self.upscale}" if self.upscale else "",
            f"deblur-{self.deblur:g}" if self.deblur else "",
            "colorise" if self.colorise else "",
            f"mask-{self.mask.replace(',', '-').replace(' ', '')}" if self.mask else "",
            f"noise-{self.noise:g}" if self.noise else "",
            Path(self.pictures).stem or "pictures",
            f"n{self.n}",
            digest,
        ]
        return FOLDER / re.sub(r"[^\w.-]", "_", "-".join(part for part in parts if part))


def masked(mask: str | None) -> tuple[str, ...] | tuple[int, int, int, int] | None:
    """The kinds that masks are drawn from, or the box that is cut out; None without a mask.

    Raises:
        Error: neither a kind nor a box.
    """
    if mask is None:
        return None
    if BOX.fullmatch(mask):
        left, top, width, height = (int(part) for part in mask.split(","))
        if min(left, top) < 0 or min(width, height) < 1:
            raise Error(f"mask {mask}: a box is x,y,w,h in pixels from the upper left corner, w and h above 0.")
        return left, top, width, height
    kinds = tuple(part.strip() for part in mask.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of mask", kind, [*KINDS, "x,y,w,h (a box in pixels)"])
    return kinds
