"""What a camera or a file format does to a picture: sensor noise, x + std n, and JPEG's loss.

Pictures are float32 (B, C, H, W) in [-1, 1], and each comes out the same whatever stands beside it. Linear losses
(blur, shrinking, masks) are operators, and live with the mathematics.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from kuosan.data.images import from_uint8, to_uint8
from kuosan.errors import Error

NONE = 0  # the quality of a picture that JPEG leaves alone
BEST = 100  # JPEG's highest quality


def gaussian_noise(
    x: Tensor,  # (B, C, H, W)
    stds: ArrayLike,  # (B,), on the scale of [-1, 1]: one grey level is 2/255
    rngs: Sequence[np.random.Generator],  # one a picture
) -> Tensor:  # (B, C, H, W), not clipped
    """x + std n, n standard normal, each picture's from its own generator.

    As many numbers are drawn for std 0, which gives the picture back, as for any other: what a generator is asked next
    does not depend on std.
    Raises: Error for a std that is negative or not finite, or lengths that differ.
    """
    each = _one_a_picture("stds", stds, x).astype(np.float32)
    if len(rngs) != len(x):
        raise Error(f"{len(rngs)} generators for {len(x)} pictures: give one a picture.")
    if not (np.isfinite(each) & (each >= 0)).all():
        raise Error(f"stds = {each.tolist()} are not allowed: each is 0 (no noise) or more, and finite.")
    if not len(x):
        return x
    shape = tuple(x.shape[1:])
    noise = np.stack([std * rng.standard_normal(shape, np.float32) for std, rng in zip(each, rngs)])
    return x + torch.from_numpy(noise).to(x.device, x.dtype)


def jpeg(x: Tensor, qualities: ArrayLike) -> Tensor:
    """Pictures (B, 1 or 3, H, W) as they come back from a JPEG file of quality 1 to 100 (B,), 0 for no file at all.

    Colour is stored at half the resolution (4:2:0, what cameras and the web mostly do), grey as grey. Values are
    clipped and rounded to bytes on the way, except at 0, which leaves a picture's very bits. Nothing is drawn: the same
    input gives the same output, with the same libjpeg (others may differ by a grey level).
    Raises: Error for another quality, another number of channels, or lengths that differ.
    """
    each = _one_a_picture("qualities", qualities, x)
    if x.shape[1] not in (1, 3):
        raise Error(f"pictures of {x.shape[1]} channels: a JPEG file holds 1 (grey) or 3 (colour).")
    if not np.issubdtype(each.dtype, np.integer) or ((each < NONE) | (each > BEST)).any():
        raise Error(f"qualities = {each.tolist()} are not allowed: whole numbers 1 to {BEST}, or {NONE} for no JPEG.")
    result = x.clone()
    for i in np.flatnonzero(each != NONE):
        stored = _stored(to_uint8(x[i].detach().cpu().numpy()), int(each[i]))
        result[i] = torch.from_numpy(from_uint8(stored)).to(x.device, x.dtype)
    return result


def _stored(pixels: np.ndarray, quality: int) -> np.ndarray:
    """Bytes (H, W, 1 or 3) written to a JPEG file and read again."""
    grey = pixels.shape[2] == 1
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    with Image.open(file, formats=["JPEG"]) as image:
        read = np.asarray(image)
    return read[..., None] if grey else read


def _one_a_picture(name: str, values: ArrayLike, x: Tensor) -> np.ndarray:
    """The values as an array (B,), or an `Error`."""
    if x.ndim != 4:
        raise Error(f"pictures of shape {tuple(x.shape)}: allowed is (B, C, H, W); put x[None] for one picture.")
    each = np.asarray(values)
    if each.shape != (len(x),):
        raise Error(f"{name} has shape {each.shape}; wanted is ({len(x)},), one a picture.")
    return each
