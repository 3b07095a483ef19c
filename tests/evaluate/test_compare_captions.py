"""A comparison of restorations in which a text model is told each image's own caption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from kuosan.errors import Error
from kuosan.evaluate.plan import compare
from shell import QUICK, kuosan


def test_a_contestant_is_told_each_images_own_caption(tmp_path: Path) -> None:
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
    (tmp_path / "told").mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (80 * i, 90, 200)).save(tmp_path / "told" / f"{i}.png")
        (tmp_path / "told" / f"{i}.txt").write_text("word " * (400 if i == 1 else 2))
    with pytest.raises(Error, match=r"a caption of the images: the text .* has 400 words and marks"):
        compare(tmp_path / "told", [told], upscale=2, n=3, distance=distance, out=str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
