"""A distance of pictures that sees structure before pixels: of what a network's layers say (Zhang et al. 2018, eq. 1).

    d(x, y) = sum over layers of mean over positions of |f(x) / |f(x)| - f(y) / |f(y)||^2

f is a layer's activations, the norm is over channels. LPIPS has learned weights a channel and layers of AlexNet or VGG;
this has neither, is named after its own network ("lite0-perceptual"), and its values mean nothing beside LPIPS's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kuosan.errors import Error, unknown
from kuosan.features.lite0 import STAGES, EfficientNetLite0
from kuosan.features.names import FEATURES, features
from kuosan.features.network import checked, prepare


@dataclass(frozen=True)
class Perceptual:
    """A named distance; `hash` is the SHA-256 of its network's weights."""

    name: str
    size: int
    hash: str
    resizing: str
    network: EfficientNetLite0

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, *, batch: int = 32) -> Tensor:
        """Of uint8 or [-1, 1] pictures (B, C, H, W), pair by pair: (B,) float32, 0 for equal ones.

        Raises:
            Error: pictures of other shapes, or no pictures at all.
        """
        for side in (x, y):
            checked(side, self.name)
        if x.shape != y.shape or not len(x):
            raise Error(f"{self.name} compares pictures of one shape; got {tuple(x.shape)} and {tuple(y.shape)}.")
        pairs = zip(torch.split(x, batch), torch.split(y, batch))
        return torch.cat([self._distance(prepare(a, self.size), prepare(b, self.size)) for a, b in pairs])

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(len(a))
        for p, q in zip(layers(self.network, a), layers(self.network, b)):
            total += (F.normalize(p, eps=1e-10) - F.normalize(q, eps=1e-10)).square().sum(dim=1).mean(dim=(1, 2))
        return total


def layers(network: EfficientNetLite0, x: Tensor) -> list[Tensor]:
    """What the stages end in, before each halving of the size and at the end: pictures in [0, 255] -> (B, C, H, W)."""
    x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
    x = F.relu6(network.stem(x))
    found, block = [], 0
    for count, _, stride, _, _ in STAGES:
        if stride == 2:
            found.append(x)
        for _ in range(count):
            x = network.blocks[block](x)
            block += 1
    return [*found, x]


def perceptual(name: str = "lite0") -> Perceptual:
    """The perceptual distance of the feature network `name`, one of those that come as a package.

    Raises:
        Error: an unknown name, or its weights are not installed.
    """
    if name not in FEATURES:
        raise unknown("perceptual distance", name, FEATURES)
    network = features(name)
    assert isinstance(network.network, EfficientNetLite0)
    return Perceptual(f"{name}-perceptual", network.size, network.hash, network.resizing, network.network)
