"""What commit 47b8b58 was asked for when tests/train/run-47b8b58.zip was written with it: a run, and configurations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Of the run in the zip: nothing said of what defaults decide.
SETTINGS: dict[str, Any] = {
    "max_steps": 9,
    "save_every": 3,
    "evaluate_every": 0,
    "preview_every": 0,
    "hold_out": 0.2,
    "compute.precision": "fp32",
    "compute.threads": 1,
}

_AUTOENCODER = {"kind": "autoencoder", "in_channels": 3, "channels": 16, "multipliers": [1, 1, 1], "groups": 8}
_CODEC = {"kind": "latents", "run": "ae", "weights": "0" * 64, "network": _AUTOENCODER}
_NAMES = ("a", "b", "c")

# name -> what was said, shape, size of the network, classes
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int], Any, tuple[str, ...]]] = {
    **{f"{size} of {side}": ({}, (3, side, side), size, ()) for size, side in (("tiny", 8), ("small", 28))},
    **{f"small of {side}": ({}, (1, side, side), "small", ()) for side in (15, 16, 32, 64, 128, 256)},
    "medium of 32": ({}, (3, 32, 32), "medium", ()),
    "large of 64 by 48": ({}, (3, 64, 48), "large", ()),
    "dit": ({"model": {"network": {"kind": "dit"}}}, (3, 32, 32), "small", ()),
    "karras": ({"model": {"schedule": {"kind": "karras"}}}, (3, 32, 32), "small", ()),
    "flow": ({"model": {"schedule": {"kind": "flow"}}}, (3, 32, 32), "small", ()),
    "labels": ({"model": {"task": {"labels": True}}}, (3, 32, 32), "small", _NAMES),
    "text": ({"model": {"text": {"kind": "bytes"}}}, (3, 32, 32), "small", ()),
    "super-resolution": ({"model": {"task": {"kind": "super_resolution", "scale": 2}}}, (3, 32, 32), "small", ()),
    "super-resolution of x0": (
        {"model": {"task": {"kind": "super_resolution", "scale": 2}, "prediction": "x0"}},
        (3, 32, 32),
        "small",
        (),
    ),
    "inpainting": ({"model": {"task": {"kind": "inpainting"}, "prediction": "x0"}}, (3, 32, 32), "small", ()),
    "latents": ({"model": {"codec": _CODEC}}, (3, 64, 64), "small", ()),
    "bound": ({"train": {"loss": "vlb"}}, (3, 32, 32), "small", ()),
    "hybrid": ({"train": {"loss": "hybrid"}, "model": {"learned_variance": True}}, (3, 32, 32), "small", ()),
    "classifier": ({"train": {"objective": "classifier"}}, (3, 28, 28), "small", _NAMES),
    "judge": (
        {"train": {"objective": "classifier"}, "model": {"network": {"kind": "classifier", "noisy": False}}},
        (3, 28, 28),
        "tiny",
        _NAMES,
    ),
    "autoencoder": ({"train": {"objective": "autoencoder"}}, (3, 64, 64), "small", ()),
    "autoencoder without a discriminator": (
        {"train": {"objective": "autoencoder", "autoencoder": {"critic": 0.0}}},
        (3, 64, 64),
        "small",
        (),
    ),
}


class Affine(nn.Module):
    """The least network of one's own: a few hundred bytes of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).reshape(parameter.shape))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.convolution(x) * (1 - t[:, None, None, None] / 1000)
        return out
