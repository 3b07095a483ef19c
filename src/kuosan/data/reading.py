"""An image file as a run's training images are read: background, rule, size and channels of that run.

Whatever opens an image for a trained model (a start image, one to restore or to invert, images to compare with) reads
it here, so that transparency, cropping and grey mean what they meant in training.

    pixels = channels(fit(decode(file, background), size, rule))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import log2
from pathlib import Path
from typing import Any

import numpy as np

from kuosan import config as trees
from kuosan.data.config import CHANNELS_OF, DataConfig, laid_on, read_size, scale_of
from kuosan.data.decoding import KEPT, Decoded, decode
from kuosan.data.headers import Refused
from kuosan.data.pixels import cover, fit, is_grey, with_channels
from kuosan.data.scan import ResizePlan, decide
from kuosan.data.walk import Look
from kuosan.errors import Error

FACT = "reading"  # in a checkpoint's state: the rule that `auto` came to on the training images
RULES = {
    "crop": "shorter side scaled, centre cut",
    "pad": "longer side scaled, the rest filled",
    "stretch": "stretched, aspect ignored",
    "nearest": "shorter side scaled to the nearest pixels, centre cut",
    "centre": "not scaled; cut, or edges repeated, about the centre",
}


@dataclass(frozen=True)
class Shown:
    """Pixels (H, W, C) uint8 as a model takes them, and in words what was done to get them."""

    pixels: np.ndarray
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """How a run's training images were read.

    Attributes:
        data: the settings that the run was trained with; a run that stored none was trained with the defaults.
        rule: what `auto` came to for the training images; none where the run did not store it. `centre` was for images
            of the model's size or a little less, and is for those alone: others are scaled, as `auto` does.
    """

    data: DataConfig = field(default_factory=DataConfig)
    rule: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> Reading:
        """The reading of a checkpoint, by its configuration and state.

        Raises:
            Error: data settings that cannot be.
        """
        stored = (state or {}).get(FACT)
        return cls(trees.build(DataConfig, config.get("data", {})), stored if stored in RULES else None)

    @property
    def background(self) -> tuple[int, int, int] | None:
        """What transparency lies on, in bytes; None where it is kept."""
        return laid_on(self.data)

    def on_black(self) -> Reading:
        """The same for a mask, around which nothing is marked; the rule must not depend on what it holds."""
        return replace(self, data=replace(self.data, background="black", channels="grey"))

    def decoded(self, source: bytes | Path) -> Decoded:
        """A file's own pixels, at its own size, on the run's background and in its `range`.

        Raises:
            Refused: no image that can be used.
            Error: the file cannot be read.
        """
        scale = scale_of(self.data.range)
        found = decode(source, self.background, self.data.max_pixels, scale, self.data.max_bytes)
        on = KEPT if self.background is None else f"transparency laid on {self.data.background}, as in training"
        return Decoded(
            found.pixels, found.mode, tuple(on if "transparency" in note else note for note in found.notes)
        )  # fmt: skip

    def fitted(self, pixels: np.ndarray, size: tuple[int, int]) -> Shown:
        """Pixels (h, w, C) resized to `size` (H, W) as the training images were to theirs."""
        before = pixels.shape[:2]
        rule = self._rule(before, size)
        if rule == "cover":
            made, words = cover(pixels, *size), RULES["crop"]
        elif self.data.resize == "random_crop":
            side, spare = size[0] * 9 // 8, (size[0] * 9 // 8 - size[0]) // 2
            made = fit(pixels, side, "crop", self.background)[spare : spare + size[0], spare : spare + size[0]]
            words = f"cut to the centre at {side}, and of that the middle"
        else:
            made = fit(pixels, size, rule, self.background)
            filled = self.data.background if self.background is not None else "transparency"
            words = RULES[rule] + (f" with {filled}" if rule == "pad" else "")
        if before == size and self.data.resize != "random_crop":
            return Shown(made, ())
        verb = "scaled" if rule != "centre" else "cut or padded"
        return Shown(made, (f"{verb} from {_text(before)} to {_text(size)} as in training ({words})",))

    def shown(self, source: bytes | Path, shape: tuple[int, int, int]) -> Shown:
        """A file as a model of `shape` (C, H, W) takes it.

        Raises:
            Refused: no image that can be used.
            Error: the file cannot be read.
        """
        decoded = self.decoded(source)
        fitted = self.fitted(decoded.pixels, (shape[1], shape[2]))
        notes = [*decoded.notes, *fitted.notes]
        if shape[0] == 1 and not is_grey(fitted.pixels):
            notes.append("made grey, as the training images are")
        return Shown(with_channels(fitted.pixels, shape[0]), tuple(notes))

    def config(self, path: str, shape: tuple[int, int, int]) -> DataConfig:
        """The settings that read the images at `path` as this run's, for a model of `shape` (C, H, W)."""
        size = self.data.size or 1 << round(log2(shape[1] * shape[2]) / 2)
        if self.data.resize != "buckets":
            if not self.takes((shape[1], shape[2])):
                raise Error(f"images of {shape[2]}x{shape[1]} were never trained on by a run of squares.")
            size = read_size(f"{shape[2]}x{shape[1]}")
        rule = self.rule if self.data.resize == "auto" and self.rule not in (None, "centre") else self.data.resize
        tree = trees.plain(self.data) | {"path": path or self.data.path, "size": size, "resize": rule}
        tree |= {"channels": CHANNELS_OF[shape[0]], "hold_out": None, "flip": False}
        tree |= {"captions": "beside"} if path else {}  # of other images, whose names mean what they will
        return trees.build(DataConfig, tree)

    def takes(self, size: tuple[int, int]) -> bool:
        """Whether training could show images of a size (H, W)."""
        return self.data.resize == "buckets" or size[0] == size[1] or (bool(self.data.size) and self.data.sides == size)

    def _rule(self, before: tuple[int, int], size: tuple[int, int]) -> str:
        """The rule for one image; `cover` where the model's own shape is one of several."""
        if self.data.resize == "buckets" or (size[0] != size[1] and not isinstance(self.data.size, str)):
            return "cover"
        if isinstance(self.data.size, str) and self.data.resize == "auto":
            return "crop"
        if self.data.resize != "auto":
            return self.data.resize
        if self.rule not in (None, "centre"):
            return str(self.rule)
        look = Look(width=before[1], height=before[0])
        return decide(DataConfig(size=size[0], resize="auto"), [look]).rule


OLDER = Reading(DataConfig(resize="crop"))  # how start images were read before: white, covering, centre cut


def stored_rule(plan: ResizePlan) -> str | None:
    """What a checkpoint keeps of the rule that its data came to; None for buckets, which name themselves."""
    return plan.rule if plan.rule in RULES and not plan.shapes else None


def refused(path: Path, what: str, reason: Refused) -> Error:
    """The error for an image that a verb cannot use."""
    return Error(f"{path} cannot be {what}: {reason}.")


def _text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
