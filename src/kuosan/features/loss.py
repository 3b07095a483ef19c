"""A perceptual distance that gradients flow through: what an autoencoder is trained with (Zhang et al. 2018, eq. 1).

    d(x, y) = mean over layers of mean over positions of |f(x) / |f(x)| - f(y) / |f(y)||^2

As `features.perceptual`, but at the pictures' own size and without rounding to 8 bits, and a mean over layers, so that
its size depends little on the network: 0 for equal pictures, at most 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kuosan.features.names import perceptual_features

LEAST = 32  # pixels a side, below which lite0's last kernels are larger than what they see


@dataclass(frozen=True)
class PerceptualLoss:
    """A frozen network's layers, compared; `hash` is the SHA-256 of its weights."""

    name: str
    hash: str
    network: nn.Module
    layers: Callable[[Tensor], list[Tensor]]  # pictures (B, 3, H, W) in [-1, 1] -> activations (B, C, h, w)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Of [-1, 1] pictures (B, 1 or 3, H, W), pair by pair: (B,) float32. Gradients flow to y, not to x."""
        with torch.no_grad():
            wanted = [_unit(layer) for layer in self.layers(x.expand(-1, 3, -1, -1))]
        made = [_unit(layer) for layer in self.layers(y.expand(-1, 3, -1, -1))]
        each = [(p - q).square().sum(1).mean((1, 2)) for p, q in zip(wanted, made, strict=True)]
        return torch.stack(each).mean(0)

    def to(self, device: torch.device) -> PerceptualLoss:
        """The same on another device, where pictures must be then."""
        self.network.to(device)
        return self


def _at_least(x: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W), enlarged until both sides have so many pixels; larger ones as they are."""
    if min(x.shape[-2:]) >= side:
        return x
    scale = side / min(x.shape[-2:])
    size = [max(side, round(scale * length)) for length in x.shape[-2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def _unit(layer: Tensor) -> Tensor:
    return F.normalize(layer.float(), eps=1e-6)


def perceptual_loss(name: str) -> PerceptualLoss | None:
    """The loss on the features `name` (lite0, random, auto), None for `none`.

    Raises:
        Error: an unknown name; its weights are not installed (the message holds the command); damaged weights.
    """
    name = perceptual_features(name)
    if name == "none":
        return None
    if name == "random":
        from kuosan.features.network import weights_hash
        from kuosan.features.pyramid import RandomPyramid

        pyramid = RandomPyramid()
        return PerceptualLoss(name, weights_hash(pyramid), pyramid, pyramid)
    from kuosan.features.lite0 import EfficientNetLite0
    from kuosan.features.names import features
    from kuosan.features.perceptual import layers

    found = features(name)
    network = found.network
    assert isinstance(network, EfficientNetLite0)

    def seen(x: Tensor) -> list[Tensor]:
        return layers(network, (_at_least(x, LEAST) + 1) * 127.5)

    return PerceptualLoss(name, found.hash, network, seen)
