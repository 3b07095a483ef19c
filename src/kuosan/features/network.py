"""What a feature network is to its users: pictures in, one float32 row a picture out.

Pictures are judged as they would be written, in 8 bits: [-1, 1] pictures are rounded to the 256 levels first, so a
picture and its PNG have the same features. They are resized in float with antialiasing (Parmar et al. 2022 show what
other resizing does to such distances), grey is repeated to three channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kuosan.errors import Error


@dataclass(frozen=True)
class Features:
    """A named feature network; `hash` is the SHA-256 of its weights, to be printed beside every score."""

    name: str
    dim: int
    size: int
    hash: str
    network: Callable[[Tensor], Tensor]  # (B, 3, size, size) in [0, 255] -> (B, dim)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, *, batch: int = 64) -> Tensor:
        """Features of uint8 or [-1, 1] pictures (B, C, H, W), C 1 or 3, taken `batch` at a time: (B, dim)."""
        if pictures.ndim != 4 or pictures.shape[1] not in (1, 3):
            raise Error(
                f"features {self.name!r} read pictures (B, C, H, W) with C 1 or 3, got shape {tuple(pictures.shape)}: "
                "composite alpha on white and give grey or RGB pictures."
            )
        if pictures.dtype != torch.uint8 and not pictures.is_floating_point():
            raise Error(f"features {self.name!r} read uint8 or [-1, 1] float pictures, got {pictures.dtype}.")
        rows = [self.network(prepare(part, self.size)) for part in torch.split(pictures, batch)]
        return torch.cat(rows) if rows else torch.empty(0, self.dim)


def prepare(pictures: Tensor, size: int) -> Tensor:
    """Rounds to 8 bits, repeats grey, resizes: uint8 or [-1, 1] (B, C, H, W) -> [0, 255] (B, 3, size, size)."""
    if pictures.dtype != torch.uint8:
        pictures = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round()
    x = pictures.float().expand(-1, 3, -1, -1)
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    return x
