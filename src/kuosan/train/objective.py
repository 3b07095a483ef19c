"""What training minimises at drawn levels: the weighted error of the network's prediction, the bound, or both."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from kuosan.codec.pixels import PIXELS
from kuosan.diffusion.bound import Chain, discrete_chain
from kuosan.diffusion.grids import logit_normal
from kuosan.diffusion.loss import bound_loss, hybrid_loss, simple_loss, weight
from kuosan.diffusion.schedule import Discrete
from kuosan.diffusion.weighting import Weight
from kuosan.tasks.condition import condition

if TYPE_CHECKING:
    import numpy as np

    from kuosan.codec.pixels import Codec
    from kuosan.data.pictures import Batch
    from kuosan.device import Compute
    from kuosan.diffusion.denoiser import Network
    from kuosan.diffusion.level import Level
    from kuosan.model import ModelConfig
    from kuosan.train.config import TrainConfig
    from kuosan.train.draws import Drawn
    from kuosan.train.importance import History


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

    def parts(self) -> dict[str, float]:
        """What the losses since the last call were made of, by name; nothing where a loss is one thing."""
        ...


@dataclass(frozen=True)
class Diffusion:
    """The diffusion objective of one model on one device."""

    model: ModelConfig
    train: TrainConfig
    compute: Compute
    history: History | None = None  # of losses, by which t are drawn under importance sampling
    codec: Codec = PIXELS  # of what is denoised, through which goes what a network is given beside it

    def level(self, u: np.ndarray) -> Level:
        """The noise levels of draws u (B,) in [0, 1): every t counts as it does in the loss."""
        if self.train.t_sampling == "logit_normal":
            u = logit_normal(u, self.train.t_mean, self.train.t_std)
        if self.train.t_sampling == "continuous":
            assert isinstance(self.model.schedule, Discrete)
            return self.model.schedule.between(u)
        return self.model.schedule.at(u)

    def losses(self, network: nn.Module, drawn: Drawn) -> Tensor:
        """Each picture's loss: (B,) float32."""
        called, eps = autocast(network, self.compute), drawn.eps
        if self.history is None:
            return self._losses(called, drawn.batch, self.level(drawn.u), eps, drawn.drop)
        assert isinstance(self.model.schedule, Discrete)
        t = self.history.times(drawn.u)
        losses = self._losses(called, drawn.batch, self.model.schedule.at_t(t), eps, drawn.drop)
        return losses * torch.from_numpy(self.history.scale(t)).to(losses)

    def judge(self, network: nn.Module, batch: Batch, level: Level, eps: Tensor) -> dict[str, Tensor]:
        """Of held-out pictures, (B,) float64 each: `loss` as in training, `by_noise` the error without a weight."""
        error = self._error(network, batch, level, eps, None, Weight()).cpu().double()
        if self.train.loss != "simple":
            return {"loss": self._losses(network, batch, level, eps, None).cpu().double(), "by_noise": error}
        model = self.model
        own = weight(self.train.weighting, level, model.prediction, model.sigma_data, model.schedule)
        return {"loss": error * own, "by_noise": error}

    def parts(self) -> dict[str, float]:
        """Nothing: the loss is one thing."""
        return {}

    def _losses(self, network: Network, batch: Batch, level: Level, eps: Tensor, drop: np.ndarray | None) -> Tensor:
        """What is minimised, at given levels."""
        train, model, weighting = self.train, self.model, self.train.weighting
        if train.loss == "simple":
            return self._error(network, batch, level, eps, drop, weighting)
        x0, eps, cond = self._moved(batch, eps, drop)
        options: dict[str, Any] = {"steps": self._steps, "sigma_data": model.sigma_data, "cond": cond}
        if train.loss == "vlb":
            options |= {"variance": train.vlb_variance, "learned_variance": model.learned_variance}
            return bound_loss(network, model.prediction, x0, level, eps, **options)
        options |= {"vlb_weight": train.vlb_weight, "weight_name": weighting, "schedule": model.schedule}
        return hybrid_loss(network, model.prediction, x0, level, eps, **options)

    def _error(
        self, network: Network, batch: Batch, level: Level, eps: Tensor, drop: np.ndarray | None, weighting: Weight
    ) -> Tensor:
        """The weighted squared error, over known pixels too: a loss of holes alone learned far more slowly."""
        x0, eps, cond = self._moved(batch, eps, drop)
        return simple_loss(
            network,
            self.model.prediction,
            x0,
            level,
            eps,
            weight_name=weighting,
            schedule=self.model.schedule,
            sigma_data=self.model.sigma_data,
            learned_variance=self.model.learned_variance,
            cond=cond,
        )

    def _moved(self, batch: Batch, eps: Tensor, drop: np.ndarray | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Pictures, noise and conditions, on the device."""
        device = self.compute.device
        label = None if batch.label is None else batch.label.to(device, non_blocking=True)
        given = None if batch.given is None else batch.given.to(device)
        text = batch.text and {door: told.to(device, non_blocking=True) for door, told in batch.text.items()}
        there = condition(self.model.task, label, given, drop, text, self.codec.encode)
        return batch.x0.to(device, non_blocking=True), eps.to(device, non_blocking=True), there

    @cached_property
    def _steps(self) -> Chain:
        assert isinstance(self.model.schedule, Discrete)
        return discrete_chain(self.model.schedule)


def autocast(network: nn.Module, compute: Compute) -> Network:
    """The network as it is called in training: in the device's precision."""

    def called(*inputs: Tensor, **cond: Tensor) -> Tensor:
        with precision(compute):
            out: Tensor = network(*inputs, **cond)
            return out

    return called


def precision(compute: Compute) -> AbstractContextManager[object]:
    """The device's precision, within which networks are called in training."""
    if compute.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(compute.device.type, dtype=compute.dtype)
