"""From what a person asked to a run that is ready to train: a new one, one that goes on, or one from another's weights."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import kuosan
from kuosan import checkpoint, files
from kuosan import config as trees
from kuosan.data.pictures import Pictures
from kuosan.device import Compute
from kuosan.errors import Error
from kuosan.files import Lock
from kuosan.journal import Log
from kuosan.model import Model, build
from kuosan.train.config import RunConfig, refuse_changes
from kuosan.train.distributed import World
from kuosan.train.draws import Draws
from kuosan.train.loop import Run
from kuosan.train.monitor import Monitor
from kuosan.train.objective import Diffusion
from kuosan.train.report import Report
from kuosan.train.state import State

CONFIG = "config.yaml"
DATA = "data.json"


def stored(folder: Path) -> trees.Tree | None:
    """The configuration of the run in a folder, None where there is none yet.

    Raises:
        Error: the folder holds something else, or the configuration is damaged.
    """
    with files.explained(folder, doing="read"):
        if not folder.exists():
            return None
        if not folder.is_dir():
            raise Error(f"{folder} is a file, not a folder; choose another --out.")
        if (folder / CONFIG).is_file():
            return trees.load(folder / CONFIG)
        others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others:
        raise Error(
            f"{folder} is not empty and holds no run ({', '.join(sorted(others)[:3])}); "
            f"choose a new folder with --out, or empty this one yourself."
        )
    return None


def open_run(
    folder: Path,
    config: RunConfig,
    pictures: Pictures,
    compute: Compute,
    world: World,
    report: Report,
    *,
    network: nn.Module | None = None,
    init: Path | None = None,
    accept_new_data: bool = False,
    dry: bool = False,
) -> Run:
    """A run ready to train: its newest good save loaded, or a fresh start. With `dry` nothing is written or locked.

    Raises:
        Error: another configuration or data set than the run's, a damaged save without a good one before it, a folder
            that cannot be written.
    """
    lock = Lock(folder) if world.first and not dry else None
    if lock is not None and not lock.held:
        report.say(f"warning: {folder} lies on a file system without locks: start no second training there.")
    before = stored(folder)
    notes = _compare(folder, before, config, pictures, init, accept_new_data)
    for text in notes:
        report.say(text)
    model = build(config.model, seed=config.train.seed, network=network)
    model.network.to(compute.device).train()
    state = State.fresh(model.network, config.train)
    saved = _newest(folder, report)
    if saved is not None:
        _restore(state, saved)
        report.say(f"going on from step {state.step} of {config.train.max_steps}.")
    elif init is not None:
        _initialise(state, init)
        report.say(f"starting from the averaged weights of {init}.")
    if lock is not None:
        _write_head(folder, config, pictures)
    log = Log(folder / "log.jsonl") if lock is not None else None
    if log is not None:
        log.truncate_after(state.step)
    train = config.train
    draws = Draws(pictures, config.model.schedule, train.seed, train.batch, world.rank, world.size, state.retry)
    return Run(
        folder,
        config,
        model,
        world.parallel(model.network),
        state,
        draws,
        Diffusion(config.model, train.weight, compute),
        log,
        Monitor(folder, model, pictures, train, compute) if lock is not None else None,
        world,
        report,
        extra={"data": pictures.fingerprint, "kuosan": kuosan.__version__, "torch": torch.__version__},
        lock=lock,
        saved_at=saved.step if saved is not None else -1,
    )


def _compare(
    folder: Path,
    before: Mapping[str, Any] | None,
    config: RunConfig,
    pictures: Pictures,
    init: Path | None,
    accept_new_data: bool,
) -> list[str]:
    if before is None:
        return []
    if init is not None:
        raise Error(f"{folder} already holds a run, so --init {init} would be ignored; leave it out, or --out ANOTHER.")
    notes = refuse_changes(before, trees.plain(config), str(folder))
    known = trees.load(folder / DATA).get("fingerprint") if (folder / DATA).is_file() else None
    if known is None and checkpoint.checkpoints(folder):
        raise Error(
            f"{folder / DATA} is missing or damaged: it cannot be told whether the pictures are the run's own. Put it "
            f"back, or start a new run with --out ANOTHER --init {folder}."
        )
    if known not in (None, pictures.fingerprint):
        if not accept_new_data:
            raise Error(
                f"the pictures are not the ones this run was trained on ({folder} knows data {known[:12]}, now "
                f"{pictures.fingerprint[:12]}): files were added, removed or changed. Put them back, say "
                f"--accept-new-data to go on with these (no longer bit for bit the same run), or start a new run with "
                f"--out ANOTHER --init {folder}."
            )
        notes.append("going on with other pictures, as --accept-new-data says.")
    return notes


def _newest(folder: Path, report: Report) -> checkpoint.Saved | None:
    if not checkpoint.checkpoints(folder):
        return None
    saved = checkpoint.load(folder)
    for text in saved.damaged:
        report.say(f"warning: a newer save is damaged and passed over: {text}")
    return saved


def _restore(state: State, saved: checkpoint.Saved) -> None:
    try:
        state.restore(saved)
    except (RuntimeError, KeyError) as error:
        raise Error(f"{saved.path} does not hold this run's state: {' '.join(str(error).split())[:300]}") from error


def _initialise(state: State, init: Path) -> None:
    saved = checkpoint.load(init, parts=("ema",))
    try:
        state.network.load_state_dict(saved.ema)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise Error(f"--init {init}: its network has another shape than this run's: {reason}") from None
    state.ema.values.copy_(state.parameters.values.double())


def _write_head(folder: Path, config: RunConfig, pictures: Pictures) -> None:
    import json

    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise Error(f"cannot write into {folder}: permission is denied; choose another --out.", exit_code=74)
    with contextlib.suppress(OSError):
        files.sweep(folder)
    facts = {"fingerprint": pictures.fingerprint, "train": len(pictures.train), "held_out": len(pictures.held_out)}
    files.write_atomic(folder / CONFIG, trees.dump(trees.plain(config)))
    files.write_atomic(folder / DATA, json.dumps(facts, indent=1) + "\n")
