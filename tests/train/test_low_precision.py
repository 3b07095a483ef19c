"""Training in bf16 learns as training in fp32 does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from train.made_runs import go, images, outcome

SETTINGS = {
    "train.max_steps": 400,
    "train.batch": 16,
    "train.save_every": 400,
    "train.evaluate_every": 0,
    "model.network.channels": 32,
    "data.hold_out": 0,
}


@pytest.mark.slow
def test_the_smoothed_loss_in_bf16_is_within_two_percent_of_fp32(tmp_path: Path) -> None:
    data = images(tmp_path / "pictures.npz", n=64)
    smoothed = []
    for precision in ("fp32", "bf16"):
        go(tmp_path / precision, data, SETTINGS | {"compute.precision": precision})
        losses = [row["loss"] for row in outcome(tmp_path / precision)["rows"]]
        smoothed.append(np.convolve(losses, np.ones(100) / 100, "valid"))
    fp32, bf16 = smoothed
    assert fp32[-1] < 0.8 * fp32[0], "it learned"
    assert np.abs(bf16 / fp32 - 1).max() < 0.02
