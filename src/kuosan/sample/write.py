"""Images to disk: PNGs with their recipe, sheets of them, the recipe beside them, and the denoising as an animation.

`row_sheet` shows restorations, a row an image: the input first, then every answer. `check_sheet` shows an autoencoder's
input, reconstruction, difference and latents:

    difference = 128 + 4 (out - in), in grey levels of 255: the same factor everywhere, so that two sheets compare
    colours    = the first three rows of the orthonormal DCT over the latents' channels, from the 1st to the 99th
                 percentile of all images shown; never fitted, so that colours of one run's sheets follow its latents

Where the results of a run go, and the folder that `kuosan sample` writes to: one without another recipe's images.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import cos, pi, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kuosan import config as trees
from kuosan.data.pixels import enlarge, grid, read_png_text, save_gif, save_png, to_uint8, with_channels
from kuosan.errors import Error
from kuosan.sample import embedded
from kuosan.sample.generate import Frame
from kuosan.sample.recipe import KEY, Recipe
from kuosan.storage import checkpoint, manifest, outputs
from kuosan.storage.files import write_atomic

if TYPE_CHECKING:
    from kuosan.sample.plan import SamplePlan
    from kuosan.sample.recipe import Recipe

CELL = (
    128,
    320,
)  # pixels a side that images are shown at: enlarged by whole factors to the first, at most the second
GAP = 4


def row_sheet(path: Path, lines: Sequence[np.ndarray]) -> None:
    """Write rows (h, w, 3) uint8, as `line` makes them, below each other."""
    width = max(each.shape[1] for each in lines)
    padded = [np.pad(each, ((0, GAP), (0, width - each.shape[1]), (0, 0)), constant_values=255) for each in lines]
    save_png(path, np.concatenate(padded))


def line(source: Tensor, answers: Tensor) -> np.ndarray:
    """One row of the sheet, (h, w, 3) uint8."""
    high, wide = answers.shape[-2:]
    factor = max(1, CELL[0] // max(high, wide))
    shrink = min(1.0, CELL[1] / (max(high, wide) * factor))
    size = (max(1, round(wide * factor * shrink)), max(1, round(high * factor * shrink)))
    cells = [cell(image, size) for image in (source, *answers)]
    return np.concatenate([np.pad(each, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for each in cells], axis=1)


def cell(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """One image at a size (width, height): its pixels as squares where it is enlarged, averaged where shrunk."""
    pixels = with_channels(to_uint8(image.cpu().float().numpy()), 3)
    how = Image.Resampling.NEAREST if pixels.shape[1] <= size[0] else Image.Resampling.BOX
    return np.asarray(Image.fromarray(pixels).resize(size, how))


AMPLIFIED = 4  # times, of differences: 32 grey levels off are black or white
PERCENTILES = (1, 99)  # of the latents, between which colours lie: single outliers would turn the rest grey
HEADS = ("input", "reconstruction", f"difference x{AMPLIFIED}", "latents")
FONT, LINE = 12, 15  # of the heads, pixels
NARROW = 96  # pixels that the widest head takes


def check_sheet(
    x: Tensor,  # (B, C, H, W) in [-1, 1]
    y: Tensor,  # (B, C, H, W), clipped to [-1, 1]
    z: Tensor,  # (B, c, h, w)
    *,
    columns: int = 1,
) -> np.ndarray:
    """Images x, their reconstructions y, differences and latents z, four cells an image: (H', W', 3) uint8.

    Args:
        columns: images side by side; the next ones stand below.

    Raises:
        Error: images and latents that do not belong together, or values that are not finite.
    """
    _check(x, y, z, columns)
    bytes_x, bytes_y = to_uint8(x.detach().cpu().float().numpy()), to_uint8(y.detach().cpu().float().numpy())
    size = _size(*x.shape[-2:])
    parts = (bytes_x, bytes_y, difference(bytes_x, bytes_y), colours(z))
    rows = [[_cell(part[i], size) for part in parts] for i in range(len(x))]
    wide, high = max(size[0], NARROW) + GAP, size[1] + GAP
    across = min(columns, len(x))
    down = -(-len(x) // across)
    canvas = Image.new("RGB", (across * len(HEADS) * wide + GAP, LINE + GAP + down * high), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    for i in range(across * len(HEADS)):
        pen.text((GAP + i * wide, 0), HEADS[i % len(HEADS)], fill="black", font=font)
    for i, cells in enumerate(rows):
        for j, cell in enumerate(cells):
            canvas.paste(cell, (GAP + (i % across * len(HEADS) + j) * wide, LINE + GAP + i // across * high))
    return np.asarray(canvas)


def difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y - x of uint8 images (B, H, W, C), amplified about the middle grey: uint8 again."""
    off = AMPLIFIED * (y.astype(np.int32) - x.astype(np.int32))
    amplified: np.ndarray = np.clip(128 + off, 0, 255).astype(np.uint8)
    return amplified


def colours(z: Tensor) -> np.ndarray:
    """Latents (B, c, h, w) as images (B, h, w, 3) uint8; a single channel is grey, what is constant the middle."""
    values = np.moveaxis(z.detach().cpu().double().numpy(), 1, -1) @ projection(z.shape[1]).T  # (B, h, w, 1 or 3)
    low, high = np.percentile(values, PERCENTILES, axis=(0, 1, 2))
    span = high - low
    flat = span <= 1e-6 * np.abs(values).max(axis=(0, 1, 2))  # rounding of a constant is no pattern
    scaled = np.where(flat, 0.5, (values - low) / np.where(flat, 1, span))
    return np.stack([with_channels(image, 3) for image in np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)])


def projection(channels: int) -> np.ndarray:
    """How colours follow from so many channels: (1 or 3, channels), rows orthonormal; zero beyond the channels."""
    rows = 1 if channels == 1 else 3
    basis = np.zeros((rows, channels))
    for k in range(min(rows, channels)):
        scale = sqrt((1 if k == 0 else 2) / channels)
        basis[k] = [scale * cos(pi * (i + 0.5) * k / channels) for i in range(channels)]
    return basis


def _size(height: int, width: int) -> tuple[int, int]:
    """What an image is shown at (width, height): enlarged by a whole factor to `CELL`, or shrunk to its most."""
    factor = -(-CELL[0] // max(height, width))
    shrink = min(1.0, CELL[1] / (max(height, width) * factor))
    return max(1, round(width * factor * shrink)), max(1, round(height * factor * shrink))


def _cell(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """An image (h, w, 1 or 3) at a size, its pixels as squares where it is enlarged, averaged where shrunk."""
    how = Image.Resampling.NEAREST if image.shape[1] <= size[0] else Image.Resampling.BOX
    return Image.fromarray(with_channels(image, 3)).resize(size, how)


def _check(x: Tensor, y: Tensor, z: Tensor, columns: int) -> None:
    if x.ndim != 4 or x.shape != y.shape or not len(x) or x.shape[1] not in (1, 3):
        raise Error(
            f"a sanity sheet shows images (B, 1 or 3, H, W) and their reconstructions, of one shape; got "
            f"{tuple(x.shape)} and {tuple(y.shape)}."
        )
    if z.ndim != 4 or len(z) != len(x):
        raise Error(f"a sanity sheet of {len(x)} images needs as many latents (B, c, h, w); got {tuple(z.shape)}.")
    if not bool(z.isfinite().all()):
        raise Error("the latents hold NaN or infinite values: the encoder has diverged.")
    if columns < 1:
        raise Error(f"columns = {columns} is not allowed: at least 1 image stands in a row.")


RECIPE, SHEET, GIF = "recipe.json", "sheet.png", "denoising.gif"
SIDE = 128  # pixels a side that small images are enlarged to on sheets and in animations, by whole factors


def recipe(folder: Path, recipe: Recipe) -> None:
    """Write recipe.json, what all images of a request have in common."""
    write_atomic(folder / RECIPE, json.dumps(trees.plain(recipe), indent=1, ensure_ascii=False) + "\n")


def name_of(recipe: Recipe, i: int) -> str:
    """The file that holds image `i` of a recipe's request."""
    return f"place-{i:04d}.png" if recipe.request.between else f"seed-{recipe.request.seed + i:08d}.png"


def images(folder: Path, images: Tensor, recipe: Recipe, first: int = 0) -> list[Path]:
    """Write images `first`, `first` + 1, ... of a request as seed-00000007.png, each with its own recipe."""
    paths = []
    for i, image in enumerate(to_uint8(images.cpu().numpy()), start=first):
        own = dataclasses.replace(recipe, index=i)
        path = folder / name_of(recipe, i)
        save_png(path, image, own.text())
        paths.append(path)
    return paths


def sheet(path: Path, images: Sequence[Tensor], columns: int | None = None) -> None:
    """Write batches of (B, C, H, W) images as one grid, small ones enlarged."""
    bytes_ = np.concatenate([to_uint8(batch.cpu().numpy()) for batch in images])
    save_png(path, grid(enlarged(bytes_), columns))


def enlarged(bytes_: np.ndarray) -> np.ndarray:
    """Small images (..., H, W, C) enlarged by a whole factor, so that a person can see them."""
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
            self.frames.append(to_uint8(frame.image().cpu().numpy()))

    def write(self, path: Path, columns: int | None = None, milliseconds: int = 70) -> None:
        """Write the animation; the finished images stay for a while."""
        sheets: Sequence[np.ndarray] = [grid(enlarged(frame), columns) for frame in self.frames]
        save_gif(path, sheets, milliseconds=milliseconds, hold=2000)


def of_run(run: Path, usual: str, elsewhere: str) -> Path:
    """Where results go without --out: RUN/usual, or pictures/elsewhere for a run that nothing is written into.

    Nobody's images belong into the package's own model, nor into a model that is handed on.

    Args:
        elsewhere: what the folder is called there; {} stands for the model's name.
    """
    home = checkpoint.home(run)
    if embedded.is_meant(run):
        return Path("pictures") / elsewhere.format(embedded.NAME)
    if checkpoint.is_exported(home):
        return Path("pictures") / elsewhere.format(home.resolve().name)
    return home / usual


def claim(
    run: Path, out: Path | None, recipe: Recipe, trajectory: SamplePlan, gif: bool
) -> AbstractContextManager[outputs.Output]:
    """The folder to write, claimed: without --out the first that is free or holds this recipe's images.

    Raises:
        Error: it lies inside a checkpoint, is a file, cannot be written, or holds other files of these names.
    """
    begin = recipe.request.between
    origin = f"seed{recipe.request.seed}" if begin is None else "seeds{}-{}".format(*begin)
    name = f"{trajectory.sampler}-{trajectory.steps}-{origin}"
    if recipe.request.size is not None or recipe.request.aspect is not None:
        name += "-{}x{}".format(*recipe.size)
    own = embedded.name(recipe.request) if embedded.is_meant(run) else f"{{}}-{name}"
    place = of_run(run, f"samples/{name}", own)
    folder = out or place
    inside = next(
        (path for path in (folder.resolve(), *folder.resolve().parents) if (path / manifest.NAME).is_file()), None
    )
    if inside is not None:
        raise Error(
            f"--out {folder} lies inside the checkpoint {inside}, which holds nothing else; choose another folder."
        )
    names = [RECIPE, *(name_of(recipe, i) for i in range(recipe.request.n)), SHEET]
    names += [GIF] * gif

    def proof(path: Path) -> bool:
        return _fits(path, recipe)

    about = trees.plain(recipe)
    if out is None:
        return outputs.claimed_unused(place, "sample", about, names, proof=proof)
    return outputs.claimed(out, "sample", about, names, proof=proof)


def same_recipe(path: Path, recipe: Recipe) -> bool:
    """Whether a PNG carries a recipe, of that very image."""
    try:
        return bool(json.loads(read_png_text(path).get(KEY, "null")) == _plain(recipe))
    except (Error, ValueError, RecursionError):
        return False


def _fits(path: Path, recipe: Recipe) -> bool:
    """Whether a file that an older kuosan wrote, which kept no record, is of a recipe."""
    if path.name not in (RECIPE, SHEET, GIF):
        numbers = {name_of(recipe, i): i for i in range(recipe.request.n)}
        return path.name in numbers and same_recipe(path, dataclasses.replace(recipe, index=numbers[path.name]))
    try:
        return bool(json.loads((path.parent / RECIPE).read_text(encoding="utf-8")) == _plain(recipe))
    except (OSError, ValueError, RecursionError):
        return False


def _plain(recipe: Recipe) -> Any:
    """A recipe as JSON gives it back."""
    return json.loads(json.dumps(trees.plain(recipe)))
