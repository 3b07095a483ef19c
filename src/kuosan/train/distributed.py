"""The processes of a run: one by default, several under torchrun, which says who is who in the environment.

Only the first process reads saves, writes, prints and locks; what it decides, and what it fails at, every process
gets through `World.on_first`, so that none is left waiting for one that gave up. Whether all of them are alive is
`heartbeat`'s to say, from before the data are read.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kuosan.errors import Error, Terminated, is_out_of_memory
from kuosan.train.heartbeat import CODE, Heartbeat
from kuosan.train.processes import Times

if TYPE_CHECKING:  # a torch without them still trains in one process
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
# The last resort against a process that lives and never comes to the next step, a data set's deadlock say. So long
# because the first process may encode a large data set while the others wait.
WAIT = timedelta(days=1)
_meetings = 0  # of this process: each has keys of its own in a store that outlives it


@dataclass(frozen=True)
class World:
    """This process's rank among `size`; with size 1 every call here does nothing."""

    rank: int = 0
    size: int = 1
    heartbeat: Heartbeat | None = field(default=None, compare=False)
    store: Store | None = field(default=None, compare=False)  # where the processes meet

    @property
    def first(self) -> bool:
        """Whether this process prints, saves and previews."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            with self._together():
                dist.all_reduce(values)
        return values

    def any(self, own: bool, device: torch.device) -> bool:
        """Whether it is so on any process."""
        return own if self.size == 1 else bool(self.sum(torch.full((), float(own), device=device)))

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
        with self._together():
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
        with self._together():
            dist.all_gather_object(values, value)
        return values

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, with the first process's parameters and buffers on every process."""
        self.same(p.data for p in network.parameters())
        self.same(network.buffers())
        return network

    @torch.no_grad()
    def same(self, tensors: Iterable[Tensor]) -> None:
        """Make these the first process's."""
        if self.size == 1:
            return
        with self._together():
            for values in tensors:
                whole = values.contiguous()
                dist.broadcast(whole, src=0)
                if whole is not values:
                    values.copy_(whole)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What all processes do together; where that fails because one of them does, the heartbeat names it."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            if self.heartbeat is not None:
                self.heartbeat.wait_for_verdict()
            reason = " ".join(str(error).split())[:300]
            raise Error(f"the processes of this run lost each other: {reason}", exit_code=CODE) from error


def meet() -> World:
    """Meet the processes that torchrun started (RANK, WORLD_SIZE), or alone where there are none, and begin to watch.

    Raises:
        Error: an environment that names several processes, but not which this one is; rank 0 cannot be reached.
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
    own, port, size = os.environ["RANK"], os.environ["MASTER_PORT"], int(said)
    if not own.isdigit() or int(own) >= size:
        raise Error(f"the environment says RANK={own} of WORLD_SIZE={said}: a rank is a number from 0 to {size - 1}.")
    if not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise Error(f"the environment says MASTER_PORT={port}: a port is a number from 1 to 65535.")
    address, times = os.environ["MASTER_ADDR"], Times.of_environment()
    launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
    heartbeat = Heartbeat(int(own), size, times, address, launcher)
    heartbeat.start()
    try:
        store = _store(int(own), address, int(port), timedelta(seconds=times.arrival + 30))
        heartbeat.meet(store)
    except RuntimeError as error:  # torch's errors of sockets and of time
        reason = " ".join(str(error).split())[:200]
        cure = "choose another MASTER_PORT" if "EADDRINUSE" in reason else "see that rank 0 runs, and where"
        heartbeat.wait_for_verdict(2 * times.beat)
        heartbeat.over = True
        raise Error(
            f"the processes cannot meet at MASTER_ADDR={address}, MASTER_PORT={port}: {cure} ({reason})."
        ) from None
    _on_sigterm(signal.SIG_DFL, _stop)
    return World(int(own), size, heartbeat, store)


def _store(rank: int, address: str, port: int, patience: timedelta) -> Store:
    """Torch's store of this environment: the launcher's, or rank 0's own; one that nobody waits in for the others."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

    global _meetings
    _meetings += 1
    if dist.is_initialized():  # by the caller
        store: Store = _get_default_store()
    else:
        launched = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        serves = rank == 0 and not launched
        store = TCPStore(
            address, port, None, serves, timeout=patience, wait_for_workers=False, multi_tenant=not launched
        )
    return PrefixStore(f"kuosan/{_meetings}", store)


def join(world: World, device: torch.device) -> None:
    """Form the group that reduces gradients."""
    if world.size == 1 or world.store is None:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        from torch.distributed.distributed_c10d import PrefixStore

        # objects, a checkpoint after an out-of-memory say, go from CPU to CPU: torch takes "cpu" where it may choose
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with world._together():
            dist.init_process_group(
                backend,
                store=PrefixStore("group", world.store),
                rank=world.rank,
                world_size=world.size,
                timeout=WAIT,
            )


def leave(world: World, error: BaseException | None = None) -> None:
    """Say goodbye, with the reason if there is one, and leave the group."""
    if world.size == 1:
        return
    if world.heartbeat is not None:
        if isinstance(error, SystemExit | Terminated):  # by a launcher that has lost another process
            world.heartbeat.wait_for_verdict(1.0)
        named = error if isinstance(error, Error) else f"{type(error).__name__}: {error}"
        reason = None if error is None else " ".join(str(named).split())
        world.heartbeat.close(reason)
        _on_sigterm(_stop, signal.SIG_DFL)
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM before or after training: the others are given a reason on the way out."""
    raise SystemExit(128 + number)


def _on_sigterm(before: Any, handler: Any) -> None:
    """Put a handler in another one's place; one of the caller's own stays."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is before:
        signal.signal(signal.SIGTERM, handler)
