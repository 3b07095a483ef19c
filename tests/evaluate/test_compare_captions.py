"""A comparison of restorations in which a text model is told each picture's own caption."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from kuosan.evaluate.compare import compare
from shell import QUICK, kuosan


def test_a_contestant_is_told_each_pictures_own_caption(tmp_path: Path) -> None:
    run = tmp_path / "run"
    made = kuosan(
        *("train", "portraits", "--out", run, *QUICK, "--task", "super_resolution", "--scale", "2"),
        *("--text", "bytes", "--model.text.width", "16", "--model.text.depth", "1", "--model.text.heads", "2"),
    )
    assert made.code == 0, made.err

    def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x.float() - y.float()).abs().mean((1, 2, 3))

    told = f"{run},prompts=captions,guidance=2,steps=2"
    found = compare("portraits", [f"{run},steps=2", told], upscale=2, n=3, variants=2, out=str(tmp_path / "out"),
                    distance=distance)  # fmt: skip
    assert len(found.contestants) == 2
    assert found.contestants[0].values["psnr"] != found.contestants[1].values["psnr"]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["contestants"][1]["made"]["settings"]["prompts"] == "captions"
