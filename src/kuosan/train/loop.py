"""The training loop, read top to bottom: draw, predict, weigh, step, average; and now and then save, judge, preview."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kuosan import checkpoint
from kuosan.config import Tree, plain
from kuosan.errors import Error
from kuosan.files import Lock
from kuosan.journal import Log
from kuosan.model import Model
from kuosan.train.config import RunConfig
from kuosan.train.distributed import World
from kuosan.train.draws import Drawn, Draws
from kuosan.train.monitor import Monitor
from kuosan.train.objective import Diffusion
from kuosan.train.optimizer import learning_rate, set_rate
from kuosan.train.report import Report
from kuosan.train.state import State
from kuosan.train.stop import Stop

MOST_RETRIES = 3  # returns to an earlier save before giving up
MOST_FAILED_SAVES = 3  # failed saves in a row before giving up


@dataclass
class Run:
    """Everything a training run works with."""

    folder: Path
    config: RunConfig
    model: Model
    parallel: nn.Module  # the network as it is called in training
    state: State
    draws: Draws
    objective: Diffusion
    log: Log | None  # on the first process only
    monitor: Monitor | None
    world: World
    report: Report
    extra: dict[str, Any]  # what every checkpoint notes beside the state: fingerprint, versions
    lock: Lock | None = None  # held on the first process
    failed_saves: int = 0
    saved_at: int = -1
    clock: list[tuple[float, int]] = field(default_factory=list)


def train(run: Run, stop: Stop) -> int:
    """Train until `max_steps`, or until `stop` asks; returns the signal that asked, or 0. The last step is saved."""
    state, config = run.state, run.config.train
    if run.saved_at < 0:
        save(run)
    while state.step < config.max_steps and not stop.asked:
        state.parameters.grads.zero_()
        for drawn in run.draws.ahead(state.step, config.max_steps):
            loss = backward(run, drawn)
            norm = float(state.parameters.grad_norm())
            loss, asked = share(run, loss, stop.asked)
            row = update(run, loss, norm)
            note(run, row)
            if state.bad >= config.bad_steps:
                go_back(run)
                break
            if state.step % config.save_every == 0 or state.step == config.max_steps or asked:
                save(run)
            if asked:
                return asked
    return stop.asked


def backward(run: Run, drawn: Drawn) -> float:
    """Add this process's part of the step to the gradients; its part of the mean loss."""
    config, world, total = run.config.train, run.world, 0.0
    rows = drawn.eps.shape[0]
    size = config.micro_batch or rows
    for begin in range(0, rows, size):
        part = slice(begin, begin + size)
        last = begin + size >= rows
        sync = run.parallel.no_sync() if world.size > 1 and not last else _nothing()  # type: ignore[operator]
        with sync:
            losses = run.objective.losses(run.parallel, drawn.batch.x0[part], drawn.level[part], drawn.eps[part])
            (losses.sum() * (world.size / config.batch)).backward()  # parallel training averages over processes
        total += float(losses.detach().double().sum())
    return total / config.batch


def share(run: Run, loss: float, asked: int) -> tuple[float, int]:
    """The mean loss over all processes, and the signal that any of them was sent."""
    if run.world.size == 1:
        return loss, asked
    both = torch.tensor([loss, float(asked)], dtype=torch.float64, device=run.objective.compute.device)
    loss, asked_sum = run.world.sum(both).tolist()
    return loss, asked or int(asked_sum > 0) * 15


def update(run: Run, loss: float, norm: float) -> dict[str, Any]:
    """Step and average if loss and gradient are finite, else leave every weight as it is; the step's row of the log."""
    state, config = run.state, run.config.train
    rate = learning_rate(config, state.step)
    good = math.isfinite(loss) and math.isfinite(norm)
    if good:
        if config.clip and norm > config.clip:
            state.parameters.grads.mul_(config.clip / norm)
        set_rate(state.optimizer, rate)
        state.optimizer.step()
        state.ema.update(state.parameters.values)
    state.parameters.grads.zero_()
    state.bad = 0 if good else state.bad + 1
    state.skipped += not good
    state.step += 1
    row: dict[str, Any] = {"step": state.step, "loss": loss, "grad_norm": norm, "lr": rate}
    return row if good else {**row, "skipped": "loss or gradient is not finite"}


def note(run: Run, row: dict[str, Any]) -> None:
    """Write the step's row; judge and preview when it is time."""
    state, config = run.state, run.config.train
    row["images_per_s"] = speed(run)
    if run.log is None or run.monitor is None:
        return
    if config.evaluate_every and (state.step % config.evaluate_every == 0 or state.step == config.max_steps):
        row["held_out"] = run.monitor.held_out(state.averaged())
    run.log.append(row)
    run.report.step(row, config.max_steps)
    if "skipped" in row:
        run.report.say(f"step {state.step}: {row['skipped']}; the step was skipped ({state.bad} in a row).")
    if config.preview_every and (state.step % config.preview_every == 0 or state.step == config.max_steps):
        run.monitor.preview(state.averaged(), state.step)


def speed(run: Run) -> float:
    """Pictures a second over the last steps."""
    run.clock.append((time.perf_counter(), run.state.step))
    del run.clock[:-20]
    (begin, first), (end, last) = run.clock[0], run.clock[-1]
    return round((last - first) * run.config.train.batch / max(end - begin, 1e-9), 2) if last > first else 0.0


def save(run: Run) -> None:
    """Write a checkpoint; a failure keeps the old one, is said, and is tried again at the next; too many end the run."""
    if run.world.first and run.log is not None:
        try:
            if not run.state.is_finite():
                raise Error(f"step {run.state.step}: weights are not finite; this state is not saved.")
            run.log.flush()
            run.state.save(run.folder, tree_of(run.config), run.config.train.keep, run.extra)
            run.failed_saves, run.saved_at = 0, run.state.step
        except Error as error:
            run.failed_saves += 1
            if run.failed_saves >= MOST_FAILED_SAVES or run.saved_at < 0 or run.state.step >= run.config.train.max_steps:
                raise Error(f"{error} The last good save is untouched.", exit_code=74) from error
            run.report.say(f"warning: {error} Training goes on; the next save is tried in {run.config.train.save_every} steps.")
    run.world.wait()


def tree_of(config: RunConfig) -> Tree:
    """The configuration as plain values, as config.yaml has it."""
    return plain(config)


def go_back(run: Run) -> None:
    """Return to the last good save after too many bad steps; later steps draw other noise.

    Raises: Error after too many returns.
    """
    state = run.state
    if state.retry >= MOST_RETRIES:
        raise Error(
            f"step {state.step}: loss or gradient was not finite in {state.bad} steps in a row, after {state.retry} "
            f"returns to a save. Lower --train.lr (now {run.config.train.lr:g}) or use --compute.precision fp32.",
            exit_code=70,
        )
    retry, skipped = state.retry + 1, state.skipped
    saved = checkpoint.load(checkpoint.latest(run.folder).path)
    state.restore(saved)
    state.retry, state.skipped, state.bad = retry, skipped, 0
    run.draws.retry = retry
    run.clock.clear()
    if run.log is not None:
        run.log.truncate_after(state.step)
    run.report.say(f"too many steps in a row were not finite: back to the save of step {state.step}, with other noise.")


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
