"""Weights that a name and a shape make, so that a recorded output is a function of the names alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from kuosan import seeds


def drawn(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """A weight for each name, of about unit gain; norms' weights around 1."""
    made = {}
    for name, shape in shapes.items():
        noise = torch.from_numpy(seeds.rng(5, name).standard_normal(tuple(shape), dtype=np.float32))
        gain = 1 / noise[0].numel() ** 0.5 if noise.ndim > 1 else 0.1
        norm = noise.ndim == 1 and name.endswith("weight")
        made[name] = gain * noise + norm
    return made
