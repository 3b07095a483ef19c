"""Initial weights as a pure function of a seed and each weight's name; torch's global generator is not touched."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kuosan import seeds
from kuosan.networks.layers import Attention, ResidualBlock
from kuosan.networks.transformer import Pooled, Transformer


@torch.no_grad()
def initialise(network: nn.Module, seed: int) -> None:
    """Draw every weight of a U-Net: uniform of variance 2 / (fan_in + fan_out), biases zero (Ho et al. 2020).

    Zero as well: the last layer of every residual branch and of the network, so that a block begins as its
    shortcut. Label rows are N(0, 0.02²), the null label's row zero. One stream a weight: adding a layer leaves
    the draws of the others as they were.
    """
    for name, module in network.named_modules():
        match module:
            case nn.GroupNorm() | nn.LayerNorm():
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            case nn.Conv2d() | nn.Linear():
                _fan_average(module.weight, seed, name)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            case nn.Embedding():
                rows = seeds.rng(seed, f"init {name}").standard_normal(tuple(module.weight.shape), dtype="float32")
                module.weight.copy_(torch.from_numpy(0.02 * rows))
                module.weight[-1].zero_()
    for module in network.modules():
        match module:
            case ResidualBlock():
                nn.init.zeros_(module.conv2.weight)
            case Attention() | Transformer():
                nn.init.zeros_(module.out.weight)
            case Pooled():
                nn.init.zeros_(module.weight)
    decoder = getattr(network, "decoder", None)
    if decoder is not None:
        nn.init.zeros_(decoder.exit.weight)


def _fan_average(weight: Tensor, seed: int, name: str) -> None:
    area = math.prod(weight.shape[2:])
    bound = math.sqrt(6 / (area * (weight.shape[0] + weight.shape[1])))  # uniform(-b, b) has variance b²/3
    draws = seeds.rng(seed, f"init {name}").random(tuple(weight.shape), dtype="float32")
    weight.copy_(torch.from_numpy((2 * draws - 1) * bound))
