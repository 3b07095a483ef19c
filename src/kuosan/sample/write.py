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
import unicodedata
from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import cos, pi, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from kuosan import config as trees
from kuosan.data.pixels import (
    enlarge,
    grid,
    on_checkerboard,
    read_png_text,
    save_gif,
    save_png,
    to_uint8,
    with_channels,
)
from kuosan.errors import Error
from kuosan.sample import embedded
from kuosan.sample.generate import Frame
from kuosan.sample.recipe import KEY, Recipe
from kuosan.storage import checkpoint, manifest, outputs
from kuosan.storage.files import write_atomic

if TYPE_CHECKING:
    from kuosan.sample.plan import SamplePlan
    from kuosan.sample.recipe import Recipe
    from kuosan.sample.request import Request

CELL = (128, 320)  # pixels a side that images are shown at: enlarged by whole factors to the first, at most the second
GAP = 4


def row_sheet(path: Path, lines: Sequence[Sequence[np.ndarray]]) -> None:
    """Write rows of as many images each, as `line` makes them, below each other; nothing stands left or above."""
    cells = [cell for each in lines for cell in each]
    save_png(path, grid(cells, len(lines[0]), GAP)[GAP:, GAP:])


def line(source: Tensor, answers: Tensor) -> list[np.ndarray]:
    """One row of the sheet: an image and its answers (n, C, H, W), all at the answers' size."""
    high, wide = answers.shape[-2:]
    size = shown_at(high, wide, max(1, CELL[0] // max(high, wide)))
    return [cell(image, size) for image in (source, *answers)]


def cell(image: Tensor | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One image at a size (width, height), (h, w, 3) uint8: its pixels as squares where it is enlarged, else averaged.

    Transparent ones lie on a checkerboard. `image` is (C, H, W) in [-1, 1], or (H, W, C) uint8.
    """
    pixels = to_uint8(image.cpu().float().numpy()) if isinstance(image, Tensor) else image
    pixels = pixels if pixels.shape[2] == 4 else with_channels(pixels, 3)
    how = Image.Resampling.NEAREST if pixels.shape[1] <= size[0] else Image.Resampling.BOX
    shown = np.asarray(Image.fromarray(pixels).resize(size, how))
    return on_checkerboard(shown) if shown.shape[2] == 4 else shown


def shown_at(height: int, width: int, factor: int) -> tuple[int, int]:
    """The size (width, height) of an image enlarged by a factor, or shrunk to the most of `CELL`."""
    shrink = min(1.0, CELL[1] / (max(height, width) * factor))
    return max(1, round(width * factor * shrink)), max(1, round(height * factor * shrink))


AMPLIFIED = 4  # times, of differences: 32 grey levels off are black or white
PERCENTILES = (1, 99)  # of the latents, between which colours lie: single outliers would turn the rest grey
HEADS = ("input", "reconstruction", f"difference x{AMPLIFIED}", "latents")
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
    high, wide = x.shape[-2:]
    size = shown_at(high, wide, -(-CELL[0] // max(high, wide)))
    parts = (bytes_x, bytes_y, difference(bytes_x, bytes_y), colours(z))
    cells = [cell(part[i], size) for i in range(len(x)) for part in parts]
    across = min(columns, len(x))
    return grid(cells, across * len(HEADS), GAP, least=NARROW, labels=HEADS * across)


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
MOST_LETTERS = 60  # of a label on a sheet
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


def sheet(path: Path, images: Sequence[Tensor], columns: int | None = None, labels: Sequence[str] = ()) -> None:
    """Write batches of (B, C, H, W) images as one grid, small ones enlarged, with a label above each where given."""
    bytes_ = np.concatenate([to_uint8(batch.cpu().numpy()) for batch in images])
    save_png(path, grid(enlarged(bytes_), columns, labels=labels[: len(bytes_)]))


def labels_of(request: Request) -> list[str]:
    """What each image of a request is of, where they are of several classes or prompts; else nothing.

    A sheet's font knows ASCII alone: accents are left off, and what is in another script is named by its number.
    """
    both = (("class", request.classes), ("prompt", request.prompts))
    asked = [[_in_ascii(text, f"{noun} {i + 1}") for i, text in enumerate(each)] for noun, each in both]
    asked = [each for each in asked if len(set(each[: request.n])) > 1]
    names = [", ".join(each[i % len(each)] for each in asked) for i in range(request.n * bool(asked))]
    return [name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 3] + "..." for name in names]


def _in_ascii(text: str, otherwise: str) -> str:
    """A text in one line without its accents; `otherwise` if letters are left that are not ASCII."""
    bare = "".join(c for c in unicodedata.normalize("NFKD", " ".join(text.split())) if not unicodedata.combining(c))
    return bare if bare.isascii() else otherwise


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
