"""What the fault tests run: saves of small states that a test can compute again, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faults.harness import note
from kuosan.errors import Error
from kuosan.storage import checkpoint


def state_of(step: int) -> dict[str, Any]:
    """The arguments of `checkpoint.save` at `step`: weights of three dtypes, a scalar, an empty one, and text."""
    draw = np.random.Generator(np.random.Philox(key=step))
    weight = torch.from_numpy(draw.standard_normal((7, 5), dtype=np.float32))
    network = {"conv.weight": weight, "conv.bias": weight[0].bfloat16(), "empty": torch.zeros(0, 3)}
    return {
        "config": {"model": {"channels": [32, 64], "prediction": "v"}, "lr": 1e-5, "name": "头像"},
        "ema": {name: tensor * 0.5 for name, tensor in network.items()},
        "network": network,
        "optimizer": {"exp_avg": weight**2, "step": torch.tensor(float(step), dtype=torch.float64)},
        "state": {"step_of_log": step, "best": 0.1 * step, "ids": [step, step + 1]},
    }


def saves(run: str, steps: Sequence[int]) -> None:
    """Save each step in turn, as a training does that goes on after a failed save; note what came of each."""
    for step in steps:
        try:
            checkpoint.save(run, step, **state_of(step))
        except Error as error:
            note({"failed": step, "error": str(error)})
        else:
            note({"saved": step})


def same(saved: checkpoint.Saved) -> bool:
    """True when a loaded checkpoint is bit for bit what `state_of` its step says."""
    expected = state_of(saved.step)
    for part in checkpoint.PARTS:
        found, wanted = getattr(saved, part), expected[part]
        if found.keys() != wanted.keys():
            return False
        if not all(_identical(found[name], wanted[name]) for name in wanted):
            return False
    return saved.config == expected["config"] and saved.state == expected["state"]


def _identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


def files_of(run: Path, step: int) -> list[Path]:
    """The files of a checkpoint, the manifest among them."""
    return sorted(checkpoint.folder(run, step).iterdir())
