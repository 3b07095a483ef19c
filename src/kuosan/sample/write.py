"""Pictures to disk: PNGs with their recipe, a grid, the recipe beside them, and the denoising as an animation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from kuosan import config as trees
from kuosan.data.images import enlarge, grid, save_gif, save_png, to_uint8
from kuosan.files import write_atomic
from kuosan.sample.generate import Frame
from kuosan.sample.recipe import Recipe

RECIPE, SHEET, GIF = "recipe.json", "sheet.png", "denoising.gif"
SIDE = 128  # pixels a side that small pictures are enlarged to on sheets and in animations, by whole factors


def recipe(folder: Path, recipe: Recipe) -> None:
    """Write recipe.json, what all pictures of a request have in common."""
    write_atomic(folder / RECIPE, json.dumps(trees.plain(recipe), indent=1, ensure_ascii=False) + "\n")


def name_of(recipe: Recipe, i: int) -> str:
    """The file that holds image `i` of a recipe's request."""
    return f"place-{i:04d}.png" if recipe.request.between else f"seed-{recipe.request.seed + i:08d}.png"


def pictures(folder: Path, images: Tensor, recipe: Recipe, first: int = 0) -> list[Path]:
    """Write pictures `first`, `first` + 1, ... of a request as seed-00000007.png, each with its own recipe."""
    paths = []
    for i, picture in enumerate(to_uint8(images.cpu().numpy()), start=first):
        own = dataclasses.replace(recipe, picture=i)
        path = folder / name_of(recipe, i)
        save_png(path, picture, own.text())
        paths.append(path)
    return paths


def sheet(path: Path, images: Sequence[Tensor], columns: int | None = None) -> None:
    """Write batches of (B, C, H, W) pictures as one grid, small ones enlarged."""
    bytes_ = np.concatenate([to_uint8(batch.cpu().numpy()) for batch in images])
    save_png(path, grid(enlarged(bytes_), columns))


def enlarged(bytes_: np.ndarray) -> np.ndarray:
    """Small pictures (..., H, W, C) enlarged by a whole factor, so that a person can see them."""
    return enlarge(bytes_, max(1, SIDE // max(bytes_.shape[-3:-1])))


class Film:
    """Collects the frames of the first batch while it is denoised, then writes them as a GIF."""

    def __init__(self, most: int = 48) -> None:
        self.most = most  # frames kept, evenly over the steps
        self.frames: list[np.ndarray] = []

    def add(self, frame: Frame) -> None:
        """Keep the frame if it is one of the evenly spread ones."""
        shown = frame.first == 0 and (
            frame.done or frame.step * self.most // frame.steps != (frame.step - 1) * self.most // frame.steps
        )
        if shown:
            self.frames.append(to_uint8(frame.picture().cpu().numpy()))

    def write(self, path: Path, columns: int | None = None, milliseconds: int = 70) -> None:
        """Write the animation; the finished pictures stay for a while."""
        sheets: Sequence[np.ndarray] = [grid(enlarged(frame), columns) for frame in self.frames]
        save_gif(path, sheets, milliseconds=milliseconds, hold=2000)
