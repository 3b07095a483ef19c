"""Everything that one training run works with, as the loop, the saves and the previews see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from kuosan.models.model import Model
from kuosan.storage.files import Lock
from kuosan.storage.log import Log
from kuosan.train import memory
from kuosan.train.batches import BatchStream
from kuosan.train.config import RunConfig
from kuosan.train.distributed import World
from kuosan.train.monitor import Monitor
from kuosan.train.objective import Objective
from kuosan.train.report import SilentTraining
from kuosan.train.state import State


@dataclass
class Run:
    """Everything a training run works with."""

    folder: Path
    config: RunConfig
    model: Model
    parallel: nn.Module  # the network as it is called in training
    state: State
    batches: BatchStream
    objective: Objective
    log: Log | None  # on the first process only
    monitor: Monitor | None
    world: World
    report: SilentTraining
    extra: dict[str, Any]  # what every checkpoint notes beside the state: fingerprint, versions
    lock: Lock | None = None  # held on the first process
    new_data: bool = False  # it goes on with other images than it was trained on before
    closed: bool = False  # it has let go of its files and of the other processes
    saved_at: int = -1  # the step of the newest save; -1: there is none
    tried_at: int = -1  # the step of the newest attempt
    failed_saves: int = 0  # in a row
    unwritten: list[dict[str, Any]] = field(default_factory=list)  # rows that the log could not take yet
    times: list[tuple[float, int]] = field(default_factory=list)  # when the last steps ended, and which
    sizes: memory.Sizes = field(default_factory=memory.Sizes)
    on_disk: tuple[int, dict[str, int]] = (0, {})  # the save that the state followed from, and its counts then
