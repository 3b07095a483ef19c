"""Importing this does all that a run does before its first step: a fork of the importing process starts in no time.

Nothing runs backward here: torch's autograd cannot be forked once it has.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from kuosan.train import saving
from train.made_runs import OwnNetwork, begin, images, outcome

with tempfile.TemporaryDirectory() as folder:
    data = images(Path(folder) / "pictures.npz")
    for network in (None, OwnNetwork()):
        run = begin(Path(folder) / f"run-{network is None}", data, {"train.max_steps": 1}, network=network)
        saving.save(run, must=True)
        saving.close(run)
        outcome(run.folder)
