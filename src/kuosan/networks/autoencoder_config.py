"""What a KL autoencoder is made of: `AutoencoderConfig`, and the shape we give an image size by default. Torch-free.

Stable Diffusion's (Rombach et al. 2022) is channels 128, multipliers (1, 2, 4, 4), blocks 2, latent_channels 4: the
defaults, of factor 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from kuosan import limits
from kuosan.errors import Error, plural, unknown
from kuosan.networks.config import Origin, Size, check_counts, is_whole, refused


class _AutoencoderShape(NamedTuple):
    channels: int  # at the first level
    widest: int  # multipliers are 1, 2, 4, ... up to this
    blocks: int
    groups: int
    discriminator: int  # the discriminator's channels, where one is trained


_SIZES = {
    "tiny": _AutoencoderShape(16, 2, 1, 8, 16),
    "small": _AutoencoderShape(32, 2, 1, 8, 32),
    "medium": _AutoencoderShape(64, 4, 2, 32, 64),
    "large": _AutoencoderShape(128, 4, 2, 32, 64),  # Stable Diffusion's at factor 8
}
_ATTENDED = 32  # cells a side of the middle, at most, where it attends by default


@dataclass(frozen=True)
class AutoencoderConfig:
    """The fields of `networks.autoencoder.Autoencoder`; every impossible value is refused when the config is made."""

    kind: Literal["autoencoder"] = "autoencoder"  # turns images into latents and back (Rombach et al. 2022)
    in_channels: int = 3  # channels of an image
    latent_channels: int = 4  # autoencoder: channels of a latent; 4 in Stable Diffusion
    channels: int = 128  # width at the first level
    multipliers: tuple[int, ...] = (1, 2, 4, 4)  # width of each level = channels * multiplier
    blocks: int = 2  # residual blocks a level of the encoder; one more in the decoder
    middle_attention: bool = True  # self-attention, one head, at the coarsest level's middle
    groups: int = 32  # groups of every GroupNorm
    norm_eps: float = 1e-6  # of every GroupNorm
    patch: int = 1  # pixel-unshuffle at the entrance, pixel-shuffle at the exit: 2 spares a small net the finest level
    critic_channels: int = 0  # autoencoder: width of the discriminator that trains it, at its first layer; 0: none
    critic_layers: int = 3  # autoencoder: halvings in the discriminator; 3: patches of 70 pixels (Isola et al. 2017)
    checkpointing: bool = False  # recompute each residual block in the backward pass: less memory, 1.3x the time
    origin: Origin = field(
        default=(), compare=False, metadata={"option": False}
    )  # what diffusers' config said beside (scaling_factor ...), for the way back; changes nothing here

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", tuple((name, value) for name, value in self.origin))
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # YAML and JSON have no tuples
        limits.check(self)
        counts = ("in_channels", "latent_channels", "channels", "blocks", "groups", "patch", "critic_layers")
        check_counts(self, counts)
        if not is_whole(self.critic_channels, 0) or self.critic_channels % 4:
            raise refused(
                self, "critic_channels", "multiples of 4, or 0 for no discriminator", "64 is common, 32 on a CPU."
            )
        if not (self.norm_eps > 0 and math.isfinite(self.norm_eps)):
            raise refused(self, "norm_eps", "small positive numbers", "1e-6 is Stable Diffusion's.")
        if self.patch & (self.patch - 1):
            raise refused(self, "patch", "1, 2, 4, ...", "1 is Stable Diffusion's, 2 is quicker on a CPU.")
        if not self.multipliers or not all(is_whole(m, 1) for m in self.multipliers):
            raise refused(self, "multipliers", "whole numbers from 1, one a level", "Example: (1, 2, 2) for factor 4.")
        for width in self.widths:
            if width % self.groups:
                cure = f"A level has {width} channels: choose groups that divide {math.gcd(*self.widths)}."
                raise refused(self, "groups", f"divisors of every level's channels {self.widths}", cure)
        if max(self.widths) > limits.WIDTH[1]:
            raise refused(self, "channels", f"at most {limits.WIDTH[1]:,} at a level", "Give smaller multipliers.")
        limits.check_layers(self, self.layers)

    @property
    def levels(self) -> int:
        """How many resolutions there are."""
        return len(self.multipliers)

    @property
    def layers(self) -> int:
        """Residual blocks, at least; each has several weights."""
        return self.levels * (2 * self.blocks + 1) + 4

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each level, the first the finest."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def factor(self) -> int:
        """Pixels a side of one latent cell; height and width of an image must be multiples of it."""
        return self.patch << (self.levels - 1)

    @property
    def alone(self) -> AutoencoderConfig:
        """The same without a discriminator: what is needed to use it."""
        return replace(self, critic_channels=0, critic_layers=3)

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """An image's shape (C, H, W) -> its latent's.

        Raises:
            Error: another number of channels, or sides that are no multiples of `factor`.
        """
        count, height, width = shape
        if count != self.in_channels:
            raise Error(f"this autoencoder takes images of {plural(self.in_channels, 'channel')}, not {count}.")
        if height % self.factor or width % self.factor:
            raise _indivisible(height, width, self.factor)
        return self.latent_channels, height // self.factor, width // self.factor


def default_autoencoder(
    shape: tuple[int, int, int], size: Size = "small", factor: int = 4, *, discriminator: bool = False, crop: int = 0
) -> AutoencoderConfig:
    """An autoencoder for images of `shape` (C, H, W) whose latents are `factor` times smaller a side.

    Its discriminator has three layers, fewer where less than 24 pixels a side are seen: those of the image, or `crop`.

    Raises: `Error` for an unknown size, a factor that is no power of two from 2, or sides that are no multiples of it.
    """
    if size not in _SIZES:
        raise unknown("network size", size, _SIZES)
    if not is_whole(factor, 2) or factor & (factor - 1):
        raise Error(f"factor = {factor!r} of an autoencoder is not allowed: 2, 4, 8, 16, ...; 4 and 8 are common.")
    count, height, width = shape
    if height % factor or width % factor:
        raise _indivisible(height, width, factor)
    plan = _SIZES[size]
    return AutoencoderConfig(
        in_channels=count,
        channels=plan.channels,
        multipliers=tuple(min(2**i, plan.widest) for i in range(factor.bit_length())),
        blocks=plan.blocks,
        middle_attention=max(height, width) // factor <= _ATTENDED,
        groups=plan.groups,
        critic_channels=plan.discriminator if discriminator else 0,
        critic_layers=most_layers(crop or min(height, width)) if discriminator else 3,
    )


def most_layers(side: int) -> int:
    """Layers of a discriminator that sees `side` pixels, three at most: behind its halvings two convolutions take one
    cell each, so that it needs 3 · 2^layers."""
    return max(1, min(3, (side // 3).bit_length() - 1))


def _indivisible(height: int, width: int, factor: int) -> Error:
    near = "x".join(str(factor * max(1, round(side / factor))) for side in (height, width))
    return Error(
        f"images of {height}x{width} do not fit an autoencoder of factor {factor}: sides must be multiples of "
        f"{factor}. Resize or pad to {near}, or give fewer multipliers."
    )
