"""What a run will take, measured on a few steps that leave no trace: seconds a step, and memory at its peak."""

from __future__ import annotations

import dataclasses
import time
from statistics import median
from typing import NamedTuple

import torch

from kuosan.data.pictures import Pictures
from kuosan.train.distributed import World
from kuosan.train.loop import Run, backward, callers_generator

PASSES = 5  # timed
PATIENCE = 4.0  # seconds of timing after which no further pass begins


class Estimate(NamedTuple):
    """Seconds a training step, bytes at the peak of one, and the network's parameters."""

    seconds: float
    memory: int
    parameters: int


def measure(run: Run) -> Estimate:
    """Forward and backward passes of one micro-batch: one to warm up, then up to `PASSES` timed ones, of which the
    median counts; gradients and buffers are put back.
    """
    config, state = run.config.train, run.state
    alone = dataclasses.replace(run, parallel=state.network, world=World())  # the other processes do not measure
    rows = -(-config.batch // run.world.size)
    size = min(config.micro_batch or rows, rows)
    drawn = run.draws.draw(state.step)
    part = dataclasses.replace(drawn.part(slice(size)), step=config.max_steps)  # by when an autoencoder has its critic
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with callers_generator(run.objective.compute.device):
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            backward(alone, part)
        state.restore_buffers()
        seconds: list[float] = []
        while len(seconds) < PASSES and sum(seconds) < PATIENCE:
            begin = time.perf_counter()
            backward(alone, part)
            if run.objective.compute.device.type == "cuda":
                torch.cuda.synchronize(run.objective.compute.device)
            seconds.append(time.perf_counter() - begin)
            state.restore_buffers()
    state.parameters.grads.zero_()
    run.objective.parts()  # of passes that were no step
    parameters = sum(p.numel() for p in state.network.parameters())
    # weights, gradients, two moments in float32; the average in float64
    held = 24 * parameters + kept + in_memory(run.draws.pictures) + run.model.codec.nbytes
    return Estimate(median(seconds) * rows / size, held, parameters)


def in_memory(pictures: Pictures) -> int:
    """Bytes that the pictures take in memory; 0 where they are read from disk."""
    return 0 if pictures.scan.pixels is None else pictures.scan.pixels.nbytes
