"""Super-resolution: a large picture from a small one (Saharia et al. 2021, SR3). The settings, torch-free.

A training picture is made small as a user's would be: blurred, shrunk, noisy, through JPEG, and rounded to 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kuosan.errors import Error
from kuosan.tasks.labels import Labelled

SCALES = (2, 16)  # smallest and largest


@dataclass(frozen=True)
class SuperResolution(Labelled):
    """What a small picture is taken to have gone through; its channels, enlarged, are joined to the noisy picture."""

    kind: Literal["super_resolution"] = "super_resolution"
    scale: int = 4  # super_resolution: how many times larger each side becomes
    down: Literal["area", "bicubic", "any"] = "area"  # super_resolution: how pictures are shrunk; any: either, drawn
    blur: float = 0.0  # super_resolution: largest std of a blur before shrinking, in pixels of the large picture
    noise: float = 0.0  # super_resolution: largest std of noise in the small picture, of 255; the network is told it
    jpeg: int = 0  # super_resolution: least JPEG quality the small picture went through, 1 to 95; 0: never

    def __post_init__(self) -> None:
        if not SCALES[0] <= self.scale <= SCALES[1]:
            raise Error(f"scale = {self.scale} is not allowed: {SCALES[0]} to {SCALES[1]} times each side; 4 is usual.")
        if not 0 <= self.blur <= 8:
            raise Error(f"blur = {self.blur} is not allowed: 0 (none) to 8 pixels of the large picture.")
        if not 0 <= self.noise <= 100:
            raise Error(f"noise = {self.noise} is not allowed: 0 (none) to 100 of 255; 10 is much.")
        if not 0 <= self.jpeg <= 95:
            raise Error(f"jpeg = {self.jpeg} is not allowed: a quality of 1 to 95, or 0 for none; 40 is usual.")
        super().__post_init__()  # last: its limits say less

    def concat_channels(self, channels: int) -> int:
        """How many channels are joined to a picture of so many: the enlarged one's, and the noise in it if told."""
        return channels + (self.noise > 0)
