"""Which data a run takes for its own when it goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from made_runs import begin, differences, go, outcome
from PIL import Image

from kuosan.errors import Error
from kuosan.seeds import rng

FAST = {"data.size": 8, "train.max_steps": 4, "train.evaluate_every": 0}


def images(folder: Path, kind: str = "PNG") -> Path:
    """Thirty small colour images, each with a caption beside it, their pixels the same whatever the kind of file."""
    folder.mkdir(exist_ok=True)
    for i in range(30):
        coarse = rng(0, "test/same", 0, i).integers(0, 256, (2, 2, 3)).repeat(4, 0).repeat(4, 1)
        Image.fromarray(coarse.astype(np.uint8)).save(folder / f"{i}.png", kind)
        (folder / f"{i}.txt").write_text(f"image {i}")
    return folder


def test_a_run_goes_on_bit_for_bit_when_files_were_saved_again_and_unused_captions_edited(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    go(tmp_path / "whole", data, FAST)
    go(tmp_path / "run", data, {**FAST, "train.max_steps": 2})
    images(data, "BMP")
    (data / "3.txt").write_text("another caption")
    go(tmp_path / "run", data, FAST)
    whole, run = outcome(tmp_path / "whole"), outcome(tmp_path / "run")
    assert differences(whole, run) == []


def test_other_pixels_are_other_data(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    go(tmp_path / "run", data, {**FAST, "train.max_steps": 2})
    Image.new("RGB", (8, 8), "red").save(data / "3.png")
    with pytest.raises(Error, match="not the ones this run was trained on"):
        begin(tmp_path / "run", data, FAST)


def test_a_run_that_stored_no_split_version_keeps_version_1(tmp_path: Path) -> None:
    from kuosan.train.resume import stored

    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"data": {"path": "somewhere"}, "model": {"shape": [3, 8, 8]}, "train": {"seed": 0}})
    )
    found = stored(tmp_path)
    assert found is not None and found["data"]["split_version"] == 1
