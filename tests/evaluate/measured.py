"""What the tests of evaluations measure: runs of a moment's training, and features that cost nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kuosan import seeds
from kuosan.metrics.features.network import FeatureNetwork
from shell import QUICK, kuosan

CLASSES = ("dark", "light")


def corners(images: Tensor) -> Tensor:
    """The colours of a 2 x 2 grid: (B, 3, H, W) in [0, 255] -> (B, 12)."""
    return torch.nn.functional.adaptive_avg_pool2d(images / 255, 2).flatten(1)


def network(calls: list[int] | None = None) -> FeatureNetwork:
    """Features of 12 numbers; `calls` collects how many images each call was given."""

    def counted(images: Tensor) -> Tensor:
        if calls is not None:
            calls.append(len(images))
        return corners(images)

    return FeatureNetwork.of("corners", counted, 12, None, hash="1" * 64)


def images(count: int, seed: int = 0) -> np.ndarray:
    """Colour images (N, 8, 8, 3): about a third light, the rest dark."""
    draw = seeds.rng(seed, "test/evaluated")
    light = (draw.random(count) < 1 / 3)[:, None, None, None]
    return (draw.integers(0, 100, (count, 8, 8, 3)) + 150 * light).astype(np.uint8)


def folder(path: Path, count: int = 60, seed: int = 0) -> Path:
    """The images as PNGs in a folder a class."""
    for i, pixels in enumerate(images(count, seed)):
        place = path / CLASSES[int(pixels.max() > 100)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:04d}.png")
    return path


def train(out: Path, data: Path, *words: object) -> Path:
    """A run of three steps where the words do not say how many."""
    at = QUICK.index("--max-steps")
    usual = [*QUICK[:at], *QUICK[at + 2 :]] if "--max-steps" in words else QUICK
    said = kuosan("train", data, "--out", out, "--hold-out", 0.2, *usual, *words)
    assert said.code == 0, said
    return out


def kept_rows(cache: Path, column: str = "images") -> np.ndarray:
    """The rows of a cache of an evaluation, as they lie on disk; those that were never put are zero."""
    dtype, shape = json.loads((cache / "key.json").read_text())["columns"][column]
    return np.fromfile(cache / f"{column}.rows", dtype).reshape(-1, *shape)


def kept_images(run: Path) -> np.ndarray:
    """All images that evaluations of a run have kept, (N, C, H, W)."""
    return np.concatenate([kept_rows(path.parent) for path in sorted(run.rglob("images.rows"))])


class Heard:
    """Hears an evaluation, and interrupts it after so many network evaluations."""

    def __init__(self, until: int | None = None) -> None:
        self.until, self.said, self.seconds, self.done = until, list[str](), list[float](), list[int]()

    def say(self, text: str) -> None:
        """Keep the line."""
        self.said.append(text)

    def left(self, seconds: float, evaluations: int) -> None:
        """Keep the estimate."""
        self.seconds.append(seconds)

    def progress(self, what: str, done: int, of: int) -> None:
        """Keep how far the sampling is."""
        if what == "sampling":
            self.done.append(done)
            if self.until is not None and done >= self.until:
                raise KeyboardInterrupt
