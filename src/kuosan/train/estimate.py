"""What a run will take, measured on a few steps that leave no trace: seconds a step, and memory at its peak."""

from __future__ import annotations

import dataclasses
import time
from statistics import median
from typing import NamedTuple

import torch

from kuosan.data.dataset import Images
from kuosan.errors import is_out_of_memory
from kuosan.train import memory
from kuosan.train.batches import Drawn
from kuosan.train.distributed import World
from kuosan.train.loop import backward, callers_generator, micro_batch, undo
from kuosan.train.run import Run

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
    config, state = run.config.train, run.state
    alone = dataclasses.replace(run, parallel=state.network, world=World())  # the other processes do not measure
    rows = -(-config.batch // run.world.size)
    size = micro_batch(run)
    drawn = run.batches.draw(state.step)
    while True:
        part = drawn.part(slice(size))
        part = dataclasses.replace(part, step=config.max_steps)  # by when an autoencoder has its discriminator
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
