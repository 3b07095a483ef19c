"""What a run will take, measured on two steps that leave no trace: seconds a step, and memory at its peak."""

from __future__ import annotations

import dataclasses
import time
from typing import NamedTuple

import torch

from kuosan.data.pictures import Pictures
from kuosan.train.distributed import World
from kuosan.train.loop import Run, backward, callers_generator


class Estimate(NamedTuple):
    """Seconds a training step, bytes at the peak of one, and the network's parameters."""

    seconds: float
    memory: int
    parameters: int


def measure(run: Run) -> Estimate:
    """Two forward and backward passes of one micro-batch, the second one timed; gradients and buffers are put back."""
    config, state = run.config.train, run.state
    alone = dataclasses.replace(run, parallel=state.network, world=World())  # the other processes do not measure
    rows = -(-config.batch // run.world.size)
    size = min(config.micro_batch or rows, rows)
    drawn = run.draws.draw(state.step)
    part = type(drawn)(drawn.batch, drawn.level[:size], drawn.eps[:size])
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with callers_generator(run.objective.compute.device):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            backward(alone, part)
        state.restore_buffers()
        begin = time.perf_counter()
        backward(alone, part)
        if run.objective.compute.device.type == "cuda":
            torch.cuda.synchronize(run.objective.compute.device)
        seconds = (time.perf_counter() - begin) * rows / size
        state.restore_buffers()
    state.parameters.grads.zero_()
    parameters = sum(p.numel() for p in state.network.parameters())
    # weights, gradients, two moments in float32; the average in float64
    return Estimate(seconds, 24 * parameters + kept + in_memory(run.draws.pictures), parameters)


def in_memory(pictures: Pictures) -> int:
    """Bytes that the pictures take in memory; 0 where they are read from disk."""
    return 0 if pictures.scan.pixels is None else pictures.scan.pixels.nbytes
