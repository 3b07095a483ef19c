"""All that a run is between two steps, to a checkpoint and back, bit for bit. No generator state: draws are keyed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kuosan import checkpoint, weights
from kuosan.config import Tree
from kuosan.errors import Error, shown
from kuosan.train import optimizer as optimizers
from kuosan.train.config import TrainConfig
from kuosan.train.ema import EMA
from kuosan.train.importance import History
from kuosan.train.parameters import FlatParameters

_COUNTED = ("bad", "skipped", "retry", "returns", "good_step")  # what state.json holds of a State


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
    retry: int = 0  # returns to an earlier save, so that the same steps draw other noise
    returns: int = 0  # of them, those since the last save that was due
    good_step: int = 0  # the last save that was due, after a finite step: where too many bad ones return to
    history: History | None = None  # of losses, under importance sampling
    constants: frozenset[str] = frozenset()  # buffers that hold infinities from the start, as causal masks do
    _buffers: list[Tensor] = field(default_factory=list)

    @classmethod
    def fresh(cls, network: nn.Module, config: TrainConfig, history: History | None = None) -> State:
        """The state before the first step.

        Raises:
            Error: nothing to train, or a network whose state dict cannot be saved.
        """
        if what := weights.unwritable(network.state_dict()):
            raise Error(
                f"{type(network).__name__}'s {what}, which safetensors cannot hold; keep it out of the state dict, as "
                f"register_buffer(..., persistent=False) does. It takes tensors of {', '.join(weights.DTYPES)}."
            )
        parameters = FlatParameters(network)
        ema = EMA(parameters.values, config.ema)
        masks = frozenset(name for name, buffer in network.named_buffers() if bool(buffer.isinf().any()))
        optimizer = optimizers.adamw(parameters, config)
        return cls(network, parameters, optimizer, ema, history=history, constants=masks)

    def averaged(self) -> dict[str, Tensor]:
        """The network's state dict with the averaged weights, float32; buffers are the network's own."""
        views = self.parameters.named_views(self.ema.values.float())
        return {name: views.get(name, value).detach() for name, value in self.network.state_dict().items()}

    def keep_buffers(self) -> None:
        """Remember the network's buffers (batch norm's statistics, say), which a forward pass may change."""
        self._buffers = [buffer.clone() for buffer in self.network.buffers()]

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Undo what forward passes did to the buffers since `keep_buffers`."""
        for buffer, kept in zip(self.network.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)

    def counts(self) -> dict[str, int]:
        """What is counted beside the steps."""
        return {name: getattr(self, name) for name in _COUNTED}

    def count(self, counts: Mapping[str, int]) -> None:
        """Take these counts."""
        for name in _COUNTED:
            setattr(self, name, counts[name])

    def save(self, run: Path, config: Tree, keep: int, extra: dict[str, Any]) -> Path:
        """Write a checkpoint of this instant; see `checkpoint.save` for what can go wrong."""
        history = self.history.tensors() if self.history else {}
        return checkpoint.save(
            run,
            self.step,
            config=config,
            ema=self.averaged(),
            network=self.network.state_dict(),
            optimizer={**optimizers.tensors(self.optimizer), "ema.values": self.ema.values, **history},
            state={"ema_updates": self.ema.updates, **self.counts(), **extra},
            keep=keep,
            keep_steps=(self.good_step,),
            constants=self.constants,
        )

    def restore(self, saved: checkpoint.Saved) -> None:
        """Become the saved instant.

        Raises:
            KeyError, RuntimeError: it is another network's or optimiser's.
        """
        for name in ("ema_updates", *_COUNTED):
            value = saved.state.get(name)
            if type(value) is not int or not 0 <= value < 1 << 62:
                raise Error(
                    f"{saved.path}: state.json has {name} = {shown(value)}, not a whole number: it is damaged; use an "
                    f"earlier checkpoint, or copy the folder again."
                )
        self.network.load_state_dict(saved.network)
        tensors = dict(saved.optimizer)
        self.ema.values.copy_(tensors.pop("ema.values"))
        self.ema.updates = saved.state["ema_updates"]
        if self.history:
            self.history.restore(tensors)
        optimizers.restore(self.optimizer, tensors)
        self.step = saved.step
        self.count(saved.state)

    def is_finite(self) -> bool:
        """Whether weights, average and moments hold only finite numbers; what does not is never saved."""
        held = [self.parameters.values, self.ema.values, *optimizers.tensors(self.optimizer).values()]
        return all(bool(torch.isfinite(values).all()) for values in held)
