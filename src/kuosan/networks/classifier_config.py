"""What a classifier is made of: `ClassifierConfig`, and the shape we give an image size by default. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from kuosan import limits
from kuosan.errors import Error
from kuosan.networks.config import Resample, Size, TimeConditioning, UNetConfig, default_unet, is_whole


@dataclass(frozen=True)
class ClassifierConfig:
    """The fields of `networks.classifier.Classifier`: those of a U-Net's first half, and of the head on it."""

    kind: Literal["classifier"] = "classifier"  # names an image's class instead of denoising it
    noisy: bool = True  # classifier: of noisy images, given the timestep; false: a judge of clean ones
    in_channels: int = 3  # channels of x
    classes: int = 10  # classifier: how many classes there are
    channels: int = 64  # width at the first level
    multipliers: tuple[int, ...] = (1, 2, 2)  # width of each level = channels * multiplier
    blocks: int = 1  # residual blocks a level
    attention: tuple[bool, ...] = (False, False, True)  # self-attention after each block of the level
    middle_attention: bool = True  # self-attention behind the coarsest level
    head_channels: int | None = None  # width of one attention head; None = one head
    time_conditioning: TimeConditioning = "add"  # DDPM adds; ADM scales and shifts after the norm
    resample: Resample = "conv"  # stride-2 convs; DDPM's bottom-right padding; ADM's residual blocks
    dropout: float = 0.0  # in residual blocks
    groups: int = 32  # groups of every GroupNorm
    norm_eps: float = 1e-5  # of every GroupNorm
    pool_side: int = 0  # classifier: cells a side over which a query attends at the end (ADM's); 0: their mean
    patch: int = 1  # pixel-unshuffle at the entrance
    checkpointing: bool = False  # recompute each residual block in the backward pass: less memory, 1.3x the time

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))  # YAML and JSON have no tuples
        object.__setattr__(self, "attention", tuple(self.attention))
        limits.check(self)
        if not is_whole(self.classes, 2):
            raise Error(f"ClassifierConfig.classes is {self.classes!r}; allowed: whole numbers from 2.")
        if not is_whole(self.pool_side, 0):
            raise Error(f"ClassifierConfig.pool_side is {self.pool_side!r}; allowed: whole numbers from 0.")
        _ = self.encoder

    @property
    def encoder(self) -> UNetConfig:
        """The U-Net whose first half this is. Raises: Error for impossible values, in this class's name."""
        own = {field.name for field in fields(self)} - {"kind", "noisy", "classes", "pool_side"}
        try:
            return UNetConfig(out_channels=self.in_channels, **{name: getattr(self, name) for name in own})
        except Error as error:
            raise Error(str(error).replace("UNetConfig.", "ClassifierConfig.")) from None

    @property
    def layers(self) -> int:
        """Residual blocks and attentions, at least; each has several weights."""
        return sum(self.blocks * (1 + on) for on in self.attention) + 2 + self.middle_attention

    @property
    def factor(self) -> int:
        """Height and width of an image must be multiples of this."""
        return self.encoder.factor


def default_classifier(
    shape: tuple[int, int, int],
    size: Size = "small",
    *,
    classes: int,
    noisy: bool = True,
    latent: bool = False,
    step: int = 0,
    version: int = 3,
) -> ClassifierConfig:
    """A classifier for images of `shape` (C, H, W): the first half of `default_unet` of that size.

    Raises: `Error` for an unknown size, a side that cannot be halved often enough, or fewer than two classes.
    """
    whole = default_unet(shape, size, latent=latent, step=step, version=version)
    same = {field.name for field in fields(ClassifierConfig)} - {"kind", "noisy", "classes", "pool_side"}
    return ClassifierConfig(noisy=noisy, classes=classes, **{name: getattr(whole, name) for name in same})
