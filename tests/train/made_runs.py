"""Small runs for the tests: images, networks, a start that can be stopped at a step, and what a run came to."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from kuosan import options, seeds
from kuosan.data.config import DataConfig
from kuosan.storage import checkpoint
from kuosan.storage.log import Log
from kuosan.train import api, loop
from kuosan.train.config import RunConfig
from kuosan.train.report import SilentTraining
from kuosan.train.state import Run

SMALL = {
    "model.network.channels": 16,
    "model.network.groups": 8,
    "model.network.head_channels": 16,
    "model.network.multipliers": [1],
    "model.network.attention": ["true"],
    "model.network.blocks": 1,
    "train.batch": 5,
    "train.warmup": 3,
    "train.lr": 1e-3,
    "train.save_every": 3,
    "train.evaluate_every": 4,
    "train.preview_every": 0,
    "train.evaluate_pictures": 8,
    "compute.precision": "fp32",
    "compute.threads": 1,
    "data.hold_out": 0.2,
}
OF_A_UNET = ("model.network.head_channels", "model.network.attention")  # and none of an autoencoder's
TIMES = ("images_per_s",)  # of a row: what a clock says, not the training


class OwnNetwork(nn.Module):
    """A module such as a user brings: batch norm's buffers, dropout, a weight that two layers share."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.inward = nn.Conv2d(3, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.time = nn.Linear(1, 12)
        self.middle = nn.Conv2d(12, 12, 3, padding=1)
        self.again = nn.Conv2d(12, 12, 3, padding=1)
        self.again.weight = self.middle.weight
        self.dropout = nn.Dropout(dropout)
        self.outward = nn.Conv2d(12, 3, 3, padding=1)
        draw = seeds.rng(7, "test/own")
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.from_numpy(draw.standard_normal(p.shape) * 0.1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.norm(self.inward(x)) + self.time(t[:, None] / 1000)[:, :, None, None]
        h = self.dropout(torch.relu(self.middle(torch.relu(h))))
        return self.outward(torch.relu(self.again(h)))


class Stopping(SilentTraining):
    """Hears a run, and sends this process a signal after the step `at`."""

    def __init__(self, at: int = -1, number: int = signal.SIGTERM) -> None:
        self.at, self.number, self.said = at, number, list[str]()

    def say(self, text: str) -> None:
        """Keep the line."""
        self.said.append(text)

    def step(self, row: dict[str, Any], max_steps: int) -> None:
        """Send the signal when its step was taken."""
        if row["step"] == self.at:
            signal.raise_signal(self.number)


def images(path: Path, n: int = 30, size: int = 8, seed: int = 0) -> Path:
    """An npz of `n` colour images, smooth and all different."""
    draw = seeds.rng(seed, "test/pictures")
    coarse = draw.integers(0, 256, (n, 2, 2, 3)).repeat(size // 2, 1).repeat(size // 2, 2)
    np.savez(path, images=(coarse * 0.9 + draw.integers(0, 25, (n, size, size, 3))).astype(np.uint8))
    return path


MIXED = ((16, 16), (12, 20), (20, 12), (12, 24), (24, 12))  # (h, w) of buckets at 16 pixels


def mixed(folder: Path, counts: Sequence[int] = (8, 6, 4, 4, 4)) -> DataConfig:
    """A folder of images of several shapes, and the settings that keep them."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = seeds.rng(0, "test/mixed")
    for (h, w), count in zip(MIXED, counts):
        for i in range(count):
            coarse = draw.integers(0, 230, (h // 4, w // 4, 3)).repeat(4, 0).repeat(4, 1)
            pixels = (coarse + draw.integers(0, 25, (h, w, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{w}x{h} {i}.png")
    return DataConfig(str(folder), size=16, resize="buckets", hold_out=0.0)


def ask(out: Path, data: Path, settings: Mapping[str, Any] = {}, network: nn.Module | None = None) -> api.TrainingSetup:
    """A run that was asked for, as the shell or `fit` asks."""
    every = {**SMALL, "data.path": str(data), **settings}
    if settings.get("train.objective") == "autoencoder":
        every = {key: value for key, value in every.items() if key not in OF_A_UNET}
    if network is not None:
        every = {key: value for key, value in every.items() if not key.startswith("model.network")}
    words = [word for key, value in every.items() for word in options.words(key, value)]
    return api.prepare(out, options.parse(words, RunConfig)[0], network=network)


def begin(out: Path, data: Path, settings: Mapping[str, Any] = {}, **more: Any) -> Run:
    """The run opened and not yet trained; `api.train` it, or close it."""
    report, network = more.pop("report", SilentTraining()), more.pop("network", None)
    return api.start(ask(out, data, settings, network), report, **more)


def go(out: Path, data: Path, settings: Mapping[str, Any] = {}, **more: Any) -> int:
    """Train to the end, or to the signal that `report` sends; `seen` collects what each step was given."""
    seen = more.pop("seen", None)
    run = begin(out, data, settings, **more)
    real = loop.backward

    def watched(run: Run, drawn: Any) -> Tensor:
        if seen is not None:
            batch = drawn.batch
            seen.append((run.state.step, batch.ids.tolist(), digest(batch.x0), drawn.u.tolist(), digest(drawn.eps)))
        return real(run, drawn)

    with patch.object(loop, "backward", watched), patch.object(api, "draw"):  # the curve takes longer than the run
        return api.train(run)


def digest(tensor: Tensor) -> str:
    """All bits of a tensor."""
    return blake2b(tensor.detach().contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def outcome(out: Path) -> dict[str, Any]:
    """All that a run came to: its rows, and every bit and count of its newest save."""
    saved = checkpoint.load(out)
    assert not saved.damaged
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in Log(out / "log.jsonl").rows()]
    assert [row["step"] for row in rows] == list(range(1, saved.step + 1)), "each step has one row"
    check_table(out)
    parts = {f"{part}/{name}": digest(t) for part in checkpoint.PARTS for name, t in getattr(saved, part).items()}
    return {"step": saved.step, "state": saved.state, "rows": rows, **parts}


def check_table(out: Path) -> None:
    """log.csv has the rows of log.jsonl, each once, with the very numbers."""
    with open(out / "log.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    flat = [dict(_flat(row)) for row in Log(out / "log.jsonl").rows()]
    assert [{name: text for name, text in row.items() if text} for row in table] == flat


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value, 1) if isinstance(value, list) else None
    if inner is None:
        yield from [] if value is None else [(name, value if isinstance(value, str) else json.dumps(value))]
        return
    for key, each in inner:
        yield from _flat(each, f"{name}.{key}".lstrip("."))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Which entries of two outcomes are not the same, bit for bit."""
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]
