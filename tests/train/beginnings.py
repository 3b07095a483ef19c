"""Runs of every trainer that are killed, or meet a full disk, before and inside their first save, and started again.

Operations are counted from the very start of the command, in the run's folder and in the cache. Used by
test_beginnings.py (some) and benchmarks/resume_kills.py --beginnings (many).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.harness import KILLED, ForkServer, Outcome, note
from kuosan import Error, seeds
from kuosan.storage import checkpoint
from kuosan.train import saving
from latent_models import autoencoder_run
from train.made_runs import Stopping, differences, go, outcome

PRELOAD = ["train.warmed", "train.beginnings"]
TRAINERS: dict[str, dict[str, Any]] = {
    "pixels": {},
    "dropout, importance": {
        "model.network.dropout": 0.1,
        "train.t_sampling": "importance",
        "data.flip": "true",
    },
    "latents": {"model.codec.run": "autoencoder"},
    "text": {"model.text.kind": "bytes", "model.text.width": 16, "model.text.depth": 1, "model.text.heads": 2},
    "classifier": {"train.objective": "classifier"},
    "autoencoder": {
        "train.objective": "autoencoder",
        "train.autoencoder.features": "random",
        "train.autoencoder.critic_start": 1,
        "model.network.channels": 8,
        "model.network.groups": 4,
        "model.network.multipliers": [1, 2],
        "model.network.critic_channels": 8,
        "model.network.critic_layers": 1,
    },
    "super-resolution": {"model.task.kind": "super_resolution", "model.task.scale": 2},
    "inpainting": {"model.task.kind": "inpainting"},
}
SHORT = {"train.max_steps": 2, "train.save_every": 1, "data.size": 16, "data.channels": "rgb", "data.workers": 0}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220)}


@dataclass(frozen=True)
class Begun:
    """What came of one run that was killed, or whose disk was full, at one operation; then started again."""

    trainer: str
    at: int
    mode: str
    hit: bool  # the fault came before the command ended
    different: list[str]


def images(folder: Path) -> Path:
    """Small images in class folders, each with a caption."""
    rows = []
    for i in range(12):
        name = list(COLOURS)[i % 3]
        noise = seeds.rng(i, "test/beginnings").integers(-20, 20, (16, 16, 3))
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{i}.png")
        rows.append({"file_name": f"{name}/{i}.png", "text": f"a {name} square"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(place: str, home: str, trainer: str) -> None:
    """In the fork: train to the end with the run and the cache below `place`."""
    os.environ["KUOSAN_CACHE"] = str(Path(place) / "cache")
    settings = SHORT | TRAINERS[trainer]
    if "model.codec.run" in settings:
        settings |= {"model.codec.run": str(Path(home) / "autoencoder")}
    saving.PAUSE, report = 0.0, Stopping()
    try:
        go(Path(place) / "run", Path(home) / "images", settings, report=report)
    except Error as error:
        note({"error": str(error)})
        raise SystemExit(error.exit_code) from None
    note({"said": report.said})


class Beginner:
    """Makes trials in a folder; a trainer's run without faults comes before its first trial."""

    def __init__(self, folder: Path, shim: Path, trainers: tuple[str, ...] = tuple(TRAINERS)) -> None:
        self.folder, self.trainers = folder, trainers
        images(folder / "images")
        autoencoder_run(folder / "autoencoder")
        self.server = ForkServer(shim, PRELOAD)
        self.whole: dict[str, Any] = {}
        self.first: dict[str, int] = {}

    def begin(self, trainer: str) -> int:
        """The number of the operation that completes a trainer's first save; its run without faults is made once."""
        if trainer not in self.first:
            place = self.folder / f"whole-{trainer}"
            done = self.run(place, trainer)
            assert done.status == 0, done.output
            saved = str(checkpoint.folder(place / "run", 0))
            self.first[trainer] = next(op.number for op in done.ops if op.name == "rename" and op.to == saved)
            self.whole[trainer] = outcome(place / "run")
        return self.first[trainer]

    def trial(self, trainer: str, at: int, mode: str) -> Begun:
        """Begin a run that meets a fault at operation `at`; start it again; compare it with the one without faults."""
        self.begin(trainer)
        place = self.folder / f"trial-{trainer}-{at}-{mode}"
        ended = self.run(place, trainer, at=at, mode=mode)
        assert ended.status in (0, 74, KILLED), ended.output
        again = self.run(place, trainer)
        assert again.status == 0, (trainer, at, mode, again.notes, again.output)
        different = differences(outcome(place / "run"), self.whole[trainer])
        shutil.rmtree(place)
        return Begun(trainer, at, mode, ended.status != 0, different)

    def instants(self, trainer: str, count: int) -> list[int]:
        """Operations from the first one to a few after the first save, as evenly as they go; 0: all."""
        last = self.begin(trainer) + 3
        return list(range(1, last + 1)) if not count else sorted({round(i) for i in np.linspace(1, last, count)})

    def run(self, place: Path, trainer: str, **faults: Any) -> Outcome:
        """One start of a run."""
        place.mkdir(exist_ok=True)
        return self.server.run(
            "train.beginnings:train", place, self.folder, trainer, **{"prefix": place, "timeout": 600, **faults}
        )

    def close(self) -> None:
        """End the fork server."""
        self.server.close()
