"""From a batch to the network's conditioning, in training and sampling alike; and, for training, the degraded images.

degrade: image -> Given        condition: (label, text, Given) -> {"label": (B,), "concat": (B, K, H, W), ...}

What a camera or a file format does to an image: sensor noise, x + std n, and JPEG's loss.

Images are float32 (B, C, H, W) in [-1, 1], and each comes out the same whatever stands beside it. Linear losses
(blur, shrinking, masks) are operators, and live with the mathematics.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, assert_never

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from kuosan.data.dataset import Given
from kuosan.data.pixels import as_written, from_uint8, to_uint8
from kuosan.diffusion.operators import Separable, area, bicubic, gaussian_blur
from kuosan.errors import Error
from kuosan.tasks.task import Generation, Inpainting, SuperResolution, draw_mask

if TYPE_CHECKING:
    from kuosan.tasks import Task


def degrade(task: Task, x0: Tensor, rngs: Sequence[np.random.Generator]) -> Given | None:
    """Degraded images x0 (B, C, H, W), as a user would have them, each by its own generator; None if none."""
    match task:
        case SuperResolution():
            return _shrunk(task, x0, rngs)
        case Inpainting():
            height, width = x0.shape[-2:]
            masks = np.stack([draw_mask(rng, height, width, task.masks) for rng in rngs])
            mask = torch.from_numpy(masks.astype(np.float32))[:, None]
            return Given(x0 * (1 - mask), mask)
    return None


def condition(
    task: Task,
    label: Tensor | None,
    given: Given | None = None,
    drop: np.ndarray | None = None,
    text: Mapping[str, Tensor] | None = None,
    encode: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[str, Tensor]:
    """A batch's conditioning, by input of the network.

    Args:
        label: (B,) int64, -1 where an image has no class; for a task with labels.
        given: what is known of the images; for a task that restores.
        drop: (B,) uniform in [0, 1), in training: a value below the task's share shows the image with the null label.
        text: of captions, by input (`tokens`, or `context` and `context_mask`); dropped ones are empty.
        encode: a codec's, of images to what is denoised; a mask is averaged over its cells: the share to generate.
    """
    cond: dict[str, Tensor] = {}
    if task.text:
        assert text is not None, "a task with text is given captions"
        cond |= text
    if task.labels:
        assert label is not None, "a task with labels is given labels"
        label = torch.where(label < 0, task.null, label)
        if drop is not None and task.dropped:
            label = torch.where(torch.from_numpy(drop < task.dropped).to(label.device), task.null, label)
        cond["label"] = label
    match task:
        case Generation():
            return cond
        case SuperResolution():
            assert given is not None, "a super-resolution network is given small images"
            parts = [encode(enlarged(given.image, task.scale))]
            if task.noise > 0:
                std = torch.zeros(len(given.image)) if given.noise is None else given.noise
                parts.append(std.to(parts[0]).reshape(-1, 1, 1, 1).expand(-1, 1, *parts[0].shape[-2:]))
        case Inpainting():
            assert given is not None and given.mask is not None, "an inpainting network is given masks"
            parts = [encode(filled(given.image, given.mask))]
            parts.append(F.adaptive_avg_pool2d(given.mask, (parts[0].shape[-2], parts[0].shape[-1])))
        case _:
            assert_never(task)
    return {**cond, "concat": torch.cat(parts, dim=1)}


def enlarged(small: Tensor, scale: int) -> Tensor:
    """(B, C, h, w) -> (B, C, scale h, scale w), bicubic: what super-resolution starts from, and is compared with."""
    size = (scale * small.shape[-2], scale * small.shape[-1])
    return F.interpolate(small, size, mode="bicubic", align_corners=False).clamp(-1, 1)


def filled(image: Tensor, mask: Tensor) -> Tensor:
    """Images (B, C, H, W) with their holes, mask (B, 1, H, W) = 1, filled smoothly from what is known around them.

    By a pyramid (Burt 1988; Gortler et al. 1996, push-pull): means of what is known at half the size, a quarter, ...,
    and where a level knows nothing, the coarser one enlarged. Known pixels are kept as they are.
    """
    known = 1 - mask
    levels = [(image * known, known)]
    while max(levels[-1][0].shape[-2:]) > 1:
        levels.append(tuple(F.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in levels[-1]))  # type: ignore[arg-type]
    value = torch.zeros_like(levels[-1][0])
    for total, weight in reversed(levels):
        coarser = F.interpolate(value, total.shape[-2:], mode="bilinear", align_corners=False)
        value = torch.where(weight > 0, total / weight.clamp(min=1e-6), coarser)
    return value


def shrinking(scale: int, size: tuple[int, int], down: str = "area", blur: float = 0.0) -> tuple[Separable, ...]:
    """The operators that make an image of `size` (H, W) small, in their order."""
    shrink = {"area": area, "bicubic": bicubic}[down](scale, size)
    return (gaussian_blur(blur, size), shrink) if blur > 0 else (shrink,)


def _shrunk(task: SuperResolution, x0: Tensor, rngs: Sequence[np.random.Generator]) -> Given:
    """Small images, each drawn in one order whatever is switched on, so that settings do not move each other."""
    draws = [rng.random(4) for rng in rngs]
    size = (x0.shape[-2], x0.shape[-1])
    small = []
    for x, (by_area, blur, _, _) in zip(torch.split(x0, 1), draws):
        down = task.down if task.down != "any" else "area" if by_area < 0.5 else "bicubic"
        for operator in shrinking(task.scale, size, down, task.blur * blur):
            x = operator.apply(x)
        small.append(x)
    y = torch.cat(small)
    std = torch.tensor([task.noise / 127.5 * noise for _, _, noise, _ in draws], dtype=torch.float32)
    if task.noise > 0:
        y = gaussian_noise(y, std, rngs)
    y = as_written(y)
    if task.jpeg:
        qualities = torch.tensor([task.jpeg + int(q * (96 - task.jpeg)) for _, _, _, q in draws])
        y = jpeg(y, qualities)
    return Given(y, noise=std if task.noise > 0 else None)


NONE = 0  # the quality of an image that JPEG leaves alone
BEST = 100  # JPEG's highest quality


def gaussian_noise(
    x: Tensor,  # (B, C, H, W)
    stds: ArrayLike,  # (B,), on the scale of [-1, 1]: one grey level is 2/255
    rngs: Sequence[np.random.Generator],  # one an image
) -> Tensor:  # (B, C, H, W), not clipped
    """x + std n, n standard normal, each image's from its own generator.

    As many numbers are drawn for std 0, which gives the image back, as for any other: what a generator is asked next
    does not depend on std.
    Raises: Error for a std that is negative or not finite, or lengths that differ.
    """
    each = _one_per_image("stds", stds, x).astype(np.float32)
    if len(rngs) != len(x):
        raise Error(f"{len(rngs)} generators for {len(x)} images: give one an image.")
    if not (np.isfinite(each) & (each >= 0)).all():
        raise Error(f"stds = {each.tolist()} are not allowed: each is 0 (no noise) or more, and finite.")
    if not len(x):
        return x
    shape = tuple(x.shape[1:])
    noise = np.stack([std * rng.standard_normal(shape, np.float32) for std, rng in zip(each, rngs)])
    return x + torch.from_numpy(noise).to(x.device, x.dtype)


def jpeg(x: Tensor, qualities: ArrayLike) -> Tensor:
    """Images (B, 1 or 3, H, W) as they come back from a JPEG file of quality 1 to 100 (B,), 0 for no file at all.

    Colour is stored at half the resolution (4:2:0, what cameras and the web mostly do), grey as grey. Values are
    clipped and rounded to bytes on the way, except at 0, which leaves an image's very bits. Nothing is drawn: the same
    input gives the same output, with the same libjpeg (others may differ by a grey level).
    Raises: Error for another quality, another number of channels, or lengths that differ.
    """
    each = _one_per_image("qualities", qualities, x)
    if x.shape[1] not in (1, 3):
        raise Error(f"images of {x.shape[1]} channels: a JPEG file holds 1 (grey) or 3 (colour).")
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


def _one_per_image(name: str, values: ArrayLike, x: Tensor) -> np.ndarray:
    """The values as an array (B,), or an `Error`."""
    if x.ndim != 4:
        raise Error(f"images of shape {tuple(x.shape)}: allowed is (B, C, H, W); put x[None] for one image.")
    each = np.asarray(values)
    if each.shape != (len(x),):
        raise Error(f"{name} has shape {each.shape}; wanted is ({len(x)},), one an image.")
    return each
