"""What training minimises: the weighted error of the network's prediction at drawn levels (Ho et al. 2020, eq. 14)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kuosan.diffusion.loss import simple_loss

if TYPE_CHECKING:
    from kuosan.device import Compute
    from kuosan.diffusion.level import Level
    from kuosan.model import ModelConfig


@dataclass(frozen=True)
class Diffusion:
    """The diffusion objective of one model on one device."""

    model: ModelConfig
    weight: str
    compute: Compute

    def losses(self, network: nn.Module, x0: Tensor, level: Level, eps: Tensor) -> Tensor:
        """Each picture's loss: (B,) float32. x0 and eps (B, C, H, W), level (B,)."""
        device = self.compute.device
        x0 = x0.to(device, non_blocking=True)
        eps = eps.to(device, non_blocking=True)

        def autocast(x: Tensor, t: Tensor) -> Tensor:
            with self._autocast():
                out: Tensor = network(x, t)
                return out

        return simple_loss(
            autocast, self.model.prediction, x0, level, eps, weight_name=self.weight, sigma_data=self.model.sigma_data
        )

    def _autocast(self) -> AbstractContextManager[object]:
        if self.compute.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.compute.device.type, dtype=self.compute.dtype)
