"""What training minimises: the weighted error of the network's prediction at drawn levels (Ho et al. 2020, eq. 14)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from kuosan.diffusion.loss import simple_loss, weight
from kuosan.tasks.generation import condition

if TYPE_CHECKING:
    import numpy as np

    from kuosan.data.pictures import Batch
    from kuosan.device import Compute
    from kuosan.diffusion.denoiser import Network
    from kuosan.diffusion.level import Level
    from kuosan.model import ModelConfig
    from kuosan.train.draws import Drawn


class Objective(Protocol):
    """What the loop, the monitor and the estimate ask of an objective."""

    @property
    def compute(self) -> Compute:
        """Where and in which precision."""
        ...

    def level(self, u: np.ndarray) -> Level:
        """The noise levels of draws u (B,) in [0, 1)."""
        ...

    def losses(self, network: nn.Module, drawn: Drawn) -> Tensor:
        """Each picture's loss: (B,) float32."""
        ...

    def judge(self, network: nn.Module, batch: Batch, level: Level, eps: Tensor) -> dict[str, Tensor]:
        """What is said of held-out pictures, (B,) float64 each; names that end with by_noise are told by level."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """The diffusion objective of one model on one device."""

    model: ModelConfig
    weight: str
    compute: Compute

    def level(self, u: np.ndarray) -> Level:
        """The noise levels of draws u (B,) in [0, 1)."""
        return self.model.schedule.at(u)

    def losses(self, network: nn.Module, drawn: Drawn) -> Tensor:
        """Each picture's loss: (B,) float32."""
        return self._losses(
            autocast(network, self.compute), drawn.batch, self.level(drawn.u), drawn.eps, self.weight, drawn.drop
        )

    def judge(self, network: nn.Module, batch: Batch, level: Level, eps: Tensor) -> dict[str, Tensor]:
        """Of held-out pictures, (B,) float64 each: `loss` with training's weight, `by_noise` without one."""
        error = self._losses(network, batch, level, eps, "simple", None).cpu().double()
        own = weight(self.weight, level, self.model.prediction, self.model.sigma_data, self.model.schedule)
        return {"loss": error * own, "by_noise": error}

    def _losses(
        self, network: Network, batch: Batch, level: Level, eps: Tensor, name: str, drop: np.ndarray | None
    ) -> Tensor:
        device = self.compute.device
        cond = condition(self.model.task, batch.label, drop)
        return simple_loss(
            network,
            self.model.prediction,
            batch.x0.to(device, non_blocking=True),
            level,
            eps.to(device, non_blocking=True),
            weight_name=name,
            schedule=self.model.schedule,
            sigma_data=self.model.sigma_data,
            cond={door: value.to(device, non_blocking=True) for door, value in cond.items()},
        )


def autocast(network: nn.Module, compute: Compute) -> Network:
    """The network as it is called in training: in the device's precision."""

    def precision() -> AbstractContextManager[object]:
        if compute.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(compute.device.type, dtype=compute.dtype)

    def called(*inputs: Tensor, **cond: Tensor) -> Tensor:
        with precision():
            out: Tensor = network(*inputs, **cond)
            return out

    return called
