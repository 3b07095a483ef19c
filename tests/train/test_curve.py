"""The loss curve: a running mean that is one, and an image even of a run with holes in its log."""

from __future__ import annotations

import numpy as np

from kuosan.data.pixels import read_png_text
from kuosan.train.report import draw, smooth


def test_the_running_mean_is_the_mean_of_the_last_steps():
    losses = np.array([4.0, 2.0, 0.0, 6.0])
    assert smooth(losses, 2).tolist() == [4.0, 3.0, 1.0, 3.0]


def test_a_curve_is_drawn_although_some_losses_are_null(tmp_path):
    held = {"loss": None, "by_noise": [0.5, None]}
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}, {"step": 3, "loss": 0.4, "held_out": held}]
    draw(rows, tmp_path / "curve.png")
    assert "Software" in read_png_text(tmp_path / "curve.png")


def test_no_curve_is_drawn_of_no_steps(tmp_path):
    draw([], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
