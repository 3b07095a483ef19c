"""The training loop, read top to bottom: draw, predict, weigh, step, average; and now and then save, validate, preview.

What is random in it is keyed: images, levels and noise in `batches`, the network's own layers (dropout, say) by
seeding torch's generator before each forward pass. So a step is a pure function of the state before it, and where
memory runs out in one it is taken again, with fewer images at once.

What a run will take, measured on a few steps that leave no trace: seconds a step, and memory at its peak.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kuosan import seeds
from kuosan.data.dataset import Images
from kuosan.errors import Error, is_out_of_memory
from kuosan.sample.request import Request
from kuosan.storage import checkpoint, files
from kuosan.train import budget as budgets
from kuosan.train import memory, saving
from kuosan.train.batches import Drawn, gathered
from kuosan.train.budget import Planned
from kuosan.train.distributed import World
from kuosan.train.memory import FILE, Halving, T, What, free, said, too_large
from kuosan.train.monitor import AT_ONCE, Monitor
from kuosan.train.saving import Stop
from kuosan.train.state import Run, exact, learning_rate, set_rate

ENDLESS = 1 << 40  # steps that no run takes
MOST_RETURNS = 3  # returns to an earlier save, without another save between, before giving up


def train(run: Run, stop: Stop) -> Generator[None, None, int]:
    """Train to the last step, or until `stop` asks; yields after every step and every return to an earlier save.

    Returns the signal that asked, or 0. The last step is saved; closed in between, what is saved stays.
    """
    state = run.state
    run.on_disk = run.saved_at, state.counts()
    if run.saved_at < 0:
        save(run, must=True)
    preview(run)
    plan_first(run)
    yield
    while state.step < run.last:
        if not run.times:  # so that the first step has a speed too
            run.times.append((time.perf_counter(), state.step))
        state.parameters.grads.zero_()
        end = run.last if run.budget is None else ENDLESS
        for drawn in saving.save_before_error(run, run.batches.ahead(state.step, end)):
            plan_again(run)
            loss, asked, losses = gradients(run, drawn, stop)
            row = taken(run, loss, losses)
            if row is None:
                yield
                break
            if run.budget is not None:
                run.budget.step_taken()
            log_step(run, row)
            last = state.step >= run.last
            wanted = bool(asked) or last
            if state.bad >= run.config.train.bad_steps or ((wanted or saving.is_due(run)) and not state.is_finite()):
                roll_back(run)
                yield
                break
            if wanted or saving.is_due(run):
                save(run, must=wanted)
            if not asked:
                preview(run)
            if run.budget is not None:
                run.budget.step_over(run.is_time(-1))
            yield
            if asked:
                return asked
            if last and run.budget is not None:
                break  # more was asked for, as the last step may be planned again
    return 0


def save(run: Run, *, must: bool) -> None:
    """Save, and remember it as the place to return to where memory runs out in the middle of a step."""
    saving.save(run, must=must)
    if run.saved_at == run.state.step:
        run.on_disk = run.saved_at, run.state.counts()
        run.report.wrote(checkpoint.folder(run.folder, run.saved_at))


def gradients(run: Run, drawn: Drawn, stop: Stop) -> tuple[float, int, np.ndarray | None]:
    """The step's gradients, mean loss, the signal asked, and under importance sampling u and losses (2, batch).

    Where memory runs out on any process, all take the step again with half the micro-batch.

    Raises:
        Error: one image at once takes too much.
    """
    state, world, batch = run.state, run.world, run.train.batch
    device = run.objective.compute.device
    while True:
        losses, reason = None, ""
        try:
            losses = backward(run, drawn)
            loss = float(losses.sum()) / batch
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason, loss = memory.said(error), 0.0
        loss, asked, short = all_reduce(run, loss, stop.asked, losses is None)
        if losses is not None and not short:
            break
        losses = None
        undo(run)
        halve(run, "training", state.step + 1, micro_batch(run), reason or "on another process")
    if world.size > 1:
        world.sum(state.parameters.grads.mul_(1 / world.size))
    return loss, asked, None if state.history is None else gathered(world, batch, device, drawn.u, losses)


def undo(run: Run) -> None:
    """Leave nothing of a forward and backward pass that ran out of memory."""
    run.state.parameters.grads.zero_()
    run.state.restore_buffers()
    run.objective.parts()
    memory.free()


def taken(run: Run, loss: float, losses: np.ndarray | None) -> dict[str, Any] | None:
    """Take the step; its row of the log. None where memory ran out in it on any process: the state is a save's again.

    A step taken by half cannot be known from one not begun, so all return to the newest save, and come here again with
    the same draws.

    Raises:
        Error: one image at once takes too much.
    """
    state, row, reason = run.state, dict[str, Any](), ""
    step, size = state.step + 1, micro_batch(run)
    try:
        row = update(run, loss, float(state.parameters.grad_norm()))
        if state.history is not None and losses is not None and "skipped" not in row:
            state.history.update_history(*losses)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        row, reason = {}, memory.said(error)
    if not run.world.any(not row, run.objective.compute.device):
        return row
    undo(run)
    at, counts = run.on_disk
    state.restore(run.world.on_first(lambda: checkpoint.load(checkpoint.folder(run.folder, at))))
    state.count(counts)
    back_at(run)
    halve(run, "training", step, size, reason or "on another process", back=at)
    return None


def back_at(run: Run) -> None:
    """Go on from the save that the state was restored from."""
    run.batches.retry, run.tried_at = run.state.retry, run.state.step
    if run.budget is not None:
        run.budget.retry = run.state.retry
    run.saved_at, run.on_disk = run.state.step, (run.state.step, run.state.counts())
    run.times.clear()
    saving.forget_rows(run)


def backward(run: Run, drawn: Drawn) -> Tensor:
    """Add this process's part of the step to the gradients; its images' losses, (B,) float64."""
    config, world = run.train, run.world
    rows, size = drawn.eps.shape[0], micro_batch(run)
    parts: list[Tensor] = []
    world.same(run.state.network.buffers())
    run.state.keep_buffers()
    for begin in range(0, rows, size):
        key_layers(run, begin // size)
        losses = run.objective.losses(run.parallel, drawn.part(slice(begin, begin + size)))
        torch.autograd.backward(losses.sum() * (world.size / config.batch))  # the processes' gradients are averaged
        parts.append(exact(losses.detach()))
    return torch.cat(parts)


def key_layers(run: Run, part: int) -> None:
    """Seed torch's generator, which dropout and a caller's own random layers draw from, for one forward pass."""
    purpose = f"train/layers/{run.batches.retry}"
    draw = seeds.rng(run.config.train.seed, purpose, run.state.step, part * run.world.size + run.world.rank)
    torch.manual_seed(int(draw.integers(2**63)))


def callers_generator(device: torch.device) -> AbstractContextManager[None]:
    """Leave torch's generator, which `key_layers` seeds, as the caller had it."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def all_reduce(run: Run, loss: float, asked: int, short: bool) -> tuple[float, int, bool]:
    """The mean loss over all processes, the signal that any of them was sent, and whether any is short of memory."""
    if run.world.size == 1:
        return loss, asked, short
    values = exact(torch.zeros(2 + run.world.size, device=run.objective.compute.device))
    values[0], values[1], values[2 + run.world.rank] = loss, short, asked
    loss, lacking, *every = run.world.sum(values).tolist()
    return loss, int(max(every)), lacking > 0


def update(run: Run, loss: float, norm: float) -> dict[str, Any]:
    """Step and average if loss and gradient are finite, else leave every weight as it is; the step's row of the log."""
    state, config = run.state, run.train
    rate = learning_rate(config, state.step, None if run.budget is None else run.budget.plan(state.step))
    good = math.isfinite(loss) and math.isfinite(norm)
    if good:
        if config.clip and norm > config.clip:
            state.parameters.grads.mul_(config.clip / norm)
        set_rate(state.optimizer, rate, config.weight_decay)
        state.optimizer.step()
        state.ema.set_width(config.ema)
        state.ema.update(state.parameters.values)
    else:
        state.restore_buffers()
    state.parameters.grads.zero_()
    state.bad = 0 if good else state.bad + 1
    state.skipped += not good
    state.step += 1
    row: dict[str, Any] = {"step": state.step, "loss": loss, "grad_norm": norm, "lr": rate}
    row |= run.objective.parts() | changed(run)
    return row if good else {**row, "skipped": "loss or gradient is not finite"}


def log_step(run: Run, row: dict[str, Any]) -> None:
    """Write the step's row, with the validation loss when it is time."""
    state, config = run.state, run.config.train
    row["images_per_s"] = speed(run)
    if run.log is None or run.monitor is None:
        return
    if run.is_time(config.evaluate_every):
        try:
            row["held_out"] = in_parts(run, "validation", AT_ONCE, partial(validate, run, run.monitor))
        except Exception as error:  # validation images that cannot be read, say
            saving.write_row(run, row)
            saving.raise_saved(run, error)
    saving.write_row(run, row)
    run.report.step(row, run.last)
    if "skipped" in row:
        run.report.fact("skipped", step=state.step, reason=row["skipped"], in_a_row=state.bad)


def validate(run: Run, monitor: Monitor, at_once: int) -> dict[str, Any] | None:
    """The validation, so many of its images computed at once."""
    monitor.at_once = at_once
    return monitor.validate(run.state.averaged())


def preview(run: Run) -> None:
    """Draw the grid of this step if it is time and there is none yet; a failure to write it is said, no more."""
    step, config, monitor = run.state.step, run.config.train, run.monitor
    if monitor is None or not step or not run.is_time(config.preview_every) or monitor.preview_path(step).exists():
        return
    try:
        saving.follow(run)
        most = min(config.preview_images, Request.batch)
        path = in_parts(run, "preview", most, lambda size: monitor.preview(run.state.averaged(), step, size))
        if path is not None:
            run.report.preview(step, run.last, path)
            if run.board is not None:
                run.board.preview(step, path)
    except Error as error:
        run.report.say(f"warning: no preview of step {step}: {error}")


def speed(run: Run) -> float:
    """Images a second over the last steps."""
    run.times.append((time.perf_counter(), run.state.step))
    del run.times[:-20]
    (begin, first), (end, last) = run.times[0], run.times[-1]
    return round((last - first) * run.train.batch / max(end - begin, 1e-9), 2) if last > first else 0.0


def roll_back(run: Run) -> None:
    """Return to the last good save after too many bad steps, or non-finite weights; later steps draw other noise.

    Raises:
        Error: after too many returns without a save between.
    """
    state, at = run.state, run.state.step
    if state.returns >= MOST_RETURNS:
        raise Error(
            f"step {at}: loss, gradient or weights were not finite again ({state.bad} steps in a row), after "
            f"{state.returns} returns to the save of step {state.good_step}, which is untouched. Lower --train.lr (now "
            f"{run.train.lr:g}), or use --compute.precision fp32, and go on; or lengthen --train.warmup, with --out "
            f"ANOTHER --init {run.folder}.",
            exit_code=70,
        )
    retry, returns, skipped = state.retry + 1, state.returns + 1, state.skipped
    state.restore(run.world.on_first(lambda: saving.last_good(run)))
    state.retry, state.returns, state.skipped, state.bad = retry, returns, skipped, 0
    back_at(run)
    if run.budget is not None and not run.budget.returned(state.step):
        _plan(run, "return")
    run.report.fact("rolled_back", step=at, back=state.step, returns=returns, most=MOST_RETURNS)


def plan_first(run: Run) -> None:
    """A time budget's first plan, or another one where another budget is asked for than that of the plans."""
    budget, step = run.budget, run.state.step
    if budget is None:
        return
    if run.world.first and not budget.step_seconds and not budget.taken and (not budget.plans or step < run.last):
        budget.step_seconds = measure(run).seconds
    if not budget.plans:
        _plan(run, "first")
    elif budget.changed:
        old = budget.plans[-1]
        budget.forget_later(step)
        _plan(run, "minutes", old)
    budget.ticked = budgets.seconds_now()


def plan_again(run: Run) -> None:
    """Before a step: plan the rest of a time budget again where the machine's speed asks for it."""
    if run.budget is not None:
        off = run.world.first and budgets.is_off(run.budget, run.train, run.state.step)
        if run.world.any(off, run.objective.compute.device):
            _plan(run, "speed")


def _plan(run: Run, reason: str, old: Planned | None = None) -> None:
    """Plan, write it down before a step is taken by it, and say so."""
    budget, train, step = run.budget, run.train, run.state.step
    assert budget is not None
    old = old or (budget.plan(step) if budget.plans else None)
    new = run.world.on_first(lambda: budgets.next_plan(budget, train, step, reason))
    budget.plans.append(new)
    values = budgets.news(budget, new, old) | {"lr_shape": train.lr_shape, "lr": learning_rate(train, step, new)}
    if old is not None:
        values["before"]["lr"] = learning_rate(train, max(0, step - 1), old)
    run.report.fact("budget", **values)
    if run.log is None:  # the first process alone writes
        return
    try:
        budgets.write(run.folder, budget)
    except Error as error:
        run.report.say(f"warning: {error} Stopped before the next save, the run may take its steps at other rates.")


def changed(run: Run) -> dict[str, int]:
    """For the log: the micro-batch, where the step just taken was the first with it."""
    now = run.state.retry, run.state.step
    sizes = [each.size for each in run.sizes.halvings if (each.what, each.retry, each.step) == ("training", *now)]
    return {"micro_batch": min(sizes)} if sizes else {}


def micro_batch(run: Run) -> int:
    """Images of a process at once in the step to come."""
    train = run.train
    rows = -(-train.batch // run.world.size)
    most = min(train.micro_batch or rows, rows)
    return run.sizes.at("training", run.state.step + 1, run.state.retry, train.micro_batch, most)


def halve(run: Run, what: What, step: int, size: int, reason: str, back: int | None = None) -> None:
    """Write down that fewer images are computed at once from a step on, and say so.

    Args:
        back: the step of the save that the run has returned to meanwhile.

    Raises:
        Error: there is one image at once already.
    """
    if size <= 1:
        raise too_large(step, reason)
    run.sizes.halvings.append(Halving(what, step, run.state.retry, size // 2, run.config.train.micro_batch))
    run.extra["halvings"] = run.sizes.plain()
    run.report.fact("halved", what=what, step=step, size=size, reason=reason, back=back)
    if run.log is None:  # the first process alone writes
        return
    try:
        files.write_atomic(run.folder / FILE, json.dumps(run.sizes.plain(), indent=1) + "\n")
    except Error as error:
        run.report.say(f"warning: {error} Stopped before the next save, the run may go on in other last bits.")


def in_parts(run: Run, what: What, most: int, act: Callable[[int], T]) -> T | None:
    """What `act` gives of how many images it may compute at once; None, with a warning, where one is too many.

    Raises:
        Error: whatever `act` raises.
    """
    step, of = run.state.step, run.config.train.micro_batch
    while True:
        size = run.sizes.at(what, step, run.state.retry, of, most)
        try:
            return act(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = said(error)
        free()
        if size == 1:
            run.report.say(f"warning: step {step}: no {what}: out of memory with one image at once ({reason}).")
            return None
        halve(run, what, step, size, reason)


PASSES = 5  # timed
PATIENCE = 4.0  # seconds of timing after which no further pass begins


class StepCost(NamedTuple):
    """Seconds a training step, bytes at the peak of one, and the network's parameters."""

    seconds: float
    memory: int
    parameters: int


def measure(run: Run) -> StepCost:
    """Forward and backward passes of one micro-batch: one to warm up, then up to `PASSES` timed ones, of which the
    median counts; gradients and buffers are put back.

    Where memory runs out, a smaller micro-batch is measured; it is the training that decides on one and says so.

    Raises:
        Error: one image at once takes too much.
    """
    config, state = run.train, run.state
    alone = dataclasses.replace(run, parallel=state.network, world=World())  # the other processes do not measure
    rows = -(-config.batch // run.world.size)
    size = micro_batch(run)
    drawn = run.batches.draw(state.step)
    while True:
        part = drawn.part(slice(size))
        part = dataclasses.replace(part, step=ENDLESS)  # by when an autoencoder has its discriminator
        try:
            seconds, kept = _passes(alone, part)
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = memory.said(error)
        undo(run)
        if size == 1:
            raise memory.too_large(state.step + 1, reason)
        size //= 2
    state.parameters.grads.zero_()
    run.objective.parts()  # of passes that were no step
    parameters = sum(p.numel() for p in state.network.parameters())
    # weights, gradients, two moments in float32; the average in float64
    held = 24 * parameters + kept + in_memory(run.batches.images) + run.model.codec.nbytes
    return StepCost(seconds * rows / size, held, parameters)


def _passes(alone: Run, part: Drawn) -> tuple[float, int]:
    """Seconds of a pass over these images, and bytes that one keeps for its backward pass."""
    device, kept, seconds = alone.objective.compute.device, 0, list[float]()

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with callers_generator(device):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            backward(alone, part)
        alone.state.restore_buffers()
        while len(seconds) < PASSES and sum(seconds) < PATIENCE:
            begin = time.perf_counter()
            backward(alone, part)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - begin)
            alone.state.restore_buffers()
    return median(seconds), kept


def in_memory(images: Images) -> int:
    """Bytes that the images take in memory; 0 where they are read from disk."""
    return 0 if images.scan.pixels is None else images.scan.pixels.nbytes
