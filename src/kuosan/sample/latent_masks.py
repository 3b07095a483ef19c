"""A mask of pixels brought to the cells of latents: what of a picture's latents is known where a part of it is missing.

A cell is known only if all its pixels are. What is known of it is what the encoder makes of the picture with its hole
filled smoothly: an encoder sees beyond a cell, and a smooth filling is the least strange thing to see there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from kuosan.diffusion.operators import Mask, Measurement
from kuosan.errors import Error
from kuosan.tasks.condition import filled

if TYPE_CHECKING:
    from torch import Tensor

    from kuosan.codec.pixels import Codec


def known_cells(known: Tensor, factor: int) -> Tensor:
    """Pixels that are known, (B, 1, H, W) of 0 and 1, as cells: (B, 1, H/factor, W/factor), 1 where all are.

    Raises:
        Error: sides that are no multiples of the factor, or no such cell.
    """
    if known.shape[2] % factor or known.shape[3] % factor:
        raise Error(
            f"a mask of {known.shape[3]}x{known.shape[2]} pixels has no whole cells of {factor}: extend the picture to "
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
    """What is known of the latents of pictures measured by a mask without noise."""
    operator = measurement.operator
    assert isinstance(operator, Mask) and measurement.noise == 0
    known = operator.known.to(measurement.y)
    cells = known_cells(known, factor)
    hole = 1 - known.expand(len(measurement.y), -1, -1, -1)
    pictures = filled(measurement.y, hole)
    z = torch.cat([codec.encode(picture) for picture in torch.split(pictures, 1)])
    return Measurement(Mask(cells), z * cells)
