"""Generation: pictures from noise, of all kinds or of a class. The settings, torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kuosan.tasks.labels import Labelled


@dataclass(frozen=True)
class Generation(Labelled):
    """What a model is told beside the noise: nothing, or each picture's class."""

    kind: Literal["generation"] = "generation"

    def concat_channels(self, channels: int) -> int:
        """How many channels are joined to a picture of so many: none."""
        return 0
