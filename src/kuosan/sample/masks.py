"""What of an image is to be generated, as a person names it: a mask file, the image's own transparency, or a box."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kuosan.data.decoding import decode, opacity
from kuosan.data.headers import Refused
from kuosan.data.pixels import luma
from kuosan.errors import Error
from kuosan.sample.request import BOX

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
