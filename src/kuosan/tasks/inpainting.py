"""Inpainting: the missing part of a picture from the rest (Saharia et al. 2022, Palette). The settings, torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kuosan.errors import Error, unknown
from kuosan.tasks.labels import Labelled
from kuosan.tasks.masks import KINDS


@dataclass(frozen=True)
class Inpainting(Labelled):
    """What may be missing; the picture with its hole filled smoothly, and the mask, are joined to the noisy one."""

    kind: Literal["inpainting"] = "inpainting"
    masks: tuple[str, ...] = KINDS  # inpainting: what may be missing: box, brush, half, border, sparse, blob

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "masks", tuple(self.masks))
        if not self.masks:
            raise Error(f"masks is empty: name at least one of {', '.join(KINDS)}.")
        for name in self.masks:
            if name not in KINDS:
                raise unknown("kind of mask", name, KINDS)

    def concat_channels(self, channels: int) -> int:
        """How many channels are joined to a picture of so many: the one filled smoothly, and the mask."""
        return channels + 1
