"""The codec of pixel space, which changes nothing, and what every codec can do. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Codec(Protocol):
    """Between pictures (B, C, H, W) in [-1, 1] and what a network denoises, (B, c, h, w)."""

    @property
    def latent(self) -> bool:
        """Whether what is denoised is not the picture itself."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        ...

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pictures to what is denoised; with noise, of its shape, a draw of the posterior, else its mean."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """What is denoised to pictures, not clamped; gradients pass."""
        ...

    def finish(self, z: Tensor, alone: bool = True) -> Tensor:
        """What was denoised to finished pictures; `alone`: one by one, so that their bits depend on nothing beside."""
        ...

    def tiled(self, side: int) -> Codec:
        """The same for pictures of any size, in tiles of at least `side` pixels."""
        ...


class PixelCodec:
    """The identity."""

    latent, nbytes = False, 0

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z

    def finish(self, z: Tensor, alone: bool = True) -> Tensor:
        return z

    def tiled(self, side: int) -> PixelCodec:
        return self


PIXELS = PixelCodec()
