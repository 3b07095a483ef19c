"""From an image file and what is wrong with it to what `generate` takes: canvas, condition, measurement, cut.

A canvas larger than the model's images is denoised as a whole, the network asked in overlapping tiles that share one
noise; a smaller one is extended to them, and what was added is cut off again.

What of an image is to be generated, as a person names it: a mask file, the image's own transparency, or a box.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from kuosan.data.decoding import decode, opacity
from kuosan.data.headers import Refused
from kuosan.data.pixels import from_uint8, is_grey, luma, with_channels
from kuosan.data.reading import OLDER, Reading, refused
from kuosan.diffusion.network import Called
from kuosan.diffusion.operators import (
    Measurement,
    Operator,
)
from kuosan.errors import Error
from kuosan.models.model import Model
from kuosan.models.tiling import Tiled
from kuosan.sample import plan
from kuosan.sample.constraint import conditioning_of
from kuosan.sample.request import BOX, Restoration, method

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.data.dataset import Given
    from kuosan.sample.request import Request


@dataclass(frozen=True)
class RestorationInput:
    """An image ready to be restored."""

    model: Model  # of the canvas's size: the network itself, or in tiles
    image: Tensor  # (C, h, w) the input, in [-1, 1], for showing beside the result
    mask: Tensor | None  # (1, H, W) of the result, 1 = to be generated
    given: Given | None
    measurement: Measurement | None
    cut: tuple[slice, slice]  # of the canvas: what is kept of it
    place: tuple[slice, slice] | None  # of the image: where that belongs; None: it is the whole result
    tiles: int  # the network's images a canvas
    notes: tuple[str, ...]  # what was done to the image, in words

    def batched(self, request: Request) -> Request:
        """The request with as few canvases at once as make `batch` images of the network's."""
        return replace(request, batch=max(1, request.batch // self.tiles))

    def result(self, x: Tensor) -> Tensor:
        """The restored images of finished canvases: (n, C, H, W)."""
        made = x[..., self.cut[0], self.cut[1]]
        if self.place is None:
            return made
        whole = self.image.to(made).repeat(len(made), 1, 1, 1)
        whole[..., self.place[0], self.place[1]] = made
        return whole


def open_input(
    model: Model, asked: Restoration, path: Path, *, batch: int = 16, reading: Reading | None = None
) -> RestorationInput:
    """Open an image file and make it ready for a model.

    Args:
        batch: tiles that go through the network at once.
        reading: how the run's training images were read; None: on white, scaled to cover where it must fit.

    Raises:
        Error: no image, a mask that does not fit, damage that the model cannot undo.
    """
    reading = OLDER if reading is None else reading
    try:
        decoded = reading.decoded(path)
    except Refused as reason:
        raise refused(path, "restored", reason) from None
    pixels, notes = decoded.pixels, list(decoded.notes)
    mask = None if asked.mask is None else read_mask(asked.mask, path, (pixels.shape[0], pixels.shape[1]))
    if asked.fit:
        pixels, mask = _shrunk(model, asked, pixels, mask, notes, reading)
    return prepare(model, asked, pixels, mask, notes=notes, name=str(path), batch=batch)


def prepare(
    model: Model,
    asked: Restoration,
    pixels: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    notes: list[str] | None = None,
    name: str = "the image",
    batch: int = 16,
) -> RestorationInput:
    """Make pixels (h, w, 1 or 3) uint8 ready, with a mask (h, w) bool where part of them is to be generated.

    Raises:
        Error: damage that the model cannot undo, or an image that has no room for it.
    """
    notes = [] if notes is None else notes
    chosen = method(model.config, asked)
    image = torch.from_numpy(from_uint8(_channels(model, asked, pixels, notes, name)))
    hole = None if mask is None else torch.from_numpy(mask.astype(np.float32))[None]
    if asked.outpaint is not None:
        image, hole = _outpainted(image, hole, asked.outpaint)
    if hole is not None:
        image = image * (1 - hole)
    scale = asked.upscale or 1
    model = plan.taking(model, (scale * image.shape[2], scale * image.shape[1]))
    part, part_hole, place = _around(model, asked, image, hole)
    size = (scale * part.shape[1], scale * part.shape[2])
    extended, unknown, cut = _extended(model, part, part_hole, scale, notes)
    canvas = (scale * extended.shape[1], scale * extended.shape[2])
    whole, tiles = tiled(model, canvas, asked.overlap, batch)
    if tiles > 1:
        side = "x".join(map(str, reversed(model.shape[1:])))
        notes.append(
            f"{size[1]}x{size[0]} in {tiles} overlapping tiles of {side}; a model of whole things of its own size, as "
            f"faces, is better served by --fit"
        )
    given, measurement = conditioning_of(
        model, asked, chosen, extended[None], None if unknown is None else unknown[None]
    )
    return RestorationInput(whole, image, hole, given, measurement, cut, place, tiles, tuple(notes))


def tensors(
    model: Model,
    asked: Restoration,
    images: Tensor,
    mask: Tensor | None = None,
    operator: Operator | None = None,
    batch: int = 16,
) -> tuple[Model, Given | None, Measurement | None]:
    """Images (B, C, h, w) in [-1, 1] ready to be restored: the model of their size, and what is known of them.

    Args:
        mask: (B or 1, 1, h, w), 1 where an image is to be generated.
        operator: a linear map of the caller's own, of which `images` are the result, whatever their shape.

    Raises:
        Error: damage that the model cannot undo, or images of a size that it cannot make.
    """
    chosen = method(model.config, asked)
    images = torch.as_tensor(images).float().cpu()
    for member in ("apply", "adjoint"):
        if operator is not None and not hasattr(operator, member):
            raise Error(f"operator {type(operator).__name__} has no {member}: an operator is apply(x) and adjoint(y).")
    if asked.outpaint is not None or asked.fit:
        raise Error("outpaint and fit are for image files: make room in the tensor, and mask it.")
    if operator is not None:
        if asked.overlap is not None:
            raise Error("overlap has no effect with an operator of one's own: the canvas is of the model's size.")
        return model, None, Measurement(operator, images, asked.noise / 127.5)
    if asked.colorise:
        images = _grey(images)
    if not bool(images.isfinite().all()) or float(images.abs().max()) > 1.001:
        raise Error("images hold values beyond [-1, 1], or NaN: bytes become u / 127.5 - 1.")
    if images.ndim != 4 or images.shape[1] != model.shape[0]:
        raise Error(f"images of shape {tuple(images.shape)}: this model restores (B, {model.shape[0]}, h, w).")
    hole = None
    if mask is not None:
        hole = torch.as_tensor(mask).float().cpu()
        if (
            hole.ndim != 4
            or hole.shape[1] != 1
            or hole.shape[2:] != images.shape[2:]
            or len(hole) not in (1, len(images))
        ):
            raise Error(f"mask of shape {tuple(hole.shape)}: images {tuple(images.shape)} take (B or 1, 1, h, w).")
        if not bool(((hole == 0) | (hole == 1)).all()) or not bool(hole.flatten(1).any(1).all() and (1 - hole).any()):
            raise Error("mask: it holds 1 where an image is to be generated and 0 where it is known, both of them.")
        hole = hole.expand(len(images), -1, -1, -1)
        images = images * (1 - hole)
    scale = asked.upscale or 1
    model = plan.taking(model, (scale * images.shape[3], scale * images.shape[2]))
    whole, count = tiled(model, (scale * images.shape[2], scale * images.shape[3]), asked.overlap, batch)
    if count == 1 and asked.overlap is not None:
        raise Error(f"overlap = {asked.overlap} has no effect: the images are of the model's size; leave it out.")
    return whole, *conditioning_of(model, asked, chosen, images, hole)


def _grey(images: Tensor) -> Tensor:
    """Grey images (B, 1 or 3, h, w) as three equal channels. Raises: Error for coloured ones."""
    if images.ndim == 4 and images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    if images.ndim != 4 or images.shape[1] != 3 or bool((images != images[:, :1]).any()):
        raise Error("colorise takes grey images, (B, 1, h, w) or three equal channels: make them grey first.")
    return images


def tiled(model: Model, canvas: tuple[int, int], overlap: int | None = None, batch: int = 16) -> tuple[Model, int]:
    """A model of canvases (H, W), and how many of its own images cover one.

    Raises:
        Error: an overlap that tiles of this model cannot have.
    """
    channels, height, width = model.shape
    if canvas == (height, width):
        return model, 1
    whole, factor = replace(model.config, shape=(channels, *canvas)), model.config.codec.factor
    for name, sides in (("images of sides", canvas), ("overlap =", () if overlap is None else (overlap,))):
        if any(side % factor for side in sides):
            lengths = " and ".join(map(str, sides))
            raise Error(
                f"{name} {lengths}: this is a model of latents of {factor} pixels a cell; multiples of {factor}."
            )
    overlap = min(height, width) // 4 if overlap is None else overlap
    asked = Called(model.network) if model.config.network.kind == "own" else model.network
    network = Tiled(asked, (height // factor, width // factor), overlap // factor, batch)
    large = replace(model, config=whole, network=network, codec=model.codec.tiled(max(height, width)))
    return large, network.tile_count(*large.sample_shape[1:])


def _channels(model: Model, asked: Restoration, pixels: np.ndarray, notes: list[str], name: str) -> np.ndarray:
    """The image in the model's channels; grey of three equal ones where colours are to be made."""
    channels = model.shape[0]
    if asked.colorise:
        if channels != 3:
            raise Error("colorise: this model makes grey images and knows no colours; use one trained on colour.")
        if not is_grey(pixels):
            notes.append("its colours are set aside (made grey)")
            pixels = luma(pixels)
        return with_channels(pixels[..., :1], 3)
    if channels == 1 and not is_grey(pixels):
        notes.append("made grey, as the model's images are")
    if channels == 3 and is_grey(pixels):
        notes.append("grey, restored by a model of colour")
    if channels == 1 and pixels.shape[2] == 3 and is_grey(pixels):
        pixels = pixels[..., :1]
    if channels not in (1, 3, 4):
        raise Error(f"{name}: this model's images have {channels} channels; images in files have 1, 3 or 4.")
    return with_channels(pixels, channels)


def _shrunk(
    model: Model,
    asked: Restoration,
    pixels: np.ndarray,
    mask: np.ndarray | None,
    notes: list[str],
    reading: Reading,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The image, and its mask, in the model's size (for upscale, in what becomes that), as training images were."""
    own = (pixels.shape[1], pixels.shape[0])
    width, height = (side // (asked.upscale or 1) for side in plan.nearest_trained(model.config, own))
    shown = reading.fitted(pixels, (height, width))
    notes += shown.notes
    if mask is not None:
        spread = reading.on_black().fitted((mask * np.uint8(255))[..., None], (height, width)).pixels
        mask = spread[..., 0] > 0  # whatever a marked pixel reaches
        if not mask.any() or mask.all():
            raise Error(
                "fit: what is left after fitting as in training is all hole, or holds none of it: crop the image "
                "around the hole yourself, or leave --fit out."
            )
    return shown.pixels, mask


def _outpainted(image: Tensor, hole: Tensor | None, sides: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """The image with room at its left, top, right and bottom."""
    left, top, right, bottom = sides
    hole = image.new_zeros(1, *image.shape[1:]) if hole is None else hole
    around = (left, right, top, bottom)
    return F.pad(image, around), F.pad(hole, around, value=1.0)


def _around(
    model: Model, asked: Restoration, image: Tensor, hole: Tensor | None
) -> tuple[Tensor, Tensor | None, tuple[slice, slice] | None]:
    """Of an image with a hole and no other damage: the hole's surroundings, and where they lie."""
    if hole is None or asked.damage != ("mask",) or asked.noise:
        return image, hole, None
    place = (_reach(hole[0].any(1), model.shape[1]), _reach(hole[0].any(0), model.shape[2]))
    return image[:, place[0], place[1]], hole[:, place[0], place[1]], place


def _reach(marked: Tensor, side: int) -> slice:
    """The marked part of an axis with a quarter of a tile on either side, and at least a tile where there is room."""
    length, places = len(marked), marked.nonzero()
    margin = 0 if int(places[-1]) + 1 - int(places[0]) <= side * 3 // 4 else side // 4  # one tile may do
    low, high = max(0, int(places[0]) - margin), min(length, int(places[-1]) + 1 + margin)
    missing = max(0, min(side, length) - (high - low))
    low = max(0, min(low - missing // 2, length - (high - low) - missing))
    return slice(low, max(high, min(length, low + side)))


def _extended(
    model: Model, image: Tensor, hole: Tensor | None, scale: int, notes: list[str]
) -> tuple[Tensor, Tensor | None, tuple[slice, slice]]:
    """The image extended to at least the model's size, in whole cells: generated there, or its edges repeated."""
    _, height, width = model.shape
    low, narrow = image.shape[1:]
    cell = lcm(scale, model.config.codec.factor)  # the canvas is of whole cells
    high, wide = (-(-max(size, scale * own) // cell) * cell // scale for size, own in ((height, low), (width, narrow)))
    more = (max(0, wide - narrow), max(0, high - low))
    cut = (slice(0, scale * low), slice(0, scale * narrow))
    if not any(more):
        return image, hole, cut
    notes.append(f"{narrow}x{low} is extended to {wide}x{high}, which the model can make, and cut again")
    around = (0, more[0], 0, more[1])
    if hole is not None:
        return F.pad(image, around), F.pad(hole, around, value=1.0), cut
    return F.pad(image[None], around, mode="replicate")[0], None, cut


ALPHA = "alpha"  # what a person writes for the image's own transparency
WHITE = 128  # a mask's pixel this bright, or brighter, is to be generated


def read_mask(asked: str, image: Path, size: tuple[int, int]) -> np.ndarray:
    """The mask that a person named, of an image of `size` (H, W): (H, W) bool, true = generate.

    Args:
        asked: a mask's file (white is generated), a folder with a mask of the image's name, `alpha`, or `x,y,w,h`.

    Raises:
        Error: no such file, one of another size, an empty or a full mask, a box outside the image, no transparency.
    """
    box = BOX.fullmatch(asked)
    if box:
        mask = _box(tuple(int(part) for part in box.groups()), size, image)
    elif asked == ALPHA:
        clear = _opacity(image)
        if clear is None:
            raise Error(f"mask alpha: {image} has no transparency; name a mask file (white is generated), or a box.")
        mask = clear < 255  # a half transparent pixel is half background: not known
    else:
        mask = _file(_beside(Path(asked), image), size, image)
    if not mask.any():
        raise Error(f"mask {asked!r} of {image} marks nothing: paint what is to be generated white.")
    if mask.all():
        raise Error(
            f"mask {asked!r} of {image} marks everything, so nothing is known: kuosan sample makes whole images. "
            f"If it is black that should be generated, invert the mask."
        )
    return mask


def _box(box: tuple[int, ...], size: tuple[int, int], image: Path) -> np.ndarray:
    left, top, width, height = box
    if width < 1 or height < 1 or left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise Error(
            f"mask {left},{top},{width},{height} is not inside {image}, {size[1]}x{size[0]}: give x,y,w,h in pixels "
            f"from its upper left corner."
        )
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def _beside(asked: Path, image: Path) -> Path:
    """The mask's file: the one named, or in a folder the one called as the image is."""
    if not asked.is_dir():
        return asked
    found = sorted(path for path in asked.iterdir() if path.stem == image.stem and path.is_file())
    if len(found) > 1:
        raise Error(
            f"{asked} holds {len(found)} masks of {image.name}: {', '.join(each.name for each in found)}; keep one."
        )
    if found and found[0].resolve() == image.resolve():
        raise Error(f"mask folder {asked} is the images' own, and {image.name} would be its own mask: name another.")
    if not found:
        raise Error(f"there is no mask of {image.name} in {asked}: call it {image.stem}.png.")
    return found[0]


def _file(path: Path, size: tuple[int, int], image: Path) -> np.ndarray:
    if not path.exists():
        raise Error(
            f"mask {path}: no such file; give an image (white is generated), `alpha`, or a box x,y,w,h in pixels."
        )
    try:
        pixels = decode(path, (0, 0, 0)).pixels
    except Refused as reason:
        raise Error(f"mask {path} cannot be read: {reason}.") from None
    if pixels.shape[:2] != size:
        raise Error(
            f"mask {path} is {pixels.shape[1]}x{pixels.shape[0]}, the image {image} {size[1]}x{size[0]}: a mask is "
            f"as large as its image; paint it on a copy of that, or give a box x,y,w,h."
        )
    grey = luma(pixels) if pixels.shape[2] == 3 else pixels
    return np.asarray(grey[..., 0] >= WHITE)


def _opacity(image: Path) -> np.ndarray | None:
    try:
        return opacity(image)
    except Refused as reason:
        raise Error(f"{image} cannot be read: {reason}.") from None
