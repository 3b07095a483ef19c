"""The processes of a run: one by default, several under torchrun, which says who is who in the environment.

Only the first process reads saves, writes, prints and locks; what it decides, and what it fails at, every process
hears through `World.on_first`, so that none is left waiting for one that gave up.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kuosan.errors import Error

T = TypeVar("T")
WAIT = timedelta(days=1)  # for the first process, which may encode a large data set; torch's is 10 minutes on GPUs


@dataclass(frozen=True)
class World:
    """This process's rank among `size`; with size 1 every call here does nothing."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process prints, saves and previews."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def on_first(self, act: Callable[[], T]) -> T:
        """What `act` gives on the first process, on every process; `act` runs on the first alone.

        Raises:
            Error: on every process, where `act` raised one on the first.
        """
        if self.size == 1:
            return act()
        box: list[Any] = [None, None]
        if self.first:
            try:
                box[0] = act()
            except Error as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network as torch's DistributedDataParallel, which averages gradients; itself with one process.

        Buffers are the first process's at every step: it alone saves them.
        """
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)


def join(device: torch.device) -> World:
    """Join the processes that torchrun started (RANK, WORLD_SIZE); alone where there are none.

    Raises:
        Error: an environment that names several processes, but not which this one is.
    """
    said = os.environ.get("WORLD_SIZE", "1")
    if said == "1":
        return World()
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not said.isdigit():
        raise Error(
            f"the environment says WORLD_SIZE={said}, but not {', '.join(missing) or 'how many that is'}: start "
            "several processes by torchrun, or unset WORLD_SIZE for one."
        )
    size = int(said)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    return World(dist.get_rank(), size)


def leave(world: World) -> None:
    """Leave the group that `join` joined, with nothing left that reduces gradients by it (see `api.let_go`)."""
    if world.size > 1 and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
