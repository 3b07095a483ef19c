"""Weights for networks whose public ones are not to be had: each tensor drawn by its name, signals kept alive."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from kuosan.seeds import rng


def keyed(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights that depend on names and shapes only, so that two codes of one network get the same."""
    return {name: drawn(name, tuple(value.shape)) for name, value in network.state_dict().items()}


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor: variances and gains near 1, offsets near 0, matrices that keep the size of what goes in."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    noise = rng(0, name).standard_normal(shape, dtype=np.float32)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith(("weight", "gamma"))):
        return torch.from_numpy(1 + 0.2 * np.tanh(noise))
    if len(shape) == 1:
        return torch.from_numpy(0.1 * noise)
    fan_in = int(np.prod(shape[1:])) if len(shape) != 3 else 1  # (1, L, D) is a token or a position
    return torch.from_numpy(noise * np.float32((2 / fan_in) ** 0.5 if len(shape) == 4 else fan_in**-0.5))
