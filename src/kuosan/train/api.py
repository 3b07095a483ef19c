"""Training from Python, and what the shell's `train` is made of: prepare, start, train."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from kuosan import config as trees
from kuosan import options
from kuosan.data.pictures import Pictures, open_pictures
from kuosan.device import Compute, choose
from kuosan.networks.config import Size
from kuosan.train import loop
from kuosan.train.config import RunConfig, resolve
from kuosan.train.curve import draw
from kuosan.train.distributed import World, join, leave
from kuosan.train.loop import Run
from kuosan.train.report import Lines, Report, Silent
from kuosan.train.start import open_run, stored
from kuosan.train.stop import Stop

if TYPE_CHECKING:
    from torch.utils.data import Dataset


@dataclass(frozen=True)
class Asked:
    """A run that was asked for, with its pictures opened and its configuration resolved."""

    out: Path
    config: RunConfig
    pictures: Pictures
    compute: Compute
    world: World
    network: nn.Module | None = None


def prepare(
    out: Path,
    tree: Mapping[str, Any],
    *,
    size: Size = "small",
    network: nn.Module | None = None,
    dataset: Dataset[Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Asked:
    """Open the pictures and resolve the configuration against them.

    Raises:
        Error: no usable pictures, or a configuration that cannot be trained.
    """
    stored(out)  # a folder of something else is refused before the pictures are read
    data = resolve(tree, (3, 64, 64), size).data if network is None else trees.build(RunConfig, {"data": tree.get("data", {})}).data
    pictures = open_pictures(data if dataset is None else dataset, config=data, progress=progress)
    own = type(network).__name__ if network is not None else None
    config = resolve(tree, pictures.shape, size, own=own)
    compute = choose(config.compute)
    return Asked(out, config, pictures, compute, join(compute.device), network)


def start(
    asked: Asked, report: Report, *, init: Path | None = None, accept_new_data: bool = False, dry: bool = False
) -> Run:
    """The run, locked against other processes, at its newest good save or at its beginning; `dry` writes nothing."""
    return open_run(
        asked.out,
        asked.config,
        asked.pictures,
        asked.compute,
        asked.world,
        report,
        network=asked.network,
        init=init,
        accept_new_data=accept_new_data,
        dry=dry,
    )


def train(run: Run) -> int:
    """Train, draw the curve, let go of the run; the signal that stopped it, or 0."""
    try:
        with Stop() as stop, torch.random.fork_rng():
            stopped = loop.train(run, stop)
        if run.log is not None:
            draw(list(run.log.rows()), run.folder / "curve.png")
        return stopped
    finally:
        if run.log is not None:
            run.log.close()
        if run.lock is not None:
            run.lock.release()
        leave(run.world)


def fit(
    network: nn.Module | None = None,
    data: Dataset[Any] | str | Path | None = None,
    out: str | Path = "run",
    *,
    report: Report | None = None,
    size: Size = "small",
    init: str | Path | None = None,
    accept_new_data: bool = False,
    **settings: Any,
) -> Path:
    """Train on a folder or a torch Dataset, with the U-Net or a module of one's own; returns the run's folder.

    The same call again goes on where the run stopped. Settings are those of the configuration, by their last name
    (`max_steps=1000`) or dotted (`**{"train.batch": 32}`).

    Args:
        network: called as network(x, t) with x (B, C, H, W) float32, t (B,) float32; None builds the U-Net.
        data: a Dataset of pictures (tensors (C, H, W) in [0, 1] or uint8, PIL images, or tuples that begin with one),
            or a path as the shell takes it.

    Raises:
        Error: whatever the shell's `train` refuses.
    """
    tokens = [word for key, value in settings.items() for word in options.words(key, value)]
    tree, _ = options.parse(tokens, RunConfig)
    dataset = None if isinstance(data, str | Path) else data
    if isinstance(data, str | Path):
        tree.setdefault("data", {})["path"] = str(data)
    asked = prepare(Path(out), tree, size=size, network=network, dataset=dataset)
    heard = report or (Lines() if asked.world.first else Silent())
    run = start(asked, heard, init=Path(init) if init else None, accept_new_data=accept_new_data)
    stopped = train(run)
    if stopped == signal.SIGINT:
        raise KeyboardInterrupt
    return Path(out)
