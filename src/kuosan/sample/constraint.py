"""How a restoration holds a model to what is known: the conditioning of models trained to restore, the measurement that
others are held to, wrappers around the denoiser, and the finished image.

A cell of latents is known only if all its pixels are. What is known of it is what the encoder makes of the image with
its hole filled smoothly: an encoder sees beyond a cell, and a smooth filling is the least strange thing to see there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kuosan.data.dataset import Given
from kuosan.diffusion import restoration
from kuosan.diffusion.operators import (
    Compose,
    Greyscale,
    Identity,
    Mask,
    Measurement,
    Operator,
    Separable,
    gaussian_blur,
)
from kuosan.errors import Error
from kuosan.tasks.condition import filled, shrinking

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.data.dataset import Given
    from kuosan.diffusion.denoiser import Denoiser
    from kuosan.models.codec import Codec
    from kuosan.models.model import Model
    from kuosan.sample.plan import SamplePlan
    from kuosan.sample.request import Request, Restoration

IMAGE_STD = 0.5  # of images in [-1, 1], as EDM has it: what noise in the pixels of a latent model is weighed by


def held(
    denoise: Denoiser, model: Model, trajectory: SamplePlan, request: Request, measurement: Measurement
) -> Denoiser:
    """The denoiser held to a measurement by the plan's method; RePaint holds the state instead, as it samples."""
    assert request.restoration is not None
    spread, push = model.config.sigma_data, request.restoration.push or 1.0
    if model.codec.latent and not in_cells(trajectory, measurement):
        decode, encode = model.codec.decode, model.codec.encode
        if trajectory.method == "dps":
            return restoration.dps(denoise, measurement, trajectory.levels, scale=push, decode=decode)
        assert trajectory.method == "ddnm", "restoration.method refuses all else"
        return restoration.ddnm_through(denoise, measurement, decode, encode, spread, IMAGE_STD)
    match trajectory.method:
        case "ddnm":
            return restoration.ddnm(denoise, measurement, prior_std=spread)
        case "pigdm":
            return restoration.pigdm(denoise, measurement, prior_std=spread, scale=push)
        case "dps":
            return restoration.dps(denoise, measurement, trajectory.levels, scale=push)
    return denoise


def in_cells(trajectory: SamplePlan, measurement: Measurement) -> bool:
    """Whether what is known of images is held as a mask of latent cells: of holes, by all methods but DPS."""
    return trajectory.method != "dps" and isinstance(measurement.operator, Mask) and measurement.noise == 0


def in_space(model: Model, trajectory: SamplePlan, measurement: Measurement) -> Measurement:
    """The measurement in the space that is denoised: of a latent model's holes, that of the latents' cells."""
    if not model.codec.latent or not in_cells(trajectory, measurement):
        return measurement
    return measured(model.codec, model.config.codec.factor, measurement)


def kept(denoise: Denoiser, model: Model, given: Given | None) -> Denoiser:
    """The denoiser of an inpainting model with what is known in its prediction, exactly.

    Not of latents: those at a hole's edge hold something of what it was filled with.
    """
    if given is None or given.mask is None or model.codec.latent:
        return denoise
    return restoration.ddnm(denoise, Measurement(Mask(1 - given.mask), given.image * (1 - given.mask)))


def finish(x: Tensor, given: Given | None, measurement: Measurement | None) -> Tensor:
    """A finished image with the pixels that are known put back as they are: bit for bit where a mask has no noise."""
    if given is not None and given.mask is not None:
        x = torch.where(given.mask > 0, x, given.image)
    return x if measurement is None else restoration.project(measurement, x)


def rows(measurement: Measurement, chosen: Sequence[int]) -> Measurement:
    """A measurement of some of the images; one row stands for all of them."""
    y = measurement.y
    picked = y[list(chosen)] if len(y) > 1 else y.expand(len(chosen), *y.shape[1:])
    return replace(measurement, operator=operator_rows(measurement.operator, chosen), y=picked)


def operator_rows(operator: Operator, chosen: Sequence[int]) -> Operator:
    """An operator for some of the images: masks may differ from image to image, nothing else does."""
    if isinstance(operator, Mask) and len(operator.known) > 1:
        return Mask(operator.known[list(chosen)])
    if isinstance(operator, Compose):
        return Compose(tuple(operator_rows(part, chosen) for part in operator.parts))
    return operator


def moved(measurement: Measurement, device: torch.device) -> Measurement:
    """The same measurement with its numbers on a device; operators move their own there when they are applied."""
    return replace(measurement, y=measurement.y.to(device))


def check(
    model: Model, request: Request, trajectory: SamplePlan, given: Given | None, measurement: Measurement | None
) -> None:
    """Refuse a restoration without what is known, or what is known without a restoration. Raises: Error."""
    asked = request.restoration
    if asked is None:
        if given is not None or measurement is not None:
            raise Error("given= or measurement= was passed, but the request has no restoration: set restoration=.")
        return
    trained = model.config.task.kind != "generation"
    if trained and given is None:
        raise Error(f"this model was trained for {model.config.task.kind}: pass what is known of the images, given=.")
    if not trained and given is not None:
        raise Error(
            "given= was passed to a model of whole images, which takes no conditioning image: pass measurement=."
        )
    if (trajectory.method is not None) != (measurement is not None):
        raise Error(
            f"method {trajectory.method} holds the model to a measurement: pass measurement=."
            if trajectory.method
            else "measurement= was passed, but no method holds this model to one: set restoration.method, as ddnm."
        )
    known = {"given": given.image if given else None, "measurement": measurement.y if measurement else None}
    for name, value in known.items():
        if value is not None and len(value) not in (1, request.n):
            raise Error(f"{name} has {len(value)} images; a request of {request.n} takes one, or one each.")
    if measurement is not None:
        made = operator_rows(measurement.operator, [0]).apply(torch.zeros(1, *model.shape)).shape[1:]
        if made != measurement.y.shape[1:]:
            raise Error(
                f"the measurement is {tuple(measurement.y.shape[1:])}, but its operator makes {tuple(made)} of "
                f"images {model.shape}: both must be of one size."
            )


def known_cells(known: Tensor, factor: int) -> Tensor:
    """Pixels that are known, (B, 1, H, W) of 0 and 1, as cells: (B, 1, H/factor, W/factor), 1 where all are.

    Raises:
        Error: sides that are no multiples of the factor, or no such cell.
    """
    if known.shape[2] % factor or known.shape[3] % factor:
        raise Error(
            f"a mask of {known.shape[3]}x{known.shape[2]} pixels has no whole cells of {factor}: extend the image to "
            f"multiples of {factor}."
        )
    cells = 1 - F.max_pool2d(1 - known, factor)
    empty = int((cells.flatten(1).amax(1) == 0).sum())
    if empty:
        raise Error(
            f"this mask leaves no cell of {factor}x{factor} pixels whole, so this model of latents would be held to "
            f"nothing: use --method dps, which looks at the single pixels through the decoder."
        )
    return cells


def measured(codec: Codec, factor: int, measurement: Measurement) -> Measurement:
    """What is known of the latents of images measured by a mask without noise."""
    operator = measurement.operator
    assert isinstance(operator, Mask) and measurement.noise == 0
    known = operator.known.to(measurement.y)
    cells = known_cells(known, factor)
    hole = 1 - known.expand(len(measurement.y), -1, -1, -1)
    images = filled(measurement.y, hole)
    z = torch.cat([codec.encode(image) for image in torch.split(images, 1)])
    return Measurement(Mask(cells), z * cells)


ROUNDING = 1 / 127.5 / 12**0.5  # std of rounding to 8 bits: what a deblurred image's noise is at least


def conditioning_of(
    model: Model, asked: Restoration, chosen: str | None, image: Tensor, hole: Tensor | None
) -> tuple[Given | None, Measurement | None]:
    """What the model is given, and what it is held to, of images (B, C, h, w) with holes (B, 1, h, w)."""
    noise = asked.noise / 127.5
    given = None
    if model.config.task.kind != "generation":
        given = Given(image, hole, torch.full((len(image),), noise) if noise else None)
    if chosen is None:
        return given, None
    scale = asked.upscale or 1
    size = (scale * image.shape[-2], scale * image.shape[-1])
    operator = operator_of(asked, size, hole)
    y = _measured(asked, image)
    return given, Measurement(operator, y, max(noise, ROUNDING if asked.deblur else 0.0))


def operator_of(asked: Restoration, size: tuple[int, int], hole: Tensor | None) -> Operator:
    """What the image went through, as one operator."""
    resampling: list[Separable] = []
    if asked.upscale:
        resampling += shrinking(asked.upscale, size, asked.down or "area", asked.deblur or 0.0)
    elif asked.deblur:
        resampling.append(gaussian_blur(asked.deblur, size))
    parts: list[Operator] = []
    if resampling:
        rows, columns = resampling[0].rows, resampling[0].columns
        for part in resampling[1:]:
            rows, columns = part.rows @ rows, part.columns @ columns
        parts.append(Separable(rows, columns))
    if asked.colorise:
        parts.append(Greyscale())
    if hole is not None:
        parts.append(Mask(1 - hole))
    return Identity() if not parts else parts[0] if len(parts) == 1 else Compose(tuple(parts))


def _measured(asked: Restoration, image: Tensor) -> Tensor:
    return image[:, :1] if asked.colorise else image  # grey: all channels are equal
