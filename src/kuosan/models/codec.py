"""What a model's network denoises: images themselves, or an autoencoder's latents of them. Torch-free.

z = (mean - shift) * scale        shift and scale, a number a latent channel, are measured from the training images

The codec of pixel space, which changes nothing, and what every codec can do. Torch-free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from kuosan import limits
from kuosan.data.config import CHANNELS_OF
from kuosan.errors import Error, plural
from kuosan.networks.autoencoder_config import AutoencoderConfig

if TYPE_CHECKING:
    from torch import Tensor

FILLED = {"option": False}  # of a field that is filled in from the autoencoder or the images, and never typed
NEAR = 0.02  # two measurements of one latent space differ by no more than this part of a standard deviation

Shape = tuple[int, int, int]  # channels, height, width


@dataclass(frozen=True)
class Pixels:
    """The network denoises images themselves."""

    kind: Literal["pixels"] = "pixels"

    @property
    def factor(self) -> int:
        """Pixels a side of one cell of what is denoised."""
        return 1

    def sample_shape(self, shape: Shape) -> Shape:
        """What is denoised of images of a shape (C, H, W): themselves."""
        return shape


@dataclass(frozen=True)
class Latents:
    """The network denoises an autoencoder's latents, each channel of mean 0 and standard deviation 1 over the data."""

    kind: Literal["latents"] = "latents"
    run: str = ""  # latents: the run of an autoencoder; or of another latent model, whose autoencoder is then taken
    network: AutoencoderConfig = field(default_factory=AutoencoderConfig, metadata=FILLED)  # as the run has it
    shift: tuple[float, ...] = field(default=(), metadata=FILLED)  # of each latent channel: the data's mean
    scale: tuple[float, ...] = field(default=(), metadata=FILLED)  # of each latent channel: 1 / the data's std
    weights: str = field(default="", metadata=FILLED)  # sha256 of the autoencoder's file of weights

    def __post_init__(self) -> None:
        limits.check(self)
        for name in ("shift", "scale"):
            values = tuple(float(value) for value in getattr(self, name))  # YAML and JSON have no tuples
            object.__setattr__(self, name, values)
            if len(values) not in (0, self.network.latent_channels):
                raise Error(
                    f"codec.{name} has {len(values)} numbers for {self.network.latent_channels} latent channels: it is "
                    f"measured; leave it out."
                )
            if not all(math.isfinite(value) and (name == "shift" or value > 0) for value in values):
                raise Error(f"codec.{name} = {list(values)} is not allowed: it is measured; leave it out.")

    @property
    def factor(self) -> int:
        """Pixels a side of one latent cell."""
        return self.network.factor

    def sample_shape(self, shape: Shape) -> Shape:
        """The latents' shape of images of a shape (C, H, W).

        Raises:
            Error: images that the autoencoder does not take.
        """
        channels, height, width = shape
        name = f"the autoencoder {self.run}" if self.run else "this autoencoder"
        if channels != self.network.in_channels:
            colour = CHANNELS_OF.get(self.network.in_channels, "rgb")
            raise Error(
                f"{name} takes images of {plural(self.network.in_channels, 'channel')}, these have {channels}: set "
                f"--channels {colour}, or name another --codec."
            )
        if height % self.factor or width % self.factor:
            raise Error(
                f"{name} has cells of {self.factor} pixels, so the sides of images are multiples of {self.factor}, "
                f"not {height}x{width}: set --size to one."
            )
        return self.network.latent_shape(shape)


Codecs = Pixels | Latents


def apart(one: Codecs, other: Codecs) -> str | None:
    """Why what one model denoises is not what another does, in words that follow a name; None if it is the same."""
    if isinstance(one, Pixels) or isinstance(other, Pixels):
        if one.kind == other.kind:
            return None
        words = {"pixels": "images themselves", "latents": "an autoencoder's latents"}
        return f"sees {words[other.kind]}, and this model {words[one.kind]}"
    if one.weights != other.weights:
        return (
            f"sees latents of another autoencoder ({other.run or 'unnamed'}, {other.weights[:10]}) than this model "
            f"({one.run or 'unnamed'}, {one.weights[:10]})"
        )
    off = [abs(a - b) * s for a, b, s in zip(one.shift, other.shift, one.scale)]
    off += [abs(a / b - 1) for a, b in zip(one.scale, other.scale)]
    if max(off, default=0.0) > NEAR:
        return (
            f"was trained on other images, whose latents have another mean or spread (by {max(off):.2f} of a "
            f"standard deviation)"
        )
    return None


class Codec(Protocol):
    """Between images (B, C, H, W) in [-1, 1] and what a network denoises, (B, c, h, w)."""

    @property
    def latent(self) -> bool:
        """Whether what is denoised is not the image itself."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        ...

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Images to what is denoised; with noise, of its shape, a draw of the posterior, else its mean."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """What is denoised to images, not clamped; gradients pass."""
        ...

    def finish(self, z: Tensor, alone: bool = True) -> Tensor:
        """What was denoised to finished images; `alone`: one by one, so that their bits depend on nothing beside."""
        ...

    def tiled(self, side: int) -> Codec:
        """The same for images of any size, in tiles of at least `side` pixels."""
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
