"""A network's names, shapes and dtypes without its memory: `skeleton(make)`, on the meta device and undrawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _NoDraws(TorchFunctionMode):
    """Initial weights are left out: on the meta device each would be a slow call for nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def undrawn(make: Callable[[], nn.Module]) -> Any:
    """The network that `make` makes, every tensor on the meta device, of no bytes."""
    with _NoDraws(), torch.device("meta"):
        return make()


def skeleton(make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Its state dict."""
    state: dict[str, Tensor] = undrawn(make).state_dict()
    return state
