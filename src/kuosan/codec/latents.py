"""An autoencoder as a codec: z = (mean - shift) * scale, and back; and how shift and scale are measured.

Latents as denoised have, over the training pictures, mean 0 and standard deviation 1 in each channel, which is what a
noise schedule made for pictures assumes; Stable Diffusion's one number 0.18215 is 1/std of all channels at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from kuosan.errors import Error
from kuosan.networks.autoencoder import Autoencoder
from kuosan.networks.tiled_autoencoder import SIDE, TiledAutoencoder

if TYPE_CHECKING:
    from kuosan.codec.config import Latents
    from kuosan.networks.autoencoder import Moments


class Coder(Protocol):
    """What is asked of an autoencoder: `networks.autoencoder.Autoencoder`, or a module with the same two methods."""

    def encode(self, x: Tensor) -> Moments:
        """Pictures (B, C, H, W) to their latents' mean and log variance, (B, c, h, w) each."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Latents to pictures."""
        ...


class LatentCodec:
    """An autoencoder with the measured shift and scale of its latents."""

    latent = True

    def __init__(self, config: Latents, network: Coder) -> None:
        assert config.shift and config.scale, "a codec is used once its latents are measured"
        self.config, self.network = config, network
        self.shift, self.scale = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (config.shift, config.scale))

    @property
    def nbytes(self) -> int:
        """Bytes of the autoencoder's weights."""
        assert isinstance(self.network, nn.Module)
        return sum(p.numel() * p.element_size() for p in self.network.parameters())

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Pictures (B, C, H, W) in [-1, 1] -> z (B, c, h, w) float32: the posterior's mean, or the draw noise picks."""
        moments = self.network.encode(x)
        return self.scaled(moments.mean if noise is None else moments.sample(noise.to(moments.mean)))

    def scaled(self, raw: Tensor) -> Tensor:
        """The autoencoder's own latents as they are denoised."""
        return (raw.float() - self.shift.to(raw.device)) * self.scale.to(raw.device)

    def raw(self, z: Tensor) -> Tensor:
        """Latents as they are denoised as the autoencoder's own."""
        return z.float() / self.scale.to(z.device) + self.shift.to(z.device)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, c, h, w) -> pictures (B, C, H, W) float32, not clamped."""
        return self.network.decode(self.raw(z)).float()

    def finish(self, z: Tensor, alone: bool = True) -> Tensor:
        """z (B, c, h, w) -> finished pictures in [-1, 1]."""
        parts = torch.split(z, 1) if alone else (z,)
        return torch.cat([self.decode(part) for part in parts]).clamp(-1, 1)

    def tiled(self, side: int) -> LatentCodec:
        """The same for pictures of any size, in tiles of `side` pixels, or of as many as are usual if that is more."""
        if isinstance(self.network, TiledAutoencoder):
            return self
        assert isinstance(self.network, Autoencoder)
        return LatentCodec(self.config, TiledAutoencoder(self.network, max(side, SIDE)))


@dataclass
class Measured:
    """Sums over latents, part by part, from which shift and scale follow; float64."""

    count: int = 0  # cells
    total: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))  # (c,) of the posterior's means
    squares: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))  # of means² + variances

    def add(self, mean: Tensor, std: Tensor) -> None:
        """Count latents' posteriors, (B, c, h, w) each."""
        m, s = mean.double(), std.double()
        dims = (0, 2, 3)
        total, squares = m.sum(dims).cpu(), (m.square() + s.square()).sum(dims).cpu()
        self.total = self.total + total if len(self.total) else total
        self.squares = self.squares + squares if len(self.squares) else squares
        self.count += m.numel() // m.shape[1]

    def shift_and_scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and 1/std of each channel of draws from the posteriors; as float32 keeps them.

        Raises:
            Error: a channel that is the same everywhere, or is not finite.
        """
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        wild = [i for i, s in enumerate(std.tolist()) if not s < float("inf")]
        if wild:
            raise Error(
                f"latent channel {wild[0]} of this autoencoder is not finite over the training pictures: its training "
                f"went astray; take an earlier save of it, or train it anew with a lower --train.lr."
            )
        bad = [i for i, s in enumerate(std.tolist()) if not s > 1e-6]
        if bad:
            raise Error(
                f"latent channel {bad[0]} of this autoencoder has standard deviation {float(std[bad[0]]):g} over the "
                f"training pictures, so it holds nothing: train the autoencoder longer, or take another."
            )
        return _numbers(mean), _numbers(1 / std)


def measure(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Shift and scale of latents whose posteriors' means and standard deviations come in parts."""
    measured = Measured()
    for mean, std in parts:
        measured.add(mean, std)
    return measured.shift_and_scale()


def _numbers(values: Tensor) -> tuple[float, ...]:
    """Numbers that a YAML file and a float32 tensor both keep: six digits."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())
