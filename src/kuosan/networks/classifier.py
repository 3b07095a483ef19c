"""A classifier of noisy or clean pictures: a U-Net's first half, averaged over the picture (Dhariwal & Nichol 2021, 4).

logits = head(mean(silu(norm(encoder(x, t).h))))
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kuosan.errors import Error
from kuosan.networks.classifier_config import ClassifierConfig
from kuosan.networks.initialise import initialise
from kuosan.networks.norm import GroupNorm
from kuosan.networks.unet import Encoder, full_precision


class Classifier(nn.Module):
    """`network(x, t)` -> logits (B, classes) float32; a judge of clean pictures (`noisy=False`) is told no t.

    Weights are a function of `config` and `seed` alone; on the meta device none are made.
    """

    def __init__(self, config: ClassifierConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        device = torch.get_default_device()
        with torch.device("meta"):
            self.encoder = Encoder(config.encoder)
            width = config.encoder.widths[-1]
            self.norm = GroupNorm(config.groups, width, config.norm_eps)
            self.head = nn.Linear(width, config.classes)
        if device.type != "meta":
            self.to_empty(device=device)
            initialise(self, seed)

    def forward(
        self,
        x: Tensor,  # (B, in_channels, H, W)
        t: Tensor | None = None,  # () | (1,) | (B,), whole or fractional
    ) -> Tensor:  # (B, classes) float32, float64 where the weights are
        if (t is None) == self.config.noisy:
            raise Error(
                "this classifier knows noisy pictures: it needs their time t."
                if self.config.noisy
                else "this classifier is a judge of clean pictures (noisy is false): it takes no time t."
            )
        h = self.encoder(x, x.new_zeros(1) if t is None else t).h
        h = self.norm(h, act=True)
        exact = torch.promote_types(h.dtype, torch.float32)
        with full_precision(h):
            return F.linear(h.to(exact).mean((2, 3)), self.head.weight.to(exact), self.head.bias.to(exact))


def parameter_count(config: ClassifierConfig) -> int:
    """How many weights a `Classifier(config)` has, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in Classifier(config).parameters())
