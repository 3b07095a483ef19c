"""All that a run is between two steps, to a checkpoint and back, bit for bit. No generator state: every draw is keyed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kuosan import checkpoint
from kuosan.config import Tree
from kuosan.train import optimizer as optimizers
from kuosan.train.config import TrainConfig
from kuosan.train.ema import EMA
from kuosan.train.parameters import FlatParameters


@dataclass
class State:
    """Everything a training step changes."""

    network: nn.Module
    parameters: FlatParameters
    optimizer: torch.optim.AdamW
    ema: EMA
    step: int = 0
    bad: int = 0  # steps in a row that were not finite
    skipped: int = 0  # such steps in all
    retry: int = 0  # returns to an earlier save

    @classmethod
    def fresh(cls, network: nn.Module, config: TrainConfig) -> State:
        """The state before the first step."""
        parameters = FlatParameters(network)
        ema = EMA(parameters.values, config.ema)
        return cls(network, parameters, optimizers.adamw(parameters, config), ema)

    def averaged(self) -> dict[str, Tensor]:
        """The network's state dict with the averaged weights, float32; buffers are the network's own."""
        views = self.parameters.named_views(self.ema.values.float())
        return {name: views.get(name, value).detach() for name, value in self.network.state_dict().items()}

    def save(self, run: Path, config: Tree, keep: int, extra: dict[str, Any]) -> Path:
        """Write a checkpoint of this instant; see `checkpoint.save` for what can go wrong."""
        numbers = {"ema_updates": self.ema.updates, "bad": self.bad, "skipped": self.skipped, "retry": self.retry}
        return checkpoint.save(
            run,
            self.step,
            config=config,
            ema=self.averaged(),
            network=self.network.state_dict(),
            optimizer={**optimizers.tensors(self.optimizer), "ema.values": self.ema.values},
            state={**numbers, **extra},
            keep=keep,
        )

    def restore(self, saved: checkpoint.Saved) -> None:
        """Become the saved instant."""
        self.network.load_state_dict(saved.network)
        tensors = dict(saved.optimizer)
        self.ema.values.copy_(tensors.pop("ema.values"))
        self.ema.updates = saved.state["ema_updates"]
        optimizers.restore(self.optimizer, tensors)
        self.step = saved.step
        self.bad, self.skipped, self.retry = (saved.state[name] for name in ("bad", "skipped", "retry"))

    def is_finite(self) -> bool:
        """Whether weights and average hold only finite numbers; what does not is never saved."""
        return bool(torch.isfinite(self.parameters.values).all() and torch.isfinite(self.ema.values).all())
