"""AdamW on the flat parameters, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kuosan.train.config import TrainConfig
    from kuosan.train.parameters import FlatParameters


def adamw(parameters: FlatParameters, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in its fused form: one kernel a step on every device that has it."""
    groups = parameters.optimiser_groups(config.weight_decay)
    fused = parameters.values.device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=fused)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The rate of the `step`-th step (the first is 0): linear warm-up, then the configured shape."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    match config.lr_shape:
        case "cosine":
            done = (step - config.warmup) / max(1, config.max_steps - config.warmup)
            return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        case "inverse_sqrt":
            reference = max(config.warmup, 1)
            return config.lr / math.sqrt(max((step + 1) / reference, 1))
        case _:
            return config.lr


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def tensors(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `<group>.<what>`; empty before the first step."""
    state = {}
    for i, group in enumerate(optimizer.param_groups):
        for name, value in optimizer.state[group["params"][0]].items():
            state[f"{i}.{name}"] = value
    return state


def restore(optimizer: torch.optim.AdamW, state: dict[str, Tensor]) -> None:
    """Put named tensors from `tensors` back, bit for bit.

    Raises:
        KeyError: they are another optimiser's.
    """
    groups = optimizer.param_groups
    wanted = {f"{i}.{name}" for i in range(len(groups)) for name in ("step", "exp_avg", "exp_avg_sq")}
    if state and set(state) != wanted:
        raise KeyError(f"optimizer state has {sorted(state)}, not {sorted(wanted)}")
    for i, group in enumerate(groups):
        (parameter,) = group["params"]
        own = {name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{i}.")}
        if own and own["exp_avg"].shape != parameter.shape:
            raise KeyError(f"{i}.exp_avg has {len(own['exp_avg'])} entries, the network {len(parameter)}")
        held = optimizer.state[parameter]
        if own.keys() == held.keys():  # in place: after an out-of-memory there may be no room for a second copy
            for name, value in own.items():
                held[name].copy_(value)
        else:
            # only fused AdamW keeps its step count beside the parameter
            beside = {name for name, value in own.items() if value.ndim or group["fused"]}
            own = {name: value.to(parameter.device) if name in beside else value for name, value in own.items()}
            optimizer.state[parameter] = {name: value.clone() for name, value in own.items()}
